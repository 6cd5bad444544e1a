"""Providers' batches: hand in, ask, collect, stop. What is at a provider is in Temporal's hands, not in a worker's.

Submissions carry an id that follows from what is submitted, attempts and results numbers that do too: whatever of this
is done twice, because a worker or Temporal died, is done once.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field

from tenth.batch.v1 import stored_pb2
from tenth.inference.v1 import inference_pb2
from tenth.ledger.v1 import ledger_pb2
from tenth.orchestrator.v1 import orchestrator_pb2
from tenth.type.v1 import receipt_pb2, usage_pb2

from mesh.auth import set_identity
from mesh.errors import Code, TenthError
from services.batch import batches
from services.batch.calls import Layers, Stop, identity_of, patiently
from services.batch.halves import Halves
from services.batch.lanes import Job, finished_result, to_finish
from services.batch.policy import attempt_number
from services.batch.records import RunStore, Spill, users_of
from services.batch.reports import AtProvider, ChunkEnd, Polled, ProviderWork, Submitted
from services.batch.settings import WorkerSettings

log = logging.getLogger("tenth.batch.provider_batches")
_NAMESPACE = uuid.UUID("6e1d6b5c-8f0a-4e57-9d0e-0d8d1f6f2a10")
_EVENTS_PER_CALL = 500
_RESULTS_PER_OBJECT = 500
_MOST_REFUSED = 50
"""Items left out of a batch one by one: each costs another upload."""
_TOO_LARGE = "PROVIDER_BATCH_TOO_LARGE"
_LATER = (
    *(Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.RESOURCE_EXHAUSTED, Code.CANCELLED),
    *(Code.ABORTED, Code.INTERNAL, Code.UNKNOWN),
)
"""Whether the provider has the batch is not known, or it may take it later."""


@dataclass(slots=True)
class _Pending:
    """A provider's batch while it is collected: its items in a file, by request."""

    spill: Spill
    gone: frozenset[str]
    """Users whose items were deleted since: their attempts are booked, their answers go nowhere."""
    numbers: dict[str, int] = field(default_factory=dict)

    def take(self, request_id: str) -> stored_pb2.StoredPrepared | None:
        """An item that has no result yet; None for one that has, or that nobody handed in."""
        number = self.numbers.pop(request_id, None)
        return None if number is None else stored_pb2.StoredPrepared.FromString(self.spill.read(number))


class ProviderLane:
    """The provider's lanes. ``now``: seconds since 1970."""

    def __init__(self, store: RunStore, layers: Layers, settings: WorkerSettings, now: Callable[[], float]) -> None:
        self._store = store
        self._layers = layers
        self._halves = Halves(layers, settings)
        self._settings = settings
        self._now = now

    async def submit(self, work: ProviderWork, delivery: int, stop: Stop, beat: Callable[[int], None]) -> Submitted:
        """Hand in what has no result yet. ``delivery``: how often this was asked, from 1: only the first time nothing
        can be there yet. Raises TenthError where another try may go better.
        """
        batch = await self._store.batch(work.ref)
        set_identity(identity_of(batch))
        done = (await self._store.tally(work.ref, [work.name])).indexes
        count = 0
        async for records in self._pieces(work, done):
            started = ledger_pb2.ATTEMPT_KIND_STARTED
            await self._record([self._event(work, one, started, _worst_case(one)) for one in records], stop)
            count += len(records)
            beat(count)
        if not count:
            return Submitted("", 0)
        call, refused = self._layers.providers.SubmitProviderBatch, set[str]()
        while True:
            try:
                parts = self._parts(work, done, delivery == 1, refused)
                answer = await call(parts, timeout=self._settings.generate_seconds)
                return Submitted(answer.batch.provider_batch_id, count)
            except TenthError as error:
                if error.code in _LATER:
                    raise
                if _is_of_one_item(error, refused) and len(refused) < min(_MOST_REFUSED, count - 1):
                    # The others must not go online for its sake. It is left, and goes there alone in the end.
                    log.warning("left out of a batch at %s: %s", work.lane, error)
                    refused.add(error.metadata["request_id"])
                    continue
                await self._record_failed(work, done, stop)
                return Submitted("", count, str(error))

    async def find(self, work: ProviderWork, stop: Stop) -> Submitted:
        """Whether the provider has a batch whose handing in was given up; without an id it certainly has none, and its
        attempts are on the books as such. Raises TenthError while that cannot be told.
        """
        set_identity(identity_of(await self._store.batch(work.ref)))
        done = (await self._store.tally(work.ref, [work.name])).indexes
        count = 0
        # Also those of users whose items were deleted since: they may have been handed in.
        async for records in self._pieces(work, done, of_deleted_users=True):
            count += len(records)
        if not count:
            return Submitted("", 0)
        request = inference_pb2.FindProviderBatchRequest(
            submission_id=_submission_id(work), model=work.model, item_count=count
        )
        request.begin_time.FromNanoseconds(int(work.begin_seconds * 1e9))
        answer = await self._layers.providers.FindProviderBatch(request, timeout=self._settings.call_seconds)
        if answer.HasField("batch"):
            return Submitted(answer.batch.provider_batch_id, count)
        await self._record_failed(work, done, stop)
        return Submitted("", count, "it was never made there")

    async def poll(self, asked: AtProvider) -> Polled:
        """How far a batch is. Raises TenthError while the provider stays away."""
        set_identity(identity_of(await self._store.batch(asked.work.ref)))
        request = inference_pb2.GetProviderBatchRequest(
            model=asked.work.model, provider_batch_id=asked.provider_batch_id
        )
        answer = await self._layers.providers.GetProviderBatch(request, timeout=self._settings.call_seconds)
        state = answer.batch.state
        return Polled(
            ended=state == inference_pb2.PROVIDER_BATCH_STATE_ENDED,
            failed=state == inference_pb2.PROVIDER_BATCH_STATE_FAILED,
            done=answer.batch.done_count,
            message=answer.batch.error_message,
            retryable=answer.batch.retryable,
        )

    async def cancel(self, asked: AtProvider) -> bool:
        """Ask the provider to stop a batch; True: it has heard. Raises TenthError while the provider stays away."""
        set_identity(identity_of(await self._store.batch(asked.work.ref)))
        request = inference_pb2.CancelProviderBatchRequest(
            model=asked.work.model, provider_batch_id=asked.provider_batch_id
        )
        await self._layers.providers.CancelProviderBatch(request, timeout=self._settings.call_seconds)
        return True

    async def collect(
        self, asked: AtProvider, nothing_ran: bool, delivery: int, stop: Stop, beat: Callable[[int], None]
    ) -> ChunkEnd:
        """Take the results of an ended batch to their ends; what has none yet is left.

        ``nothing_ran``: the provider refused it whole. Raises TenthError while the provider or a layer stays away.
        """
        work, began = asked.work, self._now()
        batch = await self._store.batch(work.ref)
        set_identity(identity_of(batch))
        done = (await self._store.tally(work.ref, [work.name])).indexes
        with Spill() as spill:
            gone = await batches.read_deleted_users(self._store.store, work.ref.tenant_id, work.ref.batch_id)
            pending = _Pending(spill, gone)
            async for records in self._pieces(work, done, of_deleted_users=True):
                for record in records:
                    pending.numbers[record.item.request.request_id] = spill.append(record.SerializeToString())
            count = 0
            if not nothing_ran:
                request = inference_pb2.StreamProviderBatchResultsRequest(
                    model=work.model, provider_batch_id=asked.provider_batch_id
                )
                held: list[inference_pb2.StreamProviderBatchResultsResponse] = []
                stream = self._layers.providers.StreamProviderBatchResults(
                    request, timeout=self._settings.generate_seconds
                )
                number = 0
                async for result in stream:
                    held.append(result)
                    if len(held) >= _RESULTS_PER_OBJECT:
                        name = f"{work.name}-s{work.submission}-a{delivery}-{number:05d}"
                        await self._end(work, name, held, pending, stop)
                        count, number, held = count + len(held), number + 1, []
                        beat(count)
                name = f"{work.name}-s{work.submission}-a{delivery}-{number:05d}"
                await self._end(work, name, held, pending, stop)
            # What the provider says nothing of was neither run nor billed.
            missing = [stored_pb2.StoredPrepared.FromString(spill.read(one)) for one in pending.numbers.values()]
        for start in range(0, len(missing), _EVENTS_PER_CALL):
            part = missing[start : start + _EVENTS_PER_CALL]
            await self._record([self._event(work, one, ledger_pb2.ATTEMPT_KIND_FAILED) for one in part], stop)
        done = (await self._store.tally(work.ref, [work.name])).indexes
        left = 0
        async for records in self._pieces(work, done):
            left += len(records)
        tally = await self._store.tally(work.ref, [f"{work.name}-s{work.submission}-"])
        return ChunkEnd(tally.counts, left, self._now() - began)

    async def _end(
        self,
        work: ProviderWork,
        name: str,
        results: Sequence[inference_pb2.StreamProviderBatchResultsResponse],
        pending: _Pending,
        stop: Stop,
    ) -> None:
        """Book, finish and write some results; those to run again are only booked."""
        events: list[ledger_pb2.AttemptEvent] = []
        jobs: list[Job] = []
        for result in results:
            record = pending.take(result.request_id)
            if record is None:
                continue
            job = Job(record.item, record.outcome.prepared, work.lane, attempt=result.attempt)
            if result.WhichOneof("outcome") == "answer":
                job.answer = result.answer
                usage = result.answer.completion.usage
                events.append(self._event(work, record, ledger_pb2.ATTEMPT_KIND_FINISHED, usage))
                if record.item.request.user_id not in pending.gone:
                    jobs.append(job)
                continue
            events.append(self._event(work, record, ledger_pb2.ATTEMPT_KIND_FAILED, result.error.usage))
            if result.error.retryable or record.item.request.user_id in pending.gone:
                continue
            job.error = orchestrator_pb2.HalfError(reason=result.error.reason, message=result.error.message)
            if result.error.HasField("usage"):
                job.spent.append(_spent(work, result))
            jobs.append(job)
        await self._record(events, stop)
        outcomes = await self._halves.finish([to_finish(job) for job in jobs], stop)
        ended = [finished_result(job, outcome) for job, outcome in zip(jobs, outcomes, strict=True)]
        await self._store.write_results(work.ref, name, ended, users_of(job.item for job in jobs))

    async def _pieces(
        self, work: ProviderWork, done: set[int], *, of_deleted_users: bool = False
    ) -> AsyncIterator[list[stored_pb2.StoredPrepared]]:
        """What is left of the plan's objects, one after the other."""
        for number in range(work.first, work.first + work.count):
            name = f"{work.stem}-{number:06d}"
            records = await self._store.work(work.ref, name, done, of_deleted_users=of_deleted_users)
            if records:
                yield records

    async def _parts(
        self, work: ProviderWork, done: set[int], first_call: bool, refused: Collection[str]
    ) -> AsyncIterator[inference_pb2.SubmitProviderBatchRequest]:
        head = inference_pb2.ProviderBatchHead(submission_id=_submission_id(work), model=work.model)
        head.first_call = first_call
        head.begin_time.FromNanoseconds(int(work.begin_seconds * 1e9))
        yield inference_pb2.SubmitProviderBatchRequest(head=head)
        async for records in self._pieces(work, done):
            for record in records:
                generation = record.outcome.prepared.generation
                if generation.request_id in refused:
                    continue
                generation.attempt = self._attempt(work, record)
                yield inference_pb2.SubmitProviderBatchRequest(generation=generation)

    @staticmethod
    def _attempt(work: ProviderWork, record: stored_pb2.StoredPrepared) -> int:
        first = max(record.outcome.prepared.generation.attempt, 1)
        return attempt_number(first, work.ref.run, 1, work.submission)

    def _event(
        self,
        work: ProviderWork,
        record: stored_pb2.StoredPrepared,
        kind: ledger_pb2.AttemptKind.ValueType,
        usage: usage_pb2.Usage | None = None,
    ) -> ledger_pb2.AttemptEvent:
        generation, request = record.outcome.prepared.generation, record.item.request
        event = ledger_pb2.AttemptEvent(
            request_id=request.request_id,
            attempt=self._attempt(work, record),
            kind=kind,
            tenant_id=work.ref.tenant_id,
            model=work.model,
            usage=usage or usage_pb2.Usage(),
            reservation_id=generation.reservation_id,
            price_book_version=generation.price_book_version,
            user_id=request.user_id,
            project_id=request.project_id or generation.project_id,
            purpose="answer",
        )
        event.event_time.FromNanoseconds(int(self._now() * 1e9))
        return event

    async def _record_failed(self, work: ProviderWork, done: set[int], stop: Stop) -> None:
        """Nothing of it was run."""
        async for records in self._pieces(work, done, of_deleted_users=True):
            events = [self._event(work, one, ledger_pb2.ATTEMPT_KIND_FAILED) for one in records]
            await self._record(events, stop)

    async def _record(self, events: Sequence[ledger_pb2.AttemptEvent], stop: Stop) -> None:
        for part in _slices(events, _EVENTS_PER_CALL):
            request = ledger_pb2.RecordAttemptsRequest(events=part)
            call, seconds = self._layers.ledger.RecordAttempts, self._settings.call_seconds
            await patiently(lambda: call(request, timeout=seconds), self._settings.patience_seconds, stop)  # noqa: B023


def _submission_id(work: ProviderWork) -> str:
    name = f"{work.ref.tenant_id}/{work.ref.batch_id}/{work.ref.run}/{work.name}/{work.submission}"
    return str(uuid.uuid5(_NAMESPACE, name))


def _is_of_one_item(error: TenthError, refused: Collection[str]) -> bool:
    """True when inference names the generation that it does not take; one too many is no fault of its own."""
    name = error.metadata.get("request_id", "")
    return bool(name) and name not in refused and error.reason != _TOO_LARGE


def _worst_case(record: stored_pb2.StoredPrepared) -> usage_pb2.Usage:
    generation = record.outcome.prepared.generation
    return usage_pb2.Usage(
        input_token_count=generation.estimated_input_token_count,
        output_token_count=generation.sampling.max_output_tokens,
        estimated=True,
    )


def _spent(work: ProviderWork, result: inference_pb2.StreamProviderBatchResultsResponse) -> receipt_pb2.OverheadItem:
    return receipt_pb2.OverheadItem(
        kind="failed_attempt", model=work.model, usage=result.error.usage, attempt=result.attempt
    )


def _slices(events: Sequence[ledger_pb2.AttemptEvent], size: int) -> Iterable[Sequence[ledger_pb2.AttemptEvent]]:
    return (events[start : start + size] for start in range(0, len(events), size))
