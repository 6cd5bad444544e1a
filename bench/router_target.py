"""Whether the promised share of the strongest class's quality is kept: the router's own decisions on recorded rows.

Each row is decided as in service, with the shipped catalogue; models whose class nobody recorded on the row are
excluded for it, as they are from the sample that the promise is made on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.result import Result
from bench.router_decision import demand
from bench.router_heads import Vectors
from bench.router_sets import MeasuredSet
from bench.router_systems import put
from services.router.catalog import Catalog, Model
from services.router.classifier import Thresholds
from services.router.datasets import Row, class_quality
from services.router.decide import Knowledge, routed
from services.router.decision import Embedding, Strategy
from services.router.features import Features, Prompt
from services.router.heads import Heads
from services.router.quality import QualityPrices
from services.router.scores import Floats, Interval, ratio, resamples
from services.router.settings import RouterSettings

TARGET = 0.95
TARGETS = (0.8, 0.9, TARGET, 0.98)
ALL = "all"


@dataclass(frozen=True, slots=True)
class Kept:
    """Recorded quality and expected cost, nano-USD, of the decisions on one set's rows at one target."""

    set_name: str
    target: float
    quality: Floats
    strongest_quality: Floats
    """Of the strongest class that was recorded on the row."""
    cost: Floats
    strongest_cost: Floats


def knowledge_of(heads: Heads, settings: RouterSettings) -> Knowledge:
    """What a router with these heads decides with."""
    thresholds = Thresholds(settings.simple_below, settings.complex_from, settings.quality_target)
    return Knowledge(thresholds, heads, QualityPrices(heads.sample))


def keep(measured: MeasuredSet, knowledge: Knowledge, catalog: Catalog, target: float) -> Kept:
    """The decisions on a set's measured rows. Raises ValueError when there is no choice to make."""
    vectors = measured.vectors
    if vectors is None:
        raise ValueError("no embedder")
    decided = [
        found
        for place in measured.measured
        if (found := _row(measured.rows[place], vectors[place], measured.features[place], knowledge, catalog, target))
    ]
    if not decided:
        raise ValueError("no row has two of the catalogue's classes recorded")
    return Kept(measured.name, target, *np.array(decided).T)


def add(
    result: Result, kept: Sequence[Kept], knowledge: Knowledge, catalog: Catalog, draw_count: int, seed: int
) -> None:
    """The figures of each set, of all rows together, and what the router promises for them.

    A violation is a set, or all together, that is below the target with all of its interval.
    """
    if not kept or knowledge.prices is None:
        return
    violations = 0
    own = [each for each in kept if each.target == TARGET]
    for each in own:
        violations += _add(result, each, draw_count, seed)
    for target, group in _by_target(kept):
        short = _add(result, _together(target, group), draw_count, seed)
        violations += short and target == TARGET
        price = knowledge.prices.of(catalog, target)
        rows = len(knowledge.prices.sample.predicted)
        result.add(f"quality_target/{ALL}/bound_{percent(target)}", price.bound, "ratio", rows)
        result.add(f"quality_target/{ALL}/price_{percent(target)}", price.per_usd, "1/USD", rows)
    put(result, f"quality_target/{ALL}/violations", Interval(violations, None), len(own) + 1, "count")


def percent(target: float) -> str:
    """A target as it stands in a metric's name."""
    return f"{100 * target:.0f}"


def _row(
    row: Row, vector: Vectors, found: Features, knowledge: Knowledge, catalog: Catalog, target: float
) -> tuple[float, float, float, float] | None:
    """Quality, the strongest's quality, cost, the strongest's cost; None with fewer than two classes to choose from."""
    recorded = {**row.quality, **class_quality(row)}
    able = {model.name: model for model in catalog.models if model.arm in recorded and _counts(model)}
    if len({model.arm for model in able.values()}) < 2 or knowledge.heads is None:
        return None
    excluded = frozenset(model.name for model in catalog.models if model.name not in able)
    asked = demand(Prompt(question=row.text), found, target=target, excluded_models=excluded)
    embedding = Embedding(vector, knowledge.heads.embedder_version)
    route = routed(Strategy.TRAINED, catalog, asked, found, embedding, knowledge, {}).route
    cost = {item.model.name: item.expected_cost_nano_usd for item in route.candidates if item.model.name in able}
    strongest = max(able.values(), key=lambda model: model.tier).arm
    cheapest = min(cost[name] for name, model in able.items() if model.arm == strongest)
    return recorded[route.model.arm], recorded[strongest], cost[route.model.name], cheapest


def _counts(model: Model) -> bool:
    return model.routable and model.price is not None


def _by_target(kept: Sequence[Kept]) -> Iterator[tuple[float, Sequence[Kept]]]:
    targets: Mapping[float, None] = dict.fromkeys(each.target for each in kept)
    for target in sorted(targets):
        yield target, [each for each in kept if each.target == target]


def _add(result: Result, kept: Kept, draw_count: int, seed: int) -> bool:
    """Note one set's figures; true when it is below its target beyond noise."""
    draws, n = resamples(len(kept.quality), draw_count, seed), len(kept.quality)
    name, of = f"quality_target/{kept.set_name}", percent(kept.target)
    held = ratio(kept.quality, kept.strongest_quality, draws)
    put(result, f"{name}/ratio_{of}", held, n)
    put(result, f"{name}/cost_share_{of}", ratio(kept.cost, kept.strongest_cost, draws), n)
    short = held.ci95 is not None and held.ci95[1] < kept.target
    if kept.set_name != ALL:
        put(result, f"{name}/violations", Interval(int(short), None), 1, "count")
    return short


def _together(target: float, kept: Sequence[Kept]) -> Kept:
    return Kept(
        ALL,
        target,
        np.concatenate([each.quality for each in kept]),
        np.concatenate([each.strongest_quality for each in kept]),
        np.concatenate([each.cost for each in kept]),
        np.concatenate([each.strongest_cost for each in kept]),
    )
