"""One end user's items leave a batch: asked, prepared and answered. What is left of it is as it was."""

from __future__ import annotations

from collections.abc import AsyncIterator

from tenth.batch.v1 import stored_pb2

from mesh.errors import TenthError
from services.batch.batches import (
    deleted_name,
    index_prefix,
    input_name,
    plan_prefix,
    prepared_prefix,
    queued_name,
    queued_prefix,
    queued_user_prefix,
    read_batch,
    read_deletions,
    read_one,
    results_prefix,
    runs,
    write_one,
)
from services.batch.errors import Reason
from services.batch.objects import ObjectNotFound, ObjectStore, read_records, write_records
from services.batch.queueing import forget
from services.batch.refs import BatchRef


class Deletion:
    """Deletes users' items."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def delete_user(self, tenant_id: str, user_id: str) -> int:
        """Delete one end user's items from all batches of a tenant; how many they were. Idempotent.

        Raises UNAVAILABLE, RESOURCE_EXHAUSTED: the same call again goes on.
        """
        count = await self._queued(tenant_id, user_id)
        for gathered in (False, True):
            prefix = index_prefix(tenant_id, gathered=gathered)
            async for name in self._store.list(prefix):
                found = await self._from_batch(tenant_id, name[len(prefix) + 21 :], user_id)
                count += 0 if gathered else found  # A gathered item was counted as an enqueued request.
        return count

    async def tidy(self, ref: BatchRef) -> None:
        """A run has ended: what only it needed is deleted, and what deleted users were answered since they were."""
        for prefix in (prepared_prefix(ref), plan_prefix(ref)):
            async for name in self._store.list(prefix):
                await self._store.delete(name)
        deletions = await read_deletions(self._store, ref.tenant_id, ref.batch_id)
        if deletions:
            await self._results(ref.tenant_id, ref.batch_id, {index for one in deletions for index in one.indexes})
        for one in deletions:
            for request_id in one.request_ids:
                await self._store.delete(f"{queued_prefix(ref.tenant_id)}{request_id}-result.pb")

    async def _queued(self, tenant_id: str, user_id: str) -> int:
        count = 0
        prefix = queued_user_prefix(tenant_id, user_id)
        async for mark in self._store.list(prefix):
            name = queued_name(tenant_id, mark[len(prefix) :])
            try:
                await forget(self._store, await read_one(self._store, name, stored_pb2.StoredQueued))
                count += 1
            except ObjectNotFound:
                await self._store.delete(mark)
        return count

    async def _from_batch(self, tenant_id: str, batch_id: str, user_id: str) -> int:
        try:
            stored = await read_batch(self._store, tenant_id, batch_id)
        except TenthError as error:
            if error.reason != Reason.BATCH_NOT_FOUND:
                raise
            return 0
        if user_id not in stored.user_ids and not stored.more_user_ids:
            return 0
        name = deleted_name(tenant_id, batch_id, user_id)
        try:
            deletion = await read_one(self._store, name, stored_pb2.StoredDeletion)
        except ObjectNotFound:
            deletion = stored_pb2.StoredDeletion(user_id=user_id)
        known = set(deletion.indexes)
        found: list[int] = []
        numbers: list[int] = []
        for number in range(stored.object_count):
            items = [one async for one in self._items(stored, number) if one.request.user_id == user_id]
            if items:
                numbers.append(number)
                found += [one.index for one in items]
                if stored.gathered:
                    deletion.request_ids.extend(one.custom_id for one in items)
        if not found and not known:
            return 0
        deletion.indexes[:] = sorted(known | set(found))
        # Workers leave them out from here on; and should the rest of this fail, the next call knows what to delete.
        await write_one(self._store, name, deletion)
        for number in numbers:
            kept = [one async for one in self._items(stored, number) if one.request.user_id != user_id]
            await self._store.put(input_name(tenant_id, batch_id, number), write_records(kept))
        indexes = set(deletion.indexes)
        await self._results(tenant_id, batch_id, indexes)
        async for run in runs(self._store, tenant_id, batch_id):
            ref = BatchRef(tenant_id, batch_id, run.run)
            if run.HasField("ended"):
                await self.tidy(ref)
        return len(found)

    async def _items(self, stored: stored_pb2.StoredBatch, number: int) -> AsyncIterator[stored_pb2.StoredItem]:
        try:
            content = await self._store.get(input_name(stored.tenant_id, stored.batch_id, number))
        except ObjectNotFound:
            return
        for item in read_records(content, stored_pb2.StoredItem):
            yield item

    async def _results(self, tenant_id: str, batch_id: str, indexes: set[int]) -> None:
        async for name in self._store.list(results_prefix(tenant_id, batch_id)):
            try:
                records = list(read_records(await self._store.get(name), stored_pb2.StoredResult))
            except ObjectNotFound:
                continue
            kept = [one for one in records if one.index not in indexes]
            if len(kept) < len(records):
                await self._store.put(name, write_records(kept))
