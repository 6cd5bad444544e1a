"""Which vectors a prompt's strategies get: of the question, the chunks, old messages. Never waited for long.

Vectors are kept by text. Of texts without one only so many are embedded for a request as fit its time, by how long the
cache took lately: of more chunks those that words put first, of more messages none.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from services.compressor.choosing import FittedChunks, fitted_chunks, query_of
from services.compressor.documents import Documents
from services.compressor.embeddings import Embeddings, Vector
from services.compressor.history_relevance import text_to_embed
from services.compressor.prompt import SYSTEM, Prompt
from services.compressor.retrieval import Fitted, prepare, worth_embedding
from services.compressor.wording import is_korean

_ENGLISH_EMBEDDERS = ("all-MiniLM",)
"""Embedders that cannot read Korean: their vocabulary takes Hangul apart or drops it."""

_MOST_COUNTED_CHARS = 100_000
"""Of longer lists of chunks tokens are counted roughly while they are ranked."""


@dataclass(frozen=True, slots=True)
class Given:
    """The question's vector as the caller sent it; empty when it did not."""

    values: tuple[float, ...] = ()
    embedder: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """Vectors of one prompt, all by one embedder. ``failure`` says why there are none."""

    question: Vector | None = None
    earlier: Vector | None = None
    chunks: tuple[Vector | None, ...] = ()
    messages: Mapping[int, Vector] | None = None
    failure: str = ""
    compute_micros: int = 0


class PromptVectors:
    """Finds them."""

    def __init__(
        self, embeddings: Embeddings, memory: Documents, rough: Documents, fitted: Fitted, most_new: int
    ) -> None:
        """``most_new`` texts without a vector are embedded for one request; ``rough`` prepares very long prompts."""
        self._embeddings = embeddings
        self._memory = memory
        self._rough = rough
        self._fitted = fitted
        self._most_new = most_new

    async def find(self, prompt: Prompt, given: Given, *, chunks: bool, messages: bool) -> Found:
        """The vectors that are wanted; none at all where those of the chunks cannot be had."""
        query = query_of(prompt.messages)
        korean = is_korean(query.focus)
        if korean and given.embedder.startswith(_ENGLISH_EMBEDDERS):
            return Found(failure=f"{given.embedder} cannot read Korean")
        places, spent = await asyncio.to_thread(self._places, prompt) if chunks else ([], 0)
        texts = [prompt.chunks[at] for at in places]
        if chunks and query.earlier and query.earlier[0]:
            texts.append(query.earlier[0])
        if not given.values:
            texts.append(query.question)
        told = {
            message.index: text_to_embed(message)
            for message in prompt.messages
            if messages and message.role != SYSTEM and any(message.texts)
        }
        with_messages = bool(told) and self._fit(self._embeddings.missing([*texts, *told.values()]))
        if not (chunks or with_messages):
            return Found(failure="too many messages without a vector" if told else "", compute_micros=spent)
        if with_messages:
            texts.extend(told.values())
        found = await self._embeddings.embed(texts)
        spent += found.compute_micros
        wrong = found.failure
        if not wrong and not all(math.isfinite(value) for vector in found.vectors for value in vector):
            wrong = "a vector has values that are not finite numbers"
        if not wrong and korean and found.embedder.startswith(_ENGLISH_EMBEDDERS):
            wrong = f"{found.embedder} cannot read Korean"
        elif not wrong and given.values and found.embedder != given.embedder:
            wrong = f"the question's vector is of {given.embedder}, the chunks' of {found.embedder}"
        if wrong:
            return Found(failure=wrong, compute_micros=spent)
        by_text = dict(zip(texts, found.vectors, strict=True))
        question = given.values or by_text[query.question]
        if any(len(vector) != len(question) for vector in found.vectors):
            return Found(failure="the vectors differ in length", compute_micros=spent)
        result = Found(question, compute_micros=spent)
        if chunks:
            known = set(places)
            rows = tuple(by_text[text] if at in known else None for at, text in enumerate(prompt.chunks))
            result = replace(result, chunks=rows, earlier=by_text.get(query.earlier[0]) if query.earlier else None)
        if with_messages:
            result = replace(result, messages={index: by_text[text] for index, text in told.items()})
        return result

    def chunks(self, prompt: Prompt, found: Found) -> FittedChunks | None:
        """The chooser of the prompt's chunks; None when it has none."""
        if not prompt.chunks:
            return None
        memory, fitted = self._memory_for(prompt), self._fitted
        if found.question is None or not found.chunks:
            return fitted_chunks(prompt.messages, prompt.chunks, memory, fitted)
        rows = rows_of(found.chunks, len(found.question))
        return fitted_chunks(prompt.messages, prompt.chunks, memory, fitted, found.question, rows, found.earlier)

    def _memory_for(self, prompt: Prompt) -> Documents:
        return self._memory if sum(map(len, prompt.chunks)) <= _MOST_COUNTED_CHARS else self._rough

    def _places(self, prompt: Prompt) -> tuple[list[int], int]:
        """Of the chunks those that get a vector, and the CPU microseconds that finding them took."""
        began = time.thread_time_ns()
        return self._worth_a_vector(prompt), (time.thread_time_ns() - began) // 1000

    def _worth_a_vector(self, prompt: Prompt) -> list[int]:
        every = list(range(len(prompt.chunks)))
        new = self._embeddings.missing(prompt.chunks)
        if self._fit(new):
            return every
        by_words = prepare(
            self._memory_for(prompt).prepare(prompt.chunks), query_of(prompt.messages), None, self._fitted
        )
        texts = set(new)
        unseen = {at for at in every if prompt.chunks[at] in texts}
        wanted = [at for at in worth_embedding(by_words, self._most_new) if at in unseen]
        first = set(wanted[: self._embeddings.affordable([prompt.chunks[at] for at in wanted])])
        return [at for at in every if at in first or at not in unseen]

    def _fit(self, new: Sequence[str]) -> bool:
        """True if these texts, which have no vector, can be embedded in a request's time."""
        return len(new) <= self._most_new and self._embeddings.affordable(new) == len(new)


def rows_of(vectors: Sequence[Vector | None], size: int) -> list[Sequence[float]]:
    """A row per chunk; NaN for one without a vector."""
    none = [float("nan")] * size
    return [none if vector is None else vector for vector in vectors]


def rough_tokens(text: str) -> int:
    """About how many tokens a text has, for prompts so long that counting takes too long: a quarter of its bytes."""
    return -(-len(text.encode("utf-8", "surrogatepass")) // 4)
