"""How probable it is that a question needs each sentence of each chunk: words, vectors, titles, neighbours. Pure.

Two logistic functions: the first scores chunks, the second sentences, with the chunk's score among what it reads. Every
measure is relative to the best in the request, so that neither the collection nor the encoder sets the scale. Words are
compared by BM25 (Robertson and Zaragoza, 2009; k1 1.2, b 0.75), once over chunks and once over sentences. A chunk whose
title stands in one of the best chunks, or that shares rare names with it, is a second hop and gets credit. Weights are
fitted (``fit.py``) for each language and for what vectors there are: none, of chunks, of chunks and sentences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from services.compressor.documents import Document
from services.compressor.sentences import Kind
from services.compressor.wording import is_korean, numbers, terms, wanted

Floats = npt.NDArray[np.float64]

_K1, _B = 1.2, 0.75
_EARLIER_WEIGHT = 0.35
"""What a term of an earlier turn counts beside one of the question."""
_MAX_TERMS = 64
_END_CHARS = 2_000
_RARE_CHUNKS = 3
"""A name in more chunks than this links none of them."""
_HOP_SOURCES = 2
"""Chunks from which a second hop may start."""

CHUNK_FEATURES = (
    "bias",
    "bm25",
    "coverage",
    "pairs",
    "title",
    "best_bm25",
    "best_coverage",
    "names",
    "cosine",
    "best_cosine",
)
HOP_FEATURES = ("bias", "first", "gap", "title_link", "name_link", "alone")
UNIT_FEATURES = (
    "bias",
    "chunk",
    "gap",
    "bm25",
    "coverage",
    "pairs",
    "neighbours",
    "first",
    "answer",
    "mismatch",
    "length",
    "novel",
    "heading",
    "numbers",
    "cosine",
    "cosine_in_chunk",
    "cosine_neighbours",
)


class Level(StrEnum):
    """Which vectors there are."""

    WORDS = "words"
    CHUNKS = "chunks"
    SENTENCES = "sentences"


@dataclass(frozen=True, slots=True)
class Weights:
    """The fitted numbers of one language and level, by feature; what is absent counts 0."""

    chunk: Mapping[str, float]
    hop: Mapping[str, float]
    unit: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Query:
    """What chunks are ranked for."""

    question: str
    earlier: tuple[str, ...] = ()
    """Earlier turns of the user, newest first: a follow-up leaves out what it is about."""

    @property
    def focus(self) -> str:
        """The question, of a long one its two ends: what is asked stands before or after what was pasted in."""
        text = self.question
        return text if len(text) <= 2 * _END_CHARS else f"{text[:_END_CHARS]}\n{text[-_END_CHARS:]}"


@dataclass(frozen=True, slots=True)
class Vectors:
    """L2-normalised vectors; ``None`` where there are none."""

    question: Floats
    chunks: Floats
    """One row per chunk; NaN for one that was not embedded, but one at least must be."""
    sentences: Floats | None = None
    """One row per unit, chunk after chunk. A row of NaN is a unit that was not embedded."""


@dataclass(frozen=True, slots=True)
class Ranked:
    """Probabilities, calibrated on the training sets."""

    chunks: Floats
    """That a chunk is needed."""
    units: Floats
    """That a unit is needed, chunk after chunk."""
    starts: npt.NDArray[np.intp]
    """Where each chunk's units begin in ``units``."""
    level: Level


@dataclass(frozen=True, slots=True)
class Features:
    """What the logistic functions read: one row per chunk or unit, columns as named above."""

    chunk: Floats
    unit: Floats
    """Its columns ``chunk`` and ``gap`` are filled in once the chunks are scored."""
    documents: tuple[Document, ...]
    """For the links from the best chunks to the others."""
    starts: npt.NDArray[np.intp]
    owner: npt.NDArray[np.intp]
    level: Level


def language(query: Query) -> str:
    """``ko`` or ``en``, by the question."""
    return "ko" if is_korean(query.focus) else "en"


def rank(documents: Sequence[Document], query: Query, vectors: Vectors | None, weights: Weights) -> Ranked:
    """Probabilities for each chunk and unit. There must be a chunk."""
    return score(measure(documents, query, vectors), weights)


def score(features: Features, weights: Weights) -> Ranked:
    """Probabilities from what was measured."""
    first = features.chunk @ columns(weights.chunk, CHUNK_FEATURES)
    second = hop_features(first, features) @ columns(weights.hop, HOP_FEATURES)
    unit = unit_features(second, features) @ columns(weights.unit, UNIT_FEATURES)
    return Ranked(sigmoid(second), sigmoid(unit), features.starts, features.level)


def measure(documents: Sequence[Document], query: Query, vectors: Vectors | None) -> Features:
    """Everything that does not depend on weights."""
    sizes = np.array([len(document.units) for document in documents], np.intp)
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1])).astype(np.intp)
    owner = np.repeat(np.arange(len(documents)), sizes)
    words = _words(documents, query, starts, sizes)
    count = len(owner)
    unit = np.zeros((count, len(UNIT_FEATURES)))
    chunk = np.zeros((len(documents), len(CHUNK_FEATURES)))
    column = {name: place for place, name in enumerate(UNIT_FEATURES)}
    chunk_column = {name: place for place, name in enumerate(CHUNK_FEATURES)}
    unit[:, column["bias"]] = chunk[:, 0] = 1.0
    for name in ("bm25", "coverage", "pairs"):
        unit[:, column[name]] = words[name]
        chunk[:, chunk_column[name]] = words[f"chunk_{name}"]
    chunk[:, chunk_column["title"]] = words["title"]
    chunk[:, chunk_column["best_bm25"]] = np.maximum.reduceat(words["bm25"], starts)
    chunk[:, chunk_column["best_coverage"]] = np.maximum.reduceat(words["coverage"], starts)
    chunk[:, chunk_column["names"]] = words["names"]
    unit[:, column["neighbours"]] = _neighbours(words["coverage"], owner)
    unit[starts, column["first"]] = 1.0
    headed = [
        place + 1
        for place, document in zip(starts, documents, strict=True)
        if document.heading and len(document.units) > 1
    ]
    unit[headed, column["first"]] = 1.0
    wants = wanted(query.focus)
    asked = numbers(query.focus)
    flat = [(document, place) for document in documents for place in range(len(document.units))]
    if wants:
        holds = np.array([each for document in documents for each in document.holding(wants)], bool)
        unit[:, column["answer"]] = holds
        unit[:, column["mismatch"]] = ~holds
    lengths = np.array([document.lengths[place] for document, place in flat], float)
    unit[:, column["length"]] = np.log1p(lengths) / 4
    unit[:, column["novel"]] = np.minimum(1.0, (lengths - words["matched"]) / 20)
    unit[:, column["heading"]] = [document.units[place].kind is Kind.HEADING for document, place in flat]
    if asked:
        unit[:, column["numbers"]] = [
            any(number in document.counts[place] for number in asked) for document, place in flat
        ]
    level = Level.WORDS
    if vectors is not None:
        level = Level.CHUNKS
        cosines = vectors.chunks @ vectors.question
        # A chunk that was not embedded counts as the least similar one that was.
        cosines = np.where(np.isnan(cosines), np.nanmin(cosines), cosines)
        chunk[:, chunk_column["cosine"]] = 10 * (cosines - cosines.max())
        if vectors.sentences is not None:
            level = Level.SENTENCES
            near = vectors.sentences @ vectors.question
            # A unit without a vector of its own has its chunk's.
            near = np.where(np.isnan(near), cosines[owner], near)
            best = np.maximum.reduceat(near, starts)
            chunk[:, chunk_column["best_cosine"]] = 10 * (best - best.max())
            unit[:, column["cosine"]] = 10 * (near - near.max())
            unit[:, column["cosine_in_chunk"]] = 10 * (near - best[owner])
            unit[:, column["cosine_neighbours"]] = 10 * (_neighbours(near, owner, float(near.min())) - near.max())
    return Features(chunk, unit, tuple(documents), starts, owner, level)


def hop_features(first: Floats, features: Features) -> Floats:
    """Columns of ``HOP_FEATURES`` from the first scores of the chunks."""
    count = len(first)
    found = np.zeros((count, len(HOP_FEATURES)))
    found[:, 0] = 1.0
    found[:, 1] = first
    found[:, 2] = first - first.max()
    sources = np.argsort(-first, kind="stable")[:_HOP_SOURCES].tolist() if count > 1 else []
    for source in sources:
        certainty = float(sigmoid(first[source] - first.max()) * 2)
        found[:, 3:5] = np.maximum(found[:, 3:5], certainty * _links(features.documents, source))
    found[:, 5] = count == 1
    return found


def unit_features(chunks: Floats, features: Features) -> Floats:
    """Columns of ``UNIT_FEATURES`` with the scores of their chunks."""
    found = features.unit.copy()
    found[:, UNIT_FEATURES.index("chunk")] = np.clip(chunks[features.owner], -8, 8)
    found[:, UNIT_FEATURES.index("gap")] = np.clip((chunks - chunks.max())[features.owner], -8, 0)
    return found


def columns(weights: Mapping[str, float], names: Sequence[str]) -> Floats:
    """Weights in the order of the columns."""
    return np.array([weights.get(name, 0.0) for name in names])


def sigmoid(values: Floats) -> Floats:
    """The logistic function."""
    result: Floats = 1 / (1 + np.exp(-np.clip(values, -40, 40)))
    return result


def query_terms(query: Query) -> dict[str, float]:
    """The terms that are looked for, each with what it counts, the most important first, so many at most."""
    found = dict.fromkeys(terms(query.focus), 1.0)
    for turn, text in enumerate(query.earlier, 1):
        for term in terms(text[:_END_CHARS]):
            found.setdefault(term, _EARLIER_WEIGHT / turn)
    return dict(list(found.items())[:_MAX_TERMS])


def _words(
    documents: Sequence[Document], query: Query, starts: npt.NDArray[np.intp], sizes: npt.NDArray[np.intp]
) -> dict[str, Floats]:
    asked = query_terms(query)
    order = list(asked)
    counts = np.array(
        [[found.get(term, 0) for term in order] for document in documents for found in document.counts], float
    )
    counts = counts.reshape(int(sizes.sum()), len(order))
    importance = np.array(list(asked.values()))
    lengths = np.array([length for document in documents for length in document.lengths], float)
    in_chunks = np.add.reduceat(counts, starts, axis=0) if order else np.zeros((len(documents), 0))
    unit_idf = _idf(counts) * importance
    chunk_idf = (_idf(in_chunks) if len(documents) >= 3 else _idf(counts)) * importance
    # Rarity both in the request and, where it holds few chunks, among its sentences.
    both = (unit_idf + chunk_idf) / 2
    total = float(both.sum()) or 1.0
    question = terms(query.focus)
    pairs = list(dict.fromkeys(pairwise(question)))
    pair_hits = np.array(
        [[pair in found for pair in pairs] for document in documents for found in document.pairs], float
    )
    pair_hits = pair_hits.reshape(len(lengths), len(pairs))
    place = {term: at for at, term in enumerate(order)}
    pair_weight = np.array([both[place[a]] + both[place[b]] if a in place and b in place else 0.0 for a, b in pairs])
    pair_total = float(pair_weight.sum()) or 1.0
    in_title = [[term in document.title_terms for term in order] for document in documents]
    title_hits = np.array(in_title, float).reshape(len(documents), len(order)) @ both
    title_sizes = np.array([len(document.title_terms) for document in documents], float)
    shared = (
        np.array(in_title, float).reshape(len(documents), len(order)).sum(axis=1) if order else np.zeros(len(documents))
    )
    lowered = " ".join((query.focus, *query.earlier[:1])).lower()
    named = np.array([sum(name in lowered for name in document.names) for document in documents], float)
    return {
        "bm25": _relative(_bm25(counts, lengths, unit_idf)),
        "coverage": (counts > 0) @ both / total,
        "pairs": pair_hits @ pair_weight / pair_total if pairs else np.zeros(len(lengths)),
        "matched": counts.sum(axis=1) if order else np.zeros(len(lengths)),
        "chunk_bm25": _relative(_bm25(in_chunks, np.add.reduceat(lengths, starts), chunk_idf)),
        "chunk_coverage": (in_chunks > 0) @ both / total,
        "chunk_pairs": np.maximum.reduceat(pair_hits @ pair_weight, starts) / pair_total
        if pairs
        else np.zeros(len(documents)),
        "title": title_hits / total
        + np.divide(shared, title_sizes, out=np.zeros(len(documents)), where=title_sizes > 0),
        "names": np.minimum(named, 3.0) / 3,
    }


def _links(documents: Sequence[Document], source: int) -> Floats:
    """How a chunk leads to each other one, 0 to 1: its title stands there or theirs here; they share rare names."""
    found = np.zeros((len(documents), 2))
    here = documents[source]
    text, title = here.text.lower(), _title(here)
    frequency = {name: sum(name in document.names for document in documents) for name in here.names}
    rare = frozenset(name for name, holding in frequency.items() if holding <= _RARE_CHUNKS)
    for target, document in enumerate(documents):
        if target == source:
            continue
        theirs = _title(document)
        if len(theirs) > 3 and theirs != title:
            if theirs in text:
                found[target, 0] = 1.0
            elif "," in theirs and len(place := theirs.split(",")[0]) > 3 and place in text:
                found[target, 0] = 0.7
        if len(title) > 3 and theirs != title and title in document.text.lower():
            found[target, 0] = max(found[target, 0], 0.8)
        found[target, 1] = min(3, len(rare & document.names)) / 3
    return found


def _title(document: Document) -> str:
    """The title in lower case, without the parenthesis that tells namesakes apart."""
    return document.heading.lower().split(" (")[0].strip()


def _idf(counts: Floats) -> Floats:
    total = len(counts)
    holding = (counts > 0).sum(axis=0)
    found: Floats = np.log(1 + (total - holding + 0.5) / (holding + 0.5))
    return found


def _bm25(counts: Floats, lengths: Floats, idf: Floats) -> Floats:
    average = float(lengths.mean()) or 1.0
    norm = _K1 * (1 - _B + _B * lengths / average)
    found: Floats = (counts * (_K1 + 1) / (counts + norm[:, None] + 1e-9)) @ idf
    return found


def _relative(scores: Floats) -> Floats:
    best = float(scores.max(initial=0.0))
    return scores / best if best > 0 else scores


def _neighbours(values: Floats, owner: npt.NDArray[np.intp], lowest: float = 0.0) -> Floats:
    """The better of the units before and after, within the same chunk."""
    found = np.full(len(values), lowest)
    same = owner[1:] == owner[:-1]
    found[1:] = np.where(same, np.maximum(found[1:], values[:-1]), found[1:])
    found[:-1] = np.where(same, np.maximum(found[:-1], values[1:]), found[:-1])
    return found
