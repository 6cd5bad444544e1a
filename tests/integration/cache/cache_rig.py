"""A cache behind a socket with everything that reports and the judge touch, and a judge that says what it is told."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenth.cache.v1 import cache_pb2, cache_pb2_grpc
from tenth.inference.v1 import inference_pb2, inference_pb2_grpc

from mesh.errors import TenthError
from mesh.testing import dial, memory_metrics, metric_points, running
from services.cache.answers import AnswerCache
from services.cache.embedding import Embedder
from services.cache.feedback import Evidence
from services.cache.feedback_journal import FeedbackJournal
from services.cache.flights import FlightBoard
from services.cache.judging import JudgeSettings, Judging
from services.cache.namespaces import NamespacePolicy, Namespaces, Rules
from services.cache.policy import CachePolicy
from services.cache.qdrant_edge import QdrantEdgeStore
from services.cache.reports import Reports
from services.cache.servicer import CacheServicer, piece_size
from tests.cache_verifier import VERIFIER
from tests.integration.cache.test_cache_service import NAME, Lookup, Store, WordEncoder, answer, ask

REPORT = cache_pb2.ReportAnswerQualityRequest


@dataclass
class Rig:
    """A cache behind a socket with what it is made of, and a judge to talk to."""

    folder: Path
    stack: AsyncExitStack
    policies: dict[str, NamespacePolicy] = field(default_factory=dict)
    now: float = 1_000_000.0
    inference: Inference = field(init=False)
    stub: Any = field(init=False)
    evidence: Evidence = field(init=False)
    journal: FeedbackJournal = field(init=False)
    answers: AnswerCache = field(init=False)
    judging: Judging = field(init=False)
    store: QdrantEdgeStore = field(init=False)
    metrics: Any = field(init=False)

    def _rules(self) -> Rules:
        return Rules({("*", name): policy for name, policy in self.policies.items()})

    async def start(self) -> None:
        encoder, ids = WordEncoder(), itertools.count()
        embedder = Embedder(encoder, "words")
        self.stack.push_async_callback(embedder.close)
        self.store = QdrantEdgeStore(self.folder / "cache", encoder.dimension, 5.0)
        await self.store.open()
        self.stack.push_async_callback(self.store.close)
        policy = CachePolicy()
        self.evidence = Evidence()
        self.answers = AnswerCache(
            self.store, embedder, policy, lambda: self.now,
            namespaces=Namespaces(NamespacePolicy(sharing_user_count=1), self._rules),
            verifier=VERIFIER, error_factor=self.evidence.error_factor, max_entry_count=1000, memory_entry_count=10,
            memory_bytes=10**6, memory_seconds=0,
        )  # fmt: skip
        self.journal = FeedbackJournal(self.folder, self.evidence)
        await self.journal.open()
        self.stack.push_async_callback(self.journal.close)
        telemetry, self.metrics = memory_metrics("cache")
        self.stack.callback(telemetry.close)

        reports = Reports(self.answers, self.evidence, self.journal, self.answers.namespaces.of, telemetry.meter)
        board: Any = FlightBoard(30.0, lambda: f"lease-{next(ids)}", piece_size)
        self.stack.callback(board.close)
        servicer = CacheServicer(self.answers, board, policy, self.store.name, reports)
        register = cache_pb2_grpc.add_CacheServiceServicer_to_server
        address = await self.stack.enter_async_context(
            running(register, servicer, NAME, self.folder, telemetry=telemetry)
        )
        channel = dial(address)
        self.stack.push_async_callback(channel.close)
        self.stub = cache_pb2_grpc.CacheServiceStub(channel)
        # The other methods are gRPC's own refusals.
        self.inference = type("Played", (Inference, inference_pb2_grpc.InferenceServiceServicer), {})()
        judge = inference_pb2_grpc.add_InferenceServiceServicer_to_server
        name = "tenth.inference.v1.InferenceService"
        address = await self.stack.enter_async_context(running(judge, self.inference, name, self.folder))
        channel = dial(address)
        self.stack.push_async_callback(channel.close)
        self.judging = Judging(
            inference_pb2_grpc.InferenceServiceStub(channel), self.store, embedder, self.answers.namespaces.of,
            JudgeSettings(per_minute=60.0, queue_count=3), lambda: self.now, lambda: "fresh", lambda: 0.5,
            telemetry.meter,
        )  # fmt: skip

    def judgements(self) -> dict[str, int]:
        points = metric_points(self.metrics, "tenth.cache.judgements")
        return {str(dict(labels)["tenth.cache.outcome"]): point.value for labels, point in points.items()}

    async def put(self, text: str, **fields: Any) -> str:
        request = ask(text, **fields)
        looked = await self.stub.LookupCompletion(Lookup(request=request))
        stored = await self.stub.StoreCompletion(
            Store(lease_id=looked.lease.lease_id, request=request, completion=answer())
        )
        assert stored.entry_id
        return str(stored.entry_id)

    async def look(self, text: str, **fields: Any) -> Any:
        return await self.stub.LookupCompletion(Lookup(request=ask(text, **fields)))

    async def report(self, entry: str, **fields: Any) -> Any:
        return await self.stub.ReportAnswerQuality(REPORT(entry_id=entry, **fields))

    async def restore(self, namespace: str = "default") -> Any:
        request = cache_pb2.RestoreNamespaceRequest(namespace=namespace)
        return (await self.stub.RestoreNamespace(request)).namespace


class Inference:
    """A model that says what it is told to say, when it is told to."""

    def __init__(self) -> None:
        self.says: str | TenthError = "yes"
        self.seen: list[inference_pb2.GenerateTextRequest] = []
        self.asked = asyncio.Event()
        self.go = asyncio.Event()
        self.go.set()

    async def GenerateText(self, request: Any, context: Any) -> inference_pb2.GenerateTextResponse:
        self.seen.append(request)
        self.asked.set()
        await self.go.wait()
        if isinstance(self.says, TenthError):
            raise self.says
        return inference_pb2.GenerateTextResponse(completion=answer(self.says))
