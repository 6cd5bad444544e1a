"""The local engine's own figures as OpenTelemetry metrics, read when they are exported.

vLLM's Prometheus endpoint is not there in its process-less form; these are the ones that an operator acts on. Names are
ours: the GenAI conventions have none for a server's queue and KV cache.
"""

from __future__ import annotations

from collections.abc import Iterable

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from services.inference.served import Served
from services.inference.serving import local_engine
from services.inference.vllm import VllmBackend


def observe_engine(meter: Meter, served: Iterable[Served]) -> None:
    """Export the local engine's metrics for as long as the meter lives; without an engine there are none."""
    backend = local_engine(served)
    if backend is not None:
        _observe(meter, backend)


def _observe(meter: Meter, backend: VllmBackend) -> None:
    engine = backend.engine
    model = {"gen_ai.request.model": backend.provider_model}

    def sequences(_: CallbackOptions) -> Iterable[Observation]:
        counts = engine.counts
        yield Observation(counts.running, {**model, "tenth.state": "running"})
        yield Observation(counts.waiting, {**model, "tenth.state": "waiting"})

    def kv_usage(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(engine.counts.kv_usage, model)

    def kv_capacity(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(backend.admission.kv_tokens, model)

    def tokens(_: CallbackOptions) -> Iterable[Observation]:
        totals = engine.totals
        yield Observation(totals.prompt_tokens, {**model, "gen_ai.token.type": "input"})
        yield Observation(totals.output_tokens, {**model, "gen_ai.token.type": "output"})

    def prefix_hits(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(engine.totals.cached_tokens, model)

    def refusals(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(backend.admission.refused_count, model)

    def failures(_: CallbackOptions) -> Iterable[Observation]:
        yield Observation(engine.totals.failures, model)

    meter.create_observable_gauge(
        "tenth.engine.sequences", [sequences], unit="{sequence}", description="Sequences in the engine, by state"
    )
    meter.create_observable_gauge(
        "tenth.engine.kv_usage", [kv_usage], unit="1", description="Share of the KV cache in use"
    )
    meter.create_observable_gauge(
        "tenth.engine.kv_capacity", [kv_capacity], unit="{token}", description="Tokens that the KV cache holds"
    )
    meter.create_observable_counter(
        "tenth.engine.tokens", [tokens], unit="{token}", description="Prompt and output tokens of the engine"
    )
    meter.create_observable_counter(
        "tenth.engine.prefix_cache.hits",
        [prefix_hits],
        unit="{token}",
        description="Prompt tokens found in the prefix cache",
    )
    meter.create_observable_counter(
        "tenth.engine.refusals",
        [refusals],
        unit="{request}",
        description="Requests refused for a full queue or a late deadline",
    )
    meter.create_observable_counter(
        "tenth.engine.failures", [failures], unit="{failure}", description="Times that the engine failed or hung"
    )
