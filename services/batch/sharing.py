"""Gives the same questions the answer of the first of them, and says who must be prepared again."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from tenth.batch.v1 import stored_pb2
from tenth.orchestrator.v1 import orchestrator_pb2

from mesh.auth import set_identity
from services.batch import batches
from services.batch.calls import Layers, Stop, identity_of
from services.batch.halves import Halves
from services.batch.objects import read_records
from services.batch.preparing import Preparer, again_name, waits_on
from services.batch.records import RunStore, Spill, failed, succeeded, temperature, users_of
from services.batch.reports import Counts, Share, Shared
from services.batch.settings import WorkerSettings


@dataclass(frozen=True, slots=True)
class _First:
    """How the first of some equal questions ended; ``number`` of its answer in the file, -1 for a failure."""

    number: int
    from_cache: bool
    error: orchestrator_pb2.HalfError | None


class Sharer:
    """Shares answers."""

    def __init__(self, store: RunStore, layers: Layers, settings: WorkerSettings, preparer: Preparer) -> None:
        self._store = store
        self._halves = Halves(layers, settings)
        self._settings = settings
        self._preparer = preparer

    async def share(self, asked: Share, stop: Stop, beat: Callable[[int], None]) -> Shared:
        """Finish the waiting twins of answered items, write down who must be prepared again (``again`` of the plan).

        A twin of an item that can never be answered fails like it; nothing is spent on either. Idempotent. Raises
        TenthError while the orchestrator or the store stay away.
        """
        ref = asked.ref
        set_identity(identity_of(await self._store.batch(ref)))
        near = await self._store.indexes(batches.plan_name(ref, f"{asked.stem}-near"))
        shareable = await self._store.indexes(batches.plan_name(ref, f"{asked.stem}-shareable"))
        # Those of the round: what waited in an earlier one has its end, or is to run.
        of_round = await self._store.indexes(again_name(ref, asked.round - 1)) if asked.round > 1 else None
        wanted: set[int] = set()
        for number in range(asked.object_count):
            items = await self._preparer.items(ref, number)
            wanted.update(item.same_as_index for item in self._waiting(items, of_round))
        counts = Counts()
        again: list[int] = []
        numbers: list[int] = []
        with Spill() as spill:
            firsts = await self._firsts(asked, wanted, spill) if wanted else {}
            for number in range(asked.object_count):
                items = await self._preparer.items(ref, number)
                waiting = self._waiting(items, of_round)
                name = f"shared-{number:08d}" if asked.round == 1 else f"shared-r{asked.round}-{number:08d}"
                done = await self._store.tally(ref, [name])
                if not done.indexes:
                    results = await self._end(waiting, firsts, shareable, spill, stop)
                    await self._store.write_results(ref, name, results, users_of(waiting))
                    done = await self._store.tally(ref, [name])
                counts.add(done.counts)
                left = [item.index for item in waiting if item.index not in done.indexes]
                left += [item.index for item in items if item.index in near]
                if left:
                    numbers.append(number)
                    again += left
                beat(number)
        record = stored_pb2.StoredRunItems(indexes=sorted(again))
        await self._store.put(again_name(ref, asked.round), [record])
        return Shared(counts, len(again), numbers)

    def _waiting(
        self, items: Sequence[stored_pb2.StoredItem], of_round: Set[int] | None
    ) -> list[stored_pb2.StoredItem]:
        return waits_on(items, of_round, self._settings.twin_temperature_limit)

    async def _firsts(self, asked: Share, wanted: set[int], spill: Spill) -> dict[int, _First]:
        """The latest ends of some items; an answer of an earlier run counts until a later run has one."""
        found: dict[int, _First] = {}
        async for name in self._store.store.list(batches.results_prefix(asked.ref.tenant_id, asked.ref.batch_id)):
            for result in read_records(await self._store.store.get(name), stored_pb2.StoredResult):
                if result.index not in wanted:
                    continue
                if not result.result.error_reason:
                    number = spill.append(result.result.completion.SerializeToString())
                    found[result.index] = _First(number, result.result.receipt.facts.cache_hit, None)
                elif result.index not in found or found[result.index].number < 0:
                    error = orchestrator_pb2.HalfError(
                        reason=result.result.error_reason,
                        message=result.result.error_message,
                        retryable=result.retryable,
                    )
                    found[result.index] = _First(-1, False, error)
        return found

    async def _end(
        self,
        waiting: Sequence[stored_pb2.StoredItem],
        firsts: dict[int, _First],
        shareable: set[int],
        spill: Spill,
        stop: Stop,
    ) -> list[stored_pb2.StoredResult]:
        results: list[stored_pb2.StoredResult] = []
        items: list[stored_pb2.StoredItem] = []
        ends: list[orchestrator_pb2.CompletionToFinish] = []
        for item in waiting:
            first = firsts.get(item.same_as_index)
            if first is None:
                continue
            if first.error is not None:
                if not first.error.retryable:
                    results.append(failed(item, first.error))
                continue
            greedy = temperature(item.request) == 0
            if item.same_as_index in shareable or first.from_cache or greedy:
                end = orchestrator_pb2.CompletionToFinish(request=item.request)
                end.shared.ParseFromString(spill.read(first.number))
                items.append(item)
                ends.append(end)
        outcomes = await self._halves.finish(ends, stop)
        for item, outcome in zip(items, outcomes, strict=True):
            # One that cannot be shared for whatever reason is asked like any other.
            if outcome.WhichOneof("outcome") == "finished":
                results.append(succeeded(item, outcome.finished, "", shared=True))
        return results
