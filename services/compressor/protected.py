"""Protected spans: the parts of a text that a strategy must not edit or cut through. Pure, linear in time.

**Hard** spans are never edited and never cut through: code, JSON, SQL, tables, URLs, e-mail addresses, paths,
identifiers, quotations. They may be dropped as a whole. **Soft** spans, numbers with their units and negations, may be
dropped too, but not where the question refers to them: see ``references.referred``. Where a text may be cut at all says
``cuts.safe_cuts``.

What is found is meant to be too much rather than too little: a span that need not have been protected costs a little
saving, one that was missed costs an answer.
"""

from __future__ import annotations

from collections.abc import Iterable
from operator import itemgetter

from services.compressor.protected_blocks import blocks
from services.compressor.protected_words import soft_words, words
from services.compressor.spans import HARD, SOFT, Kind, Span

__all__ = ["HARD", "SOFT", "Kind", "Span", "hard_ranges", "hard_spans", "soft_spans", "spans"]


def spans(text: str) -> list[Span]:
    """All protected spans in order; none lies inside a hard one, soft ones may overlap each other's ends."""
    found = hard_spans(text)
    free = _Inside(found)
    found.extend(span for span in soft_spans(text) if not free.holds(span))
    return sorted(found, key=itemgetter(0))


def hard_spans(text: str) -> list[Span]:
    """The hard spans in order. One inside another is left out; two that overlap become one, of the first's kind."""
    result: list[Span] = []
    for span in sorted([*blocks(text), *words(text)], key=lambda span: (span.start, -span.end)):
        if result and span.start < result[-1].end:
            if span.end > result[-1].end:
                result[-1] = Span(result[-1].start, span.end, result[-1].kind)
            continue
        result.append(span)
    return result


def hard_ranges(text: str) -> list[tuple[int, int]]:
    """The hard spans as (start, end), touching ones joined."""
    return merged((span.start, span.end) for span in hard_spans(text))


def soft_spans(text: str) -> list[Span]:
    """Numbers with their units, and negations, in order."""
    return sorted(soft_words(text), key=itemgetter(0))


def merged(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges in order, overlapping and touching ones joined."""
    result: list[tuple[int, int]] = []
    for start, end in sorted(ranges, key=itemgetter(0)):
        if result and start <= result[-1][1]:
            if end > result[-1][1]:
                result[-1] = (result[-1][0], end)
        else:
            result.append((start, end))
    return result


class _Inside:
    """Whether spans, asked for in order, lie within hard ones."""

    def __init__(self, hard: list[Span]) -> None:
        self._hard, self._at = list(hard), 0

    def holds(self, span: Span) -> bool:
        while self._at < len(self._hard) and self._hard[self._at].end <= span.start:
            self._at += 1
        return self._at < len(self._hard) and self._hard[self._at].start < span.end
