"""The index of dated prices: what it finds is what a walk over all rows finds."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenth.type.v1 import receipt_pb2

from mesh.errors import TenthError
from mesh.receipt import Price, price_of
from mesh.wire import dated_prices

START = 1_800_000_000 * 10**9
"""Beyond what a float of seconds tells apart to the nanosecond."""


def message(model: str, start: int, end: int | None, amount: int) -> receipt_pb2.Price:
    """A price from one nanosecond to another, counted from START."""
    made = receipt_pb2.Price(model=model, input_nano_usd_per_million_tokens=amount, confirmed=True)
    made.valid_from_time.FromNanoseconds(START + start)
    if end is not None:
        made.valid_to_time.FromNanoseconds(START + end)
    return made


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 30), st.none() | st.integers(1, 9)), max_size=8),
    st.integers(-2, 40),
)
def test_an_instant_finds_the_row_that_holds(rows: list[tuple[str, int, int | None]], at: int) -> None:
    messages: list[receipt_pb2.Price] = []
    for model in "ab":
        starts = sorted({start: length for name, start, length in rows if name == model}.items())
        for index, (start, length) in enumerate(starts):
            following = starts[index + 1][0] if index + 1 < len(starts) else None
            end = following if length is None else min(start + length, following or start + length)
            messages.append(message(model, start, end, start))
    holding = {
        each.model: each.input_nano_usd_per_million_tokens
        for each in messages
        if each.valid_from_time.ToNanoseconds() <= START + at
        and (not each.HasField("valid_to_time") or START + at < each.valid_to_time.ToNanoseconds())
    }
    book = dated_prices(reversed(messages)).at(START + at)
    assert {model: price.input for model, price in book.items()} == holding
    assert len(book) == len(holding)
    assert [book.get(model) is not None for model in "abc"] == [model in holding for model in "abc"]


def test_one_nanosecond_is_enough() -> None:
    prices = dated_prices([message("m", 0, 1, 1), message("m", 1, None, 2)])
    assert [prices.at(START + at)["m"].input for at in (0, 1, 2)] == [1, 2, 2]
    assert prices.at(START)["m"] is prices.at(START)["m"]
    with pytest.raises(TenthError, match="PRICE_UNKNOWN"):
        price_of("m", prices.at(START - 1))


def test_a_price_is_read_from_its_message() -> None:
    assert dated_prices([message("m", 0, None, 7)]).at(START)["m"] == Price("m", 7, 0)


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(st.integers(0, 30), st.none() | st.integers(1, 9)), max_size=6),
    st.integers(-2, 40),
    st.integers(0, 12),
)
def test_a_stretch_finds_every_row_that_holds_at_one_of_its_instants(
    rows: list[tuple[int, int | None]], first: int, length: int
) -> None:
    starts = sorted(dict(rows).items())
    messages = []
    for index, (start, lasts) in enumerate(starts):
        following = starts[index + 1][0] if index + 1 < len(starts) else None
        end = following if lasts is None else min(start + lasts, following or start + lasts)
        messages.append(message("a", start, end, start))
    prices = dated_prices(messages)
    holding = [prices.price("a", START + at) for at in range(first, first + length + 1)]
    found = prices.prices_between("a", START + first, START + first + length)
    assert [each.input for each in found] == sorted({each.input for each in holding if each is not None})
    assert prices.prices_between("b", START, START + 40) == []
