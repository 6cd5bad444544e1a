"""Typed columns as CSV and as Parquet: money as whole nano-USD and as decimals, never as floating point."""

from __future__ import annotations

import csv
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

Value = str | int | bool | Decimal | datetime | None
EXTRA = "needs the extra `report`: pip install 'tenth-client[report]' (or 'tenth[report]')"
_BATCH = 10_000


class Kind(Enum):
    """What a column holds."""

    TEXT = "text"
    COUNT = "count"
    NANO_USD = "nano_usd"
    DECIMAL = "decimal"
    """Nine decimals at most."""
    TIME = "time"
    FLAG = "flag"


@dataclass(frozen=True, slots=True)
class Column:
    """A column's name and what it holds."""

    name: str
    kind: Kind


Row = Sequence[Value]


class Writer(Protocol):
    """Takes rows, then is closed."""

    def write(self, row: Row) -> None:
        """Add one row, as long as there are columns."""

    def close(self) -> None:
        """Finish the file."""


Formatter = Callable[[Value], str]


def usd(nano: int) -> Decimal:
    """Nano-USD as exact decimal USD."""
    return Decimal(nano).scaleb(-9)


def cell(value: Value) -> str:
    """A value as CSV text: empty for none, UTC times in ISO 8601, plain decimals.

    Text that a spreadsheet would take for a formula gets an apostrophe before it (CWE-1236); numbers are not text.
    """
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        # Cut, not rounded: a receipt's times are finer than a second.
        return value.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, str):
        # Spreadsheets look past leading blanks and control characters.
        head = value.lstrip()[:1]
        return f"'{value}" if head in {"=", "+", "-", "@"} or value[:1] in {"\t", "\r", "\n"} else value
    return str(value)


class CsvWriter:
    """Writes CSV (RFC 4180, UTF-8)."""

    def __init__(self, path: Path, columns: Sequence[Column], text: Formatter = cell) -> None:
        self._file = path.open("w", encoding="utf-8", newline="")
        self._text = text
        self._csv = csv.writer(self._file)
        self._csv.writerow([column.name for column in columns])

    def write(self, row: Row) -> None:
        """Add one row."""
        self._csv.writerow([self._text(value) for value in row])

    def close(self) -> None:
        """Finish the file."""
        self._file.close()


class ParquetWriter:
    """Writes Parquet in row groups of 10,000. Raises LookupError naming the extra when pyarrow is absent."""

    def __init__(self, path: Path, columns: Sequence[Column]) -> None:
        try:
            self._arrow: Any = import_module("pyarrow")
            parquet: Any = import_module("pyarrow.parquet")
        except ImportError:
            raise LookupError(f"Parquet {EXTRA}") from None
        arrow = self._arrow
        types = {
            Kind.TEXT: arrow.string(),
            Kind.COUNT: arrow.int64(),
            Kind.NANO_USD: arrow.int64(),
            Kind.DECIMAL: arrow.decimal128(38, 9),
            Kind.TIME: arrow.timestamp("us", tz="UTC"),
            Kind.FLAG: arrow.bool_(),
        }
        self._schema = arrow.schema([(column.name, types[column.kind]) for column in columns])
        self._rows: list[Row] = []
        self._writer: Any = parquet.ParquetWriter(str(path), self._schema)

    def write(self, row: Row) -> None:
        """Add one row."""
        self._rows.append(row)
        if len(self._rows) == _BATCH:
            self._flush()

    def close(self) -> None:
        """Finish the file."""
        self._flush()
        self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            columns = [
                self._arrow.array([row[index] for row in self._rows], type=field.type)
                for index, field in enumerate(self._schema)
            ]
            self._writer.write_table(self._arrow.Table.from_arrays(columns, schema=self._schema))
            self._rows = []


async def save(
    path: Path, columns: Sequence[Column], rows: AsyncIterator[Row], *, parquet: bool, text: Formatter = cell
) -> int:
    """Write all rows and return their number. The file appears whole or not at all."""
    part = path.with_name(f"{path.name}.part")
    count = 0
    writer: Writer = ParquetWriter(part, columns) if parquet else CsvWriter(part, columns, text)
    try:
        try:
            async for row in rows:
                writer.write(row)
                count += 1
        finally:
            writer.close()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return count
