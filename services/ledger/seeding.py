"""Puts what the YAML files say into the books, at start and when a file changes; it only adds what is absent."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from mesh.errors import TenthError
from services.ledger.admin import Admin
from services.ledger.pricebook import PriceBooks
from services.ledger.seeds import parse_prices, parse_tenants

T = TypeVar("T")
log = logging.getLogger("tenth.ledger")


class Seeder:
    """Seeds prices from the catalogue and tenants with budgets from the callers file."""

    def __init__(self, prices: PriceBooks, admin: Admin, catalog: Path | None, callers: Path | None) -> None:
        self._prices = prices
        self._admin = admin
        self._catalog = catalog
        self._callers = callers
        self._seen: dict[Path, float] = {}

    async def seed(self) -> None:
        """Add what is absent. Raises ValueError naming the file and the key that are wrong."""
        text = await self._changed(self._catalog)
        if text is not None:
            await self._prices.add(_parsed(parse_prices, text, self._catalog), only_absent=True)
        text = await self._changed(self._callers)
        if text is not None:
            await self._admin.seed_tenants(_parsed(parse_tenants, text, self._callers))

    async def watch(self, interval_seconds: float) -> None:
        """Seed again when a file changes; a file that is wrong changes nothing."""
        while True:
            await asyncio.sleep(interval_seconds)
            try:
                await self.seed()
            except (ValueError, OSError, TenthError) as error:
                log.warning("not seeded: %s", error)

    async def _changed(self, path: Path | None) -> str | None:
        if path is None or path == Path():  # An empty variable reads as ".".
            return None
        modified = (await asyncio.to_thread(path.stat)).st_mtime
        if self._seen.get(path) == modified:
            return None
        self._seen[path] = modified
        return await asyncio.to_thread(path.read_text, "utf-8")


def _parsed(parse: Callable[[str], T], text: str, path: Path | None) -> T:
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
