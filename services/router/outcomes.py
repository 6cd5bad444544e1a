"""What is remembered of decisions, as plain data: features and numbers, never text. Pure.

An outcome is a decision and what became of it. The three parts of one request, decision, completion and feedback, come
in any order and, with several replicas, at different ones: a part alone is an outcome too.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from services.router.catalog import Tier
from services.router.decision import (
    UNKNOWN_COST,
    Asked,
    Candidate,
    Decision,
    Demand,
    Embedding,
    Exploration,
    Needs,
    Shadow,
    Strategy,
)

ESCALATION_WEIGHT = 0.5
"""What a cascade's refusal of a first answer is worth beside a person's word. The check is itself a model that errs:
it refuses good answers too, so it counts half."""


class ScoreSource(StrEnum):
    """Who judged an answer."""

    CALLER = "caller"
    JUDGE = "judge"
    ESCALATION = "escalation"


@dataclass(frozen=True, slots=True)
class RecordedCandidate:
    """One model that was considered; see tenth.router.v1.RouteCandidate."""

    model: str
    tier: Tier
    success_probability: float
    expected_cost_nano_usd: int
    expected_output_tokens: int = 0
    utility: float = 0.0
    rejected_reason: str = ""


@dataclass(frozen=True, slots=True)
class Completion:
    """What became of a request."""

    model: str
    """Who answered; empty when nobody did."""
    input_tokens: int = 0
    output_tokens: int = 0
    finish_reason: int = 0
    """The number of tenth.type.v1.FinishReason."""
    failed_models: tuple[str, ...] = ()
    escalated_from: str = ""
    """The model whose answer a cascade did not accept."""
    cost_nano_usd: int = 0
    """All attempts included."""
    seconds: float = 0.0
    more_usage: Mapping[str, int] = field(default_factory=dict)
    """The other counts of tenth.type.v1.Usage, by field name."""


@dataclass(frozen=True, slots=True)
class Feedback:
    """How good the answer was, 0..1, and who says so."""

    score: float
    source: ScoreSource


NOTHING_ASKED = Demand(needs=Needs(), prompt_token_count=0)


@dataclass(frozen=True, slots=True)
class Outcome:
    """One request. ``model`` is empty while its decision is not known here."""

    tenant_id: str
    request_id: str
    decide_time: float
    """Unix seconds; of the first part that came, where the decision is not known."""
    user_id: str = ""
    project_id: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    strategy: Strategy | None = None
    model: str = ""
    tier: Tier | None = None
    exploration: Exploration = Exploration.NONE
    propensity: float = 1.0
    preferred_model: str = ""
    """With an exploration: the model that would have been taken without it."""
    shadow: Shadow | None = None
    features: Mapping[str, float] = field(default_factory=dict)
    language: str = ""
    embedding: Embedding | None = None
    candidates: tuple[RecordedCandidate, ...] = ()
    demand: Demand = NOTHING_ASKED
    """Enough to decide again: the ceiling has the budget's in it; exclusions and the time left are not kept."""
    quality_target: float = 0.0
    complexity: float = 0.0
    out_of_distribution: bool = False
    heads_version: str = ""
    catalog_version: str = ""
    rule: str = ""
    completion: Completion | None = None
    feedback: Feedback | None = None

    @property
    def answered_by(self) -> str:
        """The model that answered; the chosen one until that is known."""
        return self.completion.model if self.completion is not None else self.model

    def candidate(self, model: str) -> RecordedCandidate | None:
        """What was expected of a model."""
        return next((item for item in self.candidates if item.model == model), None)


@dataclass(frozen=True, slots=True)
class Evidence:
    """One judgement of one model's answer."""

    model: str
    score: float
    weight: float
    """Beside a person's word, above 0 up to 1."""
    source: ScoreSource


def evidence(outcome: Outcome) -> Iterator[Evidence]:
    """What an outcome says of models: feedback about the one that answered, a refusal about the first of a cascade."""
    if outcome.feedback is not None and outcome.answered_by:
        yield Evidence(outcome.answered_by, outcome.feedback.score, 1.0, outcome.feedback.source)
    if outcome.completion is not None and outcome.completion.escalated_from:
        yield Evidence(outcome.completion.escalated_from, 0.0, ESCALATION_WEIGHT, ScoreSource.ESCALATION)


def outcome_of(asked: Asked, decision: Decision, decide_time: float, preferred_model: str = "") -> Outcome:
    """The outcome that a decision begins. ``decide_time`` in Unix seconds."""
    demand, route = asked.demand, decision.route
    ceilings = [tier for tier in (demand.ceiling, demand.budget_ceiling) if tier is not None]
    return Outcome(
        tenant_id=asked.tenant_id,
        request_id=asked.request_id,
        decide_time=decide_time,
        user_id=asked.user_id,
        project_id=asked.project_id,
        tags=dict(asked.tags),
        strategy=decision.strategy,
        model=route.model.name,
        tier=route.model.tier,
        exploration=decision.exploration,
        propensity=decision.propensity,
        preferred_model=preferred_model,
        shadow=decision.shadow,
        features=asked.found.numbers(),
        language=asked.found.language,
        embedding=asked.embedding,
        candidates=tuple(map(recorded, route.candidates)),
        demand=Demand(
            needs=demand.needs,
            prompt_token_count=demand.prompt_token_count,
            max_output_tokens=demand.max_output_tokens,
            quality_target=decision.quality_target,
            floor=demand.floor,
            ceiling=min(ceilings, default=None),
            model=demand.model,
        ),
        quality_target=decision.quality_target,
        complexity=decision.complexity,
        out_of_distribution=decision.out_of_distribution,
        heads_version=decision.heads_version,
        catalog_version=decision.catalog_version,
        rule=decision.rule,
    )


def recorded(candidate: Candidate) -> RecordedCandidate:
    """A candidate by its model's name."""
    return RecordedCandidate(
        model=candidate.model.name,
        tier=candidate.model.tier,
        success_probability=candidate.success_probability,
        expected_cost_nano_usd=candidate.expected_cost_nano_usd,
        expected_output_tokens=candidate.expected_output_tokens,
        utility=candidate.utility,
        rejected_reason=candidate.rejected_reason,
    )


def extra_cost_nano_usd(outcome: Outcome) -> int:
    """What an exploration was expected to cost beyond the preferred model; 0 where it was cheaper or not known."""
    taken, preferred = outcome.candidate(outcome.model), outcome.candidate(outcome.preferred_model)
    if outcome.exploration is Exploration.NONE or taken is None or preferred is None:
        return 0
    if UNKNOWN_COST in (taken.expected_cost_nano_usd, preferred.expected_cost_nano_usd):
        return 0
    return max(0, taken.expected_cost_nano_usd - preferred.expected_cost_nano_usd)


@dataclass(frozen=True, slots=True)
class Classified:
    """What the `llm` strategy knows of a request; asked only once per request."""

    label: Tier | None = None
    classifier_attempts: int = 0
    user_id: str = ""


class RequestMemory:
    """Classifications by tenant and request, in memory, the oldest forgotten first; and counts since the start."""

    def __init__(self, capacity: int) -> None:
        """Remember at most ``capacity`` requests; 0 remembers none."""
        self._capacity = capacity
        self._entries: OrderedDict[tuple[str, str], Classified] = OrderedDict()
        self.decision_counts: Counter[str] = Counter()
        self.unparsable_count = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, tenant_id: str, request_id: str) -> Classified:
        """What is known of a request; nothing when it was never classified."""
        return self._entries.get((tenant_id, request_id), Classified())

    def put(self, tenant_id: str, request_id: str, known: Classified) -> None:
        """Remember a request anew or in its place."""
        self._entries[tenant_id, request_id] = known
        while len(self._entries) > self._capacity:
            self._entries.popitem(last=False)

    def delete_user(self, tenant_id: str, user_id: str) -> int:
        """Forget a user's requests; how many there were."""
        keys = [key for key, known in self._entries.items() if key[0] == tenant_id and known.user_id == user_id]
        for key in keys:
            del self._entries[key]
        return len(keys)
