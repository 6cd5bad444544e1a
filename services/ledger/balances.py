"""What each budget's windows have spent and reserved, inside one transaction.

A window's row is a running sum, changed in the transaction that changes what it sums. Where the row is absent (a
new day, a new or changed budget) it is derived from the receipts and the open reservations. A rolling window is the
sum of such rows, one for each sixtieth of its length.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, bindparam, delete, func, insert, select, update

from mesh.money import MAX_NANO_USD
from services.ledger.labels import has_tag, tags_pairs
from services.ledger.limits import parse_ladder, parse_percents
from services.ledger.policy import BUCKET_COUNT, Budget, Position, Window
from services.ledger.policy import Scope as Scope
from services.ledger.tables import OPEN, alerts, budget_windows, budgets, receipts, reservations

_Key = tuple[int, int]
_HALF = 2**31


@dataclass(slots=True)
class _Sums:
    spent: int
    reserved: int
    stored: bool
    alerted: int = 0
    changed: bool = False
    grown: bool = False


class Balances:
    """The windows of some tenants' budgets. Touch them before the change that they sum, add, then save."""

    def __init__(self, connection: Connection, of: Iterable[Budget]) -> None:
        self._connection = connection
        self._budgets = {each.budget_id: each for each in of}
        self._sums: dict[_Key, _Sums] = {}
        self._bounds: dict[int, list[tuple[int, int | None]]] = {}
        self._oldest: dict[int, int] = {}

    @classmethod
    def load(cls, connection: Connection, tenant_ids: Iterable[str]) -> Balances:
        """The balances of these tenants' budgets."""
        return cls(connection, load_budgets(connection, tenant_ids))

    def positions(self, scope: Scope, at_ns: int) -> list[Position]:
        """Where every budget that covers the scope stands in the window that holds an instant."""
        return [self.position(budget, at_ns) for budget in self._covering(scope)]

    def position(self, budget: Budget, at_ns: int) -> Position:
        """Where one of the budgets stands in the window that holds an instant."""
        if budget.window is not Window.ROLLING:
            start, sums = self._window(budget, at_ns)
            return Position(budget, start, sums.spent, sums.reserved)
        first = budget.first_bucket(at_ns)
        buckets = self._buckets(budget, first)
        return Position(budget, first, sum(each.spent for each in buckets), sum(each.reserved for each in buckets))

    def touch(self, scope: Scope, at_ns: int) -> None:
        """Read (or derive) the windows that a change will count in."""
        for budget in self._covering(scope):
            self._window(budget, at_ns)

    def add(self, scope: Scope, at_ns: int, *, spent: int = 0, reserved: int = 0) -> None:
        """Count a change; its windows must have been touched before the change was made."""
        for budget in self._covering(scope):
            start = self._window_bounds(budget, at_ns)[0]
            sums = self._sums[budget.budget_id, start]
            sums.spent += spent
            sums.reserved += reserved
            sums.changed = True
            sums.grown = sums.grown or spent > 0

    def save(self, now_ns: int) -> None:
        """Write the windows that changed, and an alert for every mark that they have crossed."""
        self._alert(now_ns)
        rows = [
            {
                "budget": key[0],
                "start": key[1],
                "new_spent": _kept(sums.spent),
                "new_reserved": _kept(sums.reserved),
                "new_alerted": sums.alerted,
            }
            for key, sums in self._sums.items()
            if sums.changed and sums.stored
        ]
        fresh = [
            {
                "budget_id": key[0],
                "window_start_ns": key[1],
                "spent": _kept(sums.spent),
                "reserved": _kept(sums.reserved),
                "alerted_percent": sums.alerted,
            }
            for key, sums in self._sums.items()
            if not sums.stored
        ]
        if rows:
            self._connection.execute(_UPDATE, rows)
        if fresh:
            # A new bucket begins where an old one ends: that one's sum is needed no more.
            passed = [{"budget": key, "oldest": first} for key, first in self._oldest.items()]
            if passed:
                self._connection.execute(_FORGET, passed)
            self._connection.execute(insert(budget_windows), fresh)
        for sums in self._sums.values():
            sums.stored, sums.changed, sums.grown = True, False, False

    def _covering(self, scope: Scope) -> Iterable[Budget]:
        return (each for each in self._budgets.values() if each.covers(scope))

    def _window_bounds(self, budget: Budget, at_ns: int) -> tuple[int, int | None]:
        known = self._bounds.setdefault(budget.budget_id, [])
        for bounds in known:
            if bounds[0] <= at_ns and (bounds[1] is None or at_ns < bounds[1]):
                return bounds
        bounds = budget.bounds(at_ns)
        known.append(bounds)
        return bounds

    def _window(self, budget: Budget, at_ns: int) -> tuple[int, _Sums]:
        start, end = self._window_bounds(budget, at_ns)
        key = (budget.budget_id, start)
        sums = self._sums.get(key)
        if sums is None:
            row = (self._connection.execute(_SELECT, {"budget": key[0], "start": key[1]})).one_or_none()
            if row is not None:
                sums = _Sums(row.spent, row.reserved, stored=True, alerted=row.alerted_percent)
            else:
                spent, reserved = self._derive(budget, start, end)
                sums = _Sums(spent.get(start, 0), reserved.get(start, 0), stored=False)
            self._sums[key] = sums
        return start, sums

    def _buckets(self, budget: Budget, first: int) -> list[_Sums]:
        """Every bucket of a rolling window, the oldest of which begins at ``first``."""
        starts = [first + number * budget.bucket_ns for number in range(BUCKET_COUNT + 1)]
        keys = [(budget.budget_id, start) for start in starts]
        if self._oldest.get(budget.budget_id) != first:
            self._oldest[budget.budget_id] = first
            for row in self._connection.execute(_RANGE, {"budget": budget.budget_id, "a": first, "b": starts[-1]}):
                key = (budget.budget_id, row.window_start_ns)
                self._sums.setdefault(key, _Sums(row.spent, row.reserved, stored=True))
            absent = [start for key, start in zip(keys, starts, strict=True) if key not in self._sums]
            if absent:
                spent, reserved = self._derive(budget, absent[0], absent[-1] + budget.bucket_ns)
                for start in absent:
                    key = (budget.budget_id, start)
                    self._sums[key] = _Sums(spent.get(start, 0), reserved.get(start, 0), stored=False)
        return [self._sums[key] for key in keys]

    def _derive(self, budget: Budget, start: int, end: int | None) -> tuple[dict[int, int], dict[int, int]]:
        """Spent and reserved in a stretch, by the start of the stored window."""
        spent = select(*_halves(receipts.c.actual))
        reserved = select(*_halves(reservations.c.amount)).where(reservations.c.state == OPEN)
        found = []
        for query, table in ((spent, receipts), (reserved, reservations)):
            narrowed = query.where(table.c.tenant_id == budget.tenant_id, table.c.create_ns >= start)
            if end is not None:
                narrowed = narrowed.where(table.c.create_ns < end)
            for column, value in (
                ("user_id", budget.user_id),
                ("project_id", budget.project_id),
                ("model", budget.model),
            ):
                if value:
                    narrowed = narrowed.where(table.c[column] == value)
            if budget.tag_key:
                name: Any = table.name
                dialect = self._connection.dialect.name
                narrowed = narrowed.where(has_tag(dialect, name, budget.tag_key, budget.tag_value))
            if budget.window is Window.ROLLING:
                bucket = table.c.create_ns - table.c.create_ns % budget.bucket_ns
                rows = self._connection.execute(narrowed.add_columns(bucket.label("start")).group_by(bucket))
                found.append({int(row.start): _whole(row) for row in rows})
            else:
                found.append({start: _whole(self._connection.execute(narrowed).one())})
        return found[0], found[1]

    def _alert(self, now_ns: int) -> None:
        grown = [key for key, sums in self._sums.items() if sums.grown and self._budgets[key[0]].alert_percents]
        new = []
        for budget_id, start in dict.fromkeys(
            (key[0], None if self._budgets[key[0]].window is Window.ROLLING else key[1]) for key in grown
        ):
            budget = self._budgets[budget_id]
            if start is None:
                window, spent = budget.alert_window(now_ns), self.position(budget, now_ns).spent
                above = self._connection.execute(_ALERTED, {"budget": budget_id, "start": window}).scalar_one()
            else:
                window, spent = start, self._sums[budget_id, start].spent
                above = self._sums[budget_id, start].alerted
            for percent in budget.crossed(spent, above):
                if start is not None:
                    self._sums[budget_id, start].alerted = percent
                new.append(
                    {
                        "budget_id": budget_id,
                        "window_start_ns": window,
                        "percent": percent,
                        "spent": min(spent, MAX_NANO_USD),
                        "create_ns": now_ns,
                        "next_try_ns": now_ns,
                        "try_count": 0,
                    }
                )
        if new:
            self._connection.execute(insert(alerts), new)


def _kept(amount: int) -> int:
    """A sum as the row keeps it: past int64 (9.2 billion USD) it stays at the end of the range."""
    return min(max(amount, 0), MAX_NANO_USD)


def _halves(amount: ColumnElement[int]) -> tuple[ColumnElement[Any], ColumnElement[Any]]:
    """A sum in two parts: SQLite's own fails past 64 bits."""
    return func.sum(amount // _HALF).label("high"), func.sum(amount % _HALF).label("low")


def _whole(row: Any) -> int:
    return int(row.high or 0) * _HALF + int(row.low or 0)


def load_budgets(connection: Connection, tenant_ids: Iterable[str]) -> list[Budget]:
    """The budgets of these tenants, by tenant and name."""
    return [budget_of(row) for row in connection.execute(_BUDGETS, {"tenants": sorted(set(tenant_ids))})]


def budget_of(row: Row[Any]) -> Budget:
    """A budget from its row."""
    return Budget(
        name=row.name,
        tenant_id=row.tenant_id,
        limit=row.limit_nano_usd,
        hard=row.hard,
        user_id=row.user_id,
        project_id=row.project_id,
        window=Window(row.window),
        time_zone=row.time_zone,
        budget_id=row.id,
        model=row.model,
        tag_key=row.tag_key,
        tag_value=row.tag_value,
        rolling_seconds=row.rolling_seconds,
        alert_percents=parse_percents(row.alert_percents),
        alert_url=row.alert_url,
        ladder=parse_ladder(row.ladder),
    )


def scope_of(row: Any) -> Scope:
    """Whose request a receipt's or a reservation's row is."""
    return Scope(row.tenant_id, row.user_id, row.project_id, row.model, tags_pairs(row.tags))


_BUDGETS = (
    select(budgets)
    .where(budgets.c.tenant_id.in_(bindparam("tenants", expanding=True)))
    .order_by(budgets.c.tenant_id, budgets.c.name)
)
_SELECT = select(budget_windows.c.spent, budget_windows.c.reserved, budget_windows.c.alerted_percent).where(
    budget_windows.c.budget_id == bindparam("budget"), budget_windows.c.window_start_ns == bindparam("start")
)
_RANGE = select(budget_windows.c.window_start_ns, budget_windows.c.spent, budget_windows.c.reserved).where(
    budget_windows.c.budget_id == bindparam("budget"),
    budget_windows.c.window_start_ns.between(bindparam("a"), bindparam("b")),
)
_UPDATE = (
    update(budget_windows)
    .where(budget_windows.c.budget_id == bindparam("budget"), budget_windows.c.window_start_ns == bindparam("start"))
    .values(spent=bindparam("new_spent"), reserved=bindparam("new_reserved"), alerted_percent=bindparam("new_alerted"))
)
_FORGET = delete(budget_windows).where(
    budget_windows.c.budget_id == bindparam("budget"), budget_windows.c.window_start_ns < bindparam("oldest")
)
_ALERTED = select(func.coalesce(func.max(alerts.c.percent), 0)).where(
    alerts.c.budget_id == bindparam("budget"), alerts.c.window_start_ns == bindparam("start")
)
