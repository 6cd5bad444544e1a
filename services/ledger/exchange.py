"""Dated exchange rates: append-only, for showing amounts in another currency. No receipt depends on them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from sqlalchemy import Connection, insert, select

from mesh.errors import Code, TenthError, invalid_argument, required
from mesh.money import MAX_NANO_USD
from services.ledger.errors import Reason
from services.ledger.store import Store
from services.ledger.tables import exchange_rates

_CURRENCY = re.compile(r"[A-Z]{3}")
_UNITS = re.compile(r"([0-9]{1,10})(?:\.([0-9]{1,9}))?")


@dataclass(frozen=True, slots=True)
class Rate:
    """Units of a currency for one USD from an instant on; the units in billionths, a whole number above 0."""

    currency: str
    nano_units_per_usd: int
    valid_from_ns: int
    source: str

    @property
    def units_per_usd(self) -> str:
        """The units as a decimal string."""
        whole, part = divmod(self.nano_units_per_usd, 10**9)
        return f"{whole}.{part:09d}".rstrip("0").rstrip(".")


def parse_rate(currency: str, units_per_usd: str, valid_from_ns: int, source: str, field: str) -> Rate:
    """A rate from its text. Raises REQUIRED_FIELD or INVALID_FIELD naming the field that is wrong."""
    if not _CURRENCY.fullmatch(currency) or currency == "USD":
        raise invalid_argument(f"{currency!r} is no currency code other than USD", field=f"{field}.currency")
    found = _UNITS.fullmatch(units_per_usd)
    if not found:
        raise invalid_argument(
            f"{units_per_usd!r} is not a decimal string with at most nine decimals", field=f"{field}.units_per_usd"
        )
    nano = int(found[1]) * 10**9 + int((found[2] or "").ljust(9, "0"))
    if not 0 < nano <= MAX_NANO_USD:
        raise invalid_argument(f"{units_per_usd} is not above 0, or too large", field=f"{field}.units_per_usd")
    if valid_from_ns <= 0:
        raise required(f"{field}.valid_from_time")
    if not source.strip():
        raise required(f"{field}.source")
    return Rate(currency, nano, valid_from_ns, source)


class Rates:
    """The rates in the database."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def add(self, rate: Rate) -> None:
        """Add a rate; the same one again changes nothing. Raises RATE_NOT_LATER."""

        def operation(connection: Connection) -> None:
            there = _rates(connection, rate.currency)
            if rate in there:
                return
            if there and there[-1].valid_from_ns >= rate.valid_from_ns:
                raise TenthError(
                    Code.FAILED_PRECONDITION,
                    Reason.RATE_NOT_LATER,
                    f"a rate of {rate.currency} already starts then or later; a new one must start later",
                    "request.rate.valid_from_time",
                )
            connection.execute(
                insert(exchange_rates),
                {
                    "currency": rate.currency,
                    "valid_from_ns": rate.valid_from_ns,
                    "nano_units_per_usd": rate.nano_units_per_usd,
                    "source": rate.source,
                },
            )

        await self._store.write(operation)

    async def list(self, currency: str = "") -> list[Rate]:
        """The rates of a currency, or of all, by currency, oldest first."""
        async with self._store.read() as connection:
            return await connection.run_sync(_rates, currency)


def _rates(connection: Connection, currency: str) -> list[Rate]:
    query = select(exchange_rates).order_by(exchange_rates.c.currency, exchange_rates.c.valid_from_ns)
    if currency:
        query = query.where(exchange_rates.c.currency == currency)
    return [
        Rate(row.currency, row.nano_units_per_usd, row.valid_from_ns, row.source) for row in connection.execute(query)
    ]
