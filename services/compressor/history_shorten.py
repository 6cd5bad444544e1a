"""A long old message by its most relevant sentences. Pure and deterministic.

Whole sentences go, never parts of one; the first stays, for it says what the message is. Texts that look like code,
JSON, tables or lists of fields are not shortened, nor is a quotation parted.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

from services.compressor.history_terms import Terms
from services.compressor.prompt import Message

CUT = "[…]"
_END = re.compile(r"(?<=[.!?。！？…])[\"'”’)\]]*\s+|\n+\s*")
_ABBREVIATION = re.compile(r"(?:\b(?:[A-Z]|Mr|Mrs|Ms|Dr|St|No|vs|etc|e\.g|i\.e|approx|Fig)|\d)\.\s*\Z")
_NOT_PROSE = re.compile(
    r"```|~~~|[{}|]|\t|^ {4,}\S|^[^\S\n]*(?:[-*+•]|\d+[.)])\s|</?\w+[^>]*>|=>|->|::|==|\w\(\w*\)|;[^\S\n]*$"
    r"|^[^\S\n]*[\w. -]{1,30}:\s",
    re.MULTILINE,
)
_PAIRS = (("“", "”"), ("‘", "’"), ("「", "」"), ("『", "』"), ("«", "»"), ("(", ")"))
_LEAST_SENTENCES = 3
_MOST_SENTENCE_CHARS = 2000


def shortened(message: Message, question: str, share: float) -> Message | None:
    """The message with about ``share`` (0 to 1) of its characters; None when it cannot be shortened."""
    terms = Terms()
    texts = tuple(_shortened(text, question, share, terms) for text in message.texts)
    return None if texts == message.texts else replace(message, texts=texts)


def sentences(text: str) -> list[str]:
    """The sentences of a text, each with the blanks after it: together they are the text."""
    parts, start = list[str](), 0
    for match in _END.finditer(text):
        piece = text[start : match.end()]
        if "\n" not in match[0] and _ABBREVIATION.search(piece):
            continue
        # An unclosed quotation must not make one sentence of a whole book.
        if len(piece) <= _MOST_SENTENCE_CHARS and _is_open(piece):
            continue
        parts.append(piece)
        start = match.end()
    if start < len(text):
        parts.append(text[start:])
    return parts


def _is_open(piece: str) -> bool:
    """True inside a quotation or brackets."""
    return piece.count('"') % 2 == 1 or any(piece.count(left) > piece.count(right) for left, right in _PAIRS)


def _shortened(text: str, question: str, share: float, terms: Terms) -> str:
    if _NOT_PROSE.search(text):
        return text
    parts = sentences(text)
    if len(parts) < _LEAST_SENTENCES:
        return text
    wanted = set(terms.of(question))
    spoken = [set(terms.of(part)) for part in parts]
    frequency = Counter(term for own in spoken for term in own if term in wanted)
    # Rare question words count more; of equals the earlier sentence says more.
    scores = [sum(1 / frequency[term] for term in sorted(own & wanted)) for own in spoken]
    room = int(share * len(text)) - len(parts[0])
    kept = {0}
    for at in sorted(range(1, len(parts)), key=lambda at: (-scores[at], at)):
        if len(parts[at]) + len(CUT) + 1 <= room:
            kept.add(at)
            room -= len(parts[at]) + len(CUT) + 1
    result = "".join(
        part if at in kept else (f"{CUT} " if at - 1 in kept else "") for at, part in enumerate(parts)
    ).rstrip()
    return result if len(result) < len(text) else text
