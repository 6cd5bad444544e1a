"""What operators write: switches, budgets and prices, translated between the wire and the books."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from mesh.auth import current_identity
from mesh.errors import invalid_argument, required
from mesh.money import MAX_NANO_USD
from mesh.telemetry import annotate
from services.ledger.admin import Admin
from services.ledger.errors import cross_tenant, too_many
from services.ledger.hardware_rpc import require_reporter, utilization
from services.ledger.limits import check_budget
from services.ledger.policy import ALL_TENANTS, LAYERS, Budget, LadderStep, Position, Rung, Window
from services.ledger.price_rpc import dated_price, import_row, price_message, rate_of, read_import
from services.ledger.pricebook import PriceBooks
from services.ledger.prices import check
from services.ledger.receipts import check_name, instant

MOST_ITEMS = 500
"""Most receipts, attempts or prices in one call."""
_WINDOWS = {
    ledger_pb2.BUDGET_WINDOW_DAY: Window.DAY,
    ledger_pb2.BUDGET_WINDOW_WEEK: Window.WEEK,
    ledger_pb2.BUDGET_WINDOW_MONTH: Window.MONTH,
    ledger_pb2.BUDGET_WINDOW_TOTAL: Window.TOTAL,
    ledger_pb2.BUDGET_WINDOW_ROLLING: Window.ROLLING,
}
_STEPS = {
    ledger_pb2.LADDER_STEP_CACHE_ONLY: LadderStep.CACHE_ONLY,
    ledger_pb2.LADDER_STEP_BATCH: LadderStep.BATCH,
    ledger_pb2.LADDER_STEP_CHEAPER_TIER: LadderStep.CHEAPER_TIER,
}
_WIRE_STEPS = {step: number for number, step in _STEPS.items()}
_WIRE_WINDOWS = {window: number for number, window in _WINDOWS.items()}


class OperatorServicer(ledger_pb2_grpc.LedgerServiceServicer):
    """The operators' part of LedgerService."""

    def __init__(self, admin: Admin, prices: PriceBooks, now_ns: Callable[[], int]) -> None:
        self._admin = admin
        self._prices = prices
        self._now_ns = now_ns

    async def SetLayerSwitch(
        self, request: ledger_pb2.SetLayerSwitchRequest, context: Any
    ) -> ledger_pb2.SetLayerSwitchResponse:
        """Turn a layer off or on."""
        check_name(request.tenant_id, "request.tenant_id")
        if request.layer not in LAYERS:
            raise invalid_argument(f"{request.layer!r} is none of {', '.join(LAYERS)}", field="request.layer")
        _operator_of(request.tenant_id, "request.tenant_id")
        layers = await self._admin.set_switch(request.tenant_id, request.layer, disabled=request.disabled)
        return ledger_pb2.SetLayerSwitchResponse(disabled_layers=layers)

    async def SetBudget(self, request: ledger_pb2.SetBudgetRequest, context: Any) -> ledger_pb2.SetBudgetResponse:
        """Create or replace a budget."""
        if not request.HasField("budget"):
            raise required("request.budget")
        budget = _budget(request.budget)
        _operator_of(budget.tenant_id, "request.budget.tenant_id")
        return ledger_pb2.SetBudgetResponse(status=budget_status(await self._admin.set_budget(budget)))

    async def DeleteBudget(
        self, request: ledger_pb2.DeleteBudgetRequest, context: Any
    ) -> ledger_pb2.DeleteBudgetResponse:
        """Delete a budget."""
        check_name(request.tenant_id, "request.tenant_id")
        check_name(request.name, "request.name")
        _operator_of(request.tenant_id, "request.tenant_id")
        deleted = await self._admin.delete_budget(request.tenant_id, request.name)
        return ledger_pb2.DeleteBudgetResponse(deleted=deleted)

    async def AddPrices(self, request: ledger_pb2.AddPricesRequest, context: Any) -> ledger_pb2.AddPricesResponse:
        """Add dated prices."""
        _operator_of(ALL_TENANTS, "identity.tenant_id")
        if not request.prices:
            raise required("request.prices")
        check_count(request.prices, "request.prices")
        rows = []
        for index, message in enumerate(request.prices):
            row = dated_price(message, f"request.prices[{index}]")
            check(row, f"request.prices[{index}]")
            rows.append(row)
        return ledger_pb2.AddPricesResponse(price_book_version=await self._prices.add(rows))

    async def ImportPrices(
        self, request: ledger_pb2.ImportPricesRequest, context: Any
    ) -> ledger_pb2.ImportPricesResponse:
        """Compare a price file with the book, and add what is new."""
        _operator_of(ALL_TENANTS, "identity.tenant_id")
        # A large file takes a while to read: other calls go on meanwhile.
        wanted = await asyncio.to_thread(read_import, request)
        version, plan = await self._prices.import_file(wanted.file, wanted.choice, dry_run=request.dry_run)
        annotate({"tenth.price.row_count": len(plan.lines), "tenth.price.added_count": len(plan.added)})
        return ledger_pb2.ImportPricesResponse(rows=map(import_row, plan.lines), price_book_version=version)

    async def RecordUtilization(
        self, request: ledger_pb2.RecordUtilizationRequest, context: Any
    ) -> ledger_pb2.RecordUtilizationResponse:
        """Record how busy own hardware was."""
        require_reporter()
        check_count(request.nodes, "request.nodes")
        now = self._now_ns()
        rows = [utilization(node, now, f"request.nodes[{index}]") for index, node in enumerate(request.nodes)]
        return ledger_pb2.RecordUtilizationResponse(recorded_count=await self._admin.record_utilization(rows))

    async def ConfirmPrice(
        self, request: ledger_pb2.ConfirmPriceRequest, context: Any
    ) -> ledger_pb2.ConfirmPriceResponse:
        """Vouch for a price."""
        _operator_of(ALL_TENANTS, "identity.tenant_id")
        check_name(request.model, "request.model")
        named = request.HasField("valid_from_time")
        at_ns = instant(request.valid_from_time, "request.valid_from_time") if named else self._now_ns()
        version, row = await self._prices.confirm(request.model, at_ns, current_identity().caller, begins_then=named)
        return ledger_pb2.ConfirmPriceResponse(price=price_message(row), price_book_version=version)

    async def AddExchangeRate(
        self, request: ledger_pb2.AddExchangeRateRequest, context: Any
    ) -> ledger_pb2.AddExchangeRateResponse:
        """Add a dated exchange rate."""
        _operator_of(ALL_TENANTS, "identity.tenant_id")
        await self._prices.rates.add(rate_of(request))
        return ledger_pb2.AddExchangeRateResponse()


def budget_status(position: Position) -> ledger_pb2.BudgetStatus:
    """A budget and where it stands for the wire."""
    budget = position.budget
    status = ledger_pb2.BudgetStatus(
        budget=ledger_pb2.Budget(
            name=budget.name,
            tenant_id=budget.tenant_id,
            user_id=budget.user_id,
            project_id=budget.project_id,
            window=_WIRE_WINDOWS[budget.window],
            time_zone=budget.time_zone,
            limit_nano_usd=budget.limit,
            hard=budget.hard,
            model=budget.model,
            tag_key=budget.tag_key,
            tag_value=budget.tag_value,
            alert_percents=budget.alert_percents,
            alert_url=budget.alert_url,
            ladder=[
                ledger_pb2.LadderRung(step=_WIRE_STEPS[rung.step], from_percent=rung.from_percent)
                for rung in budget.ladder
            ],
        ),
        spent_nano_usd=min(position.spent, MAX_NANO_USD),
        reserved_nano_usd=min(position.reserved, MAX_NANO_USD),
    )
    if budget.rolling_seconds:
        status.budget.rolling.FromSeconds(budget.rolling_seconds)
    status.window_start_time.FromNanoseconds(position.window_start_ns)
    return status


def _budget(message: ledger_pb2.Budget) -> Budget:
    field = "request.budget"
    check_name(message.name, f"{field}.name")
    check_name(message.tenant_id, f"{field}.tenant_id")
    for name in ("user_id", "project_id", "model", "tag_key", "tag_value"):
        check_name(getattr(message, name), f"{field}.{name}", optional=True)
    if message.window not in _WINDOWS:
        raise invalid_argument(f"none of {', '.join(Window)}", field=f"{field}.window")
    if message.rolling.nanos or message.rolling.seconds < 0:
        raise invalid_argument("not a whole number of seconds", field=f"{field}.rolling")
    for index, rung in enumerate(message.ladder):
        if rung.step not in _STEPS:
            raise invalid_argument("not a step", field=f"{field}.ladder[{index}].step")
    budget = Budget(
        name=message.name,
        tenant_id=message.tenant_id,
        limit=message.limit_nano_usd,
        hard=message.hard,
        user_id=message.user_id,
        project_id=message.project_id,
        window=_WINDOWS[message.window],
        time_zone=message.time_zone or "UTC",
        model=message.model,
        tag_key=message.tag_key,
        tag_value=message.tag_value,
        rolling_seconds=message.rolling.seconds,
        alert_percents=tuple(message.alert_percents),
        alert_url=message.alert_url,
        ladder=tuple(Rung(_STEPS[rung.step], rung.from_percent) for rung in message.ladder),
    )
    return check_budget(budget, field)


def check_count(items: Sequence[object], field: str) -> None:
    """Refuse a list that is too long."""
    if len(items) > MOST_ITEMS:
        raise too_many(field, MOST_ITEMS)


def _operator_of(tenant_id: str, field: str) -> None:
    identity = current_identity()
    if not identity.may_see_all_tenants and identity.tenant_id != tenant_id:
        raise cross_tenant(field)
