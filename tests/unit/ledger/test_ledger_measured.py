"""Measured savings: the interval by hand, against a bootstrap, and how often it covers the truth."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import TenthError
from services.ledger.measured import Side, check_confidence, measure, ratio_interval, t_quantile


def side(costs: Sequence[float], baseline: float = 0.0) -> Side:
    return Side(len(costs), math.fsum(costs), math.fsum(cost * cost for cost in costs), baseline)


@pytest.mark.parametrize(
    ("probability", "freedom", "quantile"),
    # Student's t, from the tables (NIST/SEMATECH e-Handbook 1.3.6.7.2), and the normal distribution at the end.
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.95, 5, 2.015),
        (0.975, 30, 2.042),
        (0.995, 10, 3.169),
        (0.999, 100, 3.174),
        (0.975, 1e12, 1.960),
    ],
)
def test_t_quantiles_are_those_of_the_tables(probability: float, freedom: float, quantile: float) -> None:
    assert t_quantile(probability, freedom) == pytest.approx(quantile, abs=5e-4)


def test_an_interval_by_hand() -> None:
    # Means 100 and 40 with standard errors 10 and 4: R = 0.4, and Welch's freedom is 2 * (n - 1) = 18 by symmetry.
    spread = 10 * 90
    control = Side(10, 1000.0, 10 * 100.0**2 + spread * 10, 2000.0)
    treated = Side(10, 400.0, 10 * 40.0**2 + spread * 1.6, 1000.0)
    assert (control.mean_variance, treated.mean_variance) == pytest.approx((100, 16))
    q = 2.100922  # t of 0.975 with 18 degrees of freedom
    g = q * q * 100 / 100**2
    root = math.sqrt(0.4**2 * g + q * q * 16 / 100**2 * (1 - g))
    found = measure(control, treated)
    assert found.measured
    assert found.saving == pytest.approx(0.6)
    assert found.saving_low == pytest.approx(1 - (0.4 + root) / (1 - g), abs=1e-6)
    assert found.saving_high == pytest.approx(1 - (0.4 - root) / (1 - g), abs=1e-6)
    assert found.stated_saving == pytest.approx(0.6)


def test_layers_that_cost_more_are_measured_as_negative() -> None:
    found = measure(side([100.0, 101, 99, 100]), side([150.0, 151, 149, 150], baseline=500))
    assert found.measured
    assert found.saving == pytest.approx(-0.5)
    assert found.saving_low < -0.5 < found.saving_high < 0
    assert found.stated_saving == pytest.approx(-0.2)


@pytest.mark.parametrize(
    ("control", "treated"),
    [
        ([], []),
        ([5.0], [1.0, 2.0]),
        ([5.0, 6.0], [1.0]),
        ([0.0, 0.0], [1.0, 2.0]),
        ([1.0, 1000.0], [1.0, 2.0, 3.0]),  # The control mean is not significantly above 0: no bound.
    ],
)
def test_what_cannot_be_said_is_not_said(control: list[float], treated: list[float]) -> None:
    found = measure(side(control), side(treated, baseline=100))
    assert not found.measured
    assert (found.saving, found.saving_low, found.saving_high) == (0, 0, 0)
    assert found.stated_saving == pytest.approx(1 - sum(treated) / 100)


def test_equal_costs_leave_no_doubt() -> None:
    found = measure(side([100.0] * 5), side([25.0] * 50))
    assert (found.measured, found.saving, found.saving_low, found.saving_high) == (True, 0.75, 0.75, 0.75)


@pytest.mark.parametrize("confidence", [math.nan, math.inf, -0.9, 0.4, 1.0, 95.0])
def test_a_confidence_that_cannot_be_is_refused(confidence: float) -> None:
    with pytest.raises(TenthError) as caught:
        check_confidence(confidence, "request.confidence")
    assert caught.value.field == "request.confidence"
    assert check_confidence(0, "") == 0.95


@given(
    st.lists(st.integers(0, 10**9), min_size=2, max_size=40),
    st.lists(st.integers(0, 10**9), min_size=2, max_size=40),
    st.floats(0.5, 0.998),
)
def test_the_interval_holds_the_estimate_grows_with_confidence_and_solves_fiellers_equation(
    control: list[int], treated: list[int], confidence: float
) -> None:
    sides = side(control), side(treated)
    found, wider = measure(*sides, confidence), measure(*sides, 0.999)
    if not found.measured:
        assert not wider.measured
        return
    assert found.saving_low <= found.saving <= found.saving_high <= 1
    if wider.measured:
        assert wider.saving_low <= found.saving_low + 1e-9
        assert found.saving_high <= wider.saving_high + 1e-9
    c, t = sides[0].mean, sides[1].mean
    vc, vt = sides[0].mean_variance, sides[1].mean_variance
    ratio, high = t / c, 1 - found.saving_low
    noise = vt + ratio**2 * vc
    if noise > 1e-6 * t * t:
        freedom = noise**2 / (vt**2 / (len(treated) - 1) + (ratio**2 * vc) ** 2 / (len(control) - 1))
        q = t_quantile((1 + confidence) / 2, freedom)
        assert (t - high * c) ** 2 == pytest.approx(q * q * (vt + high**2 * vc), rel=1e-5)


def skewed(source: random.Random, mean: float, count: int) -> list[float]:
    """Costs as requests have them: lognormal with a spread (sigma 0.8) that makes the 99th percentile six medians."""
    return [mean * source.lognormvariate(-0.32, 0.8) for _ in range(count)]


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**32), st.floats(0.02, 1.5))
def test_the_interval_agrees_with_a_bootstrap(seed: int, ratio: float) -> None:
    source = random.Random(seed)
    control, treated = skewed(source, 1.0, 250), skewed(source, ratio, 400)
    ratios = sorted(
        (sum(source.choices(treated, k=400)) / 400) / (sum(source.choices(control, k=250)) / 250) for _ in range(600)
    )
    bounds = ratio_interval(side(control), side(treated), 0.9)
    assert bounds is not None
    width = ratios[570] - ratios[30]
    # The bootstrap's own 5th and 95th percentiles are known to about a tenth of its width.
    assert bounds[0] == pytest.approx(ratios[30], abs=0.2 * width)
    assert bounds[1] == pytest.approx(ratios[570], abs=0.2 * width)


@pytest.mark.parametrize(("control_count", "least"), [(20, 0.90), (200, 0.93)])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(control_count: int, least: float) -> None:
    source = random.Random(20260615)
    covered, runs, ratio = 0, 600, 0.3
    for _ in range(runs):
        # A third of the treated requests are cache hits, which cost next to nothing.
        treated = [cost if source.random() > 1 / 3 else 1e-4 for cost in skewed(source, (ratio - 1e-4 / 3) * 1.5, 300)]
        found = ratio_interval(side(skewed(source, 1.0, control_count)), side(treated), 0.95)
        assert found is not None
        covered += found[0] <= ratio <= found[1]
    assert least <= covered / runs <= 0.98
