"""Money: integer nano-USD, and the one rounding rule.

Prices are written as decimal strings in USD per million tokens and held as int nano-USD per million tokens. A
step price is the exact sum of tokens times prices, rounded once, half to even.
"""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from fractions import Fraction

NANO_PER_USD = 1_000_000_000
TOKENS_PER_PRICE = 1_000_000
MAX_NANO_USD = 2**63 - 1
"""Largest amount that int64 carries: about 9.2 billion USD."""


def round_half_even(amount: Fraction) -> int:
    """The nearest integer, ties to the even one."""
    return round(amount)


def divide_half_even(numerator: int, denominator: int) -> int:
    """``round_half_even`` of a quotient of whole numbers; the denominator is positive."""
    whole, rest = divmod(numerator, denominator)
    return whole + (2 * rest > denominator or (2 * rest == denominator and whole % 2 == 1))


def parse_usd(text: str) -> int:
    """A decimal string in USD as nano-USD.

    Raises ValueError for anything but a finite, non-negative number with at most nine decimals that fits int64.
    """
    try:
        value = Decimal(text)
    except InvalidOperation:
        raise ValueError(f"{text!r} is not a decimal number") from None
    if not value.is_finite():
        raise ValueError(f"{text!r} is not finite")
    if value < 0:
        raise ValueError(f"{text!r} is negative")
    nano = value * NANO_PER_USD
    if nano != nano.to_integral_value():
        raise ValueError(f"{text!r} has more than nine decimals")
    if nano > MAX_NANO_USD:
        raise ValueError(f"{text!r} is too large")
    return int(nano)


def format_usd(nano: int, decimals: int = 6) -> str:
    """Nano-USD as text such as ``$0.001250``; rounded half to even for showing only."""
    sign = "-" if nano < 0 else ""
    scaled = round_half_even(Fraction(abs(nano) * 10**decimals, NANO_PER_USD))
    whole, part = divmod(scaled, 10**decimals)
    return f"{sign}${whole:,}.{part:0{decimals}d}" if decimals else f"{sign}${whole:,}"
