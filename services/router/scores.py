"""How well a score orders rows by what the strong model adds: the recovered gap, call shares, intervals. Pure.

APGR and CPT are those of RouteLLM (Ong et al., 2024): of the gap in quality between always weak and always strong, the
mean share that is recovered over all shares of strong calls, and the smallest share that recovers a given part.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Counts = npt.NDArray[np.int16]
Indices = npt.NDArray[np.intp]

SHARES: Floats = np.linspace(0.0, 1.0, 101)
"""The shares of strong calls over which the recovered gap is averaged."""
_BLOCK = 50
"""Resamples held in memory at a time."""


@dataclass(frozen=True, slots=True)
class Curve:
    """What is gained over always weak when the first rows in a score's order go to the strong model.

    Rows with the same score are taken together, evenly: straight lines between the points are their averaged order.
    """

    share: Floats
    """Of calls that are strong, 0 to 1, rising."""
    gain: Floats
    """Mean quality above always weak; the last is the whole gap."""

    def at(self, shares: Floats) -> Floats:
        """The gain at these shares of strong calls."""
        return np.interp(shares, self.share, self.gain)


@dataclass(frozen=True, slots=True)
class Interval:
    """A figure and its 95% interval."""

    value: float
    ci95: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class Ordering:
    """How good an order is, and how many resamples had a gap to be recovered."""

    apgr: Interval
    cpt50: Interval
    cpt80: Interval
    resamples_used: int


def resamples(n: int, count: int, seed: int) -> Counts:
    """How often each of ``n`` rows is drawn in each of ``count`` bootstrap samples of the same size, count by n."""
    random = np.random.default_rng(seed)
    return np.stack([np.bincount(random.integers(0, n, n), minlength=n).astype(np.int16) for _ in range(count)])


def curve(score: Floats, gain: Floats) -> Curve:
    """The curve of a score, higher meaning strong first, over each row's gain of strong above weak."""
    return next(_curves(score, gain, np.ones((1, len(score)), np.int16)))


def apgr(found: Curve) -> float:
    """Mean recovered share of the gap over the 101 shares of strong calls. The gap must not be 0."""
    return float(found.at(SHARES).mean() / found.gain[-1])


def cpt(found: Curve, recovered: float) -> float:
    """The smallest share of strong calls that recovers this share of the gap. The gap must be above 0."""
    wanted = recovered * found.gain[-1]
    place = int(np.argmax(found.gain >= wanted))
    before, after = found.gain[place - 1], found.gain[place]
    x0, x1 = found.share[place - 1], found.share[place]
    return float(x0 + (x1 - x0) * (wanted - before) / (after - before))


def ordering(score: Floats, gain: Floats, draws: Counts) -> Ordering | None:
    """The measures of a score with intervals over resampled rows; None when strong is no better than weak.

    Resamples in which it is no better have nothing to recover and are left out of the intervals.
    """
    whole = curve(score, gain)
    if whole.gain[-1] <= 0:
        return None
    drawn = [(apgr(each), cpt(each, 0.5), cpt(each, 0.8)) for each in _curves(score, gain, draws) if each.gain[-1] > 0]
    by_measure = np.array(drawn).T if drawn else np.empty((3, 0))
    bounds = [interval(values) for values in by_measure]
    return Ordering(
        Interval(apgr(whole), bounds[0]),
        Interval(cpt(whole, 0.5), bounds[1]),
        Interval(cpt(whole, 0.8), bounds[2]),
        len(drawn),
    )


def mean(values: Floats, draws: Counts) -> Interval:
    """A mean over rows."""
    return Interval(float(values.mean()), interval(_means(values, draws)))


def ratio(above: Floats, below: Floats, draws: Counts) -> Interval:
    """A ratio of two means over the same rows; the one below must not be 0."""
    bottom = _means(below, draws)
    usable = bottom > 0
    bounds = interval(_means(above, draws)[usable] / bottom[usable])
    return Interval(float(above.mean() / below.mean()), bounds)


def interval(values: Floats) -> tuple[float, float] | None:
    """The middle 95% of resampled figures; None without any."""
    if not len(values):
        return None
    low, high = np.percentile(values, (2.5, 97.5))
    return float(low), float(high)


def _means(values: Floats, draws: Counts) -> Floats:
    found: Floats = draws @ values / len(values)
    return found


def _curves(score: Floats, gain: Floats, draws: Counts) -> Iterator[Curve]:
    """One curve for each line of ``draws``."""
    order = np.argsort(-score, kind="stable")
    ordered = score[order]
    ends = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
    gains = gain[order]
    n = len(score)
    for start in range(0, len(draws), _BLOCK):
        counts = draws[start : start + _BLOCK, order].astype(np.float64)
        calls = np.cumsum(counts, axis=1)[:, ends] / n
        gained = np.cumsum(counts * gains, axis=1)[:, ends] / n
        for share, sum_ in zip(calls, gained, strict=True):
            yield Curve(np.append(0.0, share), np.append(0.0, sum_))
