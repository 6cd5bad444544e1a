"""Runs the compressor: ``python -m services.compressor``."""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime

from tenth.cache.v1 import cache_pb2_grpc
from tenth.compressor.v1 import compressor_pb2_grpc

from mesh.auth import Authenticator, Signer, read_key
from mesh.catalog import CatalogError, WatchedFile
from mesh.channel import connect
from mesh.process import run
from mesh.server import MeshServer
from mesh.settings import MeshSettings, load
from mesh.telemetry import start_telemetry
from services.compressor.catalog import parse_catalog
from services.compressor.embeddings import Embeddings
from services.compressor.modes import plans
from services.compressor.prefixes import PrefixTracker
from services.compressor.servicer import CompressorServicer
from services.compressor.settings import CompressorSettings
from services.compressor.tokens import TokenCounters


async def main() -> None:
    """Wire and serve."""
    mesh, settings = load(MeshSettings), load(CompressorSettings)
    try:
        catalog = WatchedFile(settings.catalog_file, parse_catalog)
    except (CatalogError, OSError) as error:
        raise SystemExit(f"setting TENTH_COMPRESSOR_CATALOG_FILE: {error}") from None
    key = read_key(mesh.identity_key_file)
    async with AsyncExitStack() as stack:
        telemetry = start_telemetry("compressor", mesh)
        stack.callback(telemetry.close)
        channel = await stack.enter_async_context(
            connect(settings.cache_address, mesh, telemetry, Signer(key, "compressor"))
        )
        watcher = asyncio.create_task(catalog.watch(settings.catalog_check_seconds))
        stack.callback(watcher.cancel)
        counters = TokenCounters(settings.models_dir, settings.token_cache_mebibytes * 2**20)
        await asyncio.to_thread(counters.load, catalog.current.values())
        embeddings = Embeddings(
            cache_pb2_grpc.CacheServiceStub(channel),
            settings.embed_timeout_seconds,
            settings.embed_pause_seconds,
            settings.embedding_cache_entries,
            time.monotonic,
        )
        modes = plans(
            settings.safe_chunks,
            settings.balanced_chunks,
            settings.aggressive_chunks,
            settings.balanced_history_tokens,
            settings.aggressive_history_tokens,
        )
        prefixes = PrefixTracker(time.monotonic, settings.prefix_cache_entries)
        servicer = CompressorServicer(
            catalog, counters, modes, embeddings, settings.thread_bytes, prefixes, lambda: datetime.now(UTC)
        )
        server = MeshServer(mesh, telemetry, Authenticator(mesh.callers_file, key), {})
        register = compressor_pb2_grpc.add_CompressorServiceServicer_to_server
        server.add(register, servicer, "tenth.compressor.v1.CompressorService")
        await server.serve()


if __name__ == "__main__":
    run(main())
