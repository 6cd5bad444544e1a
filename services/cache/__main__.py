"""`python -m services.cache`: the wiring of the cache."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import AsyncExitStack
from random import SystemRandom

from tenth.cache.v1 import cache_pb2_grpc
from tenth.inference.v1 import inference_pb2_grpc
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # It ships no types.

from mesh.auth import Authenticator, Signer, read_key
from mesh.channel import connect
from mesh.process import run
from mesh.server import MeshServer
from mesh.settings import MeshSettings, load
from mesh.telemetry import start_telemetry
from services.cache.answers import AnswerCache
from services.cache.embedding import Embedder, load_encoder
from services.cache.feedback import Evidence
from services.cache.files import namespaces_file, weights
from services.cache.flights import FlightBoard
from services.cache.judging import Judging, judge_settings
from services.cache.namespaces import NamespacePolicy, Namespaces, Rules
from services.cache.policy import CachePolicy
from services.cache.reports import keeping_reports
from services.cache.servicer import Board, CacheServicer, piece_size
from services.cache.settings import CacheSettings
from services.cache.stores import make_store
from services.cache.verifier import WEIGHTS


async def serve(mesh: MeshSettings, settings: CacheSettings) -> None:
    """Run the cache until it is told to stop."""
    defaults = NamespacePolicy(**settings.model_dump(include=set(NamespacePolicy.__slots__)))
    rules = namespaces_file(settings.namespaces_file, defaults)
    async with AsyncExitStack() as stack:
        telemetry = start_telemetry("cache", mesh)
        stack.callback(telemetry.close)
        # One BLAS thread: more of them fight the model's own on the same cores.
        stack.enter_context(threadpool_limits(1))
        encoder = load_encoder(settings.models_dir, settings.embedder, settings.embedder_precision)
        embedder = Embedder(
            encoder, settings.embedder, settings.embed_batch_count, settings.embed_memory_count,
            settings.embed_queue_count, settings.embed_thread_count,
        )  # fmt: skip
        stack.push_async_callback(embedder.close)
        store = make_store(settings, mesh.data_dir, embedder.dimension)
        stack.push_async_callback(store.close)
        await store.open()
        policy = CachePolicy(**settings.model_dump(include=set(CachePolicy.__slots__)))
        namespaces = Namespaces(defaults, (lambda: rules.current) if rules is not None else Rules)
        verifier = weights(settings.weights_dir or WEIGHTS, embedder.version)
        evidence = Evidence(settings.expected_error)
        answers = AnswerCache(
            store, embedder, policy, time.time,
            verifier=verifier,
            error_factor=evidence.error_factor,
            max_entry_count=settings.max_entry_count,
            memory_entry_count=settings.memory_entry_count,
            memory_bytes=int(settings.memory_megabytes * 1_000_000),
            memory_seconds=settings.shared_store_memory_seconds if settings.qdrant_url else 0.0,
            namespaces=namespaces,
            max_entry_bytes=settings.max_entry_bytes,
            agreement_threshold=settings.answer_agreement_threshold,
        )  # fmt: skip

        reports = await stack.enter_async_context(
            keeping_reports(
                mesh.data_dir, evidence, answers, namespaces.of, settings.feedback_flush_seconds, telemetry.meter
            )
        )
        key = read_key(mesh.identity_key_file)
        inference = await stack.enter_async_context(
            connect(settings.inference_address, mesh, telemetry, Signer(key, "cache"))
        )
        judging = Judging(
            inference_pb2_grpc.InferenceServiceStub(inference), store, embedder, namespaces.of,
            judge_settings(settings), time.time, lambda: uuid.uuid4().hex, SystemRandom().random, telemetry.meter,
        )  # fmt: skip
        judge = asyncio.create_task(judging.run())
        stack.callback(judge.cancel)
        sweeper = asyncio.create_task(answers.sweep_for_ever(settings.sweep_seconds))
        stack.callback(sweeper.cancel)
        if rules is not None:
            watcher = asyncio.create_task(rules.watch(settings.namespaces_check_seconds))
            stack.callback(watcher.cancel)
        board: Board = FlightBoard(
            settings.lease_ttl_seconds, lambda: uuid.uuid4().hex, piece_size, settings.max_flight_count,
            settings.max_flight_bytes, settings.max_flights_bytes,
        )  # fmt: skip
        stack.callback(board.close)
        authenticator = Authenticator(mesh.callers_file, key)
        server = MeshServer(mesh, telemetry, authenticator, {"store": store.ping})
        servicer = CacheServicer(answers, board, policy, store.name, reports, judging)
        server.add(cache_pb2_grpc.add_CacheServiceServicer_to_server, servicer, "tenth.cache.v1.CacheService")
        await server.serve()


if __name__ == "__main__":
    run(serve(load(MeshSettings), load(CacheSettings)))
