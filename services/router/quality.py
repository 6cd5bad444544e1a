"""From a quality target to the price of quality: how much success probability a dollar must buy. Pure.

"Keep at least 95% of the strong model's quality" is a promise about requests together, not about each. The heads bring
a sample of recorded rows with what they predicted, cross-fitted; on it every price is tried with the catalogue's own
prices, from 0 (money is no object) upwards, and the last one is taken before the promise can no longer be made with
confidence. Testing in a fixed order and stopping at the first failure needs no correction for the many prices tried
(fixed sequence testing; Learn then Test, Angelopoulos et al., 2021).

The promise holds for traffic like the sample. Audits tell how other traffic does (``tenth router report``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.router.catalog import Catalog, Model
from services.router.heads import Sample

CONFIDENCE_Z = 1.645
"""One-sided 95%."""
_STEPS = 80
_LOWEST, _HIGHEST = 1e-3, 30.0
"""Prices tried, in success probability per mean cost of the dearest class."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class QualityPrice:
    """What a target comes to under a catalogue."""

    per_usd: float
    """Success probability per USD: a dearer model must be better by this much times the difference in USD."""
    expected_share: float
    """Share of the strongest class's quality on the sample."""
    bound: float
    """What that share is at least, with 95% confidence."""
    cost_share: float
    """Cost on the sample over always asking the strongest class."""


FREE_CHOICE = QualityPrice(0.0, 1.0, 1.0, 1.0)
"""Only quality counts."""


def price_for_target(sample: Sample, catalog: Catalog, target: float) -> QualityPrice:
    """The highest price of quality at which the target, 0..1, is kept with 95% confidence.

    ``FREE_CHOICE`` where not even the lowest keeps it, and where the sample is empty or the catalogue
    has fewer than two classes with a price.
    """
    costs = class_costs(sample, catalog) if len(sample.predicted) else {}
    if len(costs) < 2:
        return FREE_CHOICE
    places = [sample.classes.index(name) for name in costs]
    usd = np.stack(list(costs.values()), axis=1)
    predicted, recorded = sample.predicted[:, places].astype(np.float64), sample.recorded[:, places].astype(np.float64)
    known = ~np.isnan(recorded)
    enough = known.sum(1) >= 2
    predicted, recorded, usd, known = predicted[enough], recorded[enough], usd[enough], known[enough]
    if len(predicted) < 2:
        return FREE_CHOICE
    strongest = len(places) - 1 - known[:, ::-1].argmax(1)
    rows = np.arange(len(predicted))
    best_quality, best_cost = recorded[rows, strongest], usd[rows, strongest]
    unit = 1.0 / float(best_cost.mean())
    kept = FREE_CHOICE
    for price in unit * np.geomspace(_LOWEST, _HIGHEST, _STEPS):
        utility = np.where(known, predicted - price * usd, -np.inf)
        taken = utility.argmax(1)
        quality = recorded[rows, taken]
        spare = quality - target * best_quality
        if spare.mean() - CONFIDENCE_Z * spare.std(ddof=1) / np.sqrt(len(spare)) < 0.0:
            break
        share = float(quality.mean() / max(1e-9, best_quality.mean()))
        slack = quality - share * best_quality
        error = CONFIDENCE_Z * float(slack.std(ddof=1)) / np.sqrt(len(slack)) / max(1e-9, float(best_quality.mean()))
        kept = QualityPrice(float(price), share, share - float(error), float(usd[rows, taken].sum() / best_cost.sum()))
    return kept


def class_costs(sample: Sample, catalog: Catalog) -> dict[str, Floats]:
    """USD of each sample row on the cheapest routable model of each class that the catalogue has a price for."""
    found: dict[str, Floats] = {}
    for name in sample.classes:
        models = [model for model in catalog.models if model.routable and model.price is not None and model.arm == name]
        if models:
            found[name] = min((_usd(model, sample) for model in models), key=lambda cost: float(cost.mean()))
    return found


def _usd(model: Model, sample: Sample) -> Floats:
    assert model.price is not None  # the caller's condition
    output = np.minimum(model.expected_output_tokens * sample.length_ratio, model.max_output_tokens)
    return np.asarray((sample.prompt_tokens * model.price.input + output * model.price.output) / 1e15, np.float64)


@dataclass(slots=True)
class QualityPrices:
    """Prices by target under one catalogue, computed once each. Belongs to one thread."""

    sample: Sample
    _version: str = ""
    _known: dict[float, QualityPrice] | None = None

    def of(self, catalog: Catalog, target: float) -> QualityPrice:
        """The price of a target; targets are told apart by thousandths."""
        if target >= 1.0:
            return FREE_CHOICE
        if self._known is None or self._version != catalog.version:
            self._version, self._known = catalog.version, {}
        rounded = round(target, 3)
        if rounded not in self._known:
            self._known[rounded] = price_for_target(self.sample, catalog, rounded)
        return self._known[rounded]

    def table(self, catalog: Catalog, targets: tuple[float, ...]) -> Mapping[float, QualityPrice]:
        """The prices of several targets."""
        return {target: self.of(catalog, target) for target in targets}
