"""Splits a text into the units that may be kept or dropped: sentences, headings, list items, tables, code. Pure.

Units tile the text: joined in order they are the text, character for character. White space after a unit belongs to it.
Takes linear time. English and Korean; rules only, no model.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

_HEADING_CHARS = 100
_TITLE_CHARS = 60
_ENCLOSED_CHARS = 300
"""No sentence ends within a quotation or a parenthesis of up to so many characters."""
_JSON_LINES = 4_000
_LINE_CHARS = 1_000
"""A longer line is prose, or a table's when it begins like one: so no pattern takes quadratic time."""

_FENCE = re.compile(r"[ \t]{0,3}(`{3,}|~{3,})")
_TABLE_LINE = re.compile(r"[ \t]*\|.*\|[ \t]*$|[^\t\n]+\t[^\n]*\S|[ \t]*[-+=|:][-+=|: ]{3,}$")
_LIST_ITEM = re.compile(r"[ \t]*(?:[-*+•·▪◦‣]|\(?\d{1,3}[.)]|\(?[a-zA-Z가-하][.)]|[①-⑳])[ \t]+\S")
_CODE_LINE = re.compile(
    r"(?: {4,}|\t)\S.*[;{}()\[\]=:]\s*$|.*[;{}]\s*$"
    r"|\s*(?:def|class|import|from|return|public|private|static|const|let|var|func|fn|SELECT|INSERT|UPDATE|DELETE|CREATE)\b.*[({:;=*].*$|\s*[\w.]+\(.*\)\s*$|\s*</?\w+[^>]*>\s*$|\s*[$>]\s\S"
)
_HASH_HEADING = re.compile(r"[ \t]{0,3}#{1,6}[ \t]+\S")
_NUMBERED_HEADING = re.compile(r"[ \t]*(?:제?\s?\d{1,3}(?:\.\d{1,3}){0,3}[장절조항.]?|[IVX]{1,5}\.)[ \t]+\S")
_ENDS_SENTENCE = re.compile(r"[.!?。！？…:;,][\"'”’)\]」』]*\s*$")

_ENCLOSED = re.compile(
    rf'"[^"\n]{{1,{_ENCLOSED_CHARS}}}"|“[^”]{{1,{_ENCLOSED_CHARS}}}”|「[^」]{{1,{_ENCLOSED_CHARS}}}」'
    rf"|『[^』]{{1,{_ENCLOSED_CHARS}}}』|\([^()\n]{{1,{_ENCLOSED_CHARS}}}\)|\[[^\[\]\n]{{1,{_ENCLOSED_CHARS}}}\]"
)
_CLOSERS = "\"'”’)]」』»"
_END = re.compile(
    rf"(?<![.!?…])[.!?…]++[{re.escape(_CLOSERS)}]*+(?=\s)"  # An end before white space.
    rf"|[。！？]+[{re.escape(_CLOSERS)}]*"
    # A Korean sentence that ends without a space: only after the syllables that verbs end in.
    rf"|(?<=[다요까죠네함음임됨])[.!?]+[{re.escape(_CLOSERS)}]*(?=[가-힣A-Z“‘「『])"
)
_DATE_BEFORE = re.compile(r"\d\.\s?$")
_LAST_WORD = re.compile(r"(?:\w+\.)*\w+$")
# Words that end in a full stop without ending a sentence, by the word before the stop, lower-case.
_ABBREVIATIONS = frozenset(
    re.findall(
        r"\S+",
        "mr mrs ms dr prof rev fr sr jr st mt ft gen col lt sgt capt cmdr adm maj gov sen rep hon pres vs etc "
        "al cf ca approx no nos vol vols pp pg ed eds fig figs eq inc ltd co corp dept univ assn bros est e.g "
        "i.e a.m p.m u.s u.k u.n ph.d b.c a.d d.c m.d b.a m.a jan feb mar apr jun jul aug sep sept oct nov "
        "dec mon tue wed thu fri sat sun ave blvd rd c b d r viz ibid op",
    )
)
# Of these a sentence may well be the last word; a capital letter after them starts a new one.
_MAY_END = frozenset(
    re.findall(
        r"\S+",
        "etc inc ltd co corp al a.m p.m u.s u.k u.n d.c jr sr b.c a.d ph.d m.d est",
    )
)
_STARTERS = frozenset(
    re.findall(
        r"\S+",
        "the a an in on at it he she they we i this that these those there his her their its but and when "
        "while after before as for however although if by from with since during one some many most",
    )
)


class Kind(StrEnum):
    """What a unit is."""

    PROSE = "prose"
    HEADING = "heading"
    LIST = "list"
    TABLE = "table"
    CODE = "code"
    """Code, JSON, markup: never cut inside."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A span of a text, ``end`` exclusive, with the white space that follows it."""

    start: int
    end: int
    kind: Kind


def split(text: str) -> list[Unit]:
    """The units of a text, in order; they cover it exactly. An empty text has none."""
    units: list[Unit] = []
    for start, end, kind in _blocks(text):
        if kind in (Kind.PROSE, Kind.LIST):
            at = start
            for cut in _ends(text, start, end):
                units.append(Unit(at, cut, kind))
                at = cut
            if at < end:
                units.append(Unit(at, end, kind))
        else:
            units.append(Unit(start, end, kind))
    return _joined(text, units)


def heading(text: str, units: list[Unit]) -> str:
    """The heading that a text begins with; empty when it begins otherwise."""
    if units and units[0].kind is Kind.HEADING:
        return text[units[0].start : units[0].end].strip().lstrip("#").strip()
    return ""


def _joined(text: str, units: list[Unit]) -> list[Unit]:
    """Without units of white space only: each goes to the unit before it, at the front to the one after it."""
    result: list[Unit] = []
    lead = 0
    for unit in units:
        if text[unit.start : unit.end].isspace():
            if result:
                last = result[-1]
                result[-1] = Unit(last.start, unit.end, last.kind)
            continue
        result.append(Unit(lead if not result else unit.start, unit.end, unit.kind))
    if not result and text:
        return [Unit(0, len(text), Kind.PROSE)]
    return result


def _blocks(text: str) -> Iterator[tuple[int, int, Kind]]:
    """Runs of lines of one kind. Prose runs from a line that begins a paragraph to the next."""
    lines = text.splitlines(keepends=True)
    at, number = 0, 0
    while number < len(lines):
        taken, kind = _block_at(lines, number)
        size = sum(map(len, lines[number : number + taken]))
        yield at, at + size, kind
        at += size
        number += taken


def _block_at(lines: list[str], number: int) -> tuple[int, Kind]:
    line = lines[number]
    bare = line.strip()
    if not bare:
        return _blank(lines, number), Kind.PROSE
    fence = _FENCE.match(line)
    if fence:
        return _fenced(lines, number, fence[1]), Kind.CODE
    if bare[0] in "{[" and (taken := _balanced(lines, number)):
        return taken, Kind.CODE
    if _is_table(line):
        return _table_run(lines, number), Kind.TABLE
    if _HASH_HEADING.match(line):
        return 1 + _blank(lines, number + 1), Kind.HEADING
    if _is_code(line):
        return _code_run(lines, number), Kind.CODE
    if _is_heading(lines, number):
        return 1 + _blank(lines, number + 1), Kind.HEADING
    kind = Kind.LIST if _LIST_ITEM.match(line) else Kind.PROSE
    return _paragraph(lines, number), kind


def _blank(lines: list[str], number: int) -> int:
    taken = 0
    while number + taken < len(lines) and not lines[number + taken].strip():
        taken += 1
    return taken


def _fenced(lines: list[str], number: int, mark: str) -> int:
    for taken in range(1, len(lines) - number):
        if lines[number + taken].lstrip().startswith(mark):
            return taken + 1
    return len(lines) - number


def _balanced(lines: list[str], number: int) -> int:
    """Lines of a block whose brackets close; 0 when this is none, such as ``[1] A footnote``."""
    depth = 0
    for taken, line in enumerate(lines[number : number + _JSON_LINES], 1):
        depth += line.count("{") + line.count("[") - line.count("}") - line.count("]")
        if depth <= 0:
            bare = line.strip()
            return taken if depth == 0 and bare[-1:] in ("}", "]", ",", ";") else 0
    return 0


def _table_run(lines: list[str], number: int) -> int:
    taken = 1
    while number + taken < len(lines) and _is_table(lines[number + taken]):
        taken += 1
    return taken


def _is_code(line: str) -> bool:
    return len(line) <= _LINE_CHARS and bool(_CODE_LINE.match(line))


def _is_table(line: str) -> bool:
    return bool(_TABLE_LINE.match(line)) if len(line) <= _LINE_CHARS else line.startswith("|")


def _code_run(lines: list[str], number: int) -> int:
    """Code lines and the indented or blank lines between them."""
    taken = last = 1
    while number + taken < len(lines):
        line = lines[number + taken]
        if _is_code(line) or (line.startswith(("  ", "\t")) and line.strip()):
            last = taken + 1
        elif line.strip():
            break
        taken += 1
        if taken - last > 1:
            break
    return last


def _is_heading(lines: list[str], number: int) -> bool:
    line = lines[number].rstrip()
    if len(line) > _HEADING_CHARS or _LIST_ITEM.match(line) or _ENDS_SENTENCE.search(line):
        return False
    if _NUMBERED_HEADING.match(line) and not line.endswith("다"):
        return True
    first = number == 0 or not lines[number - 1].strip()
    if not first or number + 1 >= len(lines):
        return False
    following = next((each for each in lines[number + 1 : number + 4] if each.strip()), "").strip()
    # The first line of a chunk is its title also where the text itself was cut out of a sentence.
    title = number == 0 and len(line) <= _TITLE_CHARS and len(following) > 2 * len(line)
    return bool(following) and (title or not following[0].islower())


def _paragraph(lines: list[str], number: int) -> int:
    taken = 1
    while number + taken < len(lines):
        line = lines[number + taken]
        if not line.strip():
            taken += _blank(lines, number + taken)
            break
        if (
            _LIST_ITEM.match(line)
            or _FENCE.match(line)
            or _HASH_HEADING.match(line)
            or _is_table(line)
            or _is_code(line)
            or (line.lstrip()[0] in "{[" and _balanced(lines[: number + taken + 64], number + taken))
        ):
            break
        taken += 1
    return taken


def _ends(text: str, start: int, end: int) -> Iterator[int]:
    """Where sentences end within a paragraph, after the white space that follows them."""
    enclosed = [match.span() for match in _ENCLOSED.finditer(text, start, end)]
    place = 0
    for match in _END.finditer(text, start, end):
        at = match.end()
        while place < len(enclosed) and enclosed[place][1] < at:
            place += 1
        if place < len(enclosed) and enclosed[place][0] < match.start() and at < enclosed[place][1]:
            continue
        if match[0][0] == "." and _goes_on(text, start, match.start(), at, end):
            continue
        while at < end and text[at].isspace():
            at += 1
        if at < end:
            yield at


def _goes_on(text: str, start: int, stop: int, after: int, end: int) -> bool:
    """True when the full stop at ``stop`` ends an abbreviation, an initial or a number, not a sentence."""
    at = after
    while at < end and text[at].isspace():
        at += 1
    following = text[at : at + 24]
    if following[:1].islower():
        return True
    word = _LAST_WORD.search(text, max(start, stop - 24), stop)
    if word is None:
        return False
    last = word[0].lower()
    if len(last) == 1 and word[0].isupper():
        # An initial, "J. Smith"; "Plan B. The next" ends a sentence.
        return _first_word(following) not in _STARTERS
    if last.isdigit():
        before = text[max(start, stop - len(last) - 3) : stop - len(last)]
        # The number of a list item; or a date, "1924. 12. 2.".
        return following[:1].isdigit() or (len(last) <= 3 and before in ("", "\n")) or bool(_DATE_BEFORE.search(before))
    if last not in _ABBREVIATIONS:
        return False
    return not (last in _MAY_END and _first_word(following) in _STARTERS)


def _first_word(text: str) -> str:
    found = re.match(r"[\"'“‘(]*(\w+)", text)
    return found[1].lower() if found else ""
