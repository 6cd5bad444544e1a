"""Retries, operations, receipts asked for later, feedback, deletion and the dry run."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from tenth.cache.v1 import cache_pb2
from tenth.ledger.v1 import ledger_pb2
from tenth.orchestrator.v1 import orchestrator_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.errors import Code, Reason, TenthError
from tests.integration.orchestrator.conftest import Start
from tests.integration.orchestrator.orchestrator_fakes import (
    DOWN,
    MINI,
    Mesh,
    adds_up,
    ask,
    ended,
    eventually,
    hit,
    hops,
    message,
    piece,
    slow,
    spent,
    until,
)

pb = orchestrator_pb2


def reworded(request: chat_pb2.CompletionRequest) -> chat_pb2.CompletionRequest:
    other = chat_pb2.CompletionRequest()
    other.CopyFrom(request)
    other.messages[0].CopyFrom(message("Something else"))
    return other


async def test_the_same_id_gives_the_same_answer_and_receipt(mesh: Mesh) -> None:
    request = ask()
    first = await mesh.generate(request)
    again = await mesh.generate(request)
    assert again == first
    events = await mesh.events(request)
    assert events[-1].finished.receipt == first.receipt
    assert mesh.fakes.count("GenerateText") == 1
    await mesh.settled(request.request_id)
    assert len(mesh.fakes.receipts(request.request_id)) == 1


async def test_the_same_id_with_another_payload_is_refused(mesh: Mesh) -> None:
    request = ask()
    await mesh.generate(request)
    with pytest.raises(TenthError) as raised:
        await mesh.generate(reworded(request))
    assert (raised.value.code, raised.value.reason) == (Code.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    assert raised.value.field == "request.request_id"
    mesh.fakes.on("GenerateText", slow(0.2))
    other = ask("Slow")
    running = asyncio.create_task(mesh.generate(other))
    await until(lambda: mesh.fakes.count("GenerateText") == 2)
    with pytest.raises(TenthError, match="another payload"):
        await mesh.generate(reworded(other))
    await running


async def test_another_tenant_may_use_the_same_id(mesh: Mesh) -> None:
    request = ask()
    await mesh.generate(request)
    reply = await mesh.generate(reworded(request), key="hard")
    assert reply.receipt.facts.tenant_id == "hard"


async def test_the_same_id_at_once_joins(mesh: Mesh) -> None:
    mesh.fakes.on("StreamGenerateText", [piece("Hel"), 0.2, piece("lo."), ended()])
    request = ask()
    first = asyncio.create_task(mesh.events(request))
    await until(lambda: mesh.fakes.count("StreamGenerateText") == 1)
    await asyncio.sleep(0.05)
    late, whole = await asyncio.gather(mesh.events(request), mesh.generate(request))
    assert late == await first  # From the first event on.
    assert whole.completion.message.parts[0].text == "Hello."
    assert whole.receipt == late[-1].finished.receipt
    assert mesh.fakes.count("StreamGenerateText") == 1


async def test_one_of_two_callers_may_leave(mesh: Mesh) -> None:
    mesh.fakes.on("GenerateText", slow(0.3))
    request = ask()
    first = asyncio.create_task(mesh.generate(request))
    await until(lambda: mesh.fakes.count("GenerateText") == 1)
    second = asyncio.create_task(mesh.generate(request))
    await asyncio.sleep(0.1)
    first.cancel()
    assert (await second).completion.message.parts[0].text == "Hello."
    assert mesh.fakes.cancelled == []


async def test_a_stream_joins_a_request_that_was_asked_for_whole(mesh: Mesh) -> None:
    mesh.fakes.on("GenerateText", slow(0.2))
    request = ask()
    whole = asyncio.create_task(mesh.generate(request))
    await until(lambda: mesh.fakes.count("GenerateText") == 1)
    events = await mesh.events(request)
    assert [event.WhichOneof("event") for event in events] == ["started", "delta", "finished"]
    assert events[-1].finished.receipt == (await whole).receipt


async def test_a_kept_answer_outlives_a_restart(mesh: Mesh) -> None:
    request = ask()
    first = await mesh.generate(request)
    await mesh.stop()
    await mesh.start()
    again = await mesh.generate(request)
    assert again == first
    assert mesh.fakes.count("GenerateText") == 1


async def test_a_failed_request_may_be_tried_again_and_pays_for_both(mesh: Mesh) -> None:
    failing = [spent("PROVIDER_ERROR")] * 3
    mesh.fakes.then("GenerateText", *failing)
    mesh.fakes.then("SettleReceipts", DOWN)
    request = ask()
    with pytest.raises(TenthError):
        await mesh.generate(request)
    reply = await mesh.generate(request)
    kinds = [item.kind for item in reply.receipt.facts.overheads]
    assert kinds.count("failed_attempt") == 3
    assert adds_up(reply.receipt)
    attempts = [sent.attempt for sent in mesh.fakes.requests("GenerateText")]
    assert len(set(attempts)) == 4
    await until(lambda: any(not receipt.facts.failed for receipt in mesh.fakes.receipts(request.request_id)))


async def test_without_an_id_every_request_is_its_own(mesh: Mesh) -> None:
    request = chat_pb2.CompletionRequest(messages=[message("Hello?")])
    first, second = await mesh.generate(request), await mesh.generate(request)
    assert first.request_id != second.request_id


async def test_a_receipt_is_pending_until_the_ledger_has_it(mesh: Mesh) -> None:
    mesh.fakes.on("SettleReceipts", slow(0.3))
    request = ask()
    await mesh.generate(request)
    ask_for = pb.GetReceiptRequest(request_id=request.request_id)
    pending = (await mesh.client.GetReceipt(ask_for)).receipt
    assert pending.state == receipt_pb2.RECEIPT_STATE_PENDING
    await mesh.settled(request.request_id)
    mesh.fakes.on("SettleReceipts", None)
    found = await eventually(
        lambda: mesh.client.GetReceipt(ask_for), lambda reply: reply.receipt.state == receipt_pb2.RECEIPT_STATE_FINAL
    )
    assert found.receipt.facts == pending.facts


async def test_a_receipt_that_nobody_has(mesh: Mesh) -> None:
    for request_id, code, field in (("", Code.INVALID_ARGUMENT, "request_id"), ("x", Code.NOT_FOUND, "request_id")):
        with pytest.raises(TenthError) as raised:
            await mesh.client.GetReceipt(pb.GetReceiptRequest(request_id=request_id))
        assert (raised.value.code, raised.value.field) == (code, field)


async def test_a_receipt_that_the_ledger_refuses_is_not_sent_for_ever(mesh: Mesh) -> None:
    refused = ledger_pb2.SettleResult(request_id="r", error_reason="INVALID_RECEIPT", error_message="no")
    mesh.fakes.on("SettleReceipts", ledger_pb2.SettleReceiptsResponse(results=[refused]))
    await mesh.generate(ask())
    await until(lambda: mesh.fakes.count("SettleReceipts") == 1)
    await asyncio.sleep(0.1)
    assert mesh.fakes.count("SettleReceipts") == 1
    assert (await mesh.generate(ask())).completion.message.parts


async def test_an_operation_is_fetched_when_it_is_done(mesh: Mesh) -> None:
    mesh.fakes.on("GenerateText", slow(0.2))
    request = ask()
    request.policy.completion_window.FromSeconds(60)
    begun = await mesh.generate(request, timeout=2)
    assert begun.operation == f"operations/{request.request_id}"
    assert not begun.HasField("completion")
    ask_for = pb.GetCompletionRequest(operation=begun.operation)
    assert (await mesh.client.GetCompletion(ask_for)).state == pb.OPERATION_STATE_RUNNING
    again = await mesh.generate(request)
    assert again.operation == begun.operation
    done = await eventually(
        lambda: mesh.client.GetCompletion(ask_for), lambda reply: reply.state != pb.OPERATION_STATE_RUNNING
    )
    assert done.state == pb.OPERATION_STATE_DONE
    assert done.completion.message.parts[0].text == "Hello."
    assert adds_up(done.receipt)
    assert done.expire_time.seconds > 0
    assert mesh.fakes.count("GenerateText") == 1
    assert mesh.fakes.cancelled == []


async def test_an_operation_that_failed_says_why(mesh: Mesh) -> None:
    mesh.fakes.on("GenerateText", TenthError(Code.INVALID_ARGUMENT, "PROVIDER_REFUSED", "no: not like this"))
    request = ask()
    request.policy.completion_window.FromSeconds(3600)
    begun = await mesh.generate(request)
    ask_for = pb.GetCompletionRequest(operation=begun.operation)
    done = await eventually(
        lambda: mesh.client.GetCompletion(ask_for), lambda reply: reply.state != pb.OPERATION_STATE_RUNNING
    )
    assert done.state == pb.OPERATION_STATE_FAILED
    assert (done.error_reason, done.error_message) == ("PROVIDER_REFUSED", "no: not like this")
    assert done.receipt.facts.failed


async def test_a_near_window_is_answered_at_once(mesh: Mesh) -> None:
    request = ask()
    request.policy.completion_window.FromSeconds(59)
    assert (await mesh.generate(request)).completion.message.parts


@pytest.mark.parametrize(
    ("operation", "code"), [("x", Code.INVALID_ARGUMENT), ("operations/unheard-of", Code.NOT_FOUND)]
)
async def test_no_such_operation(mesh: Mesh, operation: str, code: Code) -> None:
    with pytest.raises(TenthError) as raised:
        await mesh.client.GetCompletion(pb.GetCompletionRequest(operation=operation))
    assert (raised.value.code, raised.value.field) == (code, "operation")


@pytest.mark.parametrize(("score", "retired"), [(0.1, True), (0.9, False)])
async def test_feedback_reaches_router_and_cache(mesh: Mesh, score: float, retired: bool) -> None:
    mesh.fakes.on("LookupCompletion", hit())
    reply = await mesh.generate(ask())
    report = pb.ReportOutcomeRequest(request_id=reply.request_id, score=score, comment="c")
    assert (await mesh.client.ReportOutcome(report)).cache_entry_retired == retired
    assert mesh.fakes.requests("ReportOutcome")[0].comment == "c"
    told = mesh.fakes.requests("ReportAnswerQuality")[0]
    assert (told.entry_id, told.correct) == ("entry-stored", not retired)


@pytest.mark.parametrize(
    ("kind", "owner", "others"),
    [
        (cache_pb2.HIT_KIND_SEMANTIC, "semantic", "elsewhere"),
        (cache_pb2.HIT_KIND_EXACT, "exact", "exact"),
    ],
)
async def test_every_cache_replica_hears_of_a_report_and_one_that_it_served_it(
    start: Start, kind: cache_pb2.HitKind.ValueType, owner: str, others: str
) -> None:
    mesh = await start(cache_replicas=3)
    mesh.fakes.on("LookupCompletion", hit(kind))
    for namespace, encoded in (("shop", "shop"), ("a-b_c.d", "a-b_c.d"), ("", "default")):
        mesh.fakes.seen.clear()
        reply = await mesh.generate(ask(namespace=namespace))
        served = next(seen.replica for seen in mesh.fakes.seen if seen.method == "LookupCompletion")
        await mesh.client.ReportOutcome(pb.ReportOutcomeRequest(request_id=reply.request_id, score=0.2))
        told = {seen.replica: seen.request for seen in mesh.fakes.seen if seen.method == "ReportAnswerQuality"}
        assert set(told) == {0, 1, 2}
        for replica, request in told.items():
            assert (request.entry_id, request.correct) == ("entry-stored", False)
            expected = owner if replica == served else others
            assert request.report_id == f"{expected}@{encoded}:{reply.request_id}"


@pytest.mark.parametrize("down", ["served", "other"])
async def test_a_report_with_a_cache_replica_down(start: Start, down: str) -> None:
    mesh = await start(cache_replicas=2)
    mesh.fakes.on("LookupCompletion", hit(cache_pb2.HIT_KIND_SEMANTIC))
    reply = await mesh.generate(ask())

    def answer(request: Any) -> Any:
        here = request.report_id.startswith("semantic")
        return DOWN if here == (down == "served") else cache_pb2.ReportAnswerQualityResponse(retired=True)

    mesh.fakes.on("ReportAnswerQuality", answer)
    report = pb.ReportOutcomeRequest(request_id=reply.request_id, score=0)
    if down == "other":
        assert (await mesh.client.ReportOutcome(report)).cache_entry_retired
    else:
        with pytest.raises(TenthError) as raised:
            await mesh.client.ReportOutcome(report)
        assert raised.value.code is Code.UNAVAILABLE
    assert mesh.fakes.count("ReportAnswerQuality") == 2, "all are told, whichever is down"


async def test_feedback_on_an_answer_that_was_stored_later(mesh: Mesh) -> None:
    reply = await mesh.generate(ask())
    await until(lambda: mesh.fakes.count("StoreCompletion") == 1)
    await asyncio.sleep(0.05)
    report = pb.ReportOutcomeRequest(request_id=reply.request_id, score=0)
    assert (await mesh.client.ReportOutcome(report)).cache_entry_retired
    assert mesh.fakes.requests("ReportAnswerQuality")[0].entry_id.startswith("entry-")


@pytest.mark.parametrize("score", [-0.1, 1.1, float("nan")])
async def test_feedback_with_a_score_out_of_range(mesh: Mesh, score: float) -> None:
    with pytest.raises(TenthError) as raised:
        await mesh.client.ReportOutcome(pb.ReportOutcomeRequest(request_id="r", score=score))
    assert (raised.value.code, raised.value.field) == (Code.INVALID_ARGUMENT, "score")
    assert mesh.fakes.count("ReportOutcome") == 0


async def test_a_users_data_is_deleted_everywhere(mesh: Mesh) -> None:
    request = ask(user_id="u1")
    await mesh.generate(request)
    await mesh.settled(request.request_id)
    reply = await mesh.client.DeleteUserData(pb.DeleteUserDataRequest(user_id="u1"))
    assert (reply.cache_entry_count, reply.outcome_count, reply.completion_count) == (3, 2, 1)
    assert mesh.fakes.requests("DeleteUserEntries")[0].user_id == "u1"
    assert mesh.fakes.requests("DeleteUserOutcomes")[0].user_id == "u1"
    assert (await mesh.client.GetReceipt(pb.GetReceiptRequest(request_id=request.request_id))).receipt.facts
    with pytest.raises(TenthError, match="forgotten"):
        await mesh.client.GetCompletion(pb.GetCompletionRequest(operation=f"operations/{request.request_id}"))


async def test_a_users_data_is_deleted_on_every_cache_shard(start: Start) -> None:
    mesh = await start(cache_replicas=2)
    reply = await mesh.client.DeleteUserData(pb.DeleteUserDataRequest(user_id="u1"))
    assert reply.cache_entry_count == 6
    assert {seen.replica for seen in mesh.fakes.seen if seen.method == "DeleteUserEntries"} == {0, 1}


@pytest.mark.parametrize(
    ("key", "user", "code", "reason"),
    [
        ("app", "", Code.INVALID_ARGUMENT, Reason.REQUIRED_FIELD),
        ("plain", "u1", Code.PERMISSION_DENIED, Reason.USER_ASSERTION_FORBIDDEN),
    ],
)
async def test_who_may_delete(mesh: Mesh, key: str, user: str, code: Code, reason: str) -> None:
    with pytest.raises(TenthError) as raised:
        await mesh.clients[key].DeleteUserData(pb.DeleteUserDataRequest(user_id=user))
    assert (raised.value.code, raised.value.reason) == (code, reason)
    assert mesh.fakes.count("DeleteUserEntries") == 0


async def test_the_dry_run_spends_nothing(mesh: Mesh) -> None:
    reply = await mesh.client.ExplainRequest(pb.ExplainRequestRequest(request=ask()))
    assert [hop.name for hop in reply.hops] == ["cache", "router", "compressor"]
    assert reply.cache.outcome == "miss"
    assert reply.route.model == MINI
    assert reply.compression[0].strategy == "cleanup"
    assert adds_up(reply.expected_receipt)
    assert reply.expected_receipt.savings[1].saving_nano_usd > 0
    assert reply.worst_case_nano_usd == (80 + 80 // 20 + 16) * 1_000 + 1024 * 2_000
    assert mesh.fakes.requests("SelectModel")[0].dry_run
    await asyncio.sleep(0.05)
    for method in ("LookupCompletion", "ReserveFunds", "GenerateText", "StoreCompletion", "SettleReceipts"):
        assert mesh.fakes.count(method) == 0, method


async def test_the_dry_run_of_a_hit_and_with_layers_off(mesh: Mesh) -> None:
    mesh.fakes.on("InspectLookup", cache_pb2.InspectLookupResponse(outcome="hit", reason="exact"))
    reply = await mesh.client.ExplainRequest(pb.ExplainRequestRequest(request=ask()))
    assert reply.expected_receipt.actual_nano_usd == 0
    assert reply.worst_case_nano_usd == 0
    await mesh.switched("cache", "routing", "compression")
    off = await mesh.client.ExplainRequest(pb.ExplainRequestRequest(request=ask()))
    assert {hop.name: hop.outcome for hop in off.hops} == dict.fromkeys(
        ("cache", "router", "compressor"), receipt_pb2.HOP_OUTCOME_DISABLED
    )
    assert off.expected_receipt.savings[1].saving_nano_usd == 0


async def test_a_restart_while_ledger_and_router_are_down_knows_every_price(mesh: Mesh) -> None:
    await mesh.stop()
    for method in ("GetAdmissionSnapshot", "ListModels", "SelectModel", "ReserveFunds"):
        mesh.fakes.on(method, DOWN)
    await mesh.start()
    reply = await mesh.generate(ask())
    assert reply.completion.model == MINI
    assert {"router", "ledger"} <= {name for name, outcome in hops(reply.receipt).items() if outcome == "DEGRADED"}
    assert reply.receipt.baseline_nano_usd > 0


async def test_before_the_first_snapshot_nothing_is_admitted(start: Start) -> None:
    mesh = await start()
    await mesh.stop()
    for path in ("models.bin", "admission.bin"):
        (mesh.tmp_path / "orchestrator" / path).unlink()
    mesh.fakes.on("GetAdmissionSnapshot", DOWN)
    starting = asyncio.create_task(mesh.start())
    data = mesh.tmp_path / "orchestrator"
    await until(lambda: (data / "models.bin").exists())
    (data / "admission.bin").write_bytes(b"")  # Lets start() go on; the orchestrator itself holds none.
    await starting
    with pytest.raises(TenthError) as raised:
        await mesh.generate(ask())
    assert (raised.value.code, raised.value.reason) == (Code.UNAVAILABLE, "NOT_READY")


async def test_a_stop_finishes_what_runs(mesh: Mesh) -> None:
    mesh.fakes.on("GenerateText", slow(0.15))
    request = ask()
    work: asyncio.Task[Any] = asyncio.create_task(mesh.generate(request))
    await until(lambda: mesh.fakes.count("GenerateText") == 1)
    await mesh.stop()
    assert (await work).completion.message.parts[0].text == "Hello."
    assert len(mesh.fakes.receipts(request.request_id)) == 1
