"""Correction factors learned from what providers billed. Pure.

Where a model's tokenizer is not public, counts are estimates. Each settled call says how many input tokens the
provider billed; the median of billed over counted, by model, corrects later estimates. The median of a window is moved
little by the odd call with a picture or a retry. A factor only changes when the median has moved away from it, so that
counts, and what is decided on them, do not flicker.
"""

from __future__ import annotations

import json
from collections import OrderedDict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

LEAST_FACTOR, MOST_FACTOR = 0.7, 1.6


@dataclass(frozen=True, slots=True)
class CorrectionRules:
    """How factors are learned."""

    window: int = 64
    """Latest samples of a model that count."""
    least_samples: int = 20
    """A model with fewer has the factor 1."""
    hysteresis: float = 0.02
    """The median must be so far from the factor in use, as a share of it, to change it."""
    least_tokens: int = 50
    """Calls with fewer counted tokens are mostly overhead and teach nothing."""
    most_models: int = 1000
    """Models kept; the one not heard of for longest goes first."""


class Corrections:
    """Factors by model. Not locked: observe from one thread; reading a factor is safe from any."""

    def __init__(self, rules: CorrectionRules | None = None) -> None:
        """Nothing is learned yet."""
        self._rules = rules or CorrectionRules()
        self._samples: OrderedDict[str, deque[float]] = OrderedDict()
        self._factors: dict[str, float] = {}

    def factor(self, model: str) -> float:
        """What an estimated count of this model is multiplied by: 0.7 to 1.6, 1 where nothing is learned."""
        return self._factors.get(model, 1.0)

    def observe(self, model: str, counted_tokens: int, billed_tokens: int) -> bool:
        """Learn from one settled call; True when the model's factor changed.

        ``counted_tokens`` is the count before any correction. ``billed_tokens`` are all input tokens of the call,
        those read from and written to a prompt cache included. Counts that make no sense are passed over.
        """
        if counted_tokens < self._rules.least_tokens or billed_tokens <= 0:
            return False
        ratio = billed_tokens / counted_tokens
        if not 0.25 <= ratio <= 4:  # Another prompt than was counted.
            return False
        samples = self._samples.setdefault(model, deque(maxlen=self._rules.window))
        self._samples.move_to_end(model)
        samples.append(round(ratio, 4))
        while len(self._samples) > self._rules.most_models:
            gone, _ = self._samples.popitem(last=False)
            self._factors.pop(gone, None)
        if len(samples) < self._rules.least_samples:
            return False
        found = min(max(round(median(samples), 3), LEAST_FACTOR), MOST_FACTOR)
        used = self.factor(model)
        if abs(found - used) <= self._rules.hysteresis * used:
            return False
        self._factors[model] = found
        return True

    def to_json(self) -> str:
        """All that is learned, for keeping: a few hundred bytes a model."""
        kept = {
            model: {"factor": self._factors.get(model, 1.0), "ratios": list(samples)}
            for model, samples in self._samples.items()
        }
        return json.dumps({"version": 1, "models": kept}, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str, rules: CorrectionRules | None = None) -> Corrections:
        """What ``to_json`` kept. Raises ValueError for another form or numbers out of range."""
        result = cls(rules)
        document = json.loads(text)
        if not isinstance(document, Mapping) or document.get("version") != 1:
            raise ValueError("not corrections of version 1")
        models = document.get("models")
        if not isinstance(models, Mapping):
            raise ValueError("models is no mapping")
        for model, kept in models.items():
            if not isinstance(kept, Mapping):
                raise ValueError(f"{model}: not a mapping")
            factor, ratios = kept.get("factor"), kept.get("ratios")
            if not isinstance(ratios, list):
                raise ValueError(f"{model}: the ratios are no list")
            numbers = [_number(ratio, 0.25, 4) for ratio in ratios]
            result._samples[str(model)] = deque(numbers, maxlen=result._rules.window)
            result._factors[str(model)] = _number(factor, LEAST_FACTOR, MOST_FACTOR)
        return result


def _number(value: object, least: float, most: float) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not least <= value <= most:
        raise ValueError(f"{value!r} is no number from {least} to {most}")
    return float(value)
