"""One decision: when the heads are asked, what stands in for them, and what rules, chance and health make of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from mesh.errors import TenthError
from services.router.catalog import Abilities, Catalog, Model, ReferencePrice, Tier
from services.router.classifier import Judgement, Thresholds
from services.router.decide import Decider, DeciderSettings, Knowledge, Routed, routed
from services.router.decision import Asked, CascadeUse, Decision, Demand, Embedding, Exploration, Needs, Strategy
from services.router.exploration import ExplorationShares, SpendAccount
from services.router.features import Features, Prompt
from services.router.health import Health
from services.router.quality import QualityPrices
from services.router.rules import Rules, parse_rules
from tests.unit.router.router_tiny_heads import EMBEDDER, LARGE, features, questions, tiny_heads

THRESHOLDS = Thresholds(0.3, 0.62, 0.9)
ALL = Abilities(tools=True, json_schema=True, vision=True, korean=True, logprobs=True)


def model(name: str, tier: Tier, usd: float | None, **more: Any) -> Model:
    price = None if usd is None else ReferencePrice(int(usd * 10**9), int(5 * usd * 10**9))
    return replace(Model(name, "p", tier, 100_000, 8000, 200, ALL, price=price), **more)


CATALOG = Catalog(
    (
        model("mini", Tier.SIMPLE, 0.2),
        model("small", Tier.SIMPLE, 0.4),
        model("mid", Tier.MEDIUM, 3.0),
        model("large", Tier.COMPLEX, 10.0),
    ),
    Tier.MEDIUM,
    "",
    "v1",
)
PLAIN = Demand(Needs(), 100)
CHAT, CODE, FAR = (questions(family, 1, 17)[0] for family in ("chat", "code", "far"))
HARD_CODE = questions("code", 60, 4)[int(questions("code", 60, 4)[:, 2].argmax())]
EASY = features(1, 17)[0]
OF_CODE = features(1, 17, 1.0)[0]


@pytest.fixture(scope="module")
def knowledge() -> Knowledge:
    heads = tiny_heads()
    return Knowledge(THRESHOLDS, heads, QualityPrices(heads.sample))


def decided(
    knowledge: Knowledge,
    vector: Any = CHAT,
    *,
    version: str = EMBEDDER,
    found: Features = EASY,
    demand: Demand = PLAIN,
    catalog: Catalog = CATALOG,
    strategy: Strategy = Strategy.TRAINED,
    down: dict[str, str] | None = None,
) -> Routed:
    embedding = None if vector is None else Embedding(np.asarray(vector, np.float32), version)
    return routed(strategy, catalog, demand, found, embedding, knowledge, down or {})


@pytest.mark.parametrize(
    ("vector", "version", "heads", "words"),
    [
        (CHAT, EMBEDDER, False, "no trained heads are loaded"),
        (None, EMBEDDER, True, "no embedding came with the request"),
        (CHAT, "e5@9", True, f"the embedding is of e5@9, the heads of {EMBEDDER}"),
        (CHAT, "", True, f"the embedding is of an unknown embedder, the heads of {EMBEDDER}"),
        (CHAT[:5], EMBEDDER, True, "the embedding has 5 dimensions, the heads 16"),
    ],
)
def test_the_features_stand_in_for_heads_that_cannot_be_asked(
    knowledge: Knowledge, vector: Any, version: str, heads: bool, words: str
) -> None:
    known = knowledge if heads else Knowledge(THRESHOLDS)
    found = decided(known, vector, version=version)
    assert found.strategy is Strategy.FEATURES
    assert f"since {words}" in found.route.reason
    assert found.route.model.name == decided(known, strategy=Strategy.FEATURES).route.model.name
    assert found.successes is None


@pytest.mark.parametrize("vector", [FAR, np.full(16, np.nan), np.full(16, np.inf)])
@pytest.mark.parametrize(
    ("demand", "default", "chosen"),
    [
        (PLAIN, Tier.MEDIUM, "mid"),
        (PLAIN, Tier.SIMPLE, "mini"),
        (replace(PLAIN, floor=Tier.COMPLEX), Tier.MEDIUM, "large"),
        (replace(PLAIN, ceiling=Tier.SIMPLE), Tier.MEDIUM, "mini"),
        (replace(PLAIN, budget_ceiling=Tier.SIMPLE), Tier.MEDIUM, "mini"),
    ],
)
def test_what_is_unlike_all_training_gets_the_default_tier(
    knowledge: Knowledge, vector: Any, demand: Demand, default: Tier, chosen: str
) -> None:
    found = decided(knowledge, vector, demand=demand, catalog=replace(CATALOG, default_tier=default))
    assert found.out_of_distribution
    assert found.route.model.name == chosen
    assert "unlike all that the heads were trained on" in found.route.reason


def test_reasoning_is_not_simple_though_far(knowledge: Knowledge) -> None:
    hard = replace(EASY, reasoning=1.0)
    found = decided(knowledge, FAR, found=hard, catalog=replace(CATALOG, default_tier=Tier.SIMPLE))
    assert found.route.model.tier is Tier.MEDIUM


def test_everyday_questions_are_the_features_business(knowledge: Knowledge) -> None:
    vector = questions("everyday", 1, 5)[0]
    found = decided(replace(knowledge, heads=replace(tiny_heads(), gate=replace(tiny_heads().gate, far=1e9))), vector)
    assert found.strategy is Strategy.FEATURES
    assert "no outcomes of such questions are on record" in found.route.reason


def test_a_question_that_the_cheap_model_can_answer_goes_to_it(knowledge: Knowledge) -> None:
    low = replace(PLAIN, quality_target=0.8)
    easy, hard = decided(knowledge, CHAT, demand=low), decided(knowledge, HARD_CODE, found=OF_CODE, demand=low)
    assert (easy.strategy, easy.route.model.tier) == (Strategy.TRAINED, Tier.SIMPLE)
    assert hard.route.model.tier > Tier.SIMPLE
    assert easy.quality_price > 0
    assert easy.successes is not None
    assert easy.route.model.name == "mini", "the cheaper of equals"
    assert f"{easy.successes['class:small']:.2f} likely to answer well" in easy.route.reason


def test_a_lower_target_never_chooses_a_stronger_tier(knowledge: Knowledge) -> None:
    for vector, found in ((CHAT, EASY), (CODE, OF_CODE), (HARD_CODE, OF_CODE)):
        tiers = [
            decided(knowledge, vector, found=found, demand=replace(PLAIN, quality_target=target)).route.model.tier
            for target in (0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.0)
        ]
        assert tiers == sorted(tiers)
        assert tiers[-1] is Tier.COMPLEX


def test_reasoning_is_never_simple(knowledge: Knowledge) -> None:
    low = replace(PLAIN, quality_target=0.5)
    assert decided(knowledge, CHAT, demand=low).route.model.tier is Tier.SIMPLE
    found = decided(knowledge, CHAT, demand=low, found=replace(EASY, reasoning=1.0))
    assert found.route.model.tier is Tier.MEDIUM
    assert "not below medium" in found.route.reason


@pytest.mark.parametrize("target", [0.8, 0.95, 1.0])
def test_fallbacks_are_the_own_tier_then_those_above_then_those_below(knowledge: Knowledge, target: float) -> None:
    demand = replace(PLAIN, quality_target=target, ceiling=Tier.MEDIUM if target < 1 else None)
    for vector, found in ((CHAT, EASY), (HARD_CODE, OF_CODE)):
        route = decided(knowledge, vector, found=found, demand=demand).route
        order = [route.model, *route.fallbacks]
        top = Tier.MEDIUM if target < 1 else Tier.COMPLEX
        assert {each.name for each in order} == {each.name for each in CATALOG.models if each.tier <= top}
        rank = [each.tier for each in order]
        above = sorted(tier for tier in rank if tier > rank[0])
        below = sorted((tier for tier in rank if tier < rank[0]), reverse=True)
        assert rank == [tier for tier in rank if tier is rank[0]] + above + below


def test_a_model_that_is_down_is_left_out(knowledge: Knowledge) -> None:
    low = replace(PLAIN, quality_target=0.8)
    route = decided(knowledge, demand=low, down={"mini": "no key"}).route
    assert route.model.name == "small"
    assert "mini" not in [each.name for each in route.fallbacks]
    assert next(item for item in route.candidates if item.model.name == "mini").rejected_reason == "down: no key"


def test_when_all_are_down_that_is_ignored_and_said(knowledge: Knowledge) -> None:
    low = replace(PLAIN, quality_target=0.8)
    route = decided(knowledge, demand=low, down={each.name: "no key" for each in CATALOG.models}).route
    assert route.model.name == "mini"
    assert "every able model is doubtful (mini: down: no key), which is ignored" in route.reason


def test_a_model_that_is_too_slow_for_the_time_left_is_left_out(knowledge: Knowledge) -> None:
    slow = tuple(
        replace(each, first_token_seconds=5.0) if each.tier is Tier.SIMPLE else each for each in CATALOG.models
    )
    catalog = replace(CATALOG, models=slow)
    low = replace(PLAIN, quality_target=0.8)
    assert decided(knowledge, demand=low, catalog=catalog).route.model.tier is Tier.SIMPLE
    route = decided(knowledge, demand=replace(low, seconds_left=3.0), catalog=catalog).route
    assert route.model.tier is Tier.MEDIUM
    assert "3.0 s are left" in route.candidates[0].rejected_reason


@pytest.mark.parametrize("strategy", [Strategy.TRAINED, Strategy.FEATURES])
def test_when_no_model_can_each_reason_is_named(knowledge: Knowledge, strategy: Strategy) -> None:
    blind = tuple(replace(each, abilities=Abilities(korean=True)) for each in CATALOG.models)
    demand = replace(PLAIN, needs=Needs(vision=True), excluded_models=frozenset({"mid"}), ceiling=Tier.MEDIUM)
    with pytest.raises(TenthError, match="no model can take this request") as failed:
        decided(knowledge, demand=demand, catalog=replace(CATALOG, models=blind), strategy=strategy)
    assert failed.value.reason == "NO_ELIGIBLE_MODEL"
    assert failed.value.metadata == {
        "mini": "cannot see pictures",
        "small": "cannot see pictures",
        "mid": "excluded for now; cannot see pictures",
        "large": "above the ceiling medium; cannot see pictures",
    }


def test_a_model_without_a_price_is_not_preferred_for_being_free(knowledge: Knowledge) -> None:
    free = model("free", Tier.SIMPLE, None)
    low = replace(PLAIN, quality_target=0.8)
    route = decided(knowledge, demand=low, catalog=replace(CATALOG, models=(free, *CATALOG.models))).route
    assert route.model.name == "mini"
    assert [each.name for each in route.fallbacks[:2]] == ["small", "free"]
    assert route.candidates[0].expected_cost_nano_usd == -1
    assert route.candidates[0].utility < min(item.utility for item in route.candidates[1:3])


def test_an_arm_of_the_models_own_name_comes_first() -> None:
    heads = tiny_heads()

    def renamed(arms: tuple[str, ...]) -> tuple[str, ...]:
        return tuple("mini" if arm == LARGE else arm for arm in arms)

    experts = tuple(replace(expert, arms=renamed(expert.arms)) for expert in heads.experts)
    classes = {**heads.class_of, "mini": "class:large"}
    own = replace(heads, arms=renamed(heads.arms), experts=experts, class_of=classes)
    known = Knowledge(THRESHOLDS, own, QualityPrices(own.sample))
    like = tuple(
        replace(each, quality_like="class:small" if each.name == "mini" else "nobody") for each in CATALOG.models
    )
    found = decided(known, CODE, found=OF_CODE, catalog=replace(CATALOG, models=like))
    by_name = {item.model.name: item.success_probability for item in found.route.candidates}
    assert found.successes is not None
    assert by_name["mini"] == found.successes["mini"] != found.successes["class:small"]
    assert by_name["mid"] == found.successes["class:medium"], "an arm that nobody knows: the tier's class"


class Silent:
    """A classifier that must not be asked, or that names a tier."""

    def __init__(self, complexity: float | None = None) -> None:
        self.complexity = complexity

    async def judge(
        self, asked: Asked, by_features: Judgement, catalog: Catalog, why: str
    ) -> tuple[Judgement, bool, str, Sequence[Any]]:
        assert self.complexity is not None, "nobody may ask"
        return Judgement(self.complexity, by_features.floor), True, "the model says so", ()


def asked(**more: Any) -> Asked:
    base = Asked(
        "acme", "u", "p", "r-1", {}, Prompt(question="hello"), EASY, replace(PLAIN, quality_target=0.8),
        Embedding(CHAT, EMBEDDER),
    )  # fmt: skip
    return replace(base, **more)


Live = Callable[..., "Any"]


@pytest.fixture
def live(knowledge: Knowledge) -> Live:
    async def decide(
        request: Asked,
        rules: str = "",
        settings: DeciderSettings | None = None,
        random: float = 0.999,
        classifier: Silent | None = None,
        health: Health | None = None,
    ) -> tuple[Decision, str]:
        loaded = parse_rules(rules, "rules.yaml") if rules else Rules()
        decider = Decider(
            lambda: CATALOG,
            lambda: loaded,
            knowledge,
            health or Health(lambda: 0.0, failure_count=1, down_seconds=2.0, max_down_seconds=60.0),
            classifier or Silent(),
            SpendAccount(),
            settings or DeciderSettings(shares=ExplorationShares(0.0, 0.0)),
            lambda: random,
        )
        decision, preferred, _ = await decider.decide(request)
        return decision, preferred

    return decide


async def test_the_settings_strategy_then_the_rules_then_the_requests(live: Live) -> None:
    decision, preferred = await live(asked())
    assert (decision.strategy, preferred, decision.rule) == (Strategy.TRAINED, "mini", "")
    assert decision.heads_version == tiny_heads().version
    rule = "rules:\n  - name: plain\n    then: { strategy: features }\n"
    decision, _ = await live(asked(), rule)
    assert (decision.strategy, decision.rule) == (Strategy.FEATURES, "plain")
    decision, _ = await live(asked(strategy=Strategy.LLM), rule, classifier=Silent(0.9))
    assert decision.strategy is Strategy.LLM
    assert decision.route.model.tier is Tier.COMPLEX


async def test_a_rules_model_and_an_override_have_no_fallbacks(live: Live) -> None:
    decision, _ = await live(asked(), "rules:\n  - name: vip\n    then: { model: large }\n")
    assert (decision.strategy, decision.route.model.name) == (Strategy.RULES, "large")
    assert "large is named by a rule (vip)" in decision.route.reason
    assert decision.route.fallbacks == ()
    decision, _ = await live(asked(demand=replace(PLAIN, model="mid")))
    assert (decision.strategy, decision.route.model.name, decision.route.fallbacks) == (Strategy.OVERRIDE, "mid", ())


async def test_a_rules_floor_bounds_the_heads(live: Live) -> None:
    decision, _ = await live(asked(), "rules:\n  - name: high\n    then: { tier_floor: complex }\n")
    assert (decision.strategy, decision.route.model.name) == (Strategy.TRAINED, "large")


@pytest.mark.parametrize(
    ("shares", "kind"),
    [
        (ExplorationShares(0.5, 0.0, extra_spend=1e6), Exploration.EXPLORE),
        (ExplorationShares(0.0, 0.4, extra_spend=1e6), Exploration.AUDIT),
    ],
)
async def test_chance_draws_another_model(live: Live, shares: ExplorationShares, kind: Exploration) -> None:
    settings = DeciderSettings(shares=shares)
    decision, preferred = await live(asked(), settings=settings, random=0.0)
    assert (decision.exploration, preferred) == (kind, "mini")
    assert decision.route.model.name != "mini"
    assert decision.route.fallbacks[0].name == "mini"
    assert 0.0 < decision.propensity <= 0.5
    if kind is Exploration.AUDIT:
        assert decision.route.model.name == "large"
        assert "an audit by the strongest model" in decision.route.reason
    for untouched in (asked(dry_run=True), asked(demand=replace(PLAIN, excluded_models=frozenset({"mid"})))):
        decision, _ = await live(untouched, settings=settings, random=0.0)
        assert (decision.exploration, decision.propensity) == (Exploration.NONE, 1.0)


async def test_a_shadow_decides_without_effect(live: Live) -> None:
    settings = DeciderSettings(shadow=Strategy.FEATURES, shares=ExplorationShares(0.0, 0.0))
    decision, _ = await live(asked(found=replace(EASY, creative=1.0, code=1.0)), settings=settings)
    assert decision.strategy is Strategy.TRAINED
    assert decision.shadow is not None
    assert (decision.shadow.strategy, decision.shadow.model) == (Strategy.FEATURES, "large")
    assert decision.route.model.name != "large"
    assert (await live(asked(dry_run=True), settings=settings))[0].shadow is None


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_cascade_begins_with_the_cheap_model_and_never_in_a_stream(live: Live, streaming: bool) -> None:
    unsure = asked(
        strategy=Strategy.CASCADE, streaming=streaming, found=OF_CODE, embedding=Embedding(CODE, EMBEDDER),
        demand=replace(PLAIN, quality_target=0.95),
    )  # fmt: skip
    decision, _ = await live(unsure)
    if streaming:
        assert decision.cascade is None
        decision, _ = await live(replace(unsure, cascade=CascadeUse.ALLOW))
    assert decision.cascade is not None
    assert decision.strategy is Strategy.CASCADE
    assert decision.route.model.tier < decision.cascade.escalation.tier
    assert 0.0 < decision.cascade.min_confidence <= 1.0
    assert "answers first" in decision.route.reason
    assert decision.route.model not in decision.route.fallbacks
    off, _ = await live(replace(unsure, cascade=CascadeUse.OFF))
    assert off.cascade is None


async def test_a_model_that_failed_is_left_alone(live: Live) -> None:
    health = Health(lambda: 0.0, failure_count=1, down_seconds=2.0, max_down_seconds=60.0)
    health.note_failure("mini")
    decision, _ = await live(asked(), health=health)
    assert decision.route.model.name == "small"
