"""The local engine's options: what the settings say, and for the rest what fits the hardware."""

from __future__ import annotations

import logging
from typing import Any, Literal

from services.inference.adapters import Adapter
from services.inference.admission import QueueLimits
from services.inference.engine_plan import EnginePlan, ModelFacts, kv_bytes_per_token, plan_engine
from services.inference.hardware import Hardware
from services.inference.model_folder import FolderError, Scheme, declared_scheme, read_config, weight_bytes
from services.inference.models import Model
from services.inference.quantization import Recovery, Threshold
from services.inference.restarts import RestartPolicy
from services.inference.settings import InferenceSettings
from services.inference.vllm_load import EngineOptions

log = logging.getLogger("tenth.inference")


def engine_options(
    model: Model,
    settings: InferenceSettings,
    hardware: Hardware,
    otlp_endpoint: str,
    adapters: tuple[Adapter, ...] = (),
) -> EngineOptions:
    """Options for one model; says the plan in the log."""
    facts = model_facts(model, settings)
    plan = plan_engine(hardware, facts, settings.kv_cache_bytes)
    log.info("engine plan for %s (%s weights) on %s:", model.name, facts.scheme, hardware.name)
    for line in plan.lines():
        log.info("engine plan: %s", line)
    engine, reason = engine_kind(settings, hardware)
    log.info("engine plan: engine %s: %s", engine, reason)
    running = settings.max_running or int(plan.max_num_seqs.value)
    return EngineOptions(
        folder=settings.models_dir / model.provider_model,
        context_window=model.context_window,
        threads=settings.threads,
        spin_count=settings.spin_count,
        kv_cache_bytes=settings.kv_cache_bytes,
        max_running=running,
        compile=settings.compile,
        otlp_endpoint=otlp_endpoint,
        quantization=settings.quantization,
        arguments=engine_arguments(plan, settings),
        recovery=recovery(settings),
        hardware=hardware,
        step_seconds=settings.step_timeout_seconds,
        restart=RestartPolicy(settings.engine_restarts, settings.restart_backoff_seconds),
        limits=QueueLimits(
            running,
            settings.max_waiting,
            settings.kv_promise_ratio,
            settings.batch_queue_share,
            settings.queue_seconds,
        ),
        adapters=adapters,
        engine=engine,
    )


def engine_kind(settings: InferenceSettings, hardware: Hardware) -> tuple[Literal["thread", "async"], str]:
    """How the engine runs, and why."""
    if settings.engine != "auto":
        return settings.engine, "TENTH_INFERENCE_ENGINE says so"
    if hardware.gpu:
        return "async", "on a GPU the service's own Python would keep the next step waiting: a process has its own lock"
    return "thread", "on a CPU a second process would take a gigabyte and three times as long to start"


def model_facts(model: Model, settings: InferenceSettings) -> ModelFacts:
    """What the folder says; a folder that is absent or damaged says nothing (the engine refuses it with words)."""
    folder = settings.models_dir / model.provider_model
    try:
        config = read_config(folder)
        return ModelFacts(
            scheme=declared_scheme(config),
            context_window=model.context_window,
            weight_bytes=weight_bytes(folder),
            kv_bytes_per_token=kv_bytes_per_token(config),
        )
    except (FolderError, OSError):
        return ModelFacts(Scheme.NONE, model.context_window)


def engine_arguments(plan: EnginePlan, settings: InferenceSettings) -> dict[str, Any]:
    """vLLM's arguments (EngineArgs): the settings', and the plan's where a setting is left at automatic."""
    prefill = settings.chunked_prefill
    arguments: dict[str, Any] = {
        "kv_cache_dtype": settings.kv_cache_dtype or plan.kv_cache_dtype.value,
        "enable_chunked_prefill": plan.chunked_prefill.value if prefill == "auto" else prefill == "on",
    }
    if plan.gpu_memory_utilization is not None:
        arguments["gpu_memory_utilization"] = settings.gpu_memory_utilization or plan.gpu_memory_utilization.value
    return arguments


def recovery(settings: InferenceSettings) -> Recovery:
    """What is asked of a quantized model."""
    thresholds = {
        Scheme.INT8: Threshold(settings.int8_max_perplexity_ratio, settings.int8_min_agreement),
        Scheme.FP8: Threshold(settings.fp8_max_perplexity_ratio, settings.fp8_min_agreement),
        Scheme.INT4: Threshold(settings.int4_max_perplexity_ratio, settings.int4_min_agreement),
    }
    return Recovery(thresholds, settings.force_quantized)
