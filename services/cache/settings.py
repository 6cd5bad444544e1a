"""Settings of the cache, read once from TENTH_CACHE_* variables."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class CacheSettings(BaseSettings):
    """What the cache may store and serve, and where."""

    model_config = SettingsConfigDict(env_prefix="TENTH_CACHE_", frozen=True, extra="ignore")

    models_dir: Path = Field(default=Path(".models"), description="Directory of model folders, as `make models` makes")
    embedder: str = Field(default="all-MiniLM-L6-v2", min_length=1, description="Model folder in models_dir")
    embed_batch_count: int = Field(default=32, ge=1, le=512, description="Most texts embedded at once, 1..512")
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

    similarity_threshold: float = Field(default=0.95, gt=0, le=1, description="Least cosine of a semantic hit, 0..1")
    korean_similarity_threshold: float = Field(
        default=0.9,
        gt=0,
        le=1,
        description="Least cosine of a Korean hit with an embedder that cannot read Hangul; other tests are added",
    )
    korean_ngram_threshold: float = Field(
        default=0.4, ge=0, le=1, description="For the same: least overlap of character 2-4-grams, 0..1"
    )
    follow_up_ngram_threshold: float = Field(
        default=0.6, gt=0, le=1, description="Least overlap of character 2-4-grams of follow-up questions, 0..1"
    )
    temperature_limit: float = Field(default=0.5, ge=0, le=2, description="Explicit temperatures above are bypassed")
    ttl_seconds: float = Field(default=3600.0, gt=0, description="How long an answer is served, seconds")
    max_request_characters: int = Field(
        default=400_000, ge=1, description="Requests with more text than this are bypassed, characters"
    )
    max_entry_count: int = Field(default=100_000, ge=1, description="Most stored entries; the least recently used go")
    memory_entry_count: int = Field(default=10_000, ge=0, description="Entries kept in memory for exact hits")
    memory_megabytes: float = Field(default=64.0, ge=0, description="Most memory for those entries, megabytes")
    shared_store_memory_seconds: float = Field(
        default=5.0,
        ge=0,
        description="With a Qdrant server: how long an entry in memory is trusted, for other replicas may delete it",
    )
    sweep_seconds: float = Field(default=15.0, gt=0, description="Time between sweeps of expired entries, seconds")

    lease_ttl_seconds: float = Field(
        default=2.0, gt=0, le=60, description="A lease without publish stream or answer passes on after this, seconds"
    )
    max_flight_count: int = Field(default=10_000, ge=1, description="Most flights remembered at once")
    max_flight_bytes: int = Field(
        default=4_194_304, ge=0, description="Most pieces kept of one flight for late followers, bytes"
    )
