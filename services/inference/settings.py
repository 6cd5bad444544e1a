"""Settings of the inference service (environment TENTH_INFERENCE_*)."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.inference.engine_environment import SPIN_COUNT


class InferenceSettings(BaseSettings):
    """What is served, by what, and where attempts are reported."""

    model_config = SettingsConfigDict(env_prefix="TENTH_INFERENCE_", frozen=True, extra="ignore")

    catalog_file: Path = Field(default=Path("deploy/catalog.yaml"), description="The catalogue: providers and models")
    models_dir: Path = Field(default=Path(".models"), description="Directory of the local model folders")
    ledger_address: str = Field(
        default="", description="gRPC target of the ledger; empty: attempts are kept here until there is one"
    )
    sandbox_url: str = Field(
        default="",
        description="OpenAI base URL that plays every provider whose key is absent; empty: those are unavailable",
    )
    local_model: str = Field(
        default="",
        description="The catalogue model that this replica's engine serves; empty: the only one whose provider's "
        'backend is vllm; "none": no engine',
    )
    engine: Literal["auto", "thread", "async"] = Field(
        default="auto",
        description="How the local engine runs: thread: stepped by a thread of this process; async: vLLM's AsyncLLM, "
        "its core in a process of its own; auto: async on a GPU, thread on a CPU",
    )
    threads: int = Field(
        default=2, ge=1, description="Threads of the CPU engine; with its neighbours at most the cores, 1 or more"
    )
    spin_count: int = Field(
        default=SPIN_COUNT,
        ge=0,
        le=1_000_000,
        description="Rounds that a waiting thread of the CPU engine spins before it sleeps, 0..1000000; 0 where others "
        "keep its cores busy",
    )
    kv_cache_bytes: int = Field(
        default=512 * 1024 * 1024,
        ge=16 * 1024 * 1024,
        description="Memory of the engine's KV cache, bytes (CPU); one full context of SmolLM2 is 180 MiB in bfloat16",
    )
    max_waiting: int = Field(
        default=128, ge=0, le=100_000, description="Most requests that wait for a place in the local engine, 0..100000"
    )
    kv_promise_ratio: float = Field(
        default=4.0,
        ge=1,
        le=1000,
        description="Most tokens (prompt and largest output) that running and waiting requests may have together, as a "
        "multiple of what the KV cache holds, 1..1000",
    )
    batch_queue_share: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Share of the waiting room that batch work may fill, 0..1; interactive work finds the rest",
    )
    queue_seconds: float = Field(
        default=60.0, gt=0, le=86_400, description="Longest wait for the engine's first token, seconds, up to 86400"
    )
    step_timeout_seconds: float = Field(
        default=60.0,
        gt=0,
        le=3600,
        description="Time after which a step of the engine counts as hung and the process ends with code 75 to be "
        "started again, seconds, up to 3600",
    )
    engine_restarts: int = Field(
        default=5, ge=0, le=1000, description="Most restarts of a failed engine within ten minutes, 0..1000"
    )
    restart_backoff_seconds: float = Field(
        default=0.5,
        ge=0,
        le=60,
        description="Wait before a failed engine is started again, seconds, 0..60; twice as long each further time",
    )
    notice_seconds: float = Field(
        default=25.0,
        ge=0,
        le=3600,
        description="Time that running generations of the local engine get after SIGTERM before they are handed back, "
        "seconds, 0..3600; at most TENTH_DRAIN_SECONDS less half a second",
    )
    max_running: int = Field(
        default=0,
        ge=0,
        description="Most sequences that the engine works on at once; 0: by the hardware (CPU: 32)",
    )
    kv_cache_dtype: str = Field(
        default="",
        pattern="^(|auto|bfloat16|fp8|fp8_e4m3|fp8_e5m2)$",
        description='How keys and values are kept: "auto" as the weights, "fp8", ...; empty: by the hardware',
    )
    gpu_memory_utilization: float = Field(
        default=0.0, ge=0.0, lt=1.0, description="Share of the GPU's memory for the engine, 0..1; 0: by the hardware"
    )
    chunked_prefill: Literal["auto", "on", "off"] = Field(
        default="auto", description="Long prompts read in pieces between others' steps; auto: by the hardware"
    )
    quantization: str = Field(
        default="",
        pattern="^[a-z0-9_]*$",
        description="vLLM's online quantization of unquantized weights at load, as fp8 on GPU; empty: none",
    )
    force_quantized: bool = Field(
        default=False, description="Serve a quantized model whose evaluation is absent or below the threshold"
    )
    int8_max_perplexity_ratio: float = Field(
        default=1.07, ge=1, description="Perplexity of an int8 model over the unquantized one's, at most"
    )
    int8_min_agreement: float = Field(
        default=0.87, ge=0, le=1, description="Share of tokens on which it agrees with the unquantized one, at least"
    )
    fp8_max_perplexity_ratio: float = Field(default=1.05, ge=1, description="The same for fp8")
    fp8_min_agreement: float = Field(default=0.90, ge=0, le=1, description="The same share for fp8")
    int4_max_perplexity_ratio: float = Field(
        default=1.15, ge=1, description="Perplexity ratio of int4 and every other scheme, at most"
    )
    int4_min_agreement: float = Field(
        default=0.75, ge=0, le=1, description="The same share for int4 and every other scheme"
    )
    compile: bool = Field(
        default=False,
        description="torch.compile: 15-40% faster after a start of about a minute; for long-lived servers",
    )
    connect_timeout_seconds: float = Field(default=3.0, gt=0, description="Time to connect to a provider, seconds")
    max_connections: int = Field(default=256, ge=1, description="Most connections to one provider")
    retries: int = Field(
        default=2, ge=0, le=5, description="Tries after the first, where the provider did nothing yet (0..5)"
    )
    max_retry_wait_seconds: float = Field(
        default=1.0, ge=0, description="Longest Retry-After that is waited for here instead of being passed on, seconds"
    )
    stream_silence_seconds: float = Field(
        default=60.0,
        ge=0,
        le=3600,
        description="Longest time without a byte within an answer that has begun, seconds, 0..3600; 0: any, until the "
        "deadline",
    )
    circuit_failures: int = Field(default=3, ge=1, description="Failures in a row after which a model counts as down")
    circuit_open_seconds: float = Field(default=3.0, gt=0, description="Time before a model that is down is probed")
    delivery_interval_seconds: float = Field(
        default=0.5, gt=0, description="Time that attempts are collected before they are sent to the ledger, seconds"
    )
    utilization_interval_seconds: float = Field(
        default=60.0,
        ge=0,
        le=86_400,
        description="Time between reports to the ledger of how busy the local engine was, seconds, 0..86400; 0: none",
    )
    node: str = Field(
        default="",
        max_length=256,
        description="This node's name in those reports, one per replica; empty: the host's name",
    )
    hardware: str = Field(
        default="cpu",
        pattern=r"^(|cpu|gpu:[A-Za-z0-9][A-Za-z0-9._-]{0,63})$",
        description='What the local engine runs on, as the price book names an hour of it: "cpu" or "gpu:KIND"; '
        "empty: nothing is reported",
    )
    unit_count: int = Field(
        default=0,
        ge=0,
        le=10_000,
        description="How many cores or GPUs that is, 0..10000; 0: the engine's threads on a CPU, else one GPU",
    )
    attempt_log_sync: bool = Field(
        default=False,
        description="True: every attempt record is forced to disk and survives a power failure (slower); "
        "false: it survives a killed process",
    )
