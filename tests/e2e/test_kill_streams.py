"""kill -9 of the model's side and of the front door while answers stream: no stream hangs or lies, no spend is lost."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass

import books
import pytest
import pytest_asyncio
import spending
from conftest import QUICK_RECONCILIATION, started
from tenth.orchestrator.v1 import orchestrator_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2

from tenth_client import Client, TenthClientError
from tenth_client.up import Mesh

pytestmark = pytest.mark.asyncio(loop_scope="module")

STREAMS = 18
CONCURRENCY = 6
WORDS = 1_500
"""Long enough to be in the middle of several streams when a process dies."""
TYPED = {"UNREACHABLE", "STREAM_BROKEN", "PROVIDER_INCOMPLETE", "DRAINING", "INCOMPLETE_STREAM", "BUDGET_UNAVAILABLE"}
"""What the caller of a stream may be told when a process under it dies."""


@dataclass
class Stream:
    """What a caller saw of one stream."""

    read: int = 0
    """Words."""
    finished: orchestrator_pb2.CompletionFinished | None = None
    error: TenthClientError | None = None


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def own(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """A mesh of its own, which outlives both kills."""
    arguments = {"sandbox": ("--words", str(WORDS), "--max-tokens", str(WORDS))}
    folder = tmp_path_factory.mktemp("streams")
    async with started(folder, env=QUICK_RECONCILIATION, arguments=arguments) as mesh:
        yield mesh


@pytest.mark.parametrize("victim", ["inference", "orchestrator"])
async def test_kill_while_answers_stream(victim: str, own: Mesh) -> None:
    mesh = own
    async with Client(mesh.address("orchestrator"), mesh.api_key, retry_seconds=60) as client:
        before = await spending.rest(mesh)
        streams = await play_and_kill(mesh, client, victim)
        await mesh.wait_ready(victim)
        assert len(streams) == STREAMS, "every stream has an end"
        broken = {key: stream for key, stream in streams.items() if stream.error is not None}
        whole = {key: stream for key, stream in streams.items() if stream.finished is not None}
        assert set(broken) | set(whole) == set(streams)
        assert not set(broken) & set(whole), "a stream that finished has not failed"
        assert {stream.error.reason for stream in broken.values() if stream.error} <= TYPED
        assert broken, "the kill was in the middle of something"
        assert whole, "the mesh serves on"

        after = await spending.rest(mesh)
        answered = await books.final_receipts(client, list(whole))
        for receipt in answered:
            assert not receipt.facts.failed
            finished = whole[receipt.facts.request_id].finished
            assert finished is not None
            assert receipt.facts.usage.output_token_count == finished.usage.output_token_count == WORDS
        failed = await receipts_there(client, list(broken))
        for receipt in failed:
            assert receipt.facts.failed
            assert receipt.baseline_nano_usd == 0
            emitted = sum(item.usage.output_token_count for item in receipt.facts.overheads)
            assert emitted >= broken[receipt.facts.request_id].read, "what the caller read is paid for"
        everything = [*answered, *failed]
        assert all(books.holds(receipt) for receipt in everything)
        assert after.total.request_count - before.total.request_count == len(everything)
        assert after.total.failed_count - before.total.failed_count == len(failed)
        spent = after.total.actual_nano_usd - before.total.actual_nano_usd
        assert spent == sum(receipt.actual_nano_usd for receipt in everything)
        asked = after.provider["request_ids"][len(before.provider["request_ids"]) :]
        assert len(asked) == len(set(asked)), "no attempt reaches the provider twice"
        assert set(asked) <= books.attempts_on(everything), "what the provider was asked is on a receipt"
        served = spending.provider_tokens(before.provider, after.provider)
        booked = spending.receipt_tokens(answered)
        assert all(booked[name] <= served[name] for name in booked)


async def receipts_there(client: Client, request_ids: list[str]) -> list[receipt_pb2.Receipt]:
    """The receipts of streams that broke. One whose models were never asked may have died with its orchestrator."""
    found = []
    for request_id in request_ids:
        try:
            found.append(await client.receipt(request_id))
        except TenthClientError as error:
            if error.reason != "NOT_FOUND":
                raise
    assert all(receipt.state == receipt_pb2.RECEIPT_STATE_FINAL for receipt in found)
    return found


async def play_and_kill(mesh: Mesh, client: Client, victim: str) -> dict[str, Stream]:
    """Stream answers; the victim dies when several are in their middle."""
    streams: dict[str, Stream] = {}
    numbers = iter(range(STREAMS))
    killed = asyncio.Event()

    def in_the_middle() -> int:
        return sum(stream.read > 5 and not stream.finished and not stream.error for stream in streams.values())

    async def worker() -> None:
        for number in numbers:
            request_id = str(uuid.uuid4())
            stream = streams[request_id] = Stream()
            policy = chat_pb2.RequestPolicy(cache_mode=chat_pb2.CACHE_MODE_OFF)
            sampling = chat_pb2.SamplingParameters(max_output_tokens=WORDS)
            try:
                async for event in client.stream(
                    f"Summarise the history of exhibit {number} of the museum.",
                    request_id=request_id,
                    policy=policy,
                    sampling=sampling,
                    timeout=120,
                ):
                    stream.read += len(event.text.split())
                    stream.finished = event.finished or stream.finished
                    if not killed.is_set() and number >= CONCURRENCY // 2 and in_the_middle() >= 2:
                        killed.set()
                        mesh.kill(victim)
            except TenthClientError as error:
                stream.error = error

    begun = time.monotonic()
    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
    assert killed.is_set()
    assert time.monotonic() - begun < 110, "no stream waits for its deadline"
    return streams
