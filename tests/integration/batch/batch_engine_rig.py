"""A batch's engine on a real Temporal, with a real worker in this process or in others, and played layers."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from temporalio.client import Client, WorkflowHandle
from tenth.batch.v1 import stored_pb2
from tenth.inference.v1 import inference_pb2_grpc
from tenth.ledger.v1 import ledger_pb2_grpc
from tenth.orchestrator.v1 import orchestrator_pb2_grpc
from tenth.type.v1 import chat_pb2

from mesh.testing import KEY, dial, memory_telemetry
from services.batch import batches
from services.batch.activities import BatchActivities
from services.batch.calls import Layers as Stubs
from services.batch.composing import Composer
from services.batch.objects import ObjectStore, open_store, read_records, write_records
from services.batch.refs import BATCH_WORKFLOW, PROGRESS_MEMO, BatchRef, Progress, batch_workflow_id
from services.batch.settings import WorkerSettings
from services.batch.worker import Workers
from tests.integration.batch.batch_layers import LOCAL_MODEL, Layers, played

TENANT = "acme"
QUICK = {
    "heartbeat_seconds": 1.5,
    "poll_first_seconds": 0.05,
    "poll_longest_seconds": 0.2,
    "provider_least_seconds": 0.0,
    "check_least_seconds": 0.2,
    "reserve_seconds": 1.0,
    "drain_notice_seconds": 0.5,
    "near_same_least_seconds": 0.0,
    "local_models": LOCAL_MODEL,
}


def ask(
    text: str, *, model: str = "", temperature: float | None = None, system: str = "", user: str = ""
) -> chat_pb2.CompletionRequest:
    """A request."""
    request = chat_pb2.CompletionRequest(user_id=user)
    if system:
        request.messages.add(role=chat_pb2.ROLE_SYSTEM, parts=[chat_pb2.ContentPart(text=system)])
    request.messages.add(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=text)])
    request.policy.model = model
    if temperature is not None:
        request.sampling.temperature = temperature
    return request


def request_id(ref: BatchRef, index: int) -> str:
    """The request of an item, in a run."""
    first = uuid.uuid5(uuid.UUID(ref.batch_id), str(index))
    return str(first if ref.run == 1 else uuid.uuid5(first, f"run {ref.run}"))


@dataclass
class Engine:
    """What a test has in hand."""

    folder: Path
    store: ObjectStore
    client: Client
    temporal_address: str
    layers: Layers
    layers_address: str
    settings: WorkerSettings
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    async def take_in(
        self,
        requests: Sequence[chat_pb2.CompletionRequest],
        *,
        seconds: float = 3600,
        lanes: Sequence[str] = (),
        same: dict[int, int] | None = None,
        gathered: bool = False,
    ) -> BatchRef:
        """Store a batch as the service would. ``same``: places of equal questions, with the first one's."""
        ref, now, size = BatchRef(TENANT, uuid.uuid4().hex), time.time_ns(), 100
        items = []
        for index, request in enumerate(requests):
            item = stored_pb2.StoredItem(index=index, line=index + 1, custom_id=f"c{index}", request=request)
            item.request.request_id = request_id(ref, index)
            item.same_as_index = (same or {}).get(index, -1)
            if gathered:
                item.custom_id = item.request.request_id
            items.append(item)
        for number, start in enumerate(range(0, len(items), size)):
            name = batches.input_name(ref.tenant_id, ref.batch_id, number)
            await self.store.put(name, write_records(items[start : start + size]))
        batch = stored_pb2.StoredBatch(
            batch_id=ref.batch_id,
            tenant_id=TENANT,
            caller="tester",
            may_assert_user=True,
            item_count=len(items),
            items_per_object=size,
            object_count=-(-len(items) // size),
            gathered=gathered,
        )
        batch.header.lanes.extend(lanes)
        batch.create_time.FromNanoseconds(now)
        batch.deadline_time.FromNanoseconds(now + int(seconds * 1e9))
        await batches.write_one(self.store, batches.batch_name(TENANT, ref.batch_id), batch)
        await self.write_run(ref, len(items), seconds)
        return ref

    async def write_run(self, ref: BatchRef, item_count: int, seconds: float) -> None:
        """Store a run."""
        run = stored_pb2.StoredRun(run=ref.run, item_count=item_count)
        run.create_time.FromNanoseconds(time.time_ns())
        run.deadline_time.FromNanoseconds(time.time_ns() + int(seconds * 1e9))
        await batches.write_one(self.store, batches.state_name(ref), run)

    async def start(self, ref: BatchRef) -> WorkflowHandle[Any, Progress]:
        """Start a run's workflow."""
        return await self.client.start_workflow(
            BATCH_WORKFLOW,
            ref,
            id=batch_workflow_id(ref),
            task_queue=self.settings.task_queue_prefix,
            result_type=Progress,
            memo={PROGRESS_MEMO: Progress()},
        )

    async def run(self, ref: BatchRef, seconds: float = 30) -> Progress:
        """Run a batch to its end."""
        handle = await self.start(ref)
        return await asyncio.wait_for(handle.result(), seconds)

    async def results(self, ref: BatchRef) -> dict[int, stored_pb2.StoredResult]:
        """The latest result of each item; two different answers of one run fail the test."""
        found: dict[int, stored_pb2.StoredResult] = {}
        runs: dict[int, int] = {}
        async for name in self.store.list(batches.results_prefix(TENANT, ref.batch_id)):
            run = batches.run_of_result(name)
            for one in read_records(await self.store.get(name), stored_pb2.StoredResult):
                if runs.get(one.index) == run:
                    assert found[one.index].result == one.result, "finished twice, differently"
                found[one.index], runs[one.index] = one, run
        return found

    def spawn(self, **changes: Any) -> subprocess.Popen[bytes]:
        """A worker as a process of its own."""
        settings = {**self.settings.model_dump(exclude_none=True), **changes}
        env = {f"TENTH_BATCH_{name.upper()}": str(value) for name, value in settings.items()}
        key = self.folder / "identity.key"
        key.write_bytes(KEY)
        env |= {
            "TENTH_IDENTITY_KEY_FILE": str(key),
            "TENTH_CALLERS_FILE": str(self.folder / "callers.yaml"),
            "TENTH_DATA_DIR": str(self.folder),
            "TENTH_UNREADY_SECONDS": "0",
        }
        with (self.folder / "worker.log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "services.batch.worker"], env={**os.environ, **env}, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """End a worker at once."""
        process.send_signal(signal.SIGKILL)
        process.wait()

    def log(self) -> str:
        """What the workers said."""
        return (self.folder / "worker.log").read_text()


async def until(holds: Callable[[], Any], seconds: float = 20) -> None:
    """Wait for a condition."""
    async with asyncio.timeout(seconds):
        while True:
            if holds():
                return
            await asyncio.sleep(0.01)


async def connected(address: str) -> Client:
    """A client of a Temporal that has just been started: its port answers before it does."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await Client.connect(address)
            except RuntimeError:
                await asyncio.sleep(0.1)


@asynccontextmanager
async def engine(
    folder: Path, temporal_address: str, *, worker: bool = True, layers: Layers | None = None, **changes: Any
) -> AsyncIterator[Engine]:
    """An engine; ``worker``: with a worker in this process."""
    layers = layers or Layers()
    client = await connected(temporal_address)
    async with played(folder, layers) as address:
        settings = WorkerSettings(
            **{
                **QUICK,
                "task_queue_prefix": f"q-{uuid.uuid4().hex[:8]}",
                "store_url": str(folder / "objects"),
                "temporal_address": temporal_address,
                "orchestrator_address": address,
                "inference_address": address,
                "ledger_address": address,
                **changes,
            }
        )
        store = open_store(settings.store_url)
        made = Engine(folder, store, client, temporal_address, layers, address, settings)
        stop = asyncio.Event()
        running: asyncio.Task[None] | None = None
        async with dial(address) as channel:
            stubs = Stubs(
                orchestrator_pb2_grpc.CompletionHalvesServiceStub(channel),
                inference_pb2_grpc.InferenceServiceStub(channel),
                inference_pb2_grpc.ProviderBatchServiceStub(channel),
                ledger_pb2_grpc.LedgerServiceStub(channel),
            )
            if worker:
                activities = BatchActivities(store, stubs, settings, memory_telemetry("worker")[0])
                workers = Workers(client, settings, activities, Composer(store, 100, time.time_ns))
                workers.start()
                workers.serve_model(settings.local_models)
                running = asyncio.create_task(workers.wait(stop))
            try:
                yield made
            finally:
                if layers.gate is not None:
                    layers.gate.set()
                stop.set()
                if running is not None:
                    await running
                for process in made.processes:
                    if process.poll() is None:
                        made.kill(process)
        await store.close()
