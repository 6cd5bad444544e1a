"""Which rows are measured, what is compared, and what choosing among models costs; heads and vectors are fakes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from bench import router_costs, router_systems, router_target
from bench.result import Result
from bench.router_costs import Costs, picks, price_on_grid
from bench.router_heads import Shipped, Vectors
from bench.router_sets import QUICK_ROWS, Choice, MeasuredSet
from services.router.catalog import Abilities, Catalog, Model, ReferencePrice, Tier
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
class FakePrediction:
    success: dict[str, float] = field(default_factory=dict)
    expected_output_tokens: float = 100.0
    out_of_distribution: bool = False


@dataclass(frozen=True)
class FakeHeads:
    """They know that ``small`` fails on what is hard; ``sign`` -1 has it the wrong way round."""

    arms: tuple[str, ...] = ("small", "large", SMALL, LARGE)
    embedder_version: str = "fake@1"
    sign: float = 1.0

    def predict(self, vector: Vectors, features: Features) -> FakePrediction:
        return FakePrediction(dict(zip(self.arms, self.predict_many(vector[None], [features])[0], strict=True)))

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


def test_heads_of_a_set_that_training_never_saw() -> None:
    heads, other = FakeHeads(), FakeHeads(sign=-1.0)
    shipped = Shipped(heads, {"seen": other})
    assert shipped.system_heads("seen") == {"ours_in_domain": heads, "ours_transfer": other}
    assert shipped.system_heads("unseen") == {"ours_transfer": heads}
    assert Shipped(None, {}).system_heads("seen") == {}


def test_picks_weigh_success_against_cost() -> None:
    success = np.array([[0.5, 0.9], [0.8, 0.9], [0.9, 0.9]])
    cost = np.array([[1.0, 2.0]] * 3)
    assert picks(success, cost, 0.2).tolist() == [1, 0, 0]
    assert picks(success, cost, 0.0).tolist() == [1, 1, 0]  # the cheaper of equals
    assert picks(success, cost, 1.0).tolist() == [0, 0, 0]


def test_the_price_is_the_cheapest_that_keeps_the_wanted_quality() -> None:
    success = np.array([[0.1, 0.9], [0.8, 0.9]])
    cost, quality = np.array([[0.001, 0.01]] * 2), np.array([[0.0, 1.0], [1.0, 1.0]])
    assert picks(success, cost, price_on_grid(success, cost, quality, 1.0)).tolist() == [1, 0]
    assert picks(success, cost, price_on_grid(success, cost, quality, 0.5)).tolist() == [0, 0]
    # What nobody reaches is come near to, at the least cost.
    assert picks(success, cost, price_on_grid(success, cost, quality, 2.0)).tolist() == [1, 0]


def test_costs_beside_the_best_single_model() -> None:
    result, measured = Result("router", False), _set(_rows(80))
    costs = Costs(measured)
    frontier = router_costs.measure(result, costs, {"ours_in_domain": FakeHeads()}, resamples(80, 20, 7))
    assert result.assumptions["unseen_best_single"] == "large"
    assert result.metrics["unseen/ours_in_domain/score_ratio"]["value"] == 1.0
    # A quarter of the calls at 0.01, the others at 0.001.
    assert result.metrics["unseen/ours_in_domain/cost_ratio"]["value"] == pytest.approx(0.25 + 0.75 * 0.1)
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


def _model(name: str, tier: Tier, price: int | None, routable: bool = True) -> Model:
    reference = None if price is None else ReferencePrice(price, price)
    return Model(name, "fake", tier, 8000, 1000, 100, Abilities(), routable=routable, price=reference)


def test_the_cheapest_priced_model_of_a_tier_stands_for_its_class() -> None:
    models = (
        _model("free", Tier.SIMPLE, None),
        _model("a", Tier.SIMPLE, 200_000),
        _model("b", Tier.SIMPLE, 100_000),
        _model("hidden", Tier.COMPLEX, 1, routable=False),
        _model("c", Tier.COMPLEX, 1_000_000),
    )
    found = router_target.cheapest_by_arm(Catalog(models, Tier.MEDIUM, "", "1"))
    assert {arm: model.name for arm, model in found.items()} == {SMALL: "b", LARGE: "c"}


def test_the_quality_that_is_kept() -> None:
    by_arm = {SMALL: _model("b", Tier.SIMPLE, 100_000_000), LARGE: _model("c", Tier.COMPLEX, 1_000_000_000)}
    rows = [
        Row(
            "unseen", row.row_id, row.text, "",
            {"mistral-7b": row.quality["small"], "gpt-5": row.quality["large"]}, {}, {},
        )
        for row in _rows(40)
    ]  # fmt: skip
    measured, result = _set(rows), Result("router", False)
    frugal = router_target.keep(measured, FakeHeads(), by_arm, price=1e9)
    careful = router_target.keep(measured, FakeHeads(), by_arm, price=1.0)
    router_target.add(result, [frugal], 20, 7)
    assert result.metrics["quality_target/unseen/ratio_95"]["value"] == 0.75
    assert result.metrics["quality_target/unseen/cost_share_95"]["value"] == pytest.approx(0.1, abs=0.01)
    assert result.metrics["quality_target/all/violations"]["value"] == 1
    router_target.add(result, [careful], 20, 7)
    assert result.metrics["quality_target/all/ratio_95"]["value"] == 1.0
    assert result.metrics["quality_target/all/violations"]["value"] == 0
    assert result.metrics["quality_target/all/cost_share_95"]["value"] == pytest.approx(0.325, abs=0.01)
    with pytest.raises(ValueError, match="fewer than two"):
        router_target.keep(measured, FakeHeads(arms=(SMALL,)), by_arm, 1.0)
