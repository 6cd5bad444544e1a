"""Recorded requests decided again: by what is kept of them, under another policy, without asking anybody."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from services.router.catalog import Tier
from services.router.classifier import Thresholds
from services.router.decide import Knowledge
from services.router.decision import Demand, Embedding, Needs, Strategy
from services.router.learning import ReplayPolicy
from services.router.outcomes import Outcome
from services.router.quality import QualityPrices
from services.router.redecide import recorded_features, recorded_request, replayer
from services.router.rules import Rules, parse_rules
from tests.unit.router.router_tiny_heads import EMBEDDER, features, questions, tiny_heads
from tests.unit.router.test_router_decide import CATALOG, decided

VECTOR = questions("chat", 1, 17)[0]
SEEN = features(1, 17)[0]
RECORDED = Outcome(
    "acme", "r-1", 1.0, user_id="u", project_id="p", tags={"team": "a"}, strategy=Strategy.TRAINED, model="mini",
    features=SEEN.numbers(), language="en", embedding=Embedding(VECTOR, EMBEDDER),
    demand=Demand(Needs(), 100, quality_target=0.8),
)  # fmt: skip


@pytest.fixture(scope="module")
def knowledge() -> Knowledge:
    heads = tiny_heads()
    return Knowledge(Thresholds(0.3, 0.62, 0.9), heads, QualityPrices(heads.sample))


def policy(rules: str = "", strategy: Strategy | None = None, target: float | None = None) -> ReplayPolicy:
    return ReplayPolicy(catalog=CATALOG, rules_yaml=rules, strategy=strategy, quality_target=target)


def test_the_same_policy_decides_the_same(knowledge: Knowledge) -> None:
    again = replayer(knowledge, Rules)(policy())(RECORDED)
    live = decided(knowledge, VECTOR, found=SEEN, demand=RECORDED.demand).route
    assert (again.model.name, again.fallbacks) == (live.model.name, live.fallbacks)
    assert again.reason == live.reason


def test_another_target_and_another_strategy(knowledge: Knowledge) -> None:
    under = replayer(knowledge, Rules)
    assert under(policy())(RECORDED).model.tier is Tier.SIMPLE
    assert under(policy(target=1.0))(RECORDED).model.tier is Tier.COMPLEX
    assert "features" in under(policy(strategy=Strategy.FEATURES))(RECORDED).reason


@pytest.mark.parametrize("strategy", [Strategy.LLM, Strategy.OVERRIDE, Strategy.RULES, None])
def test_what_cannot_be_asked_again_is_decided_by_the_features(knowledge: Knowledge, strategy: Strategy | None) -> None:
    route = replayer(knowledge, Rules)(policy())(replace(RECORDED, strategy=strategy))
    assert route.reason.startswith("features, en")


def test_rules_of_the_policy_stand_in_for_the_loaded_ones(knowledge: Knowledge) -> None:
    floor = "rules:\n  - name: high\n    when: { tag: { team: [a] } }\n    then: { tier_floor: complex }\n"
    loaded = parse_rules(floor, "rules.yaml")
    assert replayer(knowledge, lambda: loaded)(policy())(RECORDED).model.name == "large"
    milder = "rules:\n  - name: mild\n    then: { tier_ceiling: medium, tier_floor: medium }\n"
    assert replayer(knowledge, lambda: loaded)(policy(milder))(RECORDED).model.name == "mid"
    other = replace(RECORDED, tags={"team": "b"})
    assert replayer(knowledge, lambda: loaded)(policy())(other).model.tier is Tier.SIMPLE


def test_a_named_model_stays_named(knowledge: Knowledge) -> None:
    named = replace(RECORDED, strategy=Strategy.OVERRIDE, demand=replace(RECORDED.demand, model="mid"))
    assert replayer(knowledge, Rules)(policy())(named).model.name == "mid"


def test_without_its_embedding_the_features_decide(knowledge: Knowledge) -> None:
    route = replayer(knowledge, Rules)(policy())(replace(RECORDED, embedding=None))
    assert "since no embedding came with the request" in route.reason


def test_the_recorded_features_come_back() -> None:
    assert recorded_features(RECORDED) == SEEN
    bare = recorded_features(replace(RECORDED, features={"code": 0.5, "of another release": 1.0}, language="ko"))
    assert (bare.language, bare.code, bare.length) == ("ko", 0.5, 0.0)
    request = recorded_request(RECORDED)
    assert request.dry_run
    assert request.prompt.question == ""
    assert (request.tenant_id, request.user_id, request.project_id, request.tags) == ("acme", "u", "p", {"team": "a"})
    assert request.embedding is not None
    assert np.array_equal(request.embedding.vector, VECTOR)
