"""A batch's results: as they come, or in the order of its input. Each item is told once, by the last run that took it.

Memory holds one result object and a few bytes of each item. What cannot be told yet waits in a temporary file.
"""

from __future__ import annotations

import asyncio
import tempfile
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType

from tenth.batch.v1 import batch_pb2, stored_pb2

from mesh.errors import TenthError
from services.batch.batches import read_deletions, read_run_items, results_prefix, run_of_result
from services.batch.errors import Reason, store_damaged, store_full
from services.batch.objects import ObjectNotFound, ObjectStore, read_records
from services.batch.refs import BatchRef
from services.batch.viewing import Views

Sleep = Callable[[float], Awaitable[None]]


class Results:
    """Streams results. ``folder``: where temporary files may lie. ``follow_seconds``: between looks for new results;
    while none come that grows, up to ``follow_longest_seconds``.
    """

    def __init__(
        self,
        store: ObjectStore,
        views: Views,
        folder: Path,
        follow_seconds: float,
        follow_longest_seconds: float,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._store = store
        self._views = views
        self._folder = folder
        self._follow_seconds = follow_seconds
        self._follow_longest_seconds = follow_longest_seconds
        self._sleep = sleep

    async def stream(
        self, tenant_id: str, batch_id: str, *, in_input_order: bool
    ) -> AsyncIterator[batch_pb2.StreamBatchResultsResponse]:
        """Results until the batch has ended. Raises NOT_FOUND, UNAVAILABLE."""
        view = await self._views.look(tenant_id, batch_id)
        order = Order(view.stored.item_count, in_input_order=in_input_order)
        for run in range(2, view.ref.run + 1):
            order.takes(run, await read_run_items(self._store, BatchRef(tenant_id, batch_id, run)) or ())
        seen: set[str] = set()
        idle = 0
        with _Spill(self._folder) as spill:
            while True:
                order.drop(await self._deleted(tenant_id, batch_id))
                new = [name async for name in self._store.list(results_prefix(tenant_id, batch_id)) if name not in seen]
                for name in new:
                    seen.add(name)
                    for record in await self._read(name):
                        if record.index >= view.stored.item_count:
                            raise store_damaged(f"{name} tells of item {record.index}")
                        if order.is_due(record.index, run_of_result(name)):
                            yield record.result
                        elif order.is_wanted(record.index, run_of_result(name)):
                            order.keep(record.index, run_of_result(name), spill.write(record.result))
                    for place in order.ready():
                        yield spill.read(place)
                # The end was known before the list was read: nothing can have come since.
                if view.ended:
                    break
                idle = 0 if new else idle + 1
                if idle:
                    # Each look reads a list, objects and Temporal: one who waits for hours must not do so each second.
                    await self._sleep(follow_pause(idle, self._follow_seconds, self._follow_longest_seconds))
                try:
                    view = await self._views.look(tenant_id, batch_id)
                except TenthError as error:
                    if error.reason != Reason.TEMPORAL_UNAVAILABLE:
                        raise  # Temporal comes back; until then results come without it.
            for place in order.rest():
                yield spill.read(place)

    async def _read(self, name: str) -> Iterator[stored_pb2.StoredResult]:
        try:
            return read_records(await self._store.get(name), stored_pb2.StoredResult)
        except ObjectNotFound:
            return iter(())  # Deleted since the list was read: the batch has expired.

    async def _deleted(self, tenant_id: str, batch_id: str) -> set[int]:
        deletions = await read_deletions(self._store, tenant_id, batch_id)
        return {index for deletion in deletions for index in deletion.indexes}


def follow_pause(idle: int, first: float, longest: float) -> float:
    """Seconds until the next look for results, after ``idle`` looks in a row that found none: 1.5 times each time."""
    return min(first * 1.5 ** min(idle - 1, 40), max(first, longest))


class Order:
    """Which result may be told when; pure. Places are those of the temporary file."""

    def __init__(self, item_count: int, *, in_input_order: bool) -> None:
        self._in_order = in_input_order
        self._last_run = array("H", [1]) * item_count
        self._told = bytearray(item_count)
        self._kept_run = array("H", [0]) * item_count
        self._place = array("Q", [0]) * item_count
        self._next = 0

    def takes(self, run: int, indexes: Iterable[int]) -> None:
        """A later run takes these items again: what an earlier one said of them counts only if it says nothing."""
        for index in indexes:
            self._last_run[index] = run

    def drop(self, indexes: Iterable[int]) -> None:
        """These items are deleted: nothing is told of them, nor waited for."""
        for index in indexes:
            self._told[index] = 1

    def is_due(self, index: int, run: int) -> bool:
        """Whether the result is to be told at once; it then counts as told."""
        if self._told[index] or run < self._last_run[index] or (self._in_order and index != self._next):
            return False
        self._told[index] = 1
        self._next += self._in_order
        return True

    def is_wanted(self, index: int, run: int) -> bool:
        """Whether the result may be told later."""
        return not self._told[index] and run >= self._kept_run[index]

    def keep(self, index: int, run: int, place: int) -> None:
        """The result waits at a place."""
        self._kept_run[index] = run
        self._place[index] = place

    def ready(self) -> Iterator[int]:
        """Places of what can be told now, in order; it then counts as told."""
        while self._in_order and self._next < len(self._told):
            if not self._told[self._next]:
                if not self._kept_run[self._next] or self._kept_run[self._next] < self._last_run[self._next]:
                    return
                self._told[self._next] = 1
                yield self._place[self._next]
            self._next += 1

    def rest(self) -> Iterator[int]:
        """Places of what waits when nothing more comes, in input order."""
        for index, told in enumerate(self._told):
            if not told and self._kept_run[index]:
                yield self._place[index]


class _Spill:
    """Results in a file that nobody else sees and that is gone when this is left."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  # Closed in __exit__.
        self._end = 0

    def __enter__(self) -> _Spill:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def write(self, result: batch_pb2.StreamBatchResultsResponse) -> int:
        """Add a result; returns its place."""
        content = result.SerializeToString()
        place = self._end
        try:
            self._file.seek(place)
            self._file.write(len(content).to_bytes(8, "big") + content)
        except OSError as error:
            raise store_full(f"a temporary file: {error.strerror}") from error
        self._end += 8 + len(content)
        return place

    def read(self, place: int) -> batch_pb2.StreamBatchResultsResponse:
        """The result at a place."""
        self._file.seek(place)
        size = int.from_bytes(self._file.read(8), "big")
        return batch_pb2.StreamBatchResultsResponse.FromString(self._file.read(size))
