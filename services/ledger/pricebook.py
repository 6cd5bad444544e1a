"""The price book in the database: every version as it was, and how a new one is made."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy import Connection, insert, or_, select, update

from mesh.errors import Code, TenthError
from mesh.receipt import Price, PriceBook
from services.ledger.errors import Reason
from services.ledger.prices import AMOUNT_FIELDS, DatedPrice, add, steps_from_json, steps_to_json
from services.ledger.store import Store
from services.ledger.stretches import Stretches
from services.ledger.tables import books, prices

_KEPT_VERSIONS = 64


class PriceBooks:
    """Versions of the price book. They never change, so those used last are kept in memory."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._versions: dict[int, Stretches] = {}

    async def version(self, version: int) -> tuple[DatedPrice, ...]:
        """All dated prices of a version; version 0 is the empty book. Raises UNKNOWN_PRICE_BOOK_VERSION."""
        return (await self._stretches(version)).rows

    async def at(self, version: int, at_ns: int) -> PriceBook:
        """The prices of a version that hold at an instant."""
        return (await self._stretches(version)).at(at_ns)

    async def reader(self, version: int) -> Callable[[int], PriceBook]:
        """The prices of a version as a function of the instant."""
        return (await self._stretches(version)).at

    async def _stretches(self, version: int) -> Stretches:
        if version == 0:
            return Stretches(())
        kept = self._versions.get(version)
        if kept is not None:
            return kept
        async with self._store.read() as connection:
            rows = await connection.run_sync(prices_of, version)
        if len(self._versions) >= _KEPT_VERSIONS:
            self._versions.pop(next(iter(self._versions)))
        found = self._versions[version] = Stretches(rows)
        return found

    async def current(self) -> tuple[int, tuple[DatedPrice, ...]]:
        """The newest version and its prices."""
        async with self._store.read() as connection:
            version = await connection.run_sync(current_version)
        return version, await self.version(version)

    async def add(self, new: Sequence[DatedPrice], *, only_absent: bool = False) -> int:
        """Add prices; returns the version that has them. Raises PRICE_NOT_LATER, and adds none of them then."""

        def operation(connection: Connection) -> int:
            version = current_version(connection)
            ids = _rows(connection, version)
            change = add([row for _, row in ids], new, only_absent=only_absent)
            if not change.added:
                return version
            by_row = {(row.model, row.valid_from_ns): row_id for row_id, row in ids}
            for before, _ in change.closed:
                row_id = by_row[before.model, before.valid_from_ns]
                connection.execute(update(prices).where(prices.c.id == row_id).values(replaced_version=version + 1))
            rows = [*(after for _, after in change.closed), *change.added]
            connection.execute(insert(prices), [_values(row, version + 1) for row in rows])
            connection.execute(update(books).values(price_book_version=version + 1))
            return version + 1

        return await self._store.write(operation)


def current_version(connection: Connection) -> int:
    """The newest version of the price book; 0 while it is empty."""
    return int((connection.execute(select(books.c.price_book_version))).scalar_one())


def prices_of(connection: Connection, version: int) -> tuple[DatedPrice, ...]:
    """All dated prices of a version; version 0 is the empty book. Raises UNKNOWN_PRICE_BOOK_VERSION."""
    if not 0 <= version <= current_version(connection):
        raise TenthError(
            Code.INVALID_ARGUMENT,
            Reason.UNKNOWN_PRICE_BOOK_VERSION,
            f"the price book has no version {version}",
            "request.price_book_version",
        )
    return tuple(row for _, row in _rows(connection, version))


def _rows(connection: Connection, version: int) -> list[tuple[int, DatedPrice]]:
    rows = connection.execute(
        select(prices)
        .where(
            prices.c.added_version <= version,
            or_(prices.c.replaced_version.is_(None), prices.c.replaced_version > version),
        )
        .order_by(prices.c.model, prices.c.valid_from_ns)
    )
    return [
        (
            row.id,
            DatedPrice(
                Price(
                    model=row.model,
                    confirmed=row.confirmed,
                    steps=steps_from_json(row.steps),
                    **{name: row._mapping[name] for name in AMOUNT_FIELDS},
                ),
                valid_from_ns=row.valid_from_ns,
                source=row.source,
                valid_to_ns=row.valid_to_ns,
                confirmed_by=row.confirmed_by,
            ),
        )
        for row in rows
    ]


def _values(row: DatedPrice, version: int) -> dict[str, Any]:
    return {
        "model": row.model,
        "valid_from_ns": row.valid_from_ns,
        "valid_to_ns": row.valid_to_ns,
        **{name: getattr(row.price, name) for name in AMOUNT_FIELDS},
        "steps": steps_to_json(row.price.steps),
        "confirmed_by": row.confirmed_by,
        "source": row.source,
        "confirmed": row.price.confirmed,
        "added_version": version,
        "replaced_version": None,
    }
