"""Reads the fitted weights of the ``history`` strategy."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from services.compressor.history import HistorySettings
from services.compressor.history_relevance import FEATURES, Weights

SHIPPED = Path(__file__).parent / "weights" / "history.json"


def load_weights(path: Path = SHIPPED) -> tuple[Weights, float]:
    """The weights of a file, and its cost exponent. Raises OSError, or ValueError naming what is wrong in it."""
    found = json.loads(path.read_text("utf-8"))
    if not isinstance(found, dict):
        raise ValueError(f"{path}: not an object")
    exponent: Any = found.get("cost_exponent")
    if not _is_number(exponent) or not 0 <= exponent <= 2:
        raise ValueError(f"{path}: cost_exponent is not a number from 0 to 2")
    return Weights(_set(found, "with_vectors", path), _set(found, "without_vectors", path)), float(exponent)


def history_settings() -> HistorySettings:
    """How history is chosen, by the shipped weights. Raises OSError or ValueError."""
    found, exponent = load_weights()
    return HistorySettings(found, exponent)


def _set(found: dict[str, Any], name: str, path: Path) -> dict[str, float]:
    values = found.get(name)
    if not isinstance(values, dict) or not values:
        raise ValueError(f"{path}: {name} is not an object of weights")
    for feature, weight in values.items():
        if feature not in FEATURES or not _is_number(weight):
            raise ValueError(f"{path}: {name}.{feature} is not the number of a known feature")
    return {feature: float(weight) for feature, weight in values.items()}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
