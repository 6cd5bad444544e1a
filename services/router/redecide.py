"""Decides recorded requests again, by what is kept of them: features, embedding, demand, tags. Pure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from services.router import rules
from services.router.decide import Knowledge, routed
from services.router.decision import Asked, Route, Strategy
from services.router.features import Features, Prompt
from services.router.learning import Replayer, ReplayPolicy
from services.router.outcomes import Outcome
from services.router.replay import DecideAgain
from services.router.rules import Rules, parse_rules


def replayer(knowledge: Knowledge, rules_now: Callable[[], Rules]) -> Replayer:
    """What makes replays under a policy. Without rules of its own the loaded ones hold."""

    def under(policy: ReplayPolicy) -> DecideAgain:
        loaded = parse_rules(policy.rules_yaml, "rules_yaml") if policy.rules_yaml else rules_now()

        def decide_again(outcome: Outcome) -> Route:
            asked = recorded_request(outcome)
            effect = rules.apply(loaded, asked, policy.catalog)
            demand = rules.merged(asked.demand, effect)
            if policy.quality_target is not None:
                demand = replace(demand, quality_target=policy.quality_target)
            strategy = policy.strategy or effect.strategy or outcome.strategy
            # What a small model said is not asked again, and who was named is in the demand.
            if strategy not in (Strategy.TRAINED, Strategy.CASCADE):
                strategy = Strategy.FEATURES
            return routed(strategy, policy.catalog, demand, asked.found, outcome.embedding, knowledge, {}).route

        return decide_again

    return under


def recorded_request(outcome: Outcome) -> Asked:
    """The request as far as it is known. Its text is not: rules by directive find none."""
    return Asked(
        tenant_id=outcome.tenant_id,
        user_id=outcome.user_id,
        project_id=outcome.project_id,
        request_id=outcome.request_id,
        tags=outcome.tags,
        prompt=Prompt(question=""),
        found=recorded_features(outcome),
        demand=outcome.demand,
        embedding=outcome.embedding,
        dry_run=True,
    )


def recorded_features(outcome: Outcome) -> Features:
    """The features of an outcome; 0 for those that it does not have."""
    known = Features.__dataclass_fields__
    numbers: dict[str, Any] = {name: outcome.features.get(name, 0.0) for name in known if name != "language"}
    return Features(language=outcome.language, **numbers)
