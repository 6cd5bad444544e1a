"""Replays by the `features` strategy: the recorded features, judged and bounded as a request's are. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from services.router import classifier, policy
from services.router.decision import Route
from services.router.features import Features
from services.router.learning import ReplayPolicy
from services.router.outcomes import Outcome
from services.router.replay import DecideAgain


def feature_replayer(thresholds: classifier.Thresholds, of: ReplayPolicy) -> DecideAgain:
    """The policy under which recorded features are judged."""

    def decide_again(outcome: Outcome) -> Route:
        judgement = classifier.judge(recorded_features(outcome))
        demand = outcome.demand
        if of.quality_target is not None:
            demand = replace(demand, quality_target=of.quality_target)
        return policy.choose(of.catalog, demand, judgement, thresholds, "features, as recorded")

    return decide_again


def recorded_features(outcome: Outcome) -> Features:
    """The features of an outcome; 0 for those that it does not have."""
    known = Features.__dataclass_fields__
    numbers: dict[str, Any] = {name: outcome.features.get(name, 0.0) for name in known if name != "language"}
    return Features(language=outcome.language, **numbers)
