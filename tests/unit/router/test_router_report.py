from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from services.router.catalog import Tier
from services.router.decision import Exploration, Shadow, Strategy
from services.router.drift import stability_index
from services.router.outcomes import Completion, Feedback, Outcome, RecordedCandidate, ScoreSource, evidence
from services.router.report import build, wilson

CHEAP = RecordedCandidate("cheap", Tier.SIMPLE, 0.8, 100, 50)
STRONG = RecordedCandidate("strong", Tier.COMPLEX, 0.95, 1000, 80)


def outcome(request_id: str = "r", **more: object) -> Outcome:
    usual = Outcome(
        "acme", request_id, 1000.0, strategy=Strategy.FEATURES, model="cheap", tier=Tier.SIMPLE,
        candidates=(CHEAP, STRONG),
    )  # fmt: skip
    return replace(usual, **more)  # type: ignore[arg-type]  # Fields by name.


def said(score: float, source: ScoreSource = ScoreSource.CALLER) -> Feedback:
    return Feedback(score, source)


def test_the_sums_by_model() -> None:
    built = build(
        [
            outcome("a", feedback=said(1.0), completion=Completion("cheap", 10, 60, cost_nano_usd=120)),
            outcome("b", feedback=said(0.0), completion=Completion("strong", 10, 80, 0, ("cheap",), "", 900)),
            outcome("c", completion=Completion("strong", 10, 70, escalated_from="cheap", cost_nano_usd=1200)),
            outcome("d", exploration=Exploration.AUDIT, model="strong", preferred_model="cheap", propensity=0.005),
            outcome("e", exploration=Exploration.EXPLORE, model="cheap", preferred_model="strong"),
            outcome("f", shadow=Shadow("strong", Strategy.TRAINED), out_of_distribution=True),
            outcome("g", shadow=Shadow("cheap", Strategy.TRAINED), strategy=Strategy.RULES),
            outcome("h", model="", strategy=None, candidates=(), feedback=said(1.0)),
        ],
        {},
        heads_version="v1",
    )
    cheap, strong = built.models
    assert (cheap.decision_count, cheap.scored_count, cheap.mean_score, cheap.mean_predicted) == (6, 1, 1.0, 0.8)
    assert (cheap.failed_count, cheap.escalated_count) == (1, 1)
    assert (cheap.cost_nano_usd, cheap.expected_cost_nano_usd) == (120, 100)
    assert (cheap.output_token_count, cheap.expected_output_token_count) == (60, 50)
    # The one that answered is judged, not the one that was chosen.
    assert (strong.decision_count, strong.scored_count, strong.mean_score) == (1, 1, 0.0)
    assert (strong.cost_nano_usd, strong.expected_cost_nano_usd) == (2100, 2100)
    assert built.strategy_counts == {"features": 6, "rules": 1}
    assert (built.explored_count, built.audited_count, built.exploration_cost_nano_usd) == (1, 1, 900)
    assert (built.shadow_count, built.shadow_differs_count, built.out_of_distribution_count) == (2, 1, 1)
    assert (built.decision_count, built.heads_version, built.warnings) == (7, "v1", ())


def test_a_refused_first_answer_is_weak_evidence_and_no_feedback() -> None:
    found = outcome(completion=Completion("strong", escalated_from="cheap"), feedback=said(0.9))
    assert [(item.model, item.score, item.weight, item.source) for item in evidence(found)] == [
        ("strong", 0.9, 1.0, ScoreSource.CALLER),
        ("cheap", 0.0, 0.5, ScoreSource.ESCALATION),
    ]
    built = build([found], {})
    assert {item.model: item.scored_count for item in built.models} == {"cheap": 0, "strong": 1}


def test_wilson_against_published_values() -> None:
    # Newcombe (1998), table I: 81/263 and 0/20.
    assert wilson(81 / 263, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0.0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson(0.5, 0) == (0.0, 1.0)


def scored(rolled: random.Random, count: int, truth: float) -> list[Outcome]:
    made = []
    for number in range(count):
        feedback = said(float(rolled.random() < truth))
        made.append(outcome(f"r{number}", feedback=feedback, completion=Completion("cheap", 10, 50, cost_nano_usd=100)))
    return made


@pytest.mark.parametrize("seed", range(40))
def test_no_warning_on_noise(seed: int) -> None:
    assert build(scored(random.Random(seed), 300, 0.8), {}).warnings == ()


@pytest.mark.parametrize("seed", range(10))
def test_quality_that_falls_is_said(seed: int) -> None:
    (warning,) = build(scored(random.Random(seed), 300, 0.6), {}).warnings
    assert warning.startswith("cheap answers worse than predicted: 0.")


def test_few_scores_warn_of_nothing() -> None:
    assert build([outcome(str(number), feedback=said(0.0)) for number in range(49)], {}).warnings == ()


def test_costs_tokens_failures_and_losses_are_said() -> None:
    dear = [outcome(str(n), completion=Completion("cheap", 1, 150, cost_nano_usd=210)) for n in range(100)]
    failed = [outcome(f"f{n}", completion=Completion("", failed_models=("cheap",))) for n in range(20)]
    assert build([*dear, *failed], {}, dropped_count=3).warnings == (
        "cheap costs 2.1 times what was expected, over 100 answers",
        "cheap writes 3.00 times the output tokens that were expected, over 100 answers",
        "cheap failed in 20 of 120 attempts",
        "3 parts of outcomes were not recorded: the log's queue was full or its disk failed",
    )
    assert build(dear[:99], {}).warnings == ()


def test_questions_unlike_the_training_are_said() -> None:
    rows = [outcome(str(n), out_of_distribution=n % 3 == 0) for n in range(300)]
    assert build(rows, {}).warnings == ("100 of 300 questions are unlike all that the heads were trained on",)


def deciles(values: np.ndarray) -> list[float]:
    return [float(value) for value in np.quantile(values, np.linspace(0, 1, 11))]


def smooth(generator: np.random.Generator, count: int) -> np.ndarray:
    return generator.normal(size=count)


def mostly_zero(generator: np.random.Generator, count: int) -> np.ndarray:
    """As most features are: 0 for 85% of the questions, a few steps for the others."""
    return np.where(generator.random(count) < 0.87, 0.0, generator.choice([0.25, 0.5, 1.0], count))


def yes_or_no(generator: np.random.Generator, count: int) -> np.ndarray:
    return (generator.random(count) < 0.35).astype(float)


def grid(generator: np.random.Generator, count: int) -> np.ndarray:
    return generator.integers(0, 9, count) / 8.0


@pytest.mark.parametrize("kind", [smooth, mostly_zero, yes_or_no, grid])
@pytest.mark.parametrize("count", [200, 5000])
def test_no_drift_is_silent(kind: object, count: int) -> None:
    assert callable(kind)
    for seed in range(30):
        generator = np.random.default_rng(seed)
        trained = {"one": deciles(kind(generator, 20_000))}
        rows = [outcome(str(n), features={"one": float(v)}) for n, v in enumerate(kind(generator, count))]
        built = build(rows, trained)
        assert built.warnings == (), built.feature_drift
        assert 0.0 <= built.feature_drift["one"] < 0.2


@pytest.mark.parametrize(
    ("kind", "moved"),
    [
        (smooth, lambda values: values + 0.7),
        (smooth, lambda values: values * 3.0),
        (mostly_zero, lambda values: np.where(np.arange(len(values)) % 2, 1.0, values)),
        (yes_or_no, lambda values: np.ones(len(values))),
        (grid, lambda values: values / 3.0),
    ],
)
def test_drift_is_said(kind: object, moved: object) -> None:
    assert callable(kind)
    assert callable(moved)
    generator = np.random.default_rng(1)
    trained = {"one": deciles(kind(generator, 20_000))}
    rows = [outcome(str(n), features={"one": float(v)}) for n, v in enumerate(moved(kind(generator, 400)))]
    (warning,) = build(rows, trained).warnings
    assert "one is not spread as in training" in warning
    assert build(rows[:199], trained).feature_drift == {}


def test_the_index_by_hand() -> None:
    trained = [float(step) for step in range(11)]
    values = [step % 10 + 0.5 for step in range(1000)]
    assert stability_index(values, trained) == pytest.approx(0.0, abs=1e-12)
    # All of one tenth: (1 - 0.1) ln 10 and nine times (0 - 0.1) ln 0, of which half a row is left.
    assert 2.0 < stability_index([0.5] * 1000, trained) < 9.0
    with pytest.raises(ValueError, match="11 ascending deciles"):
        stability_index([1.0], [1.0, 2.0])
