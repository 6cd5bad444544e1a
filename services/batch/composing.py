"""Single requests that can wait: kept until they are in a batch, and found again with their results."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from temporalio import activity
from tenth.batch.v1 import batch_pb2, stored_pb2
from tenth.type.v1 import chat_pb2

from services.batch.batches import (
    batch_name,
    index_name,
    input_name,
    queued_name,
    queued_result_name,
    queued_waiting_name,
    read_one,
    state_name,
    write_one,
)
from services.batch.creating import first_run, write_open
from services.batch.intake import MAX_OBJECTS, request_digest
from services.batch.objects import ObjectNotFound, ObjectStore, write_records
from services.batch.refs import COMPOSE_ACTIVITY, BatchRef, Compose

_AT_ONCE = 16
_MAX_GROUP_BYTES = 16_000_000
_MAX_USERS = 1000


class Composer:
    """Makes batches of requests that wait; an activity of the worker."""

    def __init__(self, store: ObjectStore, items_per_object: int, now_ns: Callable[[], int]) -> None:
        self._store = store
        self._items_per_object = items_per_object
        self._now_ns = now_ns

    @activity.defn(name=COMPOSE_ACTIVITY)
    async def compose_batch(self, what: Compose) -> int:
        """Make a batch of those requests that are still there and in no other batch; how many they are.

        Idempotent: what was taken once is taken again, and a batch that is there is left as it is.
        """
        try:
            name = batch_name(what.tenant_id, what.batch_id)
            return (await read_one(self._store, name, stored_pb2.StoredBatch)).item_count
        except ObjectNotFound:
            pass
        gate = asyncio.Semaphore(_AT_ONCE)

        async def take(request_id: str) -> stored_pb2.StoredQueued | None:
            async with gate:
                return await self._take(what, request_id)

        async with asyncio.TaskGroup() as group:
            takes = [group.create_task(take(request_id)) for request_id in what.request_ids]
        queued = [one for task in takes if (one := task.result()) is not None]
        if queued:
            await self._write(what, queued)
        for request_id in what.request_ids:
            await self._store.delete(queued_waiting_name(what.tenant_id, request_id))
        return len(queued)

    async def _take(self, what: Compose, request_id: str) -> stored_pb2.StoredQueued | None:
        name = queued_name(what.tenant_id, request_id)
        try:
            queued = await read_one(self._store, name, stored_pb2.StoredQueued)
        except ObjectNotFound:
            return None  # Deleted with its user's items.
        if queued.batch_id not in ("", what.batch_id):
            return None
        if await self._store.exists(queued_result_name(what.tenant_id, request_id)):
            return None
        if not queued.batch_id:
            queued.batch_id = what.batch_id
            await write_one(self._store, name, queued)
        return queued

    async def _write(self, what: Compose, queued: list[stored_pb2.StoredQueued]) -> None:
        tenant_id, batch_id = what.tenant_id, what.batch_id
        now = self._now_ns()
        await write_open(self._store, tenant_id, batch_id, "", now)
        # No more objects than any batch may have, whatever the settings say.
        size = max(self._items_per_object, -(-len(queued) // MAX_OBJECTS))
        groups = list(_groups(list(_items(queued)), size))
        for number, group in enumerate(groups):
            await self._store.put(input_name(tenant_id, batch_id, number), write_records(group))
        users = list(dict.fromkeys(one.request.user_id for one in queued if one.request.user_id))
        stored = stored_pb2.StoredBatch(
            batch_id=batch_id,
            tenant_id=tenant_id,
            caller=what.caller,
            may_assert_user=what.may_assert_user,
            header=batch_pb2.BatchHeader(request_id=batch_id),
            item_count=len(queued),
            items_per_object=size,
            object_count=len(groups),
            gathered=True,
            user_ids=users[:_MAX_USERS],
            more_user_ids=len(users) > _MAX_USERS,
        )
        stored.create_time.FromNanoseconds(now)
        deadline = min(one.deadline_time.ToNanoseconds() for one in queued)
        stored.deadline_time.FromNanoseconds(deadline)
        stored.header.completion_window.FromNanoseconds(max(deadline - now, 10**9))
        await write_one(self._store, state_name(BatchRef(tenant_id, batch_id)), first_run(stored))
        await self._store.put(index_name(tenant_id, batch_id, now, gathered=True), b"")
        await write_one(self._store, batch_name(tenant_id, batch_id), stored)


def _items(queued: list[stored_pb2.StoredQueued]) -> Iterator[stored_pb2.StoredItem]:
    first: dict[bytes, int] = {}
    for index, one in enumerate(queued):
        request = chat_pb2.CompletionRequest()
        request.CopyFrom(one.request)
        same = first.setdefault(request_digest(request), index)
        yield stored_pb2.StoredItem(
            index=index,
            line=index + 1,
            custom_id=request.request_id,
            request=request,
            same_as_index=-1 if same == index else same,
        )


def _groups(items: list[stored_pb2.StoredItem], most: int) -> Iterator[list[stored_pb2.StoredItem]]:
    group: list[stored_pb2.StoredItem] = []
    size = 0
    for item in items:
        group.append(item)
        size += item.ByteSize()
        if len(group) >= most or size >= _MAX_GROUP_BYTES:
            yield group
            group, size = [], 0
    if group:
        yield group
