"""The systems that are compared: the article's default, and this project's cache as it ships, in a mode.

``Ours`` runs the cache's own code on its own embedded store: what the servicer's lookup does, less the wire and the
flights. Its embedder is the shipped one, whose vectors are made beforehand.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import numpy as np
from tenth.type.v1 import chat_pb2

from bench.cache_counts import Asked, Decided
from bench.cache_sets import Pair, Row
from bench.cache_vectors import KeptEncoder, batches
from bench.progress import blocks
from services.cache.answers import AnswerCache
from services.cache.choice import Verdict
from services.cache.embedding import Embedder
from services.cache.keys import ROLE_USER, Message, Question, embedded_text
from services.cache.namespaces import Mode, NamespacePolicy, Namespaces
from services.cache.policy import CachePolicy, bypass_reason
from services.cache.qdrant_edge import QdrantEdgeStore
from services.cache.store import Entry
from services.cache.verifier import WEIGHTS, load_verifier

ARTICLE_MODEL = "all-MiniLM-L6-v2"
ARTICLE_COSINE = 0.95
_TENANT, _NAMESPACE, _USER = "bench", "bench", "bench"
_NOW = 1_750_000_000.0
"""The cache's clock stands still: nothing expires while a slow machine measures."""
_BLOCK = 512
_AT_ONCE = 32

T = TypeVar("T")
R = TypeVar("R")


class System(Protocol):
    """Something that serves stored answers."""

    name: str

    async def prepare(self, set_name: str, texts: Iterable[str]) -> None:
        """Embed the texts of a set, so that what follows embeds nothing."""

    async def stream(self, warm: Sequence[Row], asked: Sequence[Row]) -> list[Asked]:
        """Store the warm rows, then ask the others of what is stored."""

    async def pairs(self, pairs: Sequence[Pair]) -> list[Decided]:
        """Each pair by itself: one text stored, the other asked."""


class Article:
    """The well-known default: all-MiniLM-L6-v2 in fp32, the nearest stored question served from cosine 0.95 on."""

    name = "article"

    def __init__(self, encoder: KeptEncoder) -> None:
        self._encoder = encoder

    async def prepare(self, set_name: str, texts: Iterable[str]) -> None:
        """Embed the texts as they are."""
        self._encoder.load(set_name)
        for batch in batches(texts, f"{set_name}: {ARTICLE_MODEL}"):
            self._encoder.encode(batch)
        self._encoder.save(set_name)

    async def stream(self, warm: Sequence[Row], asked: Sequence[Row]) -> list[Asked]:
        """No gate, no guards."""
        stored = self._encoder.encode([row.text for row in warm])
        answers = {row.answer for row in warm}
        done: list[Asked] = []
        for start in range(0, len(asked), _BLOCK):
            block = asked[start : start + _BLOCK]
            cosines = self._encoder.encode([row.text for row in block]) @ stored.T
            for row, nearest, cosine in zip(block, cosines.argmax(axis=1), cosines.max(axis=1), strict=True):
                served = bool(cosine >= ARTICLE_COSINE)
                right = warm[nearest].answer == row.answer
                done.append(
                    Asked(
                        served,
                        right=served and right,
                        attainable=not row.out_of_scope and row.answer in answers,
                        out_of_scope=row.out_of_scope,
                        score=float(cosine),
                        best_right=right,
                    )
                )
        return done

    async def pairs(self, pairs: Sequence[Pair]) -> list[Decided]:
        """The cosine of the two alone."""
        stored = self._encoder.encode([pair.stored for pair in pairs])
        asked = self._encoder.encode([pair.asked for pair in pairs])
        cosines = np.einsum("ij,ij->i", stored, asked)
        return [
            Decided(pair.label, bool(cosine >= ARTICLE_COSINE), pair.kind)
            for pair, cosine in zip(pairs, cosines, strict=True)
        ]


@dataclass(frozen=True, slots=True)
class _Reply:
    """What the cache did with one question."""

    answer: str | None
    exact: bool
    bypassed: bool
    best: tuple[float, str] | None
    """Score and answer of the candidate that it is surest of, served or not."""


class Ours:
    """The shipped cache in one mode."""

    def __init__(self, mode: Mode, embedder: Embedder, encoder: KeptEncoder) -> None:
        """``encoder`` is the one inside ``embedder``."""
        self.name = f"ours_{mode.value}"
        self._mode = mode
        self._embedder = embedder
        self._encoder = encoder

    async def prepare(self, set_name: str, texts: Iterable[str]) -> None:
        """Embed the texts in the embedder's own form."""
        self._encoder.load(set_name)
        asked = (embedded_text(_question(_TENANT, text)) for text in texts)
        for batch in batches(asked, f"{set_name}: {self._embedder.version}"):
            await self._embedder.embed(batch)
        self._encoder.save(set_name)

    async def stream(self, warm: Sequence[Row], asked: Sequence[Row]) -> list[Asked]:
        """One tenant, one user; what the gate bypasses is neither stored nor looked up."""
        done: list[Asked] = []
        async with _open_cache(self._mode, self._embedder) as cache:
            answers = {row.answer for row in warm if await _store(cache, _question(_TENANT, row.text), row.answer)}
            questions = [_question(_TENANT, row.text) for row in asked]
            replies = await _together(questions, lambda question: _ask(cache, question), self.name)
            for row, reply in zip(asked, replies, strict=True):
                done.append(
                    Asked(
                        reply.answer is not None,
                        right=reply.answer == row.answer,
                        attainable=not row.out_of_scope and row.answer in answers,
                        out_of_scope=row.out_of_scope,
                        bypassed=reply.bypassed,
                        exact=reply.exact,
                        score=reply.best[0] if reply.best else None,
                        best_right=reply.best is not None and reply.best[1] == row.answer,
                    )
                )
        return done

    async def pairs(self, pairs: Sequence[Pair]) -> list[Decided]:
        """A tenant for each pair, so that each meets its own stored text only, by the cache's own isolation."""
        async with _open_cache(self._mode, self._embedder) as cache:

            async def decide(numbered: tuple[int, Pair]) -> Decided:
                number, pair = numbered
                tenant = f"{_TENANT}-{number}"
                stored = await _store(cache, _question(tenant, pair.stored), "stored")
                reply = await _ask(cache, _question(tenant, pair.asked))
                bypassed = reply.bypassed or not stored
                return Decided(pair.label, reply.answer is not None, pair.kind, bypassed=bypassed)

            return await _together(list(enumerate(pairs)), decide, self.name)


def build_cache(mode: Mode, store: QdrantEdgeStore, embedder: Embedder) -> AnswerCache:
    """The cache as shipped, in a mode, with one user's answers shared at once and nothing evicted."""
    rules = NamespacePolicy(mode, sharing_user_count=1)
    return AnswerCache(
        store,
        embedder,
        CachePolicy(),
        lambda: _NOW,
        namespaces=Namespaces(rules),
        verifier=load_verifier(WEIGHTS, embedder.version),
        error_factor=lambda *_: 1.0,
        max_entry_count=1_000_000,
        memory_entry_count=10_000,
        memory_bytes=64_000_000,
        memory_seconds=0.0,
    )


async def _together(items: Sequence[T], do: Callable[[T], Awaitable[R]], what: str) -> list[R]:
    """Some at a time, as a service has it: the store's thread then never waits for this one."""
    done: list[R] = []
    for block in blocks(items, _AT_ONCE, what):
        done += await asyncio.gather(*map(do, block))
    return done


@asynccontextmanager
async def _open_cache(mode: Mode, embedder: Embedder) -> AsyncIterator[AnswerCache]:
    with tempfile.TemporaryDirectory(prefix="tenth-bench-") as folder:
        # The timeout is no part of what is measured here, and a slow disk must not turn a hit into an error.
        store = QdrantEdgeStore(Path(folder) / "cache", embedder.dimension, timeout_seconds=60.0)
        try:
            await store.open()
            yield build_cache(mode, store, embedder)
        finally:
            await store.close()


def _question(tenant: str, text: str) -> Question:
    return Question(tenant, _NAMESPACE, (Message(ROLE_USER, (("text", text),)),), user_id=_USER)


async def _store(cache: AnswerCache, question: Question, answer: str) -> bool:
    """Store as the servicer does; False when the gate keeps the question out."""
    if bypass_reason(question, CachePolicy()) is not None:
        return False
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT, parts=[chat_pb2.ContentPart(text=answer)])
    completion = chat_pb2.Completion(
        message=message, finish_reason=chat_pb2.FINISH_REASON_STOP, model="bench", tier=chat_pb2.TIER_COMPLEX
    )
    await cache.keep(cache.ask(question), completion.SerializeToString(), "bench", completion.tier, (), None)
    return True


async def _ask(cache: AnswerCache, question: Question) -> _Reply:
    """Look up as the servicer does."""
    if bypass_reason(question, CachePolicy()) is not None:
        return _Reply(None, exact=False, bypassed=True, best=None)
    outcome = await cache.find(cache.ask(question), count_hit=False)
    answer = _text(outcome.found.entry) if outcome.found is not None else None
    best: tuple[float, str] | None = None
    if outcome.exact and answer is not None:
        best = (1.0, answer)
    elif outcome.verdict is not None and _depends_on_threshold(outcome.verdict):
        # Candidates come without their answers.
        entry = await cache.entry(outcome.verdict.found.entry.entry_id, question.tenant_id)
        best = (outcome.verdict.probability, _text(entry)) if entry is not None else None
    return _Reply(answer, exact=outcome.exact, bypassed=False, best=best)


def _depends_on_threshold(verdict: Verdict) -> bool:
    """False when something other than the threshold refuses the candidate."""
    refused = [line for line in verdict.reasons if line.startswith("refused")]
    return all(line.startswith("refused: probability") for line in refused)


def _text(entry: Entry) -> str:
    completion = chat_pb2.Completion.FromString(entry.completion)
    return "".join(part.text for part in completion.message.parts)
