"""JSON of many records, of which a question names a few by exact key. Pure.

Only records at the top level of one object or array are told apart, and only in JSON that is valid. What is left of it
is valid JSON again.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\],]')
MIN_RECORDS = 5
"""Fewer are not worth cutting."""


@dataclass(frozen=True, slots=True)
class Records:
    """Spans within the text."""

    records: tuple[tuple[int, int], ...]
    """Without the commas between them."""


def records(text: str) -> Records | None:
    """The records of a text that is JSON from its first bracket to its last; None for any other text."""
    opening = min((at for at in (text.find("{"), text.find("[")) if at >= 0), default=-1)
    closing = max(text.rfind("}"), text.rfind("]"))
    if opening < 0 or closing <= opening:
        return None
    try:
        json.loads(text[opening : closing + 1])
    except (ValueError, RecursionError):
        return None
    depth, start, spans = 0, opening + 1, []
    for match in _TOKEN.finditer(text, opening, closing + 1):
        mark = match[0]
        if mark in "{[":
            depth += 1
        elif mark in "}]":
            depth -= 1
        ends = (mark == "," and depth == 1) or depth == 0
        if ends:
            end = match.start()
            while end > start and text[end - 1].isspace():
                end -= 1
            while start < end and text[start].isspace():
                start += 1
            spans.append((start, end))
            start = match.end()
    if len(spans) < MIN_RECORDS:
        return None
    return Records(tuple(spans))


def keep_named(text: str, keys: frozenset[str]) -> str | None:
    """The text with those records only that hold one of the keys; None when it is not of records or none holds one."""
    found = records(text)
    if found is None or not keys:
        return None
    spans = found.records
    kept = [at for at, (start, end) in enumerate(spans) if any(key in text[start:end] for key in keys)]
    if not kept or len(kept) == len(spans):
        return None
    parts = [text[: spans[0][0]]]
    for at in kept:
        # With the comma and the white space that follow it, but for the last.
        stop = spans[at][1] if at == kept[-1] else spans[at + 1][0]
        parts.append(text[spans[at][0] : stop])
    return "".join(parts) + text[spans[-1][1] :]
