"""Pruning a text by how surprising its words are: the ``tokenwise`` strategy. Pure.

For texts that are shortened once and used often (documents, and a system prompt that its owner reads over); never a
step of the online path. The words that tell a language model least go first, as in Selective Context (Li et al., 2023,
"Compressing Context to Enhance Inference Efficiency of Large Language Models") and LLMLingua (Jiang et al., 2023). As
there, information is the surprisal of each token in the whole text; what a cut does to the surprisal of what follows is
not looked at. Unlike there, words are weighed by what they cost: nats for each token that the answering model is
spared, and much may not go at all:

- protected spans, hard and soft (``protected.py``): code, names, numbers, negations, and what they cannot be cut from;
- headings, tables, code; sentences that ask or instruct; words that limit ("only", "until", "이상"), months and days;
- the mark of a list item, the last word of a sentence or a line, words with brackets, quotes or markup;
- words of which nothing is known, as the very first.

A word is what stands between ``cuts.safe_cuts``: in Korean the eojeol, never a particle cut from its noun. Capitalised
words beside each other ("Gulf of Mexico") are one word, for the end of a name is never surprising. (Selective Context
takes noun phrases for the same reason; those need a parser.)
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from services.compressor.cuts import safe_cuts
from services.compressor.protected import merged, spans
from services.compressor.sentences import Kind, split

MOST_SHARE = 0.9
"""Largest share of a text's tokens that may be asked for."""

_ASKS = re.compile(r"[?？][\"'”’)\]」』]*\s*$")
_INSTRUCTS = re.compile(
    r"\b(?:must|shall|should|always|never|please|ensure|make sure|do not|don['’]t|you (?:are|may|can|will|need))\b"
    r"|반드시|절대|항상|꼭 |(?:세요|십시오|시오|하라|말라|마라|야 (?:한다|합니다|함|하며|하고))[.!]?\s*$",
    re.IGNORECASE,
)
_LIMITS = re.compile(
    r"(?<![\w'’])(?:only|but|if|until|unless|except|before|after|since|least|most|more|less|fewer|than|all|any|every|both"
    r"|each|either|may|might|can|could|would|some|several|few)(?![\w'’])"
    r"|(?<!\w)(?:(?:jan|febr)uary|march|april|june|july|august|(?:septem|octo|novem|decem)ber"
    r"|(?:mon|tues|wednes|thurs|fri|satur|sun)day)(?!\w)"
    r"|(?:이상|이하|미만|초과|까지|부터|경우|라면|다면|으면|외에|만)[,.]?\s*$",
    re.IGNORECASE,
)
_MARKUP = re.compile(r"[()\[\]{}<>\"“”‘’「」『』《》*_~|#=`\\]")
_IN_NAMES = re.compile(r"of|the|de|del|du|la|von|van|der|den|da|di|al|bin|&")
_MOST_BETWEEN = 2
_ENDS = re.compile(r"\n|\w{2}[.!?;:]+[\"”’)]*\s*$")
_LETTER = re.compile(r"[^\W\d_]")

Count = Callable[[str], int]
"""Tokens of a text, as the answering model counts them."""


@dataclass(frozen=True, slots=True)
class Surprisal:
    """A token of the scoring model: its characters, ``end`` exclusive, and minus its log probability, nats.

    None: not known. Tokens may overlap, as parts of one character do.
    """

    start: int
    end: int
    nats: float | None


@dataclass(frozen=True, slots=True)
class Removed:
    """``text[start:end]`` went, blanks after it included; ``nats`` is the information that went with it."""

    start: int
    end: int
    nats: float


@dataclass(frozen=True, slots=True)
class Pruned:
    """What is left of a text, and what went, in the text's order."""

    text: str
    removed: tuple[Removed, ...]
    before_tokens: int
    after_tokens: int
    reached: bool
    """False when all that may go is gone and the text is still longer than was wanted."""


def budget_of(tokens: int, share: float) -> int:
    """The tokens that may stay when this share of them is to go."""
    return tokens - int(tokens * share)


def prune(text: str, surprisals: Sequence[Surprisal], budget: int, count: Count) -> Pruned:
    """The text without its least informative words, at most ``budget`` tokens where that can be had.

    What holds: the result is the text with some of its words left out, in their order, so it is never longer, in
    characters or in tokens; words go in one order, whatever the budget; the same arguments give the same result. A text
    within its budget comes back as it is, so pruning a result again to the same budget changes nothing.
    (Pruning it again by a *share* cuts again, and by other surprisals: those of a text that has been cut.)
    """
    before = count(text)
    after, kept, at = before, text, 0
    free = _free(text, surprisals, count)
    while after > budget and at < len(free):
        # Counted alone, words are about as long as together; how long the rest really is, is counted again.
        need, gained = after - budget, 0
        while at < len(free) and gained < need:
            gained += free[at].tokens
            at += 1
        kept = _without(text, free[:at])
        after = count(kept)
    if after >= before:
        return Pruned(text, (), before, before, before <= budget)
    gone = sorted(free[:at], key=lambda word: word.start)
    return Pruned(
        kept, tuple(Removed(each.start, each.end, each.nats) for each in gone), before, after, after <= budget
    )


def protected_ranges(text: str) -> list[tuple[int, int]]:
    """What no word may be taken from, in order: see the module."""
    found = [(span.start, span.end) for span in spans(text)]
    for unit in split(text):
        sentence = text[unit.start : unit.end]
        if unit.kind not in (Kind.PROSE, Kind.LIST) or _ASKS.search(sentence) or _INSTRUCTS.search(sentence):
            found.append((unit.start, unit.end))
    return merged(found)


@dataclass(frozen=True, slots=True)
class _Word:
    """A word that may go."""

    start: int
    end: int
    nats: float
    tokens: int


def _free(text: str, surprisals: Sequence[Surprisal], count: Count) -> list[_Word]:
    """The words that may go, the least informative for their tokens first; of equal ones the earlier."""
    places = _whole_names(text, list(pairwise((0, *safe_cuts(text, lone_articles=True), len(text)))))
    nats = _information([start for start, _ in places], surprisals)
    edges = _Edges(text)
    closed = _Closed(protected_ranges(text))
    found = []
    for (start, end), known in zip(places, nats, strict=True):
        word = text[start:end]
        bare = word.rstrip()
        if known is None or not _LETTER.search(bare) or _MARKUP.search(bare) or _LIMITS.search(bare):
            continue
        if "\n" in word or edges.holds(start, end) or closed.touches(start, start + len(bare)):
            continue
        found.append(_Word(start, end, known, max(count(f" {bare}"), 1)))
    return sorted(found, key=lambda each: (each.nats / each.tokens, each.start))


def _whole_names(text: str, places: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """The words, those of one name joined: capitalised ones beside each other, and the small ones between them."""
    joined: list[tuple[int, int]] = []
    name, between = False, 0
    for start, end in places:
        joined.append((start, end))
        if text[start : start + 1].isupper():
            if name:
                first = joined[-2 - between][0]
                del joined[-2 - between :]
                joined.append((first, end))
            name, between = True, 0
        elif name and between < _MOST_BETWEEN and _IN_NAMES.fullmatch(text[start:end].rstrip()):
            between += 1
        else:
            name = False
        if not name or _ENDS.search(text[start:end]):
            name, between = False, 0
    return joined


class _Edges:
    """The marks of list items and the last words of sentences; a word across two sentences is one as well."""

    def __init__(self, text: str) -> None:
        units = split(text)
        self._ends = [unit.end for unit in units]
        self._bare_ends = [unit.start + len(text[unit.start : unit.end].rstrip()) for unit in units]
        self._items = {unit.start for unit in units if unit.kind is Kind.LIST}

    def holds(self, start: int, end: int) -> bool:
        """True when the word must stay for its place."""
        at = bisect_right(self._ends, start)
        return start in self._items or at >= len(self._ends) or end >= self._bare_ends[at]


class _Closed:
    """Whether ranges, asked for in order, touch protected ones."""

    def __init__(self, ranges: Sequence[tuple[int, int]]) -> None:
        self._ranges, self._at = ranges, 0

    def touches(self, start: int, end: int) -> bool:
        """True when one of them does."""
        while self._at < len(self._ranges) and self._ranges[self._at][1] <= start:
            self._at += 1
        return self._at < len(self._ranges) and self._ranges[self._at][0] < end


def _information(starts: Sequence[int], surprisals: Sequence[Surprisal]) -> list[float | None]:
    """The nats of each word; None where no token is in it, or one that is not known.

    A token belongs to the word of its last character: most tokenizers put the blank before a word into its first token.
    """
    nats: list[float | None] = [None] * len(starts)
    unknown: set[int] = set()
    for token in surprisals:
        at = bisect_right(starts, token.end - 1) - 1
        if at < 0:
            continue
        if token.nats is None:
            unknown.add(at)
        else:
            nats[at] = (nats[at] or 0.0) + max(token.nats, 0.0)
    return [None if at in unknown else found for at, found in enumerate(nats)]


def _without(text: str, words: Iterable[_Word]) -> str:
    parts, at = [], 0
    for word in sorted(words, key=lambda each: each.start):
        parts.append(text[at : word.start])
        at = word.end
    parts.append(text[at:])
    return "".join(parts)
