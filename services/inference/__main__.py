"""Runs inference: ``python -m services.inference``."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from contextlib import AsyncExitStack
from functools import partial

from tenth.inference.v1 import inference_pb2_grpc
from tenth.ledger.v1 import ledger_pb2_grpc

from mesh.auth import Authenticator, Signer, read_key
from mesh.channel import connect
from mesh.process import run
from mesh.server import MeshServer
from mesh.settings import MeshSettings, load
from mesh.telemetry import start_telemetry
from services.inference.attempts import AttemptDelivery, AttemptLog, DeliveryPace
from services.inference.engine_metrics import observe_engine
from services.inference.provider_batches import ProviderBatchServicer
from services.inference.servicer import InferenceServicer
from services.inference.serving import drain_local, drain_seconds, local_engine, open_models, read_catalog
from services.inference.settings import InferenceSettings
from services.inference.tokens import count_tokens
from services.inference.utilization import start_reporting
from services.inference.vllm_engine import Signals

HUNG = 75
"""Exit code of a process whose engine hangs (EX_TEMPFAIL of sysexits.h): its supervisor starts it again."""


async def main() -> None:
    """Wire and serve. A step of the engine that hangs cannot be ended in any other way than with the process."""
    mesh, settings = load(MeshSettings), load(InferenceSettings)
    catalog, local = read_catalog(settings)
    key = read_key(mesh.identity_key_file)
    changed, stop = asyncio.Event(), asyncio.Event()
    async with AsyncExitStack() as stack:
        telemetry = start_telemetry("inference", mesh)
        stack.callback(telemetry.close)
        attempts = AttemptLog(mesh.data_dir / "attempts.db", time.time, sync=settings.attempt_log_sync)
        stack.callback(attempts.close)
        ledger: ledger_pb2_grpc.LedgerServiceAsyncStub | None = None
        if settings.ledger_address:
            channel = await stack.enter_async_context(
                connect(settings.ledger_address, mesh, telemetry, Signer(key, "inference"))
            )
            pace = DeliveryPace(settings.delivery_interval_seconds)
            ledger = ledger_pb2_grpc.LedgerServiceStub(channel)
            delivery = AttemptDelivery(attempts, ledger, pace)
            stack.push_async_callback(delivery.finish)
            stack.callback(asyncio.create_task(delivery.run()).cancel)
        signals = Signals(changed=changed.set, hung=stop.set)
        served, pings = await open_models(catalog, local, settings, mesh.otlp_endpoint, stack, signals, mesh.data_dir)
        if ledger is not None:
            start_reporting(served.values(), settings, ledger, stack)
        servicer = InferenceServicer(served, attempts, telemetry, count_tokens, time.time)
        stack.push_async_callback(servicer.close)
        observe_engine(telemetry.meter, served.values())
        drain = partial(drain_local, served.values(), drain_seconds(settings, mesh.drain_seconds))
        authenticator = Authenticator(mesh.callers_file, key)
        server = MeshServer(mesh, telemetry, authenticator, pings, changed=changed, on_drain=drain)
        server.add(
            inference_pb2_grpc.add_InferenceServiceServicer_to_server,
            servicer,
            "tenth.inference.v1.InferenceService",
        )
        server.add(
            inference_pb2_grpc.add_ProviderBatchServiceServicer_to_server,
            ProviderBatchServicer(served),
            "tenth.inference.v1.ProviderBatchService",
        )
        await server.serve(stop)
    if (engine := local_engine(served.values())) is not None:
        # Everything is closed. An orderly exit would wait for a thread that hangs, and else spend ten seconds of a spot
        # machine's notice on collecting the engine's garbage.
        logging.shutdown()
        os._exit(HUNG if engine.engine.hung else 0)


if __name__ == "__main__":
    run(main())
