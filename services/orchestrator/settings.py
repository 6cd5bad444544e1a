"""Settings of the orchestrator (environment variables TENTH_ORCHESTRATOR_*)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class OrchestratorSettings(BaseSettings):
    """Where the other services are, how long each hop may take, and the limits of a request."""

    model_config = SettingsConfigDict(env_prefix="TENTH_ORCHESTRATOR_", frozen=True, extra="ignore")

    cache_address: str = Field(
        default="127.0.0.1:7101", description="Cache; several replicas comma-separated, or dns:///name:port"
    )
    router_address: str = Field(default="127.0.0.1:7102", description="Router, a gRPC target")
    compressor_address: str = Field(default="127.0.0.1:7103", description="Compressor, a gRPC target")
    inference_address: str = Field(default="127.0.0.1:7104", description="Inference, a gRPC target")
    ledger_address: str = Field(default="127.0.0.1:7105", description="Ledger, a gRPC target")
    batch_address: str = Field(
        default="", description="Batch service, a gRPC target; empty: requests with a far window are worked on at once"
    )
    cache_shard_by: Literal["namespace", "request"] = Field(
        default="namespace",
        description="What picks the cache replica: tenant and namespace (embedded stores, one shard each) or the "
        "request itself (replicas over one Qdrant server)",
    )

    lookup_cap_seconds: float = Field(default=0.15, gt=0, description="Most that a cache lookup may take, seconds")
    select_cap_seconds: float = Field(default=0.1, gt=0, description="Most that routing may take, seconds")
    select_llm_cap_seconds: float = Field(
        default=5.0, gt=0, description="The same when the router asks a small model, seconds"
    )
    router_strategy: Literal["default", "features", "llm", "trained", "cascade"] = Field(
        default="default", description="Strategy to ask the router for; default: the router's own"
    )
    check_cap_seconds: float = Field(
        default=0.25, gt=0, description="Most that checking a cascade's first answer may take, seconds"
    )
    compress_cap_seconds: float = Field(default=0.3, gt=0, description="Most that compression may take, seconds")
    compress_cap_per_10k_tokens_seconds: float = Field(
        default=0.05, ge=0, description="More time for compression per 10,000 tokens of prompt, seconds"
    )
    reserve_cap_seconds: float = Field(default=0.25, gt=0, description="Most that a reservation may take, seconds")
    handover_cap_seconds: float = Field(
        default=5.0, gt=0, description="Most that handing a request over to the batch service may take, seconds"
    )
    halves_cap_seconds: float = Field(
        default=5.0,
        gt=0,
        description="Most that each hop of a batch's item may take, where its own cap is less, seconds",
    )
    halves_concurrency: int = Field(
        default=8, ge=1, le=1000, description="Items of batches that are prepared at once, 1..1000"
    )
    background_cap_seconds: float = Field(
        default=5.0, gt=0, description="Deadline of calls made after the answer (store, release), seconds"
    )
    publish_after_seconds: float = Field(
        default=0.25, gt=0, description="Age of a flight at which the leader starts publishing to followers, seconds"
    )
    snapshot_interval_seconds: float = Field(
        default=1.0, gt=0, description="Time between looks for new prices, budgets and switches, seconds"
    )

    default_tier: Literal["simple", "medium", "complex"] = Field(
        default="medium", description="Tier used while the router is down"
    )
    default_max_output_tokens: int = Field(
        default=1024, ge=1, description="Output limit of requests that name none, tokens"
    )
    max_attempts: int = Field(default=3, ge=1, le=10, description="Models tried for one request")
    reservation_ttl_seconds: float = Field(
        default=600.0,
        gt=0,
        le=86_400,
        description="How long a reservation stands before the ledger reconciles it, seconds, 0..86400",
    )
    replay_ttl_seconds: float = Field(
        default=600.0, gt=0, description="How long an answer is kept for a retry with the same request_id, seconds"
    )
    max_prompt_bytes: int = Field(default=4 * 1024 * 1024, ge=1024, description="Largest prompt, UTF-8 bytes")
    shadow_share: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="Share of the requests with a prompt shortened by more than clean-up that are answered again "
        "without compression and judged, 0..1; each costs a second answer and two judgements",
    )
    shadow_judge_model: str = Field(
        default="", description="Catalogue model that judges; needed where shadow_share is above 0"
    )
    shadow_judge_max_output_tokens: int = Field(
        default=16,
        ge=1,
        le=100_000,
        description="Limit of a judgement, one letter: more for models that reason, tokens",
    )
    shadow_spend_share: float = Field(
        default=0.1,
        ge=0,
        description="No check begins while those of this process have cost more than this share of its requests",
    )
    shadow_concurrency: int = Field(default=4, ge=1, le=1000, description="Checks that run at once; more are dropped")
    shadow_cap_seconds: float = Field(
        default=120.0, gt=0, description="Most that one answer or judgement of a check may take, seconds"
    )
    settle_batch_size: int = Field(default=200, ge=1, le=500, description="Receipts settled in one call")
    settle_interval_seconds: float = Field(
        default=0.25, gt=0, description="Time that receipts gather before they are settled, seconds"
    )

    @model_validator(mode="after")
    def _has_a_judge(self) -> OrchestratorSettings:
        if self.shadow_share and not self.shadow_judge_model:
            raise ValueError("TENTH_ORCHESTRATOR_SHADOW_SHARE needs TENTH_ORCHESTRATOR_SHADOW_JUDGE_MODEL")
        return self
