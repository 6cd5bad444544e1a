"""A whole router servicer from its parts, for tests: real log, real catalogue, chance and health in the test's hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from tenth.inference.v1 import inference_pb2_grpc

from mesh.catalog import WatchedFile
from services.router.catalog import Catalog, parse_catalog
from services.router.classifier import Thresholds
from services.router.confidence import Confidence, ConfidenceMap
from services.router.decide import Decider, DeciderSettings, Knowledge
from services.router.decision import Strategy
from services.router.exploration import ExplorationShares, SpendAccount
from services.router.health import Health
from services.router.learning import Learning
from services.router.llm import LlmClassifier, LlmJudge
from services.router.outcomes import RequestMemory
from services.router.redecide import replayer
from services.router.rules import Rules
from services.router.servicer import RouterServicer
from services.router.sqlite import LogLimits, OutcomeLog
from services.router.wiring import training_of

THRESHOLDS = Thresholds(0.3, 0.62, 0.9)
NO_EXPLORATION = ExplorationShares(explore=0.0, audit=0.0)
CONFIDENCE = Confidence({}, ConfidenceMap("mean_margin", (0.0,), (0.25,)))


def parse(text: str, name: str) -> Catalog:
    return parse_catalog(text, name, datetime.now(UTC))


def router_servicer(
    log_path: Path,
    catalog: WatchedFile[Catalog],
    inference: inference_pb2_grpc.InferenceServiceAsyncStub,
    *,
    strategy: Strategy = Strategy.FEATURES,
    shadow: Strategy | None = None,
    shares: ExplorationShares = NO_EXPLORATION,
    knowledge: Knowledge | None = None,
    rules: Callable[[], Rules] = Rules,
    health: Health | None = None,
    confidence: Confidence = CONFIDENCE,
    random: Callable[[], float] = lambda: 0.999,
    parse_catalog: Callable[[str, str], Catalog] = parse,
    timeout_seconds: float = 2.0,
) -> tuple[RouterServicer, OutcomeLog]:
    """The servicer and its log, which the caller opens and closes."""
    knowledge = knowledge or Knowledge(THRESHOLDS)
    health = health or Health(time.monotonic, failure_count=3, down_seconds=2.0, max_down_seconds=60.0)
    log, memory = OutcomeLog(log_path, LogLimits(10_000, 86400.0, 1000), time.time), RequestMemory(100)
    decider = Decider(
        lambda: catalog.current,
        rules,
        knowledge,
        health,
        LlmJudge(LlmClassifier(inference, timeout_seconds), memory, lambda: "made-up"),
        SpendAccount(),
        DeciderSettings(strategy, shadow, shares),
        random,
    )
    learning = Learning(
        log,
        memory,
        lambda: catalog.current,
        parse_catalog,
        replayer(knowledge, rules),
        lambda: training_of(knowledge.heads),
        1000,
    )
    return RouterServicer(catalog, decider, learning, health, confidence), log
