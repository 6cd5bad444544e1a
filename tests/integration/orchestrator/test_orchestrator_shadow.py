"""The shadow check: after the answer, beside it, on the books, and never at the caller's cost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from tenth.compressor.v1 import compressor_pb2
from tenth.inference.v1 import inference_pb2
from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.errors import TenthError
from mesh.testing import metric_points
from services.orchestrator import shadow_policy
from tests.integration.orchestrator.conftest import Start
from tests.integration.orchestrator.orchestrator_fakes import (
    DOWN,
    MINI,
    OPUS,
    Mesh,
    adds_up,
    ask,
    generated,
    hit,
    message,
    spent,
    until,
    usage,
)

SHADOW = {"shadow_share": 1.0, "shadow_judge_model": OPUS, "shadow_spend_share": 1000.0}
ANSWER, SECOND, JUDGE = inference_pb2.PURPOSE_ANSWER, inference_pb2.PURPOSE_SHADOW, inference_pb2.PURPOSE_JUDGE
GIVEN, WHOLE = "I was not told.", "Port 8443."


def shortened(strategy: str = "history") -> Callable[[Any], compressor_pb2.CompressPromptResponse]:
    """A compressor whose strategy takes 20 of 100 tokens."""

    def answer(request: compressor_pb2.CompressPromptRequest) -> compressor_pb2.CompressPromptResponse:
        return compressor_pb2.CompressPromptResponse(
            messages=[message("short")],
            original_input_token_count=100,
            compressed_input_token_count=80,
            baseline_input_token_count=110,
            strategies=[compressor_pb2.StrategyResult(strategy=strategy, removed_token_count=20)],
        )

    return answer


def models(*letters: str) -> Callable[[inference_pb2.GenerateTextRequest], Any]:
    """A caller's answer, a better second one, and what the judge writes, by order."""

    def answer(request: inference_pb2.GenerateTextRequest) -> Any:
        if request.purpose == ANSWER:
            return generated(GIVEN)
        if request.purpose == SECOND:
            return generated(WHOLE, usage=usage(100, 4))
        return generated(letters[request.attempt % 100 - 1], usage=usage(300, 1))

    return answer


def asked(mesh: Mesh, purpose: inference_pb2.Purpose.ValueType) -> list[inference_pb2.GenerateTextRequest]:
    return [each for each in mesh.fakes.requests("GenerateText") if each.purpose == purpose]


async def shadowed(start: Start, *letters: str, **options: Any) -> Mesh:
    mesh = await start(**{**SHADOW, **options})
    mesh.fakes.on("CompressPrompt", shortened())
    mesh.fakes.on("GenerateText", models(*letters))
    return mesh


def of(request: chat_pb2.CompletionRequest) -> str:
    return shadow_policy.check_id("acme", request.request_id)


QUESTION = "Which port does the VPN use?"


def conversation(**fields: Any) -> chat_pb2.CompletionRequest:
    request = ask(QUESTION, **fields)
    del request.messages[:]
    request.messages.extend(
        [
            message("The VPN listens on 8443."),
            message("Noted.", chat_pb2.ROLE_ASSISTANT),
            message(QUESTION),
        ]
    )
    return request


async def test_a_worse_answer_is_found_and_billed_apart(start: Start) -> None:
    mesh = await shadowed(start, "B", "A")
    request = conversation(tags={"team": "a"}, project_id="x")
    reply = await mesh.generate(request)
    assert reply.completion.message.parts[0].text == GIVEN
    receipt = await mesh.settled(of(request))
    facts = receipt.facts
    assert dict(facts.tags) == {
        "team": "a",
        "tenth.shadow": "worse",
        "tenth.shadow_mode": "safe",
        "tenth.shadow_by": "history",
        "tenth.shadow_of": request.request_id,
    }
    assert (facts.tenant_id, facts.project_id, facts.model, facts.failed) == ("acme", "x", MINI, True)
    assert [(item.kind, item.model) for item in facts.overheads] == [("shadow", MINI), ("judge", OPUS), ("judge", OPUS)]
    costs = [100 * 1_000 + 4 * 2_000, *[300 * 5_000 + 25_000] * 2]
    assert [item.cost_nano_usd for item in facts.overheads] == costs
    assert (receipt.baseline_nano_usd, receipt.actual_nano_usd) == (0, sum(costs))
    assert adds_up(receipt)
    numbers = [item.attempt for item in facts.overheads]
    assert [number % 1000 for number in numbers] == [601, 701, 702]
    # The request's own receipt is what the caller was told.
    own = await mesh.settled(request.request_id)
    assert own.actual_nano_usd == reply.receipt.actual_nano_usd
    assert not [item for item in own.facts.overheads if item.kind in ("shadow", "judge")]

    (second,) = asked(mesh, SECOND)
    assert list(second.messages) == list(request.messages)
    assert (second.request_id, second.model, second.project_id) == (of(request), MINI, "x")
    first, other = asked(mesh, JUDGE)
    texts = [each.messages[1].parts[0].text for each in (first, other)]
    assert texts[0].index(GIVEN) < texts[0].index(WHOLE)
    assert texts[1].index(WHOLE) < texts[1].index(GIVEN)
    assert all("The VPN listens on 8443." in text and QUESTION in text for text in texts)
    assert {(each.sampling.max_output_tokens, each.sampling.temperature) for each in (first, other)} == {(16, 0.0)}
    held = [each for each in mesh.fakes.requests("ReserveFunds") if each.request_id == of(request)]
    assert [(each.model, "tenth.shadow" in each.tags) for each in held] == [(MINI, True), (OPUS, True)]
    assert held[0].input_token_count >= 100
    assert held[1].input_token_count >= 600
    assert facts.reservation_id


@pytest.mark.parametrize(
    ("letters", "verdict", "why"),
    [
        (("A", "B"), "better", ""),
        (("C", "C"), "same", ""),
        (("A", "A"), "undecided", "orders_disagree"),
        (("A is better.", "B"), "undecided", "unreadable"),
        (("B", "I cannot say"), "undecided", "unreadable"),
    ],
)
async def test_verdicts(start: Start, letters: tuple[str, str], verdict: str, why: str) -> None:
    mesh = await shadowed(start, *letters)
    request = conversation()
    await mesh.generate(request)
    tags = (await mesh.settled(of(request))).facts.tags
    assert (tags["tenth.shadow"], tags.get("tenth.shadow_why", "")) == (verdict, why)


async def test_equal_answers_pay_no_judge(start: Start) -> None:
    mesh = await shadowed(start)
    mesh.fakes.on("GenerateText", generated(GIVEN))
    request = conversation(policy=chat_pb2.RequestPolicy(compression_mode=chat_pb2.COMPRESSION_MODE_AGGRESSIVE))
    await mesh.generate(request)
    receipt = await mesh.settled(of(request))
    assert [item.kind for item in receipt.facts.overheads] == ["shadow"]
    tags = receipt.facts.tags
    assert (tags["tenth.shadow"], tags["tenth.shadow_mode"], tags["tenth.shadow_why"]) == (
        "same",
        "aggressive",
        "identical",
    )


async def test_a_stream_is_checked_too(start: Start) -> None:
    mesh = await shadowed(start, "C", "C")
    request = conversation()
    events = await mesh.events(request)
    assert events[-1].WhichOneof("event") == "finished"
    assert (await mesh.settled(of(request))).facts.tags["tenth.shadow"] == "same"
    assert len(asked(mesh, SECOND)) == 1


async def test_the_caller_does_not_wait(start: Start) -> None:
    mesh = await shadowed(start, "C", "C")
    go_on = asyncio.Event()
    scripted = models("C", "C")

    async def held(request: inference_pb2.GenerateTextRequest) -> Any:
        if request.purpose != ANSWER:
            await go_on.wait()
        return scripted(request)

    mesh.fakes.on("GenerateText", held)
    request = conversation()
    reply = await mesh.generate(request)  # Answers although the check hangs.
    assert reply.completion.message.parts[0].text == GIVEN
    await until(lambda: len(asked(mesh, SECOND)) == 1)
    assert not mesh.fakes.receipts(of(request))
    go_on.set()
    assert (await mesh.settled(of(request))).facts.tags["tenth.shadow"] == "same"


def counted(mesh: Mesh) -> dict[str, int]:
    """Checks so far, by "outcome reason"."""
    points = metric_points(mesh.metrics, "tenth.shadow.checks").items()
    names = ("tenth.shadow.outcome", "tenth.shadow.reason")
    return {" ".join(filter(None, (dict(key)[name] for name in names))): point.value for key, point in points}


async def unchecked(mesh: Mesh, request: chat_pb2.CompletionRequest) -> None:
    """The request is settled, the background is done, and there was no check."""
    await mesh.settled(request.request_id)
    await mesh.stop()  # Waits for what runs in the background.
    assert not asked(mesh, SECOND)
    assert not [each for each in mesh.fakes.requests("ReserveFunds") if each.request_id == of(request)]


@pytest.mark.parametrize("strategy", ["cleanup", "output"])
async def test_a_clean_up_is_not_checked(start: Start, strategy: str) -> None:
    mesh = await shadowed(start)
    mesh.fakes.on("CompressPrompt", shortened(strategy))
    request = conversation()
    await mesh.generate(request)
    await unchecked(mesh, request)


async def test_by_default_nothing_is_checked(start: Start) -> None:
    mesh = await shadowed(start, shadow_share=0.0)
    request = conversation()
    await mesh.generate(request)
    await unchecked(mesh, request)


async def test_an_answer_cut_at_the_limit_is_not_checked(start: Start) -> None:
    mesh = await shadowed(start)
    mesh.fakes.on("GenerateText", generated(GIVEN, finish_reason=chat_pb2.FINISH_REASON_LENGTH))
    request = conversation()
    await mesh.generate(request)
    await unchecked(mesh, request)


async def test_a_picture_is_nothing_for_the_judge(start: Start) -> None:
    mesh = await shadowed(start)
    request = conversation()
    request.messages[0].parts.add(image=chat_pb2.ImageContent(url="https://example.com/a.png"))
    await mesh.generate(request)
    await unchecked(mesh, request)


async def test_a_check_that_the_end_interrupts_says_so(start: Start) -> None:
    mesh = await shadowed(start, background_cap_seconds=0.5)
    scripted = models()

    async def hanging(request: inference_pb2.GenerateTextRequest) -> Any:
        if request.purpose == JUDGE:
            await asyncio.Event().wait()
        return scripted(request)

    mesh.fakes.on("GenerateText", hanging)
    request = conversation()
    await mesh.generate(request)
    await until(lambda: len(asked(mesh, JUDGE)) == 1)
    await mesh.stop()
    (receipt,) = mesh.fakes.receipts(of(request))
    assert receipt.facts.attempts_unknown
    assert [item.kind for item in receipt.facts.overheads] == ["shadow"]
    assert receipt.facts.tags["tenth.shadow_why"] == "interrupted"


async def test_a_control_request_is_not_checked(start: Start) -> None:
    mesh = await shadowed(start)
    mesh.fakes.control_share = 1.0
    await mesh.switched()
    request = conversation()
    assert (await mesh.generate(request)).receipt.facts.tags["tenth.control"] == "true"
    await mesh.settled(request.request_id)
    # The next one is drawn, and runs after whatever the first would have begun.
    mesh.fakes.control_share = 0.0
    await mesh.switched()
    later = conversation()
    await mesh.generate(later)
    await until(lambda: len(asked(mesh, SECOND)) == 1)
    assert asked(mesh, SECOND)[0].request_id == of(later)


async def test_a_hit_and_a_failure_are_not_checked(start: Start) -> None:
    mesh = await shadowed(start, "C", "C")
    mesh.fakes.then("LookupCompletion", hit())
    await mesh.generate(conversation())
    mesh.fakes.then("GenerateText", *[spent("PROVIDER_ERROR")] * 3)
    with pytest.raises(TenthError):
        await mesh.generate(conversation())
    later = conversation()
    await mesh.generate(later)
    await mesh.settled(of(later))
    assert [each.request_id for each in asked(mesh, SECOND)] == [of(later)]


@pytest.mark.parametrize(
    "funds",
    [
        DOWN,
        ledger_pb2.ReserveFundsResponse(decision=ledger_pb2.RESERVE_DECISION_REFUSED, budget_name="all"),
        ledger_pb2.ReserveFundsResponse(decision=ledger_pb2.RESERVE_DECISION_DOWNGRADE, budget_name="all"),
        ledger_pb2.ReserveFundsResponse(decision=ledger_pb2.RESERVE_DECISION_RATE_LIMITED),
    ],
)
async def test_without_a_reservation_there_is_no_check(start: Start, funds: Any) -> None:
    mesh = await shadowed(start)
    request = conversation()
    mesh.fakes.on("ReserveFunds", lambda wanted: funds if wanted.request_id == of(request) else None)
    reply = await mesh.generate(request)
    assert reply.completion.message.parts[0].text == GIVEN
    await until(lambda: any(each.request_id == of(request) for each in mesh.fakes.requests("ReserveFunds")))
    await mesh.settled(request.request_id)
    await until(lambda: bool(counted(mesh)))
    before = counted(mesh)
    await mesh.stop()
    assert not asked(mesh, SECOND)
    assert not mesh.fakes.receipts(of(request))
    assert sum(before.values()) == 1
    assert next(iter(before)).startswith("dropped ")


async def test_a_judge_that_the_budget_does_not_hold_is_not_asked(start: Start) -> None:
    mesh = await shadowed(start)
    refused = ledger_pb2.ReserveFundsResponse(decision=ledger_pb2.RESERVE_DECISION_REFUSED, budget_name="all")
    mesh.fakes.on("ReserveFunds", lambda wanted: refused if wanted.model == OPUS else None)
    request = conversation()
    await mesh.generate(request)
    receipt = await mesh.settled(of(request))
    assert [item.kind for item in receipt.facts.overheads] == ["shadow"]
    assert (receipt.facts.tags["tenth.shadow"], receipt.facts.tags["tenth.shadow_why"]) == (
        "undecided",
        "BUDGET_EXCEEDED",
    )
    assert not asked(mesh, JUDGE)


async def test_a_dead_judge_loses_nothing(start: Start) -> None:
    mesh = await shadowed(start)
    scripted = models()

    def broken(request: inference_pb2.GenerateTextRequest) -> Any:
        return spent("PROVIDER_ERROR", OPUS, 7) if request.purpose == JUDGE else scripted(request)

    mesh.fakes.on("GenerateText", broken)
    request = conversation()
    reply = await mesh.generate(request)
    assert reply.completion.message.parts[0].text == GIVEN
    receipt = await mesh.settled(of(request))
    # What the judge used before it broke is paid for as a judgement.
    assert [(item.kind, item.usage.output_token_count) for item in receipt.facts.overheads] == [
        ("shadow", 4),
        ("judge", 7),
    ]
    assert adds_up(receipt)
    assert not receipt.facts.attempts_unknown
    assert receipt.facts.tags["tenth.shadow_why"] == "PROVIDER_ERROR"


@pytest.mark.parametrize("dead", [SECOND, JUDGE])
async def test_what_nobody_can_say_is_left_to_the_ledger(start: Start, dead: inference_pb2.Purpose.ValueType) -> None:
    mesh = await shadowed(start)
    scripted = models()
    mesh.fakes.on("GenerateText", lambda request: DOWN if request.purpose == dead else scripted(request))
    request = conversation()
    await mesh.generate(request)
    receipt = await mesh.settled(of(request))
    assert receipt.facts.attempts_unknown
    assert receipt.facts.tags["tenth.shadow"] == "undecided"
    assert receipt.state == receipt_pb2.RECEIPT_STATE_PENDING
    assert (await mesh.settled(request.request_id)).facts.attempt


async def test_a_judge_without_a_price_is_never_asked(start: Start) -> None:
    mesh = await shadowed(start, shadow_judge_model="nobody")
    request = conversation()
    await mesh.generate(request)
    await until(lambda: counted(mesh) == {"dropped PRICE_UNKNOWN": 1})
    await unchecked(mesh, request)


async def test_checks_stop_at_their_share_of_the_cost(start: Start) -> None:
    mesh = await shadowed(start, "C", "C", shadow_spend_share=0.01)
    first = conversation()
    await mesh.generate(first)
    await mesh.settled(of(first))
    for _ in range(3):
        request = conversation()
        await mesh.generate(request)
        await mesh.settled(request.request_id)
    assert counted(mesh) == {"same": 1, "dropped spend_share": 3}
    await mesh.stop()
    assert [each.request_id for each in asked(mesh, SECOND)] == [of(first)]


async def test_no_more_run_at_once_than_are_allowed(start: Start) -> None:
    mesh = await shadowed(start, "C", "C", shadow_concurrency=1)
    go_on = asyncio.Event()
    scripted = models("C", "C")

    async def held(request: inference_pb2.GenerateTextRequest) -> Any:
        if request.purpose != ANSWER:
            await go_on.wait()
        return scripted(request)

    mesh.fakes.on("GenerateText", held)
    first, second, third = (conversation() for _ in range(3))
    await mesh.generate(first)
    await until(lambda: len(asked(mesh, SECOND)) == 1)
    await mesh.generate(second)
    await mesh.settled(second.request_id)
    go_on.set()
    await mesh.settled(of(first))
    await mesh.generate(third)
    await mesh.settled(of(third))
    assert [each.request_id for each in asked(mesh, SECOND)] == [of(first), of(third)]
    await until(lambda: counted(mesh) == {"same": 2, "dropped busy": 1})
