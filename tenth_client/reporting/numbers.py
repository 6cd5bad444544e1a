"""Numbers and dates for people, by language: English and Korean."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime
from decimal import ROUND_HALF_EVEN, Decimal

from tenth_client.money import usd

_SIGNS = {"KRW": "₩", "JPY": "¥", "EUR": "€", "GBP": "£"}
_WHOLE = {"KRW", "JPY"}
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def decimals_for(amounts: Iterable[int]) -> int:
    """As many decimals as the largest of some amounts (nano-USD) needs to show four figures or more."""
    largest = max((abs(amount) for amount in amounts), default=0)
    return next((places for limit, places in ((10**14, 0), (10**11, 2), (10**9, 4), (10**7, 5)) if largest >= limit), 6)


def money(nano: int, decimals: int) -> str:
    """Nano-USD as ``$1,234.50``; a zero without a sign."""
    shown = usd(nano, decimals)
    return shown.removeprefix("-") if not any(digit in shown for digit in "123456789") else shown


def local(amount: Decimal | None, currency: str) -> str:
    """An amount in another currency, ``₩1,234``: won and yen without decimals, others with two. Empty for none."""
    if amount is None:
        return ""
    places = Decimal(1) if currency in _WHOLE else Decimal("0.01")
    value = amount.quantize(places, ROUND_HALF_EVEN)
    sign = "-" if value < 0 else ""
    return f"{sign}{_SIGNS.get(currency, f'{currency} ')}{abs(value):,f}"


def day(value: date, language: str) -> str:
    """``Nov 26, 2026`` or ``2026년 11월 26일``."""
    if language == "ko":
        return f"{value.year}년 {value.month}월 {value.day}일"
    return f"{_MONTHS[value.month - 1]} {value.day}, {value.year}"


def short_day(value: date, language: str) -> str:
    """A day on an axis: ``Nov 26`` or ``11/26``."""
    return f"{value.month}/{value.day}" if language == "ko" else f"{_MONTHS[value.month - 1]} {value.day}"


def moment(value: datetime, language: str) -> str:
    """A time in its own zone, to the minute."""
    return f"{day(value.date(), language)} {value:%H:%M}"
