"""The if-down table of flow.py, row by row, and what failures cost: nothing that was not spent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tenth.cache.v1 import cache_pb2
from tenth.compressor.v1 import compressor_pb2
from tenth.inference.v1 import inference_pb2
from tenth.ledger.v1 import ledger_pb2
from tenth.router.v1 import router_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.errors import Code, Reason, TenthError
from mesh.status import detail
from services.orchestrator.flow import IF_DOWN
from services.orchestrator.policy import IfDown
from tests.integration.orchestrator.conftest import Start
from tests.integration.orchestrator.orchestrator_fakes import (
    DOWN,
    LOCAL,
    MINI,
    OPUS,
    PRICES,
    Mesh,
    adds_up,
    ask,
    began,
    ended,
    follow,
    hops,
    message,
    piece,
    slow,
    spent,
    until,
)

Tier = chat_pb2.Tier
LATE_CAPS = dict.fromkeys(("lookup_cap_seconds", "select_cap_seconds", "compress_cap_seconds"), 0.05)
BUSY = TenthError(Code.RESOURCE_EXHAUSTED, "BUSY", "too many")


def spent_detail(error: TenthError) -> receipt_pb2.SpentDetail:
    found = detail(error, receipt_pb2.SpentDetail)
    assert isinstance(found, receipt_pb2.SpentDetail)
    return found


def test_the_table_names_every_hop() -> None:
    assert IF_DOWN == {
        "batch.EnqueueCompletion": IfDown.ONLINE,
        "cache.LookupCompletion": IfDown.MISS,
        "router.SelectModel": IfDown.DEFAULT_TIER,
        "compressor.CompressPrompt": IfDown.UNCHANGED,
        "ledger.ReserveFunds": IfDown.REFUSE_IF_HARD_BUDGET,
        "inference.GenerateText": IfDown.NEXT_MODEL,
        "router.CheckAnswer": IfDown.FIRST_ANSWER,
        "cache.StoreCompletion": IfDown.DROP,
        "router.RecordCompletion": IfDown.DROP,
        "compressor.RecordUsage": IfDown.DROP,
        "ledger.SettleReceipts": IfDown.OUTBOX,
    }


@pytest.mark.parametrize(
    ("method", "hop", "cap"),
    [
        ("LookupCompletion", "cache", "lookup_cap_seconds"),
        ("SelectModel", "router", "select_cap_seconds"),
        ("CompressPrompt", "compressor", "compress_cap_seconds"),
    ],
)
@pytest.mark.parametrize("how", ["down", "late", "busy"])
async def test_a_hop_that_does_not_answer_degrades(start: Start, method: str, hop: str, cap: str, how: str) -> None:
    mesh = await start(**({cap: 0.05} if how == "late" else {}))
    mesh.fakes.on(method, {"down": DOWN, "late": slow(1.0), "busy": BUSY}[how])
    request = ask(policy=chat_pb2.RequestPolicy(tier_floor=chat_pb2.TIER_SIMPLE))
    reply = await mesh.generate(request)
    assert reply.completion.message.parts[0].text == "Hello."
    assert hops(reply.receipt)[hop] == "DEGRADED"
    assert adds_up(reply.receipt)
    sent = mesh.fakes.requests("GenerateText")[0]
    if hop == "cache":
        await mesh.settled(reply.request_id)
        assert mesh.fakes.count("StoreCompletion") == 0
    if hop == "router":
        assert reply.completion.model == MINI  # The default tier.
        await until(lambda: mesh.fakes.count("StoreCompletion") == 1)
        assert mesh.fakes.requests("StoreCompletion")[0].share_only
    if hop == "compressor":
        assert list(sent.messages) == list(request.messages)
        assert sent.estimated_input_token_count > 0
        assert reply.receipt.savings[2].saving_nano_usd == 0


async def test_without_a_router_the_callers_bounds_hold(mesh: Mesh) -> None:
    mesh.fakes.on("SelectModel", DOWN)
    for bounds, model in (
        ({"tier_ceiling": Tier.TIER_SIMPLE}, LOCAL),
        ({"tier_floor": Tier.TIER_COMPLEX}, OPUS),
        ({"model": LOCAL}, LOCAL),
    ):
        reply = await mesh.generate(ask(policy=chat_pb2.RequestPolicy(**bounds)))
        assert reply.completion.model == model
    with pytest.raises(TenthError) as raised:
        await mesh.generate(ask(policy=chat_pb2.RequestPolicy(model="unheard-of")))
    assert raised.value.reason == "NO_MODEL_AVAILABLE"


async def test_the_routers_no_is_the_callers_answer(mesh: Mesh) -> None:
    with pytest.raises(TenthError) as raised:
        await mesh.generate(ask(policy=chat_pb2.RequestPolicy(model="unheard-of")))
    assert (raised.value.code, raised.value.reason) == (Code.NOT_FOUND, "UNKNOWN_MODEL")
    assert raised.value.field == "request.policy.model"
    assert mesh.fakes.count("GenerateText") == 0


@pytest.mark.parametrize("how", ["down", "late"])
async def test_a_hard_budget_refuses_without_the_ledger(start: Start, how: str) -> None:
    mesh = await start(reserve_cap_seconds=0.05)
    mesh.fakes.on("ReserveFunds", DOWN if how == "down" else slow(1.0))
    with pytest.raises(TenthError) as raised:
        await mesh.generate(ask(), key="hard")
    assert (raised.value.code, raised.value.reason) == (Code.UNAVAILABLE, "BUDGET_UNAVAILABLE")
    assert raised.value.retry_after_seconds == 1.0
    assert mesh.fakes.count("GenerateText") == 0


async def test_without_a_hard_budget_the_answer_comes_and_is_settled_later(mesh: Mesh) -> None:
    mesh.fakes.on("ReserveFunds", DOWN)
    mesh.fakes.then("SettleReceipts", DOWN)
    request = ask()
    reply = await mesh.generate(request)
    assert hops(reply.receipt)["ledger"] == "DEGRADED"
    assert reply.receipt.facts.reservation_id == ""
    receipt = await mesh.settled(request.request_id)
    assert receipt.facts == reply.receipt.facts
    assert mesh.fakes.count("SettleReceipts") >= 2
    assert len(mesh.fakes.receipts(request.request_id)) == 1


async def test_a_failed_model_is_followed_by_the_next_and_billed_as_overhead(mesh: Mesh) -> None:
    mesh.fakes.then("GenerateText", spent("PROVIDER_ERROR"))
    reply = await mesh.generate(ask())
    assert reply.completion.model == OPUS
    assert list(mesh.fakes.requests("SelectModel")[1].excluded_models) == [MINI]
    first, second = mesh.fakes.requests("GenerateText")
    assert (first.model, second.model) == (MINI, OPUS)
    assert first.attempt != second.attempt
    assert [item.kind for item in reply.receipt.facts.overheads] == ["failed_attempt", "compute"]
    assert reply.receipt.overhead_nano_usd == 80 * 1_000 + 3 * 2_000 + 10
    assert adds_up(reply.receipt)
    assert not reply.receipt.facts.attempts_unknown
    # The first reservation made room for the second; a fallback's answer is not stored for others.
    assert mesh.fakes.requests("ReleaseFunds")[0].reservation_id != reply.receipt.facts.reservation_id
    await until(lambda: mesh.fakes.count("StoreCompletion") == 1)
    assert mesh.fakes.requests("StoreCompletion")[0].share_only


async def test_every_model_fails(mesh: Mesh) -> None:
    mesh.fakes.on("GenerateText", lambda request: spent("PROVIDER_ERROR", request.model))
    request = ask()
    with pytest.raises(TenthError) as raised:
        await mesh.generate(request)
    assert (raised.value.code, raised.value.reason) == (Code.UNAVAILABLE, "PROVIDER_ERROR")
    assert mesh.fakes.count("GenerateText") == 3
    found = spent_detail(raised.value)
    receipt = await mesh.settled(request.request_id)
    assert receipt.facts.failed
    assert receipt.baseline_nano_usd == 0
    assert receipt.actual_nano_usd == receipt.overhead_nano_usd == found.spent_nano_usd > 0
    assert [item.model for item in found.attempts if item.model] == [MINI, OPUS, LOCAL]


async def test_no_model_left_says_why_the_last_one_failed(mesh: Mesh) -> None:
    mesh.fakes.on("GenerateText", spent("PROVIDER_ERROR"))
    with pytest.raises(TenthError) as raised:
        await mesh.generate(ask(policy=chat_pb2.RequestPolicy(model=MINI)))
    assert raised.value.reason == "NO_MODEL_AVAILABLE"
    assert raised.value.metadata == {"last_reason": "PROVIDER_ERROR", "router_reason": "NO_ELIGIBLE_MODEL"}


async def test_a_request_that_is_wrong_for_one_provider_is_not_tried_at_the_next(mesh: Mesh) -> None:
    mesh.fakes.on("GenerateText", TenthError(Code.INVALID_ARGUMENT, "PROVIDER_REFUSED", "bad schema", "request.tools"))
    with pytest.raises(TenthError) as raised:
        await mesh.generate(ask())
    assert (raised.value.reason, raised.value.field) == ("PROVIDER_REFUSED", "request.tools")
    assert mesh.fakes.count("GenerateText") == 1


async def test_a_request_is_held_while_inference_is_away(mesh: Mesh) -> None:
    mesh.fakes.then("GenerateText", DOWN, DOWN)
    reply = await mesh.generate(ask())
    assert reply.completion.model == MINI
    assert [sent.model for sent in mesh.fakes.requests("GenerateText")] == [MINI] * 3
    assert reply.receipt.facts.attempts_unknown  # The ledger asks inference's records.
    assert adds_up(reply.receipt)


async def test_held_until_the_deadline_and_no_longer(mesh: Mesh) -> None:
    mesh.fakes.on("GenerateText", DOWN)
    with pytest.raises(TenthError) as raised:
        await mesh.generate(ask(), timeout=0.7)
    assert raised.value.code in (Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED)


async def test_a_provider_that_breaks_off_mid_stream_is_reported_with_what_it_cost(mesh: Mesh) -> None:
    mesh.fakes.on("StreamGenerateText", [began(), piece("Hel"), spent("PROVIDER_STREAM_BROKEN")])
    request = ask()
    seen: list[Any] = []

    async def read() -> None:
        async for event in mesh.stream(request):
            seen.append(event)  # noqa: PERF401  (what came before the error counts)

    with pytest.raises(TenthError) as raised:
        await read()
    assert "".join(event.delta.text for event in seen) == "Hel"
    assert not any(event.HasField("finished") for event in seen)
    assert (raised.value.code, raised.value.reason) == (Code.UNAVAILABLE, "PROVIDER_STREAM_BROKEN")
    assert mesh.fakes.count("StreamGenerateText") == 1
    assert spent_detail(raised.value).attempts[0].usage.output_token_count == 3
    receipt = await mesh.settled(request.request_id)
    assert receipt.facts.failed
    assert receipt.overhead_nano_usd == 80 * 1_000 + 3 * 2_000 + 10
    assert spent_detail(raised.value).spent_nano_usd == receipt.overhead_nano_usd


@pytest.mark.parametrize("breaks", ["connection", "no end"])
async def test_inference_that_dies_mid_stream_is_stream_broken(mesh: Mesh, breaks: str) -> None:
    last = [DOWN] if breaks == "connection" else []
    mesh.fakes.on("StreamGenerateText", [began(), piece("Hel"), *last])
    request = ask()
    with pytest.raises(TenthError) as raised:
        await mesh.events(request)
    assert (raised.value.code, raised.value.reason) == (Code.UNAVAILABLE, "STREAM_BROKEN")
    assert spent_detail(raised.value).request_id == request.request_id
    # Nobody here knows what it has cost: the ledger asks inference's records.
    assert (await mesh.settled(request.request_id)).facts.attempts_unknown


@pytest.mark.parametrize(
    "first",
    [piece(reasoning="Let me think."), piece(tool_calls=[chat_pb2.ToolCallDelta(id="c", name="find")])],
    ids=["reasoning", "tool call"],
)
async def test_after_reasoning_or_a_tool_call_no_other_model_begins_anew(mesh: Mesh, first: Any) -> None:
    mesh.fakes.on("StreamGenerateText", [began(), first, spent("PROVIDER_STREAM_BROKEN")])
    with pytest.raises(TenthError) as raised:
        await mesh.events(ask(sampling=chat_pb2.SamplingParameters(temperature=0)))
    assert raised.value.reason == "PROVIDER_STREAM_BROKEN"
    assert mesh.fakes.count("SelectModel") == mesh.fakes.count("StreamGenerateText") == 1


async def test_before_the_first_piece_the_next_model_streams(mesh: Mesh) -> None:
    mesh.fakes.then("StreamGenerateText", [began(), spent("PROVIDER_ERROR")])
    events = await mesh.events(ask())
    assert [event.WhichOneof("event") for event in events] == ["started", "delta", "delta", "finished"]
    assert events[-1].finished.model == OPUS


LOCAL_ROUTE = router_pb2.SelectModelResponse(model=LOCAL, tier=chat_pb2.TIER_SIMPLE)
GREEDY = chat_pb2.SamplingParameters(temperature=0)


async def test_a_greedy_local_stream_goes_on_without_repeating_itself(mesh: Mesh) -> None:
    mesh.fakes.on("SelectModel", LOCAL_ROUTE)
    mesh.fakes.then("StreamGenerateText", [piece("Hel"), piece("lo "), DOWN], [piece("He"), piece("llo t"), DOWN])
    mesh.fakes.on("StreamGenerateText", [piece("Hello "), piece("there."), ended(9)])
    events = await mesh.events(ask(sampling=GREEDY))
    assert [event.delta.text for event in events[1:-1]] == ["Hel", "lo ", "t", "here."]
    assert events[-1].finished.usage.output_token_count == 9
    assert mesh.fakes.count("StreamGenerateText") == 3


ENGINE_FAILED = TenthError(Code.UNAVAILABLE, "ENGINE_FAILED", "the engine failed")
ENGINE_RESTARTING = TenthError(Code.UNAVAILABLE, "ENGINE_RESTARTING", "the engine starts again", retry_after_seconds=8)
DRAINING = TenthError(Code.UNAVAILABLE, "DRAINING", "this replica is shutting down")


@pytest.mark.parametrize("why", [ENGINE_FAILED, DRAINING], ids=["engine failed", "handed back"])
async def test_a_greedy_local_stream_outlives_its_engine(mesh: Mesh, why: TenthError) -> None:
    mesh.fakes.on("SelectModel", LOCAL_ROUTE)
    mesh.fakes.then("StreamGenerateText", [piece("Hel"), why], [ENGINE_RESTARTING], [ENGINE_RESTARTING])
    mesh.fakes.on("StreamGenerateText", [piece("Hello "), piece("there."), ended(9)])
    events = await mesh.events(ask(sampling=GREEDY))
    assert [event.delta.text for event in events[1:-1]] == ["Hel", "lo ", "there."]
    assert [sent.generation.model for sent in mesh.fakes.requests("StreamGenerateText")] == [LOCAL] * 4


async def test_a_request_that_kills_engines_is_not_sent_to_all_of_them(mesh: Mesh) -> None:
    mesh.fakes.on("SelectModel", LOCAL_ROUTE)
    mesh.fakes.on("StreamGenerateText", [piece("Hel"), ENGINE_FAILED])
    with pytest.raises(TenthError) as raised:
        await mesh.events(ask(sampling=GREEDY))
    assert raised.value.reason == "ENGINE_FAILED"
    assert mesh.fakes.count("StreamGenerateText") == 2


async def test_a_named_models_engine_is_waited_for_and_any_other_is_not(mesh: Mesh) -> None:
    mesh.fakes.then("GenerateText", ENGINE_FAILED, ENGINE_RESTARTING, ENGINE_RESTARTING)
    reply = await mesh.generate(ask(policy=chat_pb2.RequestPolicy(model=MINI)))
    assert reply.completion.model == MINI
    assert mesh.fakes.count("GenerateText") == 4
    mesh.fakes.then("GenerateText", ENGINE_RESTARTING)
    reply = await mesh.generate(ask())
    assert [sent.model for sent in mesh.fakes.requests("GenerateText")[4:]] == [MINI, OPUS]


@pytest.mark.parametrize(("window", "priority"), [(0, "PRIORITY_INTERACTIVE"), (600, "PRIORITY_BATCH")])
async def test_who_gave_a_window_does_not_go_first(mesh: Mesh, window: int, priority: str) -> None:
    request = ask()
    request.policy.completion_window.FromSeconds(window)
    await mesh.generate(request)
    await until(lambda: mesh.fakes.count("GenerateText") == 1)
    assert inference_pb2.Priority.Name(mesh.fakes.requests("GenerateText")[0].priority) == priority


@pytest.mark.parametrize("again", [[piece("Good"), ended()], [piece("Hel"), ended()]], ids=["other text", "shorter"])
async def test_a_continuation_that_contradicts_what_was_read_is_broken(mesh: Mesh, again: list[Any]) -> None:
    mesh.fakes.on("SelectModel", LOCAL_ROUTE)
    mesh.fakes.then("StreamGenerateText", [piece("Hello"), DOWN])
    mesh.fakes.on("StreamGenerateText", again)
    with pytest.raises(TenthError) as raised:
        await mesh.events(ask(sampling=GREEDY))
    assert raised.value.reason == "STREAM_BROKEN"


async def test_a_store_that_fails_is_dropped(mesh: Mesh) -> None:
    mesh.fakes.on("StoreCompletion", BUSY)
    reply = await mesh.generate(ask())
    await mesh.settled(reply.request_id)
    await until(lambda: mesh.fakes.count("StoreCompletion") == 1)
    assert (await mesh.generate(ask())).completion.message.parts


async def test_receipts_wait_in_the_outbox_and_arrive_once(mesh: Mesh) -> None:
    mesh.fakes.on("SettleReceipts", DOWN)
    ids = [(await mesh.generate(ask(f"Question {number}"))).request_id for number in range(5)]
    await until(lambda: mesh.fakes.count("SettleReceipts") > 0)
    assert mesh.fakes.settled == {}
    await mesh.stop()
    mesh.fakes.on("SettleReceipts", None)
    await mesh.start()
    for request_id in ids:
        assert (await mesh.settled(request_id)).facts.request_id == request_id
        assert len(mesh.fakes.receipts(request_id)) == 1


async def test_a_receipt_whose_acknowledgement_was_lost_is_delivered_again(mesh: Mesh) -> None:
    def taken_but_silent(request: Any) -> TenthError:
        mesh.fakes._SettleReceipts(request)
        return DOWN

    mesh.fakes.then("SettleReceipts", taken_but_silent)
    reply = await mesh.generate(ask())
    await until(lambda: mesh.fakes.count("SettleReceipts") == 2)
    assert len(mesh.fakes.receipts(reply.request_id)) == 1  # The same bytes: the ledger knows it by its request.


async def test_a_budget_that_is_tight_goes_down_the_tiers(mesh: Mesh) -> None:
    decide = ledger_pb2.ReserveFundsResponse
    mesh.fakes.then("SelectModel", router_pb2.SelectModelResponse(model=OPUS, tier=chat_pb2.TIER_COMPLEX))
    mesh.fakes.then(
        "ReserveFunds",
        decide(decision=ledger_pb2.RESERVE_DECISION_DOWNGRADE, budget_name="monthly", remaining_nano_usd=9),
        decide(decision=ledger_pb2.RESERVE_DECISION_DOWNGRADE, budget_name="monthly", remaining_nano_usd=9),
    )
    reply = await mesh.generate(ask(), key="hard")
    assert [asked.tier_ceiling for asked in mesh.fakes.requests("SelectModel")] == [0, 2, 1]
    assert reply.completion.model == LOCAL
    await until(lambda: mesh.fakes.count("StoreCompletion") == 1)
    assert mesh.fakes.requests("StoreCompletion")[0].share_only


@pytest.mark.parametrize(
    ("decision", "policy", "asked"),
    [
        (ledger_pb2.RESERVE_DECISION_REFUSED, {}, 1),
        (ledger_pb2.RESERVE_DECISION_DOWNGRADE, {"tier_floor": Tier.TIER_MEDIUM}, 1),
        (ledger_pb2.RESERVE_DECISION_DOWNGRADE, {"model": MINI}, 1),
        (ledger_pb2.RESERVE_DECISION_DOWNGRADE, {}, 2),
        (ledger_pb2.RESERVE_DECISION_CACHE_ONLY, {}, 1),
        (ledger_pb2.RESERVE_DECISION_BATCH, {}, 1),
    ],
    ids=["refused", "floor", "named", "bottom", "cache_only", "batch"],
)
async def test_a_budget_that_holds_no_allowed_tier(
    mesh: Mesh, decision: ledger_pb2.ReserveDecision.ValueType, policy: dict[str, Any], asked: int
) -> None:
    mesh.fakes.on(
        "ReserveFunds",
        ledger_pb2.ReserveFundsResponse(decision=decision, budget_name="monthly", remaining_nano_usd=9),
    )
    request = ask(policy=chat_pb2.RequestPolicy(**policy))
    with pytest.raises(TenthError) as raised:
        await mesh.generate(request, key="hard")
    assert (raised.value.code, raised.value.reason) == (Code.RESOURCE_EXHAUSTED, "BUDGET_EXCEEDED")
    step = ledger_pb2.ReserveDecision.Name(decision).removeprefix("RESERVE_DECISION_").lower()
    assert raised.value.metadata == {"budget": "monthly", "remaining_nano_usd": "9", "step": step}
    assert ("completion_window" in raised.value.message) is (step == "batch")
    assert mesh.fakes.count("ReserveFunds") == asked
    assert mesh.fakes.count("GenerateText") == 0
    assert (await mesh.settled(request.request_id)).overhead_nano_usd == 10  # The embedding.


async def test_what_the_ledger_needs_to_pick_budgets_goes_with_the_reservation(mesh: Mesh) -> None:
    mesh.fakes.then("SelectModel", router_pb2.SelectModelResponse(model=MINI, tier=chat_pb2.TIER_MEDIUM))
    request = ask(tags={"team": "search"})
    await mesh.generate(request)
    [asked] = mesh.fakes.requests("ReserveFunds")
    assert (dict(asked.tags), asked.batch, asked.tier) == ({"team": "search"}, False, chat_pb2.TIER_MEDIUM)
    # The instant at which the receipt is priced.
    assert asked.create_time == (await mesh.settled(request.request_id)).facts.create_time


async def test_the_limit_of_all_replicas_is_typed_and_says_when_to_come_back(mesh: Mesh) -> None:
    limited = ledger_pb2.ReserveFundsResponse(decision=ledger_pb2.RESERVE_DECISION_RATE_LIMITED)
    limited.retry_after.FromMilliseconds(1500)
    mesh.fakes.on("ReserveFunds", limited)
    with pytest.raises(TenthError) as raised:
        await mesh.generate(ask())
    assert (raised.value.code, raised.value.reason) == (Code.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert raised.value.retry_after_seconds == 1.5
    assert mesh.fakes.count("GenerateText") == 0


async def test_a_router_that_ignores_the_ceiling_does_not_loop(mesh: Mesh) -> None:
    mesh.fakes.on("SelectModel", router_pb2.SelectModelResponse(model=OPUS, tier=chat_pb2.TIER_COMPLEX))
    mesh.fakes.on("ReserveFunds", ledger_pb2.ReserveFundsResponse(decision=ledger_pb2.RESERVE_DECISION_DOWNGRADE))
    with pytest.raises(TenthError) as raised:
        await mesh.generate(ask(), key="hard")
    assert raised.value.reason == "BUDGET_EXCEEDED"
    assert mesh.fakes.count("ReserveFunds") == 3


@pytest.mark.parametrize(
    "method", ["LookupCompletion", "SelectModel", "CompressPrompt", "ReserveFunds", "GenerateText"]
)
async def test_an_expired_deadline_spends_nothing_more(mesh: Mesh, method: str) -> None:
    mesh.fakes.on(method, slow(1.0))
    request = ask()
    with pytest.raises(TenthError) as raised:
        await mesh.generate(request, timeout=0.25)
    assert raised.value.code is Code.DEADLINE_EXCEEDED
    receipt = await mesh.settled(request.request_id)
    assert receipt.facts.failed
    assert receipt.actual_nano_usd == receipt.overhead_nano_usd <= 10
    if method != "GenerateText":
        assert mesh.fakes.count("GenerateText") == 0
    else:
        assert mesh.fakes.count("GenerateText") == 1  # Not tried again at the next model.
        assert receipt.facts.attempts_unknown


async def test_a_deadline_that_has_passed_already_reaches_nobody(mesh: Mesh) -> None:
    with pytest.raises(TenthError) as raised:
        await mesh.generate(ask(), timeout=0)
    assert raised.value.code is Code.DEADLINE_EXCEEDED
    assert mesh.fakes.count("LookupCompletion") == 0


@pytest.mark.parametrize("streaming", [True, False])
async def test_a_caller_who_leaves_stops_the_model(mesh: Mesh, streaming: bool) -> None:
    method = "StreamGenerateText" if streaming else "GenerateText"
    mesh.fakes.on("StreamGenerateText", [began(), piece("Hel"), 5, ended()])
    mesh.fakes.on("GenerateText", slow(5))
    request = ask()
    work = asyncio.create_task(mesh.events(request) if streaming else mesh.generate(request))
    await until(lambda: mesh.fakes.count(method) == 1)
    await asyncio.sleep(0.05)
    work.cancel()
    await until(lambda: method in mesh.fakes.cancelled)
    receipt = await mesh.settled(request.request_id)
    assert receipt.facts.failed
    assert receipt.facts.cancelled
    assert receipt.facts.attempts_unknown
    assert receipt.facts.reservation_id.startswith("reservation-")
    released = mesh.fakes.requests("ReleaseLease")
    assert released[0].only_if_unfollowed


async def test_a_caller_who_leaves_while_others_follow_does_not_stop_the_model(mesh: Mesh) -> None:
    mesh.fakes.on("ReleaseLease", cache_pb2.ReleaseLeaseResponse(released=False, follower_count=1))
    mesh.fakes.on("GenerateText", slow(0.4))
    request = ask()
    work = asyncio.create_task(mesh.generate(request))
    await until(lambda: mesh.fakes.count("GenerateText") == 1)
    work.cancel()
    receipt = await mesh.settled(request.request_id)
    assert not receipt.facts.failed
    await until(lambda: mesh.fakes.count("StoreCompletion") == 1)
    assert mesh.fakes.cancelled == []


async def test_followers_are_asked_about_at_their_own_shard(start: Start) -> None:
    mesh = await start(cache_replicas=2)
    mesh.fakes.on("GenerateText", slow(5))
    for number in range(6):
        request = ask(namespace=f"app-{number}")
        work = asyncio.create_task(mesh.generate(request))
        await until(lambda: mesh.fakes.count("GenerateText") == number + 1)  # noqa: B023  (awaited here)
        work.cancel()
        await mesh.settled(request.request_id)
    looked_up = [seen.replica for seen in mesh.fakes.seen if seen.method == "LookupCompletion"]
    released = [seen for seen in mesh.fakes.seen if seen.method == "ReleaseLease" and seen.request.only_if_unfollowed]
    assert [seen.replica for seen in released] == looked_up
    assert set(looked_up) == {0, 1}


@pytest.mark.parametrize(
    ("key", "request_fields", "code", "reason", "field"),
    [
        ("stranger", {}, Code.PERMISSION_DENIED, "UNKNOWN_TENANT", ""),
        ("plain", {"user_id": "u"}, Code.PERMISSION_DENIED, Reason.USER_ASSERTION_FORBIDDEN, "request.user_id"),
        ("plain", {"project_id": "p"}, Code.PERMISSION_DENIED, Reason.USER_ASSERTION_FORBIDDEN, "request.project_id"),
        ("app", {"namespace": "a b"}, Code.INVALID_ARGUMENT, Reason.INVALID_FIELD, "request.namespace"),
    ],
)
async def test_refused_at_the_door(
    mesh: Mesh, key: str, request_fields: dict[str, Any], code: Code, reason: str, field: str
) -> None:
    with pytest.raises(TenthError) as raised:
        await mesh.generate(ask(**request_fields), key=key)
    assert (raised.value.code, raised.value.reason, raised.value.field) == (code, reason, field)
    assert mesh.fakes.count("LookupCompletion") == 0


@pytest.mark.parametrize("model", [OPUS, MINI], ids=["baseline", "chosen"])
async def test_a_model_without_a_price_is_never_asked(start: Start, model: str) -> None:
    mesh = await start()
    del mesh.fakes.prices[model]
    await mesh.switched()
    with pytest.raises(TenthError) as raised:
        await mesh.generate(ask())
    assert (raised.value.code, raised.value.reason) == (Code.FAILED_PRECONDITION, "PRICE_UNKNOWN")
    assert raised.value.metadata["model"] == model
    assert mesh.fakes.count("GenerateText") == 0


async def test_an_overhead_without_a_price_still_leaves_a_receipt(mesh: Mesh) -> None:
    item = receipt_pb2.OverheadItem(kind="classifier", model="unpriced")
    item.usage.input_token_count = 10
    mesh.fakes.on(
        "SelectModel", router_pb2.SelectModelResponse(model=MINI, tier=chat_pb2.TIER_MEDIUM, overheads=[item])
    )
    request = ask()
    mesh.fakes.on("GenerateText", TenthError(Code.INVALID_ARGUMENT, "PROVIDER_REJECTED", "no"))
    with pytest.raises(TenthError) as raised:
        await mesh.generate(request)
    assert raised.value.reason == "PROVIDER_REJECTED"
    receipt = await mesh.settled(request.request_id)
    assert receipt.facts.failed
    assert receipt.facts.attempts_unknown, "the ledger adds it from inference's records"


SUMMARY = receipt_pb2.OverheadItem(kind="summary", model=LOCAL, attempt=7)
SUMMARY.usage.input_token_count = 1000


async def test_what_a_summary_cost_is_on_the_receipt(mesh: Mesh) -> None:
    short = mesh.fakes._CompressPrompt(compressor_pb2.CompressPromptRequest(model=MINI))
    short.overheads.append(SUMMARY)
    mesh.fakes.on("CompressPrompt", short)
    reply = await mesh.generate(ask())
    (item,) = [each for each in reply.receipt.facts.overheads if each.kind == "summary"]
    assert (item.model, item.attempt, item.cost_nano_usd) == (LOCAL, 7, 1000 * PRICES[LOCAL][0])
    assert adds_up(reply.receipt)
    (asked,) = mesh.fakes.requests("CompressPrompt")
    (generated,) = mesh.fakes.requests("GenerateText")
    assert asked.summary_attempt // 1000 == generated.attempt // 1000, "of the request's own range"
    assert asked.summary_attempt != generated.attempt


@pytest.mark.parametrize("code", [Code.INVALID_ARGUMENT, Code.UNAVAILABLE], ids=["refused", "down"])
async def test_what_a_summary_cost_is_on_the_receipt_though_compression_failed(mesh: Mesh, code: Code) -> None:
    detail_of = receipt_pb2.SpentDetail(attempts=[SUMMARY])
    mesh.fakes.on("CompressPrompt", TenthError(code, "PROMPT_TOO_LONG", "no", details=(detail_of,)))
    request = ask()
    if code is Code.UNAVAILABLE:
        receipt = (await mesh.generate(request)).receipt
    else:
        with pytest.raises(TenthError) as raised:
            await mesh.generate(request)
        assert [item.kind for item in spent_detail(raised.value).attempts if item.model] == ["summary"]
        receipt = await mesh.settled(request.request_id)
        assert receipt.facts.failed
    (item,) = [each for each in receipt.facts.overheads if each.kind == "summary"]
    assert item.cost_nano_usd == 1000 * PRICES[LOCAL][0]
    assert adds_up(receipt)


async def test_a_tenant_over_its_rate_is_told_when_to_come_back(mesh: Mesh) -> None:
    for _ in range(2):
        await mesh.generate(ask(), key="limited")
    with pytest.raises(TenthError) as raised:
        await mesh.generate(ask(), key="limited")
    assert (raised.value.code, raised.value.reason) == (Code.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert raised.value.retry_after_seconds is not None
    assert 0 < raised.value.retry_after_seconds <= 30
    await mesh.generate(ask())  # Others are served.


async def test_bad_input_leaves_the_mesh_serving(mesh: Mesh) -> None:
    bad = [
        chat_pb2.CompletionRequest(),
        ask("x" * (5 * 1024 * 1024)),
        chat_pb2.CompletionRequest(messages=[chat_pb2.ChatMessage(role=9)]),  # type: ignore[arg-type]  # On purpose.
        chat_pb2.CompletionRequest(messages=[message("hi")], request_id="not-a-uuid"),
    ]
    for request in bad:
        with pytest.raises(TenthError) as raised:
            await mesh.generate(request)
        assert raised.value.code is Code.INVALID_ARGUMENT
        assert raised.value.field
    assert (await mesh.generate(ask())).completion.message.parts


async def test_everything_but_inference_is_down(mesh: Mesh) -> None:
    for method in ("LookupCompletion", "SelectModel", "CompressPrompt", "ReserveFunds", "StoreCompletion"):
        mesh.fakes.on(method, DOWN)
    reply = await mesh.generate(ask())
    assert set(hops(reply.receipt).values()) == {"DEGRADED", "OK"}
    assert adds_up(reply.receipt)
    mesh.fakes.on("LookupCompletion", follow())
    mesh.fakes.on("FollowCompletion", DOWN)
    assert hops((await mesh.generate(ask())).receipt)["follow"] == "DEGRADED"
