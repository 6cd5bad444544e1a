"""What ``tenth router`` shows: the report, what a replay changes, the catalogue. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from tenth.router.v1 import router_pb2

from tenth_client.cache_words import tier
from tenth_client.money import percent, usd
from tenth_client.router_words import text, warning

_UNKNOWN = -1
_DRIFT = 0.2
_ABILITIES = ("tools", "json_schema", "vision", "korean")


@dataclass(frozen=True, slots=True)
class Change:
    """One decision that a replay changes."""

    recorded: str
    replayed: router_pb2.ReplayedOutcome

    @property
    def priced(self) -> bool:
        """True when there is a model and both costs are known."""
        return bool(self.replayed.model) and _UNKNOWN not in (
            self.replayed.cost_nano_usd,
            self.replayed.recorded_cost_nano_usd,
        )

    @property
    def cost_change_nano_usd(self) -> int:
        """What it costs more; 0 where that is not known."""
        return self.replayed.cost_nano_usd - self.replayed.recorded_cost_nano_usd if self.priced else 0

    @property
    def quality_change(self) -> float:
        """The estimated probability of a good answer that is gained."""
        return self.replayed.success_probability - self.replayed.recorded_success_probability


@dataclass(slots=True)
class ReplaySums:
    """What a replay comes to."""

    count: int = 0
    refused_count: int = 0
    """Requests for which no model would be left."""
    unpriced_count: int = 0
    cost_before_nano_usd: int = 0
    cost_after_nano_usd: int = 0
    quality_before: float = 0.0
    """Sums over the answered; the views divide."""
    quality_after: float = 0.0
    changes: list[Change] = field(default_factory=list)

    def add(self, recorded: str, replayed: router_pb2.ReplayedOutcome) -> None:
        """Count one request in; ``recorded`` is the model that was taken."""
        self.count += 1
        change = Change(recorded, replayed)
        if replayed.model != recorded:
            self.changes.append(change)
        if not replayed.model:
            self.refused_count += 1
            return
        self.quality_before += replayed.recorded_success_probability
        self.quality_after += replayed.success_probability
        if not change.priced:
            self.unpriced_count += 1
            return
        self.cost_before_nano_usd += replayed.recorded_cost_nano_usd
        self.cost_after_nano_usd += replayed.cost_nano_usd

    @property
    def answered_count(self) -> int:
        """Requests that have a model before and after."""
        return self.count - self.refused_count

    def report(self) -> dict[str, Any]:
        """The sums for a file."""
        answered = self.answered_count or 1
        return {
            "request_count": self.count,
            "changed_count": len(self.changes),
            "refused_count": self.refused_count,
            "unpriced_count": self.unpriced_count,
            "cost_before_nano_usd": self.cost_before_nano_usd,
            "cost_after_nano_usd": self.cost_after_nano_usd,
            "quality_before": self.quality_before / answered,
            "quality_after": self.quality_after / answered,
        }


def replay(sums: ReplaySums, undecided_count: int, most_rows: int, lang: str) -> RenderableType:
    """What a replay changes: the sums, the moves from model to model, the largest changes."""
    found = sums.report()
    totals = _table("", *(text(name, lang) for name in ("before", "after", "change")))
    before, after = sums.cost_before_nano_usd, sums.cost_after_nano_usd
    sign = "+" if after > before else ""
    share = f" ({sign}{percent(after - before, before)})" if before else ""
    totals.add_row(text("cost", lang), usd(before), usd(after), f"{sign}{usd(after - before)}{share}")
    gain = found["quality_after"] - found["quality_before"]
    quality = (f"{found['quality_before']:.3f}", f"{found['quality_after']:.3f}", f"{gain:+.3f}")
    totals.add_row(text("quality", lang), *quality)
    count, changed = sums.count, len(sums.changes)
    parts: list[RenderableType] = [
        text("replayed", lang, count=count, changed=changed, share=percent(changed, count)),
        Text(),
        totals,
    ]
    for name, number in (
        ("undecided", undecided_count),
        ("refused", sums.refused_count),
        ("unpriced", sums.unpriced_count),
    ):
        if number:
            parts.append(Text(text(name, lang, count=number), style="yellow"))
    if sums.changes:
        parts += [Text(), _moves(sums.changes, lang), Text(), _largest(sums.changes, most_rows, lang)]
    return Group(*parts)


def report(found: router_pb2.GetReportResponse, lang: str) -> RenderableType:
    """The report for a person."""
    if not found.decision_count and not found.models:
        return Text(text("no_decisions", lang))
    by = ", ".join(f"{name} {count:,}" for name, count in sorted(found.strategy_counts.items(), key=lambda p: -p[1]))
    parts: list[RenderableType] = [text("all_decisions", lang, count=found.decision_count, by=by), Text()]
    parts += [_models(found.models, lang), Text()]
    cost = usd(found.exploration_cost_nano_usd)
    parts.append(text("learning", lang, explored=found.explored_count, audited=found.audited_count, cost=cost))
    if found.shadow_count:
        parts.append(text("shadow", lang, differs=found.shadow_differs_count, count=found.shadow_count))
    if found.out_of_distribution_count:
        parts.append(text("unlike", lang, count=found.out_of_distribution_count))
    version = found.heads_version
    parts.append(text("heads", lang, version=version) if version else text("no_heads", lang))
    parts += [Text(), _drift(found, lang), Text()]
    if not found.warnings:
        parts.append(Text(text("no_warnings", lang), style="green"))
    else:
        parts.append(Text(text("warnings", lang), style="bold yellow"))
        parts += [Text(f"- {warning(line, lang)}", style="yellow") for line in found.warnings]
    return Group(*parts)


def models(found: Iterable[router_pb2.CatalogModel]) -> Table:
    """The catalogue; prices in USD per million tokens."""
    table = _table(
        *("model", "tier", "provider", "abilities", "like"),
        *("context", "input", "output", "tokens/s", "first token", "health"),
        right=("context", "input", "output", "tokens/s", "first token"),
    )
    for model in found:
        seconds = model.time_to_first_token.ToNanoseconds() / 1e9
        health = Text("healthy", style="green") if model.healthy else Text("failing", style="red")
        if not model.routable:
            health.append(" (only by name)", style="dim")
        table.add_row(
            model.model,
            tier(model.tier, "en"),
            model.provider,
            ", ".join(name for name in _ABILITIES if getattr(model.abilities, name)).replace("_", " "),
            model.quality_like,
            f"{model.context_window_tokens:,}",
            _price(model.input_nano_usd_per_million_tokens),
            _price(model.output_nano_usd_per_million_tokens),
            f"{model.output_tokens_per_second:.0f}" if model.output_tokens_per_second else "-",
            f"{seconds:.2f} s" if model.HasField("time_to_first_token") else "-",
            health,
        )
    return table


def _models(found: Iterable[router_pb2.ModelReport], lang: str) -> Table:
    names = ("model", "decisions", "feedback", "seen", "predicted", "gap", "failed", "escalated")
    more = ("cost", "expected", "tokens", "expected")
    table = _table(*(text(name, lang) for name in (*names, *more)))
    for model in found:
        scored = model.scored_count > 0
        apart = scored and (model.gap_low > 0 or model.gap_high < 0)
        gap = Text(f"{model.gap_low:+.2f} .. {model.gap_high:+.2f}" if scored else "-", "yellow" if apart else "")
        table.add_row(
            model.model,
            f"{model.decision_count:,}",
            f"{model.scored_count:,}",
            f"{model.mean_score:.2f}" if scored else "-",
            f"{model.mean_predicted:.2f}" if scored else "-",
            gap,
            f"{model.failed_count:,}",
            f"{model.escalated_count:,}",
            usd(model.cost_nano_usd),
            usd(model.expected_cost_nano_usd),
            f"{model.output_token_count:,}",
            f"{model.expected_output_token_count:,}",
        )
    return table


def _drift(found: router_pb2.GetReportResponse, lang: str) -> RenderableType:
    if not found.feature_drift:
        return Text(text("no_drift", lang), style="dim")
    parts = [text("drift", lang), ": "]
    said = Text("".join(parts))
    for number, (name, value) in enumerate(sorted(found.feature_drift.items(), key=lambda pair: -pair[1])):
        said.append(", " if number else "")
        said.append(f"{name} {value:.2f}", style="yellow" if value > _DRIFT else "")
    return said


def _moves(changes: Sequence[Change], lang: str) -> Table:
    table = _table(*(text(name, lang) for name in ("from", "to", "requests", "cost", "quality")), left=2)
    table.title, table.title_justify = text("moves", lang), "left"
    groups: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        groups.setdefault((change.recorded, change.replayed.model), []).append(change)
    for (before, after), members in sorted(groups.items(), key=lambda pair: -len(pair[1])):
        cost = sum(member.cost_change_nano_usd for member in members)
        known = all(member.priced for member in members)
        moved = f"{'+' if cost > 0 else ''}{usd(cost)}" if known else text("unknown", lang)
        quality = sum(member.quality_change for member in members) / len(members)
        table.add_row(
            before,
            after or text("none", lang),
            f"{len(members):,}",
            moved if after else "-",
            f"{quality:+.3f}" if after else "-",
        )
    return table


def _largest(changes: Sequence[Change], most_rows: int, lang: str) -> Table:
    names = [text(name, lang) for name in ("request", "from", "to", "cost", "quality", "reason")]
    table = _table(*names, right=names[3:5])
    table.title, table.title_justify = text("largest", lang), "left"
    by_size = sorted(changes, key=lambda each: (-abs(each.cost_change_nano_usd), -abs(each.quality_change)))
    for change in by_size[:most_rows]:
        again = change.replayed
        costs = [
            text("unknown", lang) if cost == _UNKNOWN else usd(cost)
            for cost in (again.recorded_cost_nano_usd, again.cost_nano_usd)
        ]
        quality = f"{again.recorded_success_probability:.2f} → {again.success_probability:.2f}"
        table.add_row(
            again.request_id,
            change.recorded,
            again.model or text("none", lang),
            " → ".join(costs) if again.model else costs[0],
            quality if again.model else "-",
            Text(again.reason),
        )
    return table


def _price(nano: int) -> str:
    return "-" if nano == _UNKNOWN else usd(nano, 4)


def _table(*columns: str, left: int = 1, right: Sequence[str] | None = None) -> Table:
    """A table whose first columns are text and whose others are numbers, or those in ``right`` alone."""
    table = Table(show_edge=False, pad_edge=False)
    for index, column in enumerate(columns):
        numeric = column in right if right is not None else index >= left
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    return table
