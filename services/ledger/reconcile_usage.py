"""Corrects estimates from a provider's own usage, as a CSV file: exports, or a person's reading of an invoice.

    python -m services.ledger.reconcile_usage FILE.csv              (dry run: says what would change)
    python -m services.ledger.reconcile_usage FILE.csv --apply

Columns: ``request_id``, ``attempt``, ``input``, ``cached``, ``write_5m``, ``write_1h``, ``output``, ``reasoning``;
``tenant_id`` and ``purpose`` ("answer" unless said otherwise) may be added. The input includes cached and written
tokens, the output the reasoning; an empty count is 0. The database is the one of the ledger's settings, and the ledger
may run meanwhile: each batch of rows is one transaction under the writers' lock. A dry run makes the same transactions
and rolls them back, so that it says exactly what would happen. Repeating a file changes nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from sqlalchemy import Connection, select
from tenth.ledger.v1 import ledger_pb2

from mesh.errors import TenthError
from mesh.receipt import Usage
from mesh.settings import MeshSettings, load
from mesh.wire import usage_to_proto
from services.ledger.book import record_in
from services.ledger.migrate import database_password
from services.ledger.policy import Attempt, AttemptKind
from services.ledger.pricebook import Versions
from services.ledger.receipts import attempt_record, parse_attempt
from services.ledger.settings import LedgerSettings
from services.ledger.settling import visible
from services.ledger.store import Store, open_store
from services.ledger.tables import attempts

COUNTS = ("input", "cached", "write_5m", "write_1h", "output", "reasoning")
_REQUIRED = ("request_id", "attempt", "input", "output")
_KNOWN = frozenset({"request_id", "attempt", *COUNTS, "tenant_id", "purpose"})
_AT_ONCE = 200
"""Rows of one transaction: the writers' lock is held for no longer than these take."""


class Outcome(StrEnum):
    """What became of a row."""

    CORRECTED = "corrected"
    """The receipt changed, or its estimate is confirmed."""
    RECORDED = "recorded"
    """There is no receipt yet that estimates this attempt; the one to come will have the exact usage."""
    ALREADY = "already exact"
    """The same usage is recorded as exact."""
    CONFLICT = "another exact usage is recorded"
    """It is not changed: an exact usage is corrected by no file."""
    UNKNOWN = "no such attempt"
    """The books have no record of it."""
    AMBIGUOUS = "several tenants have it"
    """Name the tenant."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the file; ``tenant_id`` empty: whoever has that request."""

    line: int
    request_id: str
    attempt: int
    counts: Mapping[str, int]
    tenant_id: str = ""
    purpose: str = "answer"


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a row, and by how much the receipt changed, nano-USD."""

    row: Row
    outcome: Outcome
    delta: int = 0


class _DryRunError(Exception):
    """Takes the transaction back; carries what it would have done."""

    def __init__(self, done: list[Done]) -> None:
        super().__init__("dry run")
        self.done = done


def parse_rows(lines: Iterable[str]) -> list[Row]:
    """The rows of a CSV file with a header. Raises ValueError naming line and column."""
    reader = csv.DictReader(lines)
    names = [name.strip() for name in reader.fieldnames or ()]
    reader.fieldnames = names
    if missing := [name for name in _REQUIRED if name not in names]:
        raise ValueError(f"line 1: column {missing[0]} is missing")
    if strange := [name for name in names if name not in _KNOWN]:
        raise ValueError(f"line 1: unknown column {strange[0]!r}")
    rows = []
    for cells in reader:
        if None in cells or None in cells.values():
            raise ValueError(f"line {reader.line_num}: it has not as many cells as the header")
        text = {name: value.strip() for name, value in cells.items()}
        if not text["request_id"]:
            raise ValueError(f"line {reader.line_num}: request_id is empty")
        counts = {name: _whole(text.get(name) or "0", name, reader.line_num) for name in COUNTS}
        attempt = _whole(text["attempt"], "attempt", reader.line_num)
        if counts["cached"] + counts["write_5m"] + counts["write_1h"] > counts["input"]:
            raise ValueError(f"line {reader.line_num}: input must include cached and written tokens")
        if counts["reasoning"] > counts["output"]:
            raise ValueError(f"line {reader.line_num}: output must include the reasoning")
        purpose = text.get("purpose") or "answer"
        rows.append(Row(reader.line_num, text["request_id"], attempt, counts, text.get("tenant_id") or "", purpose))
    return rows


async def reconcile(store: Store, rows: Sequence[Row], now_ns: Callable[[], int], *, apply: bool) -> list[Done]:
    """Record the rows as exact usage; without ``apply`` everything is taken back. Raises TenthError."""
    done: list[Done] = []
    for start in range(0, len(rows), _AT_ONCE):
        part, now = rows[start : start + _AT_ONCE], now_ns()

        def operation(connection: Connection, part: Sequence[Row] = part, now: int = now) -> list[Done]:
            versions: Versions = {}
            made = [_reconcile(connection, row, now, versions) for row in part]
            if not apply:
                raise _DryRunError(made)
            return made

        try:
            done += await store.write(operation)
        except _DryRunError as dry:
            done += dry.done
    return done


def _reconcile(connection: Connection, row: Row, now: int, versions: Versions) -> Done:
    query = select(attempts.c.tenant_id, attempts.c.event).where(
        attempts.c.request_id == row.request_id,
        attempts.c.attempt == row.attempt,
        attempts.c.purpose == row.purpose,
    )
    if row.tenant_id:
        query = query.where(attempts.c.tenant_id == row.tenant_id)
    found = connection.execute(query).all()
    if not found:
        return Done(row, Outcome.UNKNOWN)
    if len({each.tenant_id for each in found}) > 1:
        return Done(row, Outcome.AMBIGUOUS)
    recorded = [parse_attempt(each.event) for each in found]
    ends = [pair for pair in recorded if pair[1].kind is not AttemptKind.STARTED]
    exact = [attempt for _, attempt in ends if not attempt.estimated]
    if exact:
        return Done(row, Outcome.ALREADY if _same(exact[0], row) else Outcome.CONFLICT)
    event = ledger_pb2.AttemptEvent()
    event.CopyFrom((ends or recorded)[0][0])
    if not ends:
        event.kind = ledger_pb2.ATTEMPT_KIND_FINISHED
    event.usage.CopyFrom(usage_to_proto(Usage(**row.counts)))
    event.event_time.FromNanoseconds(now)
    key = (found[0].tenant_id, row.request_id)
    before = visible(connection, [row.request_id]).get(key)
    record_in(connection, [attempt_record(event, f"line {row.line}")], now, versions=versions)
    after = visible(connection, [row.request_id]).get(key)
    if before is None or after is None or before.event_id == after.event_id:
        return Done(row, Outcome.RECORDED)
    return Done(row, Outcome.CORRECTED, after.actual - before.actual)


def _same(attempt: Attempt, row: Row) -> bool:
    return all(getattr(attempt.usage, name) == row.counts[name] for name in COUNTS)


def _whole(text: str, name: str, line: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 12):
        raise ValueError(f"line {line}: {name} is {text!r}, not a whole number of at most 12 digits")
    return int(text)


async def _run(path: Path, *, apply: bool) -> int:
    settings = load(LedgerSettings)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = parse_rows(file)
    except (OSError, ValueError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 2
    url = settings.url(load(MeshSettings).data_dir)
    async with open_store(url, password=database_password(settings)) as store:
        done = await reconcile(store, rows, time.time_ns, apply=apply)
    for each in done:
        print(
            f"line {each.row.line}: {each.row.request_id}/{each.row.attempt}: {each.outcome} {each.delta:+d} nano-USD"
        )
    counted = Counter(each.outcome for each in done)
    total = sum(each.delta for each in done)
    print(", ".join(f"{count} {outcome}" for outcome, count in sorted(counted.items())) or "no rows")
    print(f"{'changed' if apply else 'would change'} by {total:+d} nano-USD")
    return 1 if counted.keys() & {Outcome.CONFLICT, Outcome.UNKNOWN, Outcome.AMBIGUOUS} else 0


def main() -> None:
    """The command line; status 1 when a row was not taken, 2 when the file is wrong or the books do not answer."""
    parser = argparse.ArgumentParser(
        prog="services.ledger.reconcile_usage", description="Corrects estimated usage from a provider's export."
    )
    parser.add_argument("file", type=Path, help="CSV: request_id, attempt, " + ", ".join(COUNTS))
    parser.add_argument("--apply", action="store_true", help="write; without it nothing is changed")
    arguments = parser.parse_args()
    try:
        status = asyncio.run(_run(arguments.file, apply=arguments.apply))
    except TenthError as error:
        print(error, file=sys.stderr)
        status = 2
    raise SystemExit(status)


if __name__ == "__main__":
    main()
