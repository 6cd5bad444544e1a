"""Utilization of own hardware in the database."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, insert, select

from services.ledger.hardware import LONGEST_ROW_NS, Utilization, admit
from services.ledger.tables import utilization

_COLUMNS = (
    utilization.c.node,
    utilization.c.hardware,
    utilization.c.unit_count,
    utilization.c.start_ns,
    utilization.c.end_ns,
    utilization.c.busy_share,
    utilization.c.model,
    utilization.c.output_tokens,
)


def record(connection: Connection, rows: Sequence[Utilization], field: str) -> int:
    """Keep the rows that are new; returns how many. Raises UTILIZATION_OVERLAP, and keeps none of them then."""
    if not rows:
        return 0
    start, end = min(row.start_ns for row in rows), max(row.end_ns for row in rows)
    known = between(connection, start, end, nodes=sorted({row.node for row in rows}))
    added = admit(known, rows, field)
    if added:
        names = [column.name for column in _COLUMNS]
        connection.execute(insert(utilization), [{name: getattr(row, name) for name in names} for row in added])
    return len(added)


def between(
    connection: Connection, start_ns: int, end_ns: int, *, nodes: Sequence[str] | None = None
) -> list[Utilization]:
    """The rows that cover some of the time, by node and start; with ``nodes`` of these only."""
    # No row is longer than LONGEST_ROW_NS: the bound on its start lets an index find it.
    query = (
        select(*_COLUMNS)
        .where(
            utilization.c.start_ns > start_ns - LONGEST_ROW_NS - 1,
            utilization.c.start_ns < end_ns,
            utilization.c.end_ns > start_ns,
        )
        .order_by(utilization.c.node, utilization.c.start_ns)
    )
    if nodes is not None:
        query = query.where(utilization.c.node.in_(nodes))
    return [Utilization(*row) for row in connection.execute(query)]
