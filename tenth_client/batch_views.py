"""What ``tenth batch`` shows: one batch, a moving picture of it, many of them, and what is wrong with a file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

from google.protobuf import json_format
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text
from tenth.batch.v1 import batch_pb2

from formats.openai_answers import LAYERS
from tenth_client.batch_words import lane, layer, length, state, text
from tenth_client.batches import ENDED
from tenth_client.money import percent, usd

_STYLES = {
    batch_pb2.BATCH_STATE_DONE: "green",
    batch_pb2.BATCH_STATE_FAILED: "red",
    batch_pb2.BATCH_STATE_CANCELLED: "yellow",
    batch_pb2.BATCH_STATE_CANCELLING: "yellow",
}
_BAR_WIDTH = 50


def as_json(batch: batch_pb2.Batch) -> str:
    """A batch by the contract's field names (whole numbers of 64 bits are texts, as in proto JSON)."""
    body = json_format.MessageToDict(batch, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return json.dumps(body, ensure_ascii=False)


def one(batch: batch_pb2.Batch, now_seconds: float, lang: str) -> Table:
    """Everything that is known of a batch."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")

    def row(name: str, value: str | Text) -> None:
        if value:
            table.add_row(text(name, lang), value if isinstance(value, Text) else Text(value))

    row("batch", Text(batch.batch_id, style="bold"))
    said = state(batch.state, lang)
    run = text("run", lang, state=said, run=batch.run) if batch.run > 1 else said
    row("state", Text(run, style=_STYLES.get(batch.state, "")))
    row("why", " ".join(part for part in (batch.error_reason, batch.error_message) if part))
    row("items", f"{batch.item_count:,}")
    row("answered", text("answered_how", lang, **_counts(batch)))
    row("failed", Text(f"{batch.failed_count:,}", style="red" if batch.failed_count else ""))
    row("lanes", lanes(batch, lang))
    cost = usd(batch.actual_nano_usd)
    if batch.overhead_nano_usd:
        cost = text("overhead", lang, cost=cost, overhead=usd(batch.overhead_nano_usd))
    row("cost", cost)
    row("forecast", usd(batch.forecast_nano_usd) if _is_forecast(batch) else "")
    if batch.baseline_nano_usd:
        row("baseline", usd(batch.baseline_nano_usd))
        row("saving", text("saved", lang, **_saving(batch)))
    by_layer = (
        f"{layer(LAYERS.get(saving.layer, str(saving.layer)), lang)} {usd(saving.saving_nano_usd)}"
        for saving in batch.savings
        if saving.saving_nano_usd
    )
    row("by_layer", ", ".join(by_layer))
    row("created", _time(batch, "create_time"))
    row("deadline", _joined(_time(batch, "deadline_time"), _left(batch, now_seconds, lang)))
    row("ended", _joined(_time(batch, "end_time"), _took(batch, lang)))
    row("expires", _time(batch, "expire_time"))
    row("tags", ", ".join(f"{key}={batch.tags[key]}" for key in sorted(batch.tags)))
    return table


def moving(batch: batch_pb2.Batch, now_seconds: float, lang: str) -> Group:
    """A batch that is watched: bar, counts, lanes, money, time."""
    ended = batch.done_count + batch.failed_count
    head = Table.grid(padding=(0, 2))
    head.add_row(
        Text(batch.batch_id, style="bold"),
        Text(state(batch.state, lang), style=_STYLES.get(batch.state, "")),
        # A batch without items (being checked still) must not look like a whole one.
        ProgressBar(total=max(batch.item_count, 1), completed=ended, width=_BAR_WIDTH),
        Text(text("progress", lang, ended=f"{ended:,}", items=f"{batch.item_count:,}")),
    )
    lines: list[RenderableType] = [head, *(Text(f"  {line}") for line in _lines(batch, now_seconds, lang))]
    return Group(*lines)


def line(batch: batch_pb2.Batch, now_seconds: float, lang: str) -> str:
    """The same in one line, for where nothing can move."""
    ended = batch.done_count + batch.failed_count
    counted = text("progress", lang, ended=f"{ended:,}", items=f"{batch.item_count:,}")
    return "; ".join([f"{state(batch.state, lang)}, {counted}", *_lines(batch, now_seconds, lang)])


def many(batches: Sequence[batch_pb2.Batch], now_seconds: float, lang: str) -> Table | Text:
    """A line for each batch."""
    if not batches:
        return Text(text("none", lang))
    table = Table(show_edge=False, pad_edge=False)
    # An id is there to be copied: it is never cut in two.
    table.add_column(text("batch", lang), no_wrap=True)
    table.add_column(text("state", lang), no_wrap=True)
    for name in ("items", "answered", "failed", "cost_column", "forecast_column", "saving"):
        table.add_column(text(name, lang), justify="right", overflow="fold")
    for name in ("created", "deadline"):
        table.add_column(text(name, lang), overflow="fold")
    for batch in batches:
        table.add_row(
            Text(batch.batch_id),
            Text(state(batch.state, lang), style=_STYLES.get(batch.state, "")),
            f"{batch.item_count:,}",
            f"{batch.done_count:,}",
            Text(f"{batch.failed_count:,}", style="red" if batch.failed_count else ""),
            usd(batch.actual_nano_usd, 4),
            usd(batch.forecast_nano_usd, 4) if _is_forecast(batch) else "",
            _saving(batch)["percent"],
            _time(batch, "create_time"),
            _left(batch, now_seconds, lang) or _time(batch, "deadline_time"),
        )
    return table


def line_errors(errors: Iterable[batch_pb2.LineError], lang: str) -> Table:
    """Every error of a file, with its line."""
    table = Table(show_edge=False, pad_edge=False)
    table.add_column(text("line", lang), justify="right")
    for name in ("custom_id", "field", "reason", "message"):
        table.add_column(text(name, lang), overflow="fold")
    for error in errors:
        table.add_row(
            str(error.line), Text(error.custom_id), Text(error.field), Text(error.reason), Text(error.message, "red")
        )
    return table


def lanes(batch: batch_pb2.Batch, lang: str) -> str:
    """How many items each lane answered."""
    return ", ".join(f"{lane(each.lane, lang)} {each.item_count:,}" for each in batch.lanes if each.item_count)


def _lines(batch: batch_pb2.Batch, now_seconds: float, lang: str) -> list[str]:
    counts = text("counts", lang, **_counts(batch))
    answered_by = lanes(batch, lang)
    money = _joined(
        text("cost_of", lang, cost=usd(batch.actual_nano_usd)),
        # What is not known yet is no zero.
        text("forecast_of", lang, forecast=usd(batch.forecast_nano_usd)) if _is_forecast(batch) else "",
        text("saved_of", lang, **_saving(batch)) if batch.baseline_nano_usd else "",
    )
    times = _joined(_left(batch, now_seconds, lang), _pace(batch, now_seconds, lang), _took(batch, lang))
    said = (counts, answered_by, money, times, batch.error_message)
    return [each for each in said if each]


def _counts(batch: batch_pb2.Batch) -> dict[str, str]:
    return {
        "done": f"{batch.done_count:,}",
        "cache": f"{batch.cache_hit_count:,}",
        "shared": f"{batch.shared_count:,}",
        "failed": f"{batch.failed_count:,}",
    }


def _saving(batch: batch_pb2.Batch) -> dict[str, str]:
    saved = batch.baseline_nano_usd - batch.actual_nano_usd
    return {"saving": usd(saved), "percent": percent(saved, batch.baseline_nano_usd)}


def _is_forecast(batch: batch_pb2.Batch) -> bool:
    return batch.forecast_nano_usd > 0 and batch.state not in ENDED


def _time(batch: batch_pb2.Batch, name: str) -> str:
    if not batch.HasField(name):  # type: ignore[arg-type]  # The names are those of the callers in this file.
        return ""
    return datetime.fromtimestamp(_seconds(getattr(batch, name)), UTC).strftime("%Y-%m-%d %H:%M UTC")


def _left(batch: batch_pb2.Batch, now_seconds: float, lang: str) -> str:
    if batch.state in ENDED or not batch.HasField("deadline_time"):
        return ""
    seconds = _seconds(batch.deadline_time) - now_seconds
    return text("left" if seconds >= 0 else "late", lang, time=length(abs(seconds), lang))


def _pace(batch: batch_pb2.Batch, now_seconds: float, lang: str) -> str:
    ended = batch.done_count + batch.failed_count
    # A second run counts from its own beginning, which nobody tells.
    if batch.state != batch_pb2.BATCH_STATE_RUNNING or batch.run > 1 or not 0 < ended < batch.item_count:
        return ""
    elapsed = max(0.0, now_seconds - _seconds(batch.create_time))
    return text("pace", lang, time=length(elapsed * (batch.item_count - ended) / ended, lang))


def _took(batch: batch_pb2.Batch, lang: str) -> str:
    if not batch.HasField("end_time") or not batch.HasField("create_time") or batch.run > 1:
        return ""
    return text("took", lang, time=length(_seconds(batch.end_time) - _seconds(batch.create_time), lang))


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _seconds(time: Timestamp) -> float:
    return time.ToNanoseconds() / 1e9
