"""Which object holds what of a batch: names, and the records behind them.

Tenants, users and the parts of names that others choose are written so that no name leaves its folder.
"""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import AsyncIterator, Collection
from urllib.parse import quote

from google.protobuf.message import Message
from tenth.batch.v1 import batch_pb2, stored_pb2
from tenth.type.v1 import receipt_pb2

from services.batch.errors import batch_not_found, store_damaged
from services.batch.objects import M, ObjectNotFound, ObjectStore, read_records, write_records
from services.batch.refs import BatchRef, Progress, State

_LONGEST_SEGMENT = 150
_LAST_TIME = 10**19
_CHUNK_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,150}")
_STATES = {
    State.RUNNING: batch_pb2.BATCH_STATE_RUNNING,
    State.CANCELLING: batch_pb2.BATCH_STATE_CANCELLING,
    State.DONE: batch_pb2.BATCH_STATE_DONE,
    State.CANCELLED: batch_pb2.BATCH_STATE_CANCELLED,
    State.FAILED: batch_pb2.BATCH_STATE_FAILED,
}


def segment(text: str) -> str:
    """A tenant's or user's id as one segment of a name: no two ids share one, none is empty or begins with a dot."""
    written = quote(text, safe="").replace("~", "%7E") or "%"
    if written.startswith("."):
        written = f"%2E{written[1:]}"
    if len(written) > _LONGEST_SEGMENT:
        return f"%-{hashlib.sha256(text.encode()).hexdigest()}"
    return written


def folder(tenant_id: str, batch_id: str) -> str:
    """The prefix of all that is stored of a batch, with its "/"."""
    return f"batches/{segment(tenant_id)}/{segment(batch_id)}/"


def batch_name(tenant_id: str, batch_id: str) -> str:
    """The StoredBatch; its existence means: taken in whole."""
    return f"{folder(tenant_id, batch_id)}batch.pb"


def input_prefix(tenant_id: str, batch_id: str) -> str:
    """Prefix of the input objects."""
    return f"{folder(tenant_id, batch_id)}input/"


def input_name(tenant_id: str, batch_id: str, number: int) -> str:
    """StoredItem records in input order, less what was deleted since; ``number`` from 0 to below ``object_count``."""
    return f"{input_prefix(tenant_id, batch_id)}{number:08d}.pb"


def prepared_prefix(ref: BatchRef) -> str:
    """Prefix of a run's StoredPrepared objects."""
    return f"{_run(ref)}prepared/"


def prepared_name(ref: BatchRef, name: str) -> str:
    """StoredPrepared records of one chunk of a run."""
    return f"{prepared_prefix(ref)}{_chunk(name)}.pb"


def plan_prefix(ref: BatchRef) -> str:
    """Prefix of a run's plan."""
    return f"{_run(ref)}plan/"


def plan_name(ref: BatchRef, name: str) -> str:
    """One object of a run's plan."""
    return f"{plan_prefix(ref)}{_chunk(name)}.pb"


def run_items_name(ref: BatchRef) -> str:
    """The StoredRunItems of a run after the first."""
    return f"{_run(ref)}items.pb"


def results_prefix(tenant_id: str, batch_id: str) -> str:
    """Prefix of the result objects of all runs; those of later runs come later."""
    return f"{folder(tenant_id, batch_id)}results/"


def result_name(ref: BatchRef, name: str) -> str:
    """StoredResult records of one chunk. ``name`` is unique in its run; written once, whole."""
    return f"{results_prefix(ref.tenant_id, ref.batch_id)}{ref.run:04d}-{_chunk(name)}.pb"


def run_of_result(name: str) -> int:
    """The run that a result object is of."""
    return int(name.rpartition("/")[2].partition("-")[0])


def state_prefix(tenant_id: str, batch_id: str) -> str:
    """Prefix of the StoredRun objects."""
    return f"{folder(tenant_id, batch_id)}state/"


def state_name(ref: BatchRef) -> str:
    """The StoredRun of a run."""
    return f"{state_prefix(ref.tenant_id, ref.batch_id)}{ref.run:04d}.pb"


def deleted_prefix(tenant_id: str, batch_id: str) -> str:
    """Prefix of the users whose items are deleted from a batch: one StoredDeletion for each."""
    return f"{folder(tenant_id, batch_id)}deleted_users/"


def deleted_name(tenant_id: str, batch_id: str, user_id: str) -> str:
    """One user whose items are deleted from a batch."""
    return deleted_prefix(tenant_id, batch_id) + segment(user_id)


def open_name(tenant_id: str, batch_id: str) -> str:
    """Empty; there from the first input object until the batch's last run is known to have ended."""
    return f"open/{segment(tenant_id)}/{segment(batch_id)}"


def index_prefix(tenant_id: str, *, gathered: bool = False) -> str:
    """Prefix of a tenant's batches, newest first. Gathered ones are kept apart: nobody asked for them by name."""
    return f"{'gathered' if gathered else 'index'}/{segment(tenant_id)}/"


def index_name(tenant_id: str, batch_id: str, create_ns: int, *, gathered: bool = False) -> str:
    """Empty; its name orders batches by the time they were created, newest first."""
    return f"{index_prefix(tenant_id, gathered=gathered)}{_LAST_TIME - create_ns:020d}-{segment(batch_id)}"


def created_ns(entry: str) -> int:
    """When the batch of an index entry (the last segment of its name) was created, nanoseconds since 1970."""
    return _LAST_TIME - int(entry.partition("-")[0])


def queued_prefix(tenant_id: str) -> str:
    """Prefix of a tenant's enqueued requests and their results."""
    return f"queued/{segment(tenant_id)}/"


def queued_name(tenant_id: str, request_id: str) -> str:
    """The StoredQueued of an enqueued request."""
    return f"{queued_prefix(tenant_id)}{segment(request_id)}.pb"


def queued_result_name(tenant_id: str, request_id: str) -> str:
    """The StoredResult of an enqueued request; written by the finish step of a gathered batch."""
    return f"{queued_prefix(tenant_id)}{segment(request_id)}-result.pb"


def queued_waiting_name(tenant_id: str, request_id: str) -> str:
    """Empty; there while an enqueued request is in no batch yet."""
    return f"queued_waiting/{segment(tenant_id)}/{segment(request_id)}"


def queued_expiry_name(tenant_id: str, request_id: str, expire_ns: int) -> str:
    """Empty; its name orders enqueued requests of all tenants by the time they are deleted."""
    return f"queued_expiry/{expire_ns:020d}/{segment(tenant_id)}/{segment(request_id)}"


def queued_user_prefix(tenant_id: str, user_id: str) -> str:
    """Prefix of the request ids that one end user's enqueued requests have; empty objects."""
    return f"queued_users/{segment(tenant_id)}/{segment(user_id)}/"


def _run(ref: BatchRef) -> str:
    return f"{folder(ref.tenant_id, ref.batch_id)}run/{ref.run}/"


def _chunk(name: str) -> str:
    if not _CHUNK_NAME.fullmatch(name):
        raise ValueError(f"no chunk may be named {name!r}")
    return name


async def read_one(store: ObjectStore, name: str, kind: type[M]) -> M:
    """The one record of an object. Raises ObjectNotFound, DATA_LOSS."""
    records = list(read_records(await store.get(name), kind))
    if len(records) != 1:
        raise store_damaged(f"{name} holds {len(records)} records instead of one")
    return records[0]


async def write_one(store: ObjectStore, name: str, record: Message) -> None:
    """Write an object of one record."""
    await store.put(name, write_records([record]))


async def read_batch(store: ObjectStore, tenant_id: str, batch_id: str) -> stored_pb2.StoredBatch:
    """A batch as it was taken in. Raises NOT_FOUND (BATCH_NOT_FOUND) for none of this tenant."""
    try:
        return await read_one(store, batch_name(tenant_id, batch_id), stored_pb2.StoredBatch)
    except ObjectNotFound:
        raise batch_not_found(batch_id) from None


async def read_run(store: ObjectStore, ref: BatchRef) -> stored_pb2.StoredRun:
    """A run: its deadline and count. Raises NOT_FOUND (BATCH_NOT_FOUND) for none."""
    try:
        return await read_one(store, state_name(ref), stored_pb2.StoredRun)
    except ObjectNotFound:
        raise batch_not_found(f"{ref.batch_id}, run {ref.run}") from None


async def read_run_items(store: ObjectStore, ref: BatchRef) -> frozenset[int] | None:
    """Indexes of the items that a run takes; None: all."""
    if ref.run == 1:
        return None
    return frozenset((await read_one(store, run_items_name(ref), stored_pb2.StoredRunItems)).indexes)


async def read_deleted_users(store: ObjectStore, tenant_id: str, batch_id: str) -> frozenset[str]:
    """End users whose items are not to be run, and whose results are not to be written. Mostly none."""
    return frozenset([deletion.user_id for deletion in await read_deletions(store, tenant_id, batch_id)])


async def read_deletions(store: ObjectStore, tenant_id: str, batch_id: str) -> list[stored_pb2.StoredDeletion]:
    """Whose items were deleted from a batch, and which items those were."""
    names = [name async for name in store.list(deleted_prefix(tenant_id, batch_id))]
    return [await read_one(store, name, stored_pb2.StoredDeletion) for name in names]


async def read_items(
    store: ObjectStore, ref: BatchRef, number: int, indexes: Collection[int] | None
) -> list[stored_pb2.StoredItem]:
    """The items of input object ``number`` that a run takes, less those of deleted users; none past the last object.

    ``indexes`` is ``read_run_items``' answer, which a caller reads once for many objects. In a run after the first each
    request has an id of that run, for the first one's receipt stands under the id that it had.
    """
    try:
        content = await store.get(input_name(ref.tenant_id, ref.batch_id, number))
    except ObjectNotFound:
        return []
    deleted = await read_deleted_users(store, ref.tenant_id, ref.batch_id)
    items = [
        item
        for item in read_records(content, stored_pb2.StoredItem)
        if (indexes is None or item.index in indexes) and not (item.request.user_id and item.request.user_id in deleted)
    ]
    if ref.run > 1:
        for item in items:
            item.request.request_id = str(uuid.uuid5(uuid.UUID(item.request.request_id), f"run {ref.run}"))
    return items


async def record_end(store: ObjectStore, ref: BatchRef, progress: Progress) -> None:
    """Keep how a run ended. Idempotent; called by the workflow's last activity, and by the service, which tidies up."""
    run = await read_run(store, ref)
    if run.HasField("ended"):
        return
    run.started = True
    run.ended.CopyFrom(snapshot(progress))
    await write_one(store, state_name(ref), run)


def snapshot(progress: Progress) -> batch_pb2.Batch:
    """Counts, sums and state of one run as a message; what else a Batch has is not in it."""
    batch = batch_pb2.Batch(
        state=_STATES.get(State(progress.state), batch_pb2.BATCH_STATE_UNSPECIFIED),
        done_count=progress.done,
        failed_count=progress.failed,
        shared_count=progress.shared,
        cache_hit_count=progress.cache_hits,
        actual_nano_usd=progress.actual_nano_usd,
        overhead_nano_usd=progress.overhead_nano_usd,
        baseline_nano_usd=progress.baseline_nano_usd,
        forecast_nano_usd=progress.forecast_nano_usd,
        error_reason=progress.error_reason,
        error_message=progress.error_message,
        savings=[
            receipt_pb2.LayerSaving(layer=receipt_pb2.Layer.ValueType(layer), saving_nano_usd=saving)
            for layer, saving in enumerate(progress.savings, start=1)
        ],
        lanes=[batch_pb2.LaneCount(lane=lane, item_count=count) for lane, count in sorted(progress.lanes.items())],
    )
    if progress.end_time_seconds:
        batch.end_time.FromNanoseconds(int(progress.end_time_seconds * 1e9))
    return batch


async def runs(store: ObjectStore, tenant_id: str, batch_id: str) -> AsyncIterator[stored_pb2.StoredRun]:
    """A batch's runs, first to last."""
    async for name in store.list(state_prefix(tenant_id, batch_id)):
        yield await read_one(store, name, stored_pb2.StoredRun)
