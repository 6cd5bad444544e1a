"""The end of a run: every item has a result, reservations are let go of, what only the run needed is removed."""

from __future__ import annotations

import logging
from collections.abc import Callable

from tenth.batch.v1 import stored_pb2
from tenth.orchestrator.v1 import orchestrator_pb2

from mesh.auth import set_identity
from mesh.errors import TenthError
from services.batch import batches
from services.batch.calls import Layers, Stop, identity_of
from services.batch.halves import Halves
from services.batch.objects import read_records
from services.batch.preparing import Preparer, object_name
from services.batch.records import RunStore, failed, succeeded, users_of
from services.batch.reports import Close, Counts, End
from services.batch.settings import WorkerSettings

log = logging.getLogger("tenth.batch.closing")
_ROUNDS = (3, 2, 1)


class Closer:
    """Ends runs. ``now``: seconds since 1970."""

    def __init__(
        self,
        store: RunStore,
        layers: Layers,
        settings: WorkerSettings,
        preparer: Preparer,
        now: Callable[[], float],
    ) -> None:
        self._store = store
        self._halves = Halves(layers, settings)
        self._settings = settings
        self._preparer = preparer
        self._now = now

    async def close(self, asked: Close, stop: Stop, beat: Callable[[int], None]) -> Counts:
        """Give every item without a result the same end, through the second half where it was prepared.

        Returns what these add up to, and what was not counted before. Idempotent. Raises TenthError while the store
        stays away; while the orchestrator does, until ``asked.until_seconds``.
        """
        ref = asked.ref
        set_identity(identity_of(await self._store.batch(ref)))
        done: set[int] = set()
        async for name in self._store.store.list(batches.result_name(ref, "x").removesuffix("x.pb")):
            if "-closed-" not in name:
                content = await self._store.store.get(name)
                done.update(result.index for result in read_records(content, stored_pb2.StoredResult))
        error = orchestrator_pb2.HalfError(reason=asked.reason, message=asked.message, retryable=asked.retryable)
        counts = (await self._store.tally(ref, asked.uncounted)).counts
        alone = False
        for number in range(asked.object_count):
            items = [item for item in await self._preparer.items(ref, number) if item.index not in done]
            name = f"closed-{number:08d}"
            tally = await self._store.tally(ref, [name])
            items = [item for item in items if item.index not in tally.indexes]
            if items:
                states = await self._states(asked, number)
                half = number in asked.half_prepared
                prepared = [item for item in items if half or item.index in states]
                # Without a state the receipt of a failure releases what the request may have reserved all the same.
                ends = [
                    orchestrator_pb2.CompletionToFinish(
                        request=item.request, state=states.get(item.index, b""), failed=error
                    )
                    for item in prepared
                ]
                outcomes = [orchestrator_pb2.FinishOutcome()] * len(ends)
                if not alone:
                    try:
                        outcomes = await self._halves.finish(ends, stop, self._patience_seconds(asked))
                    except TenthError as failure:
                        if not asked.until_seconds or self._now() < asked.until_seconds:
                            raise
                        log.error(
                            "batch %s ends without the orchestrator: its reservations end by themselves; %s",
                            ref.batch_id,
                            failure,
                        )
                        alone = True
                results = [
                    # What a worker finished whose results nobody has is no failure: it was answered, and paid for.
                    succeeded(item, outcome.finished, "")
                    if outcome.finished.HasField("completion")
                    else failed(item, error, outcome.finished)
                    for item, outcome in zip(prepared, outcomes, strict=True)
                ]
                results += [failed(item, error) for item in items if not half and item.index not in states]
                await self._store.write_results(ref, name, results, users_of(items))
                tally = await self._store.tally(ref, [name])
            counts.add(tally.counts)
            beat(number)
        return counts

    def _patience_seconds(self, asked: Close) -> float:
        patience = self._settings.patience_seconds
        return min(patience, max(asked.until_seconds - self._now(), 0.0)) if asked.until_seconds else patience

    async def end(self, asked: End) -> None:
        """Keep how the run ended, and remove its prepared items and its plan. Idempotent."""
        await batches.record_end(self._store.store, asked.ref, asked.progress)
        for prefix in (batches.prepared_prefix(asked.ref), batches.plan_prefix(asked.ref)):
            names = [name async for name in self._store.store.list(prefix)]
            for name in names:
                await self._store.store.delete(name)

    async def _states(self, asked: Close, number: int) -> dict[int, bytes]:
        """The latest state of each prepared item of an input object."""
        states: dict[int, bytes] = {}
        for round_ in _ROUNDS:
            name = batches.prepared_name(asked.ref, object_name(round_, number))
            for record in await self._store.records(name):
                states.setdefault(record.index, record.outcome.prepared.state)
        return states
