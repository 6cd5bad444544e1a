"""The router's settings, from TENTH_ROUTER_*."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

_WEIGHTS = Path(__file__).parent / "weights"


class RouterSettings(BaseSettings):
    """Which catalogue, which strategy, and where the tiers begin."""

    model_config = SettingsConfigDict(env_prefix="TENTH_ROUTER_", frozen=True, extra="ignore")

    catalog_file: Path = Field(default=Path("deploy/catalog.yaml"), description="YAML of models, tiers and prices")
    catalog_check_seconds: float = Field(
        default=1.0, gt=0, description="Time between looks at the catalogue file for changes, seconds"
    )
    rules_file: Path | None = Field(
        default=None, description="YAML of routing rules; none: the settings and the requests decide alone"
    )
    rules_check_seconds: float = Field(
        default=1.0, gt=0, description="Time between looks at the rules file for changes, seconds"
    )
    inference_address: str = Field(
        default="127.0.0.1:7104",
        description="host:port of inference, for the health of models and the `llm` strategy's model",
    )
    health_poll_seconds: float = Field(
        default=2.0, gt=0, le=600, description="Time between looks at the health of models, seconds, above 0 to 600"
    )
    health_failure_count: int = Field(
        default=3, ge=1, description="Failed attempts in a row from which the router itself takes a model for down"
    )
    health_down_seconds: float = Field(
        default=2.0,
        gt=0,
        le=600,
        description="How long a model that is down is first left alone, seconds; then doubled",
    )
    health_max_down_seconds: float = Field(
        default=60.0, gt=0, le=3600, description="Longest time that a model which is down is left alone, seconds"
    )
    strategy: Literal["trained", "features", "llm", "cascade"] = Field(
        default="trained", description="How a model is chosen when neither the request nor a rule says"
    )
    shadow_strategy: Literal["", "trained", "features", "cascade"] = Field(
        default="", description="Strategy that decides beside the one in use, without effect, for the report"
    )
    heads_file: Path | None = Field(
        default=_WEIGHTS / "heads.npz", description="File of trained heads; none: the features decide"
    )
    classifier_timeout_seconds: float = Field(
        default=2.0, gt=0, le=30, description="Longest wait for the `llm` strategy's model, seconds, above 0 to 30"
    )
    quality_target: float = Field(
        default=0.9, gt=0, lt=1, description="Share of the strongest model's quality to keep when nobody says, 0..1"
    )
    simple_below: float = Field(
        default=0.30, gt=0, lt=1, description="Complexity under which the default target takes `simple`, 0..1"
    )
    complex_from: float = Field(
        default=0.62, gt=0, lt=1, description="Complexity from which the default target takes `complex`, 0..1"
    )
    request_memory_entries: int = Field(
        default=50_000, ge=0, description="Requests whose `llm` label is remembered; the oldest go first"
    )
    outcome_log_entries: int = Field(
        default=200_000,
        ge=0,
        description="Requests kept in the outcome log, of all tenants, about 3 kB each; the oldest go first, 0: no log",
    )
    outcome_log_seconds: float = Field(
        default=90 * 86400.0, gt=0, description="How long an outcome is kept, seconds, above 0; default: 90 days"
    )
    outcome_queue_entries: int = Field(
        default=10_000, ge=1, description="Parts of outcomes that wait to be written; further ones are dropped, counted"
    )
    outcome_write_seconds: float = Field(
        default=0.1,
        ge=0,
        le=60,
        description="Time that outcomes are gathered before they are written, seconds, 0 to 60",
    )
    outcome_embeddings: bool = Field(
        default=True, description="Keep each question's embedding (float16) in the outcome log, for refits"
    )
    report_entries: int = Field(
        default=20_000, ge=1, le=1_000_000, description="Newest outcomes that a report reads, 1 to 1,000,000"
    )
    explore_share: float = Field(
        default=0.01, ge=0, le=0.5, description="Share of requests decided to learn of another model, 0..1, at most 0.5"
    )
    audit_share: float = Field(
        default=0.005, ge=0, le=0.4, description="Share of requests that the strongest model audits, 0..1, at most 0.4"
    )
    exploration_spend_share: float = Field(
        default=0.02, ge=0, le=1, description="Most expected extra cost of both, as a share of all expected cost, 0..1"
    )

    @model_validator(mode="after")
    def _ordered(self) -> RouterSettings:
        if self.simple_below >= self.complex_from:
            raise ValueError("simple_below must be less than complex_from")
        if self.health_down_seconds > self.health_max_down_seconds:
            raise ValueError("health_down_seconds must not be more than health_max_down_seconds")
        return self
