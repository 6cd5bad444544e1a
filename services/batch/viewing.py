"""Batches as their tenant sees them: what was taken in, and how far Temporal says it is."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from google.protobuf.timestamp_pb2 import Timestamp
from tenth.batch.v1 import batch_pb2, stored_pb2
from tenth.type.v1 import receipt_pb2

from mesh.errors import TenthError, invalid_argument
from services.batch.batches import (
    index_prefix,
    read_batch,
    record_end,
    runs,
    snapshot,
    state_name,
    write_one,
)
from services.batch.errors import Reason
from services.batch.objects import ObjectStore
from services.batch.refs import ENDED, BatchRef, Progress
from services.batch.temporal import Temporal, failed

NANOS_PER_DAY = 86_400 * 10**9
_DEFAULT_PAGE, _LARGEST_PAGE, _AT_ONCE = 100, 1000, 8
_TOKEN = re.compile(r"\d{20}-[0-9a-f-]{36}")
_SUMS = (
    "done_count",
    "cache_hit_count",
    "shared_count",
    "actual_nano_usd",
    "overhead_nano_usd",
    "baseline_nano_usd",
)


@dataclass(frozen=True, slots=True)
class View:
    """A batch, its runs from first to last, and how far the last of them is."""

    stored: stored_pb2.StoredBatch
    runs: tuple[stored_pb2.StoredRun, ...]
    last: batch_pb2.Batch
    ended: bool

    @property
    def ref(self) -> BatchRef:
        """The last run."""
        return BatchRef(self.stored.tenant_id, self.stored.batch_id, max(len(self.runs), 1))

    @property
    def waits(self) -> bool:
        """True until the last run is known to have started."""
        return not self.runs or not self.runs[-1].started


class Views:
    """Reads batches. ``retention_days``: how long after the last run's deadline a batch is kept."""

    def __init__(self, store: ObjectStore, temporal: Temporal, now_ns: Callable[[], int], retention_days: int) -> None:
        self._store = store
        self._temporal = temporal
        self._now_ns = now_ns
        self._retention_ns = retention_days * NANOS_PER_DAY

    async def look(self, tenant_id: str, batch_id: str) -> View:
        """One batch. Raises NOT_FOUND, and UNAVAILABLE where a run has not ended and Temporal does not answer.

        What is learnt on the way is kept: that a run started, and how it ended.
        """
        stored = await read_batch(self._store, tenant_id, batch_id)
        known = [run async for run in runs(self._store, tenant_id, batch_id)]
        if not known:
            return View(stored, (), batch_pb2.Batch(state=batch_pb2.BATCH_STATE_VALIDATING), ended=False)
        run = known[-1]
        if run.HasField("ended"):
            return View(stored, tuple(known), run.ended, ended=True)
        ref = BatchRef(tenant_id, batch_id, run.run)
        progress = await self._temporal.progress(ref)
        if progress is None and not run.started:
            return View(stored, tuple(known), batch_pb2.Batch(state=batch_pb2.BATCH_STATE_VALIDATING), ended=False)
        if progress is None:
            told = "Temporal no longer knows the batch's workflow"
            progress = failed(Progress(), Reason.WORKFLOW_LOST, told, self._now_ns() / 1e9)
        ended = progress.state in ENDED
        # The answer is known; a store that is full or away is no reason to keep it back. The sweeper tries again.
        with contextlib.suppress(TenthError):
            if ended:
                await record_end(self._store, ref, progress)
            elif not run.started:
                run.started = True
                await write_one(self._store, state_name(ref), run)
        run.started = True
        return View(stored, tuple(known), snapshot(progress), ended)

    async def page(self, tenant_id: str, page_size: int, page_token: str) -> tuple[list[View], str]:
        """Batches of a tenant, newest first, and the token of the next page. Raises INVALID_ARGUMENT."""
        if page_size < 0:
            raise invalid_argument("is negative", field="page_size")
        size = min(page_size or _DEFAULT_PAGE, _LARGEST_PAGE)
        prefix = index_prefix(tenant_id)
        names: list[str] = []
        async for name in self._store.list(prefix, prefix + read_token(page_token) if page_token else ""):
            names.append(name[len(prefix) :])
            if len(names) > size:
                break
        gate = asyncio.Semaphore(_AT_ONCE)

        async def look(name: str) -> View | None:
            async with gate:
                try:
                    return await self.look(tenant_id, name[21:])
                except TenthError as error:
                    if error.reason != Reason.BATCH_NOT_FOUND:
                        raise
                    return None  # Deleted since the list was read.

        async with asyncio.TaskGroup() as group:
            looks = [group.create_task(look(name)) for name in names[:size]]
        views = [view for task in looks if (view := task.result()) is not None]
        return views, make_token(names[size - 1]) if len(names) > size else ""

    def may_have_expired(self, create_ns: int) -> bool:
        """False for a batch that was created too late to be past its retention, whatever its window is."""
        return create_ns + self._retention_ns <= self._now_ns()

    def expire_ns(self, view: View) -> int:
        """When a batch is deleted, nanoseconds since 1970."""
        return self.expires_ns(view.stored, view.runs)

    def expires_ns(self, stored: stored_pb2.StoredBatch, known: tuple[stored_pb2.StoredRun, ...]) -> int:
        """When a batch is deleted, nanoseconds since 1970."""
        deadline = known[-1].deadline_time if known else stored.deadline_time
        return deadline.ToNanoseconds() + self._retention_ns

    def message(self, view: View) -> batch_pb2.Batch:
        """A batch as its caller sees it: sums over all runs, failures of the last one."""
        stored, earlier = view.stored, [run.ended for run in view.runs[:-1]]
        batch = batch_pb2.Batch()
        batch.CopyFrom(view.last)
        batch.batch_id = stored.batch_id
        batch.item_count = stored.item_count
        batch.create_time.CopyFrom(stored.create_time)
        batch.deadline_time.CopyFrom(view.runs[-1].deadline_time if view.runs else stored.deadline_time)
        batch.expire_time.CopyFrom(_timestamp(self.expire_ns(view)))
        batch.run = view.ref.run
        batch.tags.update(stored.header.tags)
        for name in _SUMS:
            setattr(batch, name, sum(getattr(each, name) for each in (*earlier, view.last)))
        batch.forecast_nano_usd += sum(each.actual_nano_usd for each in earlier)
        savings = dict.fromkeys(range(1, 7), 0)
        lanes: dict[str, int] = {}
        for each in (*earlier, view.last):
            for saving in each.savings:
                savings[saving.layer] = savings.get(saving.layer, 0) + saving.saving_nano_usd
            for lane in each.lanes:
                lanes[lane.lane] = lanes.get(lane.lane, 0) + lane.item_count
        del batch.savings[:], batch.lanes[:]
        batch.savings.extend(
            receipt_pb2.LayerSaving(layer=receipt_pb2.Layer.ValueType(layer), saving_nano_usd=saving)
            for layer, saving in savings.items()
        )
        batch.lanes.extend(batch_pb2.LaneCount(lane=lane, item_count=count) for lane, count in sorted(lanes.items()))
        return batch


def make_token(name: str) -> str:
    """The page token behind a name of the index."""
    return base64.urlsafe_b64encode(name.encode()).decode().rstrip("=")


def read_token(token: str) -> str:
    """The name of the index that a page begins behind. Raises INVALID_ARGUMENT for what is no page token."""
    try:
        name = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        name = ""
    if not _TOKEN.fullmatch(name) or make_token(name) != token:
        raise invalid_argument("is no page token of this service", field="page_token")
    return name


def _timestamp(nanos: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(nanos)
    return stamp
