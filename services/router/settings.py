"""The router's settings, from TENTH_ROUTER_*."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


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
    strategy: Literal["features", "llm"] = Field(
        default="features", description="How complexity is judged when the request does not say"
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
    outcome_log_entries: int = Field(
        default=50_000, ge=0, description="Decisions remembered for feedback; the oldest go first"
    )

    @model_validator(mode="after")
    def _ordered(self) -> RouterSettings:
        if self.simple_below >= self.complex_from:
            raise ValueError("simple_below must be less than complex_from")
        if self.health_down_seconds > self.health_max_down_seconds:
            raise ValueError("health_down_seconds must not be more than health_max_down_seconds")
        return self
