"""Thresholds move with the quality target; labels are read strictly."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.router.catalog import Tier
from services.router.classifier import (
    Judgement,
    Thresholds,
    classification_prompt,
    judge_label,
    parse_label,
    success_probability,
    wanted_tier,
)

THRESHOLDS = Thresholds(0.3, 0.6, 0.9)


@pytest.mark.parametrize(
    ("answer", "tier"),
    [
        ("simple", Tier.SIMPLE),
        (" Complex.\n", Tier.COMPLEX),
        ("**medium**", Tier.MEDIUM),
        ("simple or medium", None),
        ("I think it is simple", None),
        ("", None),
        ("단순", None),
        ("complexity", None),
    ],
)
def test_labels_are_exactly_one_word(answer: str, tier: Tier | None) -> None:
    assert parse_label(answer) is tier


@pytest.mark.parametrize(
    ("complexity", "tier"),
    [(0.0, Tier.SIMPLE), (0.29, Tier.SIMPLE), (0.3, Tier.MEDIUM), (0.59, Tier.MEDIUM), (0.6, Tier.COMPLEX)],
)
def test_the_default_target_uses_the_thresholds_as_set(complexity: float, tier: Tier) -> None:
    assert wanted_tier(Judgement(complexity, Tier.SIMPLE), 0.9, THRESHOLDS) is tier


@settings(deadline=None)
@given(st.floats(0, 1), st.floats(0.01, 1), st.floats(0.01, 1))
def test_wanting_more_never_gives_a_lower_tier(complexity: float, one: float, other: float) -> None:
    judgement = Judgement(complexity, Tier.SIMPLE)
    low, high = sorted((one, other))
    assert wanted_tier(judgement, low, THRESHOLDS) <= wanted_tier(judgement, high, THRESHOLDS)


@settings(deadline=None)
@given(st.floats(0, 1))
def test_stronger_tiers_succeed_more_often(complexity: float) -> None:
    chances = [success_probability(tier, complexity, THRESHOLDS) for tier in Tier]
    assert chances == sorted(chances)
    assert all(0 < chance < 1 for chance in chances)


def test_all_the_quality_is_the_strongest_tier() -> None:
    assert wanted_tier(Judgement(0.0, Tier.SIMPLE), 1.0, THRESHOLDS) is Tier.COMPLEX


@pytest.mark.parametrize("tier", list(Tier))
def test_a_label_gives_its_tier_at_the_default_target(tier: Tier) -> None:
    by_features = Judgement(0.5, Tier.SIMPLE)
    assert wanted_tier(judge_label(tier, by_features), 0.9, THRESHOLDS) is tier


def test_a_long_question_is_cut_for_the_classifier() -> None:
    assert len(classification_prompt("word " * 100_000)) < 3500
