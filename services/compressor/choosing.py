"""The chunks of one prompt, to be chosen from by mode or by budget. Pure but for the memory of prepared chunks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from services.compressor.documents import Documents
from services.compressor.modes import Mode
from services.compressor.prompt import USER, Message
from services.compressor.ranking import Floats, Level, Query, Vectors
from services.compressor.retrieval import (
    BudgetTooSmallError,
    Fitted,
    Harshness,
    Prepared,
    Selection,
    blend,
    by_budget,
    by_mode,
    mask,
    prepare,
    selection,
)

_METHODS = {
    Level.WORDS: "BM25",
    Level.CHUNKS: "embedding similarity and words",
    Level.SENTENCES: "embedding similarity of sentences and words",
}
_HARSHNESS = {
    Mode.SAFE: Harshness.SAFE,
    Mode.BALANCED: Harshness.BALANCED,
    Mode.AGGRESSIVE: Harshness.AGGRESSIVE,
}
_EARLIER_TURNS = 2


@dataclass(frozen=True, slots=True)
class Chosen:
    """What stays: texts by their place among the prompt's chunks, in order; and by what measure."""

    places: tuple[int, ...]
    texts: tuple[str, ...]
    method: str


class FittedChunks:
    """Chooses by fitted weights. Nothing is ranked before it is asked for."""

    def __init__(self, rank: Callable[[], Prepared], fitted: Fitted) -> None:
        """``rank`` is called once, when the first choice is made."""
        self._rank = rank
        self._fitted = fitted
        self._prepared: Prepared | None = None

    def by_mode(self, mode: Mode) -> Chosen:
        """What a mode leaves; ``off`` leaves what ``safe`` does."""
        return _chosen(by_mode(self._ranked(), _HARSHNESS.get(mode, Harshness.SAFE), self._fitted))

    def by_budget(self, budget_tokens: int) -> Chosen:
        """The most that fits about so many tokens; what must stay, where that is more."""
        prepared = self._ranked()
        try:
            return _chosen(by_budget(prepared, max(0, budget_tokens)))
        except BudgetTooSmallError:
            return _chosen(selection(prepared, mask(prepared, float("inf")), cut_records=True))

    def _ranked(self) -> Prepared:
        if self._prepared is None:
            self._prepared = self._rank()
        return self._prepared


def fitted_chunks(
    messages: Sequence[Message],
    chunks: Sequence[str],
    memory: Documents,
    fitted: Fitted,
    question: Sequence[float] | None = None,
    vectors: Sequence[Sequence[float]] = (),
    earlier: Sequence[float] | None = None,
) -> FittedChunks:
    """The chooser of a prompt. ``vectors`` are the chunks', ``earlier`` is the vector of the user message before."""

    def rank() -> Prepared:
        found: Vectors | None = None
        if question is not None:
            before: Floats | None = None if earlier is None else np.asarray(earlier, float)
            found = Vectors(blend(np.asarray(question, float), before), np.asarray(vectors, float))
        return prepare(memory.prepare(chunks), query_of(messages), found, fitted)

    return FittedChunks(rank, fitted)


def query_of(messages: Sequence[Message]) -> Query:
    """The question, and the user messages before it, newest first."""
    asked = ["\n".join(message.texts) for message in reversed(messages) if message.role == USER]
    return Query(asked[0] if asked else "", tuple(asked[1 : 1 + _EARLIER_TURNS]))


def _chosen(found: Selection) -> Chosen:
    return Chosen(
        tuple(chunk.place for chunk in found.chunks),
        tuple(chunk.text for chunk in found.chunks),
        _METHODS[found.level],
    )
