"""How dear money is where a set's costs were recorded: prices of quality, set on rows of training. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from services.router.quality import CONFIDENCE_Z
from services.router.scores import Floats, Indices

QUALITY_TO_KEEP = 0.99
COST_TO_KEEP = 0.6
PRICES: Floats = np.append(0.0, np.geomspace(0.1, 1e6, 141))
"""Success probability per USD."""


@dataclass(frozen=True, slots=True)
class Learned:
    """What a price is set on: rows of training by models, and the best single model on the same rows."""

    success: Floats
    expected_usd: Floats
    quality: Floats
    cost_usd: Floats
    best_quality: Floats
    best_usd: Floats


Pricing = Callable[[Learned], float]
"""Success probability per USD."""


def picks(success: Floats, expected_usd: Floats, price: float) -> Indices:
    """For each row the model of the highest success less cost at a price; the cheaper one where they are equal."""
    utility = success - price * expected_usd
    best = utility.max(axis=1, keepdims=True)
    found: Indices = np.where(utility >= best, expected_usd, np.inf).argmin(axis=1)
    return found


def price_with_confidence(learned: Learned, wanted: float = QUALITY_TO_KEEP) -> float:
    """The last price of a rising sequence before ``wanted`` of the best model's quality is not surely kept; else 0.

    The rule of ``quality.price_for_target``.
    """
    kept, rows = 0.0, np.arange(len(learned.success))
    for price in PRICES[1:]:
        spare = learned.quality[rows, picks(learned.success, learned.expected_usd, float(price))]
        spare = spare - wanted * learned.best_quality
        error = float(spare.std(ddof=1)) / np.sqrt(len(spare)) if len(spare) > 1 else float("inf")
        if spare.mean() - CONFIDENCE_Z * error < 0.0:
            break
        kept = float(price)
    return kept


def price_on_average(learned: Learned, wanted: float = QUALITY_TO_KEEP) -> float:
    """The price of the cheapest picks that keep ``wanted`` of the best model's quality on average, else of the best.

    Without confidence: on other rows the quality is as likely as not a little below.
    """
    rows = np.arange(len(learned.success))
    found = []
    for price in PRICES:
        chosen = picks(learned.success, learned.expected_usd, float(price))
        found.append((learned.quality[rows, chosen].mean(), learned.cost_usd[rows, chosen].mean(), float(price)))
    keeping = [each for each in found if each[0] >= wanted * learned.best_quality.mean()]
    return min(keeping, key=lambda each: each[1])[2] if keeping else max(found, key=lambda each: each[0])[2]


def price_for_cost(learned: Learned, share: float = COST_TO_KEEP) -> float:
    """The lowest price at which the picks cost this share of the best model or less; the highest when none does."""
    rows = np.arange(len(learned.success))
    for price in PRICES:
        chosen = picks(learned.success, learned.expected_usd, float(price))
        if learned.cost_usd[rows, chosen].mean() <= share * learned.best_usd.mean():
            return float(price)
    return float(PRICES[-1])


RULES: Mapping[str, Pricing] = {
    "": price_with_confidence,
    "_on_average": price_on_average,
    f"_at_{100 * COST_TO_KEEP:.0f}": price_for_cost,
}
"""How prices are set, by the ending of the metric's name."""
