"""Paragraphs and lines that stand in the text before, word for word. Pure.

Only where a repetition means nothing: not in examples or beside fences, not under a heading (the same rule for refunds
and for exchanges is two rules), not with a hard span.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence

from services.compressor.protected import hard_ranges

_MIN_CHARS = 40
_PARAGRAPHS = re.compile(r"(\n[ \t]*+\n\s*+)")
_EXAMPLE = re.compile(
    r"^[ \t]*+(?:q|a|question|answer|user|assistant|system|human|ai|input|output|example"
    r"|예|예시|질문|답|답변|입력|출력|사용자|문|화자)"
    r"[ \t]{0,3}\d{0,3}[ \t]{0,3}[:：.)]",
    re.IGNORECASE | re.MULTILINE,
)
_HEADING = re.compile(r"^\s*+(?:#|\*\*[^*\n]{1,100}\*\*\s*$|\[[^\]\n]{1,100}\]\s*$)|[:：]\s*$")


def without_repeats(text: str, ranges_of: Callable[[str], Sequence[tuple[int, int]]] = hard_ranges) -> str:
    """The text without what it says again; see the module for what stays. ``ranges_of`` finds hard spans."""
    if len(text) < 2 * _MIN_CHARS or "```" in text or "~~~" in text:
        return text
    lines = [key for line in text.split("\n") if len(key := " ".join(line.split())) >= _MIN_CHARS]
    if len(set(lines)) == len(lines) or _EXAMPLE.search(text):
        return text
    ranges = ranges_of(text)
    parts = _PARAGRAPHS.split(text)
    kept: list[str] = []
    seen: set[str] = set()
    at, heading = 0, False
    for position in range(0, len(parts), 2):
        paragraph = parts[position]
        key = " ".join(paragraph.split())
        repeated = len(key) >= _MIN_CHARS and key in seen and not heading and _is_free(ranges, at, at + len(paragraph))
        seen.add(key)
        if not repeated:
            if kept:
                kept.append(parts[position - 1])
            kept.append(_lines(paragraph, at, ranges))
            heading = _HEADING.search(paragraph[paragraph.rfind("\n") + 1 :]) is not None
        at += sum(map(len, parts[position : position + 2]))
    return "".join(kept)


def _lines(paragraph: str, at: int, ranges: Sequence[tuple[int, int]]) -> str:
    """The paragraph without lines that it says again under the same heading."""
    kept: list[str] = []
    seen: set[str] = set()
    for line in paragraph.split("\n"):
        key = " ".join(line.split())
        if _HEADING.search(line[-400:]) or _HEADING.match(line[:400]):
            seen.clear()
        elif len(key) >= _MIN_CHARS and key in seen and _is_free(ranges, at, at + len(line)):
            at += len(line) + 1
            continue
        seen.add(key)
        kept.append(line)
        at += len(line) + 1
    return "\n".join(kept)


def _is_free(ranges: Sequence[tuple[int, int]], start: int, end: int) -> bool:
    at = bisect_right(ranges, (end, -1)) - 1
    return at < 0 or ranges[at][1] <= start
