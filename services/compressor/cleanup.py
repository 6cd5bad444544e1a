"""The ``cleanup`` strategy: characters, blanks, repeated text, contentless sentences. Pure, deterministic by text.

Hard spans (see ``protected``) come out byte for byte, in their order. A cleaned text is never longer, never has more
tokens where a counter is given, and cleaning it again changes nothing. What cannot be had so stays as it was.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from services.compressor.boilerplate import closing_start, opening_end
from services.compressor.protected import hard_ranges
from services.compressor.repeats import without_repeats

_MAX_PASSES = 8

Edit = tuple[int, int, str]
Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class CleanupSteps:
    """Which steps run, in this order."""

    compose: bool = True
    """Canonical composition (NFC), where it is no longer; never a compatibility form. Hangul typed on a Mac."""
    zero_width: bool = True
    """Characters of no width go; joiners stay in emoji and in all scripts but Latin, Hangul, kana and Han."""
    no_break_blanks: bool = True
    """No-break blanks become blanks."""
    line_breaks: bool = True
    """CR LF becomes LF."""
    blanks: bool = True
    """Runs of blanks within a line become one, those at its end go. Indentation stays."""
    blank_lines: bool = True
    """Several blank lines become one, those at the ends of the text go."""
    full_width_digits: bool = False
    """Full-width digits become ASCII digits, but not in identifiers. Off: an answer may be looked for by them."""
    openings: bool = False
    """Contentless sentences at the front ("You are a helpful assistant."). For system messages."""
    repeats: bool = False
    """Paragraphs, and lines of one list, that stand above word for word. For system messages."""
    closings: bool = False
    """A contentless last sentence ("I hope this helps!"). For answers in the history."""


TEXT_STEPS = CleanupSteps()
SYSTEM_STEPS = CleanupSteps(openings=True, repeats=True)
ANSWER_STEPS = CleanupSteps(closings=True)


@dataclass(frozen=True, slots=True)
class Cleaned:
    """A cleaned text, and by step how many characters (with a counter: tokens) it saved."""

    text: str
    saved: tuple[tuple[str, int], ...] = ()


def clean(text: str, *, system: bool) -> str:
    """The cleaned text; repeated paragraphs and contentless openings go only from system messages."""
    return cleaned(text, SYSTEM_STEPS if system else TEXT_STEPS).text


def cleaned(text: str, steps: CleanupSteps, count: Callable[[str], int] | None = None) -> Cleaned:
    """The cleaned text. With ``count`` (tokens of a text) a step that would cost tokens is not taken."""
    current, saved = text, dict[str, int]()
    known: dict[str, list[Range]] = {}

    def ranges_of(text: str) -> list[Range]:
        # The dearest part by far: once for each text.
        if text not in known:
            known[text] = hard_ranges(text)
        return known[text]

    for _ in range(_MAX_PASSES):
        after = _pass(current, steps, count or len, saved, ranges_of)
        if after == current:
            break
        current = after
    else:
        return Cleaned(text)  # It would not settle, so that cleaning again could change it.
    if current == text or not _keeps(text, ranges_of(text), current):
        return Cleaned(text)
    return Cleaned(current, tuple(saved.items()))


def _pass(
    text: str,
    steps: CleanupSteps,
    count: Callable[[str], int],
    saved: dict[str, int],
    ranges_of: Callable[[str], list[Range]],
) -> str:
    ranges: list[Range] | None = None
    size: int | None = None

    def take(name: str, candidate: str) -> bool:
        nonlocal text, size
        if len(candidate) > len(text) or candidate == text:
            return False
        before = count(text) if size is None else size
        after = count(candidate)
        if after > before:
            size = before
            return False
        saved[name] = saved.get(name, 0) + before - after
        text, size = candidate, after
        return True

    for name, edits_of in _LOCAL_STEPS.items():
        if not getattr(steps, name):
            continue
        # Spans are looked for only when there is something to edit.
        if not any(True for _ in edits_of(text, [])):
            continue
        if ranges is None:
            ranges = ranges_of(text)
        candidate, shifted = _applied(text, ranges, edits_of(text, ranges))
        if take(name, candidate):
            ranges = shifted
    if steps.repeats and (shorter := without_repeats(text, ranges_of)) != text:
        take("repeats", shorter)
    return text


def _applied(text: str, ranges: Sequence[Range], edits: Iterator[Edit]) -> tuple[str, list[Range]]:
    """The text after the edits that touch no range, and where the ranges are then. Edits are in order."""
    parts: list[str] = []
    shifted: list[Range] = []
    at = passed = moved = 0
    for start, end, new in edits:
        while passed < len(ranges) and ranges[passed][1] <= start:
            shifted.append((ranges[passed][0] + moved, ranges[passed][1] + moved))
            passed += 1
        if passed < len(ranges) and ranges[passed][0] < end:
            continue
        parts += (text[at:start], new)
        moved += len(new) - (end - start)
        at = end
    parts.append(text[at:])
    shifted += ((start + moved, end + moved) for start, end in ranges[passed:])
    return "".join(parts), shifted


def _keeps(before: str, ranges: Sequence[Range], after: str) -> bool:
    """True when all ranges of ``before`` stand in ``after``, in their order."""
    at = 0
    for start, end in ranges:
        found = after.find(before[start:end], at)
        if found < 0:
            return False
        at = found + end - start
    return True


_WORD = re.compile(r"\S+")
_ZERO_WIDTH = re.compile("[\u00ad\u200b-\u200d\u2060\ufeff]")
_BREAKS_WORDS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
_NEVER_JOINED = re.compile("[\x00-\x7f\u1100-\u11ff\u3040-\u30ff\u3131-\u318e\u4e00-\u9fff\uac00-\ud7a3]")
_NO_BREAK = re.compile("[\u00a0\u2007\u202f]")
_CRLF = re.compile("\r\n")
_BLANK_RUNS = re.compile(r"(?<=\S)[ \u00a0\u3000]{2,}+(?=\S)|(?<![ \t\u00a0\u3000])[ \t\u00a0\u3000]++(?=\n)")
_BLANK_LINES = re.compile(r"\n{3,}+")
_FRONT = re.compile(r"(?:[ \t\u00a0\u3000]*+\n)++")
_FULL_WIDTH = re.compile(
    "(?<![\\w\uff0d\uff3f-])[\uff10-\uff19]+(?![A-Za-z0-9_\uff21-\uff3a\uff41-\uff5a\uff0d\uff3f-])"
)


def _composed(text: str, ranges: Sequence[Range]) -> Iterator[Edit]:
    if unicodedata.is_normalized("NFC", text):
        return
    for match in _WORD.finditer(text):
        word = match[0]
        if not word.isascii() and not unicodedata.is_normalized("NFC", word):
            new = unicodedata.normalize("NFC", word)
            if len(new) <= len(word):  # Some characters have no composed form; NFC takes them apart.
                yield (*match.span(), new)


def _without_zero_width(text: str, ranges: Sequence[Range]) -> Iterator[Edit]:
    for match in _ZERO_WIDTH.finditer(text):
        at = match.start()
        around = text[max(0, at - 1) : at] + text[at + 1 : at + 2]
        if match[0] == "\u200b":
            needless = not _BREAKS_WORDS.search(around)
        elif match[0] in "\u200c\u200d":
            needless = all(map(_NEVER_JOINED.match, around))
        else:
            needless = True
        if needless:
            yield at, at + 1, ""


def _with_blanks(text: str, ranges: Sequence[Range]) -> Iterator[Edit]:
    return ((*match.span(), " ") for match in _NO_BREAK.finditer(text))


def _with_line_feeds(text: str, ranges: Sequence[Range]) -> Iterator[Edit]:
    return ((*match.span(), "\n") for match in _CRLF.finditer(text))


def _squeezed(text: str, ranges: Sequence[Range]) -> Iterator[Edit]:
    for match in _BLANK_RUNS.finditer(text):
        yield (*match.span(), "" if text[match.end()] == "\n" else " ")


def _trimmed(text: str, ranges: Sequence[Range]) -> Iterator[Edit]:
    front = _FRONT.match(text)
    start = front.end() if front else 0
    if start:
        yield 0, start, ""
    last = ranges[-1][1] if ranges else 0
    end = max(len(text.rstrip()), last, start)
    for match in _BLANK_LINES.finditer(text, start, end):
        yield (*match.span(), "\n\n")
    if end < len(text):
        yield end, len(text), ""


def _narrowed(text: str, ranges: Sequence[Range]) -> Iterator[Edit]:
    return ((*match.span(), unicodedata.normalize("NFKC", match[0])) for match in _FULL_WIDTH.finditer(text))


def _opened(text: str, ranges: Sequence[Range]) -> Iterator[Edit]:
    end = opening_end(text)
    if end:
        # The blanks after it too, but not the indentation of code.
        rest = len(text) - len(text[end:].lstrip())
        at = bisect_right(ranges, (end, len(text)))
        yield 0, min(rest, ranges[at][0]) if at < len(ranges) else rest, ""


def _closed(text: str, ranges: Sequence[Range]) -> Iterator[Edit]:
    start = closing_start(text)
    if start < len(text):
        yield start, len(text), ""


_LOCAL_STEPS: dict[str, Callable[[str, Sequence[Range]], Iterator[Edit]]] = {
    "compose": _composed,
    "zero_width": _without_zero_width,
    "no_break_blanks": _with_blanks,
    "line_breaks": _with_line_feeds,
    "blanks": _squeezed,
    "blank_lines": _trimmed,
    "full_width_digits": _narrowed,
    "openings": _opened,
    "closings": _closed,
}
