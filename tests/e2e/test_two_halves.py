"""Requests in two halves through real services, as a worker of the batch service makes them, by its own rights."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator

import books
import pytest
import pytest_asyncio
from tenth.inference.v1 import inference_pb2, inference_pb2_grpc
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from tenth.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.auth import Identity, Signer, read_key, set_identity
from mesh.channel import MeshChannel, connect
from mesh.settings import MeshSettings
from mesh.testing import memory_telemetry
from tenth_client import Client
from tenth_client.up import Mesh

pb = orchestrator_pb2
pytestmark = pytest.mark.asyncio(loop_scope="session")

MODEL = "gpt-4o"
SERVICES = ("orchestrator", "inference", "ledger")


class Worker:
    """The halves, inference and the ledger, as the batch service reaches them."""

    def __init__(self, orchestrator: MeshChannel, inference: MeshChannel, ledger: MeshChannel) -> None:
        self.halves = orchestrator_pb2_grpc.CompletionHalvesServiceStub(orchestrator)
        self.inference = inference_pb2_grpc.InferenceServiceStub(inference)
        self.ledger = ledger_pb2_grpc.LedgerServiceStub(ledger)

    async def prepare(self, *requests: chat_pb2.CompletionRequest) -> list[pb.PrepareOutcome]:
        """The first half."""
        call = pb.PrepareCompletionsRequest()
        for request in requests:
            call.items.add(request=request, batch_prices=True).reservation_ttl.FromSeconds(7 * 86_400)
        return list((await self.halves.PrepareCompletions(call, timeout=60)).outcomes)

    async def finish(self, *items: pb.CompletionToFinish) -> list[pb.FinishOutcome]:
        """The second half."""
        return list(
            (await self.halves.FinishCompletions(pb.FinishCompletionsRequest(items=items), timeout=60)).outcomes
        )

    async def ran_at_the_provider(
        self, identity: Identity, generation: inference_pb2.GenerateTextRequest, answer: chat_pb2.Completion
    ) -> None:
        """Tell the ledger of an attempt in a provider's batch."""
        call = ledger_pb2.RecordAttemptsRequest()
        for kind in (ledger_pb2.ATTEMPT_KIND_STARTED, ledger_pb2.ATTEMPT_KIND_FINISHED):
            event = call.events.add(
                request_id=generation.request_id,
                attempt=generation.attempt,
                kind=kind,
                tenant_id=identity.tenant_id,
                model=generation.model,
                usage=answer.usage,
                reservation_id=generation.reservation_id,
                price_book_version=generation.price_book_version,
                purpose="answer",
            )
            event.event_time.FromNanoseconds(time.time_ns())
        await self.ledger.RecordAttempts(call, timeout=10)


@pytest_asyncio.fixture(loop_scope="session")
async def worker(mesh: Mesh) -> AsyncIterator[Worker]:
    telemetry, _ = memory_telemetry("batch")
    signer = Signer(read_key(mesh.data_dir / "identity.key"), "batch")
    channels = [
        connect(mesh.address(name), MeshSettings(), telemetry, signer)
        for name in ("orchestrator", "inference", "ledger")
    ]
    try:
        yield Worker(*channels)
    finally:
        for channel in channels:
            await channel.close()
        telemetry.close()


def ask(text: str) -> chat_pb2.CompletionRequest:
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=text)])
    policy = chat_pb2.RequestPolicy(model=MODEL)
    return chat_pb2.CompletionRequest(request_id=str(uuid.uuid4()), messages=[message], policy=policy)


async def test_the_books_hold_over_both_halves(mesh: Mesh, client: Client, worker: Worker) -> None:
    word = uuid.uuid4().hex
    tenant = (await client.complete("Which tenant is it?")).receipt.facts.tenant_id
    identity = Identity(tenant, "local", may_assert_user=True)
    set_identity(identity)
    at_provider, here, failed, like = (ask(f"What is {word} {name}?") for name in ("one", "two", "three", "one"))
    prepared = [outcome.prepared for outcome in await worker.prepare(at_provider, here, failed)]
    assert all(each.generation.model == MODEL and each.has_batch_price for each in prepared)
    assert all(each.reserved_nano_usd >= each.expected_nano_usd > 0 for each in prepared)
    assert (await books.status(mesh)).open_reservation_count >= 3

    # One as if in the provider's batch, which inference does not record; one through inference.
    generated = await worker.inference.GenerateText(prepared[1].generation, timeout=30)
    answer = inference_pb2.GenerateTextResponse(completion=generated.completion)
    await worker.ran_at_the_provider(identity, prepared[0].generation, answer.completion)
    items = [
        pb.CompletionToFinish(request=at_provider, generated=answer, batch=True, lane="openai"),
        pb.CompletionToFinish(request=here, generated=generated, lane="online"),
        pb.CompletionToFinish(request=failed, failed=pb.HalfError(reason="PROVIDER_BATCH_EXPIRED"), lane="openai"),
    ]
    for item, first in zip(items, prepared, strict=True):
        item.state, item.attempt = first.state, first.generation.attempt
    outcomes = await worker.finish(*items)
    assert [outcome.WhichOneof("outcome") for outcome in outcomes] == ["finished"] * 3

    # The like question is a hit now, and costs nothing but the embedding.
    [hit] = await worker.prepare(like)
    for _ in range(20):  # A cache that was late with storing it, beside other work, has it a moment later.
        if hit.HasField("answered"):
            break
        await asyncio.sleep(0.25)
        [hit] = await worker.prepare(like)
    assert hit.answered.completion.message == answer.completion.message
    assert hit.answered.receipt.facts.cache_hit

    requests = (at_provider, here, failed, like)
    receipts = await books.final_receipts(client, [each.request_id for each in requests])
    assert all(books.holds(receipt) for receipt in receipts)
    batch, online, lost, _ = receipts
    saved = {item.layer: item.saving_nano_usd for item in batch.savings}[receipt_pb2.LAYER_BATCH]
    assert saved > 0
    assert (batch.facts.batch, online.facts.batch, lost.facts.failed) == (True, False, True)
    assert batch.actual_nano_usd < online.actual_nano_usd
    assert lost.actual_nano_usd == lost.overhead_nano_usd
    status = await books.quiet(mesh)
    assert status.identity_violation_count == 0
