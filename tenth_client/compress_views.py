"""What ``tenth compress`` shows: what would be cut, as a diff, and what each strategy saves. Fits 80 columns."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from tenth.compressor.v1 import compressor_pb2
from tenth.type.v1 import chat_pb2

from tenth_client.compress_words import role, strategy, text
from tenth_client.money import percent, usd

_AROUND_LINES = 2
"""Unchanged lines shown beside a changed one."""


def preview(
    request: chat_pb2.CompletionRequest, found: compressor_pb2.PreviewCompressionResponse, model: str, lang: str
) -> Group:
    """The diff, the strategies, and the sum."""
    short = found.compression
    lines: list[RenderableType] = [Text(text("nothing", lang))]
    if short.strategies:
        lines = list(_diff(request, found, lang))
    if short.strategies or short.declined:
        lines += [Text(), _strategies(short, lang)]
    return Group(*lines, Text(), *_sum(found, model, lang))


def as_json(found: compressor_pb2.PreviewCompressionResponse) -> dict[str, Any]:
    """The figures and places as JSON; the texts stay out."""
    short = found.compression
    return {
        "original_input_token_count": short.original_input_token_count,
        "compressed_input_token_count": short.compressed_input_token_count,
        "estimated": short.estimated,
        "expected_saving_nano_usd": short.expected_saving_nano_usd,
        "prompt_cache_probability": short.prompt_cache_probability,
        "stable_prefix_message_count": short.stable_prefix_message_count,
        "compute_micros": short.compute_micros,
        "strategies": [_strategy_json(each) for each in short.strategies],
        "declined": [_strategy_json(each) for each in short.declined],
        "message_indexes": list(found.message_indexes),
        "chunk_indexes": list(found.chunk_indexes),
    }


def _strategy_json(found: compressor_pb2.StrategyResult) -> dict[str, Any]:
    return {
        "strategy": found.strategy,
        "reason": found.reason,
        "before_token_count": found.before_token_count,
        "after_token_count": found.after_token_count,
        "removed_token_count": found.removed_token_count,
        "expected_saving_nano_usd": found.expected_saving_nano_usd,
        "cut_message_indexes": list(found.cut_message_indexes),
        "cut_chunk_indexes": list(found.cut_chunk_indexes),
        "edited_message_indexes": list(found.edited_message_indexes),
        "edited_chunk_indexes": list(found.edited_chunk_indexes),
    }


def _diff(
    request: chat_pb2.CompletionRequest, found: compressor_pb2.PreviewCompressionResponse, lang: str
) -> Iterator[RenderableType]:
    after = {
        at: _text_of(message) for at, message in zip(found.message_indexes, found.compression.messages, strict=True)
    }
    if -1 in after:  # A summary, which the request did not have.
        yield _head(f"[+] {role('system', lang)}", False, lang)
        yield from _changes("", after[-1], lang)
    same = 0
    for at, message in enumerate(request.messages):
        name = role(chat_pb2.Role.Name(message.role).removeprefix("ROLE_").lower(), lang)
        before = _text_of(message)
        if after.get(at) == before:
            same += 1
            continue
        yield from _unchanged(same, lang)
        same = 0
        cut = at not in after
        yield _head(f"[{at}] {name}", cut, lang)
        yield from _changes(before, "" if cut else after[at], lang)
    yield from _unchanged(same, lang)
    kept = dict(zip(found.chunk_indexes, found.compression.retrieved_chunks, strict=True))
    same = 0
    for at, chunk in enumerate(request.retrieved_chunks):
        now = kept.get(at)
        if now is not None and now.text == chunk.text:
            same += 1
            continue
        title = f"[{at}] {text('chunk', lang)}" + (f" {chunk.chunk_id}" if chunk.chunk_id else "")
        yield _head(title, now is None, lang)
        yield from _changes(chunk.text, "" if now is None else now.text, lang)
    if same < len(request.retrieved_chunks) and same:
        yield Text(f"{text('chunk', lang)}: {text('same', lang, count=same)}", style="dim")


def _unchanged(count: int, lang: str) -> Iterator[Text]:
    if count:
        yield Text(text("same", lang, count=count), style="dim")


def _head(title: str, cut: bool, lang: str) -> Text:
    return Text.assemble((title, "bold"), (f"  {text('cut', lang)}" if cut else "", "bold red"))


def _changes(before: str, after: str, lang: str) -> Iterator[Text]:
    """Lines gone in red, new ones in green, a few unchanged ones around them."""
    old, new = before.splitlines() or [""], after.splitlines()
    for tag, a, b, c, d in difflib.SequenceMatcher(None, old, new).get_opcodes():
        if tag == "equal":
            yield from _context(old[a:b], lang)
            continue
        for line in old[a:b]:
            yield Text(f"- {_visible(line)}", style="red")
        for line in new[c:d]:
            yield Text(f"+ {_visible(line)}", style="green")


def _context(lines: Sequence[str], lang: str) -> Iterator[Text]:
    hidden = len(lines) - 2 * _AROUND_LINES
    first, last = (lines, lines[:0]) if hidden <= 1 else (lines[:_AROUND_LINES], lines[-_AROUND_LINES:])
    for line in first:
        yield Text(f"  {_visible(line)}", style="dim")
    if hidden > 1:
        yield Text(f"  {text('lines', lang, count=hidden)}", style="dim italic")
    for line in last:
        yield Text(f"  {_visible(line)}", style="dim")


def _visible(line: str) -> str:
    """Blanks at the end, which are what is often cut, as dots; control characters as pictures."""
    bare = line.rstrip(" \t\u00a0\u3000")
    shown = "".join(each if each.isprintable() else "\ufffd" for each in bare.replace("\t", "    "))
    return shown + "\u00b7" * (len(line) - len(bare))


def _strategies(short: compressor_pb2.CompressPromptResponse, lang: str) -> Table:
    table = Table(show_edge=False, pad_edge=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(text("strategy", lang), no_wrap=True)
    for name in ("before", "after", "removed", "saves"):
        table.add_column(text(name, lang), justify="right", no_wrap=True)
    table.add_column(text("why", lang), overflow="fold")
    for each in short.strategies:
        table.add_row(*_row(each, lang), Text(each.reason))
    for each in short.declined:
        reason = Text(f"{text('not', lang)}: {each.reason}", style="yellow")
        table.add_row(*_row(each, lang), reason, style="dim")
    return table


def _row(found: compressor_pb2.StrategyResult, lang: str) -> tuple[Text, ...]:
    saving = found.expected_saving_nano_usd
    return (
        Text(strategy(found.strategy, lang)),
        Text(f"{found.before_token_count:,}"),
        Text(f"{found.after_token_count:,}"),
        Text(f"{found.removed_token_count:,}"),
        Text(usd(saving), style="red" if saving < 0 else "green" if saving else ""),
    )


def _sum(found: compressor_pb2.PreviewCompressionResponse, model: str, lang: str) -> Iterator[Text]:
    short = found.compression
    before, after = short.original_input_token_count, short.compressed_input_token_count
    tokens = text("tokens", lang, before=before, after=after, share=percent(before - after, before))
    yield Text.assemble((tokens, "bold"), f", {text('saves', lang)} {usd(short.expected_saving_nano_usd)}")
    if short.estimated:
        yield Text(text("estimated", lang), style="yellow")
    if not found.input_nano_usd_per_million_tokens:
        yield Text(text("unpriced", lang, model=model), style="yellow")
        return
    prices = (found.input_nano_usd_per_million_tokens, found.cached_input_nano_usd_per_million_tokens)
    dollars = [usd(each, 4) for each in prices]
    yield Text(text("price", lang, model=model, input=dollars[0], cached=dollars[1]), style="dim")


def _text_of(message: chat_pb2.ChatMessage) -> str:
    parts = [part.text for part in message.parts if part.WhichOneof("content") != "image"]
    return "\n".join([*parts, *(f"{call.name}({call.arguments_json})" for call in message.tool_calls)])
