"""Bounds, abilities, fallbacks, and what is said when nothing fits."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import Code, TenthError
from services.router.catalog import Abilities, Catalog, Model, ReferencePrice, Tier
from services.router.classifier import Judgement, Thresholds
from services.router.decision import Demand, Needs, Route
from services.router.policy import choose, estimate_tokens, expected_cost_nano_usd, tier_order

ALL = Abilities(tools=True, json_schema=True, vision=True, korean=True)
THRESHOLDS = Thresholds(0.3, 0.6, 0.9)


def model(name: str, tier: Tier, abilities: Abilities = ALL, window: int = 100_000, **more: Any) -> Model:
    return Model(name, "p", tier, window, window // 2, 100, abilities, price=ReferencePrice(10**9, 2 * 10**9), **more)


CATALOG = Catalog(
    (
        model("local", Tier.SIMPLE, Abilities(json_schema=True), 8192),
        model("mini", Tier.SIMPLE),
        model("haiku", Tier.MEDIUM),
        model("hidden", Tier.MEDIUM, routable=False),
        model("gpt", Tier.MEDIUM),
        model("opus", Tier.COMPLEX, window=200_000),
    ),
    Tier.MEDIUM,
    "mini",
    "v",
)
PLAIN = Demand(Needs(), 100)


def route(complexity: float, demand: Demand = PLAIN) -> Route:
    return choose(CATALOG, demand, Judgement(complexity, Tier.SIMPLE), THRESHOLDS, "test")


def names(decision: Route) -> list[str]:
    return [decision.model.name, *(item.name for item in decision.fallbacks)]


@pytest.mark.parametrize(
    ("complexity", "change", "order"),
    [
        (0.1, {}, ["local", "mini", "haiku", "gpt", "opus"]),
        (0.5, {}, ["haiku", "gpt", "opus", "mini", "local"]),
        (0.9, {}, ["opus", "haiku", "gpt", "local", "mini"]),
        (0.1, {"floor": Tier.MEDIUM}, ["haiku", "gpt", "opus"]),
        (0.9, {"ceiling": Tier.MEDIUM}, ["haiku", "gpt", "local", "mini"]),
        (0.9, {"budget_ceiling": Tier.SIMPLE}, ["local", "mini"]),
        (0.9, {"budget_ceiling": Tier.MEDIUM, "floor": Tier.MEDIUM}, ["haiku", "gpt"]),
        (0.1, {"needs": Needs(korean=True)}, ["mini", "haiku", "gpt", "opus"]),
        (0.1, {"needs": Needs(tools=True)}, ["mini", "haiku", "gpt", "opus"]),
        (0.1, {"needs": Needs(json_schema=True)}, ["local", "mini", "haiku", "gpt", "opus"]),
        (0.1, {"prompt_token_count": 8192}, ["mini", "haiku", "gpt", "opus"]),
        (0.1, {"max_output_tokens": 9000}, ["mini", "haiku", "gpt", "opus"]),
        (0.1, {"max_output_tokens": 10**9, "needs": Needs(tools=True)}, ["opus"]),
        (0.1, {"excluded_models": frozenset({"local", "mini"})}, ["haiku", "gpt", "opus"]),
        (0.5, {"excluded_models": frozenset({"haiku"})}, ["gpt", "opus", "mini", "local"]),
        (0.1, {"quality_target": 1.0}, ["opus", "haiku", "gpt", "local", "mini"]),
        (0.9, {"model": "hidden"}, ["hidden"]),
        (0.9, {"model": "local", "needs": Needs(korean=True)}, ["local"]),
    ],
)
def test_order(complexity: float, change: dict[str, object], order: list[str]) -> None:
    decision = route(complexity, replace(PLAIN, **change))  # type: ignore[arg-type]  # Any of the fields.
    # Within a lower tier the catalogue's order holds as well.
    assert sorted(names(decision)) == sorted(order)
    assert names(decision)[0] == order[0]
    tiers = [CATALOG.model(name).tier for name in names(decision)]  # type: ignore[union-attr]  # All are known.
    assert tiers == [CATALOG.model(name).tier for name in order]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("change", "code", "reason", "field"),
    [
        ({"model": "nope"}, Code.INVALID_ARGUMENT, "UNKNOWN_MODEL", "request.policy.model"),
        (
            {"model": "local", "needs": Needs(tools=True)},
            Code.FAILED_PRECONDITION,
            "NO_ELIGIBLE_MODEL",
            "request.policy.model",
        ),
        (
            {"model": "opus", "budget_ceiling": Tier.MEDIUM},
            Code.FAILED_PRECONDITION,
            "NO_ELIGIBLE_MODEL",
            "request.policy.model",
        ),
        (
            {"floor": Tier.COMPLEX, "ceiling": Tier.SIMPLE},
            Code.INVALID_ARGUMENT,
            "CONTRADICTORY_BOUNDS",
            "request.policy.tier_floor",
        ),
        (
            {"floor": Tier.COMPLEX, "budget_ceiling": Tier.SIMPLE},
            Code.FAILED_PRECONDITION,
            "NO_ELIGIBLE_MODEL",
            "tier_ceiling",
        ),
        ({"prompt_token_count": 10**6}, Code.FAILED_PRECONDITION, "NO_ELIGIBLE_MODEL", ""),
        (
            {"excluded_models": frozenset({"opus"}), "floor": Tier.COMPLEX},
            Code.FAILED_PRECONDITION,
            "NO_ELIGIBLE_MODEL",
            "",
        ),
    ],
)
def test_refusals(change: dict[str, object], code: Code, reason: str, field: str) -> None:
    with pytest.raises(TenthError) as caught:
        route(0.5, replace(PLAIN, **change))  # type: ignore[arg-type]  # Any of the fields.
    assert (caught.value.code, caught.value.reason, caught.value.field) == (code, reason, field)


def test_a_refusal_says_why_each_model_was_left_out() -> None:
    with pytest.raises(TenthError) as caught:
        route(0.5, replace(PLAIN, prompt_token_count=10**6, excluded_models=frozenset({"gpt"})))
    assert set(caught.value.metadata) == {item.name for item in CATALOG.models}
    assert "excluded for now" in caught.value.metadata["gpt"]
    assert "context window" in caught.value.metadata["opus"]


def test_every_candidate_is_explained() -> None:
    decision = route(0.5, replace(PLAIN, needs=Needs(korean=True), ceiling=Tier.MEDIUM))
    reasons = {item.model.name: item.rejected_reason for item in decision.candidates}
    assert reasons == {
        "local": "weak in Korean",
        "mini": "",
        "haiku": "",
        "hidden": "only by name",
        "gpt": "",
        "opus": "above the ceiling medium",
    }
    assert "complexity 0.50 at quality target 0.90: medium" in decision.reason


def test_expected_cost() -> None:
    # 1,000 prompt tokens at 1 USD and 100 output tokens at 2 USD a million.
    assert expected_cost_nano_usd(CATALOG.models[0], 1000, None) == 1_200_000
    assert expected_cost_nano_usd(CATALOG.models[0], 1000, 10) == 1_020_000
    assert expected_cost_nano_usd(replace(CATALOG.models[0], price=None), 1000, None) == -1


def test_estimates_are_on_the_high_side() -> None:
    assert estimate_tokens(1000, 0, 1, 0) == 306
    assert estimate_tokens(1000, 1000, 1, 1) == 1806


_TIERS = st.sampled_from([None, *Tier])


@settings(deadline=None)
@given(st.floats(0, 1), _TIERS, _TIERS, _TIERS, st.sets(st.sampled_from([item.name for item in CATALOG.models])))
def test_the_bounds_hold_whatever_is_asked(
    complexity: float, floor: Tier | None, ceiling: Tier | None, budget: Tier | None, excluded: set[str]
) -> None:
    demand = replace(PLAIN, floor=floor, ceiling=ceiling, budget_ceiling=budget, excluded_models=frozenset(excluded))
    try:
        decision = route(complexity, demand)
    except TenthError as error:
        if error.reason not in ("NO_ELIGIBLE_MODEL", "CONTRADICTORY_BOUNDS"):
            raise
        return
    for item in (decision.model, *decision.fallbacks):
        assert (floor or Tier.SIMPLE) <= item.tier <= min(ceiling or Tier.COMPLEX, budget or Tier.COMPLEX)
        assert item.name not in excluded
    assert len(set(names(decision))) == len(names(decision))


def test_tier_order() -> None:
    assert tier_order(Tier.MEDIUM, Tier.SIMPLE, Tier.COMPLEX) == (Tier.MEDIUM, Tier.COMPLEX, Tier.SIMPLE)
    assert tier_order(Tier.COMPLEX, Tier.MEDIUM, Tier.COMPLEX) == (Tier.COMPLEX, Tier.MEDIUM)
