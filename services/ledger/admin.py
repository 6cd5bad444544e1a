"""Tenants, budgets and switches in the database, and the snapshot that admission works from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, delete, insert, select, update

from services.ledger import nodes
from services.ledger.balances import Balances, load_budgets
from services.ledger.errors import price_not_found, unknown_tenant
from services.ledger.hardware import Utilization
from services.ledger.limits import ladder_text, percents_text
from services.ledger.policy import ALL_TENANTS, LAYERS, Budget, Position
from services.ledger.pricebook import PriceBooks, is_priced
from services.ledger.prices import DatedPrice
from services.ledger.store import Store
from services.ledger.tables import alerts, books, budget_windows, budgets, layer_switches, tenants


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who pays, and how its requests are measured and limited (0 requests or tokens a minute: no limit).

    ``control_share``, 0 to 1, is the share of requests that really go to the baseline model.
    """

    tenant_id: str
    baseline_model: str
    max_requests_per_minute: int = 0
    max_tokens_per_minute: int = 0
    control_share: float = 0.0


@dataclass(frozen=True, slots=True)
class TenantPolicy:
    """What admission needs to know of a tenant."""

    tenant: Tenant
    has_hard_budget: bool
    disabled_layers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything that admission needs, under one version."""

    version: str
    price_book_version: int
    prices: tuple[DatedPrice, ...]
    policies: tuple[TenantPolicy, ...]


class Admin:
    """What operators set, and what admission reads of it."""

    def __init__(self, store: Store, prices: PriceBooks, now_ns: Callable[[], int]) -> None:
        self._store = store
        self._prices = prices
        self._now_ns = now_ns

    async def seed_tenants(self, seeds: Sequence[tuple[Tenant, Sequence[Budget]]]) -> None:
        """Add tenants and budgets that are absent, and give tenants the limits that the file says now.

        No RPC sets a tenant's own values, so the file is their only source; a budget that is there stays as it is.
        """

        def operation(connection: Connection) -> None:
            stored = {each["tenant_id"]: dict(each) for each in connection.execute(select(tenants)).mappings()}
            wanted = [_tenant_values(tenant) for tenant, _ in seeds]
            added = [each for each in wanted if each["tenant_id"] not in stored]
            moved = [each for each in wanted if each not in added and each != stored[each["tenant_id"]]]
            if added:
                connection.execute(insert(tenants), added)
            for each in moved:
                connection.execute(update(tenants).where(tenants.c.tenant_id == each["tenant_id"]).values(each))
            there = {
                (each.tenant_id, each.name)
                for each in load_budgets(connection, [tenant.tenant_id for tenant, _ in seeds])
            }
            absent = [each for _, them in seeds for each in them if (each.tenant_id, each.name) not in there]
            if absent:
                connection.execute(insert(budgets), [_budget_values(each) for each in absent])
            if added or moved or absent:
                _changed(connection)

        await self._store.write(operation)

    async def set_budget(self, budget: Budget) -> Position:
        """Create or replace a budget; its window counts what was spent in it already.

        Raises UNKNOWN_TENANT, and PRICE_NOT_FOUND for one by a model that the price book has never had.
        """
        now = self._now_ns()

        def operation(connection: Connection) -> Position:
            _require_tenant(connection, budget.tenant_id, "request.budget.tenant_id")
            if budget.model and not is_priced(connection, budget.model):
                # It would cover nothing, for ever, and nobody would notice.
                raise price_not_found(budget.model, "request.budget.model", "at any time")
            of = {each.name: each for each in load_budgets(connection, [budget.tenant_id])}
            before = of.get(budget.name)
            if before is None:
                connection.execute(insert(budgets), _budget_values(budget))
            else:
                connection.execute(
                    update(budgets).where(budgets.c.id == before.budget_id).values(_budget_values(budget))
                )
                if not before.same_scope(budget):
                    # The running sums count other requests now: they are derived again, and its marks are ahead.
                    _forget_windows(connection, before)
            _changed(connection)
            stored = [each for each in load_budgets(connection, [budget.tenant_id]) if each.name == budget.name]
            return (_positions(connection, stored, now))[0]

        return await self._store.write(operation)

    async def delete_budget(self, tenant_id: str, name: str) -> bool:
        """Delete a budget with its windows and alerts; False when there is none. Raises UNKNOWN_TENANT.

        Reservations and receipts name no budget: what it held goes on, in the budgets that are left.
        """

        def operation(connection: Connection) -> bool:
            _require_tenant(connection, tenant_id, "request.tenant_id")
            before = next((each for each in load_budgets(connection, [tenant_id]) if each.name == name), None)
            if before is None:
                return False
            _forget_windows(connection, before)
            connection.execute(delete(budgets).where(budgets.c.id == before.budget_id))
            _changed(connection)
            return True

        return await self._store.write(operation)

    async def set_switch(self, tenant_id: str, layer: str, *, disabled: bool) -> tuple[str, ...]:
        """Turn a layer off or on; returns the layers now off for that tenant. Raises UNKNOWN_TENANT."""

        def operation(connection: Connection) -> tuple[str, ...]:
            if tenant_id != ALL_TENANTS:
                _require_tenant(connection, tenant_id, "request.tenant_id")
            off = {switch.layer for switch in _switches(connection) if switch.tenant_id == tenant_id}
            if disabled and layer not in off:
                connection.execute(insert(layer_switches), {"tenant_id": tenant_id, "layer": layer})
                _changed(connection)
            elif not disabled and layer in off:
                connection.execute(
                    delete(layer_switches).where(
                        layer_switches.c.tenant_id == tenant_id, layer_switches.c.layer == layer
                    )
                )
                _changed(connection)
            return _ordered(off | {layer} if disabled else off - {layer})

        return await self._store.write(operation)

    async def record_utilization(self, rows: Sequence[Utilization]) -> int:
        """Keep how busy own hardware was; returns how many rows were new. Raises UTILIZATION_OVERLAP."""
        return await self._store.write(lambda connection: nodes.record(connection, rows, "request.nodes"))

    async def budgets(self, tenant_id: str) -> list[Position]:
        """A tenant's budgets by name, in their current windows. Raises UNKNOWN_TENANT."""
        async with self._store.read() as connection:
            await connection.run_sync(_require_tenant, tenant_id, "request.tenant_id")
            found = await connection.run_sync(load_budgets, [tenant_id])
            return await connection.run_sync(_positions, found, self._now_ns())

    async def snapshot(self, held: str) -> Snapshot | None:
        """The current snapshot; None when the held version is current."""
        async with self._store.read() as connection:
            state = (await connection.execute(select(books))).one()
            version = f"{state.books_id}-{state.price_book_version}-{state.policy_version}"
            if version == held:
                return None
            everyone = (await connection.execute(select(tenants).order_by(tenants.c.tenant_id))).all()
            switches = await connection.run_sync(_switches)
            hard = {each.tenant_id for each in await connection.run_sync(_hard_budgets)}
        now = self._now_ns()
        return Snapshot(
            version=version,
            price_book_version=state.price_book_version,
            prices=tuple(
                row
                for row in await self._prices.version(state.price_book_version)
                if row.valid_to_ns is None or row.valid_to_ns > now
            ),
            policies=tuple(
                TenantPolicy(
                    _tenant(row),
                    row.tenant_id in hard,
                    _ordered(each.layer for each in switches if each.tenant_id in (row.tenant_id, ALL_TENANTS)),
                )
                for row in everyone
            ),
        )


def baseline_model(connection: Connection, tenant_id: str) -> str:
    """The baseline model of a tenant; empty for one that the ledger does not know."""
    query = select(tenants.c.baseline_model).where(tenants.c.tenant_id == tenant_id)
    return (connection.execute(query)).scalar_one_or_none() or ""


def _positions(connection: Connection, of: Iterable[Budget], now: int) -> list[Position]:
    return [Balances(connection, [each]).position(each, now) for each in of]


def _forget_windows(connection: Connection, budget: Budget) -> None:
    for table in (alerts, budget_windows):
        connection.execute(delete(table).where(table.c.budget_id == budget.budget_id))


def _require_tenant(connection: Connection, tenant_id: str, field: str) -> None:
    query = select(tenants.c.tenant_id).where(tenants.c.tenant_id == tenant_id)
    if (connection.execute(query)).one_or_none() is None:
        raise unknown_tenant(tenant_id, field)


def _switches(connection: Connection) -> Sequence[Any]:
    return (connection.execute(select(layer_switches))).all()


def _hard_budgets(connection: Connection) -> Sequence[Any]:
    return (connection.execute(select(budgets.c.tenant_id).where(budgets.c.hard).distinct())).all()


def _changed(connection: Connection) -> None:
    connection.execute(update(books).values(policy_version=books.c.policy_version + 1))


def _ordered(layers: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(layers), key=LAYERS.index))


def _tenant(row: Row[Any]) -> Tenant:
    return Tenant(
        row.tenant_id,
        row.baseline_model,
        row.max_requests_per_minute,
        row.max_tokens_per_minute,
        row.control_share,
    )


def _tenant_values(tenant: Tenant) -> dict[str, Any]:
    return {
        "tenant_id": tenant.tenant_id,
        "baseline_model": tenant.baseline_model,
        "max_requests_per_minute": tenant.max_requests_per_minute,
        "max_tokens_per_minute": tenant.max_tokens_per_minute,
        "control_share": tenant.control_share,
    }


def _budget_values(budget: Budget) -> dict[str, Any]:
    return {
        "tenant_id": budget.tenant_id,
        "name": budget.name,
        "user_id": budget.user_id,
        "project_id": budget.project_id,
        "window": budget.window.value,
        "time_zone": budget.time_zone,
        "limit_nano_usd": budget.limit,
        "hard": budget.hard,
        "model": budget.model,
        "tag_key": budget.tag_key,
        "tag_value": budget.tag_value,
        "rolling_seconds": budget.rolling_seconds,
        "alert_percents": percents_text(budget.alert_percents),
        "alert_url": budget.alert_url,
        "ladder": ladder_text(budget.ladder),
    }
