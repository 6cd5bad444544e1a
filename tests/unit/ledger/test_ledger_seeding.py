"""The seeds follow their files: a wrong file changes nothing, and a store that is away is tried again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from mesh.errors import unavailable
from services.ledger.prices import DatedPrice
from services.ledger.seeding import Seeder


class Prices:
    """Keeps what it is given, but for the calls that fail."""

    def __init__(self) -> None:
        self.added: list[list[str]] = []
        self.failures = 0
        self.taken = asyncio.Event()

    async def add(self, new: Sequence[DatedPrice], *, only_absent: bool) -> None:
        assert only_absent
        if self.failures:
            self.failures -= 1
            raise unavailable("the store is away")
        self.added.append([row.model for row in new])
        self.taken.set()


def catalogue(model: str) -> str:
    return f'prices: [{{model: {model}, valid_from: 2025-01-01, input: "1", output: "2", source: s}}]'


async def test_a_changed_file_is_seeded_and_seeded_again_until_the_store_takes_it(tmp_path: Path) -> None:
    path, prices = tmp_path / "catalog.yaml", Prices()
    path.write_text(catalogue("a"))
    seeder = Seeder(cast(Any, prices), cast(Any, None), path, Path())  # An empty variable is no callers file.
    await seeder.seed()
    prices.taken.clear()
    watcher = asyncio.create_task(seeder.watch(0.005))
    path.write_text("prices: [x]")
    await asyncio.sleep(0.05)
    assert prices.added == [["a"]]
    prices.failures = 2
    path.write_text(catalogue("longer"))
    async with asyncio.timeout(5):
        await prices.taken.wait()
    await asyncio.sleep(0.05)
    watcher.cancel()
    assert prices.added == [["a"], ["longer"]]
    assert prices.failures == 0
