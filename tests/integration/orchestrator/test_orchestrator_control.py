"""The control share: a request of it really goes to the baseline, says so, and never costs its caller the answer."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.duration_pb2 import Duration
from tenth.cache.v1 import cache_pb2
from tenth.ledger.v1 import ledger_pb2
from tenth.orchestrator.v1 import orchestrator_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.errors import Code, TenthError
from tests.integration.orchestrator.orchestrator_fakes import (
    MINI,
    OPUS,
    Mesh,
    adds_up,
    ask,
    hit,
    hops,
    spent,
    until,
)

LAYERS_ASKED = ("LookupCompletion", "SelectModel", "CompressPrompt", "StoreCompletion")


async def control(mesh: Mesh, share: float = 1.0) -> None:
    """Give every tenant a control share and wait until the orchestrator knows."""
    mesh.fakes.control_share = share
    await mesh.switched(*mesh.fakes.switches)


async def settled(mesh: Mesh, request: chat_pb2.CompletionRequest) -> receipt_pb2.Receipt:
    await mesh.generate(request)
    return await mesh.settled(request.request_id)


def reasons(receipt: receipt_pb2.Receipt) -> dict[str, str]:
    return {hop.name: hop.reason for hop in receipt.facts.hops}


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_control_request_is_the_baseline(mesh: Mesh, streaming: bool) -> None:
    await control(mesh)
    mesh.fakes.on("LookupCompletion", hit())  # It would be a hit.
    request = ask(tags={"team": "support"})
    if streaming:
        await mesh.events(request)
    else:
        assert (await mesh.generate(request)).completion.model == OPUS
    receipt = await mesh.settled(request.request_id)
    for method in LAYERS_ASKED:
        assert mesh.fakes.count(method) == 0, method
    (reserved,) = mesh.fakes.requests("ReserveFunds")
    assert reserved.model == OPUS  # Budgets still apply, also those by the share's own tag.
    assert dict(reserved.tags) == {"team": "support", "tenth.control": "true"}
    assert receipt.facts.model == receipt.facts.baseline_model == OPUS
    assert dict(receipt.facts.tags) == {"team": "support", "tenth.control": "true"}
    assert receipt.actual_nano_usd == receipt.baseline_nano_usd > 0
    assert [saving.saving_nano_usd for saving in receipt.savings] == [0] * 6
    assert receipt.overhead_nano_usd == 0
    assert {name: hops(receipt)[name] for name in ("cache", "router", "compressor")} == dict.fromkeys(
        ("cache", "router", "compressor"), "SKIPPED"
    )
    assert reasons(receipt)["cache"] == "control share"
    assert reasons(receipt)["router"] == f"control share: {OPUS} answers"


async def test_a_retry_is_on_the_same_side_and_the_others_say_that_they_could_have_been_drawn(mesh: Mesh) -> None:
    await control(mesh, 0.5)
    sides = {}
    for _ in range(12):
        request = ask()
        sides[request.request_id] = (await settled(mesh, request)).facts.tags["tenth.control"]
    assert set(sides.values()) == {"true", "false"}
    # Another replica, or this one after a restart that forgot everything, draws the same.
    await mesh.stop()
    for file in (mesh.tmp_path / "orchestrator").glob("outbox*"):
        file.unlink()
    mesh.fakes.settled.clear()
    await mesh.start()
    for request_id, side in sides.items():
        request = ask()
        request.request_id = request_id
        assert (await settled(mesh, request)).facts.tags["tenth.control"] == side


Policy = chat_pb2.RequestPolicy


@pytest.mark.parametrize(
    "policy",
    [
        Policy(model=MINI),
        Policy(cache_mode=chat_pb2.CACHE_MODE_OFF),
        Policy(cache_mode=chat_pb2.CACHE_MODE_WRITE),
        Policy(compression_mode=chat_pb2.COMPRESSION_MODE_OFF),
        Policy(tier_floor=chat_pb2.TIER_SIMPLE),
        Policy(tier_ceiling=chat_pb2.TIER_MEDIUM),
    ],
    ids=lambda policy: str(policy).strip(),
)
async def test_what_the_caller_asked_for_is_respected(mesh: Mesh, policy: chat_pb2.RequestPolicy) -> None:
    await control(mesh)
    receipt = await settled(mesh, ask(policy=policy))
    assert "tenth.control" not in receipt.facts.tags
    assert receipt.facts.model == MINI
    assert mesh.fakes.count("SelectModel") == 1


@pytest.mark.parametrize("layer", ["cache", "routing", "compression"])
async def test_a_tenant_with_a_layer_off_has_no_control_share(mesh: Mesh, layer: str) -> None:
    mesh.fakes.switches = [layer]
    await control(mesh)
    receipt = await settled(mesh, ask())
    assert "tenth.control" not in receipt.facts.tags
    assert "control" not in " ".join(reasons(receipt).values())


@pytest.mark.parametrize(
    "policy",
    [
        Policy(),
        Policy(cache_mode=chat_pb2.CACHE_MODE_READ),
        Policy(quality_target=0.9, cache_max_age=Duration(seconds=9)),
    ],
    ids=["none", "read", "quality"],
)
async def test_a_policy_that_leaves_the_layers_on_may_be_drawn(mesh: Mesh, policy: chat_pb2.RequestPolicy) -> None:
    await control(mesh)
    assert (await settled(mesh, ask(policy=policy))).facts.tags["tenth.control"] == "true"


async def test_without_a_share_nothing_is_drawn(mesh: Mesh) -> None:
    assert "tenth.control" not in (await settled(mesh, ask())).facts.tags


DECISIONS = [
    ledger_pb2.RESERVE_DECISION_DOWNGRADE,
    ledger_pb2.RESERVE_DECISION_REFUSED,
    ledger_pb2.RESERVE_DECISION_CACHE_ONLY,
]


@pytest.mark.parametrize("decision", DECISIONS)
async def test_a_budget_too_tight_for_the_baseline_gets_every_layer(
    mesh: Mesh, decision: ledger_pb2.ReserveDecision.ValueType
) -> None:
    await control(mesh)
    mesh.fakes.then("ReserveFunds", ledger_pb2.ReserveFundsResponse(decision=decision, budget_name="b"))
    receipt = await settled(mesh, ask())
    assert receipt.facts.model == MINI
    # It stays on the side that it was drawn for: those that a budget holds are not the same requests as all.
    assert receipt.facts.tags["tenth.control"] == "true"
    assert [seen.tags["tenth.control"] for seen in mesh.fakes.requests("ReserveFunds")] == ["true", "true"]
    assert reasons(receipt)["control"] == "left the control share: budget b"
    assert mesh.fakes.count("LookupCompletion") == 1
    assert [seen.model for seen in mesh.fakes.requests("ReserveFunds")] == [OPUS, MINI]


async def test_a_control_request_that_the_cache_could_answer_is_answered_by_it_when_no_money_is_left(
    mesh: Mesh,
) -> None:
    await control(mesh)
    mesh.fakes.on("LookupCompletion", hit())
    refused = ledger_pb2.ReserveFundsResponse(decision=ledger_pb2.RESERVE_DECISION_REFUSED, budget_name="b")
    mesh.fakes.on("ReserveFunds", refused)
    receipt = await settled(mesh, ask())
    assert receipt.facts.cache_hit
    assert receipt.actual_nano_usd == 0
    assert receipt.facts.tags["tenth.control"] == "true"


@pytest.mark.parametrize(
    "failure",
    [spent("PROVIDER_DOWN", OPUS), TenthError(Code.INVALID_ARGUMENT, "PROMPT_TOO_LONG", "too long", "prompt")],
    ids=["down", "refused"],
)
async def test_a_baseline_that_cannot_answer_is_not_the_callers_problem(mesh: Mesh, failure: TenthError) -> None:
    await control(mesh)
    mesh.fakes.then("GenerateText", failure)
    receipt = await settled(mesh, ask())
    assert receipt.facts.model == MINI
    # It stays on the side that it was drawn for, or that side would know only what the baseline can answer.
    assert receipt.facts.tags["tenth.control"] == "true"
    assert reasons(receipt)["control"].startswith("left the control share: P")
    assert adds_up(receipt)
    (selected,) = mesh.fakes.requests("SelectModel")
    assert list(selected.excluded_models) == [OPUS]
    assert (receipt.overhead_nano_usd > 0) == bool(failure.details) or receipt.facts.attempts_unknown


async def test_a_dry_run_shows_the_layers(mesh: Mesh) -> None:
    await control(mesh)
    reply: Any = await mesh.client.ExplainRequest(orchestrator_pb2.ExplainRequestRequest(request=ask()))
    assert mesh.fakes.count("InspectLookup") == mesh.fakes.count("SelectModel") == 1
    assert "tenth.control" not in reply.expected_receipt.facts.tags


async def test_a_caller_cannot_name_its_own_share(mesh: Mesh) -> None:
    with pytest.raises(TenthError) as caught:
        await mesh.generate(ask(tags={"tenth.control": "true"}))
    assert (caught.value.reason, caught.value.field) == ("INVALID_FIELD", "request.tags")
    assert mesh.fakes.count("LookupCompletion") == 0


async def test_an_identical_request_of_the_other_side_leads_and_stores_as_ever(mesh: Mesh) -> None:
    await control(mesh, 1e-18)  # On, but nobody is drawn.
    request = ask()
    receipt = await settled(mesh, request)
    assert receipt.facts.tags["tenth.control"] == "false"
    assert receipt.facts.model == MINI
    await until(lambda: mesh.fakes.count("StoreCompletion") == 1)
    assert isinstance(mesh.fakes.requests("StoreCompletion")[0], cache_pb2.StoreCompletionRequest)
