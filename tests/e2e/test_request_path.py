"""Requests through the whole mesh: a miss, hits, a stream, failures, their receipts and their traces."""

from __future__ import annotations

import asyncio
import random
import time
import uuid

import books
import httpx
import pytest
from tenth.orchestrator.v1 import orchestrator_pb2
from tenth.trace.v1 import trace_pb2, trace_pb2_grpc
from tenth.type.v1 import chat_pb2, receipt_pb2

from tenth_client import Client, TenthClientError
from tenth_client.rpc import Rpc
from tenth_client.up import Mesh

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def trace_of(mesh: Mesh, trace_id: str, wanted: set[tuple[str, str]]) -> list[trace_pb2.Span]:
    """The spans of a trace once every wanted edge (caller, callee) has arrived; parts come by themselves."""
    until = time.monotonic() + 20
    spans: list[trace_pb2.Span] = []
    while time.monotonic() < until:
        async with Rpc(mesh.connection) as rpc:
            try:
                reply = await rpc.call(
                    "collector",
                    trace_pb2_grpc.TraceServiceStub,
                    "GetTrace",
                    trace_pb2.GetTraceRequest(trace_id=trace_id),
                )
                spans = list(reply.spans)
            except TenthClientError as error:
                if error.reason != "NOT_FOUND":
                    raise
        # The root comes last: its own process sends it when the answer has gone.
        if wanted <= edges(spans) and any(not span.parent_span_id for span in spans):
            return spans
        await asyncio.sleep(0.2)
    raise AssertionError(f"{wanted - edges(spans)} missing in {[(span.service, span.name) for span in spans]}")


def edges(spans: list[trace_pb2.Span]) -> set[tuple[str, str]]:
    """Which service called which, as (caller, callee)."""
    by_id = {span.span_id: span for span in spans}
    return {
        (by_id[span.parent_span_id].service, span.service)
        for span in spans
        if span.parent_span_id in by_id and by_id[span.parent_span_id].service != span.service
    }


async def test_a_miss_goes_through_five_layers(mesh: Mesh, client: Client) -> None:
    answer = await client.complete(f"Explain in two sentences how a heat pump works, variant {uuid.uuid4().hex[:8]}.")
    facts = answer.receipt.facts
    assert answer.text
    assert not facts.cache_hit
    assert facts.baseline_model == "claude-opus-4-7"
    assert books.holds(answer.receipt)
    assert answer.receipt.baseline_nano_usd > 0
    names = [hop.name for hop in facts.hops]
    assert names == ["cache", "router", "compressor", "ledger", "inference"]
    assert all(hop.outcome == receipt_pb2.HOP_OUTCOME_OK for hop in facts.hops), facts.hops

    hops = {("orchestrator", other) for other in ("cache", "router", "compressor", "ledger", "inference")}
    spans = await trace_of(mesh, facts.trace_id, hops)
    root = next(span for span in spans if not span.parent_span_id or span.name.endswith("/GenerateCompletion"))
    assert root.attributes["tenth.request_id"] == answer.request_id
    assert int(root.attributes["tenth.receipt.actual_nano_usd"]) == answer.receipt.actual_nano_usd

    (final,) = await books.final_receipts(client, [answer.request_id])
    assert final.actual_nano_usd == answer.receipt.actual_nano_usd


async def test_the_same_question_costs_nothing(mesh: Mesh, client: Client) -> None:
    question = f"Where can I find the invoice archive of department {uuid.uuid4().hex[:6]}?"
    first = await client.complete(question)
    await asyncio.sleep(0.5)  # The store happens behind the answer.
    again = await client.complete(question)
    assert again.text == first.text
    assert again.receipt.facts.cache_hit_kind == "exact"
    assert again.receipt.facts.baseline_input_token_count == first.receipt.facts.baseline_input_token_count
    assert again.receipt.actual_nano_usd == again.receipt.overhead_nano_usd
    assert books.holds(again.receipt)
    spans = await trace_of(mesh, again.receipt.facts.trace_id, {("orchestrator", "cache")})
    assert edges(spans) == {("orchestrator", "cache")}, "a hit meets no other service"


@pytest.mark.parametrize(
    ("asked", "in_other_words"),
    [
        ("How do heat pumps work?", "How does a heat pump work?"),
        ("회의실 예약 방법 알려줘", "회의실 예약하는 방법 알려줘"),
    ],
)
async def test_the_same_question_in_other_words(client: Client, asked: str, in_other_words: str) -> None:
    first = await client.complete(asked)
    await asyncio.sleep(0.5)
    again = await client.complete(in_other_words)
    assert again.receipt.facts.cache_hit_kind == "semantic", again.receipt.facts.hops
    assert again.text == first.text


async def test_a_different_question_is_not_served_from_the_cache(client: Client) -> None:
    await client.complete("How do I turn on two-factor login for my team?")
    await asyncio.sleep(0.5)
    other = await client.complete("How do I turn off two-factor login for my team?")
    assert not other.receipt.facts.cache_hit


async def test_a_stream_has_one_start_pieces_and_one_end(mesh: Mesh, client: Client) -> None:
    events = [event async for event in client.stream(f"Write a haiku about the number {uuid.uuid4().hex[:5]}.")]
    assert events[0].started is not None
    assert events[-1].finished is not None
    assert sum(event.started is not None for event in events) == 1
    assert sum(event.finished is not None for event in events) == 1
    text = "".join(event.text for event in events)
    assert text
    finished = events[-1].finished
    assert books.holds(finished.receipt)
    await trace_of(mesh, finished.receipt.facts.trace_id, {("orchestrator", "inference")})


async def test_identical_requests_in_flight_are_answered_once(mesh: Mesh, client: Client) -> None:
    question = f"List three uses of graphite in workshop {uuid.uuid4().hex[:6]}."
    before = len(await books.provider_requests(mesh))
    answers = await asyncio.gather(*(client.complete(question) for _ in range(12)))
    assert len({answer.text for answer in answers}) == 1
    assert len(await books.provider_requests(mesh)) == before + 1
    paid = [answer for answer in answers if not answer.receipt.facts.cache_hit]
    assert len(paid) == 1, "the initiator pays, followers hold nothing"


async def test_a_request_id_is_answered_once(mesh: Mesh, client: Client) -> None:
    request_id = str(uuid.uuid4())
    question = f"Name a river near town {request_id[:6]}."
    first = await client.complete(question, request_id=request_id, policy=no_cache())
    before = len(await books.provider_requests(mesh))
    again = await client.complete(question, request_id=request_id, policy=no_cache())
    assert again.text == first.text
    assert again.receipt.actual_nano_usd == first.receipt.actual_nano_usd
    assert len(await books.provider_requests(mesh)) == before
    with pytest.raises(TenthClientError) as caught:
        await client.complete("Something else.", request_id=request_id, policy=no_cache())
    assert caught.value.reason == "REQUEST_ID_REUSED"


async def test_the_default_model_failing_is_answered_by_the_next(mesh: Mesh, client: Client) -> None:
    policy = chat_pb2.RequestPolicy(
        cache_mode=chat_pb2.CACHE_MODE_OFF, tier_floor=chat_pb2.TIER_MEDIUM, tier_ceiling=chat_pb2.TIER_MEDIUM
    )
    normal = await client.complete("Summarise the plot of an opera.", policy=policy)
    await inject(mesh, "500", normal.receipt.facts.model, 3)
    try:
        answer = await client.complete("Summarise the plot of a novel.", policy=policy)
        assert answer.receipt.facts.model != normal.receipt.facts.model
        assert books.holds(answer.receipt)
        spans = await trace_of(mesh, answer.receipt.facts.trace_id, {("orchestrator", "inference")})
        assert any(span.error for span in spans if span.service == "inference")
    finally:
        await inject(mesh, "500", normal.receipt.facts.model, 0)


async def test_explaining_spends_nothing(mesh: Mesh, client: Client) -> None:
    before = len(await books.provider_requests(mesh))
    explained = await client.explain("Prove that the square root of two is irrational, step by step.")
    assert isinstance(explained, orchestrator_pb2.ExplainRequestResponse)
    assert explained.route.model
    assert explained.worst_case_nano_usd > 0
    assert books.holds(explained.expected_receipt)
    assert len(await books.provider_requests(mesh)) == before


async def test_a_far_window_returns_an_operation(client: Client) -> None:
    policy = chat_pb2.RequestPolicy(cache_mode=chat_pb2.CACHE_MODE_OFF)
    policy.completion_window.FromSeconds(3600)
    answer = await client.complete("Classify this review as good or bad: it was fine.", policy=policy)
    assert answer.operation
    for _ in range(100):
        found = await client.completion(answer.operation)
        if found.state != orchestrator_pb2.OPERATION_STATE_RUNNING:
            break
        await asyncio.sleep(0.1)
    assert found.state == orchestrator_pb2.OPERATION_STATE_DONE
    assert books.holds(found.receipt)


async def test_feedback_retires_a_cached_answer(client: Client) -> None:
    question = f"What are the opening hours of branch {uuid.uuid4().hex[:6]}?"
    first = await client.complete(question)
    await asyncio.sleep(0.5)
    assert await client.report_outcome(first.request_id, 0.0, "wrong")
    again = await client.complete(question)
    assert not again.receipt.facts.cache_hit


async def test_a_users_data_can_be_deleted(client: Client) -> None:
    user = f"user-{uuid.uuid4().hex[:6]}"
    question = f"Which plan fits a bakery with {random.randrange(10**6)} shops?"
    await client.complete(question, user_id=user)
    await asyncio.sleep(0.5)
    deleted = await client.delete_user_data(user)
    assert deleted.cache_entry_count == 1
    again = await client.complete(question, user_id=user)
    assert not again.receipt.facts.cache_hit


async def test_the_ledger_equals_the_receipts(mesh: Mesh, client: Client) -> None:
    answers = [await client.complete(f"Convert recipe number {number} to metric units.") for number in range(5)]
    receipts = await books.final_receipts(client, [answer.request_id for answer in answers])
    assert [receipt.actual_nano_usd for receipt in receipts] == [a.receipt.actual_nano_usd for a in answers]
    status = await books.quiet(mesh)
    assert status.identity_violation_count == 0
    total = await books.report(mesh)
    saved = sum(item.saving_nano_usd for item in total.savings)
    assert total.baseline_nano_usd - saved + total.overhead_nano_usd == total.actual_nano_usd


def no_cache() -> chat_pb2.RequestPolicy:
    return chat_pb2.RequestPolicy(cache_mode=chat_pb2.CACHE_MODE_OFF)


async def inject(mesh: Mesh, mode: str, model: str, count: int) -> None:
    async with httpx.AsyncClient() as http:
        body = {"mode": mode, "model": model, "count": count}
        reply = await http.post(f"http://{mesh.address('sandbox')}/sandbox/fail", json=body, timeout=5)
        reply.raise_for_status()
