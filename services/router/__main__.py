"""Runs the router: ``python -m services.router``."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import AsyncExitStack
from datetime import UTC, datetime

from tenth.inference.v1 import inference_pb2_grpc
from tenth.router.v1 import router_pb2_grpc

from mesh.auth import Authenticator, Signer, read_key
from mesh.catalog import CatalogError, WatchedFile
from mesh.channel import connect
from mesh.process import run
from mesh.server import MeshServer
from mesh.settings import MeshSettings, load
from mesh.telemetry import start_telemetry
from services.router.catalog import parse_catalog
from services.router.classifier import Thresholds
from services.router.confidence import read_confidence
from services.router.llm import LlmClassifier
from services.router.outcomes import OutcomeLog
from services.router.servicer import RouterServicer
from services.router.settings import RouterSettings


async def main() -> None:
    """Wire and serve."""
    mesh, settings = load(MeshSettings), load(RouterSettings)
    try:
        catalog = WatchedFile(settings.catalog_file, lambda text, name: parse_catalog(text, name, datetime.now(UTC)))
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
        servicer = RouterServicer(
            catalog,
            Thresholds(settings.simple_below, settings.complex_from, settings.quality_target),
            settings.strategy,
            LlmClassifier(inference_pb2_grpc.InferenceServiceStub(channel), settings.classifier_timeout_seconds),
            OutcomeLog(settings.outcome_log_entries),
            lambda: str(uuid.uuid4()),
            read_confidence(),
        )
        server = MeshServer(mesh, telemetry, Authenticator(mesh.callers_file, key), {})
        server.add(router_pb2_grpc.add_RouterServiceServicer_to_server, servicer, "tenth.router.v1.RouterService")
        await server.serve()


if __name__ == "__main__":
    run(main())
