"""Measured savings: what a control share, really sent to the baseline model, says about the savings.

Pure statistics. Both sides are samples of independent requests; a request's side was drawn by a hash of its id, so
the two differ in nothing else, and it stays there even where the baseline could not answer it and the layers did
(intention to treat: leaving those out of one side alone would compare other requests). The measured saving is 1 - R
with R = mean cost treated / mean cost control.

The interval is Fieller's for a ratio of two independent means (E. C. Fieller, "Some problems in interval
estimation", JRSS B 16 (1954) 175-185): all R for which treated - R * control is not significantly different from 0,

    (t - R c)^2 <= q^2 (vt + R^2 vc)         t, c the means; vt, vc their squared standard errors

a quadratic in R. It does not assume that the ratio itself is normal, as the delta method does, and says so when
the data cannot bound the ratio (the control mean is not significantly above 0). q is Student's t quantile with the
degrees of freedom of Welch and Satterthwaite for t - R c (B. L. Welch, Biometrika 34 (1947) 28-35). The means must be
near enough to normal: costs are skewed, so with a few dozen control requests the interval covers somewhat less than
it says (tests/unit/ledger/test_ledger_measured.py simulates how much).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from mesh.errors import invalid_argument

DEFAULT_CONFIDENCE = 0.95
_LOWEST, _HIGHEST = 0.5, 0.999
_NORMAL = 1e6  # From here on t is the normal distribution, to a millionth.


@dataclass(frozen=True, slots=True)
class Side:
    """One side's sums over its requests: costs and baselines in nano-USD, ``squares`` of the costs."""

    count: int = 0
    cost: float = 0.0
    squares: float = 0.0
    baseline: float = 0.0

    @property
    def mean(self) -> float:
        """Mean cost; 0 of nothing."""
        return self.cost / self.count if self.count else 0.0

    @property
    def mean_variance(self) -> float:
        """Squared standard error of the mean (of at least 2 requests), from the sample variance."""
        # The rounding of the sums, about 1e-10 of the squares at a million requests, is far below the spread of costs.
        spread = max(self.squares - self.cost * self.mean, 0.0)
        return spread / (self.count - 1) / self.count


@dataclass(frozen=True, slots=True)
class Measured:
    """The measured saving with its interval, and what the treated requests' receipts state.

    ``measured`` False: one side has fewer than 2 requests, the control share cost nothing, or the data bound no
    ratio; saving and interval are 0 then.
    """

    control: Side
    treated: Side
    saving: float
    saving_low: float
    saving_high: float
    stated_saving: float
    measured: bool


def check_confidence(confidence: float, field: str) -> float:
    """The confidence level to use; 0 stands for 0.95. Raises INVALID_FIELD outside 0.5..0.999."""
    if confidence == 0:
        return DEFAULT_CONFIDENCE
    if not _LOWEST <= confidence <= _HIGHEST:  # NaN as well.
        raise invalid_argument(f"{confidence} is not within {_LOWEST}..{_HIGHEST}", field=field)
    return confidence


def measure(control: Side, treated: Side, confidence: float = DEFAULT_CONFIDENCE) -> Measured:
    """Compare the two sides; the module's text has the method."""
    stated = 1 - treated.cost / treated.baseline if treated.baseline > 0 else 0.0
    if min(control.count, treated.count) < 2 or control.cost <= 0:
        return Measured(control, treated, 0.0, 0.0, 0.0, stated, measured=False)
    bounds = ratio_interval(control, treated, confidence)
    if bounds is None:
        return Measured(control, treated, 0.0, 0.0, 0.0, stated, measured=False)
    low, high = bounds
    ratio = treated.mean / control.mean
    return Measured(control, treated, 1 - ratio, 1 - high, 1 - low, stated, measured=True)


def ratio_interval(control: Side, treated: Side, confidence: float) -> tuple[float, float] | None:
    """Fieller's interval of treated.mean / control.mean; None where the data do not bound it."""
    c, t = control.mean, treated.mean
    vc, vt = control.mean_variance, treated.mean_variance
    ratio = t / c
    noise = vt + ratio**2 * vc
    if noise == 0:
        return ratio, ratio
    freedom = noise**2 / (vt**2 / (treated.count - 1) + (ratio**2 * vc) ** 2 / (control.count - 1))
    q = t_quantile((1 + confidence) / 2, freedom)
    # In units of c, so that costs of any size keep their digits.
    g, s = q**2 * vc / c**2, q**2 * vt / c**2
    if g >= 1:
        return None
    # (1 - g) R^2 - 2 ratio R + (ratio^2 - s) <= 0; its discriminant is never below 0 but for rounding.
    root = math.sqrt(max(ratio**2 * g + s * (1 - g), 0.0))
    # Costs are not negative, so neither is their ratio.
    return max((ratio - root) / (1 - g), 0.0), (ratio + root) / (1 - g)


def t_quantile(probability: float, freedom: float) -> float:
    """Student's t quantile for a probability above 0.5, by bisection of its distribution function."""
    low, high = 0.0, 1.0
    freedom = min(freedom, _NORMAL)
    while t_below(high, freedom) < probability:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        if t_below(middle, freedom) < probability:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def t_below(t: float, freedom: float) -> float:
    """Probability that Student's t is below a ``t`` of at least 0 (DLMF 8.17: by the incomplete beta function)."""
    return 1 - _beta_share(freedom / (freedom + t * t), freedom / 2, 0.5) / 2


def _beta_share(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function (continued fraction DLMF 8.17.22 by Lentz's method)."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # Here the fraction of the mirrored function converges fast.
        return 1 - _beta_share(1 - x, b, a)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x))
    tiny = 1e-300
    upper, lower = 1.0, 1 / ((1 - (a + b) * x / (a + 1)) or tiny)
    value = lower
    for m in range(1, 500):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            lower = 1 / ((1 + term * lower) or tiny)
            upper = (1 + term / upper) or tiny
            change = lower * upper
            value *= change
        if abs(change - 1) < 1e-14:
            break
    return front * value / a
