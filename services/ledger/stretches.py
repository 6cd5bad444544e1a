"""A version's prices by instant. Pure.

Between two dates at which some price begins or ends the book stays the same, so it is made once for each such
stretch: a receipt costs a search among the dates, not a pass over thousands of prices.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence

from mesh.receipt import Price
from services.ledger.prices import DatedPrice, book_at


class Stretches:
    """The prices of one version of the price book."""

    def __init__(self, rows: Sequence[DatedPrice]) -> None:
        self.rows = tuple(rows)
        # Seconds as floats, compared as ``DatedPrice.holds_at`` does.
        instants = {row.valid_from_ns for row in rows} | {
            row.valid_to_ns for row in rows if row.valid_to_ns is not None
        }
        self._starts = sorted(instant / 1e9 for instant in instants)
        self._books: dict[int, Mapping[str, Price]] = {}

    def at(self, at_ns: int) -> Mapping[str, Price]:
        """The prices that hold at an instant, by model; not to be changed."""
        number = bisect_right(self._starts, at_ns / 1e9)
        book = self._books.get(number)
        if book is None:
            book = self._books[number] = book_at(self.rows, at_ns)
        return book
