"""Wiring of the orchestrator: ``python -m services.orchestrator``."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from random import SystemRandom

from tenth.batch.v1 import batch_pb2_grpc
from tenth.cache.v1 import cache_pb2_grpc
from tenth.compressor.v1 import compressor_pb2_grpc
from tenth.inference.v1 import inference_pb2_grpc
from tenth.ledger.v1 import ledger_pb2_grpc
from tenth.orchestrator.v1 import orchestrator_pb2_grpc
from tenth.router.v1 import router_pb2_grpc

from mesh.auth import Authenticator, Signer, read_key
from mesh.channel import MeshChannel, connect
from mesh.process import run
from mesh.server import MeshServer
from mesh.settings import MeshSettings, load
from mesh.telemetry import Telemetry, start_telemetry
from services.orchestrator.admission import Admission
from services.orchestrator.background import Background
from services.orchestrator.explain import Explain
from services.orchestrator.flow import Flow
from services.orchestrator.generation import Generation
from services.orchestrator.halves import Halves
from services.orchestrator.halves_servicer import HalvesServicer
from services.orchestrator.handover import Handover
from services.orchestrator.outbox import Outbox
from services.orchestrator.receipts import Receipts
from services.orchestrator.runs import Runs
from services.orchestrator.servicer import OrchestratorServicer
from services.orchestrator.settings import OrchestratorSettings
from services.orchestrator.settlement import Settlement
from services.orchestrator.shadow import Shadow
from services.orchestrator.snapshot import Snapshot
from services.orchestrator.steps import Steps, Stubs

SERVICE = "tenth.orchestrator.v1.OrchestratorService"
HALVES = "tenth.orchestrator.v1.CompletionHalvesService"
RETRYABLE = {
    "batch": [("tenth.batch.v1.BatchService", name) for name in ("EnqueueCompletion", "GetQueuedCompletion")],
    "cache": [("tenth.cache.v1.CacheService", "ReleaseLease"), ("tenth.cache.v1.CacheService", "StoreCompletion")],
    "ledger": [("tenth.ledger.v1.LedgerService", name) for name in ("ReserveFunds", "ReleaseFunds")],
}


@asynccontextmanager
async def assemble(
    mesh: MeshSettings, settings: OrchestratorSettings, telemetry: Telemetry
) -> AsyncIterator[MeshServer]:
    """The orchestrator's server with everything behind it; leaving finishes runs, settles what can be settled."""
    async with AsyncExitStack() as stack:
        key = read_key(mesh.identity_key_file)
        signer = Signer(key, "orchestrator")

        async def dial(name: str, target: str, *, sharded: bool = False) -> MeshChannel:
            retryable = RETRYABLE.get(name, [])
            channel = connect(target, mesh, telemetry, signer, retryable=retryable, sharded=sharded)
            return await stack.enter_async_context(channel)

        async def batch_service() -> batch_pb2_grpc.BatchServiceAsyncStub | None:
            address = settings.batch_address
            return batch_pb2_grpc.BatchServiceStub(await dial("batch", address)) if address else None

        ledger = await dial("ledger", settings.ledger_address)
        shards = await dial("cache", settings.cache_address, sharded=True)
        cache = cache_pb2_grpc.CacheServiceStub(shards)
        router = router_pb2_grpc.RouterServiceStub(await dial("router", settings.router_address))
        compressor = compressor_pb2_grpc.CompressorServiceStub(await dial("compressor", settings.compressor_address))
        inference = inference_pb2_grpc.InferenceServiceStub(await dial("inference", settings.inference_address))
        stubs = Stubs(cache, router, compressor, ledger_pb2_grpc.LedgerServiceStub(ledger))

        outbox = Outbox(mesh.data_dir / "outbox.sqlite", settings.replay_ttl_seconds, time.time)
        stack.callback(outbox.close)
        settlement = await stack.enter_async_context(Settlement(stubs.ledger, outbox, settings))
        background, runs = Background(), Runs()
        stack.push_async_callback(background.drain, settings.background_cap_seconds)
        stack.push_async_callback(runs.drain)
        snapshot = Snapshot(stubs.ledger, router, mesh.data_dir, time.time)
        following = asyncio.create_task(snapshot.follow(settings.snapshot_interval_seconds))
        stack.callback(following.cancel)

        shadow = Shadow(inference, stubs.ledger, outbox, background, settings, telemetry.meter)
        admission = Admission(snapshot, settings, time.time, SystemRandom())
        steps, receipts = Steps(stubs, settings, snapshot, background), Receipts(outbox, time.time)
        flow = Flow(steps, Generation(inference), cache, receipts, background, settings, shadow)
        halves = HalvesServicer(Halves(admission, steps, receipts, outbox, cache, background, settings))
        servicer = OrchestratorServicer(
            admission,
            flow,
            runs,
            outbox,
            Explain(cache, router, compressor),
            cache,
            router,
            ledger_pb2_grpc.LedgerReadServiceStub(ledger),
            Handover(await batch_service(), settings.handover_cap_seconds),
            shards.replicas,
        )
        pings = {"snapshot": snapshot.ping, "settlement": settlement.ping}
        server = MeshServer(mesh, telemetry, Authenticator(mesh.callers_file, key), pings)
        server.add(orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server, servicer, SERVICE)
        server.add(orchestrator_pb2_grpc.add_CompletionHalvesServiceServicer_to_server, halves, HALVES)
        yield server


async def main() -> None:
    """Run until SIGTERM; then drain, finish background work, settle what can be settled."""
    mesh, settings = load(MeshSettings), load(OrchestratorSettings)
    telemetry = start_telemetry("orchestrator", mesh)
    try:
        async with assemble(mesh, settings, telemetry) as server:
            await server.serve()
    finally:
        telemetry.close()


if __name__ == "__main__":
    run(main())
