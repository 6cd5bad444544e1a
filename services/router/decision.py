"""What routing is asked and what it answers, as plain data. Servicer, policy, rules, log and replay share it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from services.router.catalog import Model, Tier
from services.router.features import Features, Prompt

Vector = npt.NDArray[np.float32]

UNKNOWN_COST = -1
"""Expected cost of a model without a reference price: unknown is never free."""


class Strategy(IntEnum):
    """How a decision is made; the numbers are those of tenth.router.v1.Strategy."""

    FEATURES = 1
    LLM = 2
    OVERRIDE = 3
    TRAINED = 4
    RULES = 5
    CASCADE = 6


class Exploration(IntEnum):
    """Whether a decision was taken to learn from it; the numbers are those of tenth.router.v1.Exploration."""

    NONE = 0
    EXPLORE = 1
    AUDIT = 2


class CascadeUse(IntEnum):
    """What the caller allows; the numbers are those of tenth.type.v1.CascadeMode."""

    DEFAULT = 0
    OFF = 1
    ALLOW = 2


@dataclass(frozen=True, slots=True)
class Needs:
    """What a model must be able to do for this request."""

    tools: bool = False
    json_schema: bool = False
    vision: bool = False
    korean: bool = False


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request asks of routing."""

    needs: Needs
    prompt_token_count: int
    """An estimate: the router has no tokenizer."""
    max_output_tokens: int | None = None
    quality_target: float | None = None
    floor: Tier | None = None
    ceiling: Tier | None = None
    budget_ceiling: Tier | None = None
    excluded_models: frozenset[str] = frozenset()
    model: str = ""
    seconds_left: float | None = None
    """Time to answer in; None: no limit."""


@dataclass(frozen=True, slots=True)
class Embedding:
    """The question's vector, L2-normalised float32, and the version of what made it."""

    vector: Vector
    version: str


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as routing sees it."""

    tenant_id: str
    user_id: str
    project_id: str
    request_id: str
    tags: Mapping[str, str]
    prompt: Prompt
    found: Features
    demand: Demand
    embedding: Embedding | None = None
    strategy: Strategy | None = None
    """Wanted by the caller; None takes the rule's or the deployment's."""
    cascade: CascadeUse = CascadeUse.DEFAULT
    streaming: bool = False
    dry_run: bool = False
    classifier_attempt: int = 0


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is expected of one model on one request."""

    success_probability: float
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model that was considered."""

    model: Model
    success_probability: float
    expected_cost_nano_usd: int
    expected_output_tokens: int
    utility: float
    rejected_reason: str


@dataclass(frozen=True, slots=True)
class Route:
    """The model, what to try after it, and all that were considered."""

    model: Model
    fallbacks: tuple[Model, ...]
    candidates: tuple[Candidate, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class CascadePlan:
    """The chosen model answers first; see tenth.router.v1.CascadePlan."""

    escalation: Model
    min_confidence: float


@dataclass(frozen=True, slots=True)
class Shadow:
    """What another strategy would have done."""

    model: str
    strategy: Strategy


@dataclass(frozen=True, slots=True)
class Decision:
    """A route, how it came about, and what it takes to explain and to learn from it."""

    route: Route
    strategy: Strategy
    complexity: float
    quality_target: float
    quality_price: float
    """Success probability per USD; 0 where tiers decided."""
    exploration: Exploration = Exploration.NONE
    propensity: float = 1.0
    cascade: CascadePlan | None = None
    shadow: Shadow | None = None
    out_of_distribution: bool = False
    heads_version: str = ""
    catalog_version: str = ""
    rule: str = ""
    successes: Mapping[str, float] = field(default_factory=dict)
    """Estimated success by arm of the heads; empty where they were not asked."""
