"""The price book: dated, sourced prices that never change; every addition makes a new version.

Pure. A row belongs to the versions from ``added_version`` up to, not including, ``replaced_version``, so that every
old version can be read exactly as it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace

from mesh.dated import DatedPrices
from mesh.errors import Code, TenthError, invalid_argument, required
from mesh.money import MAX_NANO_USD
from mesh.receipt import CPU, Price, PriceBook, PriceStep
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
STEP_FIELDS = ("input", "output", "cached_input", "cache_write_5m", "cache_write_1h")
"""The amounts of a step, named as in ``mesh.receipt.PriceStep``."""
GPU_PREFIX = "gpu:"
"""Entries named so are the price of an hour of one GPU of a kind, as in "gpu:h100"."""


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
        """The model, or "cpu" or "gpu:KIND"."""
        return self.price.model

    def holds_at(self, at_ns: int) -> bool:
        """True when this price holds at an instant."""
        return self.valid_from_ns <= at_ns and (self.valid_to_ns is None or at_ns < self.valid_to_ns)


def indexed(rows: Iterable[DatedPrice]) -> DatedPrices[DatedPrice]:
    """Rows of one version by model, to be looked up at any instant."""
    return DatedPrices(
        rows,
        model=lambda row: row.model,
        starts=lambda row: row.valid_from_ns,
        ends=lambda row: row.valid_to_ns,
        price=lambda row: row.price,
    )


def book_at(rows: Iterable[DatedPrice], at_ns: int) -> PriceBook:
    """The prices that hold at an instant, by model."""
    return indexed(rows).at(at_ns)


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
    for name in AMOUNT_FIELDS:
        _check_amount(getattr(row.price, name), f"{field}.{name}")
    mark = 0
    for index, step in enumerate(row.price.steps):
        at = f"{field}.steps[{index}]"
        if not mark < step.above <= MAX_NANO_USD:
            raise invalid_argument(
                f"{step.above} is not above the mark before it, of at least 1", field=f"{at}.above_input_tokens"
            )
        mark = step.above
        for name in STEP_FIELDS:
            _check_amount(getattr(step, name), f"{at}.{name}")
    for hardware, name in ((row.model == CPU, "cpu_hour"), (row.model.startswith(GPU_PREFIX), "gpu_hour")):
        amount = getattr(row.price, name)
        if hardware and amount is None:
            raise required(f"{field}.{name}")
        if hardware and amount == 0 and row.price.confirmed:
            # Nobody gives hardware away: a zero here is a forgotten field.
            raise invalid_argument("an hour of it is not free", field=f"{field}.{name}")


def _check_amount(amount: int | None, field: str) -> None:
    if amount is not None and not 0 <= amount <= MAX_NANO_USD:
        raise invalid_argument(f"{amount} is negative or too large", field=field)


def same_amounts(one: Price, other: Price) -> bool:
    """True when two prices of a model charge the same, whoever confirmed them."""
    return replace(one, confirmed=True) == replace(other, confirmed=True)


def confirmed(row: DatedPrice, by: str) -> DatedPrice:
    """The row as a person vouches for it; the same one if it needed nobody."""
    return row if row.price.confirmed else replace(row, price=replace(row.price, confirmed=True), confirmed_by=by)


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
