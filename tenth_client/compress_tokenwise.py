"""``tenth compress --tokenwise``: a text less the words that tell a small model least, as a diff."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, Group
from rich.text import Text
from tenth.compressor.v1 import compressor_pb2, compressor_pb2_grpc

from tenth_client.cache_words import language
from tenth_client.compress_words import text as word
from tenth_client.money import percent, usd
from tenth_client.rpc import Rpc

_SECONDS = 600.0
"""Longest wait for one text: a small model on a CPU reads about 2,000 tokens a second."""


async def tokenwise(rpc: Rpc, texts: Sequence[tuple[str, str]], arguments: argparse.Namespace, console: Console) -> int:
    """Prune each of these named texts, and show what went."""
    stub = compressor_pb2_grpc.CompressorServiceStub
    found = []
    for _, text in texts:
        request = compressor_pb2.PruneTextRequest(text=text, model=arguments.model, share=arguments.tokenwise)
        found.append(await rpc.call("compressor", stub, "PruneText", request, seconds=_SECONDS))
    if arguments.json:
        items = [as_json(name, each) for (name, _), each in zip(texts, found, strict=True)]
        console.print_json(json.dumps({"texts": items}, ensure_ascii=False))
    else:
        console.print(view(texts, found, arguments.model, language(arguments.lang)))
    return 0


def as_json(name: str, found: compressor_pb2.PruneTextResponse) -> dict[str, Any]:
    """What is left and the figures."""
    return {
        "name": name,
        "text": found.text,
        "removed": [[each.start_character, each.end_character, round(each.nats, 3)] for each in found.removed],
        "original_token_count": found.original_token_count,
        "pruned_token_count": found.pruned_token_count,
        "estimated": found.estimated,
        "reached": found.reached,
        "saving_nano_usd": found.saving_nano_usd,
        "scoring_model": found.scoring_model,
        "scoring_cost_nano_usd": found.scoring_cost_nano_usd,
        "request_id": found.request_id,
    }


def view(
    texts: Sequence[tuple[str, str]], found: Sequence[compressor_pb2.PruneTextResponse], model: str, lang: str
) -> Group:
    """The diff of every text, and the sum of all."""
    lines: list[Text] = []
    for (name, text), each in zip(texts, found, strict=True):
        if name:
            lines.append(Text(f"[{name}] {word('chunk', lang)}", style="bold"))
        lines += _diff(text, each, lang) if each.removed else [Text(word("kept", lang))]
    return Group(*lines, Text(), *_sum(found, model, lang))


def _diff(text: str, found: compressor_pb2.PruneTextResponse, lang: str) -> Iterator[Text]:
    """Lines of which something went, with that in red and marks as of wdiff; the others are counted."""
    removed = [(each.start_character, each.end_character) for each in found.removed]
    at = same = 0
    for line in text.removesuffix("\n").split("\n"):
        end = at + len(line)
        # No removed part has a line break.
        mine = [(start - at, stop - at) for start, stop in removed if at <= start < end]
        if mine:
            yield from _unchanged(same, lang)
            same = 0
            yield _line(line, mine)
        else:
            same += 1
        at = end + 1
    yield from _unchanged(same, lang)


def _line(line: str, removed: Sequence[tuple[int, int]]) -> Text:
    shown, at = Text("  "), 0
    for start, stop in removed:
        gone = line[start:stop]
        bare = gone.rstrip()
        shown.append(_visible(line[at:start]))
        shown.append(f"[-{_visible(bare)}-]", style="red")
        shown.append(gone[len(bare) :])
        at = stop
    return shown.append(_visible(line[at:]))


def _unchanged(count: int, lang: str) -> Iterator[Text]:
    if count:
        yield Text(f"  {word('lines', lang, count=count)}", style="dim italic")


def _visible(text: str) -> str:
    """Control characters as pictures."""
    return "".join(each if each.isprintable() else "\ufffd" for each in text.replace("\t", "    "))


def _sum(found: Sequence[compressor_pb2.PruneTextResponse], model: str, lang: str) -> Iterator[Text]:
    before = sum(each.original_token_count for each in found)
    after = sum(each.pruned_token_count for each in found)
    saving = sum(each.saving_nano_usd for each in found)
    cost = sum(each.scoring_cost_nano_usd for each in found)
    yield Text(word("tokens", lang, before=before, after=after, share=percent(before - after, before)), style="bold")
    if not all(each.reached for each in found):
        yield Text(word("partly", lang), style="yellow")
    if any(each.estimated for each in found):
        yield Text(word("estimated", lang), style="yellow")
    price = found[0].input_nano_usd_per_million_tokens
    if price:
        yield Text(f"{model}: {word('each', lang, saving=usd(saving), price=usd(price, 4))}")
    else:
        yield Text(word("unpriced", lang, model=model), style="yellow")
    spent = word("scored", lang, model=found[0].scoring_model, cost=usd(cost))
    paid = f"; {word('paid', lang, count=-(-cost // saving))}" if saving > 0 else ""
    yield Text(spent + paid, style="dim")
