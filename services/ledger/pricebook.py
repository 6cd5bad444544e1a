"""The price book in the database: every version as it was, and how a new one is made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, bindparam, insert, or_, select, update

from mesh.errors import Code, TenthError
from mesh.receipt import CPU, Price, PriceBook
from services.ledger.errors import Reason, price_not_found
from services.ledger.exchange import Rates
from services.ledger.importing import Choice, FileRow, Plan, compare
from services.ledger.prices import (
    AMOUNT_FIELDS,
    GPU_PREFIX,
    DatedPrice,
    add,
    check,
    confirmed,
    indexed,
    steps_from_json,
    steps_to_json,
)
from services.ledger.store import Store
from services.ledger.tables import books, prices

_KEPT_VERSIONS = 64


class Version:
    """The dated prices of one version of the book, by model and date."""

    __slots__ = ("_indexed", "_rows")

    def __init__(self, rows: Iterable[DatedPrice]) -> None:
        self._rows = tuple(rows)
        self._indexed = indexed(self._rows)

    def __iter__(self) -> Iterator[DatedPrice]:
        return iter(self._rows)

    def at(self, at_ns: int) -> PriceBook:
        """The prices that hold at an instant."""
        return self._indexed.at(at_ns)

    def between(self, model: str, first_ns: int, last_ns: int) -> list[Price]:
        """Every price of a model that holds at some instant from one to another, both included."""
        return self._indexed.prices_between(model, first_ns, last_ns)


Versions = dict[int, Version]
"""Versions at hand in one operation of the writer, by number."""


class PriceBooks:
    """Versions of the price book, and the exchange rates beside them.

    Versions never change, so those used last are kept in memory, indexed by model.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._versions: dict[int, Version] = {}
        self._loading = asyncio.Lock()
        """Every request wants a new version at once: it is read once."""
        self.rates = Rates(store)

    async def version(self, version: int) -> Version:
        """A version; 0 is the empty book. Raises UNKNOWN_PRICE_BOOK_VERSION."""
        kept = self._versions.get(version)
        if kept is not None:
            return kept
        async with self._loading:
            if version in self._versions:
                return self._versions[version]
            async with self._store.read() as connection:
                found = await connection.run_sync(load_version, version)
        if len(self._versions) >= _KEPT_VERSIONS:
            self._versions.pop(next(iter(self._versions)))
        self._versions[version] = found
        return found

    def at_hand(self) -> Versions:
        """The versions that are kept in memory."""
        return dict(self._versions)

    def version_in(self, connection: Connection, version: int) -> Version:
        """A version, read in an operation of the writer. Raises UNKNOWN_PRICE_BOOK_VERSION.

        What is read so is not kept: the operation's own commit may fail, and its versions with it.
        """
        kept = self._versions.get(version)
        return load_version(connection, version) if kept is None else kept

    async def at(self, version: int, at_ns: int) -> PriceBook:
        """The prices of a version that hold at an instant."""
        return (await self.version(version)).at(at_ns)

    async def reader(self, version: int) -> Callable[[int], PriceBook]:
        """The prices of a version as a function of the instant."""
        return (await self.version(version)).at

    async def current(self) -> tuple[int, Version]:
        """The newest version's number, and the version."""
        async with self._store.read() as connection:
            number = await connection.run_sync(current_version)
        return number, await self.version(number)

    async def add(self, new: Sequence[DatedPrice], *, only_absent: bool = False) -> int:
        """Add prices; returns the version that has them. Raises PRICE_NOT_LATER, and adds none of them then."""
        return await self._store.write(lambda connection: _add(connection, new, only_absent=only_absent))

    async def import_file(self, file: Sequence[FileRow], choice: Choice, *, dry_run: bool) -> tuple[int, Plan]:
        """Compare a file with the newest version, and add what is new unless ``dry_run``.

        Returns the version that holds it. Raises PRICE_CONFLICT, and adds nothing, where conflicts are left open.
        """
        if dry_run:
            number, version = await self.current()
            return number, compare(version, file, choice)

        def operation(connection: Connection) -> tuple[int, Plan]:
            number = current_version(connection)
            plan = compare([row for _, row in _rows(connection, number)], file, choice)
            plan.require_resolved()
            return _add(connection, plan.added), plan

        return await self._store.write(operation)

    async def confirm(self, model: str, at_ns: int, by: str, *, begins_then: bool) -> tuple[int, DatedPrice]:
        """Vouch for the price of a model that holds at an instant, or with ``begins_then`` for the one that begins.

        Returns the version that has it, a new one unless the price was confirmed already. Raises PRICE_NOT_FOUND.
        """

        def operation(connection: Connection) -> tuple[int, DatedPrice]:
            number = current_version(connection)
            for row_id, row in _rows(connection, number, model):
                if row.valid_from_ns == at_ns if begins_then else row.holds_at(at_ns):
                    vouched = confirmed(row, by)
                    if vouched is row:
                        return number, row
                    check(vouched, "price")
                    _replace(connection, number + 1, [row_id], [vouched])
                    return number + 1, vouched
            raise price_not_found(model)

        return await self._store.write(operation)


def _add(connection: Connection, new: Sequence[DatedPrice], *, only_absent: bool = False) -> int:
    version = current_version(connection)
    ids = _rows(connection, version)
    change = add([row for _, row in ids], new, only_absent=only_absent)
    if not change.added:
        return version
    by_row = {(row.model, row.valid_from_ns): row_id for row_id, row in ids}
    closed = [by_row[before.model, before.valid_from_ns] for before, _ in change.closed]
    _replace(connection, version + 1, closed, [*(after for _, after in change.closed), *change.added])
    return version + 1


def _replace(connection: Connection, version: int, replaced: Sequence[int], added: Sequence[DatedPrice]) -> None:
    """Make a version that lacks some rows of the one before it and has others; the rows themselves stay."""
    if replaced:
        connection.execute(
            update(prices).where(prices.c.id == bindparam("row_id")).values(replaced_version=version),
            [{"row_id": row_id} for row_id in replaced],
        )
    connection.execute(insert(prices), [_values(row, version) for row in added])
    connection.execute(update(books).values(price_book_version=version))


def current_version(connection: Connection) -> int:
    """The newest version of the price book; 0 while it is empty."""
    return int((connection.execute(select(books.c.price_book_version))).scalar_one())


def is_priced(connection: Connection, model: str) -> bool:
    """True for a model that the price book has at whatever time; an hour of hardware is no model."""
    if model == CPU or model.startswith(GPU_PREFIX):
        return False
    # Every version keeps the models of the one before it, so any row will do.
    return connection.execute(select(prices.c.id).where(prices.c.model == model).limit(1)).first() is not None


def load_version(connection: Connection, version: int) -> Version:
    """A version from the database; 0 is the empty book. Raises UNKNOWN_PRICE_BOOK_VERSION."""
    if not 0 <= version <= current_version(connection):
        raise TenthError(
            Code.INVALID_ARGUMENT,
            Reason.UNKNOWN_PRICE_BOOK_VERSION,
            f"the price book has no version {version}",
            "request.price_book_version",
        )
    return Version(row for _, row in _rows(connection, version))


def version_among(connection: Connection, version: int, versions: Versions) -> Version:
    """One of the versions at hand, else from the database and put there: thousands of rows are read once."""
    found = versions.get(version)
    if found is None:
        found = versions[version] = load_version(connection, version)
    return found


def _rows(connection: Connection, version: int, model: str = "") -> list[tuple[int, DatedPrice]]:
    query = (
        select(prices)
        .where(
            prices.c.added_version <= version,
            or_(prices.c.replaced_version.is_(None), prices.c.replaced_version > version),
        )
        .order_by(prices.c.model, prices.c.valid_from_ns)
    )
    if model:
        query = query.where(prices.c.model == model)
    rows = connection.execute(query)
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
