"""The batch service on a loopback port, on a real Temporal, with a stand-in workflow that the test steers."""

from __future__ import annotations

import asyncio
import json
import os
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from temporalio import workflow
from temporalio.worker import Worker
from tenth.batch.v1 import batch_pb2, stored_pb2
from tenth.batch.v1.batch_pb2_grpc import BatchServiceStub, add_BatchServiceServicer_to_server
from tenth.type.v1 import chat_pb2

from mesh.auth import Identity
from mesh.testing import TEST_IDENTITY, dial, running
from services.batch import batches
from services.batch.composing import Composer
from services.batch.creating import Creation
from services.batch.deleting import Deletion
from services.batch.gathering import GatherWorkflow
from services.batch.intake import Limits
from services.batch.objects import ObjectStore, open_store, write_records
from services.batch.queueing import Queue
from services.batch.refs import PROGRESS_MEMO, BatchRef, Progress, State
from services.batch.results import Results
from services.batch.retrying import Retrying
from services.batch.servicer import BatchServicer
from services.batch.settings import BatchSettings
from services.batch.sweeping import Sweeper
from services.batch.temporal import Temporal
from services.batch.viewing import Views


@workflow.defn(name="BatchWorkflow", sandboxed=False)
class StandIn:
    """Stands in for the batch workflow: tells the progress that it is told, ends when that has ended."""

    def __init__(self) -> None:
        self._progress = Progress()
        self._changed = False

    @workflow.signal
    def tell(self, progress: Progress) -> None:
        self._progress = progress
        self._changed = True

    @workflow.signal
    def cancel(self) -> None:
        self._progress = replace(self._progress, state=State.CANCELLED)
        self._changed = True

    @workflow.run
    async def run(self, ref: BatchRef) -> Progress:
        while True:
            await workflow.wait_condition(lambda: self._changed)
            self._changed = False
            if self._progress.state == "broken":
                raise RuntimeError("a defect")
            workflow.upsert_memo({PROGRESS_MEMO: self._progress})
            if self._progress.state not in (State.RUNNING, State.CANCELLING):
                return self._progress


@dataclass
class Rig:
    """A service with everything behind it."""

    address: str
    folder: Path
    settings: BatchSettings
    store: ObjectStore
    temporal: Temporal
    creation: Creation
    sweeper: Sweeper
    clock: Clock
    stub: Any = field(init=False)  # Its generated types are of the blocking kind.

    def names(self, prefix: str = "") -> list[str]:
        """What the store holds."""
        root = self.folder / "objects"
        found = [os.path.relpath(os.path.join(at, name), root) for at, _, names in os.walk(root) for name in names]
        return sorted(name for name in found if name.startswith(prefix))

    async def tell(self, batch_id: str, run: int = 1, **progress: Any) -> None:
        """Have the stand-in tell how far it is."""
        client = await self.temporal.client()
        workflow_id = f"batch-{batch_id}" if run == 1 else f"batch-{batch_id}-r{run}"
        await client.get_workflow_handle(workflow_id).signal("tell", Progress(**progress))

    async def results(self, ref: BatchRef, name: str, told: dict[int, str]) -> None:
        """Write a result object: by index the answer, or an error where the text begins with "!"."""
        await self.store.put(batches.result_name(ref, name), write_records(result(*one) for one in told.items()))

    async def until(self, batch_id: str, holds: Callable[[batch_pb2.Batch], bool]) -> batch_pb2.Batch:
        """The batch as soon as something holds of it."""
        async with asyncio.timeout(20):
            while True:
                request = batch_pb2.GetBatchRequest(batch_id=batch_id)
                batch: batch_pb2.Batch = (await self.stub.GetBatch(request, timeout=10)).batch
                if holds(batch):
                    return batch
                await asyncio.sleep(0.02)

    async def create(self, items: Iterable[batch_pb2.BatchItem], **head: Any) -> batch_pb2.CreateBatchResponse:
        """Create a batch of items."""
        parts = [batch_pb2.CreateBatchRequest(item=one) for one in items]
        return await self.send(parts, **head)

    async def send(self, parts: Iterable[batch_pb2.CreateBatchRequest], **head: Any) -> batch_pb2.CreateBatchResponse:
        """Create a batch of these parts, after a head."""

        async def stream() -> AsyncIterator[batch_pb2.CreateBatchRequest]:
            yield batch_pb2.CreateBatchRequest(header=header(**head))
            for part in parts:
                yield part

        answer: batch_pb2.CreateBatchResponse = await self.stub.CreateBatch(stream(), timeout=60)
        return answer

    async def stream(self, batch_id: str, *, in_input_order: bool = False) -> list[tuple[str, str]]:
        """All results, each custom_id with its text or "!" and its reason."""
        request = batch_pb2.StreamBatchResultsRequest(batch_id=batch_id, in_input_order=in_input_order)
        return [read(one) async for one in self.stub.StreamBatchResults(request, timeout=30)]


class Clock:
    """The time, and how much later it is said to be."""

    def __init__(self) -> None:
        self.later_seconds = 0.0

    def __call__(self) -> int:
        return time.time_ns() + int(self.later_seconds * 1e9)


async def wait_for(holds: Callable[[], bool]) -> None:
    """Return as soon as something holds."""
    async with asyncio.timeout(20):
        while True:
            if holds():
                return
            await asyncio.sleep(0.02)


@asynccontextmanager
async def batch_service(
    tmp_path: Path,
    temporal_address: str,
    *,
    identity: Identity = TEST_IDENTITY,
    store: ObjectStore | None = None,
    **changes: Any,
) -> AsyncIterator[Rig]:
    """Serve the batch service; its task queue is its own."""
    queue_name = changes.pop("task_queue_prefix", f"q-{uuid.uuid4().hex}")
    settings = BatchSettings(
        temporal_address=temporal_address,
        task_queue_prefix=queue_name,
        follow_seconds=0.02,
        follow_longest_seconds=0.1,
        temporal_timeout_seconds=changes.pop("temporal_timeout_seconds", 5),
        **changes,
    )
    store = store or open_store(str(tmp_path / "objects"))
    clock, temporal = Clock(), Temporal(settings)
    views = Views(store, temporal, clock, settings.result_retention_days)
    limits = Limits(**settings.model_dump(include=set(Limits.__slots__)))
    creation = Creation(store, temporal, limits, clock, lambda: uuid.uuid4().hex)
    retrying = Retrying(store, views, creation, clock)
    deletion = Deletion(store)
    queue = Queue(store, temporal, views, settings, clock)
    results = Results(store, views, tmp_path / "streams", settings.follow_seconds, settings.follow_longest_seconds)
    sweeper = Sweeper(store, views, creation, deletion, queue, settings, clock)
    servicer = BatchServicer(creation, views, results, retrying, deletion, queue, temporal)
    name = "tenth.batch.v1.BatchService"
    async with running(add_BatchServiceServicer_to_server, servicer, name, tmp_path) as address:
        rig = Rig(address, tmp_path, settings, store, temporal, creation, sweeper, clock)
        async with dial(address, identity) as channel:
            rig.stub = BatchServiceStub(channel)
            yield rig


@asynccontextmanager
async def worker(rig: Rig, *activities: Callable[..., Any]) -> AsyncIterator[None]:
    """A real worker with the stand-in, and with what gathers."""
    composer = Composer(rig.store, rig.settings.items_per_object, rig.clock)
    async with Worker(
        await rig.temporal.client(),
        task_queue=rig.settings.task_queue_prefix,
        workflows=[StandIn, GatherWorkflow],
        activities=[composer.compose_batch, *activities],
    ):
        yield


def header(**fields: Any) -> batch_pb2.BatchHeader:
    """A head with a new request_id and an hour's window."""
    made = batch_pb2.BatchHeader(**({"request_id": str(uuid.uuid4())} | fields))
    if not made.HasField("completion_window"):
        made.completion_window.seconds = 3600
    return made


def item(custom_id: str, text: str = "Hello?", **fields: Any) -> batch_pb2.BatchItem:
    """An item that asks something."""
    return batch_pb2.BatchItem(custom_id=custom_id, request=request(text, **fields))


def request(text: str = "Hello?", **fields: Any) -> chat_pb2.CompletionRequest:
    """A request that asks something."""
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=text)])
    return chat_pb2.CompletionRequest(messages=[message], **fields)


def jsonl(count: int, bad: Iterable[int] = ()) -> bytes:
    """A file of lines; the bad ones, from 1, say a wrong role."""
    wrong = set(bad)
    lines = []
    for number in range(1, count + 1):
        role = "king" if number in wrong else "user"
        body = {"model": "gpt-4o", "messages": [{"role": role, "content": f"What is {number} plus {number}?"}]}
        url = "/v1/chat/completions"
        lines.append(json.dumps({"custom_id": f"q{number}", "method": "POST", "url": url, "body": body}))
    return "\n".join(lines).encode()


def pieces(content: bytes, size: int) -> list[batch_pb2.CreateBatchRequest]:
    """A file in pieces."""
    return [batch_pb2.CreateBatchRequest(jsonl=content[start : start + size]) for start in range(0, len(content), size)]


def result(index: int, text: str) -> stored_pb2.StoredResult:
    """One stored result; "!REASON" is a failure."""
    made = batch_pb2.StreamBatchResultsResponse(custom_id=f"q{index + 1}")
    if text.startswith("!"):
        made.error_reason = text[1:]
    else:
        made.completion.message.parts.add(text=text)
    return stored_pb2.StoredResult(index=index, result=made)


def read(told: batch_pb2.StreamBatchResultsResponse) -> tuple[str, str]:
    """A result as custom_id and text, or "!" and its reason."""
    if told.error_reason:
        return told.custom_id, f"!{told.error_reason}"
    return told.custom_id, told.completion.message.parts[0].text
