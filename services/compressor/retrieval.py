"""The ``retrieval`` strategy: which retrieved chunks stay, and which of their sentences. Pure.

Chunks keep their order. Nothing is edited inside a unit: what comes out is a part of what went in. A chunk of which no
unit is worth its tokens goes whole; identical chunks stay once. JSON and tables are one unit each: whole or not at all;
one that holds an identifier of the question always stays. ``safe`` keeps such JSON whole; the other modes may cut it to
the records that hold the identifier.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from math import ceil

import numpy as np

from services.compressor.documents import Document
from services.compressor.extractive import Mask, Worth, cut, select, worth
from services.compressor.ranking import Floats, Level, Query, Ranked, Vectors, Weights, language, rank
from services.compressor.records import keep_named
from services.compressor.wording import identifiers

_NEAR_DUPLICATE = 0.8
"""Share of common word pairs from which of two chunks the lower one counts as a repetition."""
_MAX_COMPARED = 64
_BISECTIONS = 30


class Harshness(StrEnum):
    """How much a selection may lose, by the names of the compressor's modes."""

    SAFE = "safe"
    BALANCED = "balanced"
    AGGRESSIVE = "aggressive"


@dataclass(frozen=True, slots=True)
class Fitted:
    """All that was learned: weights and thresholds by language and level (``weights/ranking.json``)."""

    weights: Mapping[tuple[str, Level], Weights]
    thresholds: Mapping[tuple[str, Level, Harshness], float]
    """Smallest worth per token that stays."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One chunk of the outcome."""

    place: int
    """In the prompt that came."""
    text: str


@dataclass(frozen=True, slots=True)
class Removed:
    """What went from one chunk, and why."""

    place: int
    reason: str
    tokens: int
    """By the counter that prepared the documents."""


@dataclass(frozen=True, slots=True)
class Selection:
    """The outcome."""

    chunks: tuple[Chunk, ...]
    removed: tuple[Removed, ...]
    level: Level
    """Which vectors decided."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A prompt's chunks, ranked; thresholds are then cheap to try."""

    documents: tuple[Document, ...]
    query: Query
    ranked: Ranked
    worth: Worth
    repeats: frozenset[int]
    """Chunks whose text stands in an earlier one."""

    @property
    def tokens(self) -> float:
        """Of all chunks."""
        return float(self.worth.tokens.sum())


class BudgetTooSmallError(ValueError):
    """What must stay is more than the budget."""

    def __init__(self, over_tokens: int) -> None:
        """``over_tokens`` is by how much."""
        super().__init__(f"the protected text exceeds the budget by {over_tokens} tokens")
        self.over_tokens = over_tokens


def prepare(
    documents: Sequence[Document],
    query: Query,
    vectors: Vectors | None,
    fitted: Fitted,
) -> Prepared:
    """Rank chunks and sentences. There must be a chunk."""
    level = Level.WORDS if vectors is None else Level.CHUNKS if vectors.sentences is None else Level.SENTENCES
    ranked = rank(documents, query, vectors, fitted.weights[language(query), level])
    return prepare_ranked(documents, query, ranked)


def prepare_ranked(documents: Sequence[Document], query: Query, ranked: Ranked) -> Prepared:
    """The same for chunks that are ranked already."""
    near = _near_repeats(documents, ranked)
    return Prepared(tuple(documents), query, ranked, worth(documents, ranked, query, near), _repeats(documents))


def by_mode(prepared: Prepared, mode: Harshness, fitted: Fitted) -> Selection:
    """What stays in a mode."""
    threshold = fitted.thresholds[language(prepared.query), prepared.ranked.level, mode]
    return selection(prepared, mask(prepared, threshold), cut_records=mode is not Harshness.SAFE)


def by_budget(prepared: Prepared, budget_tokens: int) -> Selection:
    """The most that fits a budget, the best first; what fits already stays whole.

    Raises BudgetTooSmallError when what must stay does not fit.
    """
    if prepared.tokens <= budget_tokens:
        return selection(prepared, np.ones(len(prepared.worth.owner), bool), cut_records=False)
    kept = _within(prepared, budget_tokens)
    over = _size(prepared, kept) - budget_tokens
    found = selection(prepared, kept, cut_records=True)
    if over > 0:
        # Cutting JSON to the named records may still make it fit.
        saved = sum(each.tokens for each in found.removed) - (prepared.tokens - _size(prepared, kept))
        if saved < over:
            raise BudgetTooSmallError(int(over - max(0.0, saved)))
    return found


def threshold_for_share(prepared: Sequence[Prepared], share: float) -> float:
    """The threshold at which, over these prompts together, about this share of tokens goes."""
    total = sum(each.tokens for each in prepared)
    every = np.concatenate([each.worth.density for each in prepared])
    every = np.unique(every[np.isfinite(every)])
    low, high = 0, len(every) - 1
    for _ in range(_BISECTIONS):
        if low >= high:
            break
        middle = (low + high) // 2
        gone = sum(each.tokens - _size(each, mask(each, float(every[middle]))) for each in prepared)
        if gone / total < share:
            low = middle + 1
        else:
            high = middle
    return float(every[low])


def mask(prepared: Prepared, threshold: float) -> Mask:
    """The units that stay at a threshold; always at least one unit of the best chunk."""
    kept = select(prepared.worth, threshold)
    if prepared.repeats:
        kept[np.isin(prepared.worth.owner, sorted(prepared.repeats))] = False
    if not kept.any():
        kept = select(prepared.worth, float(prepared.worth.density.max()))
    return kept


def selection(prepared: Prepared, kept: Mask, *, cut_records: bool) -> Selection:
    """The chunks with what stays of them, and what went."""
    keys = identifiers(prepared.query.focus)
    chunks, removed = [], []
    for place, document in enumerate(prepared.documents):
        start = int(prepared.worth.starts[place])
        mine = kept[start : start + len(document.units)]
        lost = sum(count for count, stays in zip(document.tokens, mine, strict=True) if not stays)
        if not mine.any():
            reason = "repeated" if place in prepared.repeats else "not relevant to the question"
            removed.append(Removed(place, reason, lost))
            continue
        text = cut(document, mine.tolist())
        if lost:
            removed.append(Removed(place, "sentences not relevant to the question", lost))
        if cut_records and keys and len(document.units) - int((~mine).sum()) <= 2:
            named = keep_named(text, keys)
            if named is not None:
                share = 1 - len(named) / len(text)
                removed.append(
                    Removed(
                        place, "records that the question does not name", int((sum(document.tokens) - lost) * share)
                    )
                )
                text = named
        chunks.append(Chunk(place, text))
    return Selection(tuple(chunks), tuple(removed), prepared.ranked.level)


def worth_embedding(prepared: Prepared, most: int) -> list[int]:
    """Places of the chunks to embed when vectors are dear, the best first: those that words leave in the running."""
    order = np.argsort(-prepared.ranked.chunks, kind="stable")
    return [int(place) for place in order[:most] if int(place) not in prepared.repeats]


def _within(prepared: Prepared, budget_tokens: int) -> Mask:
    levels = np.unique(prepared.worth.density[np.isfinite(prepared.worth.density)])
    low, high = 0, len(levels)
    # The lowest threshold that fits; sizes are all but monotone in it, so the result is checked by the caller.
    while low < high:
        middle = (low + high) // 2
        if _size(prepared, mask(prepared, float(levels[middle]))) <= budget_tokens:
            high = middle
        else:
            low = middle + 1
    if low < len(levels):
        return mask(prepared, float(levels[low]))
    return _least(prepared, budget_tokens)


def _least(prepared: Prepared, budget_tokens: int) -> Mask:
    """What must stay, and if that leaves room, the best unit that fits it."""
    kept: Mask = np.isinf(prepared.worth.density) & (prepared.worth.density > 0)
    if not kept.any():
        fitting = np.where(prepared.worth.tokens <= budget_tokens, prepared.worth.density, -np.inf)
        best = int(np.argmax(fitting))
        if fitting[best] > -np.inf:
            kept[best] = True
    return kept


def _size(prepared: Prepared, kept: Mask) -> float:
    return float(prepared.worth.tokens[kept].sum())


def _repeats(documents: Sequence[Document]) -> frozenset[int]:
    """Chunks that an earlier one repeats word for word."""
    first: dict[str, int] = {}
    return frozenset(
        place for place, document in enumerate(documents) if first.setdefault(document.text.strip(), place) != place
    )


def _near_repeats(documents: Sequence[Document], ranked: Ranked) -> list[int]:
    """Chunks that a better one repeats in nearly the same words."""
    if len(documents) > _MAX_COMPARED:
        return []
    pairs = [document.all_pairs() for document in documents]
    kept: list[int] = []
    found: list[int] = []
    for place in np.argsort(-ranked.chunks, kind="stable").tolist():
        mine = pairs[place]
        if len(mine) >= 8 and _repeats_one(mine, [pairs[other] for other in kept]):
            found.append(place)
        else:
            kept.append(place)
    return found


def _repeats_one(mine: frozenset[tuple[str, str]], others: Sequence[frozenset[tuple[str, str]]]) -> bool:
    size = len(mine)
    # Who has so many of them has one at least of any so many: most texts are told apart by these few.
    few = list(islice(mine, size - ceil(_NEAR_DUPLICATE * size) + 1))
    for other in others:
        if min(size, len(other)) < _NEAR_DUPLICATE * max(size, len(other)) or other.isdisjoint(few):
            continue
        shared = len(mine & other)
        if shared >= _NEAR_DUPLICATE * (size + len(other) - shared):
            return True
    return False


def blend(question: Floats, earlier: Floats | None, earlier_weight: float = 0.4) -> Floats:
    """The vector of a follow-up question, with a part of the turn before it, L2-normalised."""
    if earlier is None:
        return question
    mixed = question + earlier_weight * earlier
    found: Floats = mixed / (float(np.linalg.norm(mixed)) or 1.0)
    return found


Embed = Callable[[Sequence[str]], Floats]
