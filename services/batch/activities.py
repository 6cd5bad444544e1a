"""The activities: what Temporal has workers do. Each may be done again, also while an earlier one still runs.

Names of objects follow from what is asked, results are written whole, and what has a result is not done again. A
worker that goes away writes what it has and hands the rest back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from opentelemetry import trace
from temporalio import activity
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from mesh.errors import Code, TenthError
from mesh.telemetry import Telemetry
from services.batch import batches
from services.batch.calls import Layers, Stop, Stopped, identity_of
from services.batch.closing import Closer
from services.batch.lanes import ChunkFrame, ChunkRunner
from services.batch.objects import ObjectNotFound, ObjectStore
from services.batch.planner import Planner
from services.batch.policy import LANES
from services.batch.preparing import Preparer
from services.batch.provider_batches import ProviderLane
from services.batch.records import RunStore, users_of
from services.batch.refs import BatchRef
from services.batch.reports import (
    AtProvider,
    ChunkEnd,
    Close,
    Counts,
    End,
    MakePlan,
    Pace,
    Planned,
    Polled,
    Prepare,
    Prepared,
    ProviderWork,
    RunChunk,
    RunFacts,
    Share,
    Shared,
    Submitted,
)
from services.batch.settings import WorkerSettings
from services.batch.sharing import Sharer

log = logging.getLogger("tenth.batch.activities")
T = TypeVar("T")
HANDED_BACK = "HandedBack"
"""Type of the error with which a worker that goes away ends an activity: another one goes on at once."""
_HOPELESS = (Code.NOT_FOUND, Code.DATA_LOSS, Code.PERMISSION_DENIED, Code.UNAUTHENTICATED, Code.INVALID_ARGUMENT)
_HOPELESS_TRIES = 3
_LONGEST_DELAY_SECONDS = 300.0
_DELIVERIES_BEFORE_A_MOVE = 3


@dataclass(slots=True)
class _Beat:
    """Heartbeats of one activity, sent while it lives."""

    progress: int = 0

    def __call__(self, progress: int) -> None:
        self.progress = progress


class BatchActivities:
    """All activities of a worker. ``now``: seconds since 1970."""

    def __init__(
        self,
        store: ObjectStore,
        layers: Layers,
        settings: WorkerSettings,
        telemetry: Telemetry,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._store = RunStore(store)
        self._settings = settings
        self._telemetry = telemetry
        self._now = now
        self._preparer = Preparer(self._store, layers, settings, now)
        self._planner = Planner(self._store, layers, settings)
        self._runner = ChunkRunner(layers, settings, now)
        self._provider = ProviderLane(self._store, layers, settings, now)
        self._sharer = Sharer(self._store, layers, settings, self._preparer)
        self._closer = Closer(self._store, layers, settings, self._preparer, now)

    @property
    def control(self) -> Sequence[Callable[..., Any]]:
        """Those of the control queue."""
        return (self.read_run, self.prepare, self.plan, self.share, self.close, self.end)

    @property
    def chunk(self) -> Sequence[Callable[..., Any]]:
        """Those of the lanes local and online."""
        return (self.run_chunk,)

    @property
    def provider(self) -> Sequence[Callable[..., Any]]:
        """Those of the providers' lanes."""
        return (self.submit_batch, self.find_batch, self.poll_batch, self.collect_batch, self.cancel_batch)

    @activity.defn(name="read_run")
    async def read_run(self, ref: BatchRef) -> RunFacts:
        """What the workflow must know of its run."""

        async def work(_: Stop, __: _Beat) -> RunFacts:
            batch = await self._store.batch(ref)
            run = await batches.read_run(self._store.store, ref)
            deadline = run.deadline_time.ToNanoseconds() / 1e9
            window = deadline - run.create_time.ToNanoseconds() / 1e9
            settings = self._settings
            pace = Pace(
                prepare_parallel=settings.prepare_parallel,
                local_chunks=settings.local_chunks,
                online_chunks=settings.online_chunks,
                provider_batches=settings.provider_batches,
                safety_factor=settings.safety_factor,
                reserve_seconds=min(settings.reserve_seconds, window / 10),
                online_items_per_second=settings.online_items_per_second,
                local_items_per_second=settings.local_items_per_second,
                check_least_seconds=min(settings.check_least_seconds, window / 20),
                check_most_seconds=settings.check_most_seconds,
                poll_first_seconds=settings.poll_first_seconds,
                poll_longest_seconds=settings.poll_longest_seconds,
                near_same=settings.near_same,
                provider_tries=settings.provider_tries,
                provider_least_seconds=settings.provider_least_seconds,
                provider_leave_seconds=min(settings.provider_leave_seconds, window / 10),
                near_same_least_seconds=settings.near_same_least_seconds,
                heartbeat_seconds=settings.heartbeat_seconds,
                history_events=settings.history_events,
                provider_find_seconds=settings.provider_find_seconds,
                close_seconds=settings.close_seconds,
            )
            return RunFacts(run.item_count, batch.object_count, deadline, list(batch.header.lanes), pace)

        return await self._do("read", ref, work)

    @activity.defn(name="prepare")
    async def prepare(self, asked: Prepare) -> Prepared:
        """Prepare the items of one input object."""
        return await self._do("prepare", asked.ref, lambda stop, beat: self._preparer.prepare(asked, stop, beat))

    @activity.defn(name="plan")
    async def plan(self, asked: MakePlan) -> Planned:
        """Put what was prepared in order."""
        delivery = activity.info().attempt
        planned = await self._do("plan", asked.ref, lambda stop, beat: self._planner.plan(asked, delivery, stop, beat))
        log.info("batch %s, round %d: %s", asked.ref.batch_id, asked.round, "; ".join(planned.words))
        return planned

    @activity.defn(name="run_chunk")
    async def run_chunk(self, asked: RunChunk) -> ChunkEnd:
        """Run what is left of a chunk. Stopped, it writes what it has; what is left then is in the answer."""
        return await self._do(f"chunk {asked.lane}", asked.ref, lambda stop, beat: self._chunk(asked, stop))

    @activity.defn(name="submit_batch")
    async def submit_batch(self, asked: ProviderWork) -> Submitted:
        """Hand a batch to a provider."""
        number = activity.info().attempt
        return await self._do("submit", asked.ref, lambda stop, beat: self._provider.submit(asked, number, stop, beat))

    @activity.defn(name="find_batch")
    async def find_batch(self, asked: ProviderWork) -> Submitted:
        """Whether a provider has a batch whose handing in was given up."""
        return await self._do("find", asked.ref, lambda stop, beat: self._provider.find(asked, stop))

    @activity.defn(name="poll_batch")
    async def poll_batch(self, asked: AtProvider) -> Polled:
        """Ask a provider how far a batch is."""
        return await self._do("poll", asked.work.ref, lambda stop, beat: self._provider.poll(asked))

    @activity.defn(name="collect_batch")
    async def collect_batch(self, asked: AtProvider, nothing_ran: bool) -> ChunkEnd:
        """Take a provider's results to their ends."""
        number = activity.info().attempt
        return await self._do(
            "collect", asked.work.ref, lambda stop, beat: self._provider.collect(asked, nothing_ran, number, stop, beat)
        )

    @activity.defn(name="cancel_batch")
    async def cancel_batch(self, asked: AtProvider) -> bool:
        """Ask a provider to stop a batch; True: it has heard."""
        return await self._do("cancel", asked.work.ref, lambda stop, beat: self._provider.cancel(asked))

    @activity.defn(name="share")
    async def share(self, asked: Share) -> Shared:
        """Give the same questions the first one's answer."""
        return await self._do("share", asked.ref, lambda stop, beat: self._sharer.share(asked, stop, beat))

    @activity.defn(name="close")
    async def close(self, asked: Close) -> Counts:
        """End what has no result."""
        return await self._do("close", asked.ref, lambda stop, beat: self._closer.close(asked, stop, beat))

    @activity.defn(name="end")
    async def end(self, asked: End) -> None:
        """Keep how a run ended."""
        await self._do("end", asked.ref, lambda stop, beat: self._closer.end(asked))

    async def _chunk(self, asked: RunChunk, stop: Stop) -> ChunkEnd:
        began = self._now()
        batch = await self._store.batch(asked.ref)
        own = f"{asked.name}-"
        done = (await self._store.tally(asked.ref, [own, *asked.also_done])).indexes
        work = await self._store.work(asked.ref, asked.name, done)
        delivery = activity.info().attempt + asked.moved * _DELIVERIES_BEFORE_A_MOVE
        frame = ChunkFrame(
            lane=asked.lane,
            run=asked.ref.run,
            delivery=delivery,
            repeated=activity.info().attempt > 1,
            deadline=asked.deadline_seconds,
            another_model=asked.another_model,
            at_batch_prices=asked.at_batch_prices,
            lanes=frozenset(batch.header.lanes or LANES),
            identity=identity_of(batch),
        )
        results = await self._runner.run(work, frame, stop)
        if results:
            # By delivery: a worker that was held for dead and still lives writes beside, not over, its successor's.
            name = f"{asked.name}-{asked.lane}-a{delivery:04d}"
            await self._store.write_results(asked.ref, name, results, users_of(record.item for record in work))
        left = len(work) - len(results)
        if left and activity.is_worker_shutdown():
            raise _handed_back(f"{left} items")
        tally = await self._store.tally(asked.ref, [f"{asked.name}-{asked.lane}"])
        return ChunkEnd(tally.counts, left, self._now() - began)

    async def _do(self, what: str, ref: BatchRef, work: Callable[[Stop, _Beat], Awaitable[T]]) -> T:
        """The frame around an activity: heartbeats, a span, an orderly end when it is stopped, typed errors."""
        beat = _Beat()
        stop = Stop(self._settings.drain_notice_seconds)
        tasks = [asyncio.create_task(self._beating(beat)), asyncio.create_task(_stop_with_worker(stop))]
        attributes: dict[str, str | int] = {"tenth.batch.id": ref.batch_id, "tenth.batch.run": ref.run}
        span = self._telemetry.tracer.start_span(f"batch {what}", attributes=attributes)
        try:
            with trace.use_span(span, end_on_exit=True, record_exception=False):
                return await _orderly(work(stop, beat), stop)
        except Stopped:
            raise _handed_back(what) from None
        except ObjectNotFound as error:
            raise ApplicationError(f"no object {error}", type="STORE_DAMAGED", non_retryable=True) from error
        except TenthError as error:
            final = error.code in _HOPELESS and activity.info().attempt >= _HOPELESS_TRIES
            raise ApplicationError(
                str(error), type=error.reason, non_retryable=final, next_retry_delay=_told_delay(error)
            ) from error
        finally:
            for task in tasks:
                task.cancel()

    async def _beating(self, beat: _Beat) -> None:
        while True:
            activity.heartbeat(beat.progress)
            await asyncio.sleep(self._settings.heartbeat_seconds / 4)


def _told_delay(error: TenthError) -> timedelta | None:
    """When to come again, as the other side says: to hand a large batch in again costs something each time."""
    seconds = error.retry_after_seconds
    return timedelta(seconds=min(max(seconds, 0.1), _LONGEST_DELAY_SECONDS)) if seconds is not None else None


def _handed_back(what: str) -> ApplicationError:
    return ApplicationError(
        f"{what}: handed back, as this worker goes away",
        type=HANDED_BACK,
        category=ApplicationErrorCategory.BENIGN,
        next_retry_delay=timedelta(milliseconds=10),
    )


async def _stop_with_worker(stop: Stop) -> None:
    await activity.wait_for_worker_shutdown()
    stop.set()


async def _orderly(work: Awaitable[T], stop: Stop) -> T:
    """Cancelled from outside, work is asked to stop and gets its time; a second time ends it."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if task.done():
            raise
        stop.set()
        try:
            return await task
        except asyncio.CancelledError:
            task.cancel()
            raise
