"""The ``cleanup`` strategy: whitespace, repeated paragraphs, contentless preambles. Pure and deterministic by text.

Never touched: code (fenced, inline, or looking like it), JSON, tables and aligned columns, URLs and quotations.
A cleaned text is never longer, and cleaning it again changes nothing.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator

_MAX_PASSES = 6
_MIN_DUPLICATE_CHARS = 40
_LINE_CHARS = 600
"""Of a longer line only so much of its ends is looked at, so that no pattern takes quadratic time."""

_FENCE = re.compile(r"^[ \t]*(```+|~~~+).*?(?:^[ \t]*\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(
    r"`[^`\n]+`"
    r"|\b(?:https?|ftp|file|data|mailto)://?\S+"
    r'|"[^"\n]*(?:\n(?![ \t]*\n)[^"\n]*){0,20}"'
    r"|“[^”]{0,2000}”|‘[^’\n]{0,500}’|「[^」]{0,2000}」|『[^』]{0,2000}』|«[^»]{0,2000}»"
)
_CODE_LINE = re.compile(
    r"[;{}\\]\s*$|^\s*[{}\[\]()<>#@$|>]|=>|->|::|==|!=|\+=|</|/>|^\s*(?:def|class|import|from|return|if|for|while|try|else|elif"
    r"|except|with|let|const|var|func|fn|public|private|static|void|int|SELECT|INSERT|UPDATE|DELETE|CREATE|FROM|WHERE|JOIN|AND|"
    r"GROUP|ORDER|VALUES|SET)\b.*[:;({,=*)]?\s*$(?<!\.)|\w\s=\s\S|^\s*\S+\(.*\)\s*$|^\s*[\w.-]+:\s*$|^(?: {4,}|\t)\S"
)
_TABLE_LINE = re.compile(r"\|.*\||\t|^[-+=|: ]{4,}$")
_GAP = re.compile(r"\S([ \u00a0\u3000]{2,})\S")

_INNER_BLANKS = re.compile(r"(?<=\S)[ \u00a0\u3000]{2,}(?=\S)")
_TRAILING_BLANKS = re.compile(r"(?<![ \t\u00a0\u3000])[ \t\u00a0\u3000]+(?=\n)")
_BLANK_LINES = re.compile(r"\n{3,}")
_PARAGRAPHS = re.compile(r"(\n[ \t]*\n\s*)")
_EXAMPLE = re.compile(
    r"^[ \t]*(?:q|a|question|answer|user|assistant|system|human|ai|input|output|example"
    r"|예|예시|질문|답|답변|입력|출력|사용자|문|화자)"
    r"[ \t]{0,3}\d{0,3}[ \t]{0,3}[:：.)]",
    re.IGNORECASE | re.MULTILINE,
)

# Sentences that tell a model nothing. What carries a role, a field, a tone or a name does not match.
_PREAMBLE_EN = re.compile(
    r"you(?: are|'re) an? (?:(?:very |highly )?(?:helpful|useful|capable|intelligent)(?:,? (?:and )?))*"
    r"(?:ai |artificial intelligence |virtual |digital |language model )*"
    r"(?:assistant|language model|chatbot|bot|ai)(?: (?:that|who) (?:helps|assists)(?: (?:users?|people|the user))?"
    r"(?: with (?:their|any|all(?: of)? their) (?:questions|requests|tasks|needs))?)?[.!](?=\s|$)",
    re.IGNORECASE,
)
_PREAMBLE_KO = re.compile(
    r"(?:당신은|너는|귀하는) (?:(?:매우 |아주 )?(?:도움이 되는|도움을 주는|유용한|유능한|똑똑한|뛰어난|훌륭한),? ?)*"
    r"(?:사용자를 돕는 |사용자를 도와주는 |사용자에게 도움을 주는 )?"
    r"(?:(?:AI|ai|인공지능|에이아이|가상|디지털|대화형|대규모) ?)*"
    r"(?:어시스턴트|비서|도우미|챗봇|조수|언어 ?모델|AI|인공지능)(?:입니다|이다|야|이야)[.!](?=\s|$)"
)


def clean(text: str, *, system: bool) -> str:
    """The cleaned text; repeated paragraphs and preambles go only from system messages."""
    for _ in range(_MAX_PASSES):
        cleaned = _pass(text, system=system)
        if cleaned == text:
            return text
        text = cleaned
    return text


def _pass(text: str, *, system: bool) -> str:
    result = "".join(part if kept else _tidy(part) for part, kept in _parts(text))
    result = _strip(result)
    if system:
        result = _without_repeats(_without_preamble(result))
    return result if len(result) <= len(text) else text


def _strip(text: str) -> str:
    # Only blank lines go from the front: the first line may be indented code.
    lines = text.rstrip()
    return re.sub(r"\A(?:[ \t\u00a0\u3000]*\n)+", "", lines)


def _tidy(text: str) -> str:
    composed = unicodedata.normalize("NFC", text)
    if len(composed) > len(text):  # Some characters have no composed form; NFC takes them apart.
        composed = text
    composed = _TRAILING_BLANKS.sub("", composed)
    composed = _INNER_BLANKS.sub(" ", composed)
    return _BLANK_LINES.sub("\n\n", composed)


def _parts(text: str) -> Iterator[tuple[str, bool]]:
    """The text in parts, each with whether it must stay as it is."""
    at = 0
    for start, end in _merged(_protected(text)):
        if start > at:
            yield text[at:start], False
        yield text[start:end], True
        at = end
    if at < len(text):
        yield text[at:], False


def _protected(text: str) -> Iterator[tuple[int, int]]:
    for match in _FENCE.finditer(text):
        yield match.span()
    for match in _INLINE.finditer(text):
        yield match.span()
    yield from _protected_lines(text)


def _protected_lines(text: str) -> Iterator[tuple[int, int]]:
    """JSON blocks, code-like lines, tables and aligned columns, each line with its line break."""
    at, depth, gaps, previous = 0, 0, set[int](), (0, 0)
    for line in text.splitlines(keepends=True):
        span = (at, at + len(line))
        at = span[1]
        bare = line.strip()
        if depth > 0 or bare[:1] in ("{", "["):
            depth = max(0, depth + sum(map(bare.count, "{[")) - sum(map(bare.count, "}]")))
            yield span
        elif bare and _is_code_or_table(line):
            yield span
        columns = {match.end(1) for match in _GAP.finditer(line[:_LINE_CHARS])} if "  " in line else set[int]()
        if columns & gaps:  # Two lines with a gap at one place are a table without rules.
            yield previous
            yield span
        gaps, previous = columns, span


def _is_code_or_table(line: str) -> bool:
    if len(line) > 2 * _LINE_CHARS:
        return _is_code_or_table(line[:_LINE_CHARS]) or _is_code_or_table(line[-_LINE_CHARS:])
    return bool(_CODE_LINE.search(line) or _TABLE_LINE.search(line))


def _merged(spans: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    start = end = -1
    for left, right in sorted(spans):
        if left <= end:
            end = max(end, right)
            continue
        if end > start:
            yield start, end
        start, end = left, right
    if end > start:
        yield start, end


def _without_preamble(text: str) -> str:
    match = _PREAMBLE_EN.match(text) or _PREAMBLE_KO.match(text)
    return text[match.end() :].lstrip() if match else text


def _without_repeats(text: str) -> str:
    """Without paragraphs and lines that stand in the text before, word for word.

    Texts with examples or fences are left alone: there repetition may mean something.
    """
    if "```" in text or "~~~" in text or _EXAMPLE.search(text):
        return text
    parts = _PARAGRAPHS.split(text)
    kept: list[str] = []
    paragraphs: set[str] = set()
    lines: set[str] = set()
    for position in range(0, len(parts), 2):
        paragraph = parts[position]
        if not _is_repeat(paragraph, paragraphs):
            if kept:
                kept.append(parts[position - 1])
            kept.append("\n".join(line for line in paragraph.split("\n") if not _is_repeat(line, lines)))
    return "".join(kept)


def _is_repeat(text: str, seen: set[str]) -> bool:
    key = " ".join(text.split())
    if len(key) < _MIN_DUPLICATE_CHARS:
        return False
    repeated = key in seen and not any(True for _ in _protected(text))
    seen.add(key)
    return repeated
