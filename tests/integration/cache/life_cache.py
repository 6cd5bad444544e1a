"""A cache on the real embedded store, asked without a socket, with an encoder whose vectors a test gives."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from tenth.cache.v1 import cache_pb2
from tenth.type.v1 import chat_pb2

from mesh.auth import set_identity
from mesh.testing import TEST_IDENTITY, memory_telemetry
from services.cache.answers import AnswerCache
from services.cache.embedding import Embedder, Vector
from services.cache.feedback import Evidence
from services.cache.feedback_journal import FeedbackJournal
from services.cache.flights import FlightBoard
from services.cache.namespaces import NamespacePolicy, Namespaces, Rules, parse_namespaces
from services.cache.policy import CachePolicy
from services.cache.qdrant_edge import QdrantEdgeStore
from services.cache.rates import TokenBuckets
from services.cache.reports import Reports
from services.cache.servicer import Board, CacheServicer, piece_size
from services.cache.store import Entry
from tests.cache_verifier import VERIFIER

DIMENSION = 32
START = 1_000_000.0


@dataclass
class GivenEncoder:
    """Texts get the vectors that a test says; all others a direction of their own, the same each time."""

    given: dict[str, Sequence[float]] = field(default_factory=dict)
    dimension: int = DIMENSION
    precision: str = "fp32"

    def encode(self, texts: Sequence[str]) -> Vector:
        rows = np.zeros((len(texts), self.dimension), np.float32)
        for row, text in zip(rows, texts, strict=True):
            known = self.given.get(text)
            if known is None:
                row[:] = np.random.default_rng(list(text.encode())).standard_normal(self.dimension)
            else:
                row[: len(known)] = known
        return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)

    def fits(self, text: str) -> bool:
        return len(text) < 400

    def reads_korean(self) -> bool:
        return True


class SameEncoder(GivenEncoder):
    """Every text has the same vector: whatever keeps questions apart, it is not similarity."""

    def encode(self, texts: Sequence[str]) -> Vector:
        rows = np.zeros((len(texts), self.dimension), np.float32)
        rows[:, 0] = 1
        return rows


@dataclass
class Cache:
    """The parts, and RPCs as one caller or another."""

    servicer: CacheServicer
    answers: AnswerCache
    store: QdrantEdgeStore
    encoder: GivenEncoder
    now: list[float]

    async def lookup(
        self, request: chat_pb2.CompletionRequest, tenant: str = "acme", **fields: Any
    ) -> cache_pb2.LookupCompletionResponse:
        """A lookup of a tenant."""
        set_identity(replace(TEST_IDENTITY, tenant_id=tenant))
        asked = cache_pb2.LookupCompletionRequest(request=request, **fields)
        return await self.servicer.LookupCompletion(asked, None)

    async def text(self, request: chat_pb2.CompletionRequest, tenant: str = "acme") -> str:
        """The text of the stored answer that a request gets; empty when it gets none."""
        found = await self.lookup(request, tenant)
        if found.HasField("lease"):
            await self.servicer.ReleaseLease(cache_pb2.ReleaseLeaseRequest(lease_id=found.lease.lease_id), None)
        return "".join(part.text for part in found.hit.completion.message.parts)

    async def put(
        self,
        request: chat_pb2.CompletionRequest,
        completion: chat_pb2.Completion | str = "Press the button.",
        tenant: str = "acme",
        **fields: Any,
    ) -> cache_pb2.StoreCompletionResponse:
        """Store an answer."""
        set_identity(replace(TEST_IDENTITY, tenant_id=tenant))
        made = answer(completion) if isinstance(completion, str) else completion
        return await self.servicer.StoreCompletion(
            cache_pb2.StoreCompletionRequest(request=request, completion=made, **fields), None
        )

    async def everything(self) -> list[Entry]:
        """All stored entries."""
        return [entry for entry, _ in (await self.store.scroll((), 10_000))[0]]


def ask(text: str, user: str = "", **fields: Any) -> chat_pb2.CompletionRequest:
    """A question."""
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=text)])
    return chat_pb2.CompletionRequest(messages=[message], user_id=user, **fields)


def answer(text: str, **fields: Any) -> chat_pb2.Completion:
    """A whole answer."""
    values: dict[str, Any] = {
        "message": chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT, parts=[chat_pb2.ContentPart(text=text)]),
        "finish_reason": chat_pb2.FINISH_REASON_STOP,
        "model": "m",
        "tier": chat_pb2.TIER_MEDIUM,
        **fields,
    }
    return chat_pb2.Completion(**values)


@asynccontextmanager
async def running_cache(
    folder: Path,
    encoder: GivenEncoder | None = None,
    rules: str = "",
    defaults: NamespacePolicy | None = None,
    clock: Callable[[], float] | None = None,
    **bounds: Any,
) -> AsyncIterator[Cache]:
    """A cache in a folder; ``rules`` is the text of a namespaces file."""
    encoder, now, ids = encoder or GivenEncoder(), [START], itertools.count()
    defaults = defaults or NamespacePolicy(ttl_seconds=100.0)
    parsed = parse_namespaces(rules, "namespaces.yaml", defaults) if rules else Rules()
    embedder = Embedder(encoder, "given")
    store = QdrantEdgeStore(folder / "cache", encoder.dimension, 30.0)
    await store.open()
    policy, evidence = CachePolicy(), Evidence()
    answers = AnswerCache(
        store,
        embedder,
        policy,
        clock or (lambda: now[0]),
        namespaces=Namespaces(defaults, lambda: parsed),
        verifier=VERIFIER,
        error_factor=evidence.error_factor,
        **{"max_entry_count": 1000, "memory_entry_count": 100, "memory_bytes": 10**6, "memory_seconds": 0, **bounds},
    )
    board: Board = FlightBoard(30.0, lambda: f"lease-{next(ids)}", piece_size)
    journal = FeedbackJournal(folder, evidence)
    await journal.open()
    reports = Reports(answers, evidence, journal, answers.namespaces.of, memory_telemetry("cache")[0].meter)
    servicer = CacheServicer(answers, board, policy, store.name, reports, rates=TokenBuckets(lambda: now[0]))
    try:
        yield Cache(servicer, answers, store, encoder, now)
    finally:
        board.close()
        await journal.close()
        await store.close()
        await embedder.close()
