"""Runs a worker: ``python -m services.batch.worker``. As many as one likes, on any machines, spot ones too.

It serves task queues by lane and model, and gRPC health on TENTH_LISTEN. SIGTERM, or a spot machine's notice, drains
it: nothing new is begun, what runs gets TENTH_BATCH_DRAIN_NOTICE_SECONDS, the rest goes to another worker.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from typing import Any

from temporalio.client import Client
from temporalio.worker import Worker
from tenth.inference.v1 import inference_pb2, inference_pb2_grpc
from tenth.ledger.v1 import ledger_pb2_grpc
from tenth.orchestrator.v1 import orchestrator_pb2_grpc

from mesh.auth import Authenticator, Identity, Signer, read_key, set_identity
from mesh.channel import MeshChannel, connect
from mesh.errors import TenthError
from mesh.process import run
from mesh.server import MeshServer
from mesh.settings import MeshSettings, load
from mesh.telemetry import start_telemetry
from services.batch.activities import BatchActivities
from services.batch.calls import Layers
from services.batch.composing import Composer
from services.batch.gathering import GatherWorkflow
from services.batch.objects import open_store
from services.batch.policy import LOCAL, ONLINE, PROVIDER_LANES
from services.batch.preemption import Notice, parse, watch
from services.batch.refs import lane_queue
from services.batch.settings import WorkerSettings
from services.batch.temporal import Temporal
from services.batch.workflow import BatchWorkflow

log = logging.getLogger("tenth.batch.worker")
CONTROL = "control"
_LANES = (CONTROL, LOCAL, *PROVIDER_LANES, ONLINE)
_FINISH_SECONDS = 10.0
"""Beyond the notice: for the second half and the objects of what has ended."""
_CONNECT_PAUSE_SECONDS = 1.0
_OWN_BACKEND = "vllm"


class Workers:
    """The Temporal workers of this process: one for each task queue."""

    def __init__(
        self, client: Client, settings: WorkerSettings, activities: BatchActivities, composer: Composer
    ) -> None:
        """Raises ValueError for a lane that there is not."""
        self.lanes = _names(settings.worker_lanes)
        if unknown := set(self.lanes) - set(_LANES):
            raise ValueError(f"no lanes {sorted(unknown)}; there are {', '.join(_LANES)}")
        self._client = client
        self._settings = settings
        self._activities = activities
        self._composer = composer
        self._running: dict[str, asyncio.Task[None]] = {}
        self._workers: list[Worker] = []

    def start(self) -> None:
        """Serve the queues that are known from the start."""
        prefix, settings = self._settings.task_queue_prefix, self._settings
        for lane in self.lanes:
            if lane == CONTROL:
                activities = [*self._activities.control, self._composer.compose_batch]
                self._serve(prefix, activities, 2 * settings.prepare_parallel + 8, [BatchWorkflow, GatherWorkflow])
            elif lane in PROVIDER_LANES:
                self._serve(lane_queue(prefix, lane), self._activities.provider, 2 * settings.provider_batches)
            elif lane == ONLINE:
                self._serve(lane_queue(prefix, lane), self._activities.chunk, 4 * settings.online_chunks)

    def serve_model(self, model: str) -> None:
        """Serve the queue of a self-hosted model too."""
        if LOCAL in self.lanes:
            queue = lane_queue(self._settings.task_queue_prefix, LOCAL, model)
            if queue not in self._running:
                self._serve(queue, self._activities.chunk, self._settings.local_chunks)

    async def wait(self, stop: asyncio.Event) -> None:
        """Until told to stop, or a worker fails; then drain. Raises what a worker failed with."""
        stopping = asyncio.create_task(stop.wait())
        try:
            while not stopping.done():
                awaited: set[asyncio.Task[Any]] = {stopping, *self._running.values()}
                done, _ = await asyncio.wait(awaited, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)
                if done - {stopping}:
                    break
        finally:
            stopping.cancel()
            stop.set()
            await asyncio.gather(*(worker.shutdown() for worker in self._workers))
            await asyncio.gather(*self._running.values())

    def _serve(
        self,
        queue: str,
        activities: Sequence[Callable[..., Any]],
        at_once: int,
        workflows: Sequence[type] = (),
    ) -> None:
        worker = Worker(
            self._client,
            task_queue=queue,
            activities=activities,
            workflows=workflows,
            max_concurrent_activities=at_once,
            # A worker that was killed has its workflows taken over at once.
            sticky_queue_schedule_to_start_timeout=timedelta(seconds=1),
            graceful_shutdown_timeout=timedelta(seconds=self._settings.drain_notice_seconds + _FINISH_SECONDS),
        )
        self._workers.append(worker)
        self._running[queue] = asyncio.create_task(worker.run())
        log.info("serving %s", queue)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


async def _follow_models(
    workers: Workers, inference: inference_pb2_grpc.InferenceServiceAsyncStub, settings: WorkerSettings
) -> None:
    """Serve the queues of the self-hosted models that inference serves, also of those that come later."""
    set_identity(Identity(tenant_id="", caller="batch", service="batch"))
    for model in _names(settings.local_models):
        workers.serve_model(model)
    while not settings.local_models and LOCAL in workers.lanes:
        try:
            request = inference_pb2.ListServedModelsRequest()
            answer = await inference.ListServedModels(request, timeout=settings.models_check_seconds)
            for served in answer.models:
                if served.backend == _OWN_BACKEND:
                    workers.serve_model(served.model)
        except TenthError as error:
            log.debug("inference does not say what it serves: %s", error)
            await asyncio.sleep(min(_CONNECT_PAUSE_SECONDS, settings.models_check_seconds))
            continue
        await asyncio.sleep(settings.models_check_seconds)


async def _connected(temporal: Temporal, stop: asyncio.Event) -> Client | None:
    """A connection to Temporal, however long it takes; None when told to stop before."""
    while not stop.is_set():
        try:
            return await temporal.client()
        except TenthError as error:
            log.warning("%s; trying again", error)
            await asyncio.sleep(_CONNECT_PAUSE_SECONDS)
    return None


def _notices(settings: WorkerSettings) -> tuple[Notice, ...]:
    if settings.preemption_file is None:
        return ()
    try:
        return parse(settings.preemption_file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise SystemExit(f"setting TENTH_BATCH_PREEMPTION_FILE: {error}") from None


def _layers(channels: Iterator[MeshChannel]) -> Layers:
    orchestrator, inference, ledger = channels
    return Layers(
        orchestrator_pb2_grpc.CompletionHalvesServiceStub(orchestrator),
        inference_pb2_grpc.InferenceServiceStub(inference),
        inference_pb2_grpc.ProviderBatchServiceStub(inference),
        ledger_pb2_grpc.LedgerServiceStub(ledger),
    )


async def main() -> None:
    """Wire and work."""
    mesh, settings = load(MeshSettings), load(WorkerSettings)
    notices, key = _notices(settings), read_key(mesh.identity_key_file)
    async with AsyncExitStack() as stack:
        telemetry = start_telemetry("batch-worker", mesh)
        stack.callback(telemetry.close)
        url = settings.store_url or str(mesh.data_dir / "objects")
        store = open_store(url, s3_endpoint_url=settings.s3_endpoint_url, s3_region=settings.s3_region)
        stack.push_async_callback(store.close)
        signer = Signer(key, "batch")
        addresses = (settings.orchestrator_address, settings.inference_address, settings.ledger_address)
        channels = [await stack.enter_async_context(connect(one, mesh, telemetry, signer)) for one in addresses]
        layers = _layers(iter(channels))
        temporal = Temporal(settings)
        pings = {"temporal": temporal.ping, "objects": store.ping}
        server = MeshServer(mesh, telemetry, Authenticator(mesh.callers_file, key), pings)
        stop = asyncio.Event()
        serving = asyncio.create_task(server.serve(stop))
        stack.push_async_callback(lambda: asyncio.gather(serving, return_exceptions=True))
        stack.callback(stop.set)
        watching = asyncio.create_task(watch(notices, lambda _: stop.set()))
        stack.callback(watching.cancel)
        client = await _connected(temporal, stop)
        if client is None:
            return
        activities = BatchActivities(store, layers, settings, telemetry)
        composer = Composer(store, settings.items_per_object, time.time_ns)
        try:
            workers = Workers(client, settings, activities, composer)
        except ValueError as error:
            raise SystemExit(f"setting TENTH_BATCH_WORKER_LANES: {error}") from None
        workers.start()
        following = asyncio.create_task(_follow_models(workers, layers.inference, settings))
        stack.callback(following.cancel)
        await workers.wait(stop)
        log.info("stopped")


if __name__ == "__main__":
    run(main())
