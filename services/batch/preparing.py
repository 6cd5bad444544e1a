"""The first half of a run: items through the orchestrator's first half, an input object at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence, Set

from tenth.batch.v1 import stored_pb2
from tenth.orchestrator.v1 import orchestrator_pb2

from mesh.auth import set_identity
from services.batch import batches
from services.batch.calls import Layers, Stop, identity_of
from services.batch.halves import PER_CALL, Halves, reservation_seconds
from services.batch.policy import may_wait_for_twin
from services.batch.records import RunStore, failed, reads_cache, succeeded, temperature, users_of
from services.batch.refs import BatchRef
from services.batch.reports import Prepare, Prepared
from services.batch.settings import WorkerSettings


def object_name(round_: int, number: int) -> str:
    """Name of a prepared object in its run."""
    return f"{round_}-{number:08d}"


def waits(item: stored_pb2.StoredItem, limit: float) -> bool:
    """True when an item waits for the same question that stands before it."""
    request = item.request
    return item.same_as_index >= 0 and may_wait_for_twin(reads_cache(request), temperature(request), limit)


def again_name(ref: BatchRef, round_: int) -> str:
    """The plan's object with the items that are prepared again after a round."""
    return batches.plan_name(ref, "again" if round_ == 1 else f"again-{round_}")


def waits_on(
    items: Sequence[stored_pb2.StoredItem], again: Set[int] | None, limit: float
) -> list[stored_pb2.StoredItem]:
    """Those that wait in a round for the first one of the same question, which runs in it.

    ``again``: the items of the round, None for all. One whose first has its end without an answer waits no more.
    """
    return [
        item
        for item in items
        if waits(item, limit) and (again is None or (item.index in again and item.same_as_index in again))
    ]


class Preparer:
    """Prepares. ``now``: seconds since 1970."""

    def __init__(self, store: RunStore, layers: Layers, settings: WorkerSettings, now: Callable[[], float]) -> None:
        self._store = store
        self._halves = Halves(layers, settings)
        self._settings = settings
        self._now = now
        self._indexes: dict[BatchRef, frozenset[int] | None] = {}

    async def prepare(self, asked: Prepare, stop: Stop, beat: Callable[[int], None]) -> Prepared:
        """Prepare one input object. Done once before, it only counts again.

        ``beat`` hears how many items are through. Raises TenthError while the orchestrator stays away.
        """
        name = object_name(asked.round, asked.number)
        ref = asked.ref
        items = await self.items(ref, asked.number)
        again: set[int] | None = None
        if asked.round > 1:
            again = await self._store.indexes(again_name(ref, asked.round - 1))
        waiting = waits_on(items, again, self._limit) if asked.twins_wait else []
        skipped = {item.index for item in waiting}
        todo = [item for item in items if item.index not in skipped and (again is None or item.index in again)]
        prepared_name = batches.prepared_name(ref, name)
        if not await self._store.store.exists(prepared_name):
            await self._run(asked, name, todo, stop, beat)
        records = await self._store.records(prepared_name)
        tally = await self._store.tally(ref, [f"prepared-{name}"])
        expected = sum(record.outcome.prepared.expected_nano_usd for record in records)
        return Prepared(tally.counts, len(records), len(waiting), expected)

    async def items(self, ref: BatchRef, number: int) -> list[stored_pb2.StoredItem]:
        """The items of one input object that a run takes."""
        if ref not in self._indexes:
            if len(self._indexes) >= 16:
                self._indexes.clear()
            self._indexes[ref] = await batches.read_run_items(self._store.store, ref)
        return await batches.read_items(self._store.store, ref, number, self._indexes[ref])

    @property
    def _limit(self) -> float:
        return self._settings.twin_temperature_limit

    async def _run(
        self,
        asked: Prepare,
        name: str,
        items: Sequence[stored_pb2.StoredItem],
        stop: Stop,
        beat: Callable[[int], None],
    ) -> None:
        batch = await self._store.batch(asked.ref)
        set_identity(identity_of(batch))
        seconds = reservation_seconds(self._now(), asked.deadline_seconds)
        gate = asyncio.Semaphore(self._settings.prepare_calls)
        through = 0

        async def part(some: Sequence[stored_pb2.StoredItem]) -> list[orchestrator_pb2.PrepareOutcome]:
            nonlocal through
            async with gate:
                asked_of = [self._half(item, seconds, asked.batch_prices) for item in some]
                outcomes = await self._halves.prepare(asked_of, stop, asked.paced_until_seconds - self._now())
                through += len(some)
                beat(through)
                return outcomes

        starts = range(0, len(items), PER_CALL)
        answers = await asyncio.gather(*(part(items[start : start + PER_CALL]) for start in starts))
        prepared: list[stored_pb2.StoredPrepared] = []
        ended: list[stored_pb2.StoredResult] = []
        for item, outcome in zip(items, (one for answer in answers for one in answer), strict=True):
            kind = outcome.WhichOneof("outcome")
            if kind == "prepared":
                prepared.append(stored_pb2.StoredPrepared(index=item.index, outcome=outcome, item=item))
            elif kind == "answered":
                ended.append(succeeded(item, outcome.answered, ""))
            else:
                ended.append(failed(item, outcome.error))
        # The prepared object last: where it is, the rest is too.
        if ended:
            await self._store.write_results(asked.ref, f"prepared-{name}", ended, users_of(items))
        else:
            # A worker that died before the next line may have written that some of them failed.
            await self._store.store.delete(batches.result_name(asked.ref, f"prepared-{name}"))
        await self._store.put(batches.prepared_name(asked.ref, name), prepared)

    @staticmethod
    def _half(item: stored_pb2.StoredItem, seconds: int, batch_prices: bool) -> orchestrator_pb2.CompletionToPrepare:
        half = orchestrator_pb2.CompletionToPrepare(request=item.request, batch_prices=batch_prices)
        half.reservation_ttl.FromSeconds(seconds)
        return half
