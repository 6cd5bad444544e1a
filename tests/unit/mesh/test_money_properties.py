"""Money: parsing refuses what is not money, rounding is half to even, showing loses nothing it should not."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.money import MAX_NANO_USD, NANO_PER_USD, divide_half_even, format_usd, parse_usd, round_half_even

quick = settings(deadline=None, max_examples=100)
"""No deadline: other work on the machine must not fail a test of arithmetic."""
nano_usd = st.integers(0, MAX_NANO_USD)


@quick
@given(nano_usd)
def test_every_amount_is_parsed_back(nano: int) -> None:
    whole, part = divmod(nano, NANO_PER_USD)
    assert parse_usd(f"{whole}.{part:09d}") == nano


@quick
@given(st.decimals(allow_nan=True, allow_infinity=True))
def test_parsing_gives_the_exact_amount_or_refuses(value: Decimal) -> None:
    try:
        nano = parse_usd(str(value))
    except ValueError:
        exact = value.is_finite() and Fraction(value) * NANO_PER_USD
        assert value.is_nan() or value.is_infinite() or value < 0 or exact % 1 or exact > MAX_NANO_USD
    else:
        assert Fraction(nano, NANO_PER_USD) == Fraction(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "x",
        "1,5",
        "-1",
        "-0.000000001",
        "NaN",
        "sNaN",
        "inf",
        "-inf",
        "1e400",
        "9223372036.854775808",
        "0.0000000001",
        "1e-10",
        "0x10",
        "1/2",
    ],
)
def test_what_is_no_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is|has"):
        parse_usd(text)


@pytest.mark.parametrize(
    ("text", "nano"),
    [
        ("0", 0),
        ("-0", 0),
        ("2.50", 2_500_000_000),
        ("1e-9", 1),
        ("0.000000001", 1),
        ("9223372036.854775807", 2**63 - 1),
    ],
)
def test_amounts(text: str, nano: int) -> None:
    assert parse_usd(text) == nano


@quick
@given(st.fractions())
def test_rounding_is_to_the_nearest_and_ties_to_the_even(value: Fraction) -> None:
    rounded = round_half_even(value)
    distance = abs(value - rounded)
    assert distance <= Fraction(1, 2)
    assert distance < Fraction(1, 2) or rounded % 2 == 0


@quick
@given(st.integers(-MAX_NANO_USD, MAX_NANO_USD))
def test_nine_decimals_show_every_nano_dollar(nano: int) -> None:
    text = format_usd(nano, 9).replace("$", "").replace(",", "")
    assert Fraction(Decimal(text)) == Fraction(nano, NANO_PER_USD)


@quick
@given(st.integers(-(10**30), 10**30), st.integers(1, 10**15))
def test_dividing_rounds_as_a_fraction_does(numerator: int, denominator: int) -> None:
    assert divide_half_even(numerator, denominator) == round_half_even(Fraction(numerator, denominator))
    assert divide_half_even(numerator * 5, 10) == round_half_even(Fraction(numerator, 2))


@pytest.mark.parametrize(
    ("nano", "decimals", "text"),
    [
        (1_250_000, 6, "$0.001250"),
        (-1_500, 6, "-$0.000002"),
        (2_500, 6, "$0.000002"),
        (1_234_567 * 10**9, 0, "$1,234,567"),
    ],
)
def test_showing(nano: int, decimals: int, text: str) -> None:
    assert format_usd(nano, decimals) == text
