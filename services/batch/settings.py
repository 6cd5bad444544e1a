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

    items_per_object: int = Field(default=500, ge=1, le=100_000, description="Items of one input object")
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

    gather_item_count: int = Field(
        default=500, ge=1, le=10_000, description="Enqueued requests that make a batch at once"
    )
    gather_seconds: float = Field(
        default=60.0,
        gt=0,
        description="Longest that an enqueued request waits for others, seconds; a tenth of its window if that is less",
    )
