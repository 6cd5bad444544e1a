"""Requests with a far window, handed over to the batch service."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from tenth.batch.v1 import batch_pb2
from tenth.orchestrator.v1 import orchestrator_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.auth import Authenticator, Identity, Signer, parse_callers
from mesh.errors import Code, TenthError
from mesh.testing import KEY
from tests.integration.orchestrator.conftest import Start
from tests.integration.orchestrator.orchestrator_fakes import (
    AMONG_FAKES,
    DOWN,
    MINI,
    OPUS,
    Mesh,
    adds_up,
    ask,
    completion,
    eventually,
    hops,
    slow,
)

pb = orchestrator_pb2
CALLERS = Path(__file__).resolve().parents[3] / "deploy" / "callers.yaml"


@pytest.fixture
async def mesh(start: Start) -> Mesh:
    return await start(batch_address=AMONG_FAKES, handover_cap_seconds=0.3)


def far(seconds: int = 3600, **fields: Any) -> chat_pb2.CompletionRequest:
    request = ask(**fields)
    request.policy.completion_window.FromSeconds(seconds)
    return request


async def fetched(mesh: Mesh, request: chat_pb2.CompletionRequest) -> pb.GetCompletionResponse:
    operation = pb.GetCompletionRequest(operation=f"operations/{request.request_id}")
    reply: pb.GetCompletionResponse = await mesh.client.GetCompletion(operation)
    return reply


async def done(mesh: Mesh, request: chat_pb2.CompletionRequest) -> pb.GetCompletionResponse:
    reply: pb.GetCompletionResponse = await eventually(
        lambda: fetched(mesh, request), lambda reply: reply.state != pb.OPERATION_STATE_RUNNING
    )
    return reply


async def test_a_request_that_can_wait_is_handed_over(mesh: Mesh) -> None:
    request = far(user_id="ann")
    begun = await mesh.generate(request)
    assert begun.operation == f"operations/{request.request_id}"
    assert not begun.HasField("completion")
    [seen] = [each for each in mesh.fakes.seen if each.method == "EnqueueCompletion"]
    assert seen.request.request == request, "as it came, the deployment's default limit not in it"
    assert (seen.identity.tenant_id, seen.identity.caller, seen.identity.may_assert_user) == ("acme", "app", True)
    # A retry while it waits goes there again, where the id is known.
    assert await mesh.generate(request) == begun
    assert mesh.fakes.count("EnqueueCompletion") == 2
    assert mesh.fakes.count("LookupCompletion") == mesh.fakes.count("GenerateText") == 0


async def test_what_became_of_it_is_asked_there(mesh: Mesh) -> None:
    request = far()
    await mesh.generate(request)
    mesh.fakes.on("GetQueuedCompletion", batch_pb2.GetQueuedCompletionResponse())
    assert (await fetched(mesh, request)).state == pb.OPERATION_STATE_RUNNING
    receipt = receipt_pb2.Receipt(actual_nano_usd=5)
    answer = batch_pb2.StreamBatchResultsResponse(completion=completion("Later."), receipt=receipt)
    ended = batch_pb2.GetQueuedCompletionResponse(ended=True, result=answer)
    ended.expire_time.FromSeconds(2_000_000_000)
    mesh.fakes.on("GetQueuedCompletion", ended)
    reply = await fetched(mesh, request)
    assert reply.state == pb.OPERATION_STATE_DONE
    assert (reply.completion, reply.receipt) == (answer.completion, receipt)
    assert reply.expire_time.seconds == 2_000_000_000
    failed = batch_pb2.StreamBatchResultsResponse(error_reason="BUDGET_EXCEEDED", error_message="no more")
    mesh.fakes.on("GetQueuedCompletion", batch_pb2.GetQueuedCompletionResponse(ended=True, result=failed))
    reply = await fetched(mesh, request)
    assert (reply.state, reply.error_reason, reply.error_message) == (
        pb.OPERATION_STATE_FAILED,
        "BUDGET_EXCEEDED",
        "no more",
    )
    assert not reply.HasField("completion")
    mesh.fakes.on("GetQueuedCompletion", None)
    with pytest.raises(TenthError) as raised:
        await fetched(mesh, request)
    assert (raised.value.code, raised.value.reason) == (Code.NOT_FOUND, "NOT_FOUND")
    mesh.fakes.on("GetQueuedCompletion", DOWN)
    with pytest.raises(TenthError) as raised:
        await fetched(mesh, request)
    assert raised.value.code is Code.UNAVAILABLE


async def test_a_half_that_failed_is_not_the_end(mesh: Mesh) -> None:
    request = far()
    await mesh.generate(request)
    mesh.fakes.then("SelectModel", TenthError(Code.FAILED_PRECONDITION, "NO_ELIGIBLE_MODEL", "none is up"))
    [outcome] = await mesh.prepare(request)
    assert outcome.HasField("error")
    mesh.fakes.on("GetQueuedCompletion", batch_pb2.GetQueuedCompletionResponse())
    assert (await fetched(mesh, request)).state == pb.OPERATION_STATE_RUNNING


@pytest.mark.parametrize("trouble", [DOWN, slow(2), TenthError(Code.UNIMPLEMENTED, "UNIMPLEMENTED", "not yet")])
async def test_down_or_late_it_is_worked_on_at_once(mesh: Mesh, trouble: Any) -> None:
    mesh.fakes.on("EnqueueCompletion", trouble)
    mesh.fakes.on("GenerateText", slow(0.1))
    request = far()
    begun = await mesh.generate(request)
    assert begun.operation == f"operations/{request.request_id}"
    # A retry joins the run that is going on, and hands nothing over.
    asked = mesh.fakes.count("EnqueueCompletion")
    assert (await mesh.generate(request)).request_id == request.request_id
    assert mesh.fakes.count("EnqueueCompletion") == asked
    reply = await done(mesh, request)
    assert reply.state == pb.OPERATION_STATE_DONE
    assert mesh.fakes.count("GenerateText") == 1
    assert hops(reply.receipt)["batch"] == "DEGRADED"
    assert reply.receipt.facts.hops[0].reason.startswith("online: ")
    assert not reply.receipt.facts.batch
    assert adds_up(reply.receipt)


async def test_the_batch_services_no_is_the_callers_answer(mesh: Mesh) -> None:
    mesh.fakes.on("EnqueueCompletion", TenthError(Code.ALREADY_EXISTS, "REQUEST_ID_REUSED", "another payload"))
    with pytest.raises(TenthError) as raised:
        await mesh.generate(far())
    assert raised.value.reason == "REQUEST_ID_REUSED"
    assert mesh.fakes.count("GenerateText") == 0


async def test_with_the_switch_off_it_is_worked_on_at_once(mesh: Mesh) -> None:
    await mesh.switched("batch")
    request = far()
    await mesh.generate(request)
    reply = await done(mesh, request)
    assert hops(reply.receipt)["batch"] == "DISABLED"
    assert mesh.fakes.count("EnqueueCompletion") == 0


async def test_who_cannot_wait_is_answered_and_so_is_a_stream(mesh: Mesh) -> None:
    near = far(59)
    assert (await mesh.generate(near)).completion.message.parts
    assert (await mesh.events(far()))[-1].HasField("finished")
    with pytest.raises(TenthError) as raised:
        await mesh.generate(far(), key="stranger")
    assert raised.value.reason == "UNKNOWN_TENANT"
    assert mesh.fakes.count("EnqueueCompletion") == 0


async def test_an_answer_that_is_kept_here_is_given_at_once(mesh: Mesh) -> None:
    request = far()
    await mesh.generate(request)
    [outcome] = await mesh.prepare(request)
    item = pb.CompletionToFinish(request=request, state=outcome.prepared.state, batch=True, lane="openai")
    item.generated.completion.CopyFrom(completion("Hello."))
    item.attempt = outcome.prepared.generation.attempt
    await mesh.finish(item)
    again = await mesh.generate(request)
    assert again.completion.message.parts[0].text == "Hello."
    assert (await fetched(mesh, request)).state == pb.OPERATION_STATE_DONE
    assert mesh.fakes.count("EnqueueCompletion") == 1
    assert mesh.fakes.count("GetQueuedCompletion") == 0


@pytest.mark.parametrize(("model", "batch"), [(MINI, True), (OPUS, False)])
async def test_a_dry_run_says_the_batch_price(mesh: Mesh, model: str, batch: bool) -> None:
    request = far()
    request.policy.model = model
    explained = await mesh.client.ExplainRequest(pb.ExplainRequestRequest(request=request))
    assert explained.expected_receipt.facts.batch is batch
    request.policy.ClearField("completion_window")
    online = await mesh.client.ExplainRequest(pb.ExplainRequestRequest(request=request))
    assert not online.expected_receipt.facts.batch
    assert (explained.worst_case_nano_usd * 2 == online.worst_case_nano_usd) is batch
    assert (explained.expected_receipt.actual_nano_usd < online.expected_receipt.actual_nano_usd) is batch
    assert adds_up(explained.expected_receipt)
    assert mesh.fakes.count("EnqueueCompletion") == 0


async def test_a_users_items_are_deleted_with_the_rest(mesh: Mesh) -> None:
    deleted = await mesh.client.DeleteUserData(pb.DeleteUserDataRequest(user_id="ann"))
    assert deleted.batch_item_count == 4
    assert [each.user_id for each in mesh.fakes.requests("DeleteUserItems")] == ["ann"]


async def test_without_a_batch_service_nothing_is_asked_of_it(start: Start) -> None:
    mesh = await start()
    request = far()
    await mesh.generate(request)
    assert "batch" not in hops((await done(mesh, request)).receipt)
    assert (await mesh.client.DeleteUserData(pb.DeleteUserDataRequest(user_id="ann"))).batch_item_count == 0
    assert not [each for each in mesh.fakes.seen if each.method in ("EnqueueCompletion", "GetQueuedCompletion")]


def test_the_callers_file_gives_the_halves_to_the_batch_service_alone(tmp_path: Path) -> None:
    text = CALLERS.read_text("utf-8")
    assert parse_callers(text).services["batch"]
    granted = tmp_path / "callers.yaml"
    outside = {
        "name": "app",
        "tenant_id": "acme",
        "key_sha256": hashlib.sha256(b"key").hexdigest(),
        "may_call": ["tenth.orchestrator.v1.OrchestratorService/*"],
    }
    granted.write_text(text.replace("callers: []", f"callers: [{outside}]"))
    authenticator = Authenticator(granted, KEY)
    halves = "/tenth.orchestrator.v1.CompletionHalvesService/PrepareCompletions"

    def call(service: str, method: str) -> Identity:
        token = Signer(KEY, service).token(Identity(tenant_id="acme", caller="app"))
        return authenticator.authenticate(method, {"x-tenth-identity": token})

    key = {"authorization": "Bearer key"}
    assert authenticator.authenticate("/tenth.orchestrator.v1.OrchestratorService/GetReceipt", key).caller == "app"
    with pytest.raises(TenthError) as raised:
        authenticator.authenticate(halves, key)
    assert raised.value.reason == "CALLER_FORBIDDEN"
    assert call("batch", halves).service == "batch"
    for service in ("router", "cache", "compressor", "inference", "orchestrator"):
        with pytest.raises(TenthError) as raised:
            call(service, halves)
        assert raised.value.reason == "CALLER_FORBIDDEN"
    with pytest.raises(TenthError) as raised:
        call("batch", "/tenth.ledger.v1.LedgerService/SettleReceipts")
    assert raised.value.reason == "CALLER_FORBIDDEN"
    assert call("orchestrator", "/tenth.batch.v1.BatchService/EnqueueCompletion").service == "orchestrator"
    with pytest.raises(TenthError):
        call("orchestrator", "/tenth.batch.v1.BatchService/CreateBatch")
