"""Protected blocks: code, JSON, SQL, tables and aligned columns. Pure, linear in time.

Every pattern is possessive or bounded, and lines longer than 1,200 characters are judged by their ends.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator

from services.compressor.spans import Kind, Span

_LINE_CHARS = 600
_STATEMENT_CHARS = 2_000
_QUIET_CHARS = 300
_PROSE_CHARS = 160
_PROSE_CHARS_PER_SIGN = 40

_FENCE = re.compile(r"^[ \t]{0,20}(?:(?:[-*+>]|\d{1,3}[.)])[ \t]{1,4})?(`{3,}|~{3,})", re.MULTILINE)
# Lines that may be code: cheap, in C, over the whole text. What is kept is looked at one by one.
_MAYBE_CODE = re.compile(
    r"^(?:(?: {4}|\t)[^\n]*+|[ \t]*+(?:else|try|finally|pass|break|continue|import|from|return|end|fi|done)\b[^\n]*+"
    r"|[^\n={};()<>\\$@&#/]*+[={};()<>\\$@&#/][^\n]*+)",
    re.MULTILINE,
)
_CODE = re.compile(
    r"[;{]\s*$(?<=[\w)\]}\"'>;][;{])|[\])}>\w]\s+\{\s*$|^\s*[\]})]+[;,)]*\s*$|\\\s*$"
    r"|^(?: {4,}|\t+)(?![-*+•·] |\d{1,3}[.)] |[ \t])\S"
    r"|^\s*(?:async\s+)?(?:def|class|func|function|fn|struct|interface|enum)\s+[A-Za-z_]\w*\s*[(:{<]"
    r"|^\s*(?:import\s+[\w.{]+(?:\s+(?:as|from)\s.*|[,;].*)?|from\s+[\w.]+\s+import\b.*)$"
    r"|^\s*(?:const|let|var|val|auto|final|static|public|private|protected|int|float|double|char|bool|String|void)\s"
    r"[^.?!]*[=;({]"
    r"|^\s*(?:else|try|finally|do|begin)\s*[:{]\s*$|^\s*(?:pass|break|continue|fi|done|return)\s*;?\s*$"
    r"|^\s*return\s+[\w\"'({\[!-][^\s]*(?:\s*[-+*/<>=&|,(\[].*|;)?$(?<![.?!])"
    r"|^\s*(?:if|elif|for|while|with|except|switch|case|catch)\b[^\n]*[=<>()\[\]!_.][^\n]*[:{]\s*$"
    r"|^\s*(?:if|for|while|switch|catch)\s*\([^\n]*\)"
    r"|\w\s*(?:===?|!==?|\+=|-=|\*=|&&|\|\||=>|<-|:=)\s*[\w\"'(!\[{-]|\w(?:::|->)\w|->\s*[\w\[\].]+\s*[:{]"
    r"|^\s*[A-Za-z_$][\w$.\[\]\"']*(?:\s*:\s*[\w\[\], .|]{1,60})?\s*[-+*/|&]?=(?![=>])\s*\S"
    r"|^\s*(?:\$ |>>> |\.\.\. |#!|//|/\*|\*/|#include|#define|#if|@[A-Za-z_][\w.]*(?:\(.*\))?\s*$)"
    r"|^\s*[A-Za-z_][\w.]*\((?:[^()\n]|\([^()\n]*\))*\)\s*;?\s*$"
    r"|</?[A-Za-z][\w:-]*(?:\s+[\w:@.-]+=(?:\"[^\"\n]*\"|'[^'\n]*'|[^\s>]+))*\s*/?>|\\[A-Za-z]+[{\[(]"
)
_COMMENT = re.compile(r"\s*(?:#|//|--|\*|<!--)")

_BRACKETS = re.compile(r'"(?:[^"\\\n]++|\\.)*+"|\\.|[{}\[\]]')
_JSON_START = re.compile(
    r"\{\s*+(?:\"(?:[^\"\\\n]|\\.){0,300}+\"|'[^'\n]{0,300}+')\s*+:"
    r"|\[\s*+(?:[\[{]\s*+[\"'\[{\d-]|(?:\"[^\"\n]*+\"|'[^'\n]*+'|-?\d[\d.eE+-]*+|true|false|null)\s*+[,\]])"
)
_CITATION = re.compile(r"\[\s*\d{1,4}\s*\]")
_PAIRS = {"}": "{", "]": "["}

_SQL_START = re.compile(
    r"\b(?:SELECT|INSERT\s{1,9}INTO|UPDATE|DELETE\s{1,9}FROM|WITH\s{1,9}\w+\s{1,9}AS"
    r"|(?:CREATE|ALTER|DROP)\s{1,9}(?:OR\s{1,9}REPLACE\s{1,9})?(?:UNIQUE\s{1,9})?"
    r"(?:TABLE|INDEX|VIEW|DATABASE|SCHEMA|TRIGGER|FUNCTION))\b",
    re.IGNORECASE,
)
_SQL_SECOND = re.compile(r"\b(?:FROM|SET|VALUES|SELECT|TABLE|INDEX|VIEW|DATABASE|SCHEMA|TRIGGER|FUNCTION)\b", re.I)
_SQL_SIGN = re.compile(r"\*|\bwhere\s+[\w.\"]+\s*(?:[=<>!]|in\b|like\b|is\b)|\w\.\w+|=\s*['\"\d:?]|\(", re.I)
_SQL_QUIET = re.compile(r"select\s+(?:\*|[^;]{0,200}\bfrom\s+[\w.]+\s+where\s+[\w.]+\s*[=<>])", re.IGNORECASE)
_SQL_LINE = re.compile(
    r"\s*(?:SELECT|FROM|WHERE|(?:LEFT|RIGHT|INNER|OUTER|FULL|CROSS|NATURAL)\b|JOIN|ON|AND|OR|GROUP|ORDER|HAVING"
    r"|LIMIT|OFFSET"
    r"|UNION|SET|VALUES|RETURNING|WHEN|ELSE|END|INTO|[(),]|--)|[ \t]{2,}\S",
    re.IGNORECASE,
)

_TABLE = re.compile(
    r"^(?:[^\n|]*+\|[^\n|]*+\|[^\n]*+|[^\n\t]*[^\s]\t+[^\s][^\n]*+|[-+=|:─│┼┌┐└┘├┤┬┴ ]{4,}+)$", re.MULTILINE
)
_CSV = re.compile(r"^[^\n,]{1,200}+(?:,(?![ \n])[^\n,]{0,200}+){2,100}+$", re.MULTILINE)
_GAP = re.compile(r"(?<=\S)[ \u00a0\u3000]{2,}+(?=\S)")


def blocks(text: str) -> Iterator[Span]:
    """Code, JSON, SQL and tables, in no order; spans may overlap. Without the last line break of a block."""
    yield from _fences(text)
    yield from _json(text)
    yield from _sql(text)
    yield from _code_lines(text)
    yield from _tables(text)


def _line_end(text: str, at: int, most: int | None = None) -> int:
    most = len(text) if most is None else most
    end = text.find("\n", at, most)
    return most if end < 0 else end


def _fences(text: str) -> Iterator[Span]:
    """Fenced code; a fence that is never closed reaches to the end."""
    if "```" not in text and "~~~" not in text:
        return
    opened, mark = 0, ""
    for match in _FENCE.finditer(text):
        if not mark:
            opened, mark = match.start(), match[1]
        elif match[1].startswith(mark):
            end = _line_end(text, match.end())
            if not text[match.end() : end].strip(" \t\r`~"):
                yield Span(opened, end, Kind.CODE)
                mark = ""
    if mark:
        yield Span(opened, len(text), Kind.CODE)


def _code_lines(text: str) -> Iterator[Span]:
    """Lines that look like code; those that only blank lines or comments part are one block."""
    start = end = -1
    for match in _MAYBE_CODE.finditer(text):
        left, right = match.span()
        if not _is_code(match[0]):
            continue
        if end >= 0 and _joins(text, end, left):
            end = right
            continue
        if end >= 0:
            yield Span(start, end, Kind.CODE)
        start, end = left, right
    if end >= 0:
        yield Span(start, end, Kind.CODE)


def _is_code(line: str) -> bool:
    if len(line) > 2 * _LINE_CHARS:
        return _is_code(line[:_LINE_CHARS]) or _is_code(line[-_LINE_CHARS:])
    return bool(line.strip()) and _CODE.search(line) is not None and not _is_prose(line)


def _is_prose(line: str) -> bool:
    """A long line with few of code's signs: a paragraph in which one chanced to stand, not a line of code."""
    if len(line) <= _PROSE_CHARS or line[0] in " \t":
        return False
    return sum(map(line.count, "=(){}[];<>$\\_&|#")) * _PROSE_CHARS_PER_SIGN < len(line)


def _joins(text: str, end: int, left: int) -> bool:
    if left - end <= 1:
        return True
    if left - end > _LINE_CHARS:
        return False
    return all(not line.strip() or _COMMENT.match(line) for line in text[end:left].split("\n"))


def _json(text: str) -> Iterator[Span]:
    """Outermost bracketed parts that begin as JSON does; one that is never closed reaches to the next blank line."""
    if not _JSON_START.search(text):
        return
    opened: list[tuple[str, int]] = []
    closed: dict[int, int] = {}
    starts: list[int] = []
    for match in _BRACKETS.finditer(text):
        bracket = match[0]
        if bracket in ("{", "["):
            opened.append((bracket, match.start()))
            starts.append(match.start())
        elif bracket in _PAIRS and opened:
            # One missing bracket is forgiven, so that it does not open all the rest.
            if opened[-1][0] != _PAIRS[bracket] and len(opened) > 1 and opened[-2][0] == _PAIRS[bracket]:
                opened.pop()
            if opened[-1][0] == _PAIRS[bracket]:
                closed[opened.pop()[1]] = match.end()
    at = 0
    for start in starts:
        if start < at or not _JSON_START.match(text, start) or _CITATION.match(text, start):
            continue
        end = closed.get(start)
        if end is None:
            blank = text.find("\n\n", start)
            end = len(text) if blank < 0 else blank
        yield Span(start, end, Kind.JSON)
        at = end


def _sql(text: str) -> Iterator[Span]:
    """Statements: to the semicolon, or as far as lines go on like SQL. Lower case needs more than two words of it."""
    starts = list(_SQL_START.finditer(text))
    # Prose is full of second words; first ones are seldom.
    seconds = [match.start() for match in _SQL_SECOND.finditer(text)] if starts else []
    at = 0
    for match in starts if seconds else ():
        start = match.start()
        if start < at:
            continue
        second = seconds[min(bisect_left(seconds, start + 1), len(seconds) - 1)]
        if not start < second < start + _STATEMENT_CHARS:
            continue
        end = _statement_end(text, start)
        shouted = match[0] == match[0].upper() and text[second : second + 3].isupper()
        if second < end and (shouted or _is_quiet_sql(text, start, end)):
            yield Span(start, end, Kind.SQL)
            at = end


def _is_quiet_sql(text: str, start: int, end: int) -> bool:
    head = text[start : min(end, start + _QUIET_CHARS)]
    if text[end - 1] == ";" and _SQL_SIGN.search(head):
        return True
    return ("*" in head or "where" in head.lower()) and _SQL_QUIET.match(head) is not None


def _statement_end(text: str, start: int) -> int:
    most = min(len(text), start + _STATEMENT_CHARS)
    semicolon = text.find(";", start, most)
    blank = text.find("\n\n", start, most)
    stop = min((at for at in (semicolon + 1 if semicolon >= 0 else -1, blank) if at > 0), default=most)
    end = _line_end(text, start, stop)
    while end < stop:
        following = _line_end(text, end + 1, stop)
        line = text[end + 1 : following]
        if not _SQL_LINE.match(line) and not text[start:end].rstrip().endswith((",", "(")):
            break
        end = following
    return end


def _tables(text: str) -> Iterator[Span]:
    for match in _TABLE.finditer(text):
        if match[0].strip():
            yield Span(match.start(), match.end(), Kind.TABLE)
    yield from _csv(text)
    yield from _columns(text)


def _csv(text: str) -> Iterator[Span]:
    """Three lines or more with as many commas, none before a blank."""
    run: list[tuple[int, int, int]] = []
    for match in _CSV.finditer(text):
        row = (*match.span(), match[0].count(","))
        if run and (row[0] != run[-1][1] + 1 or row[2] != run[-1][2]):
            if len(run) >= 3:
                yield Span(run[0][0], run[-1][1], Kind.TABLE)
            run = []
        run.append(row)
    if len(run) >= 3:
        yield Span(run[0][0], run[-1][1], Kind.TABLE)


def _columns(text: str) -> Iterator[Span]:
    """Neighbouring lines with a gap at one place: a table without rules."""
    line_start, line_end = 0, _line_end(text, 0)
    before: tuple[int, int, set[int]] = (-1, -2, set())
    now: tuple[int, int, set[int]] = (-1, -1, set())
    for match in _GAP.finditer(text):
        while match.start() > line_end:
            line_start, line_end = line_end + 1, _line_end(text, line_end + 1)
        if now[0] != line_start:
            before, now = now, (line_start, line_end, set())
        column = match.end() - line_start
        if column > _LINE_CHARS or column in now[2]:
            continue
        now[2].add(column)
        if before[1] + 1 == line_start and column in before[2]:
            yield Span(before[0], line_end, Kind.TABLE)
