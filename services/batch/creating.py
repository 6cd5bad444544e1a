"""A batch is taken in whole or not at all, then started; the same request_id again goes on from there."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable

from tenth.batch.v1 import batch_pb2, stored_pb2

from mesh.auth import Identity
from mesh.errors import Code, TenthError, invalid_argument
from services.batch.batches import (
    batch_name,
    folder,
    index_name,
    input_name,
    open_name,
    read_batch,
    read_one,
    state_name,
    write_one,
)
from services.batch.errors import Reason
from services.batch.intake import Intake, Limits, Taken, check_header, check_window
from services.batch.objects import ObjectNotFound, ObjectStore, write_records
from services.batch.refs import BatchRef
from services.batch.temporal import Temporal

_NAMESPACE = uuid.UUID("6a0e9d1c-6a3e-5d39-9d6a-3f4f6a0c5b11")


class Creation:
    """Takes batches in. ``new_id``: makes ids that no other upload has."""

    def __init__(
        self,
        store: ObjectStore,
        temporal: Temporal,
        limits: Limits,
        now_ns: Callable[[], int],
        new_id: Callable[[], str],
    ) -> None:
        self._store = store
        self._temporal = temporal
        self._limits = limits
        self._now_ns = now_ns
        self._new_id = new_id

    async def create(
        self, identity: Identity, parts: AsyncIterator[batch_pb2.CreateBatchRequest]
    ) -> tuple[str, list[batch_pb2.LineError]]:
        """Read a batch's head and items, and start it. Returns its id and, if there are any, what is wrong with lines.

        Raises INVALID_ARGUMENT, PERMISSION_DENIED, ALREADY_EXISTS (REQUEST_ID_REUSED), RESOURCE_EXHAUSTED, and
        UNAVAILABLE: the same call again then goes on.
        """
        header = await _head(parts)
        check_header(header, may_assert_user=identity.may_assert_user)
        tenant_id = identity.tenant_id
        batch_id = batch_id_of(tenant_id, header.request_id)
        earlier = await self._find(tenant_id, batch_id)
        upload = _Upload(self._store, tenant_id, batch_id, self._new_id()) if earlier is None else None
        intake = Intake(
            batch_id,
            header,
            self._limits,
            upload.write if upload is not None else _keep_nothing,
            lambda: asyncio.sleep(0),
            may_assert_user=identity.may_assert_user,
        )
        try:
            if upload is not None:
                await upload.begin(self._now_ns())
            taken = await _read(intake, parts)
            if intake.errors:
                if upload is not None:
                    await upload.abandon()
                return batch_id, intake.errors
            if upload is None:
                assert earlier is not None
                _same(earlier, taken)
            else:
                await self._keep(upload, identity, header, taken)
        except BaseException:
            if upload is not None:
                # Also when the client has left: this task is cancelled then, but what it began is cleared away.
                # What cannot be cleared away now, the sweeper finds.
                with contextlib.suppress(TenthError):
                    await asyncio.shield(asyncio.ensure_future(upload.abandon()))
            raise
        await self.start(BatchRef(tenant_id, batch_id))
        return batch_id, []

    async def start(self, ref: BatchRef, *, cancelled: bool = False) -> None:
        """Start a run that was taken in, unless it was started. Raises NOT_FOUND, UNAVAILABLE."""
        stored = await read_batch(self._store, ref.tenant_id, ref.batch_id)
        try:
            run = await read_one(self._store, state_name(ref), stored_pb2.StoredRun)
        except ObjectNotFound:
            if ref.run != 1:
                raise
            run = first_run(stored)
            await write_one(self._store, state_name(ref), run)
        if run.started:
            return
        if not stored.gathered:
            created = stored.create_time.ToNanoseconds()
            await self._store.put(index_name(ref.tenant_id, ref.batch_id, created), b"")
        await self._temporal.start(ref, cancelled=cancelled)
        run.started = True
        await write_one(self._store, state_name(ref), run)

    async def _find(self, tenant_id: str, batch_id: str) -> stored_pb2.StoredBatch | None:
        try:
            return await read_one(self._store, batch_name(tenant_id, batch_id), stored_pb2.StoredBatch)
        except ObjectNotFound:
            return None

    async def _keep(self, upload: _Upload, identity: Identity, header: batch_pb2.BatchHeader, taken: Taken) -> None:
        tenant_id, batch_id = identity.tenant_id, upload.batch_id
        now = self._now_ns()
        stored = stored_pb2.StoredBatch(
            batch_id=batch_id,
            tenant_id=tenant_id,
            caller=identity.caller,
            may_assert_user=identity.may_assert_user,
            header=header,
            input_digest=taken.digest,
            item_count=taken.item_count,
            items_per_object=self._limits.items_per_object,
            object_count=taken.object_count,
            user_ids=taken.user_ids,
            more_user_ids=taken.more_user_ids,
        )
        stored.create_time.FromNanoseconds(now)
        window = check_window(header.completion_window, "header.completion_window")
        stored.deadline_time.FromNanoseconds(now + int(window * 1e9))
        await upload.check()
        other = await self._find(tenant_id, batch_id)
        if other is not None:
            _same(other, taken)  # Taken in by another replica meanwhile: the objects are the same.
            return
        await write_one(self._store, batch_name(tenant_id, batch_id), stored)
        upload.kept = True


class _Upload:
    """The input objects of one batch while they are written.

    Two uploads of one request_id may meet, for instance when a client tries again while its first call still runs.
    Then the later one takes over: the earlier one sees that and stops, without clearing anything away.
    """

    def __init__(self, store: ObjectStore, tenant_id: str, batch_id: str, upload_id: str) -> None:
        self._store = store
        self._tenant_id = tenant_id
        self.batch_id = batch_id
        self._upload_id = upload_id
        self.kept = False

    async def begin(self, now_ns: int) -> None:
        """Say that this upload writes the batch's input now."""
        await write_open(self._store, self._tenant_id, self.batch_id, self._upload_id, now_ns)

    async def write(self, number: int, items: list[stored_pb2.StoredItem]) -> None:
        """Store a group of items. Raises ABORTED (UPLOAD_TAKEN_OVER)."""
        await self.check()
        await self._store.put(input_name(self._tenant_id, self.batch_id, number), write_records(items))

    async def check(self) -> None:
        """Raises ABORTED (UPLOAD_TAKEN_OVER) when another upload writes this batch."""
        if not await self._is_ours():
            told = "another call with this request_id has taken over"
            raise TenthError(Code.ABORTED, Reason.UPLOAD_TAKEN_OVER, told, "header.request_id")

    async def abandon(self) -> None:
        """Clear away what was written, unless the batch was kept or is another upload's."""
        if self.kept or not await self._is_ours():
            return
        if await self._store.exists(batch_name(self._tenant_id, self.batch_id)):
            return
        await remove_batch(self._store, folder(self._tenant_id, self.batch_id))
        await self._store.delete(open_name(self._tenant_id, self.batch_id))

    async def _is_ours(self) -> bool:
        try:
            name = open_name(self._tenant_id, self.batch_id)
            return (await read_one(self._store, name, stored_pb2.StoredOpen)).upload_id == self._upload_id
        except ObjectNotFound:
            return False


def batch_id_of(tenant_id: str, request_id: str) -> str:
    """The id of the batch that a tenant creates with a request_id."""
    return str(uuid.uuid5(_NAMESPACE, f"{tenant_id}\x00{request_id}"))


def first_run(stored: stored_pb2.StoredBatch) -> stored_pb2.StoredRun:
    """The first run of a batch, not started."""
    return stored_pb2.StoredRun(
        run=1, create_time=stored.create_time, deadline_time=stored.deadline_time, item_count=stored.item_count
    )


async def write_open(store: ObjectStore, tenant_id: str, batch_id: str, upload_id: str, now_ns: int) -> None:
    """Note that a batch is being taken in or has a run that has not ended."""
    record = stored_pb2.StoredOpen(tenant_id=tenant_id, batch_id=batch_id, upload_id=upload_id)
    record.create_time.FromNanoseconds(now_ns)
    await write_one(store, open_name(tenant_id, batch_id), record)


async def remove_batch(store: ObjectStore, prefix: str) -> None:
    """Delete all objects of a batch, given its folder; first the one by which it is found."""
    await store.delete(f"{prefix}batch.pb")
    async for name in store.list(prefix):
        await store.delete(name)


async def _head(parts: AsyncIterator[batch_pb2.CreateBatchRequest]) -> batch_pb2.BatchHeader:
    async for first in parts:
        if first.WhichOneof("part") != "header":
            break
        return first.header
    raise invalid_argument("the head of the batch comes first", field="header", reason=Reason.INPUT_ORDER)


async def _read(intake: Intake, parts: AsyncIterator[batch_pb2.CreateBatchRequest]) -> Taken:
    async for part in parts:
        kind = part.WhichOneof("part")
        if kind == "item":
            await intake.item(part.item)
        elif kind == "jsonl":
            await intake.jsonl(part.jsonl)
        elif kind == "header":
            raise invalid_argument("the head of the batch came twice", field="header", reason=Reason.INPUT_ORDER)
        else:
            raise invalid_argument("each message holds an item or a piece", field="part", reason=Reason.INPUT_ORDER)
    return await intake.finish()


def _same(earlier: stored_pb2.StoredBatch, taken: Taken) -> None:
    if earlier.input_digest != taken.digest:
        raise reused(earlier.header.request_id, "header.request_id")


def reused(request_id: str, field: str) -> TenthError:
    """The error for an id that came before with another input."""
    return TenthError(
        Code.ALREADY_EXISTS, Reason.REQUEST_ID_REUSED, f"request_id {request_id} was used with another input", field
    )


async def _keep_nothing(number: int, items: list[stored_pb2.StoredItem]) -> None:
    """The batch is stored already: its input is only compared."""
