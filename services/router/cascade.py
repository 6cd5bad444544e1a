"""When to let a cheap model answer first, and how sure it must be for its answer to stand. Pure.

Everything is compared in one unit, as for the choice of a model: utility = P(good answer) - quality price * cost, the
quality price in success probability per USD. When the first answer is there its cost is sunk, so it is given if

    confidence >= P(strong is good) - quality price * cost of strong

Before that, the confidence is a guess: Beta with the cheap model's predicted success as its mean. How wide it is says
how much checking can tell; as wide as the calibrated confidences of the shipped fit (``train_confidence.py``), so that
cascades are planned on what was measured. The strong model is taken to be as good on what the cheap one fails as on
everything, which is a little too good: hence the least gain.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate

from services.router.decision import Candidate, CascadePlan, Route

_NANO = 1_000_000_000
_CONCENTRATION = 11.5
"""a + b of the Beta: p (1 - p) / variance - 1 of the shipped fit's confidences on held-out answers."""
_MIN_GAIN = 0.005
"""Least utility that a cascade must gain over both models alone; less is within the error of the predictions."""
_POINTS = 64
_VALUES = tuple((point + 0.5) / _POINTS for point in range(_POINTS))
_LOGS = tuple((math.log(value), math.log1p(-value)) for value in _VALUES)


@dataclass(frozen=True, slots=True)
class _Confidences:
    """A distribution over ``_VALUES``: the sums of weight, and of value times weight, below each of them and of all."""

    weight: tuple[float, ...]
    value: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Expectation:
    """What a cascade is expected to do."""

    plan: CascadePlan
    utility: float
    escalation_probability: float
    gain: float
    """Utility beyond the better of both models alone."""


def min_confidence(strong_cost_nano_usd: int, strong_success: float, quality_price: float) -> float:
    """Least confidence, 0..1, at which a first answer is given rather than a second asked for.

    The first answer's cost is spent either way and changes nothing. ``quality_price`` is in success probability per
    USD; 0: money does not matter, and only what is as sure as the strong model passes.
    """
    threshold = strong_success - quality_price * strong_cost_nano_usd / _NANO
    return min(max(threshold, 0.0), 1.0)


def plan(route: Route, quality_price: float, seconds_left: float | None = None) -> CascadePlan | None:
    """The best cascade that begins with the route's model; None where that model, or the second, does better alone."""
    first = next((item for item in route.candidates if item.model is route.model), None)
    if first is None:
        return None
    found = _best_after(first, route.candidates, quality_price, seconds_left)
    return found.plan if found else None


def best(
    candidates: Sequence[Candidate], quality_price: float, seconds_left: float | None = None
) -> tuple[Candidate, Expectation] | None:
    """The best cascade of any two candidates, with the one that begins; None where no cascade pays.

    ``gain`` is beyond the two models of the cascade; the caller compares ``utility`` with its best single model's.
    """
    found = [
        (first, expected)
        for first in candidates
        if (expected := _best_after(first, candidates, quality_price, seconds_left)) is not None
    ]
    return max(found, key=lambda pair: pair[1].utility, default=None)


def _best_after(
    first: Candidate, candidates: Iterable[Candidate], quality_price: float, seconds_left: float | None
) -> Expectation | None:
    # Without log probabilities nothing but the checks would stand between a first answer and an escalation.
    if first.rejected_reason or first.expected_cost_nano_usd < 0 or not first.model.abilities.logprobs:
        return None
    confidences = _confidences(first.success_probability)
    found = [
        _expected(first, second, confidences, quality_price)
        for second in candidates
        if _may_follow(first, second, seconds_left)
    ]
    worth = [item for item in found if item.gain >= _MIN_GAIN]
    return max(worth, key=lambda item: item.utility, default=None)


def _may_follow(first: Candidate, second: Candidate, seconds_left: float | None) -> bool:
    """True for a better model with a price, if both have time to answer one after the other."""
    return (
        second.model is not first.model
        and not second.rejected_reason
        and second.expected_cost_nano_usd >= 0
        and second.success_probability > first.success_probability
        and (seconds_left is None or _seconds(first) + _seconds(second) <= seconds_left)
    )


def _seconds(candidate: Candidate) -> float:
    """Expected time to a whole answer; 0 as far as nothing was measured."""
    speed = candidate.model.output_tokens_per_second
    writing = candidate.expected_output_tokens / speed if speed else 0.0
    return candidate.model.first_token_seconds + writing


def _expected(first: Candidate, second: Candidate, confidences: _Confidences, quality_price: float) -> Expectation:
    price = quality_price / _NANO
    threshold = min_confidence(second.expected_cost_nano_usd, second.success_probability, quality_price)
    below = bisect_left(_VALUES, threshold)
    escalates, whole = confidences.weight[below], confidences.value[-1]
    kept = whole - confidences.value[below]
    cheap, strong = price * first.expected_cost_nano_usd, price * second.expected_cost_nano_usd
    utility = kept + escalates * second.success_probability - cheap - escalates * strong
    alone = max(whole - cheap, second.success_probability - strong)
    return Expectation(CascadePlan(second.model, threshold), utility, escalates, utility - alone)


def _confidences(mean: float) -> _Confidences:
    """The Beta of that mean at the points, added up."""
    centre = min(max(mean, 0.01), 0.99)
    a, b = centre * _CONCENTRATION - 1.0, (1.0 - centre) * _CONCENTRATION - 1.0
    logs = [a * here + b * rest for here, rest in _LOGS]
    top = max(logs)
    weights = [math.exp(each - top) for each in logs]
    total = math.fsum(weights)
    return _Confidences(
        tuple(accumulate((weight / total for weight in weights), initial=0.0)),
        tuple(
            accumulate((value * weight / total for value, weight in zip(_VALUES, weights, strict=True)), initial=0.0)
        ),
    )
