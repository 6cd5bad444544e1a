"""Reading and writing what a run makes: work to do, results, what they add up to."""

from __future__ import annotations

import asyncio
import tempfile
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from google.protobuf.message import Message
from tenth.batch.v1 import batch_pb2, stored_pb2
from tenth.orchestrator.v1 import orchestrator_pb2
from tenth.type.v1 import chat_pb2

from services.batch import batches
from services.batch.objects import ObjectNotFound, ObjectStore, read_records, write_records
from services.batch.refs import BatchRef
from services.batch.reports import LAYER_COUNT, Counts

_AT_ONCE = 16
_KEPT = 64


def count(counts: Counts, result: stored_pb2.StoredResult) -> None:
    """Add one result to the counts."""
    receipt = result.result.receipt
    if result.result.error_reason:
        counts.failed += 1
    else:
        counts.done += 1
        counts.shared += result.shared
        counts.cache_hits += receipt.facts.cache_hit and not result.shared
        if result.lane:
            counts.lanes[result.lane] = counts.lanes.get(result.lane, 0) + 1
    counts.actual_nano_usd += receipt.actual_nano_usd
    counts.overhead_nano_usd += receipt.overhead_nano_usd
    counts.baseline_nano_usd += receipt.baseline_nano_usd
    for saving in receipt.savings:
        if 1 <= saving.layer <= LAYER_COUNT:
            counts.savings[saving.layer - 1] += saving.saving_nano_usd


def succeeded(
    item: stored_pb2.StoredItem, finished: orchestrator_pb2.FinishedCompletion, lane: str, *, shared: bool = False
) -> stored_pb2.StoredResult:
    """The result of an answered item."""
    return stored_pb2.StoredResult(
        index=item.index,
        result=batch_pb2.StreamBatchResultsResponse(
            custom_id=item.custom_id, completion=finished.completion, receipt=finished.receipt
        ),
        lane=lane,
        shared=shared,
    )


def failed(
    item: stored_pb2.StoredItem,
    error: orchestrator_pb2.HalfError,
    finished: orchestrator_pb2.FinishedCompletion | None = None,
) -> stored_pb2.StoredResult:
    """The result of a failed item, with the receipt of what it spent, where there is one."""
    result = batch_pb2.StreamBatchResultsResponse(
        custom_id=item.custom_id, error_reason=error.reason, error_message=error.message
    )
    if finished is not None and finished.HasField("receipt"):
        result.receipt.CopyFrom(finished.receipt)
    return stored_pb2.StoredResult(index=item.index, result=result, retryable=error.retryable)


def temperature(request: chat_pb2.CompletionRequest) -> float | None:
    """The temperature that a request asks for, if any."""
    return request.sampling.temperature if request.sampling.HasField("temperature") else None


def reads_cache(request: chat_pb2.CompletionRequest) -> bool:
    """True when a request takes answers that others got."""
    return request.policy.cache_mode not in (chat_pb2.CACHE_MODE_OFF, chat_pb2.CACHE_MODE_WRITE)


@dataclass(slots=True)
class Tally:
    """Which items have results under some names, and what those add up to; each item counts once."""

    indexes: set[int] = field(default_factory=set)
    counts: Counts = field(default_factory=Counts)

    def take(self, results: Iterable[stored_pb2.StoredResult]) -> None:
        """Count the results of items that are new here."""
        for result in results:
            if result.index not in self.indexes:
                self.indexes.add(result.index)
                count(self.counts, result)


class RunStore:
    """The objects of runs, as activities use them."""

    def __init__(self, store: ObjectStore) -> None:
        self.store = store
        self._batches: dict[tuple[str, str], stored_pb2.StoredBatch] = {}

    async def batch(self, ref: BatchRef) -> stored_pb2.StoredBatch:
        """The batch of a run; it never changes, so it is kept."""
        key = (ref.tenant_id, ref.batch_id)
        found = self._batches.get(key)
        if found is None:
            found = await batches.read_batch(self.store, *key)
            if len(self._batches) >= _KEPT:
                self._batches.clear()
            self._batches[key] = found
        return found

    async def records(self, name: str) -> list[stored_pb2.StoredPrepared]:
        """The records of a prepared or plan object; none when it is not there."""
        try:
            return list(read_records(await self.store.get(name), stored_pb2.StoredPrepared))
        except ObjectNotFound:
            return []

    async def indexes(self, name: str) -> set[int]:
        """The places that a StoredRunItems object names; none when it is not there."""
        try:
            return set((await batches.read_one(self.store, name, stored_pb2.StoredRunItems)).indexes)
        except ObjectNotFound:
            return set()

    async def put(self, name: str, records: Iterable[Message]) -> None:
        """Write an object."""
        await self.store.put(name, write_records(records))

    async def work(
        self, ref: BatchRef, name: str, done: set[int], *, of_deleted_users: bool = False
    ) -> list[stored_pb2.StoredPrepared]:
        """What is left of a plan object: not done, and, unless told otherwise, of no deleted user."""
        found = await self.records(batches.plan_name(ref, name))
        gone: frozenset[str] = frozenset()
        if not of_deleted_users:
            gone = await batches.read_deleted_users(self.store, ref.tenant_id, ref.batch_id)
        return [one for one in found if one.index not in done and not _is_of(one.item, gone)]

    async def tally(self, ref: BatchRef, beginnings: Sequence[str]) -> Tally:
        """What is there of results whose names in the run begin so."""
        result = Tally()
        for beginning in beginnings:
            prefix = batches.result_name(ref, beginning).removesuffix(".pb")
            async for name in self.store.list(prefix):
                result.take(read_records(await self.store.get(name), stored_pb2.StoredResult))
        return result

    async def write_results(
        self, ref: BatchRef, name: str, results: Sequence[stored_pb2.StoredResult], users: Mapping[int, str]
    ) -> None:
        """Write results, less those of deleted users; those of gathered requests also by their ids.

        ``users``: the end user of each item that names one.
        """
        batch = await self.batch(ref)
        gone = await batches.read_deleted_users(self.store, ref.tenant_id, ref.batch_id) if users else frozenset()
        kept = [result for result in results if users.get(result.index, "") not in gone or not users.get(result.index)]
        if not kept:
            return
        await self.put(batches.result_name(ref, name), kept)
        if batch.gathered:
            for start in range(0, len(kept), _AT_ONCE):
                await asyncio.gather(*(self._by_request(ref, one) for one in kept[start : start + _AT_ONCE]))

    async def _by_request(self, ref: BatchRef, result: stored_pb2.StoredResult) -> None:
        # A gathered request's custom_id is its request_id.
        name = batches.queued_result_name(ref.tenant_id, result.result.custom_id)
        await batches.write_one(self.store, name, result)


def users_of(items: Iterable[stored_pb2.StoredItem]) -> dict[int, str]:
    """The end users that items name, by place."""
    return {item.index: item.request.user_id for item in items if item.request.user_id}


def _is_of(item: stored_pb2.StoredItem, users: frozenset[str]) -> bool:
    return bool(item.request.user_id) and item.request.user_id in users


class Spill:
    """Records in a temporary file of this machine, read again by their number: a batch need not fit into memory."""

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile(prefix="tenth-batch-")  # noqa: SIM115  (closed by __exit__)
        self._ends = array("Q", [0])

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._ends) - 1

    def append(self, content: bytes) -> int:
        """Keep a record; its number."""
        self._file.seek(self._ends[-1])
        self._file.write(content)
        self._ends.append(self._ends[-1] + len(content))
        return len(self) - 1

    def read(self, number: int) -> bytes:
        """A record."""
        self._file.seek(self._ends[number])
        return self._file.read(self._ends[number + 1] - self._ends[number])
