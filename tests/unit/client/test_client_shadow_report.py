"""The shadow check's arithmetic in the report: verdicts, Wilson's interval, rows by mode and model."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenth.ledger.v1 import ledger_pb2

from tenth_client.reporting.shadow import Checks, checks_of, total, wilson

Z2 = 1.959963984540054**2


@pytest.mark.parametrize(("count", "of"), [(0, 10), (1, 10), (5, 10), (10, 10), (2, 100), (30, 1000)])
def test_wilsons_bounds_are_where_the_score_test_just_rejects(count: int, of: int) -> None:
    """By definition: (share - p)^2 = z^2 p (1 - p) / n at both bounds."""
    for bound in wilson(count, of):
        assert (count / of - bound) ** 2 == pytest.approx(Z2 * bound * (1 - bound) / of, abs=1e-12)


def test_wilson_of_none_and_of_all() -> None:
    assert wilson(0, 10) == pytest.approx((0.0, Z2 / (10 + Z2)))
    assert wilson(10, 10) == pytest.approx((10 / (10 + Z2), 1.0))


def test_nothing_seen_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)
    assert Checks("safe", "mini", undecided=3).worse_text == "-"


@given(st.integers(1, 10**6), st.data())
def test_the_interval_holds_the_share_and_mirrors(of: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(0, of))
    low, high = wilson(count, of)
    assert 0 <= low <= count / of <= high <= 1
    assert (1 - high, 1 - low) == pytest.approx(wilson(of - count, of))


def row(mode: str, model: str, verdict: str, count: int, cost: int) -> ledger_pb2.SpendRow:
    return ledger_pb2.SpendRow(group=[mode, model, verdict], shadow_count=count, actual_nano_usd=cost)


def test_rows_by_mode_and_model() -> None:
    rows = [
        row("balanced", "mini", "worse", 2, 200),
        row("safe", "big", "same", 5, 50),
        row("safe", "mini", "better", 1, 10),
        row("safe", "mini", "same", 90, 900),
        row("safe", "mini", "undecided", 7, 70),
        row("safe", "mini", "worse", 3, 30),
        row("safe", "mini", "of a later revision", 1, 5),
    ]
    checks = checks_of(rows)
    assert checks == (
        Checks("balanced", "mini", worse=2, cost=200),
        Checks("safe", "big", same=5, cost=50),
        Checks("safe", "mini", same=90, worse=3, better=1, undecided=8, cost=1015),
    )
    assert [each.compared for each in checks] == [2, 5, 94]
    assert checks[2].worse_text == "3.2% (1.1% to 9.0%)"
    whole = total(checks)
    assert (whole.compared, whole.worse, whole.undecided, whole.cost) == (101, 5, 8, 1265)
    assert checks_of([]) == ()
