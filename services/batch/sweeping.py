"""What is to be done though nobody asks: lost starts, ends that nobody saw, abandoned uploads, what is out of date."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from tenth.batch.v1 import stored_pb2

from mesh.errors import TenthError
from services.batch.batches import batch_name, created_ns, folder, open_name, read_one, write_one
from services.batch.creating import Creation, remove_batch
from services.batch.deleting import Deletion
from services.batch.errors import Reason
from services.batch.objects import ObjectNotFound, ObjectStore
from services.batch.queueing import Queue, forget
from services.batch.refs import BatchRef
from services.batch.settings import BatchSettings
from services.batch.viewing import Views

log = logging.getLogger("tenth.batch")
_UNTOLD_SECONDS = 120
"""An enqueued request that is in no batch this long after it should be is told of again."""


class Sweeper:
    """Looks after all tenants' batches. Several may run at once: each step is idempotent."""

    def __init__(
        self,
        store: ObjectStore,
        views: Views,
        creation: Creation,
        deletion: Deletion,
        queue: Queue,
        settings: BatchSettings,
        now_ns: Callable[[], int],
    ) -> None:
        self._store = store
        self._views = views
        self._creation = creation
        self._deletion = deletion
        self._queue = queue
        self._settings = settings
        self._now_ns = now_ns

    async def run(self) -> None:
        """Sweep until cancelled. A store or a Temporal that is away is waited for."""
        loop = asyncio.get_running_loop()
        expired_at = loop.time()
        while True:
            await asyncio.sleep(self._settings.sweep_seconds)
            await self._try(self.look_after)
            await self._try(self.tell_again)
            if loop.time() - expired_at >= self._settings.expire_check_seconds:
                expired_at = loop.time()
                await self._try(self.expire)

    async def look_after(self) -> None:
        """Start what was never started, keep how runs ended, tidy up behind them, remove abandoned uploads."""
        async for name in self._store.list("open/"):
            try:
                record = await read_one(self._store, name, stored_pb2.StoredOpen)
                await self._one(record)
            except ObjectNotFound:
                continue
            except TenthError as error:
                if error.reason == Reason.TEMPORAL_UNAVAILABLE:
                    raise
                log.warning("%s: %s", name, error)

    async def tell_again(self) -> None:
        """Tell of enqueued requests that are in no batch though they should be."""
        async for name in self._store.list("queued_waiting/"):
            _, tenant, request = name.split("/")
            try:
                queued = await read_one(self._store, f"queued/{tenant}/{request}.pb", stored_pb2.StoredQueued)
            except ObjectNotFound:
                continue
            late = self._now_ns() - queued.create_time.ToNanoseconds()
            if queued.batch_id:
                await self._store.delete(name)
            elif late > (self._settings.gather_seconds + _UNTOLD_SECONDS) * 1e9:
                await self._queue.tell(queued)

    async def expire(self) -> None:
        """Delete batches and enqueued requests past their retention."""
        for kind in ("index", "gathered"):
            async for name in self._store.list(f"{kind}/"):
                _, tenant, entry = name.split("/")
                if not self._views.may_have_expired(created_ns(entry)):
                    continue
                prefix = f"batches/{tenant}/{entry[21:]}/"
                if await self._is_expired(prefix):
                    await remove_batch(self._store, prefix)
                    await self._store.delete(f"open/{tenant}/{entry[21:]}")
                    await self._store.delete(name)
        now = f"queued_expiry/{self._now_ns():020d}"
        async for name in self._store.list("queued_expiry/"):
            if name > now:
                return
            _, _, tenant, request = name.split("/")
            try:
                queued = await read_one(self._store, f"queued/{tenant}/{request}.pb", stored_pb2.StoredQueued)
                await forget(self._store, queued)
            except ObjectNotFound:
                pass
            await self._store.delete(name)
            await self._store.delete(f"queued_waiting/{tenant}/{request}")

    async def _one(self, record: stored_pb2.StoredOpen) -> None:
        tenant_id, batch_id = record.tenant_id, record.batch_id
        if not await self._store.exists(batch_name(tenant_id, batch_id)):
            age = self._now_ns() - record.create_time.ToNanoseconds()
            if age > self._settings.abandoned_seconds * 1e9:
                await remove_batch(self._store, folder(tenant_id, batch_id))
                await self._store.delete(open_name(tenant_id, batch_id))
            return
        view = await self._views.look(tenant_id, batch_id)
        if view.waits:
            await self._creation.start(view.ref)
        if not view.ended:
            return
        for run in range(1, view.ref.run + 1):
            await self._deletion.tidy(BatchRef(tenant_id, batch_id, run))
        await self._store.delete(open_name(tenant_id, batch_id))
        latest = await self._views.look(tenant_id, batch_id)
        if not latest.ended:  # Failed items were asked to run again between the two looks.
            await write_one(self._store, open_name(tenant_id, batch_id), record)

    async def _is_expired(self, prefix: str) -> bool:
        try:
            stored = await read_one(self._store, f"{prefix}batch.pb", stored_pb2.StoredBatch)
        except ObjectNotFound:
            return True  # Half deleted before.
        known = [
            await read_one(self._store, name, stored_pb2.StoredRun)
            async for name in self._store.list(f"{prefix}state/")
        ]
        return self._views.expires_ns(stored, tuple(known)) <= self._now_ns()

    async def _try(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except TenthError as error:
            log.warning("sweeping stopped: %s", error)
        except Exception:
            # A defect in one round must not end all others.
            log.exception("sweeping failed")
