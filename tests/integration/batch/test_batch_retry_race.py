"""Two calls that run failed items again at the same time: the later one leaves the run of the earlier one alone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

from tenth.batch.v1 import batch_pb2, stored_pb2

from services.batch import batches
from services.batch.creating import Creation
from services.batch.objects import write_records
from services.batch.objects_directory import DirectoryStore
from services.batch.refs import BatchRef
from services.batch.retrying import Retrying
from services.batch.viewing import View, Views
from tests.integration.batch.batch_rig import result

FIRST, SECOND = BatchRef("acme", "b"), BatchRef("acme", "b", 2)


class Slow(DirectoryStore):
    """A store in which something happens while the results of the run before are listed."""

    other: Retrying | None = None

    async def list(self, prefix: str, after: str = "") -> AsyncIterator[str]:
        other, self.other = self.other, None
        if other is not None and prefix == batches.results_prefix("acme", "b"):
            await other.retry("acme", "b")
            await self.put(batches.result_name(SECOND, "a"), write_records([result(0, "answered by the second run")]))
        async for name in super().list(prefix, after):
            yield name


async def test_the_later_of_two_calls_changes_nothing(tmp_path: Path) -> None:
    store = Slow(tmp_path)
    stored = stored_pb2.StoredBatch(batch_id="b", tenant_id="acme", item_count=2, items_per_object=2, object_count=1)
    stored.header.completion_window.seconds = 60
    items = [stored_pb2.StoredItem(index=index) for index in range(2)]
    await store.put(batches.input_name("acme", "b", 0), write_records(items))
    ended = View(stored, (stored_pb2.StoredRun(run=1, started=True),), batch_pb2.Batch(), ended=True)
    started: list[BatchRef] = []

    class Seen:
        async def look(self, *_: str) -> View:
            return ended

        async def start(self, ref: BatchRef) -> None:
            started.append(ref)
            run = await batches.read_run(store, ref)
            run.started = True
            await batches.write_one(store, batches.state_name(ref), run)

    seen: Any = Seen()
    retrying = Retrying(store, cast(Views, seen), cast(Creation, seen), lambda: 1)
    store.other = retrying
    await retrying.retry("acme", "b")
    assert started == [SECOND, SECOND]
    assert await batches.read_run_items(store, SECOND) == frozenset((0, 1)), "as the run that has begun knows them"
    assert (await batches.read_run(store, SECOND)).item_count == 2
