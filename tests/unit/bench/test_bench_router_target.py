"""Whole decisions on recorded rows, and prices by heads of other folds; the heads are real ones, trained on a toy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bench import router_decision, router_target
from bench.result import Result
from bench.router_costs import Costs, recipe_of
from bench.router_heads import Loaded, Vectors, load
from bench.router_sets import Choice, MeasuredSet
from services.router.catalog import Abilities, Catalog, Model, ReferencePrice, Tier
from services.router.datasets import LARGE, MEDIUM, Row
from services.router.decide import Knowledge
from services.router.decision import Strategy
from services.router.features import Prompt, extract
from services.router.fit import RECIPES
from services.router.heads import Heads, heads_from_bytes
from services.router.settings import RouterSettings
from services.router.train import FEATURE_NAMES, Corpus, Everyday, train

NAME = "routellm_mmlu"
WEAK, STRONG = "mixtral-8x7b", "gpt-4-1106"


class Memory:
    """The vector of a text is whether it is hard, and a little noise that tells texts apart."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        rows = []
        for text in texts:
            noise = np.random.default_rng(int(text.split()[-1])).normal(0, 0.15, 4)
            rows.append(np.array([1.0, 0.0, 0.0, 0.0] if text.startswith("hard") else [0.0, 1.0, 0.0, 0.0]) + noise)
        return np.array(rows, np.float32)

    def load(self, name: str) -> None:
        pass

    def save(self, name: str) -> None:
        pass


def _rows(count: int) -> list[Row]:
    """Every fourth row is hard: the strong model gets it right, at ten times the cost, the weak one rarely.

    Of the easy ones the weak model rarely fails: nothing is separated so clearly that it cannot be calibrated.
    """
    found = []
    for number in range(count):
        hard = number % 4 == 0
        text = f"{'hard' if hard else 'easy'} question on a topic {number}"
        odd = number % 25 == 0
        quality = {WEAK: float(hard == odd), STRONG: 1.0} | ({"mistral-7b": 0.0} if number < 3 else {})
        found.append(Row(NAME, str(number), text, "", quality, {WEAK: 0.001, STRONG: 0.01}, {}))
    return found


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return _rows(1000)


@pytest.fixture(scope="module")
def heads(rows: list[Row]) -> Heads:
    vectors = Memory().encode([row.text for row in rows])
    features = [extract(Prompt(question=row.text)) for row in rows]
    numbers = np.array([[getattr(each, name) for name in FEATURE_NAMES] for each in features], np.float32)
    none = Everyday(vectors[:0], numbers[:0])
    content = train(Corpus(tuple(rows), vectors, numbers, none), "toy@1", {NAME: RECIPES[0]}, 7, folds=2)
    return heads_from_bytes(content, "toy")


@pytest.fixture
def measured(rows: list[Row]) -> MeasuredSet:
    return MeasuredSet(NAME, rows, Choice(quick=False, held_out=False, seed=7), Memory())


def _model(name: str, tier: Tier, price: int | None) -> Model:
    reference = None if price is None else ReferencePrice(price, price)
    return Model(name, "fake", tier, 8000, 1000, 100, Abilities(korean=True), price=reference)


@pytest.fixture
def catalog() -> Catalog:
    models = (
        _model("tiny", Tier.SIMPLE, 1_000_000),
        _model("middle", Tier.MEDIUM, 100_000_000),
        _model("big", Tier.COMPLEX, 1_000_000_000),
    )
    return Catalog(models, Tier.MEDIUM, "", "1")


@pytest.fixture
def knowledge(heads: Heads) -> Knowledge:
    return router_target.knowledge_of(heads, RouterSettings(heads_file=None))


def test_the_routers_own_decisions_are_measured(measured: MeasuredSet, knowledge: Knowledge, catalog: Catalog) -> None:
    kept = [router_target.keep(measured, knowledge, catalog, target) for target in (0.8, 0.95)]
    result = Result("router", False)
    router_target.add(result, kept, knowledge, catalog, 20, 7)
    values = {name.removeprefix("quality_target/"): metric["value"] for name, metric in result.metrics.items()}
    # On hardly any row was the simple class recorded: its model is not taken, and hard questions go to the dearest.
    assert values[f"{NAME}/ratio_95"] > 0.95
    assert values["all/cost_share_95"] == pytest.approx(0.25 + 0.75 * 0.1, abs=0.05)
    assert values["all/bound_95"] >= 0.95
    assert values["all/ratio_80"] >= 0.8
    assert values["all/violations"] == 0
    assert f"{NAME}/ratio_80" not in values
    assert result.metrics["quality_target/all/violations"]["n"] == 2


def test_what_falls_short_beyond_noise_is_a_violation(knowledge: Knowledge, catalog: Catalog) -> None:
    result = Result("router", False)
    quality, ones = np.tile([0.0, 1.0, 1.0, 1.0], 50), np.ones(200)
    short = router_target.Kept("mine", 0.95, quality, ones, ones, ones)
    noisy = router_target.Kept("other", 0.95, np.array([0.0, 1.0]), np.ones(2), np.ones(2), np.ones(2))
    router_target.add(result, [short, noisy], knowledge, catalog, 50, 7)
    assert result.metrics["quality_target/mine/violations"]["value"] == 1
    assert result.metrics["quality_target/other/violations"]["value"] == 0
    assert result.metrics["quality_target/all/violations"]["value"] == 2


def test_a_set_without_two_classes_of_the_catalogue_has_no_choice(
    measured: MeasuredSet, knowledge: Knowledge, catalog: Catalog
) -> None:
    alone = Catalog(catalog.models[2:], Tier.MEDIUM, "", "2")
    with pytest.raises(ValueError, match="two of the catalogue's classes"):
        router_target.keep(measured, knowledge, alone, 0.95)


def test_a_decision_is_timed_as_it_is_taken(knowledge: Knowledge, catalog: Catalog) -> None:
    decide = router_decision.decider(knowledge, catalog)
    found = decide("hard question on a topic 4", Memory().encode(["hard question on a topic 4"])[0])
    assert found.strategy is Strategy.TRAINED
    assert found.route.model in catalog.models
    result = Result("router", False)
    questions = ["hard question on a topic 4", "easy question on a topic 5"]
    router_decision.measure(result, questions, Memory().encode(questions), knowledge, catalog)
    assert {f"decision/{step}/p50_us" for step in ("features", "heads", "ours")} <= set(result.metrics)


def test_prices_are_set_on_what_heads_of_other_folds_say(measured: MeasuredSet, heads: Heads) -> None:
    costs = Costs(measured)
    places, success = costs.success(heads)
    learned = costs.learned(heads, places, success, 7)
    weak = places.index(costs.models.index(WEAK))
    seen = success[costs.training]
    assert learned.success.shape == seen.shape
    assert not np.array_equal(learned.success[:, weak], seen[:, weak])
    hard = np.array([measured.rows[place].text.startswith("hard") for place in costs.training])
    assert learned.success[hard, weak].mean() < 0.3 < 0.7 < learned.success[~hard, weak].mean()


def test_the_recipe_of_an_expert_is_told_by_its_parts(heads: Heads) -> None:
    assert recipe_of(heads.experts[0]) == RECIPES[0]


def test_which_heads_a_set_is_measured_with(heads: Heads, tmp_path: Path) -> None:
    loaded = Loaded(heads, "heads.npz", {"omnisbench": heads})
    assert set(loaded.by_system("omnisbench")) == {"ours_in_domain", "ours_transfer"}
    # Trained on, and no heads without it.
    assert set(loaded.by_system("routerdc_7models")) == {"ours_in_domain"}
    assert set(loaded.by_system("unseen")) == {"ours_transfer"}
    assert Loaded(None).by_system("omnisbench") == {}
    assert load(held_out=True, folder=tmp_path) == Loaded(None)


def test_classes_of_the_toy_are_those_of_its_models(heads: Heads) -> None:
    assert {MEDIUM, LARGE, WEAK, STRONG} <= set(heads.arms)
