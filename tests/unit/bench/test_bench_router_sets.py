"""Which rows are measured, what is compared, and what choosing among models costs; heads and vectors are fakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from bench import router_costs, router_systems
from bench.result import Result
from bench.router_costs import Costs
from bench.router_heads import Vectors
from bench.router_sets import QUICK_ROWS, Choice, MeasuredSet
from services.router.datasets import LARGE, SMALL, Row, held_out
from services.router.features import Features
from services.router.scores import Floats, resamples

ALL = Choice(quick=False, held_out=False, seed=7)
HELD_OUT = Choice(quick=False, held_out=True, seed=7)
QUICK = Choice(quick=True, held_out=False, seed=7)


class FakeMemory:
    """The vector of a text is whether it is hard."""

    def __init__(self) -> None:
        self.kept: list[str] = []

    def encode(self, texts: Sequence[str]) -> Vectors:
        return np.array([[1.0, 0.0] if text.startswith("hard") else [0.0, 1.0] for text in texts], np.float32)

    def load(self, name: str) -> None:
        pass

    def save(self, name: str) -> None:
        self.kept.append(name)


@dataclass(frozen=True)
class FakeHeads:
    """They know that ``small`` fails on what is hard; ``sign`` -1 has it the wrong way round."""

    arms: tuple[str, ...] = ("small", "large", SMALL, LARGE)
    sign: float = 1.0

    def predict_many(self, vectors: Vectors, features: Sequence[Features]) -> Floats:
        assert len(features) == len(vectors)
        hard = vectors[:, 0].astype(np.float64)
        by_arm = {"small": 0.9 - 0.8 * hard, SMALL: 0.9 - 0.8 * hard, "large": 0.9 + 0 * hard, LARGE: 0.9 + 0 * hard}
        return np.stack([by_arm[arm] for arm in self.arms], axis=1)

    def gain_many(self, vectors: Vectors, features: Sequence[Features], weak: str, strong: str) -> Floats:
        if weak not in self.arms:
            raise KeyError(weak)
        return self.sign * vectors[:, 0].astype(np.float64)


def _rows(count: int, hard_every: int = 4, name: str = "unseen", weak: str = "small") -> list[Row]:
    """Every so many rows are hard: only ``large``, ten times as dear, gets them right."""
    rows = []
    for number in range(count):
        hard = number % hard_every == 0
        rows.append(
            Row(
                name, str(number), f"{'hard' if hard else 'easy'} question {number}", "hard" if hard else "easy",
                {weak: 0.0 if hard else 1.0, "large": 1.0}, {weak: 0.001, "large": 0.01}, {},
            )
        )  # fmt: skip
    return rows


def _set(rows: Sequence[Row], choice: Choice = ALL) -> MeasuredSet:
    return MeasuredSet(rows[0].set_name, rows, choice, FakeMemory())


def test_the_worst_and_the_best_model_are_compared_where_no_pair_is_named() -> None:
    measured = _set(_rows(40))
    assert (measured.weak, measured.strong) == ("small", "large")
    assert measured.gain[measured.measured].sum() == 10


def test_a_named_pair_is_taken_where_it_is_recorded() -> None:
    rows = [Row("omnisbench", "1", "a", "", {"gpt-5-nano": 1.0, "claude-opus-5": 0.0}, {}, {})]
    measured = _set(rows)
    assert (measured.weak, measured.strong) == ("gpt-5-nano", "claude-opus-5")
    rows = [Row("omnisbench", "1", "a", "", {"small": 0.0, "large": 1.0}, {}, {})]
    assert _set(rows).strong == "large"


def test_held_out_rows_are_those_that_training_never_saw() -> None:
    rows = _rows(200)
    measured = _set(rows, HELD_OUT)
    assert [measured.rows[place] for place in measured.measured] == [row for row in rows if held_out(row)]
    assert [measured.rows[place] for place in measured.training] == [row for row in rows if not held_out(row)]
    assert 0 < len(measured.measured) < 100


def test_a_quick_run_takes_a_sample() -> None:
    measured = _set(_rows(QUICK_ROWS + 50), QUICK)
    assert len(set(measured.measured.tolist())) == QUICK_ROWS


def test_nothing_to_compare() -> None:
    with pytest.raises(ValueError, match="two models"):
        _set([Row("unseen", "1", "a", "", {"only": 1.0}, {}, {})])
    with pytest.raises(ValueError, match="no row to measure"):
        _set([row for row in _rows(40) if not held_out(row)], HELD_OUT)


def test_every_system_of_a_set() -> None:
    result, measured = Result("router", False), _set(_rows(80))
    heads = {"ours_in_domain": FakeHeads(), "ours_transfer": FakeHeads(sign=-1.0)}
    scores = router_systems.scores(measured, heads, 7, result.skipped.append, held_out=False)
    router_systems.add(result, measured, scores, resamples(80, 50, 7))
    assert result.skipped == []
    values = {name.removeprefix("unseen/"): metric["value"] for name, metric in result.metrics.items()}
    assert values["always_weak/quality"] == 0.75
    assert values["always_strong/quality"] == values["oracle/quality"] == 1.0
    assert values["ours_in_domain/apgr"] == pytest.approx(88 / 101)
    assert values["ours_transfer/apgr"] == pytest.approx(1 - values["ours_in_domain/apgr"])
    assert values["random/apgr"] == pytest.approx(0.5)
    assert values["ours_in_domain/cpt80"] == pytest.approx(0.2)
    # Tasks and vectors tell hard from easy as well; ranks within folds of unlike mixtures are a little off.
    assert values["task_prior/apgr"] > 0.8
    assert values["knn/apgr"] > 0.8
    assert result.metrics["unseen/knn/apgr"]["ci95"] is not None
    assert "task_prior_in_domain" not in scores


def test_on_held_out_rows_the_baselines_also_learn_from_the_rows_of_training() -> None:
    measured = _set(_rows(400), HELD_OUT)
    scores = router_systems.scores(measured, {}, 7, lambda _: None, held_out=True)
    gain = measured.gain[measured.measured]
    for name in ("task_prior_in_domain", "knn_in_domain"):
        assert len(scores[name]) == len(measured.measured)
        assert scores[name][gain > 0].min() > scores[name][gain == 0].max()


def test_what_cannot_be_scored_is_said() -> None:
    said: list[str] = []
    rows = [Row("unseen", row.row_id, row.text, "", row.quality, {}, {}) for row in _rows(20, weak="strange")]
    measured = MeasuredSet("unseen", rows, ALL, FakeMemory())
    scores = router_systems.scores(measured, {"ours_transfer": FakeHeads()}, 7, said.append, held_out=False)
    assert set(scores) == {"knn", "length", "random"}
    assert len(said) == 2
    assert "the heads know nothing of strange" in said[0]
    assert said[1] == "unseen/task_prior: the set tells no tasks apart"


def test_without_an_embedder_there_is_length_at_least() -> None:
    said: list[str] = []
    measured = MeasuredSet("unseen", _rows(20), ALL, None)
    scores = router_systems.scores(measured, {"ours_transfer": FakeHeads()}, 7, said.append, held_out=False)
    assert set(scores) == {"task_prior", "length", "random"}
    assert said == ["unseen/knn: no embedder"]


def test_a_set_without_a_gap_has_no_apgr() -> None:
    rows = [
        Row("omnisbench", str(number), f"easy {number}", "", {"gpt-5-nano": 1.0, "claude-opus-5": 0.5}, {}, {})
        for number in range(9)
    ]
    result, measured = Result("router", False), _set(rows)
    scores = router_systems.scores(measured, {}, 7, lambda _: None, held_out=False)
    router_systems.add(result, measured, scores, resamples(9, 20, 7))
    assert not [name for name in result.metrics if name.endswith("apgr")]
    assert result.metrics["omnisbench/always_weak/quality"]["value"] == 1.0
    (said,) = result.skipped
    assert "claude-opus-5 is no better than gpt-5-nano on 9 rows (-0.500)" in said


def test_costs_beside_the_best_single_model() -> None:
    result, measured = Result("router", False), _set(_rows(80))
    costs = Costs(measured)
    frontier = router_costs.measure(result, costs, {"ours_in_domain": FakeHeads()}, resamples(80, 20, 7), 7)
    assert result.assumptions["unseen_best_single"] == "large"
    assert result.metrics["unseen/ours_in_domain/score_ratio"]["value"] == 1.0
    # A quarter of the calls at 0.01, the others at 0.001.
    assert result.metrics["unseen/ours_in_domain/cost_ratio"]["value"] == pytest.approx(0.25 + 0.75 * 0.1)
    assert result.metrics["unseen/ours_in_domain/cost_ratio_at_60"]["value"] == pytest.approx(0.325)
    assert result.metrics["unseen/ours_in_domain/score_ratio_on_average"]["value"] == 1.0
    assert frontier.single == {"small": pytest.approx((0.1, 0.75)), "large": (1.0, 1.0)}
    assert frontier.operating["ours_in_domain"] == pytest.approx((0.325, 1.0))
    assert frontier.by_system["ours_in_domain"][0] == pytest.approx((0.1, 0.75))


def test_expected_cost_does_not_look_at_the_rows_own() -> None:
    rows = _rows(200)
    own = next(place for place, row in enumerate(rows) if held_out(row))
    dear = [
        Row(row.set_name, row.row_id, row.text, row.task, row.quality, {"small": 9.0, "large": 9.0}, {})
        if place == own
        else row
        for place, row in enumerate(rows)
    ]
    assert Costs(_set(rows, HELD_OUT)).expected_usd == pytest.approx(Costs(_set(dear, HELD_OUT)).expected_usd)


def test_expected_cost_rises_with_the_questions_length() -> None:
    rows = [
        Row("unseen", str(size), "x" * size, "", {"small": 0.0, "large": 1.0}, {"small": size / 1e6, "large": 1e-3}, {})
        for size in range(1, 60)
    ]
    costs = Costs(_set(rows))
    by_model = dict(zip(costs.models, costs.expected_usd.T, strict=True))
    assert by_model["small"][20:] == pytest.approx([size / 1e6 for size in range(21, 60)])
    assert by_model["large"] == pytest.approx([1e-3] * 59)


def test_sets_without_costs_have_none_to_compare() -> None:
    rows = [Row(row.set_name, row.row_id, row.text, "", row.quality, {}, {}) for row in _rows(20)]
    with pytest.raises(ValueError, match="no recorded costs"):
        Costs(_set(rows))
