"""Runs the router: ``python -m services.router``."""

from __future__ import annotations

import random
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
from services.router import wiring
from services.router.catalog import CatalogReader
from services.router.confidence import read_confidence
from services.router.decide import Decider
from services.router.exploration import SpendAccount
from services.router.files import rules_file
from services.router.learning import Learning
from services.router.llm import LlmClassifier, LlmJudge
from services.router.outcomes import RequestMemory
from services.router.redecide import replayer
from services.router.served import ServedModels
from services.router.servicer import RouterServicer
from services.router.settings import RouterSettings


async def main() -> None:
    """Wire and serve."""
    mesh, settings = load(MeshSettings), load(RouterSettings)
    parse = CatalogReader(lambda: datetime.now(UTC))
    try:
        catalog = WatchedFile(settings.catalog_file, parse)
    except (CatalogError, OSError) as error:
        raise SystemExit(f"setting TENTH_ROUTER_CATALOG_FILE: {error}") from None
    rules, knowledge = rules_file(settings.rules_file), wiring.knowledge_of(settings)
    rules_now = wiring.current_rules(rules)
    wiring.warn(catalog.current, rules_now(), knowledge)
    key = read_key(mesh.identity_key_file)
    async with AsyncExitStack() as stack:
        telemetry = start_telemetry("router", mesh)
        stack.callback(telemetry.close)
        channel = await stack.enter_async_context(
            connect(settings.inference_address, mesh, telemetry, Signer(key, "router"))
        )
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        health, memory = wiring.health_of(settings), RequestMemory(settings.request_memory_entries)
        log = await wiring.opened_log(settings, mesh.data_dir, stack)
        wiring.watch(stack, catalog.watch(settings.catalog_check_seconds))
        wiring.watch(stack, ServedModels(stub, health, settings.health_poll_seconds).watch())
        if rules is not None:
            wiring.watch(stack, rules.watch(settings.rules_check_seconds))
        judge = LlmJudge(LlmClassifier(stub, settings.classifier_timeout_seconds), memory, lambda: str(uuid.uuid4()))
        decider = Decider(
            lambda: catalog.current,
            rules_now,
            knowledge,
            health,
            judge,
            SpendAccount(),
            wiring.decider_settings(settings),
            random.random,
        )
        learning = Learning(
            log,
            memory,
            lambda: catalog.current,
            parse,
            replayer(knowledge, rules_now),
            lambda: wiring.training_of(knowledge.heads),
            settings.report_entries,
        )
        servicer = RouterServicer(catalog, decider, learning, health, read_confidence())
        server = MeshServer(mesh, telemetry, Authenticator(mesh.callers_file, key), {})
        server.add(router_pb2_grpc.add_RouterServiceServicer_to_server, servicer, "tenth.router.v1.RouterService")
        await server.serve()


if __name__ == "__main__":
    run(main())
