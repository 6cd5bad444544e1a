"""One decision, top to bottom: rules, a strategy's judgement, the choice, learning, a shadow, the explanation.

``routed`` is pure: what the ``trained``, ``cascade`` and ``features`` strategies make of a request. Replays and shadows
use it too. ``Decider`` adds what a live request has: rules, the health of models, the small model of the ``llm``
strategy, chance and the tenants' accounts.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from tenth.type.v1 import receipt_pb2

from services.router import cascade, classifier, exploration, policy, rules
from services.router.catalog import Catalog, Model, Tier
from services.router.classifier import Judgement, Thresholds
from services.router.decision import (
    Asked,
    CascadePlan,
    CascadeUse,
    Decision,
    Demand,
    Embedding,
    Estimate,
    Exploration,
    Route,
    Shadow,
    Strategy,
)
from services.router.exploration import ExplorationShares, SpendAccount
from services.router.features import Features
from services.router.heads import Heads, Prediction
from services.router.health import Health
from services.router.policy import Ways
from services.router.quality import QualityPrices

log = logging.getLogger("tenth.router")

_FALLING_BACK = "features"
_FAMILIAR = 0.5
"""Probability of being of a recorded kind from which the heads are believed."""
_FAMILIAR_IN_KOREAN = 0.018
"""The same for a Korean question. Recorded outcomes are nearly all of English questions, so that Korean alone lowers
the logit, by 4.0 on translated pairs; but the language of a question says nothing about its kind."""


@dataclass(frozen=True, slots=True)
class Knowledge:
    """What the pure strategies decide with: thresholds of the features, and the trained heads if there are any."""

    thresholds: Thresholds
    heads: Heads | None = None
    prices: QualityPrices | None = None


@dataclass(frozen=True, slots=True)
class Routed:
    """What a strategy made of a request."""

    route: Route
    strategy: Strategy
    complexity: float
    quality_target: float
    quality_price: float = 0.0
    out_of_distribution: bool = False
    successes: Mapping[str, float] | None = None


class Classifier(Protocol):
    """The small model of the ``llm`` strategy."""

    async def judge(
        self, asked: Asked, by_features: Judgement, catalog: Catalog, why: str
    ) -> tuple[Judgement, bool, str, Sequence[receipt_pb2.OverheadItem]]:
        """The judgement, whether it is the model's, why, and what it cost. ``why`` is what the features say."""


@dataclass(frozen=True, slots=True)
class DeciderSettings:
    """How the deployment decides where neither request nor rule says."""

    strategy: Strategy = Strategy.TRAINED
    shadow: Strategy | None = None
    shares: ExplorationShares = field(default_factory=ExplorationShares)


def routed(
    strategy: Strategy,
    catalog: Catalog,
    demand: Demand,
    found: Features,
    embedding: Embedding | None,
    knowledge: Knowledge,
    down: Mapping[str, str],
) -> Routed:
    """What a strategy that asks no model makes of a request. Raises as ``policy.choose`` does."""
    judgement = classifier.judge(found)
    why = explained(judgement, found)
    target = policy.target_of(demand, knowledge.thresholds)
    if strategy not in (Strategy.TRAINED, Strategy.CASCADE):
        route = by_tier(catalog, demand, judgement, knowledge.thresholds, why, down)
        return Routed(route, Strategy.FEATURES, judgement.complexity, target)
    heads, prices = knowledge.heads, knowledge.prices
    unable = _unable(heads, embedding)
    if unable or heads is None or prices is None or embedding is None:
        route = by_tier(catalog, demand, judgement, knowledge.thresholds, f"{why}, since {unable}", down)
        return Routed(route, Strategy.FEATURES, judgement.complexity, target)
    prediction = heads.predict(embedding.vector, found)
    if prediction.out_of_distribution:
        ways = Ways(policy.tier_estimates(judgement, knowledge.thresholds), down)
        default = max(catalog.default_tier, judgement.floor)
        why = f"unlike all that the heads were trained on: the default tier, {catalog.default_tier.name.lower()}"
        route = policy.choose_tier(catalog, demand, default, why, ways)
        return Routed(route, strategy, judgement.complexity, target, out_of_distribution=True)
    if prediction.familiarity < (_FAMILIAR_IN_KOREAN if found.language == "ko" else _FAMILIAR):
        why = f"{why}, since no outcomes of such questions are on record"
        route = by_tier(catalog, demand, judgement, knowledge.thresholds, why, down)
        return Routed(route, Strategy.FEATURES, judgement.complexity, target)
    price = prices.of(catalog, target)
    ways = Ways(_estimates(prediction), down)
    why = f"trained, quality target {target:.2f}: a dollar must buy {price.per_usd:.3g} of success"
    # Nothing but the strongest tier keeps all of its quality.
    least = Tier.COMPLEX if target >= 1.0 else judgement.floor
    route = policy.choose_by_utility(catalog, demand, least, price.per_usd, why, ways)
    return Routed(route, strategy, judgement.complexity, target, price.per_usd, False, prediction.success)


def by_tier(
    catalog: Catalog, demand: Demand, judgement: Judgement, thresholds: Thresholds, why: str, down: Mapping[str, str]
) -> Route:  # fmt: skip
    """The choice by complexity and tiers."""
    ways = Ways(policy.tier_estimates(judgement, thresholds), down)
    return policy.choose(catalog, demand, judgement, thresholds, why, ways)


def explained(judgement: Judgement, found: Features) -> str:
    """What the features say, for a person."""
    cues = f" ({', '.join(judgement.cues)})" if judgement.cues else ""
    return f"{_FALLING_BACK}, {found.language}{cues}"


class Decider:
    """Decides live requests."""

    def __init__(
        self,
        catalog: Callable[[], Catalog],
        rules_now: Callable[[], rules.Rules],
        knowledge: Knowledge,
        health: Health,
        classifier_model: Classifier,
        account: SpendAccount,
        settings: DeciderSettings,
        random: Callable[[], float],
    ) -> None:
        """``catalog`` and ``rules_now`` say what is loaded now; ``random`` is uniform in 0..1, below 1."""
        self._catalog = catalog
        self._rules = rules_now
        self._knowledge = knowledge
        self._health = health
        self._classifier = classifier_model
        self._account = account
        self._settings = settings
        self._random = random

    async def decide(self, asked: Asked) -> tuple[Decision, str, Sequence[receipt_pb2.OverheadItem]]:
        """The decision, the model that was preferred before any exploration, and what deciding cost.

        Raises NO_ELIGIBLE_MODEL, UNKNOWN_MODEL, CONTRADICTORY_BOUNDS, RULE_MODEL_UNKNOWN.
        """
        # One request sees one catalogue and one state of the rules, whatever is reloaded meanwhile.
        catalog, loaded = self._catalog(), self._rules()
        effect = rules.apply(loaded, asked, catalog)
        asked = replace(asked, demand=rules.merged(asked.demand, effect))
        wanted = asked.strategy or effect.strategy or self._settings.strategy
        found, overheads = await self._routed(asked, wanted, catalog)
        route, strategy = found.route, found.strategy
        if asked.demand.model:
            strategy = Strategy.RULES if effect.model is not None else Strategy.OVERRIDE
            if effect.model is not None:
                named = "the message" if effect.by_directive else "a rule"
                route = replace(route, reason=f"{route.model.name} is named by {named} ({effect.rule})")
        preferred = route.model.name
        route, plan = self._cascade(asked, found, route)
        route, drawn, propensity = self._explored(asked, route, plan, named=bool(asked.demand.model), effect=effect)
        if not asked.dry_run:
            self._health.note_choice(route.model.name)
        heads = self._knowledge.heads
        decision = Decision(
            route=route,
            strategy=Strategy.CASCADE if plan is not None else strategy,
            complexity=found.complexity,
            quality_target=found.quality_target,
            quality_price=found.quality_price,
            exploration=drawn,
            propensity=propensity,
            cascade=plan,
            shadow=self._shadow(asked, catalog, strategy),
            out_of_distribution=found.out_of_distribution,
            heads_version=heads.version if heads is not None else "",
            catalog_version=catalog.version,
            rule=effect.rule,
            successes=found.successes or {},
        )
        return decision, preferred, overheads

    async def _routed(
        self, asked: Asked, wanted: Strategy, catalog: Catalog
    ) -> tuple[Routed, Sequence[receipt_pb2.OverheadItem]]:
        down = self._health.down()
        if wanted is not Strategy.LLM or asked.demand.model:
            of = (catalog, asked.demand, asked.found, asked.embedding, self._knowledge, down)
            return routed(Strategy.FEATURES if asked.demand.model else wanted, *of), ()
        by_features, thresholds = classifier.judge(asked.found), self._knowledge.thresholds
        judgement, by_model, why, overheads = await self._classifier.judge(
            asked, by_features, catalog, explained(by_features, asked.found)
        )
        route = by_tier(catalog, asked.demand, judgement, thresholds, why, down)
        strategy = Strategy.LLM if by_model else Strategy.FEATURES
        target = policy.target_of(asked.demand, thresholds)
        return Routed(route, strategy, judgement.complexity, target), overheads

    def _cascade(self, asked: Asked, found: Routed, route: Route) -> tuple[Route, CascadePlan | None]:
        """The route that begins with the cheap model of the best cascade, if that beats the best model alone."""
        allowed = asked.cascade is CascadeUse.ALLOW or (asked.cascade is CascadeUse.DEFAULT and not asked.streaming)
        if found.strategy is not Strategy.CASCADE or not allowed or not found.quality_price or asked.demand.model:
            return route, None
        best = cascade.best(route.candidates, found.quality_price, asked.demand.seconds_left)
        alone = next(item for item in route.candidates if item.model is route.model)
        if best is None or best[1].utility <= alone.utility:
            return route, None
        first, expected = best
        others = tuple(model for model in (route.model, *route.fallbacks) if model is not first.model)
        reason = (
            f"{route.reason}; {first.model.name} answers first, {expected.plan.escalation.name} if confidence is below "
            f"{expected.plan.min_confidence:.2f} (about {expected.escalation_probability:.0%} of the time)"
        )
        return replace(route, model=first.model, fallbacks=others, reason=reason), expected.plan

    def _explored(
        self, asked: Asked, route: Route, plan: CascadePlan | None, *, named: bool, effect: rules.Effect
    ) -> tuple[Route, Exploration, float]:
        """The route to take, why it was drawn, and with which probability."""
        may = exploration.may_explore(
            dry_run=asked.dry_run,
            request_id=asked.request_id,
            named_model=asked.demand.model,
            rule_names_model=named,
        )
        # A cascade learns by itself, and a second selection after a failure or a budget's refusal is no experiment.
        if not may or plan is not None or not effect.exploration or asked.demand.excluded_models:
            return route, Exploration.NONE, 1.0
        draw = exploration.explored(route, self._settings.shares, self._account, asked.tenant_id, self._random)
        if draw.model is route.model:
            return route, draw.exploration, draw.propensity
        others = (route.model, *(model for model in route.fallbacks if model is not draw.model))
        why = "an audit by the strongest model" if draw.exploration is Exploration.AUDIT else "to learn what it can do"
        reason = f"{route.reason}; {draw.model.name} instead, {why}"
        return replace(route, model=draw.model, fallbacks=others, reason=reason), draw.exploration, draw.propensity

    def _shadow(self, asked: Asked, catalog: Catalog, strategy: Strategy) -> Shadow | None:
        """What the shadow strategy would have done; nobody acts on it, and it calls no model."""
        wanted = self._settings.shadow
        if wanted is None or wanted is strategy or asked.demand.model or asked.dry_run:
            return None
        of = (catalog, asked.demand, asked.found, asked.embedding, self._knowledge, self._health.down())
        try:
            other = routed(wanted, *of)
        except Exception:  # Whatever is wrong with it, the request has its decision already.
            log.warning("the shadow strategy %s failed", wanted.name.lower(), exc_info=True)
            return None
        return Shadow(other.route.model.name, wanted)


def _unable(heads: Heads | None, embedding: Embedding | None) -> str:
    """Why the heads cannot be asked; empty when they can."""
    if heads is None:
        return "no trained heads are loaded"
    if embedding is None:
        return "no embedding came with the request"
    if embedding.version != heads.embedder_version:
        return (
            f"the embedding is of {embedding.version or 'an unknown embedder'}, the heads of {heads.embedder_version}"
        )
    if embedding.vector.shape != heads.scaling.vector_mean.shape:
        return f"the embedding has {embedding.vector.size} dimensions, the heads {heads.scaling.vector_mean.size}"
    return ""


def _estimates(prediction: Prediction) -> Callable[[Model], Estimate]:
    """What the heads say of a model: by an arm of its very name, which a refit made from its own outcomes; else by the
    arm that it is like; or where they have none of that name by the class of its tier."""

    def estimate(model: Model) -> Estimate:
        success = prediction.success.get(model.name)
        if success is None:
            success = prediction.success.get(model.arm)
        if success is None:
            success = prediction.success[replace(model, quality_like="").arm]
        return Estimate(success, max(1, round(model.expected_output_tokens * prediction.length_ratio)))

    return estimate
