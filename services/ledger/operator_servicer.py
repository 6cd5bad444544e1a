"""What operators write: switches, budgets and prices, translated between the wire and the books."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from tenth.type.v1 import receipt_pb2

from mesh.auth import current_identity
from mesh.errors import invalid_argument, required
from mesh.wire import price_from_proto, price_to_proto
from services.ledger.admin import Admin
from services.ledger.errors import cross_tenant, too_many
from services.ledger.hardware_rpc import require_reporter, utilization
from services.ledger.policy import ALL_TENANTS, LAYERS, Budget, Position, Window, is_time_zone
from services.ledger.pricebook import PriceBooks
from services.ledger.prices import DatedPrice, check
from services.ledger.receipts import check_name, instant

MOST_ITEMS = 500
"""Most receipts, attempts or prices in one call."""
_WINDOWS = {
    ledger_pb2.BUDGET_WINDOW_DAY: Window.DAY,
    ledger_pb2.BUDGET_WINDOW_MONTH: Window.MONTH,
    ledger_pb2.BUDGET_WINDOW_TOTAL: Window.TOTAL,
}
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

    async def AddPrices(self, request: ledger_pb2.AddPricesRequest, context: Any) -> ledger_pb2.AddPricesResponse:
        """Add dated prices."""
        _operator_of(ALL_TENANTS, "identity.tenant_id")
        if not request.prices:
            raise required("request.prices")
        check_count(request.prices, "request.prices")
        rows = []
        for index, message in enumerate(request.prices):
            row = _dated_price(message, f"request.prices[{index}]")
            check(row, f"request.prices[{index}]")
            rows.append(row)
        return ledger_pb2.AddPricesResponse(price_book_version=await self._prices.add(rows))

    async def RecordUtilization(
        self, request: ledger_pb2.RecordUtilizationRequest, context: Any
    ) -> ledger_pb2.RecordUtilizationResponse:
        """Record how busy own hardware was."""
        require_reporter()
        check_count(request.nodes, "request.nodes")
        now = self._now_ns()
        rows = [utilization(node, now, f"request.nodes[{index}]") for index, node in enumerate(request.nodes)]
        return ledger_pb2.RecordUtilizationResponse(recorded_count=await self._admin.record_utilization(rows))


def price_message(row: DatedPrice) -> receipt_pb2.Price:
    """A dated price for the wire."""
    message = price_to_proto(row.price)
    message.valid_from_time.FromNanoseconds(row.valid_from_ns)
    if row.valid_to_ns is not None:
        message.valid_to_time.FromNanoseconds(row.valid_to_ns)
    message.source = row.source
    message.confirmed_by = row.confirmed_by
    return message


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
        ),
        spent_nano_usd=position.spent,
        reserved_nano_usd=position.reserved,
    )
    status.window_start_time.FromNanoseconds(position.window_start_ns)
    return status


def _budget(message: ledger_pb2.Budget) -> Budget:
    field = "request.budget"
    check_name(message.name, f"{field}.name")
    check_name(message.tenant_id, f"{field}.tenant_id")
    check_name(message.user_id, f"{field}.user_id", optional=True)
    check_name(message.project_id, f"{field}.project_id", optional=True)
    if message.window not in _WINDOWS:
        raise invalid_argument("none of day, month, total", field=f"{field}.window")
    time_zone = message.time_zone or "UTC"
    if not is_time_zone(time_zone):
        raise invalid_argument(f"{time_zone!r} is no IANA time zone", field=f"{field}.time_zone")
    if message.limit_nano_usd < 0:
        raise invalid_argument("negative", field=f"{field}.limit_nano_usd")
    return Budget(
        name=message.name,
        tenant_id=message.tenant_id,
        limit=message.limit_nano_usd,
        hard=message.hard,
        user_id=message.user_id,
        project_id=message.project_id,
        window=_WINDOWS[message.window],
        time_zone=time_zone,
    )


def _dated_price(message: receipt_pb2.Price, field: str) -> DatedPrice:
    check_name(message.model, f"{field}.model")
    return DatedPrice(
        price_from_proto(message),
        valid_from_ns=instant(message.valid_from_time, f"{field}.valid_from_time"),
        source=message.source,
        valid_to_ns=(
            instant(message.valid_to_time, f"{field}.valid_to_time") if message.HasField("valid_to_time") else None
        ),
    )


def check_count(items: Sequence[object], field: str) -> None:
    """Refuse a list that is too long."""
    if len(items) > MOST_ITEMS:
        raise too_many(field, MOST_ITEMS)


def _operator_of(tenant_id: str, field: str) -> None:
    identity = current_identity()
    if not identity.may_see_all_tenants and identity.tenant_id != tenant_id:
        raise cross_tenant(field)
