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
from services.compressor import weights, wiring
from services.compressor.catalog import parse_catalog
from services.compressor.correction_file import CorrectionFile
from services.compressor.corrections import Corrections
from services.compressor.documents import Documents
from services.compressor.embeddings import Embeddings
from services.compressor.history_weights import history_settings
from services.compressor.modes import plans
from services.compressor.prefixes import PrefixTracker
from services.compressor.servicer import CompressorServicer
from services.compressor.settings import CompressorSettings
from services.compressor.settled import SettledUsage
from services.compressor.tokens import TokenCounters
from services.compressor.vectors import PromptVectors, rough_tokens


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
        signer = Signer(key, "compressor")
        channel = await stack.enter_async_context(connect(settings.cache_address, mesh, telemetry, signer))
        watcher = asyncio.create_task(catalog.watch(settings.catalog_check_seconds))
        stack.callback(watcher.cancel)
        store = CorrectionFile(settings.corrections_file) if settings.corrections_file else None
        corrections = await asyncio.to_thread(store.load) if store else Corrections()
        counters = TokenCounters(settings.models_dir, settings.token_cache_mebibytes * 2**20, corrections)
        await asyncio.to_thread(counters.load, catalog.current.values())
        embeddings = Embeddings(
            cache_pb2_grpc.CacheServiceStub(channel),
            settings.embed_timeout_seconds,
            settings.embed_pause_seconds,
            settings.embedding_cache_entries,
            time.monotonic,
        )
        chunk_bytes = settings.chunk_cache_mebibytes * 2**20
        memory, rough = Documents(counters.plain, chunk_bytes), Documents(rough_tokens, chunk_bytes)
        also = wiring.strategies_of(settings)
        inference = await wiring.inference_of(settings, mesh, telemetry, signer, stack)
        servicer = CompressorServicer(
            catalog,
            counters,
            plans(settings.balanced_history_tokens, settings.aggressive_history_tokens, history_settings(), also),
            PromptVectors(embeddings, memory, rough, weights.load(), settings.embed_most_new),
            settings.thread_bytes,
            PrefixTracker(time.monotonic, settings.prefix_cache_entries),
            SettledUsage(corrections, store),
            lambda: datetime.now(UTC),
            wiring.summary_step(settings, inference, catalog, stack),
            wiring.tokenwise(settings, inference),
        )
        server = MeshServer(mesh, telemetry, Authenticator(mesh.callers_file, key), {})
        register = compressor_pb2_grpc.add_CompressorServiceServicer_to_server
        server.add(register, servicer, "tenth.compressor.v1.CompressorService")
        await server.serve()


if __name__ == "__main__":
    run(main())
