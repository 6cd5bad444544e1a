"""The price book: rows that never change, one price at every instant, old versions as they were."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import TenthError
from mesh.receipt import Price
from services.ledger.prices import DatedPrice, add, book_at

SECOND = 10**9


def row(start: int, price: int = 1, *, model: str = "m", end: int | None = None) -> DatedPrice:
    """A price from a second on."""
    return DatedPrice(Price(model, price, price), start * SECOND, "test", None if end is None else end * SECOND)


def applied(book: list[DatedPrice], *new: DatedPrice, only_absent: bool = False) -> list[DatedPrice]:
    """The book with prices added."""
    change = add(book, new, only_absent=only_absent)
    replaced = {(before.model, before.valid_from_ns) for before, _ in change.closed}
    kept = [each for each in book if (each.model, each.valid_from_ns) not in replaced]
    return [*kept, *(after for _, after in change.closed), *change.added]


def test_a_new_price_closes_the_open_one() -> None:
    assert applied([row(1)], row(5, 2)) == [row(1, end=5), row(5, 2)]
    assert applied([], row(1), row(5, 2), row(9, 3)) == [row(1, end=5), row(5, 2, end=9), row(9, 3)]


def test_a_price_that_ended_before_stays_as_it_was() -> None:
    assert applied([row(1, end=3)], row(5, 2)) == [row(1, end=3), row(5, 2)]
    assert applied([row(1, end=7)], row(5, 2)) == [row(1, end=5), row(5, 2)]


def test_the_same_again_changes_nothing() -> None:
    book = applied([], row(1), row(5, 2))
    assert applied(book, row(1), row(5, 2)) == book


@pytest.mark.parametrize("new", [row(5, 3), row(3, 3), row(1, 2)])
def test_a_price_that_is_not_later_is_refused_and_left_out_of_a_seed(new: DatedPrice) -> None:
    book = applied([], row(1), row(5, 2))
    with pytest.raises(TenthError, match="PRICE_NOT_LATER") as caught:
        add(book, [row(9, 9), new])
    assert caught.value.field == "request.prices[1].valid_from_time"
    assert applied(book, new, only_absent=True) == book


@settings(deadline=None, max_examples=100)
@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 9), st.sampled_from("mn")), max_size=8), st.integers(0, 25)
)
def test_at_every_instant_a_model_has_one_price_the_last_that_began(new: list[tuple[int, int, str]], at: int) -> None:
    book: list[DatedPrice] = []
    began: dict[str, tuple[int, int]] = {}
    for start, price, model in new:
        if start > began.get(model, (0, 0))[0]:
            began[model] = (start, price)
        book = applied(book, row(start, price, model=model), only_absent=True)
    holding = [each for each in book if each.holds_at(at * SECOND)]
    assert len({each.model for each in holding}) == len(holding)
    prices = book_at(book, 25 * SECOND)
    assert {model: price.input for model, price in prices.items()} == {
        model: price for model, (_, price) in began.items()
    }
