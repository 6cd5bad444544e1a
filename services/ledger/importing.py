"""What importing a price file would do to the book, model by model.

Pure. A price of the book is never changed: a price that is taken from the file is a later row, and where the book
already has a row that begins later still, it cannot be taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import IntEnum

from mesh.errors import Code, TenthError, invalid_argument
from mesh.receipt import Price
from services.ledger.errors import Reason
from services.ledger.prices import AMOUNT_FIELDS, DatedPrice, same_amounts

EVERY = "*"
"""Stands for every model in conflict."""
_NAMED = 20
"""Most models that an error names."""


class Outcome(IntEnum):
    """What becomes of one row; numbers as in tenth.ledger.v1.ImportOutcome."""

    NEW = 1
    SAME = 2
    CONFLICT = 3
    TAKEN = 4
    KEPT = 5
    UNCONFIRMED = 6
    SKIPPED = 7


@dataclass(frozen=True, slots=True)
class FileRow:
    """One row of a price file: its price, or without one why it is skipped."""

    model: str
    price: DatedPrice | None
    reason: str = ""
    """For a person: why it is skipped or not confirmed, or what of the file the book does not keep."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a person said of models in conflict: whose price of the file shall hold, and whose of the book stays."""

    take: frozenset[str] = frozenset()
    keep: frozenset[str] = frozenset()

    def takes(self, model: str) -> bool:
        """True when the file's price shall hold. A name stands before "*"."""
        return model in self.take or (EVERY in self.take and model not in self.keep)

    def keeps(self, model: str) -> bool:
        """True when the book's price shall stay. A name stands before "*"."""
        return model in self.keep or (EVERY in self.keep and model not in self.take)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the diff."""

    model: str
    outcome: Outcome
    reason: str
    before: DatedPrice | None
    after: DatedPrice | None


@dataclass(frozen=True, slots=True)
class Plan:
    """The diff, and the rows to add."""

    lines: tuple[Line, ...]
    added: tuple[DatedPrice, ...]

    def require_resolved(self) -> None:
        """Raise PRICE_CONFLICT, naming up to 20 models, where a conflict is left open."""
        open_lines = [line for line in self.lines if line.outcome is Outcome.CONFLICT]
        if not open_lines:
            return
        models = sorted({line.model for line in open_lines})
        named = ", ".join(models[:_NAMED]) + (", ..." if len(models) > _NAMED else "")
        raise TenthError(
            Code.FAILED_PRECONDITION,
            Reason.PRICE_CONFLICT,
            f"the book has another price of {len(models)} of the file's models ({named}); the first: "
            f"{open_lines[0].reason}. Nothing was added: say for each whether to take the file's or keep the book's",
            "request.take",
            metadata={"models": ",".join(models[:_NAMED]), "count": str(len(models))},
        )


def choice_of(file: Sequence[FileRow], take: Sequence[str], keep: Sequence[str]) -> Choice:
    """The choice that names stand for. Raises INVALID_FIELD for names that the file lacks and for contradictions."""
    there = {row.model for row in file}
    for field, names in (("request.take", take), ("request.keep", keep)):
        for index, name in enumerate(names):
            if name != EVERY and name not in there:
                raise invalid_argument(f"the file has no model {name!r}", field=f"{field}[{index}]")
    both = set(take) & set(keep)
    if both:
        raise invalid_argument(f"{min(both)!r} cannot be both taken and kept", field="request.keep")
    return Choice(frozenset(take), frozenset(keep))


def only(file: Sequence[FileRow], models: Sequence[str]) -> list[FileRow]:
    """The rows of some models; no names: all rows. Raises INVALID_FIELD for a name that the file lacks."""
    if not models:
        return list(file)
    there = {row.model for row in file}
    for index, name in enumerate(models):
        if name not in there:
            raise invalid_argument(f"the file has no model {name!r}", field=f"request.models[{index}]")
    wanted = set(models)
    return [row for row in file if row.model in wanted]


def compare(book: Iterable[DatedPrice], file: Sequence[FileRow], choice: Choice) -> Plan:
    """Compare a file with a version of the book; the lines are by model and date."""
    of_model: dict[str, list[DatedPrice]] = {}
    for row in sorted(book, key=lambda row: row.valid_from_ns):
        of_model.setdefault(row.model, []).append(row)
    lines: list[Line] = []
    added: list[DatedPrice] = []
    for each in sorted(file, key=lambda row: (row.model, row.price.valid_from_ns if row.price else 0)):
        if each.price is None:
            lines.append(Line(each.model, Outcome.SKIPPED, each.reason, None, None))
            continue
        there = of_model.setdefault(each.model, [])
        line = _line(each, each.price, there, choice, ours=added)
        lines.append(line)
        if line.outcome in (Outcome.NEW, Outcome.UNCONFIRMED, Outcome.TAKEN):
            there.append(each.price)
            added.append(each.price)
    return Plan(tuple(lines), tuple(added))


def _line(
    row: FileRow, price: DatedPrice, there: Sequence[DatedPrice], choice: Choice, *, ours: Sequence[DatedPrice]
) -> Line:
    """The line of one row; ``there`` are the model's rows, oldest first, ``ours`` those that this import adds."""
    before = next((each for each in reversed(there) if each.holds_at(price.valid_from_ns)), None)
    last = there[-1] if there else None
    can_be_added = last is None or last.valid_from_ns < price.valid_from_ns
    if before is not None and same_amounts(before.price, price.price):
        reason = "" if before.price.confirmed else "not confirmed yet"
        return Line(row.model, Outcome.SAME, reason, before, price)
    if can_be_added and (before is None or any(before is each for each in ours)):
        outcome = Outcome.NEW if price.price.confirmed else Outcome.UNCONFIRMED
        return Line(row.model, outcome, row.reason, before, price)
    if before is None:
        reason = f"the book's prices of it begin later, on {_date(there[0].valid_from_ns)}"
    else:
        reason = differences(before.price, price.price)
    if choice.keeps(row.model):
        return Line(row.model, Outcome.KEPT, reason, before, price)
    if not can_be_added and last is not None:
        reason += (
            f"; it cannot be taken from {_date(price.valid_from_ns)} on: the last price of the book begins on "
            f"{_date(last.valid_from_ns)}, and a new one must begin later"
        )
    elif choice.takes(row.model):
        doubt = "" if price.price.confirmed else f"; not confirmed: {row.reason}"
        return Line(row.model, Outcome.TAKEN, reason + doubt, before, price)
    return Line(row.model, Outcome.CONFLICT, reason, before, price)


def differences(before: Price, after: Price) -> str:
    """The amounts that differ, in USD, as text for a person."""
    parts = [
        f"{name} {usd(getattr(before, name))} -> {usd(getattr(after, name))}"
        for name in AMOUNT_FIELDS
        if getattr(before, name) != getattr(after, name)
    ]
    if before.steps != after.steps:
        parts.append(f"steps {_marks(before)} -> {_marks(after)}")
    return ", ".join(parts)


def usd(nano: int | None) -> str:
    """Nano-USD as a decimal string; "none" where there is no such price."""
    return "none" if nano is None else f"{Decimal(nano).scaleb(-9).normalize():f}"


def _marks(price: Price) -> str:
    return (
        "none"
        if not price.steps
        else "/".join(f">{step.above}: {usd(step.input)} in, {usd(step.output)} out" for step in price.steps)
    )


def _date(at_ns: int) -> str:
    seconds, rest = divmod(at_ns, 10**9)
    text = datetime.fromtimestamp(seconds, UTC).isoformat().removesuffix("+00:00")
    return text.removesuffix("T00:00:00") if not rest else f"{text}.{rest:09d}"
