"""The batch service on a real Temporal: taking in, looking, cancelling, running again."""

from __future__ import annotations

import asyncio
import errno
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from tenth.batch.v1 import batch_pb2, stored_pb2
from tenth.batch.v1.batch_pb2_grpc import BatchServiceStub

from mesh.auth import Identity
from mesh.errors import Code, TenthError
from mesh.testing import dial
from services.batch import batches
from services.batch.creating import batch_id_of
from services.batch.objects import open_store
from services.batch.objects_directory import DirectoryStore
from services.batch.refs import BatchRef
from services.batch.settings import BatchSettings
from services.batch.temporal import Temporal
from tests.integration.batch.batch_rig import Rig, batch_service, header, item, jsonl, pieces, wait_for, worker

State = batch_pb2.BatchState
RUNNING, DONE, FAILED = batch_pb2.BATCH_STATE_RUNNING, batch_pb2.BATCH_STATE_DONE, batch_pb2.BATCH_STATE_FAILED
CANCELLED, CANCELLING = batch_pb2.BATCH_STATE_CANCELLED, batch_pb2.BATCH_STATE_CANCELLING


@pytest.fixture
async def rig(tmp_path: Path, temporal_address: str) -> AsyncIterator[Rig]:
    async with batch_service(tmp_path, temporal_address, items_per_object=100) as made, worker(made):
        yield made


def get(batch_id: str) -> batch_pb2.GetBatchRequest:
    return batch_pb2.GetBatchRequest(batch_id=batch_id)


def retry(batch_id: str) -> batch_pb2.RetryFailedRequest:
    return batch_pb2.RetryFailedRequest(batch_id=batch_id)


async def stored_items(rig: Rig, ref: BatchRef) -> list[stored_pb2.StoredItem]:
    stored = await batches.read_batch(rig.store, ref.tenant_id, ref.batch_id)
    indexes = await batches.read_run_items(rig.store, ref)
    return [
        one
        for number in range(stored.object_count)
        for one in await batches.read_items(rig.store, ref, number, indexes)
    ]


async def test_a_file_of_ten_thousand_lines_with_one_bad_line_names_it_and_leaves_nothing(rig: Rig) -> None:
    answer = await rig.send(pieces(jsonl(10_000, bad=[7_777]), 60_000))
    assert not answer.HasField("batch")
    (error,) = answer.line_errors
    assert (error.line, error.custom_id, error.field) == (7_777, "q7777", "messages[0].role")
    assert rig.names() == []


async def test_a_file_is_taken_in_started_and_seen_to_its_end(rig: Rig) -> None:
    answer = await rig.send(pieces(jsonl(250), 1000), tags={"team": "a"})
    batch = answer.batch
    assert not answer.line_errors
    assert (batch.item_count, batch.state, batch.run, dict(batch.tags)) == (250, RUNNING, 1, {"team": "a"})
    assert (batch.deadline_time.ToSeconds() - batch.create_time.ToSeconds()) in (3600, 3601)
    assert batch.expire_time.ToSeconds() - batch.deadline_time.ToSeconds() == 30 * 86_400
    stored = await batches.read_batch(rig.store, "acme", batch.batch_id)
    assert (stored.caller, stored.may_assert_user, stored.object_count) == ("test", True, 3)
    items = await stored_items(rig, BatchRef("acme", batch.batch_id))
    assert [(one.index, one.line, one.custom_id) for one in items] == [(n, n + 1, f"q{n + 1}") for n in range(250)]

    await rig.tell(batch.batch_id, done=100, cache_hits=7, forecast_nano_usd=90, lanes={"local": 93})
    seen = await rig.until(batch.batch_id, lambda one: one.done_count == 100)
    assert (seen.state, seen.cache_hit_count, seen.forecast_nano_usd) == (RUNNING, 7, 90)
    assert [(one.lane, one.item_count) for one in seen.lanes] == [("local", 93)]
    await rig.tell(batch.batch_id, state="done", done=250, actual_nano_usd=80, end_time_seconds=5.0)
    seen = await rig.until(batch.batch_id, lambda one: one.state == DONE)
    assert (seen.actual_nano_usd, seen.end_time.ToSeconds()) == (80, 5)
    # How it ended is kept, and does not depend on Temporal any more.
    kept = await batches.read_run(rig.store, BatchRef("acme", batch.batch_id))
    assert kept.ended.done_count == 250


async def test_the_same_request_id_gives_the_same_batch_or_is_refused(rig: Rig) -> None:
    request_id = str(uuid.uuid4())
    first = await rig.create([item("a"), item("b")], request_id=request_id)
    before = rig.names()
    again = await rig.create([item("a"), item("b")], request_id=request_id.upper())
    assert again.batch.batch_id == first.batch.batch_id == batch_id_of("acme", request_id)
    assert again.batch.create_time == first.batch.create_time
    with pytest.raises(TenthError) as error:
        await rig.create([item("a"), item("c")], request_id=request_id)
    assert (error.value.code, error.value.reason) == (Code.ALREADY_EXISTS, "REQUEST_ID_REUSED")
    answer = await rig.create([item("a"), item("a")], request_id=request_id)
    assert [one.reason for one in answer.line_errors] == ["CUSTOM_ID_REPEATED"]
    assert rig.names() == before


async def test_a_batch_that_was_stored_and_not_started_is_started_by_the_same_call(rig: Rig) -> None:
    request_id = str(uuid.uuid4())
    start = rig.creation._temporal.start
    rig.creation._temporal.start = _killed  # type: ignore[method-assign]
    with pytest.raises(TenthError):
        await rig.create([item("a")], request_id=request_id)
    batch_id = batch_id_of("acme", request_id)
    seen = (await rig.stub.GetBatch(get(batch_id), timeout=5)).batch
    assert seen.state == batch_pb2.BATCH_STATE_VALIDATING
    rig.creation._temporal.start = start  # type: ignore[method-assign]
    assert (await rig.create([item("a")], request_id=request_id)).batch.batch_id == batch_id
    await rig.until(batch_id, lambda one: one.state == RUNNING)


async def _killed(ref: BatchRef, *, cancelled: bool = False) -> None:
    raise TenthError(Code.UNAVAILABLE, "TEMPORAL_UNAVAILABLE", "for a test")


async def test_a_batch_that_was_stored_and_not_started_is_started_by_the_sweeper(rig: Rig) -> None:
    start = rig.creation._temporal.start
    rig.creation._temporal.start = _killed  # type: ignore[method-assign]
    request_id = str(uuid.uuid4())
    with pytest.raises(TenthError):
        await rig.create([item("a")], request_id=request_id)
    rig.creation._temporal.start = start  # type: ignore[method-assign]
    batch_id = batch_id_of("acme", request_id)
    for name in rig.names("index/") + rig.names(f"batches/acme/{batch_id}/state"):
        await rig.store.delete(name)  # As a crash right after batch.pb leaves it.
    await rig.sweeper.look_after()
    await rig.until(batch_id, lambda one: one.state == RUNNING)
    assert len(rig.names("index/acme/")) == 1


async def test_an_upload_that_is_given_up_leaves_nothing(rig: Rig) -> None:
    content = jsonl(1000)

    async def stream(gone: asyncio.Event) -> AsyncIterator[batch_pb2.CreateBatchRequest]:
        yield batch_pb2.CreateBatchRequest(header=header())
        for part in pieces(content, 20_000):
            yield part
        await gone.wait()

    call = asyncio.ensure_future(rig.stub.CreateBatch(stream(asyncio.Event()), timeout=60))
    await wait_for(lambda: len(rig.names("batches/")) == 9)
    call.cancel()
    await wait_for(lambda: not rig.names())


async def test_a_second_upload_takes_over_from_one_that_still_runs(rig: Rig) -> None:
    request_id, hurry = str(uuid.uuid4()), asyncio.Event()

    async def slow() -> AsyncIterator[batch_pb2.CreateBatchRequest]:
        yield batch_pb2.CreateBatchRequest(header=header(request_id=request_id))
        for part in pieces(jsonl(250), 10_000):
            yield part
        await hurry.wait()

    first = asyncio.ensure_future(rig.stub.CreateBatch(slow(), timeout=60))
    await wait_for(lambda: len(rig.names("batches/")) == 2)
    second = await rig.send(pieces(jsonl(250), 10_000), request_id=request_id)
    hurry.set()
    with pytest.raises(TenthError) as error:
        await first
    assert (error.value.code, error.value.reason) == (Code.ABORTED, "UPLOAD_TAKEN_OVER")
    assert len(await stored_items(rig, BatchRef("acme", second.batch.batch_id))) == 250


async def test_an_abandoned_upload_is_removed_a_day_later(rig: Rig) -> None:
    # What a killed replica leaves: a note and some input.
    record = stored_pb2.StoredOpen(tenant_id="acme", batch_id="b", upload_id="u")
    record.create_time.FromNanoseconds(rig.clock())
    await batches.write_one(rig.store, batches.open_name("acme", "b"), record)
    await rig.store.put(batches.input_name("acme", "b", 0), b"")
    await rig.sweeper.look_after()
    assert len(rig.names()) == 2
    rig.clock.later_seconds = 86_500
    await rig.sweeper.look_after()
    assert rig.names() == []


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([], "BATCH_EMPTY"),
        ([batch_pb2.CreateBatchRequest()], "INPUT_ORDER"),
        ([batch_pb2.CreateBatchRequest(header=header())], "INPUT_ORDER"),
        ([batch_pb2.CreateBatchRequest(item=item("a")), batch_pb2.CreateBatchRequest(jsonl=b"{}")], "INPUT_ORDER"),
    ],
)
async def test_a_stream_of_the_wrong_form_is_refused(
    rig: Rig, parts: list[batch_pb2.CreateBatchRequest], reason: str
) -> None:
    with pytest.raises(TenthError) as error:
        await rig.send(parts)
    assert (error.value.code, error.value.reason) == (Code.INVALID_ARGUMENT, reason)
    assert rig.names() == []


async def test_the_head_comes_first(rig: Rig) -> None:
    async def stream() -> AsyncIterator[batch_pb2.CreateBatchRequest]:
        yield batch_pb2.CreateBatchRequest(item=item("a"))

    with pytest.raises(TenthError) as error:
        await rig.stub.CreateBatch(stream(), timeout=5)
    assert error.value.reason == "INPUT_ORDER"


async def test_another_tenants_batch_is_not_found(rig: Rig) -> None:
    batch_id = (await rig.create([item("a", user_id="ann")])).batch.batch_id
    before = rig.names()
    stranger = Identity(tenant_id="other", caller="test", may_assert_user=True, may_see_all_tenants=True)
    async with dial(rig.address, stranger) as channel:
        stub: Any = BatchServiceStub(channel)
        calls: tuple[Any, ...] = (
            stub.GetBatch(get(batch_id), timeout=5),
            stub.CancelBatch(batch_pb2.CancelBatchRequest(batch_id=batch_id), timeout=5),
            stub.RetryFailed(retry(batch_id), timeout=5),
            _first(stub.StreamBatchResults(batch_pb2.StreamBatchResultsRequest(batch_id=batch_id), timeout=5)),
        )
        for call in calls:
            with pytest.raises(TenthError) as error:
                await call
            assert (error.value.code, error.value.reason) == (Code.NOT_FOUND, "BATCH_NOT_FOUND")
        assert not (await stub.ListBatches(batch_pb2.ListBatchesRequest(), timeout=5)).batches
        gone = await stub.DeleteUserItems(batch_pb2.DeleteUserItemsRequest(user_id="ann"), timeout=5)
        assert gone.item_count == 0
    assert rig.names() == before


async def _first(stream: Any) -> Any:
    return await anext(aiter(stream))


async def test_ids_that_are_none_are_not_found_and_absent_ones_are_required(rig: Rig) -> None:
    for batch_id, code in (("", Code.INVALID_ARGUMENT), ("../x", Code.NOT_FOUND), (str(uuid.uuid4()), Code.NOT_FOUND)):
        with pytest.raises(TenthError) as error:
            await rig.stub.GetBatch(get(batch_id), timeout=5)
        assert error.value.code == code


async def test_a_tenant_whose_name_is_a_path_stays_within_its_folder(rig: Rig) -> None:
    async with dial(rig.address, Identity(tenant_id="../../etc", caller="test")) as channel:
        rig.stub = BatchServiceStub(channel)
        batch = (await rig.create([item("a")])).batch
        assert (await rig.stub.GetBatch(get(batch.batch_id), timeout=5)).batch == batch
    assert all(name.split("/")[1] == "%2E.%2F..%2Fetc" for name in rig.names())


async def test_batches_are_listed_newest_first_in_pages(rig: Rig) -> None:
    made = [(await rig.create([item("a")])).batch.batch_id for _ in range(5)]
    request = batch_pb2.ListBatchesRequest(page_size=2)
    seen: list[str] = []
    sizes = []
    while True:
        page = await rig.stub.ListBatches(request, timeout=10)
        seen += [one.batch_id for one in page.batches]
        sizes.append(len(page.batches))
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == made[::-1]
    assert sizes == [2, 2, 1]
    assert len((await rig.stub.ListBatches(batch_pb2.ListBatchesRequest(), timeout=10)).batches) == 5
    for bad in (batch_pb2.ListBatchesRequest(page_size=-1), batch_pb2.ListBatchesRequest(page_token="x")):
        with pytest.raises(TenthError) as error:
            await rig.stub.ListBatches(bad, timeout=5)
        assert error.value.code == Code.INVALID_ARGUMENT


async def test_cancelling_twice_is_cancelling_once(rig: Rig) -> None:
    batch_id = (await rig.create([item("a")])).batch.batch_id
    request = batch_pb2.CancelBatchRequest(batch_id=batch_id)
    assert (await rig.stub.CancelBatch(request, timeout=10)).batch.state in (CANCELLING, CANCELLED)
    await rig.until(batch_id, lambda one: one.state == CANCELLED)
    assert (await rig.stub.CancelBatch(request, timeout=10)).batch.state == CANCELLED


async def test_a_batch_that_never_started_is_cancelled_too(rig: Rig) -> None:
    start = rig.creation._temporal.start
    rig.creation._temporal.start = _killed  # type: ignore[method-assign]
    request_id = str(uuid.uuid4())
    with pytest.raises(TenthError):
        await rig.create([item("a")], request_id=request_id)
    rig.creation._temporal.start = start  # type: ignore[method-assign]
    batch_id = batch_id_of("acme", request_id)
    await rig.stub.CancelBatch(batch_pb2.CancelBatchRequest(batch_id=batch_id), timeout=10)
    await rig.until(batch_id, lambda one: one.state == CANCELLED)


async def test_failed_items_run_again_as_another_run(rig: Rig) -> None:
    batch_id = (await rig.create(item(f"q{n + 1}", f"Question {n}?") for n in range(5))).batch.batch_id
    first = BatchRef("acme", batch_id)
    await rig.results(first, "a", {0: "zero", 1: "!NO_MODEL_AVAILABLE", 3: "!BUDGET_EXCEEDED"})
    await rig.tell(batch_id, done=1, failed=2)
    await rig.until(batch_id, lambda one: one.failed_count == 2)
    with pytest.raises(TenthError) as error:
        await rig.stub.RetryFailed(retry(batch_id), timeout=10)
    assert (error.value.code, error.value.reason) == (Code.FAILED_PRECONDITION, "BATCH_RUNNING")
    await rig.results(first, "b", {2: "two"})
    await rig.tell(batch_id, state="cancelled", done=2, failed=2, actual_nano_usd=10, savings=[1, 0, 0, 0, 4, 0])
    await rig.until(batch_id, lambda one: one.state == CANCELLED)

    batch = (await rig.stub.RetryFailed(retry(batch_id), timeout=10)).batch
    assert (batch.run, batch.state, batch.done_count, batch.failed_count) == (2, RUNNING, 2, 0)
    second = BatchRef("acme", batch_id, 2)
    items = await stored_items(rig, second)
    assert [one.index for one in items] == [1, 3, 4]
    before = {one.index: one.request.request_id for one in await stored_items(rig, first)}
    assert all(one.request.request_id != before[one.index] for one in items)
    assert (await batches.read_run(rig.store, second)).item_count == 3

    await rig.results(second, "a", {1: "one", 3: "three", 4: "four"})
    await rig.tell(
        batch_id, 2, state="done", done=3, actual_nano_usd=7, savings=[0, 2, 0, 0, 3, 0], forecast_nano_usd=8
    )
    batch = await rig.until(batch_id, lambda one: one.state == DONE)
    assert (batch.done_count, batch.failed_count, batch.actual_nano_usd) == (5, 0, 17)
    assert batch.forecast_nano_usd == 18
    assert [one.saving_nano_usd for one in batch.savings] == [1, 2, 0, 0, 7, 0]
    assert (await rig.stub.RetryFailed(retry(batch_id), timeout=10)).batch == batch


async def test_a_workflow_that_breaks_is_a_failed_batch(rig: Rig) -> None:
    batch_id = (await rig.create([item("a")])).batch.batch_id
    client = await rig.temporal.client()
    await client.get_workflow_handle(f"batch-{batch_id}").terminate("for a test")
    batch = await rig.until(batch_id, lambda one: one.state == FAILED)
    assert batch.error_reason == "WORKFLOW_FAILED"
    assert batch.HasField("end_time")
    assert (await rig.stub.RetryFailed(retry(batch_id), timeout=10)).batch.run == 2


async def test_a_workflow_that_temporal_forgot_is_not_started_again(rig: Rig) -> None:
    batch_id = (await rig.create([item("a")])).batch.batch_id
    client = await rig.temporal.client()
    await client.workflow_service.delete_workflow_execution(
        DeleteWorkflowExecutionRequest(
            namespace="default", workflow_execution=WorkflowExecution(workflow_id=f"batch-{batch_id}")
        )
    )
    batch = await rig.until(batch_id, lambda one: one.state == FAILED)
    await rig.sweeper.look_after()
    assert batch.error_reason == "WORKFLOW_LOST"


async def test_a_batch_past_its_retention_is_gone(rig: Rig) -> None:
    batch_id = (await rig.create([item("a")])).batch.batch_id
    await rig.results(BatchRef("acme", batch_id), "a", {0: "zero"})
    await rig.tell(batch_id, state="done", done=1)
    await rig.until(batch_id, lambda one: one.state == DONE)
    await rig.sweeper.look_after()
    assert not rig.names("open/")
    rig.clock.later_seconds = 30 * 86_400
    await rig.sweeper.expire()
    assert rig.names("batches/")
    rig.clock.later_seconds += 3601
    await rig.sweeper.expire()
    assert rig.names() == []
    with pytest.raises(TenthError) as error:
        await rig.stub.GetBatch(get(batch_id), timeout=5)
    assert error.value.code == Code.NOT_FOUND


async def test_what_only_a_run_needed_goes_when_it_has_ended(rig: Rig) -> None:
    batch_id = (await rig.create([item("a")])).batch.batch_id
    ref = BatchRef("acme", batch_id)
    await rig.store.put(batches.prepared_name(ref, "0"), b"")
    await rig.store.put(batches.plan_name(ref, "0"), b"")
    await rig.sweeper.look_after()
    assert len(rig.names(f"batches/acme/{batch_id}/run/")) == 2
    await rig.tell(batch_id, state="done", done=1)
    await rig.until(batch_id, lambda one: one.state == DONE)
    await rig.sweeper.look_after()
    assert not rig.names(f"batches/acme/{batch_id}/run/")
    assert not rig.names("open/")


class FullStore(DirectoryStore):
    """A disk that becomes full after some objects."""

    left = 3

    def _put(self, path: Path, content: bytes) -> None:
        self.left -= 1
        if self.left < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        super()._put(path, content)


async def test_a_disk_that_becomes_full_is_told_and_nothing_is_left_on_it(
    tmp_path: Path, temporal_address: str
) -> None:
    store = FullStore(tmp_path / "objects")
    async with batch_service(tmp_path, temporal_address, store=store, items_per_object=2) as rig:
        with pytest.raises(TenthError) as error:
            await rig.create(item(f"q{number}") for number in range(10))
        assert (error.value.code, error.value.reason) == (Code.RESOURCE_EXHAUSTED, "STORE_FULL")
        assert rig.names() == []


async def test_a_batch_on_s3_from_its_file_to_its_end(
    tmp_path: Path, temporal_address: str, s3_url: str, s3_bucket: str
) -> None:
    store = open_store(f"s3://{s3_bucket}/batches", s3_endpoint_url=s3_url, s3_region="us-east-1")
    async with batch_service(tmp_path, temporal_address, store=store, items_per_object=10) as rig, worker(rig):
        bad = await rig.send(pieces(jsonl(40, bad=[35]), 1000))
        assert [one.line for one in bad.line_errors] == [35]
        assert not [name async for name in store.list("")]
        batch_id = (await rig.send(pieces(jsonl(40), 1000), user_id="ann")).batch.batch_id
        ref = BatchRef("acme", batch_id)
        await rig.results(ref, "a", {number: f"answer {number}" for number in reversed(range(40))})
        await rig.tell(batch_id, state="done", done=40)
        await rig.until(batch_id, lambda one: one.state == DONE)
        wanted = [(f"q{number + 1}", f"answer {number}") for number in range(40)]
        assert await rig.stream(batch_id, in_input_order=True) == wanted
        listed = (await rig.stub.ListBatches(batch_pb2.ListBatchesRequest(), timeout=10)).batches
        assert [one.batch_id for one in listed] == [batch_id]
        gone = await rig.stub.DeleteUserItems(batch_pb2.DeleteUserItemsRequest(user_id="ann"), timeout=30)
        assert gone.item_count == 40
        assert await rig.stream(batch_id) == []
    await store.close()


async def test_a_namespace_that_is_not_there_says_nothing_about_workflows(temporal_address: str) -> None:
    temporal = Temporal(BatchSettings(temporal_address=temporal_address, temporal_namespace="nowhere"))
    for call in (temporal.progress(BatchRef("t", "b")), temporal.start(BatchRef("t", "b")), temporal.ping()):
        with pytest.raises(TenthError) as error:
            await call
        assert error.value.reason == "TEMPORAL_UNAVAILABLE"
