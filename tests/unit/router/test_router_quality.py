"""From a quality target to the price of quality: monotone, and kept as often as is promised."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from services.router.catalog import Abilities, Catalog, Model, ReferencePrice, Tier
from services.router.heads import Sample
from services.router.quality import FREE_CHOICE, QualityPrices, class_costs, price_for_target

CLASSES = ("class:small", "class:medium", "class:large")


def model(tier: Tier, usd: int, **more: object) -> Model:
    price = ReferencePrice(usd * 10**9, 5 * usd * 10**9)
    return replace(Model(f"m{tier.value}", "p", tier, 100_000, 8000, 200, Abilities(), price=price), **more)  # type: ignore[arg-type]


CATALOG = Catalog((model(Tier.SIMPLE, 1), model(Tier.MEDIUM, 4), model(Tier.COMPLEX, 20)), Tier.MEDIUM, "", "v1")


def sample(count: int, seed: int, slant: float = 0.0) -> Sample:
    """Rows whose true chances are known and predicted, up to a slant in favour of the small class."""
    drawn = np.random.default_rng(seed)
    hard = drawn.random(count)
    chances = np.stack([0.95 - 0.7 * hard, 0.95 - 0.35 * hard, np.full(count, 0.95)], axis=1)
    recorded = (drawn.random((count, 3)) < chances).astype(np.float32)
    predicted = chances + np.array([slant, 0.0, 0.0])
    ratio = np.ones(count, np.float32)
    return Sample(CLASSES, predicted.astype(np.float32), recorded, np.full(count, 100.0, np.float32), ratio)


def true_share(found_price: float, seed: int = 999) -> float:
    """What a price keeps of the strongest class's quality, on a great many fresh rows."""
    fresh = sample(100_000, seed)
    usd = np.stack(list(class_costs(fresh, CATALOG).values()), axis=1)
    taken = (fresh.predicted - found_price * usd).argmax(1)
    rows = np.arange(len(taken))
    return float(fresh.recorded[rows, taken].mean() / fresh.recorded[:, 2].mean())


def test_a_higher_target_pays_more_for_quality() -> None:
    rows = sample(3000, 1)
    found = [price_for_target(rows, CATALOG, target) for target in (0.5, 0.7, 0.8, 0.9, 0.95, 0.97)]
    prices = [each.per_usd for each in found]
    assert prices == sorted(prices, reverse=True)
    assert prices[0] > prices[-1] > 0.0
    costs = [each.cost_share for each in found]
    assert costs == sorted(costs)
    for target, each in zip((0.5, 0.7, 0.8, 0.9, 0.95, 0.97), found, strict=True):
        assert each.expected_share >= each.bound >= target - 0.005


@pytest.mark.parametrize("target", [0.8, 0.9])
def test_the_promise_is_kept_as_often_as_it_says(target: float) -> None:
    kept = []
    for seed in range(150):
        found = price_for_target(sample(800, seed), CATALOG, target)
        kept.append(found is FREE_CHOICE or true_share(found.per_usd) >= target)
    assert np.mean(kept) >= 0.93


def test_a_sample_that_flatters_the_small_class_costs_money_not_the_promise() -> None:
    honest, flattered = (price_for_target(sample(3000, 4, slant), CATALOG, 0.9) for slant in (0.0, 0.3))
    assert flattered.per_usd < honest.per_usd
    assert flattered.bound >= 0.895


@pytest.mark.parametrize("left", [0, 1])
def test_fewer_than_two_classes_leave_a_free_choice(left: int) -> None:
    assert price_for_target(sample(500, 1), replace(CATALOG, models=CATALOG.models[:left]), 0.9) is FREE_CHOICE


def test_models_without_a_price_or_by_name_only_do_not_count() -> None:
    small, medium, large = CATALOG.models
    bare = replace(CATALOG, models=(replace(small, price=None), replace(medium, routable=False), large))
    assert list(class_costs(sample(10, 1), bare)) == ["class:large"]
    assert price_for_target(sample(500, 1), bare, 0.9) is FREE_CHOICE


def test_the_cheapest_model_of_a_class_stands_for_it() -> None:
    dearer = replace(model(Tier.SIMPLE, 3), name="dear")
    costs = class_costs(sample(10, 1), replace(CATALOG, models=(dearer, *CATALOG.models)))
    # 100 prompt tokens at 1 USD and 200 output tokens at 5 USD per million.
    assert costs["class:small"][0] == pytest.approx((100 * 1 + 200 * 5) / 1e6)


def test_rows_with_one_recorded_class_tell_nothing() -> None:
    rows = sample(400, 1)
    recorded = rows.recorded.copy()
    recorded[:, :2] = np.nan
    assert price_for_target(replace(rows, recorded=recorded), CATALOG, 0.9) is FREE_CHOICE
    empty = Sample(CLASSES, rows.predicted[:0], rows.recorded[:0], rows.prompt_tokens[:0], rows.length_ratio[:0])
    assert price_for_target(empty, CATALOG, 0.9) is FREE_CHOICE


def test_prices_are_kept_for_one_catalogue() -> None:
    prices = QualityPrices(sample(1000, 2))
    first = prices.of(CATALOG, 0.9)
    assert prices.of(CATALOG, 0.9) is first
    assert prices.of(CATALOG, 0.9000001) is first
    dear = replace(
        CATALOG, models=tuple(replace(each, price=ReferencePrice(10**12, 10**12)) for each in CATALOG.models)
    )
    assert prices.of(dear, 0.9) is first, "the version says what changed"
    changed = prices.of(replace(dear, version="v2"), 0.9)
    assert changed is not first
    assert changed.per_usd != first.per_usd
    assert prices.of(CATALOG, 1.0) is FREE_CHOICE
    assert list(prices.table(CATALOG, (0.8, 0.9))) == [0.8, 0.9]
