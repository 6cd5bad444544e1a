"""A version's prices by instant are what a pass over all rows gives, at every boundary too."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from mesh.receipt import Price
from services.ledger.prices import DatedPrice, book_at
from services.ledger.stretches import Stretches

_DATES = st.integers(1, 6).map(lambda day: day * 86_400 * 10**9)


@st.composite
def _row(draw: st.DrawFn) -> DatedPrice:
    starts = draw(_DATES)
    ends = draw(st.none() | _DATES.map(lambda length: starts + length))
    return DatedPrice(Price(draw(st.sampled_from("abc")), draw(st.integers(1, 9)), 1), starts, "test", ends)


@given(rows=st.lists(_row(), max_size=8), nudges=st.lists(st.sampled_from([-(10**9), -1, 0, 1, 10**9]), min_size=1))
def test_every_instant_gives_what_a_pass_over_all_rows_gives(rows: list[DatedPrice], nudges: list[int]) -> None:
    stretches = Stretches(rows)
    for day in range(8):
        for nudge in nudges:
            at_ns = day * 86_400 * 10**9 + nudge
            assert stretches.at(at_ns) == book_at(rows, at_ns)
