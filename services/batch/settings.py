"""Settings of the batch service and its workers, read once from TENTH_BATCH_* variables."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class BatchSettings(BaseSettings):
    """Where batches are kept, how they are taken in, and where Temporal is. Workers read the same variables."""

    model_config = SettingsConfigDict(env_prefix="TENTH_BATCH_", frozen=True, extra="ignore")

    store_url: str = Field(
        default="", description="Objects: a path, file:///path or s3://bucket/prefix; empty: `objects` in the data_dir"
    )
    s3_endpoint_url: str = Field(default="", description="Another S3 than AWS's, e.g. http://minio:9000; empty: AWS's")
    s3_region: str = Field(default="", description="S3 region; empty: as the usual AWS environment and files say")

    temporal_address: str = Field(default="127.0.0.1:7233", description="host:port of Temporal's frontend")
    temporal_namespace: str = Field(default="default", min_length=1, description="Temporal's namespace")
    temporal_tls: bool = Field(default=False, description="True: TLS to Temporal, also without files of our own")
    temporal_ca_file: Path | None = Field(default=None, description="PEM roots that Temporal is checked against")
    temporal_cert_file: Path | None = Field(default=None, description="PEM client certificate for Temporal")
    temporal_key_file: Path | None = Field(default=None, description="PEM private key of that certificate")
    temporal_api_key_file: Path | None = Field(
        default=None,
        description="File with the API key for Temporal, e.g. of Temporal Cloud; read again when it changes",
    )
    temporal_timeout_seconds: float = Field(default=5.0, gt=0, le=60, description="Longest wait for Temporal, seconds")
    task_queue_prefix: str = Field(
        default="tenth-batch",
        pattern=r"^[A-Za-z0-9._-]{1,100}$",
        description="Begin of the names of task queues: PREFIX for control, PREFIX-LANE-MODEL for chunks",
    )

    items_per_object: int = Field(
        default=500,
        ge=1,
        le=100_000,
        description="Items of one input object; a batch has at most 2,000 of these, a larger one is refused",
    )
    max_item_count: int = Field(default=200_000, ge=1, description="Most items of a batch")
    max_batch_bytes: int = Field(default=2_000_000_000, ge=1, description="Most bytes of a batch's input")
    max_line_bytes: int = Field(default=16_000_000, ge=1, description="Most bytes of one line or item")
    max_prompt_bytes: int = Field(
        default=4 * 1024 * 1024, ge=1, description="Largest prompt, UTF-8 bytes; as TENTH_ORCHESTRATOR_MAX_PROMPT_BYTES"
    )
    max_error_count: int = Field(default=1000, ge=1, description="Most errors of lines in one answer")

    result_retention_days: int = Field(
        default=30, ge=1, le=3650, description="Days after its deadline that a batch and its results are kept"
    )
    abandoned_seconds: float = Field(
        default=86_400.0, gt=0, description="Age at which an upload that never ended is removed, seconds"
    )
    sweep_seconds: float = Field(default=60.0, gt=0, description="Time between looks at batches that run, seconds")
    expire_check_seconds: float = Field(
        default=3600.0, gt=0, description="Time between looks for batches past their retention, seconds"
    )
    follow_seconds: float = Field(
        default=1.0, gt=0, description="Time between looks for new results while a caller follows them, seconds"
    )
    follow_longest_seconds: float = Field(
        default=10.0,
        gt=0,
        le=300,
        description="Longest time between such looks, when nothing came for a while, seconds",
    )

    gather_item_count: int = Field(
        default=500, ge=1, le=10_000, description="Enqueued requests that make a batch at once"
    )
    gather_seconds: float = Field(
        default=60.0,
        gt=0,
        description="Longest that an enqueued request waits for others, seconds; a tenth of its window if that is less",
    )


class WorkerSettings(BatchSettings):
    """What a worker needs beside: whom it calls, which lanes it serves, how hard it works, when a machine goes away."""

    orchestrator_address: str = Field(default="127.0.0.1:7100", description="gRPC target of the orchestrator")
    inference_address: str = Field(default="127.0.0.1:7104", description="gRPC target of inference")
    ledger_address: str = Field(default="127.0.0.1:7105", description="gRPC target of the ledger")
    worker_lanes: str = Field(
        default="control,local,openai,anthropic,online",
        description="What this worker does, with commas: control (workflows, preparing, planning), local, openai, "
        "anthropic, online",
    )
    local_models: str = Field(
        default="", description="Self-hosted models of the lane local, with commas; empty: those that inference serves"
    )
    models_check_seconds: float = Field(
        default=30.0, gt=0, description="Time between looks for models that inference serves since, seconds"
    )

    prepare_parallel: int = Field(default=2, ge=1, le=100, description="Input objects of a batch prepared at once")
    prepare_calls: int = Field(default=2, ge=1, le=32, description="Calls of 100 items at once for one input object")
    prepare_tries: int = Field(default=5, ge=1, le=100, description="Tries of an item that may be prepared later")
    chunk_items: int = Field(
        default=64,
        ge=1,
        le=5000,
        description="Items of a chunk of the lanes local and online; more where a plan would have over 10,000 chunks",
    )
    prefix_order: bool = Field(
        default=True, description="Run prompts that begin alike side by side; False: in the input's order"
    )
    local_concurrency: int = Field(
        default=64, ge=1, le=4096, description="Generations that one worker runs at once for one self-hosted model"
    )
    local_chunks: int = Field(
        default=2, ge=1, le=1000, description="Chunks of a self-hosted model handed out at once: one fills up the other"
    )
    online_concurrency: int = Field(
        default=16, ge=1, le=4096, description="Generations that one worker runs at once for one model online"
    )
    online_chunks: int = Field(default=2, ge=1, le=1000, description="Chunks of a model handed out online at once")
    max_attempts: int = Field(default=6, ge=1, le=30, description="Most generations of an item by one worker")
    max_waits: int = Field(default=200, ge=0, description="Most times that an item waits for a full queue")
    generate_seconds: float = Field(default=600.0, gt=0, description="Longest generation, seconds")
    call_seconds: float = Field(default=120.0, gt=0, description="Longest call of another kind, seconds")
    patience_seconds: float = Field(
        default=600.0, gt=0, description="How long a part that is down is waited for before the chunk is given back"
    )

    close_seconds: float = Field(
        default=3600.0,
        gt=0,
        le=86_400,
        description="How long an orchestrator that is away is waited for when a run ends, seconds; after that its "
        "items get their ends without receipts, and what they have reserved is let go of when their reservations end",
    )

    provider_least_seconds: float = Field(
        default=900.0, ge=0, description="With less time left no provider's batch is begun, seconds"
    )
    provider_leave_seconds: float = Field(
        default=600.0,
        ge=0,
        description="How long a provider may take to stop a batch; at most a tenth of the window, seconds",
    )
    provider_batches: int = Field(default=4, ge=1, le=100, description="Batches of a model at a provider at once")
    provider_items: int = Field(default=10_000, ge=1, le=100_000, description="Most items of a provider's batch")
    provider_tries: int = Field(
        default=3, ge=1, le=10, description="How often what a provider did not run is handed in before it runs online"
    )
    provider_find_seconds: float = Field(
        default=3600.0,
        gt=0,
        le=86_400,
        description="How long a provider that is away is asked whether it took a batch whose handing in was given up, "
        "seconds; after that its attempts stay on the books at their worst case",
    )
    poll_first_seconds: float = Field(default=10.0, gt=0, description="First wait before a provider is asked, seconds")
    poll_longest_seconds: float = Field(default=600.0, gt=0, description="Longest wait between such calls, seconds")

    safety_factor: float = Field(
        default=1.5, ge=1, le=10, description="By which factor work may be slower than measured, 1..10"
    )
    reserve_seconds: float = Field(
        default=60.0,
        ge=0,
        description="Kept before the deadline for collecting and finishing; at most a tenth of the window, seconds",
    )
    online_items_per_second: float = Field(
        default=2.0, gt=0, description="Rate online before one is measured, a factor of planning"
    )
    local_items_per_second: float = Field(
        default=2.0, gt=0, description="Rate of a self-hosted model before one is measured, a factor of planning"
    )
    check_least_seconds: float = Field(default=5.0, gt=0, description="Shortest time between looks at the deadline")
    check_most_seconds: float = Field(default=900.0, gt=0, description="Longest time between looks at the deadline")

    near_same: bool = Field(default=True, description="Let questions that mean nearly the same wait for the first")
    near_same_threshold: float = Field(
        default=0.90, ge=0, le=1, description="Least cosine of two questions that mean nearly the same, 0..1"
    )
    near_same_least_seconds: float = Field(
        default=300.0, ge=0, description="With less time left nothing waits for what means nearly the same, seconds"
    )
    near_same_items: int = Field(
        default=20_000, ge=0, le=200_000, description="Most items of one context compared with each other"
    )
    twin_temperature_limit: float = Field(
        default=0.3, ge=0, le=2, description="Above this temperature the same question is asked again, 0..2"
    )

    heartbeat_seconds: float = Field(
        default=10.0, gt=0, description="Time after which a silent worker is held for dead, seconds"
    )
    history_events: int = Field(
        default=5000, ge=100, le=40_000, description="Events after which a workflow continues as a new one"
    )
    drain_notice_seconds: float = Field(
        default=20.0, ge=0, description="After SIGTERM, how long running items get to end, seconds"
    )
    preemption_file: Path | None = Field(
        default=None, description="YAML of the notices that a spot machine gives; none: only SIGTERM counts"
    )
