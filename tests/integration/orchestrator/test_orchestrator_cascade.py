"""Cascades: the first answer is held, checked, given or escalated; both attempts are on the receipt, exactly."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tenth.ledger.v1 import ledger_pb2
from tenth.router.v1 import router_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.errors import Code, TenthError
from tests.integration.orchestrator.conftest import Start
from tests.integration.orchestrator.orchestrator_fakes import (
    DOWN,
    MINI,
    OPUS,
    Mesh,
    adds_up,
    ask,
    began,
    ended,
    generated,
    hops,
    piece,
    slow,
    spent,
    until,
    usage,
)

ALLOW = chat_pb2.RequestPolicy(cascade_mode=chat_pb2.CASCADE_MODE_ALLOW)
OFF = chat_pb2.RequestPolicy(cascade_mode=chat_pb2.CASCADE_MODE_OFF)
PLAN = router_pb2.CascadePlan(
    escalation_model=OPUS, escalation_tier=chat_pb2.TIER_COMPLEX, min_confidence=0.6, top_logprobs_count=2
)
REJECTED = router_pb2.CheckAnswerResponse(accepted=False, confidence=0.1, reason="0.10 < 0.60")
CPU = 10
"""Overhead of every miss here: the lookup's embedding, nano-USD."""


def planned(request: Any) -> Any:
    """A cascade for the first choice; without one when that model is excluded."""
    if OPUS in request.excluded_models:
        raise TenthError(Code.FAILED_PRECONDITION, "NO_ELIGIBLE_MODEL", "none is left")
    if MINI in request.excluded_models:
        return router_pb2.SelectModelResponse(model=OPUS, tier=chat_pb2.TIER_COMPLEX, reason="next")
    return router_pb2.SelectModelResponse(model=MINI, tier=chat_pb2.TIER_MEDIUM, reason="scripted", cascade=PLAN)


def tokens() -> list[chat_pb2.TokenLogprob]:
    best = [chat_pb2.AlternativeToken(token=text, logprob=value) for text, value in (("Hi", -0.1), ("Yo", -3.0))]
    return [chat_pb2.TokenLogprob(token="Hi", logprob=-0.1, alternatives=best)]


def by_model(answers: dict[str, Any]) -> Any:
    def answer(request: Any) -> Any:
        return answers[getattr(request, "generation", request).model]

    return answer


@pytest.fixture
async def cascade(mesh: Mesh) -> Mesh:
    mesh.fakes.on("SelectModel", planned)
    first = generated("Cheap.", logprobs=tokens())
    mesh.fakes.on(
        "GenerateText", by_model({MINI: first, OPUS: generated("Strong.", usage=usage(tokens_in=90, tokens_out=7))})
    )
    return mesh


def text_of(reply: Any) -> str:
    return "".join(part.text for part in reply.completion.message.parts)


def items(receipt: receipt_pb2.Receipt, kind: str) -> list[receipt_pb2.OverheadItem]:
    return [item for item in receipt.facts.overheads if item.kind == kind]


async def recorded(mesh: Mesh) -> router_pb2.RecordCompletionRequest:
    await until(lambda: mesh.fakes.count("RecordCompletion") == 1)
    found: router_pb2.RecordCompletionRequest = mesh.fakes.requests("RecordCompletion")[0]
    return found


async def stored(mesh: Mesh) -> Any:
    await until(lambda: mesh.fakes.count("StoreCompletion") == 1)
    return mesh.fakes.requests("StoreCompletion")[0]


async def test_an_accepted_first_answer_is_an_answer_like_any_other(cascade: Mesh) -> None:
    request = ask()
    reply = await cascade.generate(request)
    assert (text_of(reply), reply.completion.model) == ("Cheap.", MINI)
    (sent,) = cascade.fakes.requests("GenerateText")
    assert sent.sampling.top_logprobs_count == 2
    (checked,) = cascade.fakes.requests("CheckAnswer")
    assert checked.plan == PLAN
    assert checked.completion.logprobs == tokens()
    assert checked.request.messages == request.messages
    receipt = reply.receipt
    assert not items(receipt, "cascade")
    assert receipt.facts.attempt == sent.attempt
    assert receipt.actual_nano_usd == 80 * 1_000 + 5 * 2_000 + CPU
    assert adds_up(receipt)
    assert hops(receipt)["cascade"] == "OK"
    # The caller asked for no log probabilities, nor does the cache know them.
    assert not reply.completion.logprobs
    kept = await stored(cascade)
    assert not kept.share_only
    assert not kept.completion.logprobs
    told = await recorded(cascade)
    assert (told.request_id, told.model, told.escalated_from) == (request.request_id, MINI, "")
    assert told.cost_nano_usd == receipt.actual_nano_usd
    assert told.usage == usage()
    assert told.finish_reason == chat_pb2.FINISH_REASON_STOP
    assert told.duration.ToNanoseconds() > 0


@pytest.mark.parametrize(("wanted", "left"), [(1, 1), (2, 2), (5, 2)])
async def test_the_caller_gets_the_log_probabilities_it_asked_for(cascade: Mesh, wanted: int, left: int) -> None:
    reply = await cascade.generate(ask(sampling=chat_pb2.SamplingParameters(top_logprobs_count=wanted)))
    (sent,) = cascade.fakes.requests("GenerateText")
    assert sent.sampling.top_logprobs_count == max(wanted, 2)
    assert list(reply.completion.logprobs[0].alternatives) == list(tokens()[0].alternatives)[:left]


async def test_both_attempts_of_an_escalation_are_billed_and_add_up(cascade: Mesh) -> None:
    cascade.fakes.on("CheckAnswer", REJECTED)
    reply = await cascade.generate(ask())
    assert (text_of(reply), reply.completion.model, reply.completion.tier) == (
        "Strong.",
        OPUS,
        chat_pb2.TIER_COMPLEX,
    )
    first, second = cascade.fakes.requests("GenerateText")
    assert second.sampling.top_logprobs_count == 0
    receipt = reply.receipt
    (item,) = items(receipt, "cascade")
    assert (item.model, item.attempt, item.usage) == (MINI, first.attempt, usage())
    assert item.cost_nano_usd == 80 * 1_000 + 5 * 2_000
    assert receipt.facts.attempt == second.attempt != first.attempt
    assert receipt.overhead_nano_usd == item.cost_nano_usd + CPU
    assert receipt.actual_nano_usd == 90 * 5_000 + 7 * 25_000 + item.cost_nano_usd + CPU
    assert adds_up(receipt)
    # The escalation model's own prompt and its own reservation.
    assert [request.model for request in cascade.fakes.requests("CompressPrompt")] == [MINI, OPUS]
    assert [request.model for request in cascade.fakes.requests("ReserveFunds")] == [MINI, OPUS]
    assert cascade.fakes.count("ReleaseFunds") == 1
    assert cascade.fakes.count("SelectModel") == 1
    assert not (await stored(cascade)).share_only
    told = await recorded(cascade)
    assert (told.model, told.escalated_from, list(told.failed_models)) == (OPUS, MINI, [])
    assert told.cost_nano_usd == receipt.actual_nano_usd
    assert (await cascade.settled(reply.request_id)).facts == receipt.facts


@pytest.mark.parametrize("how", ["down", "late", "refused"])
async def test_without_a_check_the_first_answer_is_given(start: Start, how: str) -> None:
    mesh = await start(check_cap_seconds=0.05)
    mesh.fakes.on("SelectModel", planned)
    no = TenthError(Code.INVALID_ARGUMENT, "INVALID_FIELD", "no")
    mesh.fakes.on("CheckAnswer", {"down": DOWN, "late": slow(1.0), "refused": no}[how])
    reply = await mesh.generate(ask())
    assert (text_of(reply), reply.completion.model) == ("Hello.", MINI)
    assert hops(reply.receipt)["cascade"] == "DEGRADED"
    assert not items(reply.receipt, "cascade")
    assert adds_up(reply.receipt)
    assert mesh.fakes.count("GenerateText") == 1
    assert (await stored(mesh)).share_only
    assert (await recorded(mesh)).escalated_from == ""


@pytest.mark.parametrize(
    "decision",
    [ledger_pb2.RESERVE_DECISION_REFUSED, ledger_pb2.RESERVE_DECISION_DOWNGRADE, "down"],
)
async def test_a_budget_that_refuses_the_escalation_leaves_the_first_answer(cascade: Mesh, decision: Any) -> None:
    cascade.fakes.on("CheckAnswer", REJECTED)
    refusal = DOWN if decision == "down" else ledger_pb2.ReserveFundsResponse(decision=decision, budget_name="monthly")
    cascade.fakes.then("ReserveFunds", None)
    cascade.fakes.on("ReserveFunds", refusal)
    reply = await cascade.generate(ask(), key="hard")
    assert (text_of(reply), reply.completion.model) == ("Cheap.", MINI)
    receipt = reply.receipt
    assert hops(receipt)["cascade"] == "DEGRADED"
    assert receipt.actual_nano_usd == 80 * 1_000 + 5 * 2_000 + CPU
    assert adds_up(receipt)
    assert cascade.fakes.count("GenerateText") == 1
    assert (await stored(cascade)).share_only
    told = await recorded(cascade)
    assert (told.model, told.escalated_from, list(told.failed_models)) == (MINI, MINI, [])


async def test_a_failed_escalation_leaves_the_first_answer_and_its_spend(cascade: Mesh) -> None:
    cascade.fakes.on("CheckAnswer", REJECTED)
    cascade.fakes.then("GenerateText", None, spent("PROVIDER_ERROR", OPUS))
    reply = await cascade.generate(ask())
    assert (text_of(reply), reply.completion.model) == ("Hello.", MINI)
    first, _ = cascade.fakes.requests("GenerateText")
    receipt = reply.receipt
    assert receipt.facts.attempt == first.attempt
    (failed,) = items(receipt, "failed_attempt")
    assert failed.cost_nano_usd == 80 * 5_000 + 3 * 25_000
    assert not items(receipt, "cascade")
    assert receipt.actual_nano_usd == 80 * 1_000 + 5 * 2_000 + failed.cost_nano_usd + CPU
    assert adds_up(receipt)
    assert (await stored(cascade)).share_only
    told = await recorded(cascade)
    assert (told.model, told.escalated_from, list(told.failed_models)) == (MINI, MINI, [OPUS])


async def test_a_failed_first_attempt_goes_to_the_next_model(cascade: Mesh) -> None:
    cascade.fakes.then("GenerateText", spent("PROVIDER_ERROR"))
    reply = await cascade.generate(ask())
    assert (text_of(reply), reply.completion.model) == ("Strong.", OPUS)
    assert cascade.fakes.count("CheckAnswer") == 0
    assert list((await recorded(cascade)).failed_models) == [MINI]


async def test_a_model_that_refuses_our_log_probabilities_does_not_cost_the_answer(cascade: Mesh) -> None:
    wrong = TenthError(Code.INVALID_ARGUMENT, "PROVIDER_REFUSED", "logprobs are not supported")
    cascade.fakes.then("GenerateText", wrong)
    assert text_of(await cascade.generate(ask())) == "Strong."
    # With log probabilities of the caller's own it is the request that is wrong.
    cascade.fakes.then("GenerateText", wrong)
    with pytest.raises(TenthError, match="PROVIDER_REFUSED"):
        await cascade.generate(ask(sampling=chat_pb2.SamplingParameters(top_logprobs_count=3)))


async def test_a_plan_is_not_followed_where_the_caller_forbids_it(cascade: Mesh) -> None:
    reply = await cascade.generate(ask(policy=OFF))
    assert text_of(reply) == "Cheap."
    assert cascade.fakes.count("CheckAnswer") == 0
    assert cascade.fakes.requests("GenerateText")[0].sampling.top_logprobs_count == 0


async def test_a_stream_is_not_held_back_unasked(cascade: Mesh) -> None:
    events = await cascade.events(ask())
    assert [event.WhichOneof("event") for event in events] == ["started", "delta", "delta", "finished"]
    assert cascade.fakes.requests("SelectModel")[0].streaming
    assert cascade.fakes.count("CheckAnswer") == 0
    assert cascade.fakes.count("StreamGenerateText") == 1


async def test_a_stream_that_allows_it_begins_with_acceptance(cascade: Mesh) -> None:
    got: list[Any] = []
    seen_at_check: list[int] = []

    def check(request: Any) -> Any:
        seen_at_check.append(len(got))
        return router_pb2.CheckAnswerResponse(accepted=True, confidence=0.9)

    cascade.fakes.on("CheckAnswer", check)
    async for event in cascade.stream(ask(policy=ALLOW)):
        got.append(event)  # noqa: PERF401  (looked at while it grows)
    assert seen_at_check == [0]
    assert [event.WhichOneof("event") for event in got] == ["started", "delta", "finished"]
    assert got[0].started.model == MINI
    assert got[1].delta.text == "Cheap."
    assert not got[1].delta.logprobs
    assert adds_up(got[-1].finished.receipt)
    assert cascade.fakes.count("StreamGenerateText") == 0


async def test_a_stream_escalates_live(cascade: Mesh) -> None:
    cascade.fakes.on("CheckAnswer", REJECTED)
    events = await cascade.events(ask(policy=ALLOW))
    assert [event.WhichOneof("event") for event in events] == ["started", "delta", "delta", "finished"]
    assert events[0].started.model == OPUS
    receipt = events[-1].finished.receipt
    assert len(items(receipt, "cascade")) == 1
    assert receipt.facts.model == OPUS
    assert adds_up(receipt)


async def test_an_escalated_stream_without_a_piece_has_its_start(cascade: Mesh) -> None:
    cascade.fakes.on("CheckAnswer", REJECTED)
    cascade.fakes.on("StreamGenerateText", [began(), ended()])
    events = await cascade.events(ask(policy=ALLOW))
    assert [event.WhichOneof("event") for event in events] == ["started", "finished"]


async def test_a_stream_whose_escalation_fails_gets_the_first_answer_or_the_failure(cascade: Mesh) -> None:
    cascade.fakes.on("CheckAnswer", REJECTED)
    cascade.fakes.on("StreamGenerateText", [began(), spent("PROVIDER_ERROR", OPUS)])
    events = await cascade.events(ask(policy=ALLOW))
    assert [event.WhichOneof("event") for event in events] == ["started", "delta", "finished"]
    assert (events[0].started.model, events[1].delta.text) == (MINI, "Cheap.")
    assert adds_up(events[-1].finished.receipt)
    # After its first piece nothing can be taken back: it fails, and everything that was spent is on the receipt.
    cascade.fakes.on("StreamGenerateText", [began(), piece("Str"), spent("PROVIDER_ERROR", OPUS)])
    request = ask(policy=ALLOW)
    with pytest.raises(TenthError, match="PROVIDER_ERROR"):
        await cascade.events(request)
    receipt = await cascade.settled(request.request_id)
    assert {item.kind for item in receipt.facts.overheads} == {"cascade", "failed_attempt", "compute"}
    assert receipt.actual_nano_usd == receipt.overhead_nano_usd == 90_000 + 80 * 5_000 + 3 * 25_000 + CPU
    await until(lambda: cascade.fakes.count("RecordCompletion") == 2)
    told = cascade.fakes.requests("RecordCompletion")[-1]
    assert (told.model, told.escalated_from, list(told.failed_models)) == ("", MINI, [OPUS])
    assert told.cost_nano_usd == receipt.actual_nano_usd


async def test_a_caller_who_leaves_during_the_check_pays_for_the_first_answer(start: Start) -> None:
    mesh = await start(check_cap_seconds=10)
    mesh.fakes.on("SelectModel", planned)
    mesh.fakes.on("CheckAnswer", slow(10))
    request = ask()
    work = asyncio.create_task(mesh.generate(request))
    await until(lambda: mesh.fakes.count("CheckAnswer") == 1)
    work.cancel()
    receipt = await mesh.settled(request.request_id)
    assert receipt.facts.cancelled
    assert [item.kind for item in receipt.facts.overheads] == ["cascade", "compute"]
    assert receipt.actual_nano_usd == 90_000 + CPU


@pytest.mark.parametrize("late", ["CheckAnswer", "GenerateText"])
async def test_what_is_late_leaves_the_first_answer_within_the_deadline(start: Start, late: str) -> None:
    mesh = await start(check_cap_seconds=10)
    mesh.fakes.on("SelectModel", planned)
    if late == "GenerateText":
        mesh.fakes.on("CheckAnswer", REJECTED)
        mesh.fakes.then("GenerateText", None)
    mesh.fakes.on(late, slow(10))
    reply = await mesh.generate(ask(), timeout=2)
    assert text_of(reply) == "Hello."
    assert hops(reply.receipt)["cascade"] == "DEGRADED"
    assert adds_up(reply.receipt)


async def test_the_router_hears_of_failures_and_may_be_down(cascade: Mesh) -> None:
    cascade.fakes.on("GenerateText", spent("PROVIDER_ERROR"))
    cascade.fakes.on("RecordCompletion", DOWN)
    request = ask()
    with pytest.raises(TenthError):
        await cascade.generate(request)
    told = await recorded(cascade)
    assert (told.model, list(told.failed_models)) == ("", [MINI, OPUS])
    # A request that the router never decided is not recorded.
    cascade.fakes.on("SelectModel", DOWN)
    cascade.fakes.on("GenerateText", None)
    assert text_of(await cascade.generate(ask())) == "Hello."
    await until(lambda: cascade.fakes.count("StoreCompletion") == 1)
    assert cascade.fakes.count("RecordCompletion") == 1


async def test_the_router_knows_the_time_left_and_the_strategy(start: Start) -> None:
    for setting, strategy in (
        ("trained", router_pb2.STRATEGY_TRAINED),
        ("cascade", router_pb2.STRATEGY_CASCADE),
    ):
        mesh = await start(router_strategy=setting)
        await mesh.generate(ask(), timeout=10)
        (asked,) = mesh.fakes.requests("SelectModel")
        assert asked.strategy == strategy
        assert 5 < asked.time_left.ToNanoseconds() / 1e9 < 10.5  # gRPC rounds a deadline up.
        assert not asked.streaming
        await mesh.stop()
