"""What travels between the two halves of a request, and what the second half makes of it."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any, cast

import pytest
from tenth.ledger.v1 import ledger_pb2
from tenth.orchestrator.v1 import halves_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2, usage_pb2

from mesh.auth import Identity, set_identity
from mesh.errors import Code, TenthError
from mesh.receipt import Price, PriceStep
from mesh.wire import build_receipt
from services.orchestrator import half_state
from services.orchestrator.admission import Admission, payload_digest
from services.orchestrator.call import Call, Later, Prompt, Route
from services.orchestrator.halves import half_error
from services.orchestrator.settings import OrchestratorSettings
from services.orchestrator.snapshot import Snapshot

STEPPED = Price(
    "base", 5_000, 25_000, cached_input=500, cache_write_5m=6_250, steps=(PriceStep(200_000, 10_000, 37_500),)
)
HALF = Price("m", 1_000, 2_000, cached_input=100, batch_input=500, batch_output=1_000, request_fee=7)
COMES_BACK = (
    "digest",
    "trace_id",
    "price_book_version",
    "hops",
    "overheads",
    "compute_micros",
    "reservation_id",
    "downgraded",
    "excluded",
    "routed",
    "compressed_for",
    "told_tokens",
    "token_correction",
    "attempts_unknown",
    "attempt_base",
    "tags",
)
PRICES = {
    "base": STEPPED,
    "m": HALF,
    "paid": Price("paid", 3, 4),
    "other": Price("other", 5, 6),
    "cpu": Price("cpu", 0, 0, cpu_hour=36_000_000),
}
CLASSIFIED = usage_pb2.Usage(input_token_count=9)
ROUTE = Route("m", chat_pb2.TIER_MEDIUM, degraded=True)
PROMPT = Prompt(
    messages=(),
    chunks=(),
    original_tokens=100,
    sent_tokens=80,
    baseline_tokens=110,
    estimated=False,
    max_output_tokens=9,
)


def request() -> chat_pb2.CompletionRequest:
    text = chat_pb2.ContentPart(text="Why?")
    return chat_pb2.CompletionRequest(
        request_id="r", messages=[chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, parts=[text])], tags={"a": "b"}
    )


def made_call() -> Call:
    asked = request()
    return Call(
        request=asked,
        digest=payload_digest(asked),
        identity=Identity("acme", "app", user_id="u"),
        tenant=ledger_pb2.TenantPolicy(tenant_id="acme", baseline_model="base"),
        prices=PRICES,
        price_book_version=7,
        created=1_700_000_000.123456,
        trace_id="t" * 32,
        streaming=False,
        attempt_base=5000,
        later=Later(True, 60.0),
        hops=[receipt_pb2.Hop(name="router", reason="m: cheap")],
        overheads=[
            receipt_pb2.OverheadItem(kind="classifier", model="paid", usage=usage_pb2.Usage(input_token_count=9))
        ],
        compute_micros=1_000,
        reservation_id="held",
        downgraded=True,
        excluded=["gone"],
        routed=True,
        compressed_for="m",
        told_tokens=80,
        token_correction=1.5,
        attempts_unknown=True,
    )


def admission(tmp_path: Path, version: int = 7, **tenants: str) -> Admission:
    reply = ledger_pb2.GetAdmissionSnapshotResponse(version="1", price_book_version=version)
    for name in ("base", "m", "other"):
        reply.prices.add(model=name, input_nano_usd_per_million_tokens=1, confirmed=True)
    for name, layer in tenants.items():
        reply.tenants.add(tenant_id=name, baseline_model="newer", disabled_layers=[layer])
    (tmp_path / "admission.bin").write_bytes(reply.SerializeToString())
    none = cast(Any, None)
    return Admission(Snapshot(none, none, tmp_path, lambda: 0.0), OrchestratorSettings(), lambda: 0.0, Random(1))


@pytest.fixture(autouse=True)
def identity() -> None:
    set_identity(Identity("acme", "app", may_assert_user=True))


def resumed(tmp_path: Path, call: Call, models: tuple[str, ...] = (), **options: Any) -> Call:
    data = half_state.to_bytes(call, ROUTE, PROMPT, 5001, True, None)
    asked = request()
    return admission(tmp_path, **options).resume(asked, payload_digest(asked), half_state.from_bytes(data), models)


def test_a_call_comes_back_as_it_was(tmp_path: Path) -> None:
    call = made_call()
    again = resumed(tmp_path, call, version=8)
    for name in COMES_BACK:
        assert getattr(again, name) == getattr(call, name), name
    assert again.created == pytest.approx(call.created, abs=1e-6)
    assert again.tenant.baseline_model == "base", "whatever the tenant's is now, or were it gone"
    assert {name: again.prices[name] for name in ("base", "m", "paid", "cpu")} == {
        name: PRICES[name] for name in ("base", "m", "paid", "cpu")
    }
    assert "other" not in again.prices
    assert again.control is None
    assert not again.caller_set_limit
    # The receipt is the one that the first half's prices give, to the nano-dollar.
    facts = [each.facts(2e9) for each in (call, again)]
    for each, prices in zip(facts, (call.prices, again.prices), strict=True):
        each.model, each.batch = "m", True
        each.usage.CopyFrom(usage_pb2.Usage(input_token_count=300_000, output_token_count=5))
        each.baseline_input_token_count = each.original_input_token_count = 310_000
        each.ClearField("create_time")
        each.user_id = "u"
        assert build_receipt(each, prices, receipt_pb2.RECEIPT_STATE_PENDING).actual_nano_usd > 0
    receipts = [
        build_receipt(each, prices, receipt_pb2.RECEIPT_STATE_PENDING)
        for each, prices in zip(facts, (call.prices, again.prices), strict=True)
    ]
    assert receipts[0] == receipts[1]
    state = half_state.from_bytes(half_state.to_bytes(call, ROUTE, PROMPT, 5001, True, None))
    assert half_state.route_of(state) == ROUTE
    counts = half_state.prompt_of(state)
    assert (counts.original_tokens, counts.sent_tokens, counts.baseline_tokens) == (100, 80, 110)


def test_prices_of_models_paid_meanwhile_are_those_of_the_pinned_book(tmp_path: Path) -> None:
    same = resumed(tmp_path, made_call(), ("other", "m", "unheard-of"), version=7)
    assert same.prices["other"].input == 1
    assert same.prices["m"] == HALF, "what the state says goes before"
    assert "unheard-of" not in same.prices
    moved_on = resumed(tmp_path, made_call(), ("other",), version=8)
    assert "other" not in moved_on.prices
    moved_on.note_overheads([receipt_pb2.OverheadItem(kind="failed_attempt", model="other", attempt=5001)])
    assert moved_on.attempts_unknown


def test_the_kill_switch_of_now_holds(tmp_path: Path) -> None:
    assert resumed(tmp_path, made_call(), acme="cache").disabled("cache")
    assert not resumed(tmp_path, made_call(), stranger="cache").disabled("cache")


def test_a_state_is_of_one_request_of_one_tenant(tmp_path: Path) -> None:
    state = half_state.from_bytes(half_state.to_bytes(made_call(), ROUTE, PROMPT, 5001, True, None))
    door = admission(tmp_path)
    with pytest.raises(TenthError) as raised:
        door.resume(request(), b"another", state, ())
    assert raised.value.field == "state"
    set_identity(Identity("other", "app"))
    with pytest.raises(TenthError) as raised:
        door.resume(request(), payload_digest(request()), state, ())
    assert raised.value.field == "state"
    with pytest.raises(TenthError) as raised:
        half_state.from_bytes(b"\xff")
    assert (raised.value.code, raised.value.field) == (Code.INVALID_ARGUMENT, "state")


@pytest.mark.parametrize(
    ("floats", "hops", "left"), [(100, 1, {"embedding", "hops"}), (20_000, 1, {"hops"}), (20_000, 900, set())]
)
def test_a_state_keeps_within_its_bound(floats: int, hops: int, left: set[str]) -> None:
    call = made_call()
    call.hops = [receipt_pb2.Hop(name="router", reason="x" * 100)] * hops
    embedding = chat_pb2.Embedding(values=[0.5] * floats, embedder="fake@1")
    data = half_state.to_bytes(call, ROUTE, PROMPT, 5001, True, embedding)
    assert len(data) <= half_state.MOST_BYTES
    state = half_state.from_bytes(data)
    assert {field.name for field, _ in state.ListFields()} & {"embedding", "hops"} == left
    assert (state.model, state.reservation_id) == ("m", "held")


def test_an_empty_state_is_of_no_request(tmp_path: Path) -> None:
    with pytest.raises(TenthError):
        admission(tmp_path).resume(request(), payload_digest(request()), halves_pb2.PreparedState(), ())


@pytest.mark.parametrize(
    ("model", "self_hosted", "batch_prices", "pooled"),
    [("m", False, True, True), ("base", False, True, False), ("base", True, True, True), ("m", False, False, False)],
)
def test_whose_pool_a_request_is_in(model: str, self_hosted: bool, batch_prices: bool, pooled: bool) -> None:
    route = Route(model, chat_pb2.TIER_MEDIUM, self_hosted=self_hosted)
    assert Later(batch_prices, 60.0).pooled(route, PRICES) is pooled


@pytest.mark.parametrize(
    ("code", "reason", "retryable"),
    [
        (Code.UNAVAILABLE, "UNREACHABLE", True),
        (Code.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED", True),
        (Code.RESOURCE_EXHAUSTED, "RATE_LIMITED", True),
        (Code.RESOURCE_EXHAUSTED, "BUDGET_EXCEEDED", False),
        (Code.INVALID_ARGUMENT, "INVALID_FIELD", False),
        (Code.FAILED_PRECONDITION, "NO_ELIGIBLE_MODEL", False),
    ],
)
def test_what_may_go_better_later(code: Code, reason: str, retryable: bool) -> None:
    error = half_error(TenthError(code, reason, "so it is", "request.policy"))
    assert (error.reason, error.message, error.field, error.retryable) == (
        reason,
        "so it is",
        "request.policy",
        retryable,
    )


def test_how_long_a_limit_holds_is_told() -> None:
    told = half_error(TenthError(Code.RESOURCE_EXHAUSTED, "RATE_LIMITED", "later", retry_after_seconds=1.5))
    assert told.retry_after.ToMilliseconds() == 1500
    assert not half_error(TenthError(Code.UNAVAILABLE, "AWAY", "away")).HasField("retry_after")
