"""Money as metrics: what receipts added since this process started, and what budgets have left.

For dashboards and alerts; the books have the truth, and reports read it there. A receipt counts once, in the replica
that wrote it, after its commit; a corrected one counts by the difference. Attributes have few values: tenants, models
that a price is known of, tiers. Never a user, a project, a tag or a request.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, Observation
from sqlalchemy import func, select
from tenth.type.v1 import chat_pb2

from mesh.errors import TenthError
from services.ledger.admin import Admin
from services.ledger.labels import CHECK, MISS
from services.ledger.policy import Position
from services.ledger.settling import Change
from services.ledger.store import Store
from services.ledger.tables import OPEN, SAVINGS, budgets, reservations

log = logging.getLogger("tenth.ledger")

NANO_USD = "{nano_usd}"
"""Unit of amounts: a thousand-millionth of a US dollar, so that sums stay exact."""
_NO_MODEL = "none"
_MOST_BUDGETS = 1000
"""Budgets that are shown, by tenant and name: more would be too many series for most backends."""


class MoneyMetrics:
    """Counts receipts as they are written."""

    def __init__(self, meter: Meter) -> None:
        self._cost = meter.create_counter("tenth.cost", unit=NANO_USD, description="What receipts cost")
        self._credits = meter.create_counter(
            "tenth.cost.credits", unit=NANO_USD, description="What corrections took back; net cost is cost less credits"
        )
        self._savings = meter.create_up_down_counter(
            "tenth.savings", unit=NANO_USD, description="What layers saved; falls where one cost more than it saved"
        )

    def count(self, changes: Sequence[Change]) -> None:
        """Count what a committed write changed."""
        costs: Counter[tuple[tuple[str, str], ...]] = Counter()
        saved: Counter[tuple[str, str]] = Counter()
        for change in changes:
            for row, sign in ((change.before, -1), (change.after, 1)):
                if row is None:
                    continue
                costs[_attributes(row)] += sign * row["actual"]
                for column in SAVINGS:
                    saved[row["tenant_id"], column.removeprefix("saving_")] += sign * row[column]
        for attributes, amount in costs.items():
            if amount >= 0:
                self._cost.add(amount, dict(attributes))
            else:
                self._credits.add(-amount, dict(attributes))
        for (tenant_id, layer), amount in saved.items():
            if amount:
                self._savings.add(amount, {"tenth.tenant_id": tenant_id, "tenth.layer": layer})


class BookGauges:
    """What budgets have left and how many reservations stand, read from the books now and then.

    Every replica shows the same: take the largest, not the sum.
    """

    def __init__(self, meter: Meter, store: Store, admin: Admin) -> None:
        self._store = store
        self._admin = admin
        self._positions: tuple[Position, ...] = ()
        self._open: int | None = None
        meter.create_observable_gauge(
            "tenth.budget.remaining",
            [self._observe_budgets],
            unit=NANO_USD,
            description="Left in the current window: limit less spent and reserved; negative when passed",
        )
        meter.create_observable_gauge(
            "tenth.reservations.open",
            [self._observe_reservations],
            unit="{reservation}",
            description="Reservations that stand",
        )

    async def run(self, interval_seconds: float) -> None:
        """Read for ever."""
        while True:
            try:
                await self.refresh()
            except TenthError as error:
                log.warning("gauges are old: %s", error)
            except Exception:
                log.exception("gauges could not be read")
            await asyncio.sleep(interval_seconds)

    async def refresh(self) -> None:
        """Read now."""
        async with self._store.read() as connection:
            count = select(func.count()).select_from(reservations).where(reservations.c.state == OPEN)
            self._open = int((await connection.execute(count)).scalar_one())
            names = select(budgets.c.tenant_id).distinct().order_by(budgets.c.tenant_id).limit(_MOST_BUDGETS)
            tenant_ids = list((await connection.execute(names)).scalars())
        found: list[Position] = []
        for tenant_id in tenant_ids:
            if len(found) >= _MOST_BUDGETS:
                break
            found += await self._admin.budgets(tenant_id)
        self._positions = tuple(found[:_MOST_BUDGETS])

    def _observe_budgets(self, options: CallbackOptions) -> Iterable[Observation]:
        # Called from the exporter's thread: it only reads what refresh put here whole.
        for each in self._positions:
            attributes: dict[str, str | bool] = {
                "tenth.tenant_id": each.budget.tenant_id,
                "tenth.budget": each.budget.name,
                "tenth.budget.hard": each.budget.hard,
            }
            yield Observation(each.remaining, attributes)

    def _observe_reservations(self, options: CallbackOptions) -> Iterable[Observation]:
        if self._open is not None:
            yield Observation(self._open)


def _attributes(row: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    missed = row["cache"] == MISS
    check = row["cache"] == CHECK
    # Only the model of an answer was priced, and so is one of few: on a hit or a failure it may be any text.
    model = row["model"] if missed and not row["failed"] else _NO_MODEL
    known = row["tier"] in chat_pb2.Tier.values()
    return (
        ("tenth.tenant_id", row["tenant_id"]),
        ("gen_ai.response.model", model),
        ("tenth.tier", chat_pb2.Tier.Name(row["tier"]).removeprefix("TIER_").lower() if known else "unspecified"),
        ("tenth.cache.outcome", "miss" if missed or check else "hit"),
        ("tenth.outcome", CHECK if check else "failed" if row["failed"] else "answered"),
    )
