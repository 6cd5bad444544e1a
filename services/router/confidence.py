"""How sure a model was of its answer, by its tokens' log probabilities, and what that is worth. Pure.

A statistic of an answer (margins between a token and its best rival, or log probabilities) goes through an isotonic
map, fitted on answers that were checked, to the probability that the answer is good; one threshold then decides (UCCI:
token margin, isotonic calibration, a threshold from the prices). A model without a fit of its own gets the default
map, which promises little. ``train_confidence.py`` makes the maps and says how little they are worth.

Log probabilities that say nothing give confidence 0, and with it an escalation: none at all, NaN anywhere, a chosen
token of probability 0, or a value above 0, which is no log probability.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

WEIGHTS_FILE = Path(__file__).parent / "weights" / "confidence.json"
TOP_LOGPROBS = 2
"""Alternatives per token that the statistics need: the chosen one, mostly, and its best rival."""
STATISTICS = ("mean_margin", "min_margin", "mean_logprob")
_ROUNDING = 1e-3
"""How far above 0 a log probability may be by rounding."""


@dataclass(frozen=True, slots=True)
class Token:
    """One token of an answer: its natural-log probability, and its alternatives' with their texts."""

    text: str
    logprob: float
    alternatives: Sequence[tuple[str, float]] = ()


@dataclass(frozen=True, slots=True)
class Certainty:
    """The statistics of one answer. Margins are differences of probabilities, -1..1: negative where a less likely
    token was drawn."""

    mean_logprob: float
    mean_margin: float
    min_margin: float
    token_count: int


@dataclass(frozen=True, slots=True)
class ConfidenceMap:
    """From one statistic to the probability that the answer is good: monotone, linear between its points."""

    statistic: str
    values: tuple[float, ...]
    """Ascending."""
    probabilities: tuple[float, ...]
    """Never falling, 0..1."""

    def __post_init__(self) -> None:
        if self.statistic not in STATISTICS:
            raise ValueError(f"no statistic {self.statistic!r}")
        if not self.values or len(self.values) != len(self.probabilities):
            raise ValueError("a map needs as many probabilities as values, and at least one")
        if any(not low < high for low, high in pairwise(self.values)):
            raise ValueError("the values do not ascend")
        if any(not low <= high for low, high in pairwise(self.probabilities)):
            raise ValueError("the probabilities fall")
        if not all(0.0 <= value <= 1.0 for value in self.probabilities):
            raise ValueError("a probability is outside 0..1")

    def probability(self, certainty: Certainty) -> float:
        """Probability, 0..1, that an answer of that certainty is good; beyond the points the outermost ones hold."""
        value = float(getattr(certainty, self.statistic))
        after = bisect_right(self.values, value)
        if after == 0:
            return self.probabilities[0]
        if after == len(self.values):
            return self.probabilities[-1]
        low, high = self.values[after - 1], self.values[after]
        share = (value - low) / (high - low)
        return self.probabilities[after - 1] + share * (self.probabilities[after] - self.probabilities[after - 1])


@dataclass(frozen=True, slots=True)
class Confidence:
    """The maps by model, and the one for every other model."""

    maps: Mapping[str, ConfidenceMap]
    default: ConfidenceMap

    def of(self, tokens: Iterable[Token], *models: str) -> float:
        """Probability, 0..1, that an answer is good, by the map of the first of ``models`` that has one."""
        certainty = certainty_of(tokens)
        if certainty is None:
            return 0.0
        chosen = next((self.maps[model] for model in models if model in self.maps), self.default)
        return chosen.probability(certainty)


def certainty_of(tokens: Iterable[Token]) -> Certainty | None:
    """The statistics of an answer; None where its log probabilities say nothing (see the module)."""
    logprobs, margins = [], []
    for token in tokens:
        if not (math.isfinite(token.logprob) and token.logprob <= _ROUNDING):
            return None
        chosen = math.exp(min(token.logprob, 0.0))
        # Unlisted, its best rival has at most what the chosen one leaves.
        rival = _rival(token)
        other = 1.0 - chosen if rival is None else math.exp(min(rival, 0.0))
        if math.isnan(other):
            return None
        logprobs.append(token.logprob)
        margins.append(chosen - other)
    if not margins:
        return None
    count = len(margins)
    return Certainty(math.fsum(logprobs) / count, math.fsum(margins) / count, min(margins), count)


def read_confidence(file: Path = WEIGHTS_FILE) -> Confidence:
    """The maps of a weights file. Raises OSError, and ValueError for a file that is none."""
    root = json.loads(file.read_text("utf-8"))
    try:
        return Confidence({name: _map(entry) for name, entry in root["maps"].items()}, _map(root["default"]))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{file.name}: {error!r}") from error


def _rival(token: Token) -> float | None:
    """Log probability of the best alternative that is another token; None where none is listed."""
    best, own_seen = None, False
    for text, logprob in token.alternatives:
        if not own_seen and text == token.text:
            own_seen = True
        elif math.isnan(logprob):
            return logprob
        elif best is None or logprob > best:
            best = logprob
    return best


def _map(entry: Mapping[str, Any]) -> ConfidenceMap:
    return ConfidenceMap(
        str(entry["statistic"]),
        tuple(float(value) for value in entry["values"]),
        tuple(float(value) for value in entry["probabilities"]),
    )
