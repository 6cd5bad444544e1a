"""Choosing among all models of a set whose costs were recorded: quality and cost beside the best single model.

Models are chosen as ``policy.choose_by_utility`` does, by success less price times cost, every model by its own arm.
The price is set on the rows of training, from what heads that did not see a row say of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.result import Result
from bench.router_heads import Judging, arm_of, success_by_model
from bench.router_pricing import PRICES, RULES, Learned, picks
from bench.router_sets import MeasuredSet
from bench.router_systems import put
from services.router import fit
from services.router.datasets import Row
from services.router.fit import RECIPES, Recipe
from services.router.heads import Expert, Heads, calibrated, expert_rows
from services.router.scores import Counts, Floats, Indices, mean, ratio

_COMPLETE = 0.9
"""A model counts when this share of the rows has its quality and its cost."""
_FOLDS = 5


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a system's picks gave on the measured rows."""

    quality: Floats
    cost_usd: Floats


@dataclass(frozen=True, slots=True)
class Frontier:
    """Everything of one set that the picture shows, as ratios to the best single model: (cost, quality)."""

    by_system: Mapping[str, Sequence[tuple[float, float]]]
    operating: Mapping[str, tuple[float, float]]
    single: Mapping[str, tuple[float, float]]


class Costs:
    """The rows of a set on which every model's quality and cost are known."""

    def __init__(self, measured: MeasuredSet) -> None:
        """Raises ValueError when costs were not recorded for two models and enough rows."""
        rows = measured.rows
        self.models = [
            model
            for model in sorted({model for row in rows for model in row.cost_usd})
            if sum(_known(row, model) for row in rows) >= _COMPLETE * len(rows)
        ]
        if len(self.models) < 2:
            raise ValueError("no recorded costs")
        complete = {place for place, row in enumerate(rows) if all(_known(row, model) for model in self.models)}
        self.measured: Indices = np.array([place for place in measured.measured if place in complete], np.intp)
        training = [place for place in measured.training if place in complete]
        # A set that is held out as a whole has no rows of training: then all complete rows stand for them.
        self.training: Indices = np.array(training or sorted(complete), np.intp)
        if not len(self.measured):
            raise ValueError("no measured row has every model's cost")
        self.set = measured
        self.quality = np.array([[row.quality.get(model, 0.0) for model in self.models] for row in rows])
        self.cost_usd = np.array([[row.cost_usd.get(model, 0.0) for model in self.models] for row in rows])
        self.best = int(np.argmax(self.quality[self.training].mean(axis=0)))
        """Place of the best single model: the best mean quality on the rows of training."""
        self.expected_usd = self._expected()

    def success(self, heads: Judging) -> tuple[list[int], Floats]:
        """Places of the models that the heads can judge, and success by row and those."""
        if self.set.vectors is None:
            raise ValueError("no embedder")
        found = success_by_model(heads, self.set.vectors, self.set.features, self._arms(heads))
        places = [place for place, model in enumerate(self.models) if model in found]
        if len(places) < 2:
            raise ValueError("the heads know fewer than two of its models")
        return places, np.stack([found[self.models[place]] for place in places], axis=1)

    def learned(self, heads: Judging, places: Sequence[int], success: Floats, seed: int) -> Learned:
        """The rows of training. Heads with an expert of this set saw those: its like, fitted on other folds, stands in.

        ``success`` is by row and the models of ``places``.
        """
        rows = self.training
        own = success[rows]
        expert = self._expert(heads)
        if expert is not None and isinstance(heads, Heads):
            arms = [self._arms(heads)[self.models[place]] for place in places]
            known = [column for column, arm in enumerate(arms) if arm in expert.arms]
            own[:, known] = self._cross_fitted(heads, expert, [arms[column] for column in known], seed)
        return Learned(
            own,
            self.expected_usd[rows][:, places],
            self.quality[rows][:, places],
            self.cost_usd[rows][:, places],
            self.quality[rows, self.best],
            self.cost_usd[rows, self.best],
        )

    def at(self, places: Sequence[int], success: Floats, price: float) -> Chosen:
        """What the picks at a price give on the measured rows."""
        rows = self.measured
        models = np.array(places)[picks(success[rows], self.expected_usd[rows][:, places], price)]
        return Chosen(self.quality[rows, models], self.cost_usd[rows, models])

    def single(self, place: int) -> Chosen:
        """What one model gives on the measured rows."""
        return Chosen(self.quality[self.measured, place], self.cost_usd[self.measured, place])

    def _arms(self, heads: Judging) -> dict[str, str]:
        return {model: arm_of(heads, model) for model in self.models}

    def _expert(self, heads: Judging) -> Expert | None:
        experts = heads.experts if isinstance(heads, Heads) else ()
        return next((each for each in experts if each.name == self.set.name), None)

    def _cross_fitted(self, heads: Heads, expert: Expert, arms: Sequence[str], seed: int) -> Floats:
        """Success of the rows of training, [n, arms], calibrated as the heads are."""
        rows, vectors = self.training, self.set.vectors
        assert vectors is not None  # ``success`` was asked before
        numbers = heads.matrix([self.set.features[place] for place in rows])
        groups, of_row = np.unique(np.array([self.set.digests[place] for place in rows]), return_inverse=True)
        fold = (np.random.default_rng(seed).permutation(len(groups)) % _FOLDS)[of_row]
        # Classes of models stand for models that have no arm of their own.
        by_arm = {arm: self.quality[rows][:, self._members(heads, arm)].mean(axis=1) for arm in dict.fromkeys(arms)}
        raw = np.zeros((len(rows), len(arms)), np.float32)
        for each in range(_FOLDS):
            learn, asked = fold != each, fold == each
            quality = {arm: values[learn] for arm, values in by_arm.items()}
            like = fit.expert(expert.name, recipe_of(expert), vectors[rows[learn]], numbers[learn], quality, seed)
            said = expert_rows(like, vectors[rows[asked]], numbers[asked])
            raw[asked] = said[:, [like.arms.index(arm) for arm in arms]]
        return np.asarray(calibrated(raw, heads.platt[[heads.arms.index(arm) for arm in arms]]), np.float64)

    def _members(self, heads: Judging, arm: str) -> list[int]:
        arms = self._arms(heads)
        return [place for place, model in enumerate(self.models) if arms[model] == arm]

    def _expected(self) -> Floats:
        """By row and model: a straight line in the question's length through the costs of the rows of training."""
        chars = np.array([len(row.text) for row in self.set.rows], np.float64)
        own = chars[self.training]
        spread = float(((own - own.mean()) ** 2).sum())
        found = np.empty_like(self.cost_usd)
        for place in range(len(self.models)):
            cost = self.cost_usd[self.training, place]
            slope = float(((own - own.mean()) * cost).sum()) / spread if spread else 0.0
            # Longer questions are never expected to cost less.
            found[:, place] = cost.mean() + max(0.0, slope) * (chars - own.mean())
            found[:, place] = np.maximum(found[:, place], 0.1 * cost.mean())
        return found


def recipe_of(expert: Expert) -> Recipe:
    """The first recipe with the expert's parts."""
    width = len(expert.scaling.vector_mean) + len(expert.scaling.feature_mean)
    linear = bool(expert.weights[1 : 1 + width].any())
    return next(
        recipe
        for recipe in RECIPES
        if ((recipe.linear_ridge is not None) == linear) and ((recipe.kernel_ridge is not None) == bool(expert.kernel))
    )


def measure(result: Result, costs: Costs, heads: Mapping[str, Judging], draws: Counts, seed: int) -> Frontier:
    """The figures of each system's picks beside the best single model, and the whole frontier."""
    name, best = costs.set.name, costs.single(costs.best)
    n = len(costs.measured)
    result.assumptions[f"{name}_best_single"] = costs.models[costs.best]
    put(result, f"{name}/best_single/quality", mean(best.quality, draws), n)
    put(result, f"{name}/best_single/usd_per_1000", mean(1000 * best.cost_usd, draws), n, "USD")
    frontiers, operating = {}, {}
    for system, each in heads.items():
        try:
            places, success = costs.success(each)
        except ValueError as error:
            result.skipped.append(f"{name}/{system}/score_ratio: {error}")
            continue
        learned = costs.learned(each, places, success, seed)
        for ending, rule in RULES.items():
            price = rule(learned)
            chosen = costs.at(places, success, price)
            if best.quality.any():
                put(result, f"{name}/{system}/score_ratio{ending}", ratio(chosen.quality, best.quality, draws), n)
            if best.cost_usd.any():
                put(result, f"{name}/{system}/cost_ratio{ending}", ratio(chosen.cost_usd, best.cost_usd, draws), n)
            result.add(f"{name}/{system}/quality_price{ending}", price, "1/USD", len(costs.training))
            if not ending:
                operating[system] = _ratios(chosen, best)
        every = (costs.at(places, success, float(price)) for price in PRICES)
        frontiers[system] = sorted({_ratios(one, best) for one in every})
    singles = {model: _ratios(costs.single(place), best) for place, model in enumerate(costs.models)}
    return Frontier(frontiers, operating, singles)


def _ratios(chosen: Chosen, best: Chosen) -> tuple[float, float]:
    cost, quality = float(best.cost_usd.mean()), float(best.quality.mean())
    return (
        float(chosen.cost_usd.mean()) / cost if cost else float("nan"),
        float(chosen.quality.mean()) / quality if quality else float("nan"),
    )


def _known(row: Row, model: str) -> bool:
    return model in row.quality and model in row.cost_usd
