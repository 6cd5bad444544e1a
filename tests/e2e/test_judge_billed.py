"""What the judge of near misses costs is on the receipt of the request that missed, by the services' own rights."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from contextlib import AsyncExitStack
from pathlib import Path

import books
from conftest import QUICK_RECONCILIATION, started
from opentelemetry.metrics import NoOpMeter
from tenth.inference.v1 import inference_pb2_grpc
from tenth.type.v1 import chat_pb2

from mesh.auth import Identity, Signer, read_key, set_identity
from mesh.channel import connect
from mesh.settings import MeshSettings
from mesh.testing import memory_telemetry
from services.cache.answers import Asked
from services.cache.embedding import Embedder
from services.cache.judging import ATTEMPTS_FROM, JudgeSettings, Judging
from services.cache.keys import ROLE_USER, Message, Question, exact_key
from services.cache.namespaces import NamespacePolicy
from services.cache.qdrant_edge import QdrantEdgeStore
from services.cache.store import Entry, Found, entry_id
from tenth_client import Client
from tests.integration.cache.test_cache_service import WordEncoder

MODEL = "gpt-4o"


async def test_the_judges_call_is_on_the_receipt_of_the_request_that_missed(tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(started(tmp_path, env=QUICK_RECONCILIATION))
        client = await stack.enter_async_context(Client(mesh.address("orchestrator"), mesh.api_key))
        request_id = str(uuid.uuid4())
        answer = await client.complete("How tall do poplars grow?", request_id=request_id)
        before = answer.receipt
        tenant = before.facts.tenant_id

        store = QdrantEdgeStore(tmp_path / "store", WordEncoder.dimension, 30.0)
        await store.open()
        stack.push_async_callback(store.close)
        embedder = Embedder(WordEncoder(), "words")
        stack.push_async_callback(embedder.close)
        # As the cache of this mesh would call: in its name, with its rights.
        signer = Signer(read_key(mesh.data_dir / "identity.key"), "cache")
        telemetry, _ = memory_telemetry("cache")
        channel = await stack.enter_async_context(connect(mesh.address("inference"), MeshSettings(), telemetry, signer))
        set_identity(Identity(tenant, "app"))
        judging = Judging(
            inference_pb2_grpc.InferenceServiceStub(channel), store, embedder,
            lambda tenant, namespace: NamespacePolicy(judge_model=MODEL), JudgeSettings(timeout_seconds=60), time.time,
            lambda: "unused", random.random, NoOpMeter("test"),
        )  # fmt: skip
        question = Question(tenant, "default", (Message(ROLE_USER, (("text", "Height of poplars?"),)),))
        completion = chat_pb2.Completion(
            message=chat_pb2.ChatMessage(parts=[chat_pb2.ContentPart(text="Up to 50 metres.")])
        )
        source = Entry(
            entry_id("k"), "k", "s", tenant, "default", "", "How tall do poplars grow?", "How tall do poplars grow?",
            completion.SerializeToString(), time.time(), time.time() + 600, "m", 1,
        )  # fmt: skip
        await store.put(source, [1.0] + [0.0] * (WordEncoder.dimension - 1))
        asked = Asked(question, exact_key(question), "Height of poplars?", request_id)
        assert judging.consider(asked, Found(source, 0.9), 0.8, 0.95)
        judge = asyncio.create_task(judging.run())
        await judging.idle()
        judge.cancel()
        await asyncio.gather(judge, return_exceptions=True)

        async with asyncio.timeout(60):
            while True:
                await books.quiet(mesh)
                (receipt,) = await books.final_receipts(client, [request_id])
                if receipt.actual_nano_usd != before.actual_nano_usd:
                    break
                await asyncio.sleep(0.25)
        (item,) = receipt.facts.overheads[len(before.facts.overheads) :]
        assert (item.kind, item.model) == ("classifier", MODEL)
        assert item.attempt >= ATTEMPTS_FROM
        assert item.cost_nano_usd > 0
        assert receipt.actual_nano_usd == before.actual_nano_usd + item.cost_nano_usd
        assert books.holds(receipt)
        assert not receipt.facts.failed
