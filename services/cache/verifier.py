"""How likely a stored answer is right for a question, and how likely it must be. Pure.

Logistic models over ``features``, fitted on labelled questions by ``python -m services.cache.calibrate``, one for each
mode, language and kind of evidence. A model carries its risk curve: what share of all lookups was answered wrongly at
each threshold, on questions it was not fitted on, as bounded by conformal risk control (Angelopoulos et al. 2022,
arXiv:2208.02814). A namespace's own bound picks the threshold from that curve.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from services.cache.features import NEIGHBOURHOOD, PAIR

log = logging.getLogger("tenth.cache")

WEIGHTS = Path(__file__).parent / "weights"
"""The shipped weights, a file per embedder and precision."""
NEVER = 2.0
"""A needed probability that nothing reaches."""


class Basis(StrEnum):
    """What a probability rests on."""

    PAIR = "pair"
    """The two questions alone."""
    NEIGHBOURS = "neighbours"
    """Several near entries hold the same answer."""


_FEATURES = {Basis.PAIR: PAIR, Basis.NEIGHBOURS: NEIGHBOURHOOD}


@dataclass(frozen=True, slots=True)
class RiskPoint:
    """One threshold of a risk curve."""

    probability: float
    wrong_per_thousand: float
    """Upper bound of wrong hits per thousand lookups when this probability is needed."""
    hit_rate: float
    """Share of lookups that were served, on the same questions; for information."""


@dataclass(frozen=True, slots=True)
class Contribution:
    """A feature's part in a verdict: ``amount`` is in log-odds against the average pair of the training."""

    name: str
    value: float
    amount: float


@dataclass(frozen=True, slots=True)
class Model:
    """A logistic model with its risk curve. All tuples but the curve run over the same features."""

    names: tuple[str, ...]
    means: tuple[float, ...]
    scales: tuple[float, ...]
    weights: tuple[float, ...]
    intercept: float
    curve: tuple[RiskPoint, ...]
    """By rising probability, falling risk."""

    def probability(self, values: Sequence[float]) -> float:
        """Probability that the stored answer is right, 0..1."""
        total = self.intercept
        for value, mean, scale, weight in zip(values, self.means, self.scales, self.weights, strict=True):
            total += weight * (value - mean) / scale
        if not math.isfinite(total):
            return 0.0  # A broken vector has no cosine, and min and max below would make certainty of it.
        # Beyond this the exponential says 0 or 1 anyway, or overflows.
        return 1 / (1 + math.exp(-max(-60.0, min(60.0, total))))

    def contributions(self, values: Sequence[float]) -> tuple[Contribution, ...]:
        """Every feature's part, strongest first."""
        parts = (
            Contribution(name, value, weight * (value - mean) / scale)
            for name, value, mean, scale, weight in zip(
                self.names, values, self.means, self.scales, self.weights, strict=True
            )
        )
        return tuple(sorted(parts, key=lambda part: -abs(part.amount)))

    def needed(self, wrong_per_thousand: float) -> float:
        """The least probability at which wrong hits stay within a bound; NEVER when no threshold does."""
        return next(
            (point.probability for point in self.curve if point.wrong_per_thousand <= wrong_per_thousand), NEVER
        )


@dataclass(frozen=True, slots=True)
class Verifier:
    """The models of one embedder, by "mode/language/basis"."""

    embedder: str
    models: Mapping[str, Model]
    floors: Mapping[str, float]
    """By "mode/language": the cosine below which no neighbour was worth serving."""

    def model(self, mode: str, language: str, basis: Basis) -> Model | None:
        """The model, or None: nothing is served by meaning there."""
        return self.models.get(f"{mode}/{language}/{basis.value}")

    def floor(self, mode: str, language: str) -> float | None:
        """The least cosine to search for; None when nothing is served by meaning."""
        return self.floors.get(f"{mode}/{language}")


def load_verifier(folder: Path, embedder: str) -> Verifier | None:
    """The weights of a folder for an embedder's version; None, with a warning, when it was never calibrated.

    Raises OSError, and ValueError naming the file for one that is not ours or is damaged.
    """
    for path in sorted(folder.glob("*.json")):
        try:
            content = json.loads(path.read_text("utf-8"))
            if content["embedder"] == embedder:
                return from_json(content)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"{path} holds no weights: {type(error).__name__}: {error}") from error
    log.warning(
        "no weights for %s in %s: nothing is served by meaning; see services/cache/calibrate.py", embedder, folder
    )
    return None


def from_json(content: Mapping[str, Any]) -> Verifier:
    """A verifier from its stored form. Raises AttributeError, KeyError, TypeError or ValueError.

    Also for features that are not measured here, or in another order: weights of others say nothing about these.
    """
    floors = {name: float(floor) for name, floor in content["floors"].items()}
    if not all(-1 <= floor <= 1 for floor in floors.values()):
        raise ValueError("a floor is a cosine")
    return Verifier(
        embedder=content["embedder"],
        models={name: _model(name, model) for name, model in content["models"].items()},
        floors=floors,
    )


def to_json(verifier: Verifier) -> dict[str, Any]:
    """The stored form, rounded to what matters."""
    return {
        "embedder": verifier.embedder,
        "floors": {name: round(floor, 4) for name, floor in verifier.floors.items()},
        "models": {
            name: {
                "intercept": round(model.intercept, 5),
                "features": {
                    feature: [round(mean, 5), round(scale, 5), round(weight, 5)]
                    for feature, mean, scale, weight in zip(
                        model.names, model.means, model.scales, model.weights, strict=True
                    )
                },
                "curve": [
                    [round(point.probability, 6), round(point.wrong_per_thousand, 3), round(point.hit_rate, 4)]
                    for point in model.curve
                ],
            }
            for name, model in verifier.models.items()
        },
    }


def _model(name: str, content: Mapping[str, Any]) -> Model:
    rows = content["features"]
    measured = _FEATURES[Basis(name.rpartition("/")[2])]
    if tuple(rows) != measured:
        odd = sorted(set(measured) ^ set(rows)) or ["their order"]
        raise ValueError(f"{name} is about other features than are measured: {', '.join(odd)}")
    if any(len(row) != 3 or not row[1] > 0 or not all(map(math.isfinite, row)) for row in rows.values()):
        raise ValueError(f"{name}: a feature needs a mean, a scale above 0 and a weight")
    curve = tuple(RiskPoint(*map(float, point)) for point in content["curve"])
    if not all(0 <= point.probability <= 1 and point.wrong_per_thousand >= 0 for point in curve):
        raise ValueError(f"{name}: a point of a curve is a probability and a risk")
    if not math.isfinite(content["intercept"]):
        raise ValueError(f"{name}: the intercept is no number")
    return Model(
        names=tuple(rows),
        means=tuple(float(row[0]) for row in rows.values()),
        scales=tuple(float(row[1]) for row in rows.values()),
        weights=tuple(float(row[2]) for row in rows.values()),
        intercept=float(content["intercept"]),
        curve=curve,
    )
