"""Whether the promised share of the strongest model's quality is kept, at the prices of the shipped catalogue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from bench.result import Result
from bench.router_costs import picks
from bench.router_heads import Heads, success_by_model
from bench.router_sets import MeasuredSet
from bench.router_systems import put
from services.router.catalog import Catalog, Model, Tier
from services.router.datasets import LARGE, MEDIUM, SMALL, Row, class_quality
from services.router.policy import estimate_tokens, expected_cost_nano_usd
from services.router.scores import Floats, Interval, ratio, resamples

TARGET = 0.95
_TIER_ARMS: Mapping[Tier, str] = {Tier.SIMPLE: SMALL, Tier.MEDIUM: MEDIUM, Tier.COMPLEX: LARGE}
_RECORDED = 0.9
"""An arm counts in a set when this share of the rows has its quality."""


class TargetPrices(Protocol):
    """What the shipped router pays for quality."""

    def __call__(self, target: float) -> float:
        """Success probability per USD that keeps this share of the strongest model's quality."""


def shipped_prices() -> TargetPrices | None:
    """HOOK: the shipped prices of quality, once ``services.router.quality`` has them; None: not measured."""
    return None


@dataclass(frozen=True, slots=True)
class Kept:
    """Recorded quality and expected cost of the picks on one set's rows, and of the strongest arm on the same."""

    set_name: str
    quality: Floats
    strongest_quality: Floats
    cost: Floats
    strongest_cost: Floats


def cheapest_by_arm(catalog: Catalog) -> dict[str, Model]:
    """For each arm of the heads the cheapest routable model with a price that stands on it."""
    found: dict[str, Model] = {}
    for model in catalog.models:
        arm = model.quality_like or _TIER_ARMS[model.tier]
        if not model.routable or model.price is None:
            continue
        if arm not in found or expected_cost_nano_usd(model, 500, None) < expected_cost_nano_usd(found[arm], 500, None):
            found[arm] = model
    return found


def keep(measured: MeasuredSet, heads: Heads, by_arm: Mapping[str, Model], price: float) -> Kept:
    """The picks of a set's measured rows at a price. Raises ValueError when there is no choice to make."""
    if measured.vectors is None:
        raise ValueError("no embedder")
    known = [{**class_quality(row), **row.quality} for row in measured.rows]
    arms = [
        arm
        for arm in by_arm
        if arm in heads.arms and sum(arm in each for each in known) >= _RECORDED * len(known)
    ]  # fmt: skip
    places = [place for place in measured.measured if all(arm in known[place] for arm in arms)]
    if len(arms) < 2 or not places:
        raise ValueError("fewer than two of the catalogue's arms are recorded")
    vectors, features = measured.vectors[places], [measured.features[place] for place in places]
    success = success_by_model(heads, vectors, features, {arm: arm for arm in arms})
    quality = np.array([[known[place][arm] for arm in arms] for place in places])
    cost = np.array([[_usd(by_arm[arm], measured.rows[place]) for arm in arms] for place in places])
    chosen = picks(np.stack([success[arm] for arm in arms], axis=1), cost, price)
    learned = [place for place in measured.training if all(arm in known[place] for arm in arms)] or places
    best = int(np.argmax([np.mean([known[place][arm] for place in learned]) for arm in arms]))
    rows = np.arange(len(places))
    return Kept(measured.name, quality[rows, chosen], quality[:, best], cost[rows, chosen], cost[:, best])


def add(result: Result, kept: Sequence[Kept], draw_count: int, seed: int) -> None:
    """The figures of each set and of all rows together; violations are sets that fall short of the target."""
    violations = 0
    for each in (*kept, _together(kept)) if kept else ():
        draws = resamples(len(each.quality), draw_count, seed)
        name = f"quality_target/{each.set_name}"
        held = ratio(each.quality, each.strongest_quality, draws)
        put(result, f"{name}/ratio_95", held, len(each.quality))
        put(result, f"{name}/cost_share_95", ratio(each.cost, each.strongest_cost, draws), len(each.quality))
        if each.set_name == "all":
            put(result, f"{name}/violations", Interval(violations, None), len(kept), "count")
        else:
            short = held.value < TARGET
            violations += short
            put(result, f"{name}/violations", Interval(int(short), None), 1, "count")


def _together(kept: Sequence[Kept]) -> Kept:
    return Kept(
        "all",
        np.concatenate([each.quality for each in kept]),
        np.concatenate([each.strongest_quality for each in kept]),
        np.concatenate([each.cost for each in kept]),
        np.concatenate([each.strongest_cost for each in kept]),
    )


def _usd(model: Model, row: Row) -> float:
    hangul = sum("\uac00" <= char <= "\ud7a3" for char in row.text)
    return expected_cost_nano_usd(model, estimate_tokens(len(row.text), hangul, 1, 0), None) / 1e9
