"""Runs the router: ``python -m services.router``."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from functools import partial

from tenth.inference.v1 import inference_pb2_grpc
from tenth.router.v1 import router_pb2_grpc

from mesh.auth import Authenticator, Signer, read_key
from mesh.catalog import CatalogError, WatchedFile
from mesh.channel import connect
from mesh.process import run
from mesh.server import MeshServer
from mesh.settings import MeshSettings, load
from mesh.telemetry import start_telemetry
from services.router.catalog import Catalog, parse_catalog
from services.router.classifier import Thresholds
from services.router.feature_replay import feature_replayer
from services.router.learning import Learning, Training
from services.router.llm import LlmClassifier
from services.router.outcomes import RequestMemory
from services.router.servicer import RouterServicer
from services.router.settings import RouterSettings
from services.router.sqlite import LogLimits, OutcomeLog


async def main() -> None:
    """Wire and serve."""
    mesh, settings = load(MeshSettings), load(RouterSettings)

    def parse(text: str, name: str) -> Catalog:
        return parse_catalog(text, name, datetime.now(UTC))

    try:
        catalog = WatchedFile(settings.catalog_file, parse)
    except (CatalogError, OSError) as error:
        raise SystemExit(f"setting TENTH_ROUTER_CATALOG_FILE: {error}") from None
    key = read_key(mesh.identity_key_file)
    async with AsyncExitStack() as stack:
        telemetry = start_telemetry("router", mesh)
        stack.callback(telemetry.close)
        channel = await stack.enter_async_context(
            connect(settings.inference_address, mesh, telemetry, Signer(key, "router"))
        )
        watcher = asyncio.create_task(catalog.watch(settings.catalog_check_seconds))
        stack.callback(watcher.cancel)
        limits = LogLimits(
            settings.outcome_log_entries,
            settings.outcome_log_seconds,
            settings.outcome_queue_entries,
            settings.outcome_embeddings,
        )
        log = OutcomeLog(mesh.data_dir / "outcomes.sqlite", limits, time.time)
        try:
            await log.open()
        except OSError as error:
            raise SystemExit(f"setting TENTH_DATA_DIR: {error}") from None
        stack.push_async_callback(log.close)
        writer = asyncio.create_task(log.write_for_ever(settings.outcome_write_seconds))
        stack.callback(writer.cancel)
        thresholds = Thresholds(settings.simple_below, settings.complex_from, settings.quality_target)
        learning = Learning(
            log,
            RequestMemory(settings.request_memory_entries),
            lambda: catalog.current,
            parse,
            partial(feature_replayer, thresholds),
            Training,
            settings.report_entries,
        )
        servicer = RouterServicer(
            catalog,
            thresholds,
            settings.strategy,
            LlmClassifier(inference_pb2_grpc.InferenceServiceStub(channel), settings.classifier_timeout_seconds),
            learning,
            lambda: str(uuid.uuid4()),
        )
        server = MeshServer(mesh, telemetry, Authenticator(mesh.callers_file, key), {})
        server.add(router_pb2_grpc.add_RouterServiceServicer_to_server, servicer, "tenth.router.v1.RouterService")
        await server.serve()


if __name__ == "__main__":
    run(main())
