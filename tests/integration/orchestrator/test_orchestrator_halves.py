"""The request path in two halves: what a batch's item is prepared into, and how it ends."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tenth.cache.v1 import cache_pb2
from tenth.inference.v1 import inference_pb2
from tenth.ledger.v1 import ledger_pb2
from tenth.orchestrator.v1 import orchestrator_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.errors import Code, TenthError
from tests.integration.orchestrator.conftest import Start
from tests.integration.orchestrator.orchestrator_fakes import (
    BATCH,
    DOWN,
    EMBEDDING,
    LOCAL,
    MINI,
    OPUS,
    Mesh,
    adds_up,
    ask,
    completion,
    generated,
    hit,
    hops,
    message,
    spent,
    until,
    usage,
)

pb = orchestrator_pb2
Request = chat_pb2.CompletionRequest


def refuse(decision: ledger_pb2.ReserveDecision.ValueType) -> ledger_pb2.ReserveFundsResponse:
    return ledger_pb2.ReserveFundsResponse(decision=decision, budget_name="monthly", remaining_nano_usd=5)


def answered(request: Request, prepared: pb.PreparedCompletion, **fields: Any) -> pb.CompletionToFinish:
    """An answer of OpenAI's batch lane."""
    item = pb.CompletionToFinish(
        request=request,
        state=prepared.state,
        generated=fields.pop("generated", generated("Hello.")),
        attempt=prepared.generation.attempt,
        **{"batch": True, "lane": "openai", **fields},
    )
    item.duration.FromSeconds(3600)
    return item


async def prepared(mesh: Mesh, request: Request, **options: Any) -> pb.PreparedCompletion:
    [outcome] = await mesh.prepare(request, **options)
    assert outcome.WhichOneof("outcome") == "prepared", outcome
    return outcome.prepared


async def finished(mesh: Mesh, item: pb.CompletionToFinish) -> pb.FinishedCompletion:
    [outcome] = await mesh.finish(item)
    assert outcome.WhichOneof("outcome") == "finished", outcome
    return outcome.finished


async def test_a_miss_is_prepared_and_finished_at_batch_prices(mesh: Mesh) -> None:
    request = ask(tags={"team": "support"}, user_id="ann")
    first = await prepared(mesh, request)

    generation = first.generation
    assert generation.request_id == request.request_id
    assert generation.model == MINI
    assert [each.parts[0].text for each in generation.messages] == ["short"]
    assert generation.priority == inference_pb2.PRIORITY_BATCH
    assert generation.sampling.max_output_tokens == 1024
    assert generation.reservation_id
    assert generation.attempt > 0
    assert (first.tier, first.self_hosted, first.has_batch_price) == (chat_pb2.TIER_MEDIUM, False, True)
    assert first.reserved_nano_usd == 10
    assert first.expected_nano_usd == 80 * 500 + 200 * 1_000
    assert first.embedding == EMBEDDING
    assert first.cacheable
    assert 0 < len(first.state) < 64 * 1024
    [reserve] = mesh.fakes.requests("ReserveFunds")
    assert reserve.batch
    assert reserve.ttl.seconds == 86_400
    assert reserve.user_id == "ann"
    [lookup] = mesh.fakes.requests("LookupCompletion")
    assert lookup.without_lease
    [select] = mesh.fakes.requests("SelectModel")
    assert select.request.policy.cascade_mode == chat_pb2.CASCADE_MODE_OFF
    assert not select.HasField("time_left")
    assert mesh.fakes.count("GenerateText") == mesh.fakes.count("ReleaseLease") == 0

    end = await finished(mesh, answered(request, first))
    assert end.completion.message.parts[0].text == "Hello."
    assert (end.completion.model, end.completion.tier) == (MINI, chat_pb2.TIER_MEDIUM)
    facts = end.receipt.facts
    assert facts.batch
    assert facts.attempt == generation.attempt
    assert facts.reservation_id == generation.reservation_id
    assert facts.user_id == "ann"
    assert dict(facts.tags) == {"team": "support"}
    assert facts.price_book_version == 7
    assert facts.end_time.ToNanoseconds() > facts.create_time.ToNanoseconds()
    assert adds_up(end.receipt)
    compute = next(item.cost_nano_usd for item in facts.overheads if item.kind == "compute")
    assert end.receipt.actual_nano_usd == 80 * 500 + 5 * 1_000 + compute
    batch = {each.layer: each.saving_nano_usd for each in end.receipt.savings}[receipt_pb2.LAYER_BATCH]
    assert batch == 80 * 500 + 5 * 1_000
    assert hops(end.receipt) == dict.fromkeys(("cache", "router", "compressor", "ledger", "batch"), "OK")
    assert facts.hops[-1].reason == "openai: at batch prices"
    assert facts.hops[-1].duration.seconds == 3600

    # The cache has it before the call returns: the batch asks it next.
    [store] = mesh.fakes.requests("StoreCompletion")
    assert (store.lease_id, store.share_only, store.price_book_version) == ("", False, 7)
    assert store.embedding == EMBEDDING
    assert store.completion.baseline_input_token_count == 110
    assert not store.request.sampling.HasField("max_output_tokens")
    assert (await mesh.settled(request.request_id)) == end.receipt
    await until(lambda: mesh.fakes.count("RecordCompletion") == 1 and mesh.fakes.count("RecordUsage") == 1)
    [record] = mesh.fakes.requests("RecordCompletion")
    assert record.model == MINI
    assert not record.duration.ToNanoseconds(), "a provider's queue says nothing about its model"
    identities = {each.identity.user_id for each in mesh.fakes.seen if each.method == "StoreCompletion"}
    assert identities == {"ann"}

    # Found like any other answer.
    got = await mesh.client.GetCompletion(pb.GetCompletionRequest(operation=f"operations/{request.request_id}"))
    assert got.state == pb.OPERATION_STATE_DONE
    assert got.completion == end.completion


async def test_a_hit_is_answered_at_once(mesh: Mesh) -> None:
    mesh.fakes.on("LookupCompletion", hit())
    request = ask()
    [outcome] = await mesh.prepare(request)
    assert outcome.answered.completion.message.parts[0].text == "Stored."
    receipt = outcome.answered.receipt
    assert (receipt.actual_nano_usd, receipt.facts.cache_hit_kind) == (0, "exact")
    assert adds_up(receipt)
    assert mesh.fakes.count("SelectModel") == mesh.fakes.count("ReserveFunds") == 0
    # Asked again, the same answer without another look-up; and it cannot be finished into another one.
    assert await mesh.prepare(request) == [outcome]
    assert mesh.fakes.count("LookupCompletion") == 1
    again = await finished(mesh, pb.CompletionToFinish(request=request, shared=completion("Another.")))
    assert again == outcome.answered


async def test_an_identical_request_in_the_air_is_not_followed(mesh: Mesh) -> None:
    lease = cache_pb2.LookupCompletionResponse(lease=cache_pb2.Lease())
    mesh.fakes.on("LookupCompletion", lease)
    first = await prepared(mesh, ask())
    assert first.cacheable
    assert not first.HasField("embedding")
    assert mesh.fakes.count("FollowCompletion") == mesh.fakes.count("ReleaseLease") == 0


@pytest.mark.parametrize(
    ("policy", "found", "options", "cacheable", "stored"),
    [
        ({}, None, {}, True, 1),
        ({}, cache_pb2.LookupCompletionResponse(bypass=cache_pb2.Bypass(reason="temperature")), {}, False, 0),
        ({}, DOWN, {}, False, 1),
        ({}, None, {"skip_cache": True}, False, 1),
        ({}, None, {"excluded_models": [OPUS]}, False, 0),
        ({"cache_mode": chat_pb2.CACHE_MODE_OFF}, None, {}, False, 0),
        ({"cache_mode": chat_pb2.CACHE_MODE_READ}, None, {}, False, 0),
        ({"cache_mode": chat_pb2.CACHE_MODE_WRITE}, None, {}, False, 1),
    ],
)
async def test_what_the_cache_may_give_to_others(
    mesh: Mesh, policy: Any, found: Any, options: Any, cacheable: bool, stored: int
) -> None:
    mesh.fakes.on("LookupCompletion", found)
    request = ask(policy=policy)
    first = await prepared(mesh, request, **options)
    assert first.cacheable is cacheable
    await finished(mesh, answered(request, first))
    assert mesh.fakes.count("StoreCompletion") == stored
    assert mesh.fakes.count("LookupCompletion") == (
        not options.get("skip_cache") and policy.get("cache_mode") != chat_pb2.CACHE_MODE_OFF
    )


async def test_a_truncated_answer_is_not_stored(mesh: Mesh) -> None:
    request = ask()
    first = await prepared(mesh, request)
    cut = generated("Hel", finish_reason=chat_pb2.FINISH_REASON_LENGTH)
    await finished(mesh, answered(request, first, generated=cut))
    assert mesh.fakes.count("StoreCompletion") == 0


async def test_items_fail_alone(mesh: Mesh) -> None:
    good, poor, wrong, anonymous = ask(), ask(), ask(), ask()
    wrong.messages[0].role = chat_pb2.ROLE_UNSPECIFIED
    anonymous.request_id = ""

    def reserve(request: ledger_pb2.ReserveFundsRequest) -> Any:
        poor_one = request.request_id == poor.request_id
        return refuse(ledger_pb2.RESERVE_DECISION_REFUSED) if poor_one else None

    mesh.fakes.on("ReserveFunds", lambda request: reserve(request) or mesh.fakes._ReserveFunds(request))
    outcomes = await mesh.prepare(good, poor, wrong, anonymous)
    assert [outcome.WhichOneof("outcome") for outcome in outcomes] == ["prepared", "error", "error", "error"]
    budget, form, unnamed = (outcome.error for outcome in outcomes[1:])
    assert (budget.reason, budget.retryable) == ("BUDGET_EXCEEDED", False)
    assert (form.reason, form.field) == ("INVALID_FIELD", "request.messages[0].role")
    assert (unnamed.reason, unnamed.field) == ("REQUIRED_FIELD", "request.request_id")
    # What the refused one has spent is on the books, like any failure.
    receipt = await mesh.settled(poor.request_id)
    assert receipt.facts.failed
    assert receipt.actual_nano_usd == receipt.overhead_nano_usd > 0
    assert not mesh.fakes.receipts(good.request_id)


async def test_a_tight_budget_sends_an_item_down_a_tier(mesh: Mesh) -> None:
    mesh.fakes.then("ReserveFunds", refuse(ledger_pb2.RESERVE_DECISION_DOWNGRADE))
    request = ask()
    first = await prepared(mesh, request)
    assert (first.generation.model, first.tier, first.self_hosted) == (LOCAL, chat_pb2.TIER_SIMPLE, True)
    assert not first.has_batch_price
    assert not first.cacheable
    await finished(mesh, answered(request, first, batch=False, lane="local"))
    assert mesh.fakes.count("StoreCompletion") == 0


@pytest.mark.parametrize(
    ("model", "batch_prices", "batch"),
    [(MINI, True, True), (MINI, False, False), (OPUS, True, False), (LOCAL, True, True), (LOCAL, False, False)],
)
async def test_which_reservations_are_a_batchs(mesh: Mesh, model: str, batch_prices: bool, batch: bool) -> None:
    first = await prepared(mesh, ask(policy={"model": model}), batch_prices=batch_prices)
    assert first.generation.model == model
    assert [each.batch for each in mesh.fakes.requests("ReserveFunds")] == [batch]
    price_in, price_out = {MINI: (1_000, 2_000), OPUS: (5_000, 25_000), LOCAL: (10, 20)}[model]
    if model == MINI and batch_prices:
        price_in, price_out = 500, 1_000
    assert first.expected_nano_usd == 80 * price_in + 200 * price_out


async def test_the_kill_switch_keeps_items_from_batch_prices_and_lanes(mesh: Mesh) -> None:
    await mesh.switched("batch")
    first = await prepared(mesh, ask(policy={"model": MINI}), batch_prices=True)
    assert [each.batch for each in mesh.fakes.requests("ReserveFunds")] == [False]
    assert first.expected_nano_usd == 80 * 1_000 + 200 * 2_000
    assert not first.has_batch_price, "the planner takes no provider's lane then"


async def test_batches_are_outside_of_the_requests_per_minute(mesh: Mesh) -> None:
    limited = replace(BATCH, tenant_id="limited")
    outcomes = await mesh.prepare(*(ask() for _ in range(10)), identity=limited)
    assert [outcome.WhichOneof("outcome") for outcome in outcomes] == ["prepared"] * 10
    # At online prices they are where callers are, two a minute.
    outcomes = await mesh.prepare(*(ask() for _ in range(3)), identity=limited, batch_prices=False)
    refused = [outcome.error for outcome in outcomes if outcome.HasField("error")]
    assert [(error.reason, error.retryable) for error in refused] == [("RATE_LIMITED", True)]


async def test_a_part_that_is_down_passes(mesh: Mesh) -> None:
    mesh.fakes.on("ReserveFunds", DOWN)
    [outcome] = await mesh.prepare(ask(), identity=replace(BATCH, tenant_id="hard"))
    assert (outcome.error.reason, outcome.error.retryable) == ("BUDGET_UNAVAILABLE", True)


async def test_prepared_again_after_a_failure(mesh: Mesh) -> None:
    request = ask()
    mesh.fakes.then("SelectModel", spent("PROVIDER_DOWN"), TenthError(Code.NOT_FOUND, "UNKNOWN_MODEL", "none"))
    await prepared(mesh, ask())  # The router down: the default tier.
    [outcome] = await mesh.prepare(request)
    assert outcome.error.reason == "UNKNOWN_MODEL"
    first = await prepared(mesh, request, excluded_models=[MINI])
    assert first.generation.model == OPUS
    end = await finished(mesh, answered(request, first, batch=False, lane="online"))
    # The embedding of both tries is paid for.
    assert [item.compute_micros for item in end.receipt.facts.overheads] == [1000, 1000]
    assert adds_up(end.receipt)
    await until(lambda: mesh.fakes.count("RecordCompletion") > 0)
    assert list(mesh.fakes.requests("RecordCompletion")[-1].failed_models) == [MINI]


async def test_a_fixed_model_that_failed_is_not_taken_again(mesh: Mesh) -> None:
    await mesh.switched("routing")
    request = ask()
    [outcome] = await mesh.prepare(request, excluded_models=[OPUS])
    assert (outcome.error.reason, outcome.error.retryable) == ("NO_MODEL_AVAILABLE", False)
    # What was reserved for it goes back with the receipt.
    assert (await mesh.settled(request.request_id)).facts.reservation_id


async def test_what_earlier_attempts_spent_is_on_the_receipt_once(mesh: Mesh) -> None:
    request = ask()
    first = await prepared(mesh, request)
    number = first.generation.attempt
    attempts = [
        receipt_pb2.OverheadItem(kind="failed_attempt", model=MINI, usage=usage(80, 2), attempt=number),
        receipt_pb2.OverheadItem(kind="failed_attempt", model="gone", usage=usage(80, 2), attempt=number + 1),
    ]
    failed = pb.CompletionToFinish(
        request=request, state=first.state, attempts=attempts, lane="openai", failed=pb.HalfError(reason="LATE")
    )
    end = await finished(mesh, failed)
    assert not end.HasField("completion")
    assert end.receipt.facts.failed
    assert end.receipt.facts.attempts_unknown, "what has no price here the ledger adds"
    assert end.receipt.overhead_nano_usd >= 80 * 1_000 + 2 * 2_000
    assert await finished(mesh, failed) == end, "told again"
    assert len(mesh.fakes.requests("StoreCompletion")) == 0
    kept = await mesh.client.GetCompletion(pb.GetCompletionRequest(operation=f"operations/{request.request_id}"))
    assert (kept.state, kept.error_reason) == (pb.OPERATION_STATE_FAILED, "LATE")

    # A later run answers it: both on one receipt.
    second = await prepared(mesh, request)
    again = answered(request, second, attempts=attempts, lane="online", batch=False)
    over = (await finished(mesh, again)).receipt
    numbers = [item.attempt for item in over.facts.overheads if item.attempt]
    assert numbers == [number]
    assert not over.facts.failed
    assert adds_up(over)


async def test_a_shared_answer_costs_nothing(mesh: Mesh) -> None:
    leader, follower, prepared_too = ask(), ask(), ask()
    end = await finished(mesh, answered(leader, await prepared(mesh, leader)))
    before = await prepared(mesh, prepared_too)
    items = [
        pb.CompletionToFinish(request=follower, shared=end.completion),
        pb.CompletionToFinish(request=prepared_too, state=before.state, shared=end.completion, lane="openai"),
    ]
    outcomes = await mesh.finish(*items)
    for request, outcome in zip((follower, prepared_too), outcomes, strict=True):
        receipt = outcome.finished.receipt
        assert outcome.finished.completion == end.completion
        assert receipt.facts.request_id == request.request_id
        assert receipt.facts.cache_hit_kind == "follow"
        assert receipt.baseline_nano_usd == 110 * 5_000 + 5 * 25_000
        assert adds_up(receipt)
        assert hops(receipt)["batch"] == "OK"
    alone, held = (outcome.finished.receipt for outcome in outcomes)
    assert alone.actual_nano_usd == 0
    assert held.facts.reservation_id == before.generation.reservation_id, "it goes back with the receipt"
    assert mesh.fakes.count("StoreCompletion") == 1


async def test_finishing_is_idempotent_also_over_a_restart_between_the_halves(mesh: Mesh) -> None:
    request = ask()
    first = await prepared(mesh, request)
    await mesh.stop()
    # Days later: another process, another price book, another baseline.
    mesh.fakes.prices.update({MINI: (9_000, 9_000), OPUS: (9_000, 9_000)})
    mesh.fakes.price_book_version += 1
    mesh.fakes.change_policy()
    await mesh.start()
    await until(lambda: mesh.fakes.count("GetAdmissionSnapshot") > 3)
    item = answered(request, first)
    [once] = await mesh.finish(item)
    assert once.finished.receipt.facts.price_book_version == 7
    compute = sum(each.cost_nano_usd for each in once.finished.receipt.facts.overheads)
    assert once.finished.receipt.actual_nano_usd == 80 * 500 + 5 * 1_000 + compute
    assert once.finished.receipt.baseline_nano_usd == 110 * 5_000 + 5 * 25_000
    assert await mesh.finish(item) == [once]
    assert len(mesh.fakes.receipts(request.request_id)) <= 1
    assert mesh.fakes.count("StoreCompletion") == 1
    # The same id with another question is another request's.
    other = Request(request_id=request.request_id, messages=[message("Another?")])
    [outcome] = await mesh.finish(answered(other, first))
    assert outcome.error.reason == "REQUEST_ID_REUSED"
    [again] = await mesh.prepare(other)
    assert again.error.reason == "REQUEST_ID_REUSED"


async def test_a_state_belongs_to_its_request_and_tenant(mesh: Mesh) -> None:
    request, other = ask(), ask("Another?")
    first = await prepared(mesh, request)
    items = [
        answered(other, first),
        pb.CompletionToFinish(request=other, state=b"\xff\xff", generated=generated("Hi.")),
        pb.CompletionToFinish(request=other, generated=generated("Hi.")),
        pb.CompletionToFinish(request=other, state=first.state),
    ]
    outcomes = await mesh.finish(*items, answered(request, first))
    errors = [(outcome.error.reason, outcome.error.field) for outcome in outcomes[:4]]
    assert errors == [
        ("INVALID_FIELD", "state"),
        ("INVALID_FIELD", "state"),
        ("REQUIRED_FIELD", "state"),
        ("REQUIRED_FIELD", "outcome"),
    ]
    assert outcomes[4].HasField("finished")
    another = ask()
    stolen = answered(another, await prepared(mesh, another))
    [outcome] = await mesh.finish(stolen, identity=replace(BATCH, tenant_id="hard"))
    assert (outcome.error.reason, outcome.error.field) == ("INVALID_FIELD", "state")


async def test_a_usage_that_cannot_be_is_a_failure_with_its_spend_open(mesh: Mesh) -> None:
    request = ask()
    first = await prepared(mesh, request)
    absurd = usage(10, 5)
    absurd.cached_input_token_count = 11
    [outcome] = await mesh.finish(answered(request, first, generated=generated("Hi.", usage=absurd)))
    assert (outcome.error.reason, outcome.error.retryable) == ("AMOUNT_OUT_OF_RANGE", False)
    receipt = await mesh.settled(request.request_id)
    assert receipt.facts.failed
    assert receipt.facts.attempts_unknown


async def test_no_item_of_the_control_share_is_in_a_batch(mesh: Mesh) -> None:
    mesh.fakes.control_share = 1.0
    await mesh.switched()
    request = ask()
    first = await prepared(mesh, request)
    assert first.generation.model == MINI
    assert "tenth.control" not in (await finished(mesh, answered(request, first))).receipt.facts.tags


async def test_only_a_caller_who_may_name_users(mesh: Mesh) -> None:
    plain = replace(BATCH, may_assert_user=False)
    [outcome] = await mesh.prepare(ask(user_id="ann"), identity=plain)
    assert (outcome.error.reason, outcome.error.field) == ("USER_ASSERTION_FORBIDDEN", "request.user_id")


async def test_an_outside_caller_has_no_halves_whatever_it_is_granted(mesh: Mesh) -> None:
    with pytest.raises(TenthError) as raised:
        await mesh.outside.PrepareCompletions(pb.PrepareCompletionsRequest(items=[pb.CompletionToPrepare()]))
    assert (raised.value.code, raised.value.reason) == (Code.PERMISSION_DENIED, "CALLER_FORBIDDEN")
    with pytest.raises(TenthError) as raised:
        await mesh.outside.FinishCompletions(pb.FinishCompletionsRequest(items=[pb.CompletionToFinish()]))
    assert (raised.value.code, raised.value.reason) == (Code.PERMISSION_DENIED, "CALLER_FORBIDDEN")


@pytest.mark.parametrize("count", [0, 101])
async def test_a_call_has_from_1_to_100_items(mesh: Mesh, count: int) -> None:
    for call in (mesh.prepare(*([ask()] * count)), mesh.finish(*([pb.CompletionToFinish()] * count))):
        with pytest.raises(TenthError) as raised:
            await call
        assert (raised.value.code, raised.value.field) == (Code.INVALID_ARGUMENT, "items")


@pytest.mark.parametrize("seconds", [0, 8 * 86_400 + 1])
async def test_a_reservation_stands_for_8_days_at_most(mesh: Mesh, seconds: int) -> None:
    item = pb.CompletionToPrepare(request=ask())
    item.reservation_ttl.FromSeconds(seconds)
    await mesh.prepare(ask())  # Sets the identity of this test's calls.
    reply = await mesh.halves.PrepareCompletions(pb.PrepareCompletionsRequest(items=[item]))
    assert (reply.outcomes[0].error.reason, reply.outcomes[0].error.field) == ("INVALID_FIELD", "reservation_ttl")


async def test_only_some_are_prepared_at_once(start: Start) -> None:
    mesh = await start(halves_concurrency=3)
    running, most = 0, 0

    async def look(request: Any) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await until(lambda: running >= 3 or mesh.fakes.count("LookupCompletion") >= 12)
        running -= 1
        return None

    mesh.fakes.on("LookupCompletion", look)
    outcomes = await mesh.prepare(*(ask() for _ in range(12)))
    assert all(outcome.HasField("prepared") for outcome in outcomes)
    assert most == 3
