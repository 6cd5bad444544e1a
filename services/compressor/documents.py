"""Chunks prepared for ranking: their units and terms, made once and kept by digest. Pure but for the memory given."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

from services.compressor.protected import hard_ranges
from services.compressor.sentences import Kind, Unit, heading, split
from services.compressor.wording import Answer, held, names, terms

T = TypeVar("T")

_LEANS = re.compile(
    r"[\s\"'“‘(]{0,9}(?:(?:he|she|it|they|this|these|those|that|his|her|its|their|such|however|but|also|therefore|thus"
    r"|then|instead|moreover|furthermore|additionally|as a result|in addition"
    r"|because of this|the (?:former|latter|same))\b"
    r"|(?:그|그녀|그들|이|이것|그것|이들|이는|그는|그의|이를|그러나|하지만|또한|그리고|따라서|"
    r"그래서|이후|그 후|이때|이에|당시|한편)(?=\s|는|은|가|의|를|에|로))",
    re.IGNORECASE,
)
_MAX_STEMS = 50_000
_FEW_UNITS, _LEAST_UNIT_CHARS = 200, 20
"""A chunk with more units than this, and with shorter ones on average, is no text that anyone wrote."""
_BYTES_PER_TERM, _BYTES_PER_CHAR, _BYTES_PER_DOCUMENT = 100, 4, 1_000
"""About what a prepared chunk takes in memory, as measured: 27 bytes a character in English, 128 in Korean, whose terms
are bigrams."""


@dataclass(frozen=True, slots=True)
class Document:
    """A chunk, prepared; nothing in it depends on the question."""

    text: str
    units: tuple[Unit, ...]
    heading: str
    """The title that the text begins with, or nothing."""
    counts: tuple[Mapping[str, int], ...]
    """How often each term stands in each unit."""
    pairs: tuple[frozenset[tuple[str, str]], ...]
    """Terms that stand next to each other in each unit."""
    lengths: tuple[int, ...]
    """Terms of each unit."""
    tokens: tuple[int, ...]
    """Tokens of each unit, counted alone."""
    title_terms: frozenset[str]
    names: frozenset[str]
    _found: dict[str, Any] = field(default_factory=dict, compare=False, repr=False)
    """What is found when first asked for."""

    def hard(self) -> Sequence[tuple[int, int]]:
        """Its hard protected spans (``protected.py``): most chunks stay or go whole, and need none."""
        return self._once("hard", lambda: hard_ranges(self.text))

    def all_pairs(self) -> frozenset[tuple[str, str]]:
        """``pairs`` of all its units together."""
        return self._once("pairs", lambda: frozenset[tuple[str, str]]().union(*self.pairs))

    def leaning(self) -> Sequence[bool]:
        """Which units begin as one does that leans on what stands before it."""
        return self._once("leaning", lambda: [bool(_LEANS.match(self.text, at.start, at.end)) for at in self.units])

    def holding(self, wants: Answer) -> Sequence[bool]:
        """Which units hold what could answer a question that wants this."""
        return self._once(
            f"holding {wants.value}", lambda: [held(self.text[at.start : at.end], wants) for at in self.units]
        )

    def _once(self, name: str, find: Callable[[], T]) -> T:
        # Two threads may find the same at the same time.
        if name not in self._found:
            self._found[name] = find()
        found: T = self._found[name]
        return found

    def unit_text(self, place: int) -> str:
        """One unit's text, without the white space around it."""
        unit = self.units[place]
        return self.text[unit.start : unit.end].strip()

    def embedded_text(self, place: int) -> str:
        """What an encoder reads for a unit: a sentence on its own does not say what it is about; its title does."""
        text = self.unit_text(place)
        return f"{self.heading}\n{text}" if self.heading and self.units[place].kind is not Kind.HEADING else text


def prepare(text: str, count_tokens: Callable[[str], int], stems: dict[str, str] | None = None) -> Document:
    """A chunk, prepared; an empty one has one empty unit."""
    units = _fewer(split(text), max(_FEW_UNITS, len(text) // _LEAST_UNIT_CHARS)) or (Unit(0, 0, Kind.PROSE),)
    counts, pairs, lengths, tokens = [], [], [], []
    for unit in units:
        part = text[unit.start : unit.end]
        found = terms(part, stems)
        counts.append(Counter(found))
        pairs.append(frozenset(pairwise(found)))
        lengths.append(len(found))
        tokens.append(count_tokens(part))
    title = heading(text, list(units))
    return Document(
        text=text,
        units=units,
        heading=title,
        counts=tuple(counts),
        pairs=tuple(pairs),
        lengths=tuple(lengths),
        tokens=tuple(tokens),
        title_terms=frozenset(terms(title)),
        names=names(text),
    )


def _fewer(units: Sequence[Unit], most: int) -> tuple[Unit, ...]:
    """Neighbours joined where there are too many: a text of nothing but full stops is not worth an hour."""
    if len(units) <= most:
        return tuple(units)
    step = -(-len(units) // most)
    runs = (units[at : at + step] for at in range(0, len(units), step))
    return tuple(Unit(run[0].start, run[-1].end, run[0].kind) for run in runs)


class Documents:
    """Prepared chunks by digest, the least recently used forgotten first."""

    def __init__(self, count_tokens: Callable[[str], int], capacity_bytes: int) -> None:
        """``capacity_bytes`` is about what may be kept; 0 keeps nothing."""
        self._count_tokens = count_tokens
        self._capacity_bytes = capacity_bytes
        self._kept: OrderedDict[bytes, Document] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._stems: dict[str, str] = {}

    def prepare(self, texts: Sequence[str]) -> list[Document]:
        """These chunks, prepared now or before."""
        return [self._one(text) for text in texts]

    def _one(self, text: str) -> Document:
        key = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
        with self._lock:
            known = self._kept.get(key)
            if known is not None:
                self._kept.move_to_end(key)
                return known
            if len(self._stems) > _MAX_STEMS:
                self._stems = {}
            stems = self._stems
        # Two threads may prepare one text at the same time; one of the two is kept.
        made = prepare(text, self._count_tokens, stems)
        size = _size(made)
        with self._lock:
            if size <= self._capacity_bytes and key not in self._kept:
                self._kept[key] = made
                self._bytes += size
                while self._bytes > self._capacity_bytes:
                    _, dropped = self._kept.popitem(last=False)
                    self._bytes -= _size(dropped)
        return made


def _size(document: Document) -> int:
    entries = sum(map(len, document.counts)) + sum(map(len, document.pairs))
    return _BYTES_PER_DOCUMENT + _BYTES_PER_CHAR * len(document.text) + _BYTES_PER_TERM * entries
