"""Results: as they come, in input order, of several runs; and an end user's items, deleted."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from tenth.batch.v1 import batch_pb2, stored_pb2
from tenth.batch.v1.batch_pb2_grpc import BatchServiceStub

from mesh.auth import Identity
from mesh.errors import Code, TenthError
from mesh.testing import dial
from services.batch import batches
from services.batch.objects import read_records, write_records
from services.batch.objects_directory import DirectoryStore
from services.batch.refs import BatchRef
from services.batch.results import Results
from services.batch.viewing import View, Views
from tests.integration.batch.batch_rig import Rig, batch_service, item, read, result, worker


@pytest.fixture
async def rig(tmp_path: Path, temporal_address: str) -> AsyncIterator[Rig]:
    async with batch_service(tmp_path, temporal_address, items_per_object=10) as made, worker(made):
        yield made


async def made(rig: Rig, count: int, **fields: Any) -> BatchRef:
    answer = await rig.create(item(f"q{n + 1}", f"Question {n}?", **fields) for n in range(count))
    return BatchRef("acme", answer.batch.batch_id)


async def ended(rig: Rig, ref: BatchRef) -> None:
    await rig.tell(ref.batch_id, ref.run, state="done")
    await rig.until(ref.batch_id, lambda one: one.state == batch_pb2.BATCH_STATE_DONE)


def told(*numbers: int) -> list[tuple[str, str]]:
    return [(f"q{number + 1}", f"answer {number}") for number in numbers]


def answers(*numbers: int) -> dict[int, str]:
    return {number: f"answer {number}" for number in numbers}


async def test_results_of_an_ended_batch_in_both_orders(rig: Rig) -> None:
    ref, numbers = await made(rig, 60), list(range(60))
    random.Random(7).shuffle(numbers)
    for chunk in range(6):
        await rig.results(ref, f"c{chunk}", answers(*numbers[chunk * 10 : chunk * 10 + 10]))
    await ended(rig, ref)
    assert await rig.stream(ref.batch_id, in_input_order=True) == told(*range(60))
    assert await rig.stream(ref.batch_id) == told(*numbers)


@pytest.mark.parametrize("in_input_order", [False, True])
async def test_results_come_while_the_batch_runs(rig: Rig, in_input_order: bool) -> None:
    ref = await made(rig, 6)
    request = batch_pb2.StreamBatchResultsRequest(batch_id=ref.batch_id, in_input_order=in_input_order)
    stream = aiter(rig.stub.StreamBatchResults(request, timeout=30))

    async def some(count: int) -> list[tuple[str, str]]:
        return [read(await anext(stream)) for _ in range(count)]

    await rig.results(ref, "b", answers(1, 3, 0))
    assert await some(2) == (told(0, 1) if in_input_order else told(1, 3))
    await rig.results(ref, "a", answers(2))  # Its name stands before the one that was read.
    if in_input_order:
        assert await some(2) == told(2, 3)
    else:
        assert await some(2) == told(0, 2)
    await rig.results(ref, "c", answers(5))
    if not in_input_order:
        assert await some(1) == told(5)
    await rig.tell(ref.batch_id, state="cancelled")  # Item 4 never comes.
    assert [read(one) async for one in stream] == (told(5) if in_input_order else [])


@pytest.mark.parametrize("in_input_order", [False, True])
async def test_the_last_run_that_took_an_item_tells_of_it(rig: Rig, in_input_order: bool) -> None:
    ref = await made(rig, 5)
    await rig.results(ref, "a", answers(0) | {1: "!DOWN", 2: "!DOWN"} | answers(3))
    await ended(rig, ref)
    batch = (await rig.stub.RetryFailed(batch_pb2.RetryFailedRequest(batch_id=ref.batch_id), timeout=10)).batch
    assert batch.run == 2
    request = batch_pb2.StreamBatchResultsRequest(batch_id=ref.batch_id, in_input_order=in_input_order)
    stream = aiter(rig.stub.StreamBatchResults(request, timeout=30))
    assert read(await anext(stream)) == told(0)[0]
    second = BatchRef("acme", ref.batch_id, 2)
    await rig.results(second, "a", answers(1))
    await rig.tell(ref.batch_id, 2, state="cancelled")  # Neither item 2 nor item 4 came to its turn again.
    rest = [read(one) async for one in stream]
    wanted = [*told(1), ("q3", "!DOWN"), *told(3)]
    assert rest == wanted if in_input_order else sorted(rest) == sorted(wanted)
    assert sorted(await rig.stream(ref.batch_id, in_input_order=in_input_order)) == sorted([*told(0), *wanted])


async def test_a_damaged_result_object_is_told(rig: Rig) -> None:
    ref = await made(rig, 2)
    await rig.store.put(batches.result_name(ref, "a"), b"\xff\xff")
    await ended(rig, ref)
    with pytest.raises(TenthError) as error:
        await rig.stream(ref.batch_id)
    assert (error.value.code, error.value.reason) == (Code.DATA_LOSS, "STORE_DAMAGED")


async def delete(rig: Rig, user_id: str) -> int:
    request = batch_pb2.DeleteUserItemsRequest(user_id=user_id)
    return int((await rig.stub.DeleteUserItems(request, timeout=30)).item_count)


async def everything(rig: Rig, prefix: str) -> bytes:
    return b"".join([await rig.store.get(name) for name in rig.names(prefix)])


async def test_a_users_items_leave_ended_and_running_batches(rig: Rig) -> None:
    items = [item(f"q{n + 1}", f"Question {n}?", user_id="ann" if n % 4 == 0 else "bob") for n in range(24)]
    old = BatchRef("acme", (await rig.create(items)).batch.batch_id)
    await rig.results(old, "a", answers(*range(24)))
    await rig.store.put(batches.prepared_name(old, "0"), b"Question 0?")
    await ended(rig, old)
    new = BatchRef("acme", (await rig.create(items)).batch.batch_id)
    await rig.results(new, "a", answers(*range(8)))
    other = await made(rig, 3, user_id="bob")

    assert await delete(rig, "ann") == 12
    left = [n for n in range(24) if n % 4]
    assert await rig.stream(old.batch_id, in_input_order=True) == told(*left)
    for ref in (old, new):
        content = await everything(rig, batches.folder("acme", ref.batch_id))
        assert b"Question 0?" not in content
        assert b"Question 1?" in content
        stored = await batches.read_batch(rig.store, "acme", ref.batch_id)
        kept = [
            one.index
            for number in range(stored.object_count)
            for one in await batches.read_items(rig.store, ref, number, None)
        ]
        assert kept == left
        assert await batches.read_deleted_users(rig.store, "acme", ref.batch_id) == {"ann"}
    assert not await batches.read_deleted_users(rig.store, "acme", other.batch_id)

    # A chunk that was in a worker's hands meanwhile writes what it still knows: told to nobody, and gone at the end.
    await rig.results(new, "b", answers(*range(8, 24)))
    await rig.tell(new.batch_id, state="done")
    assert await rig.stream(new.batch_id, in_input_order=True) == told(*left)
    await rig.sweeper.look_after()
    content = await everything(rig, batches.results_prefix("acme", new.batch_id))
    kept = [one.index for one in read_records(content, stored_pb2.StoredResult)]
    assert sorted(kept) == left
    assert await delete(rig, "ann") == 0
    assert await delete(rig, "nobody") == 0


async def test_a_deletion_that_broke_off_goes_on(rig: Rig) -> None:
    ref = BatchRef("acme", (await rig.create([item("q1", user_id="ann"), item("q2")])).batch.batch_id)
    await rig.results(ref, "a", answers(0, 1))
    await ended(rig, ref)
    deletion = stored_pb2.StoredDeletion(user_id="ann", indexes=[0])
    await batches.write_one(rig.store, batches.deleted_name("acme", ref.batch_id, "ann"), deletion)
    await rig.store.put(batches.input_name("acme", ref.batch_id, 0), b"")  # The input is done, the results are not.
    await delete(rig, "ann")
    content = await everything(rig, batches.results_prefix("acme", ref.batch_id))
    assert [one.index for one in read_records(content, stored_pb2.StoredResult)] == [1]


async def test_many_users_are_found_all_the_same(rig: Rig) -> None:
    items = [item(f"q{n}", user_id=f"user-{n}") for n in range(1005)]
    batch_id = (await rig.create(items)).batch.batch_id
    assert (await batches.read_batch(rig.store, "acme", batch_id)).more_user_ids
    assert await delete(rig, "user-1004") == 1


async def test_only_a_caller_that_may_name_users_deletes_their_items(rig: Rig) -> None:
    async with dial(rig.address, Identity(tenant_id="acme", caller="plain")) as channel:
        stub: Any = BatchServiceStub(channel)
        with pytest.raises(TenthError) as error:
            await stub.DeleteUserItems(batch_pb2.DeleteUserItemsRequest(user_id="ann"), timeout=5)
    assert error.value.code == Code.PERMISSION_DENIED
    with pytest.raises(TenthError) as error:
        await delete(rig, "")
    assert error.value.reason == "REQUIRED_FIELD"


async def test_one_who_waits_looks_less_often_until_something_comes(tmp_path: Path) -> None:
    ref, store, pauses = BatchRef("acme", "b"), DirectoryStore(tmp_path / "objects"), list[float]()
    view = View(stored_pb2.StoredBatch(tenant_id="acme", batch_id="b", item_count=2), (), batch_pb2.Batch(), False)

    class Played:
        async def look(self, tenant_id: str, batch_id: str) -> View:
            return replace(view, ended=len(pauses) >= 12)

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 9:
            await store.put(batches.result_name(ref, "a"), write_records([result(0, "an answer")]))

    results = Results(store, cast(Views, Played()), tmp_path / "streams", 1.0, 10.0, sleep)
    got = [read(one) async for one in results.stream("acme", "b", in_input_order=False)]
    assert got == [("q1", "an answer")]
    assert pauses[:3] == [1.0, 1.5, 2.25]
    assert pauses[6:9] == [10.0, 10.0, 10.0]
    assert pauses[9:] == [1.0, 1.5, 2.25]
