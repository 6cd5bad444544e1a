"""Failed items run again: a new run of the same batch, of all items that have no answer."""

from __future__ import annotations

from collections.abc import Callable

from tenth.batch.v1 import stored_pb2

from mesh.errors import Code, TenthError
from services.batch.batches import input_name, results_prefix, run_items_name, state_name, write_one
from services.batch.creating import Creation, write_open
from services.batch.errors import Reason
from services.batch.objects import ObjectNotFound, ObjectStore, read_records
from services.batch.refs import BatchRef
from services.batch.viewing import View, Views


class Retrying:
    """Makes further runs of ended batches."""

    def __init__(self, store: ObjectStore, views: Views, creation: Creation, now_ns: Callable[[], int]) -> None:
        self._store = store
        self._views = views
        self._creation = creation
        self._now_ns = now_ns

    async def retry(self, tenant_id: str, batch_id: str) -> View:
        """Run what has no answer again; nothing happens when all is answered.

        Raises NOT_FOUND, UNAVAILABLE, and FAILED_PRECONDITION (BATCH_RUNNING, BATCH_GATHERED).
        """
        view = await self._views.look(tenant_id, batch_id)
        if view.stored.gathered:
            told = "requests that were enqueued one by one are enqueued again one by one"
            raise TenthError(Code.FAILED_PRECONDITION, Reason.BATCH_GATHERED, told, "batch_id")
        if not view.ended:
            if not view.waits:
                raise TenthError(Code.FAILED_PRECONDITION, Reason.BATCH_RUNNING, "the batch still runs", "batch_id")
            await self._creation.start(view.ref)  # Wanted before, when Temporal was away.
            return await self._views.look(tenant_id, batch_id)
        indexes = await self._unanswered(view.stored)
        if not indexes:
            return view
        ref = BatchRef(tenant_id, batch_id, view.ref.run + 1)
        if await self._store.exists(state_name(ref)):
            # Another call was first, and its run may have begun: what that takes must not change any more.
            await self._creation.start(ref)
            return await self._views.look(tenant_id, batch_id)
        now = self._now_ns()
        run = stored_pb2.StoredRun(run=ref.run, item_count=len(indexes))
        run.create_time.FromNanoseconds(now)
        run.deadline_time.FromNanoseconds(now + view.stored.header.completion_window.ToNanoseconds())
        await write_open(self._store, tenant_id, batch_id, "", now)
        await write_one(self._store, run_items_name(ref), stored_pb2.StoredRunItems(indexes=indexes))
        await write_one(self._store, state_name(ref), run)
        await self._creation.start(ref)
        return await self._views.look(tenant_id, batch_id)

    async def _unanswered(self, stored: stored_pb2.StoredBatch) -> list[int]:
        """Items without an answer, those included that no run came to; deleted ones are not there any more."""
        answered = bytearray(stored.item_count)
        async for name in self._store.list(results_prefix(stored.tenant_id, stored.batch_id)):
            for record in read_records(await self._store.get(name), stored_pb2.StoredResult):
                if not record.result.error_reason:
                    answered[record.index] = 1
        indexes = []
        for number in range(stored.object_count):
            try:
                content = await self._store.get(input_name(stored.tenant_id, stored.batch_id, number))
            except ObjectNotFound:
                continue
            indexes += [item.index for item in read_records(content, stored_pb2.StoredItem) if not answered[item.index]]
        return indexes
