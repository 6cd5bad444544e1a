"""Money for people: nano-USD as text."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal, InvalidOperation

NANO_PER_USD = 1_000_000_000


def usd(nano: int, decimals: int = 6) -> str:
    """Nano-USD as text such as ``$0.001250``; rounded half to even, for showing only."""
    value = (Decimal(abs(nano)) / NANO_PER_USD).quantize(Decimal(1).scaleb(-decimals), ROUND_HALF_EVEN)
    # Rounding to -0 would read like a loss.
    return f"{'-' if nano < 0 and value else ''}${value:,f}"


def parse_usd(text: str) -> int:
    """A decimal number of USD as nano-USD. Raises ValueError for anything but a finite one of at least 0."""
    try:
        value = Decimal(text.removeprefix("$").replace(",", ""))
    except InvalidOperation:
        raise ValueError(f"{text!r} is not an amount in USD") from None
    nano = value * NANO_PER_USD
    if not value.is_finite() or value < 0 or nano != nano.to_integral_value() or nano >= 2**63:
        raise ValueError(f"{text!r} is not an amount in USD: at least 0, at most nine decimals")
    return int(nano)


def percent(part: int, whole: int) -> str:
    """A share as text such as ``41.3%``; ``-`` of nothing."""
    # Rounding to -0.0 would read like a loss.
    return f"{round(100 * part / whole, 1) + 0.0:.1f}%" if whole else "-"
