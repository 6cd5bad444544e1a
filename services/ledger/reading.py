"""What the reads share: which receipts a caller asks for, as SQL and on one receipt, and sums that never round."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, RowMapping, Select, Table, bindparam, cast, column, func, select
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncConnection

from services.ledger.labels import CHECK, SHADOW
from services.ledger.tables import receipts

_HALF = 2**31
_NAMES = ("tenant_id", "user_id", "project_id", "model")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which receipts; empty strings and None do not narrow."""

    start_ns: int | None = None
    end_ns: int | None = None
    tenant_id: str = ""
    user_id: str = ""
    project_id: str = ""
    model: str = ""
    tag_key: str = ""
    tag_value: str = ""
    """With a key: the tag's value; empty: any."""

    def holds(self, columns: Mapping[str, Any], tags: Mapping[str, str]) -> bool:
        """True when a receipt with these columns and tags is asked for."""
        if self.start_ns is not None and columns["create_ns"] < self.start_ns:
            return False
        if self.end_ns is not None and columns["create_ns"] >= self.end_ns:
            return False
        if any(getattr(self, name) not in ("", columns[name]) for name in _NAMES):
            return False
        return not self.tag_key or (self.tag_key in tags and self.tag_value in ("", tags[self.tag_key]))


def tag_of(dialect: str, key: str) -> ColumnElement[Any]:
    """The value of a receipt's tag, NULL without it. The key travels as a bound value, never inside SQL or a path."""
    name: ColumnElement[str] = bindparam(None, key, unique=True)
    if dialect == "postgresql":
        # A zero character is valid JSON that jsonb refuses: one such tag would break every report.
        text = func.replace(receipts.c.tags, "\\u0000", "\\ufffd")
        return func.jsonb_extract_path_text(cast(text, JSONB), name)
    pairs = func.json_each(receipts.c.tags).table_valued(column("key"), column("value"))
    return select(pairs.c.value).where(pairs.c.key == name).limit(1).scalar_subquery()


def named(table: Table, which: Filter, *, indexed: bool = True) -> list[ColumnElement[bool]]:
    """The conditions on names, on receipts or rollups; not ``indexed``: written so that no index serves them."""
    return [
        (table.c[name] if indexed else table.c[name] + "") == getattr(which, name)
        for name in _NAMES
        if getattr(which, name)
    ]


def tagged(dialect: str, which: Filter) -> list[ColumnElement[bool]]:
    """The condition on the tag, on receipts."""
    if not which.tag_key:
        return []
    value = tag_of(dialect, which.tag_key)
    # Said beside, so that no other receipt's tags are read.
    checks = [receipts.c.cache == CHECK] if which.tag_key == SHADOW else []
    return [*checks, value == which.tag_value if which.tag_value else value.is_not(None)]


def narrowed(query: Select[Any], which: Filter, dialect: str) -> Select[Any]:
    """A query over receipts, narrowed to what is asked for."""
    if which.start_ns is not None:
        query = query.where(receipts.c.create_ns >= which.start_ns)
    if which.end_ns is not None:
        query = query.where(receipts.c.create_ns < which.end_ns)
    return query.where(*named(receipts, which), *tagged(dialect, which))


async def summed(
    connection: AsyncConnection,
    groups: Sequence[ColumnElement[Any]],
    sums: Iterable[tuple[str, ColumnElement[Any]]],
    query: Select[Any],
) -> list[tuple[RowMapping, dict[str, int]]]:
    """Groups with exact sums, however large. ``query`` selects from where; its own columns are replaced.

    SQLite's sum is exact or fails past 64 bits ("integer overflow"); then halves are summed apart. Postgres sums
    bigints as numerics.
    """
    wanted = list(sums)
    for halves in (False, True):
        columns: list[ColumnElement[Any]] = []
        for name, value in wanted:
            if halves:
                columns += [
                    func.sum(value // _HALF).label(f"{name}_high"),
                    func.sum(value % _HALF).label(f"{name}_low"),
                ]
            else:
                columns.append(func.sum(value).label(name))
        try:
            rows = (
                await connection.execute(query.with_only_columns(*groups, *columns).group_by(*groups))
            ).mappings().all()  # fmt: skip
        except OperationalError as error:
            if halves or "integer overflow" not in str(error.orig):
                raise
            continue
        if halves:
            return [
                (
                    row,
                    {name: int(row[f"{name}_high"] or 0) * _HALF + int(row[f"{name}_low"] or 0) for name, _ in wanted},
                )
                for row in rows
            ]
        return [(row, {name: int(row[name] or 0) for name, _ in wanted}) for row in rows]
    raise AssertionError("unreachable")
