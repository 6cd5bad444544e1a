"""Settings of the cache, read once from TENTH_CACHE_* variables."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from services.cache.namespaces import Mode


class CacheSettings(BaseSettings):
    """What the cache may store and serve, and where."""

    model_config = SettingsConfigDict(env_prefix="TENTH_CACHE_", frozen=True, extra="ignore")

    models_dir: Path = Field(default=Path(".models"), description="Directory of model folders, as `make models` makes")
    embedder: str = Field(default="multilingual-e5-small", min_length=1, description="Model folder in models_dir")
    embedder_precision: Literal["int8", "fp32"] = Field(
        default="int8", description="What it multiplies in; entries of one precision are not found with the other"
    )
    embed_batch_count: int = Field(default=1, ge=1, le=512, description="Most texts embedded at once, 1..512")
    embed_thread_count: int = Field(
        default=2, ge=1, le=64, description="Threads that embed, each a text of its own, 1..64"
    )
    embed_memory_count: int = Field(default=4096, ge=0, description="Recent texts whose vectors are kept in memory")
    embed_queue_count: int = Field(default=8192, ge=1, description="Most texts waiting for the embedder")

    qdrant_url: str = Field(default="", description="Qdrant server, e.g. http://qdrant:6333; empty: embedded store")
    qdrant_api_key: SecretStr | None = Field(default=None, description="API key of the Qdrant server")
    qdrant_collection: str = Field(default="tenth_cache", min_length=1, description="Collection on the Qdrant server")
    qdrant_prefer_grpc: bool = Field(default=True, description="Speak gRPC (port 6334) to the Qdrant server")
    qdrant_replica_count: int = Field(default=1, ge=1, le=9, description="Replication factor of a new collection")
    qdrant_write_replica_count: int = Field(
        default=1, ge=1, le=9, description="Replicas that must have a write before it counts, of a new collection"
    )
    qdrant_quantized: bool = Field(
        default=True, description="Keep int8 vectors in the server's memory as well, in a new collection"
    )
    store_timeout_seconds: float = Field(default=1.0, gt=0, le=60, description="Longest wait for the store, seconds")

    weights_dir: Path | None = Field(
        default=None, description="Weights made by `python -m services.cache.calibrate`; empty: the shipped ones"
    )
    temperature_limit: float = Field(default=0.5, ge=0, le=2, description="Explicit temperatures above are bypassed")
    ttl_seconds: float = Field(
        default=3600.0, gt=0, le=315_360_000, description="How long an answer is served, seconds"
    )
    mode: Mode = Field(default=Mode.STRICT, description="How answers are found by meaning: strict, faq or off")
    max_wrong_hits_per_thousand: float = Field(
        default=5.0, gt=0, le=1000, description="Most wrong semantic hits per thousand lookups that are allowed"
    )
    sharing_user_count: int = Field(
        default=2, ge=1, description="Users that must have got an agreeing answer before others do; 1: shared at once"
    )
    answer_agreement_threshold: float = Field(
        default=0.9, gt=0, le=1, description="Least cosine at which two answers in free text agree, 0..1"
    )
    writes_per_minute: float = Field(default=6000.0, gt=0, description="Answers stored per minute and namespace")
    user_writes_per_minute: float = Field(
        default=60.0, gt=0, description="Answers stored per minute for one user of a namespace"
    )
    judge_model: str = Field(default="", description="Catalogue id of the judge of near misses; empty: none")
    namespaces_file: Path | None = Field(
        default=None, description="YAML of rules by tenant and namespace; absent: the settings hold for all"
    )
    namespaces_check_seconds: float = Field(
        default=1.0, gt=0, description="Time between looks at that file for changes, seconds"
    )
    max_request_characters: int = Field(
        default=400_000, ge=1, description="Requests with more text than this are bypassed, characters"
    )
    max_entry_count: int = Field(default=100_000, ge=1, description="Most stored entries; the least recently used go")
    max_entry_bytes: int = Field(
        default=2_000_000_000, ge=1, description="Most that all stored entries may take, bytes; the same go"
    )
    memory_entry_count: int = Field(default=10_000, ge=0, description="Entries kept in memory for exact hits")
    memory_megabytes: float = Field(default=64.0, ge=0, description="Most memory for those entries, megabytes")
    shared_store_memory_seconds: float = Field(
        default=5.0,
        ge=0,
        description="With a Qdrant server: how long an entry in memory is trusted, for other replicas may delete it",
    )
    sweep_seconds: float = Field(default=15.0, gt=0, description="Time between sweeps of expired entries, seconds")

    inference_address: str = Field(
        default="127.0.0.1:7104", description="host:port of inference, for the judge of near misses"
    )
    gray_zone_floor: float = Field(
        default=0.5, ge=0, lt=1, description="Least probability of being right that makes a miss worth judging, 0..1"
    )
    judge_per_minute: int = Field(default=60, ge=1, description="Most near misses judged per minute and tenant")
    judge_queue_count: int = Field(default=100, ge=1, description="Most near misses that wait to be judged")
    judge_timeout_seconds: float = Field(
        default=10.0, gt=0, le=60, description="Longest wait for the judge's model, seconds, above 0 to 60"
    )
    expected_error: float = Field(
        default=0.01, gt=0, lt=1, description="Share of semantic hits that the calibration expects to be wrong, 0..1"
    )
    feedback_flush_seconds: float = Field(
        default=1.0, gt=0, description="Time between writes of the counts of lookups, seconds; reports are not delayed"
    )

    lease_ttl_seconds: float = Field(
        default=2.0, gt=0, le=60, description="A lease without publish stream or answer passes on after this, seconds"
    )
    max_flight_count: int = Field(default=10_000, ge=1, description="Most flights remembered at once")
    max_flight_bytes: int = Field(
        default=4_194_304, ge=0, description="Most pieces kept of one flight for late followers, bytes"
    )
    max_flights_bytes: int = Field(
        default=268_435_456, ge=0, description="Most pieces kept of all flights together, bytes"
    )
