"""What each budget's windows have spent and reserved, inside one transaction.

A window's row is a running sum, changed in the transaction that changes what it sums. Where the row is absent (a
new day, a new or changed budget) it is derived from the receipts and the open reservations.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, bindparam, func, insert, select, update

from mesh.money import MAX_NANO_USD
from services.ledger.policy import Budget, Position, Window, window_bounds
from services.ledger.tables import OPEN, budget_windows, budgets, receipts, reservations

_Key = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose request it is."""

    tenant_id: str
    user_id: str
    project_id: str


@dataclass(slots=True)
class _Sums:
    spent: int
    reserved: int
    stored: bool
    changed: bool = False


class Balances:
    """The windows of some tenants' budgets. Touch them before the change that they sum, add, then save."""

    def __init__(self, connection: Connection, of: Iterable[Budget]) -> None:
        self._connection = connection
        self._budgets = tuple(of)
        self._sums: dict[_Key, _Sums] = {}
        self._bounds: dict[int, list[tuple[int, int | None]]] = {}

    @classmethod
    def load(cls, connection: Connection, tenant_ids: Iterable[str]) -> Balances:
        """The balances of these tenants' budgets."""
        return cls(connection, load_budgets(connection, tenant_ids))

    def positions(self, scope: Scope, at_ns: int) -> list[Position]:
        """Where every budget that covers the scope stands in the window that holds an instant."""
        found = []
        for budget in self._covering(scope):
            start, sums = self._window(budget, at_ns)
            found.append(Position(budget, start, sums.spent, sums.reserved))
        return found

    def touch(self, scope: Scope, at_ns: int) -> None:
        """Read (or derive) the windows that a change will count in."""
        for budget in self._covering(scope):
            self._window(budget, at_ns)

    def add(self, scope: Scope, at_ns: int, *, spent: int = 0, reserved: int = 0) -> None:
        """Count a change; its windows must have been touched before the change was made."""
        for budget in self._covering(scope):
            start = self._start(budget, at_ns)
            sums = self._sums[budget.budget_id, start]
            sums.spent += spent
            sums.reserved += reserved
            sums.changed = True

    def save(self) -> None:
        """Write the windows that changed."""
        rows = [
            {
                "budget": key[0],
                "start": key[1],
                # A sum past int64 (9.2 billion USD) stays at the end of the range rather than break the books.
                "new_spent": min(max(sums.spent, 0), MAX_NANO_USD),
                "new_reserved": min(max(sums.reserved, 0), MAX_NANO_USD),
            }
            for key, sums in self._sums.items()
            if sums.changed and sums.stored
        ]
        fresh = [
            {"budget_id": key[0], "window_start_ns": key[1], "spent": sums.spent, "reserved": sums.reserved}
            for key, sums in self._sums.items()
            if not sums.stored
        ]
        if rows:
            self._connection.execute(_UPDATE, rows)
        if fresh:
            self._connection.execute(insert(budget_windows), fresh)
        for sums in self._sums.values():
            sums.stored, sums.changed = True, False

    def _covering(self, scope: Scope) -> Iterable[Budget]:
        return (each for each in self._budgets if each.covers(scope.tenant_id, scope.user_id, scope.project_id))

    def _start(self, budget: Budget, at_ns: int) -> int:
        return self._window_bounds(budget, at_ns)[0]

    def _window_bounds(self, budget: Budget, at_ns: int) -> tuple[int, int | None]:
        known = self._bounds.setdefault(budget.budget_id, [])
        for bounds in known:
            if bounds[0] <= at_ns and (bounds[1] is None or at_ns < bounds[1]):
                return bounds
        bounds = window_bounds(budget.window, budget.time_zone, at_ns)
        known.append(bounds)
        return bounds

    def _window(self, budget: Budget, at_ns: int) -> tuple[int, _Sums]:
        start, end = self._window_bounds(budget, at_ns)
        key = (budget.budget_id, start)
        sums = self._sums.get(key)
        if sums is None:
            row = (self._connection.execute(_SELECT, {"budget": key[0], "start": key[1]})).one_or_none()
            if row is not None:
                sums = _Sums(row.spent, row.reserved, stored=True)
            else:
                sums = _derive(self._connection, budget, start, end)
            self._sums[key] = sums
        return start, sums


def load_budgets(connection: Connection, tenant_ids: Iterable[str]) -> list[Budget]:
    """The budgets of these tenants, by tenant and name."""
    rows = connection.execute(_BUDGETS, {"tenants": sorted(set(tenant_ids))})
    return [
        Budget(
            name=row.name,
            tenant_id=row.tenant_id,
            limit=row.limit_nano_usd,
            hard=row.hard,
            user_id=row.user_id,
            project_id=row.project_id,
            window=Window(row.window),
            time_zone=row.time_zone,
            budget_id=row.id,
        )
        for row in rows
    ]


def _derive(connection: Connection, budget: Budget, start: int, end: int | None) -> _Sums:
    spent = select(func.coalesce(func.sum(receipts.c.actual), 0))
    reserved = select(func.coalesce(func.sum(reservations.c.amount), 0)).where(reservations.c.state == OPEN)
    sums = []
    for query, table in ((spent, receipts), (reserved, reservations)):
        narrowed: Select[Any] = query.where(table.c.tenant_id == budget.tenant_id, table.c.create_ns >= start)
        if end is not None:
            narrowed = narrowed.where(table.c.create_ns < end)
        if budget.user_id:
            narrowed = narrowed.where(table.c.user_id == budget.user_id)
        if budget.project_id:
            narrowed = narrowed.where(table.c.project_id == budget.project_id)
        sums.append(int((connection.execute(narrowed)).scalar_one()))
    return _Sums(sums[0], sums[1], stored=False)


_BUDGETS = (
    select(budgets)
    .where(budgets.c.tenant_id.in_(bindparam("tenants", expanding=True)))
    .order_by(budgets.c.tenant_id, budgets.c.name)
)
_SELECT = select(budget_windows.c.spent, budget_windows.c.reserved).where(
    budget_windows.c.budget_id == bindparam("budget"), budget_windows.c.window_start_ns == bindparam("start")
)
_UPDATE = (
    update(budget_windows)
    .where(budget_windows.c.budget_id == bindparam("budget"), budget_windows.c.window_start_ns == bindparam("start"))
    .values(spent=bindparam("new_spent"), reserved=bindparam("new_reserved"))
)
