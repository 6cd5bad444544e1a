"""Dated prices, indexed: which price of a model holds at an instant.

Shared by the orchestrator (over the snapshot's messages) and the ledger (over a version of its book), so that both
find the same price for the same receipt: instants are whole nanoseconds, compared as such. A book of thousands of
models costs a receipt two look-ups, not a walk.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Generic, TypeVar

from mesh.receipt import Price

T = TypeVar("T")


class DatedPrices(Generic[T]):
    """Dated rows by model. They must not change, and those of one model must not overlap."""

    def __init__(
        self,
        rows: Iterable[T],
        *,
        model: Callable[[T], str],
        starts: Callable[[T], int],
        ends: Callable[[T], int | None],
        price: Callable[[T], Price],
    ) -> None:
        """``starts`` and ``ends`` give nanoseconds since the epoch; None: open. ``price`` is asked once a row."""
        self._ends = ends
        self._price = price
        self._prices: dict[tuple[str, int], Price] = {}
        self._rows: dict[str, list[T]] = {}
        self._starts: dict[str, list[int]] = {}
        for row in rows:
            self._rows.setdefault(model(row), []).append(row)
        for name, them in self._rows.items():
            them.sort(key=starts)
            self._starts[name] = [starts(row) for row in them]

    def at(self, at_ns: int) -> PricesAt:
        """The prices that hold at an instant."""
        return PricesAt(self, at_ns)

    def row(self, model: str, at_ns: int) -> T | None:
        """The row of a model that holds at an instant."""
        index = self._index(model, at_ns)
        return None if index is None else self._rows[model][index]

    def price(self, model: str, at_ns: int) -> Price | None:
        """The price of a model that holds at an instant."""
        index = self._index(model, at_ns)
        if index is None:
            return None
        key = model, self._starts[model][index]
        found = self._prices.get(key)
        if found is None:
            found = self._prices[key] = self._price(self._rows[model][index])
        return found

    def prices_between(self, model: str, first_ns: int, last_ns: int) -> list[Price]:
        """Every price of a model that holds at some instant from one to another, both included; oldest first."""
        starts, rows = self._starts.get(model, []), self._rows.get(model, [])
        found = []
        # The row that begins last before the first instant may still hold then; earlier ones do not.
        for index in range(max(bisect_right(starts, first_ns) - 1, 0), bisect_right(starts, last_ns)):
            end = self._ends(rows[index])
            price = self.price(model, starts[index])
            if price is not None and (end is None or end > first_ns):
                found.append(price)
        return found

    def models(self) -> Iterator[str]:
        """Every model that has a row at any time."""
        return iter(self._rows)

    def _index(self, model: str, at_ns: int) -> int | None:
        starts = self._starts.get(model)
        if starts is None:
            return None
        index = bisect_right(starts, at_ns) - 1
        if index < 0:
            return None
        end = self._ends(self._rows[model][index])
        return index if end is None or at_ns < end else None


class PricesAt(Mapping[str, Price]):
    """A price book at an instant (``mesh.receipt.PriceBook``), looked up when it is asked."""

    __slots__ = ("_at_ns", "_prices")

    def __init__(self, prices: DatedPrices[T], at_ns: int) -> None:
        self._prices = prices
        self._at_ns = at_ns

    def __getitem__(self, model: str) -> Price:
        found = self._prices.price(model, self._at_ns)
        if found is None:
            raise KeyError(model)
        return found

    def __iter__(self) -> Iterator[str]:
        return (model for model in self._prices.models() if self._prices.row(model, self._at_ns) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)
