"""Building the parts of the compressor whose shape depends on the settings."""

from __future__ import annotations

import time
import uuid
from contextlib import AsyncExitStack
from datetime import UTC, datetime

from tenth.inference.v1 import inference_pb2_grpc

from mesh.auth import Signer
from mesh.catalog import WatchedFile
from mesh.channel import connect
from mesh.settings import MeshSettings
from mesh.telemetry import Telemetry
from services.compressor.catalog import Model
from services.compressor.modes import OUTPUT, SUMMARY, TOOLS
from services.compressor.settings import CompressorSettings
from services.compressor.summarising import SummaryStep, SummaryTimes
from services.compressor.summary import SummarySettings, SummaryStore
from services.compressor.summary_step import Summaries
from services.compressor.tokenwise_inference import PromptScorer
from services.compressor.tokenwise_rpc import Tokenwise


def strategies_of(settings: CompressorSettings) -> list[str]:
    """The strategies that all modes but off have beside the usual ones."""
    switches = ((SUMMARY, settings.summary), (TOOLS, settings.tools), (OUTPUT, settings.output))
    return [name for name, on in switches if on]


async def inference_of(
    settings: CompressorSettings, mesh: MeshSettings, telemetry: Telemetry, signer: Signer, stack: AsyncExitStack
) -> inference_pb2_grpc.InferenceServiceAsyncStub | None:
    """The inference service, where its address is set."""
    if not settings.inference_address:
        return None
    channel = await stack.enter_async_context(connect(settings.inference_address, mesh, telemetry, signer))
    return inference_pb2_grpc.InferenceServiceStub(channel)


def tokenwise(
    settings: CompressorSettings, inference: inference_pb2_grpc.InferenceServiceAsyncStub | None
) -> Tokenwise:
    """Pruning, where there is a model to score texts."""
    scorer = None
    if inference is not None and settings.tokenwise_model:
        scorer = PromptScorer(
            inference,
            settings.tokenwise_model,
            settings.tokenwise_timeout_seconds,
            settings.tokenwise_window_characters,
        )
    return Tokenwise(scorer, lambda: uuid.uuid4().hex)


def summary_step(
    settings: CompressorSettings,
    inference: inference_pb2_grpc.InferenceServiceAsyncStub | None,
    catalog: WatchedFile[dict[str, Model]],
    stack: AsyncExitStack,
) -> SummaryStep:
    """The summaries; without inference none are made."""
    if settings.summary_model and settings.summary_model not in catalog.current:
        raise SystemExit(f"setting TENTH_COMPRESSOR_SUMMARY_MODEL: the catalogue has no model {settings.summary_model}")
    shape = SummarySettings(
        settings.summary_keep_turns, settings.summary_step_turns, most_output_tokens=settings.summary_most_output_tokens
    )
    store = SummaryStore(settings.summary_cache_mebibytes * 2**20)
    summaries = Summaries(shape, store, settings.summary_pause_seconds, time.monotonic)
    stack.push_async_callback(summaries.close)
    times = SummaryTimes(settings.summary_wait_seconds, settings.summary_timeout_seconds)
    return SummaryStep(
        inference,
        settings.summary_model,
        summaries,
        catalog,
        times,
        lambda: datetime.now(UTC),
        lambda: str(uuid.uuid4()),
    )
