"""Recovered gap, call shares and intervals, on orders small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from services.router.scores import Floats, apgr, cpt, curve, interval, mean, ordering, ratio, resamples

ONE_OF_FOUR = np.array([1.0, 0.0, 0.0, 0.0])
"""Strong adds something on the first row only."""


def _score(*values: float) -> Floats:
    return np.array(values, np.float64)


@pytest.mark.parametrize(
    ("score", "expected_apgr", "cpt50", "cpt80"),
    [
        # Recovered: 4 s up to a quarter, then all. Over s = i / 100: (4 * 325 / 100 + 75) / 101.
        pytest.param(_score(4, 3, 2, 1), 88 / 101, 0.125, 0.2, id="perfect"),
        pytest.param(_score(1, 2, 3, 4), 13 / 101, 0.875, 0.95, id="reversed"),
        pytest.param(_score(7, 7, 7, 7), 0.5, 0.5, 0.8, id="constant"),
        # Recovered: 2 s up to a half: (2 * 1275 / 100 + 50) / 101.
        pytest.param(_score(2, 2, 1, 1), 75.5 / 101, 0.25, 0.4, id="the two best tied"),
        # Nothing for the first quarter, then 4 / 3 (s - 1 / 4).
        pytest.param(_score(1, 2, 1, 1), (4 / 3 * 28.5) / 101, 0.625, 0.85, id="the three worst tied"),
    ],
)
def test_orders_by_hand(score: Floats, expected_apgr: float, cpt50: float, cpt80: float) -> None:
    found = curve(score, ONE_OF_FOUR)
    assert apgr(found) == pytest.approx(expected_apgr)
    assert cpt(found, 0.5) == pytest.approx(cpt50)
    assert cpt(found, 0.8) == pytest.approx(cpt80)


def test_an_order_and_its_reverse_add_up_to_one() -> None:
    random = np.random.default_rng(3)
    gain = random.integers(-1, 3, 57).astype(np.float64)
    score = random.integers(0, 9, 57).astype(np.float64)
    assert apgr(curve(score, gain)) + apgr(curve(-score, gain)) == pytest.approx(1.0)


def test_the_order_of_tied_rows_does_not_matter() -> None:
    gain = np.array([1.0, 0.0, -1.0, 1.0, 1.0])
    score = _score(1, 1, 1, 0, 0)
    places = [2, 4, 0, 3, 1]
    assert apgr(curve(score, gain)) == pytest.approx(apgr(curve(score[places], gain[places])))


def test_rows_that_strong_gets_wrong_can_lift_an_order_above_always_strong() -> None:
    gain = np.array([1.0, 1.0, 0.0, -1.0])
    found = curve(_score(4, 3, 2, 1), gain)
    assert found.gain == pytest.approx([0, 0.25, 0.5, 0.5, 0.25])
    assert apgr(found) > 1
    assert cpt(found, 0.8) == pytest.approx(0.2)  # 0.8 of the gap, a quarter, on the way to the first row's quarter


def test_cpt_takes_the_first_crossing() -> None:
    # Up to the whole gap, down again, up again.
    found = curve(_score(4, 3, 2, 1), np.array([1.0, -1.0, 1.0, 0.0]))
    assert cpt(found, 0.5) == pytest.approx(0.125)


@pytest.mark.parametrize("gain", [np.zeros(4), np.array([-1.0, 0.0, 0.0, 0.0])])
def test_without_a_gap_there_is_nothing_to_recover(gain: Floats) -> None:
    assert ordering(_score(4, 3, 2, 1), gain, resamples(4, 10, 7)) is None


def test_resamples_without_a_gap_are_left_out() -> None:
    draws = np.array([[1, 1, 1, 1], [4, 0, 0, 0], [0, 4, 0, 0]], np.int16)
    found = ordering(_score(4, 3, 2, 1), ONE_OF_FOUR, draws)
    assert found is not None
    assert found.resamples_used == 2
    assert found.apgr.value == pytest.approx(88 / 101)
    # The same row four times over is a tie with itself: 0.5.
    assert found.apgr.ci95 == pytest.approx(interval(np.array([88 / 101, 0.5])))


def test_no_resample_with_a_gap_gives_no_interval() -> None:
    found = ordering(_score(4, 3, 2, 1), ONE_OF_FOUR, np.array([[0, 4, 0, 0]], np.int16))
    assert found is not None
    assert found.apgr.ci95 is None


def test_a_resample_is_the_curve_of_its_rows() -> None:
    random = np.random.default_rng(11)
    gain = random.integers(-1, 4, 40).astype(np.float64)
    score = random.integers(0, 12, 40).astype(np.float64)
    draws = resamples(40, 120, 5)
    found = ordering(score, gain, draws)
    assert found is not None
    one_by_one = []
    for draw in draws:
        rows = np.repeat(np.arange(40), draw)
        again = curve(score[rows], gain[rows])
        if again.gain[-1] > 0:
            one_by_one.append(apgr(again))
    assert found.resamples_used == len(one_by_one)
    assert found.apgr.ci95 == pytest.approx(interval(np.array(one_by_one)))


def test_resamples_draw_as_many_rows_as_there_are() -> None:
    draws = resamples(30, 20, 7)
    assert draws.shape == (20, 30)
    assert (draws.sum(axis=1) == 30).all()
    assert (draws == resamples(30, 20, 7)).all()
    assert (draws != resamples(30, 20, 8)).any()


def test_means_and_ratios_over_the_same_rows() -> None:
    draws = np.array([[2, 0], [1, 1], [0, 2]], np.int16)
    above, below = np.array([1.0, 3.0]), np.array([2.0, 4.0])
    assert mean(above, draws).value == 2.0
    assert mean(above, draws).ci95 == pytest.approx(interval(np.array([1.0, 2.0, 3.0])))
    assert ratio(above, below, draws).value == pytest.approx(2 / 3)
    assert ratio(above, below, draws).ci95 == pytest.approx(interval(np.array([1 / 2, 2 / 3, 3 / 4])))
