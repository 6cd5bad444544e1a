"""Puts what the YAML files say into the books, at start and when a file changes.

Prices and budgets only where they are absent; a tenant's own values follow the file, which is their only source.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from mesh.catalog import WatchedFile
from mesh.errors import TenthError
from services.ledger.admin import Admin
from services.ledger.pricebook import PriceBooks
from services.ledger.prices import DatedPrice
from services.ledger.seeds import parse_prices, parse_self_hosted, parse_tenants

T = TypeVar("T")
log = logging.getLogger("tenth.ledger")


@dataclass(frozen=True, slots=True)
class Catalog:
    """What the ledger takes from the catalogue."""

    prices: tuple[DatedPrice, ...]
    self_hosted: frozenset[str]


class Seeder:
    """Seeds prices from the catalogue and tenants with budgets from the callers file."""

    def __init__(self, prices: PriceBooks, admin: Admin, catalog: Path | None, callers: Path | None) -> None:
        """Read the files. Raises CatalogError or OSError."""
        self._prices = prices
        self._admin = admin
        self._catalog = _watched(catalog, _parse_catalog)
        self._callers = _watched(callers, parse_tenants)

    def self_hosted(self) -> frozenset[str]:
        """The models that own hardware serves, as the catalogue says now."""
        return self._catalog.current.self_hosted if self._catalog is not None else frozenset()

    async def seed(self) -> None:
        """Add what is absent; a tenant's own values follow the file."""
        if self._catalog is not None:
            await self._prices.add(self._catalog.current.prices, only_absent=True)
        if self._callers is not None:
            await self._admin.seed_tenants(self._callers.current)

    async def watch(self, interval_seconds: float) -> None:
        """Seed again when a file changes; a file that is wrong changes nothing, a store that is away is tried again."""
        due = False
        while True:
            await asyncio.sleep(interval_seconds)
            for file in (self._catalog, self._callers):
                due = (file is not None and await file.refresh()) or due
            if not due:
                continue
            try:
                await self.seed()
                due = False
            except (OSError, TenthError) as error:
                log.warning("not seeded: %s", error)


def _parse_catalog(text: str, name: str) -> Catalog:
    return Catalog(tuple(parse_prices(text, name)), parse_self_hosted(text, name))


def _watched(path: Path | None, parse: Callable[[str, str], T]) -> WatchedFile[T] | None:
    # An empty variable reads as ".".
    return None if path is None or path == Path() else WatchedFile(path, parse)
