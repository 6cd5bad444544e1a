"""Single requests that can wait, gathered into batches on a real Temporal."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import Client
from tenth.batch.v1 import batch_pb2, stored_pb2
from tenth.batch.v1.batch_pb2_grpc import BatchServiceStub
from tenth.type.v1 import chat_pb2

from mesh.auth import Identity
from mesh.errors import Code, TenthError
from mesh.testing import dial
from services.batch import batches
from services.batch.composing import Composer
from services.batch.refs import BatchRef, Compose, GatherRef, Waiting, gather_workflow_id
from tests.integration.batch.batch_rig import Rig, batch_service, request, result, wait_for, worker


@pytest.fixture
async def rig(tmp_path: Path, temporal_address: str) -> AsyncIterator[Rig]:
    changes: dict[str, Any] = {"gather_item_count": 5, "gather_seconds": 0.5, "items_per_object": 2}
    # Workflows that gather are named by tenant and caller: each test has a caller of its own.
    identity = Identity(tenant_id="acme", caller=f"c-{uuid.uuid4().hex}", may_assert_user=True)
    async with batch_service(tmp_path, temporal_address, identity=identity, **changes) as made, worker(made):
        yield made


def wanted(text: str = "Hello?", window_seconds: int = 3600, **fields: Any) -> chat_pb2.CompletionRequest:
    made = request(text, **({"request_id": str(uuid.uuid4())} | fields))
    made.policy.completion_window.seconds = window_seconds
    return made


async def enqueue(rig: Rig, one: chat_pb2.CompletionRequest) -> batch_pb2.EnqueueCompletionResponse:
    answer: batch_pb2.EnqueueCompletionResponse = await rig.stub.EnqueueCompletion(
        batch_pb2.EnqueueCompletionRequest(request=one), timeout=10
    )
    return answer


async def look(rig: Rig, request_id: str) -> batch_pb2.GetQueuedCompletionResponse:
    answer: batch_pb2.GetQueuedCompletionResponse = await rig.stub.GetQueuedCompletion(
        batch_pb2.GetQueuedCompletionRequest(request_id=request_id), timeout=10
    )
    return answer


async def queued(rig: Rig, request_id: str) -> stored_pb2.StoredQueued:
    return await batches.read_one(rig.store, batches.queued_name("acme", request_id), stored_pb2.StoredQueued)


async def batch_of(rig: Rig, request_id: str) -> str:
    async with asyncio.timeout(20):
        while True:
            if batch_id := (await queued(rig, request_id)).batch_id:
                await wait_for(lambda: bool(rig.names(batches.batch_name("acme", batch_id))))
                await rig.until(batch_id, lambda one: one.state == batch_pb2.BATCH_STATE_RUNNING)
                return batch_id
            await asyncio.sleep(0.02)


async def items(rig: Rig, batch_id: str) -> list[stored_pb2.StoredItem]:
    stored = await batches.read_batch(rig.store, "acme", batch_id)
    numbers, ref = range(stored.object_count), BatchRef("acme", batch_id)
    return [one for number in numbers for one in await batches.read_items(rig.store, ref, number, None)]


async def test_what_waits_long_enough_becomes_a_batch_and_is_found_with_its_result(rig: Rig) -> None:
    first, second = wanted("One?", 7200), wanted("Two?", 3600, user_id="ann")
    deadlines = [(await enqueue(rig, one)).deadline_time.ToNanoseconds() for one in (first, second)]
    assert not (await look(rig, first.request_id)).ended
    batch_id = await batch_of(rig, first.request_id)
    assert await batch_of(rig, second.request_id) == batch_id
    stored = await batches.read_batch(rig.store, "acme", batch_id)
    assert stored.gathered
    assert stored.deadline_time.ToNanoseconds() == min(deadlines)
    assert list(stored.user_ids) == ["ann"]
    assert [one.request for one in await items(rig, batch_id)] == [first, second]
    # Nobody made this batch by name.
    assert not (await rig.stub.ListBatches(batch_pb2.ListBatchesRequest(), timeout=5)).batches

    await batches.write_one(rig.store, batches.queued_result_name("acme", first.request_id), result(0, "eins"))
    answer = await look(rig, first.request_id.upper())
    assert answer.ended
    assert answer.result.completion.message.parts[0].text == "eins"
    assert answer.expire_time.ToSeconds() - answer.deadline_time.ToSeconds() == 30 * 86_400
    assert not (await look(rig, second.request_id)).ended
    await rig.tell(batch_id, state="failed", error_message="no model answers")
    await rig.until(batch_id, lambda one: one.state == batch_pb2.BATCH_STATE_FAILED)
    answer = await look(rig, second.request_id)
    assert (answer.ended, answer.result.error_reason, answer.result.error_message) == (
        True,
        "BATCH_FAILED",
        "no model answers",
    )
    with pytest.raises(TenthError) as error:
        await rig.stub.RetryFailed(batch_pb2.RetryFailedRequest(batch_id=batch_id), timeout=5)
    assert error.value.reason == "BATCH_GATHERED"


async def test_enough_of_them_make_a_batch_at_once(tmp_path: Path, temporal_address: str) -> None:
    identity = Identity(tenant_id="acme", caller=f"c-{uuid.uuid4().hex}")
    changes: dict[str, Any] = {"gather_item_count": 5, "gather_seconds": 3600.0}
    async with batch_service(tmp_path, temporal_address, identity=identity, **changes) as rig, worker(rig):
        asked = [wanted(f"Question {number}?", 86_400) for number in range(12)]
        for one in asked:
            await enqueue(rig, one)
        made = [await batch_of(rig, one.request_id) for one in asked[:10]]
        assert [made.count(each) for each in dict.fromkeys(made)] == [5, 5]
        assert [(await queued(rig, one.request_id)).batch_id for one in asked[10:]] == ["", ""]
        assert len(rig.names("queued_waiting/")) == 2


async def test_a_near_deadline_hurries_those_that_wait(tmp_path: Path, temporal_address: str) -> None:
    identity = Identity(tenant_id="acme", caller=f"c-{uuid.uuid4().hex}")
    async with (
        batch_service(tmp_path, temporal_address, identity=identity, gather_seconds=3600.0) as rig,
        worker(rig),
    ):
        slow, fast = wanted("Slow?", 590), wanted("Fast?", 60)
        await enqueue(rig, slow)
        await enqueue(rig, fast)
        assert await batch_of(rig, slow.request_id) == await batch_of(rig, fast.request_id)


async def test_the_same_request_twice_is_one_item_and_another_is_refused(rig: Rig) -> None:
    one = wanted("One?")
    first = await enqueue(rig, one)
    assert await enqueue(rig, one) == first
    other = wanted("Other?", request_id=one.request_id)
    with pytest.raises(TenthError) as error:
        await enqueue(rig, other)
    assert (error.value.code, error.value.reason) == (Code.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    batch_id = await batch_of(rig, one.request_id)
    assert await enqueue(rig, one) == first
    await rig.temporal.add(GatherRef("acme", "x", True, 5), Waiting(one.request_id, 0.0), 3600)  # Told of late.
    assert len(await items(rig, batch_id)) == 1
    assert len(rig.names("gathered/acme/")) == 1


async def test_a_request_in_a_hurry_takes_no_time_from_others(rig: Rig) -> None:
    hurried, patient = wanted("Now?", 60), wanted("Tomorrow?", 86_400)
    for one in (patient, hurried):
        await enqueue(rig, one)
    found = {one.request_id: await batch_of(rig, one.request_id) for one in (hurried, patient)}
    assert found[hurried.request_id] != found[patient.request_id]
    stored = await batches.read_batch(rig.store, "acme", found[patient.request_id])
    assert stored.header.completion_window.seconds > 86_000


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"request_id": ""}, "request.request_id"),
        ({"request_id": "x"}, "request.request_id"),
        ({"window_seconds": 0}, "request.policy.completion_window"),
        ({"window_seconds": 8 * 86_400}, "request.policy.completion_window"),
        ({"namespace": "a b"}, "request.namespace"),
    ],
)
async def test_a_request_of_the_wrong_form_is_refused(rig: Rig, change: dict[str, Any], field: str) -> None:
    with pytest.raises(TenthError) as error:
        await enqueue(rig, wanted(**change))
    assert (error.value.code, error.value.field) == (Code.INVALID_ARGUMENT, field)
    assert rig.names() == []


async def test_rights_and_tenants_hold_for_single_requests_too(rig: Rig) -> None:
    one = wanted()
    await enqueue(rig, one)
    async with dial(rig.address, Identity(tenant_id="other", caller="x")) as channel:
        rig.stub = BatchServiceStub(channel)
        with pytest.raises(TenthError) as error:
            await look(rig, one.request_id)
        assert (error.value.code, error.value.reason) == (Code.NOT_FOUND, "QUEUED_NOT_FOUND")
        with pytest.raises(TenthError) as error:
            await enqueue(rig, wanted(user_id="ann"))
        assert (error.value.code, error.value.field) == (Code.PERMISSION_DENIED, "request.user_id")


async def test_a_users_requests_are_deleted_wherever_they_are(rig: Rig) -> None:
    gathered, answered = wanted("In a batch?", user_id="ann"), wanted("Other?", user_id="bob")
    for one in (gathered, answered):
        await enqueue(rig, one)
    batch_id = await batch_of(rig, gathered.request_id)
    answer = await rig.stub.DeleteUserItems(batch_pb2.DeleteUserItemsRequest(user_id="ann"), timeout=10)
    assert answer.item_count == 1
    assert [one.custom_id for one in await items(rig, batch_id)] == [answered.request_id]
    # A worker that had it in hand writes its result, which goes when the batch has ended.
    await batches.write_one(rig.store, batches.queued_result_name("acme", gathered.request_id), result(0, "late"))
    with pytest.raises(TenthError) as error:
        await look(rig, gathered.request_id)
    assert error.value.reason == "QUEUED_NOT_FOUND"
    await rig.tell(batch_id, state="done")
    await rig.until(batch_id, lambda one: one.state == batch_pb2.BATCH_STATE_DONE)
    await rig.sweeper.look_after()
    assert not [name for name in rig.names() if gathered.request_id in name]


async def test_enqueued_requests_past_their_retention_are_forgotten(rig: Rig) -> None:
    one = wanted(user_id="ann")
    await enqueue(rig, one)
    batch_id = await batch_of(rig, one.request_id)
    await rig.tell(batch_id, state="done")
    await rig.until(batch_id, lambda each: each.state == batch_pb2.BATCH_STATE_DONE)
    rig.clock.later_seconds = 30 * 86_400
    await rig.sweeper.expire()
    assert rig.names("queued/")
    rig.clock.later_seconds += 3700
    with pytest.raises(TenthError):
        await look(rig, one.request_id)
    await rig.sweeper.expire()
    assert rig.names() == []


async def test_a_request_that_was_kept_and_never_told_of_is_told_of_later(rig: Rig) -> None:
    one = wanted()
    await enqueue(rig, one)
    client: Client = await rig.temporal.client()
    caller = (await queued(rig, one.request_id)).caller
    await client.get_workflow_handle(gather_workflow_id("acme", caller, True, 3600)).terminate("as if it was lost")
    await rig.sweeper.tell_again()
    assert not (await queued(rig, one.request_id)).batch_id
    rig.clock.later_seconds = 130
    await rig.sweeper.tell_again()
    await batch_of(rig, one.request_id)
    await wait_for(lambda: not rig.names("queued_waiting/"))


async def test_composing_twice_makes_one_batch(rig: Rig) -> None:
    asked = [wanted(f"Question {number}?", 86_400) for number in range(3)]
    for one in asked:
        await enqueue(rig, one)
    stored = await queued(rig, asked[0].request_id)
    composer = Composer(rig.store, 2, rig.clock)
    ids = [one.request_id for one in asked]
    what = Compose("acme", stored.caller, True, str(uuid.uuid4()), [*ids, str(uuid.uuid4())])
    assert list(await asyncio.gather(*(composer.compose_batch(what) for _ in range(2)))) == [3, 3]
    assert await composer.compose_batch(what) == 3
    other = Compose("acme", stored.caller, True, str(uuid.uuid4()), ids)
    assert await composer.compose_batch(other) == 0
    assert not rig.names(f"batches/acme/{other.batch_id}")
    assert [one.custom_id for one in await items(rig, what.batch_id)] == ids


async def test_what_gathers_ends_when_nothing_waits_and_begins_again(rig: Rig) -> None:
    for _ in range(2):
        one = wanted()
        await enqueue(rig, one)
        caller = (await queued(rig, one.request_id)).caller
        client: Client = await rig.temporal.client()
        handle = client.get_workflow_handle(gather_workflow_id("acme", caller, True, 3600))
        async with asyncio.timeout(20):
            await handle.result()
        assert (await queued(rig, one.request_id)).batch_id
