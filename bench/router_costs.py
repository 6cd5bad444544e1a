"""Choosing among all models of a set whose costs were recorded: quality and cost beside the best single model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bench.result import Result
from bench.router_heads import Heads, success_by_model
from bench.router_sets import MeasuredSet
from bench.router_systems import put
from services.router.datasets import Row, class_of
from services.router.scores import Counts, Floats, Indices, mean, ratio

QUALITY_TO_KEEP = 0.99
_COMPLETE = 0.9
"""A model counts when this share of the rows has its quality and its cost."""
_PRICES: Floats = np.append(0.0, np.geomspace(0.1, 1e6, 141))
"""Success probability per USD."""


class Pricing(Protocol):
    """How dear money is, learned on rows with known outcomes: all arrays are rows by models."""

    def __call__(self, success: Floats, expected_usd: Floats, quality: Floats, wanted: float) -> float:
        """Success probability per USD, such that picks keep ``wanted``, a mean quality."""


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

    def success(self, heads: Heads) -> tuple[list[int], Floats]:
        """Places of the models that the heads can judge, and success by row and those."""
        if self.set.vectors is None:
            raise ValueError("no embedder")
        arms = {model: model if model in heads.arms else class_of(model) for model in self.models}
        found = success_by_model(heads, self.set.vectors, self.set.features, arms)
        places = [place for place, model in enumerate(self.models) if model in found]
        if len(places) < 2:
            raise ValueError("the heads know fewer than two of its models")
        return places, np.stack([found[self.models[place]] for place in places], axis=1)

    def at(self, places: Sequence[int], success: Floats, price: float) -> Chosen:
        """What the picks at a price give on the measured rows."""
        rows = self.measured
        models = np.array(places)[picks(success[rows], self.expected_usd[rows][:, places], price)]
        return Chosen(self.quality[rows, models], self.cost_usd[rows, models])

    def single(self, place: int) -> Chosen:
        """What one model gives on the measured rows."""
        return Chosen(self.quality[self.measured, place], self.cost_usd[self.measured, place])

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


def picks(success: Floats, expected_usd: Floats, price: float) -> Indices:
    """For each row the model of the highest success less cost at a price; the cheaper one where they are equal."""
    utility = success - price * expected_usd
    best = utility.max(axis=1, keepdims=True)
    found: Indices = np.where(utility >= best, expected_usd, np.inf).argmin(axis=1)
    return found


def price_on_grid(success: Floats, expected_usd: Floats, quality: Floats, wanted: float) -> float:
    """The price of the cheapest picks that keep the wanted mean quality; that of the best picks when none do."""
    rows = np.arange(len(success))
    found = []
    for price in _PRICES:
        chosen = picks(success, expected_usd, float(price))
        found.append((float(quality[rows, chosen].mean()), float(expected_usd[rows, chosen].mean()), float(price)))
    keeping = [each for each in found if each[0] >= wanted]
    if keeping:
        return min(keeping, key=lambda each: each[1])[2]
    return max(found, key=lambda each: (each[0], -each[1]))[2]


def measure(
    result: Result, costs: Costs, heads: Mapping[str, Heads], draws: Counts, pricing: Pricing = price_on_grid
) -> Frontier:
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
        rows = costs.training
        price = pricing(
            success[rows],
            costs.expected_usd[rows][:, places],
            costs.quality[rows][:, places],
            QUALITY_TO_KEEP * float(costs.quality[rows, costs.best].mean()),
        )
        chosen = costs.at(places, success, price)
        if best.quality.any():
            put(result, f"{name}/{system}/score_ratio", ratio(chosen.quality, best.quality, draws), n)
        if best.cost_usd.any():
            put(result, f"{name}/{system}/cost_ratio", ratio(chosen.cost_usd, best.cost_usd, draws), n)
        result.add(f"{name}/{system}/quality_price", price, "1/USD", len(rows))
        operating[system] = _ratios(chosen, best)
        every = (costs.at(places, success, float(price)) for price in _PRICES)
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
