"""The price book: dated, sourced prices that never change; every addition makes a new version.

Pure. A row belongs to the versions from ``added_version`` up to, not including, ``replaced_version``, so that every
old version can be read exactly as it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace

from mesh.errors import Code, TenthError, invalid_argument, required
from mesh.money import MAX_NANO_USD
from mesh.receipt import CPU, Price, PriceStep
from services.ledger.errors import Reason

AMOUNT_FIELDS = (
    "input",
    "output",
    "cached_input",
    "cache_write_5m",
    "cache_write_1h",
    "batch_input",
    "batch_output",
    "quantized_input",
    "quantized_output",
    "cpu_hour",
    "flex_input",
    "flex_output",
    "reasoning_output",
    "request_fee",
    "gpu_hour",
)
"""The amounts of a price, named as in ``mesh.receipt.Price``."""


@dataclass(frozen=True, slots=True)
class DatedPrice:
    """A price with the instants between which it holds (nanoseconds; None: open) and where it is from."""

    price: Price
    valid_from_ns: int
    source: str
    valid_to_ns: int | None = None
    confirmed_by: str = ""

    @property
    def model(self) -> str:
        """The model, or "cpu"."""
        return self.price.model

    def holds_at(self, at_ns: int) -> bool:
        """True when this price holds at an instant."""
        # The same float comparison as mesh.wire.price_book, which the orchestrator computes its receipts with.
        at = at_ns / 1e9
        return self.valid_from_ns / 1e9 <= at and (self.valid_to_ns is None or at < self.valid_to_ns / 1e9)


def book_at(rows: Iterable[DatedPrice], at_ns: int) -> dict[str, Price]:
    """The prices that hold at an instant, by model."""
    return {row.model: row.price for row in rows if row.holds_at(at_ns)}


def check(row: DatedPrice, field: str) -> None:
    """Refuse a price that cannot be: no model or source, negative or huge amounts, an empty validity."""
    if not row.model:
        raise required(f"{field}.model")
    if not row.source.strip():
        raise required(f"{field}.source")
    if row.valid_from_ns <= 0:
        raise required(f"{field}.valid_from_time")
    if row.valid_to_ns is not None and row.valid_to_ns <= row.valid_from_ns:
        raise invalid_argument("ends before it begins", field=f"{field}.valid_to_time")
    amounts: Mapping[str, int | None] = {name: getattr(row.price, name) for name in AMOUNT_FIELDS}
    for name, amount in amounts.items():
        if amount is not None and not 0 <= amount <= MAX_NANO_USD:
            raise invalid_argument(f"{amount} is negative or too large", field=f"{field}.{name}")
    if row.model == CPU:
        if row.price.cpu_hour is None:
            raise required(f"{field}.cpu_hour")
        if row.price.cpu_hour == 0 and row.price.confirmed:
            # Nobody gives CPU time away: a zero here is a forgotten field.
            raise invalid_argument("an hour of CPU is not free", field=f"{field}.cpu_hour")


def steps_to_json(steps: Iterable[PriceStep]) -> str:
    """Steps as the books keep them: a JSON list, the amounts as whole numbers."""
    return json.dumps([asdict(step) for step in steps], separators=(",", ":"))


def steps_from_json(text: str) -> tuple[PriceStep, ...]:
    """Steps as the books kept them."""
    return tuple(PriceStep(**step) for step in json.loads(text))


@dataclass(frozen=True, slots=True)
class Change:
    """What adding prices does to the book: rows that get an end, and rows that are new."""

    closed: tuple[tuple[DatedPrice, DatedPrice], ...]
    added: tuple[DatedPrice, ...]


def add(book: Iterable[DatedPrice], new: Iterable[DatedPrice], *, only_absent: bool = False) -> Change:
    """Add dated prices to the book; a price that is already there, identically, changes nothing.

    The last row of the model is closed where the new one begins. Raises PRICE_NOT_LATER for one that does not
    begin after it; with ``only_absent`` (seeding) such a row is left out instead.
    """
    last: dict[str, DatedPrice] = {}
    known: dict[tuple[str, int], DatedPrice] = {}
    for row in book:
        known[row.model, row.valid_from_ns] = row
        if row.model not in last or row.valid_from_ns > last[row.model].valid_from_ns:
            last[row.model] = row
    fresh = set[tuple[str, int]]()
    closed: dict[tuple[str, int], tuple[DatedPrice, DatedPrice]] = {}
    for index, row in enumerate(new):
        key = (row.model, row.valid_from_ns)
        before = last.get(row.model)
        if before is not None and row.valid_from_ns <= before.valid_from_ns:
            there = known.get(key)
            if only_absent or (there is not None and _same(there, row)):
                continue
            raise TenthError(
                Code.FAILED_PRECONDITION,
                Reason.PRICE_NOT_LATER,
                f"a price of {row.model!r} already starts then or later; a new one must start later",
                f"request.prices[{index}].valid_from_time",
            )
        if before is not None and (before.valid_to_ns is None or before.valid_to_ns > row.valid_from_ns):
            ended = replace(before, valid_to_ns=row.valid_from_ns)
            before_key = (before.model, before.valid_from_ns)
            if before_key not in fresh:
                closed[before_key] = (before, ended)
            known[before_key] = ended
        known[key] = last[row.model] = row
        fresh.add(key)
    return Change(tuple(closed.values()), tuple(known[key] for key in sorted(fresh)))


def _same(there: DatedPrice, row: DatedPrice) -> bool:
    # A row that was closed by a later one is the same as when it was added open.
    return there == row or replace(there, valid_to_ns=row.valid_to_ns) == row
