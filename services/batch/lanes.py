"""Runs the items of a chunk through inference, many at once: the lanes local and online.

Each item goes its own way: it waits for a full queue, tries a model that is down once more, is then prepared again for
another one, and fails typed at last. What is answered goes through the second half every two seconds, so that a kill
repeats little.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tenth.batch.v1 import stored_pb2
from tenth.inference.v1 import inference_pb2
from tenth.orchestrator.v1 import orchestrator_pb2
from tenth.type.v1 import receipt_pb2

from mesh.auth import Identity, set_identity
from mesh.errors import Code, TenthError
from mesh.status import detail
from services.batch.calls import Layers, Stop, Stopped, failure_of, half_error
from services.batch.errors import Reason
from services.batch.halves import Halves, reservation_seconds
from services.batch.policy import LOCAL, ONLINE, Next, after_failure, attempt_number, is_full, pause_seconds
from services.batch.records import failed, succeeded
from services.batch.settings import WorkerSettings

log = logging.getLogger("tenth.batch.lanes")
_FINISH_EVERY_SECONDS = 2.0
_MODEL_DOWN_SECONDS = 5.0
_NO_MODEL = ("NO_MODEL_AVAILABLE", "NO_ELIGIBLE_MODEL")
"""The orchestrator's and the router's reasons when no other model may answer: all have failed, or one was named."""


@dataclass(frozen=True, slots=True)
class ChunkFrame:
    """What holds for all items of a chunk. Times in seconds since 1970."""

    lane: str
    run: int
    delivery: int
    """How often the chunk was handed to a worker, from 1."""
    repeated: bool
    """True when another worker had it before, and may have finished some of it."""
    deadline: float
    another_model: bool
    """True: none of the items stays with the model it was prepared for."""
    at_batch_prices: bool
    """True when the items were reserved at batch prices, where there are such: online that is too little."""
    lanes: frozenset[str]
    """Lanes that the batch allows."""
    identity: Identity


@dataclass(slots=True)
class Job:
    """One item on its way."""

    item: stored_pb2.StoredItem
    prepared: orchestrator_pb2.PreparedCompletion
    lane: str
    excluded: list[str] = field(default_factory=list)
    spent: list[receipt_pb2.OverheadItem] = field(default_factory=list)
    """By attempts that failed."""
    answer: inference_pb2.GenerateTextResponse | None = None
    finished: orchestrator_pb2.FinishedCompletion | None = None
    """Answered by the first half, when it was prepared again."""
    error: orchestrator_pb2.HalfError | None = None
    attempt: int = 0
    seconds: float = 0.0

    @property
    def ended(self) -> bool:
        """True when there is something to finish."""
        return self.answer is not None or self.error is not None or self.finished is not None


class ChunkRunner:
    """Runs chunks of one worker. ``now``: seconds since 1970."""

    def __init__(self, layers: Layers, settings: WorkerSettings, now: Callable[[], float]) -> None:
        self._layers = layers
        self._halves = Halves(layers, settings)
        self._settings = settings
        self._now = now
        self._gates: dict[tuple[str, str], asyncio.Semaphore] = {}

    async def run(
        self, work: Sequence[stored_pb2.StoredPrepared], frame: ChunkFrame, stop: Stop
    ) -> list[stored_pb2.StoredResult]:
        """Results of the items that ended, in the order in which they did; the others were handed back.

        Raises TenthError when the orchestrator is away for longer than patience lasts.
        """
        ready: list[Job] = []
        results: list[stored_pb2.StoredResult] = []

        jobs = [Job(record.item, record.outcome.prepared, frame.lane) for record in work]
        set_identity(frame.identity)
        try:
            await self._leave_lane(jobs, frame, stop)
        except Stopped:
            return []
        ready += [job for job in jobs if job.ended]

        async def one(job: Job) -> None:
            await self._answer(job, frame, stop)
            if job.ended:
                ready.append(job)

        tasks = [asyncio.create_task(one(job)) for job in jobs if not job.ended]
        stopping = asyncio.create_task(stop.wait())
        try:
            everything: asyncio.Future[Any] = asyncio.gather(*tasks, return_exceptions=True)
            while not everything.done():
                awaited: set[asyncio.Future[Any]] = {everything} if stopping.done() else {everything, stopping}
                wait = min(_FINISH_EVERY_SECONDS, stop.seconds_left)
                await asyncio.wait(awaited, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                if stop.is_set and stop.seconds_left <= 0:
                    break
                if ready:  # What is finished is not asked again when this process is killed.
                    results += await self._finish(ready, stop)
        finally:
            stopping.cancel()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        results += await self._finish(ready, stop)
        return results

    async def _answer(self, job: Job, frame: ChunkFrame, stop: Stop) -> None:
        gate = self._gate(frame.lane, job.prepared.generation.model)
        async with gate:
            if stop.is_set:
                return
            request = job.item.request
            user = replace(frame.identity, user_id=request.user_id, project_id=request.project_id)
            try:
                await self._generate(job, frame, user, stop)
            except Stopped:
                return
            except TenthError as error:
                job.error = half_error(error, retryable=error.code is Code.UNAVAILABLE)
            except Exception:
                # One item that nobody foresaw must not keep its chunk from ending.
                log.exception("item %d cannot be run", job.item.index)
                words = "the worker could not run the item"
                job.error = orchestrator_pb2.HalfError(reason=Reason.ITEM_BROKEN, message=words)

    async def _generate(self, job: Job, frame: ChunkFrame, user: Identity, stop: Stop) -> None:
        tried = waited = 0
        give_up = min(self._now() + self._settings.patience_seconds, frame.deadline)
        for number in range(1, self._settings.max_attempts + self._settings.max_waits + 1):
            generation = self._generation(job, frame, number)
            began = time.monotonic()
            try:
                set_identity(user)
                job.answer = await self._layers.inference.GenerateText(generation, timeout=self._seconds(frame))
                job.seconds = time.monotonic() - began
                job.attempt = job.answer.attempt or generation.attempt
                return
            except TenthError as error:
                set_identity(frame.identity)
                failure = failure_of(error)
                self._note_spent(job, error)
                waited, tried = (waited + 1, tried) if is_full(failure) else (waited, tried + 1)
                step = after_failure(failure, tried, waited, self._settings.max_waits)
                if step is Next.FAIL:
                    job.error = half_error(error, retryable=error.code is not Code.INVALID_ARGUMENT)
                    return
                if self._now() >= give_up and not is_full(failure):
                    job.error = half_error(error, retryable=True)
                    return
                if step is Next.AGAIN:
                    if not await stop.sleep(pause_seconds(failure, tried + waited, random.random())):  # noqa: S311
                        return
                elif not await self._another_model(job, generation.model, error, frame, stop):
                    return
                else:
                    tried = waited = 0
        words = f"no answer after {number} tries"
        job.error = orchestrator_pb2.HalfError(reason=Reason.ITEM_BROKEN, message=words, retryable=True)

    async def _another_model(self, job: Job, model: str, error: TenthError, frame: ChunkFrame, stop: Stop) -> bool:
        """Prepare the item for another model, or for the same one after a pause; False when it has ended.

        A batch has time: where no other model can answer, or none is allowed, the one that is down may be back soon.
        """
        if ONLINE in frame.lanes and len(job.excluded) < self._settings.max_attempts:
            if await self._prepare_again(job, [*job.excluded, model], frame, stop):
                return True
            if job.error is None or job.error.reason not in _NO_MODEL:
                return False
            job.error = None
        if after_failure(failure_of(error), 1, 0, 0) is Next.ANOTHER_MODEL and not is_full(failure_of(error)):
            job.error = half_error(error, retryable=True)  # It does not do what is asked, however long one waits.
            return False
        job.excluded = []
        return await stop.sleep(_MODEL_DOWN_SECONDS) and await self._prepare_again(job, [], frame, stop)

    async def _leave_lane(self, jobs: Sequence[Job], frame: ChunkFrame, stop: Stop) -> None:
        """Prepare again what runs online but was prepared for a cheaper lane, and what another worker had in hand: of
        that, what it has finished comes back answered.
        """

        def leaves(job: Job) -> bool:
            return frame.another_model or (frame.lane == ONLINE and frame.at_batch_prices and _has_batch_price(job))

        stays = [job for job in jobs if frame.repeated and not leaves(job)]
        if stays:
            again = [self._again(job, [], frame, frame.at_batch_prices) for job in stays]
            outcomes = await self._halves.prepare(again, stop, frame.deadline - self._now())
            for job, outcome in zip(stays, outcomes, strict=True):
                same = outcome.prepared.generation.model == job.prepared.generation.model
                if outcome.WhichOneof("outcome") != "prepared" or same:
                    self._prepared(job, outcome, frame, lane=frame.lane)
        for job in jobs:
            if frame.another_model:
                job.excluded = [job.prepared.generation.model]
        moved = [job for job in jobs if not job.ended and leaves(job)]
        again = [self._again(job, job.excluded, frame) for job in moved]
        outcomes = await self._halves.prepare(again, stop, frame.deadline - self._now())
        for job, outcome in zip(moved, outcomes, strict=True):
            self._prepared(job, outcome, frame)

    async def _prepare_again(self, job: Job, excluded: list[str], frame: ChunkFrame, stop: Stop) -> bool:
        """Prepare the item without some models; False when it has ended thereby."""
        again = self._again(job, excluded, frame)
        (outcome,) = await self._halves.prepare([again], stop, frame.deadline - self._now())
        job.excluded = excluded
        return self._prepared(job, outcome, frame)

    def _again(
        self, job: Job, excluded: list[str], frame: ChunkFrame, batch_prices: bool = False
    ) -> orchestrator_pb2.CompletionToPrepare:
        again = orchestrator_pb2.CompletionToPrepare(
            request=job.item.request, excluded_models=excluded, batch_prices=batch_prices, skip_cache=True
        )
        again.reservation_ttl.FromSeconds(reservation_seconds(self._now(), frame.deadline))
        return again

    @staticmethod
    def _prepared(job: Job, outcome: orchestrator_pb2.PrepareOutcome, frame: ChunkFrame, lane: str = "") -> bool:
        kind = outcome.WhichOneof("outcome")
        if kind == "answered":
            job.finished, job.lane = outcome.answered, ""
        elif kind == "error":
            job.error = outcome.error
        else:
            job.prepared = outcome.prepared
            job.lane = lane or (LOCAL if outcome.prepared.self_hosted else ONLINE)
            if job.lane not in frame.lanes:
                words = f"{outcome.prepared.generation.model} would run in the lane {job.lane}"
                job.error = orchestrator_pb2.HalfError(reason=Reason.LANE_NOT_ALLOWED, message=words)
        return not job.ended

    def _generation(self, job: Job, frame: ChunkFrame, number: int) -> inference_pb2.GenerateTextRequest:
        generation = inference_pb2.GenerateTextRequest()
        generation.CopyFrom(job.prepared.generation)
        generation.priority = inference_pb2.PRIORITY_BATCH
        generation.attempt = attempt_number(max(generation.attempt, 1), frame.run, frame.delivery, number)
        return generation

    def _seconds(self, frame: ChunkFrame) -> float:
        # An answer that comes a little late is still worth more than none.
        return min(self._settings.generate_seconds, max(60.0, frame.deadline - self._now()))

    def _gate(self, lane: str, model: str) -> asyncio.Semaphore:
        gate = self._gates.get((lane, model))
        if gate is None:
            settings = self._settings
            places = settings.local_concurrency if lane == LOCAL else settings.online_concurrency
            gate = self._gates[lane, model] = asyncio.Semaphore(places)
        return gate

    @staticmethod
    def _note_spent(job: Job, error: TenthError) -> None:
        spent = detail(error, receipt_pb2.SpentDetail)
        if isinstance(spent, receipt_pb2.SpentDetail):
            job.spent.extend(spent.attempts)

    async def _finish(self, ready: list[Job], stop: Stop) -> list[stored_pb2.StoredResult]:
        """Take what is ready through the second half."""
        taken = list(ready)
        ready.clear()
        by_first_half = [job for job in taken if job.finished is not None]
        results = [succeeded(job.item, job.finished, job.lane) for job in by_first_half if job.finished is not None]
        rest = [job for job in taken if job.finished is None]
        outcomes = await self._halves.finish([to_finish(job) for job in rest], stop)
        results += [finished_result(job, outcome) for job, outcome in zip(rest, outcomes, strict=True)]
        return results


def _has_batch_price(job: Job) -> bool:
    return job.prepared.has_batch_price and not job.prepared.self_hosted


def to_finish(job: Job) -> orchestrator_pb2.CompletionToFinish:
    """What the second half gets of a job."""
    item = orchestrator_pb2.CompletionToFinish(
        request=job.item.request,
        state=job.prepared.state,
        attempts=job.spent,
        attempt=job.attempt,
        batch=job.lane != ONLINE,
        lane=job.lane,
    )
    if job.answer is not None:
        item.generated.CopyFrom(job.answer)
        item.duration.FromNanoseconds(int(job.seconds * 1e9))
    else:
        item.failed.CopyFrom(job.error or orchestrator_pb2.HalfError(reason=Reason.ITEM_BROKEN))
    return item


def finished_result(job: Job, outcome: orchestrator_pb2.FinishOutcome) -> stored_pb2.StoredResult:
    """An item's result, from what the second half said."""
    if outcome.WhichOneof("outcome") == "error":
        return failed(job.item, outcome.error)
    if job.error is not None and not outcome.finished.HasField("completion"):
        return failed(job.item, job.error, outcome.finished)
    return succeeded(job.item, outcome.finished, job.lane)
