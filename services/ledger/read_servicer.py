"""LedgerReadService: reads for finance, translated between the wire and the books."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Collection
from typing import Any

from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from tenth.type.v1 import receipt_pb2

from mesh.auth import current_identity
from mesh.errors import Code, TenthError, invalid_argument
from mesh.receipt import Layer
from services.ledger import breakeven, hardware_rpc
from services.ledger.admin import Admin
from services.ledger.errors import Reason, cross_tenant
from services.ledger.hardware import hour_prices, idle_cost
from services.ledger.measured import check_confidence, measure
from services.ledger.operator_servicer import budget_status
from services.ledger.price_rpc import price_message, rate_message
from services.ledger.pricebook import PriceBooks
from services.ledger.receipts import check_name, instant
from services.ledger.report import Filter, Reports, SpendRow
from services.ledger.tables import SAVINGS

_DEFAULT_PAGE = 100
_LARGEST_PAGE = 1000


class LedgerReadServicer(ledger_pb2_grpc.LedgerReadServiceServicer):
    """Reads of the ledger. Callers without the right to see all tenants see their own."""

    def __init__(
        self,
        reports: Reports,
        admin: Admin,
        prices: PriceBooks,
        now_ns: Callable[[], int],
        *,
        self_hosted: Callable[[], Collection[str]] = frozenset,
    ) -> None:
        """``self_hosted`` names the models that own hardware serves, which have no API price."""
        self._reports = reports
        self._admin = admin
        self._prices = prices
        self._now_ns = now_ns
        self._self_hosted = self_hosted

    async def GetReceipt(self, request: ledger_pb2.GetReceiptRequest, context: Any) -> ledger_pb2.GetReceiptResponse:
        """Give one receipt."""
        check_name(request.request_id, "request.request_id")
        identity = current_identity()
        blob = await self._reports.receipt(
            request.request_id,
            identity.tenant_id,
            any_tenant=identity.may_see_all_tenants or bool(identity.service),
        )
        if blob is None:
            raise TenthError(
                Code.NOT_FOUND,
                Reason.RECEIPT_NOT_FOUND,
                f"no receipt of {request.request_id!r} (yet)",
                "request.request_id",
            )
        return ledger_pb2.GetReceiptResponse(receipt=receipt_pb2.Receipt.FromString(blob))

    async def ListReceipts(
        self, request: ledger_pb2.ListReceiptsRequest, context: Any
    ) -> ledger_pb2.ListReceiptsResponse:
        """Give a page of receipts."""
        if not 0 <= request.page_size <= _LARGEST_PAGE:
            raise invalid_argument(f"not within 0..{_LARGEST_PAGE}", field="request.page_size")
        blobs, token = await self._reports.receipts(
            _filter(request.filter), request.page_size or _DEFAULT_PAGE, request.page_token
        )
        return ledger_pb2.ListReceiptsResponse(
            receipts=[receipt_pb2.Receipt.FromString(blob) for blob in blobs], next_page_token=token
        )

    async def StreamReceipts(
        self, request: ledger_pb2.StreamReceiptsRequest, context: Any
    ) -> AsyncIterator[ledger_pb2.StreamReceiptsResponse]:
        """Give every receipt, oldest first."""
        async for blobs in self._reports.stream(_filter(request.filter)):
            yield ledger_pb2.StreamReceiptsResponse(receipts=[receipt_pb2.Receipt.FromString(blob) for blob in blobs])

    async def GetSpendReport(
        self, request: ledger_pb2.GetSpendReportRequest, context: Any
    ) -> ledger_pb2.GetSpendReportResponse:
        """Give sums by group."""
        check_name(request.time_zone, "request.time_zone", optional=True)
        for index, name in enumerate(request.group_by):
            check_name(name, f"request.group_by[{index}]")
        rows, models = await self._reports.spend(
            _filter(request.filter), list(request.group_by), request.time_zone, request.currency
        )
        return ledger_pb2.GetSpendReportResponse(rows=[_spend_row(row) for row in rows], baseline_models=models)

    async def ListBudgets(self, request: ledger_pb2.ListBudgetsRequest, context: Any) -> ledger_pb2.ListBudgetsResponse:
        """Give a tenant's budgets."""
        check_name(request.tenant_id, "request.tenant_id", optional=True)
        tenant_id = _visible(request.tenant_id, "request.tenant_id") or current_identity().tenant_id
        return ledger_pb2.ListBudgetsResponse(
            budgets=[budget_status(position) for position in await self._admin.budgets(tenant_id)]
        )

    async def ListPrices(self, request: ledger_pb2.ListPricesRequest, context: Any) -> ledger_pb2.ListPricesResponse:
        """Give the prices that hold at a time."""
        at_ns = instant(request.at_time, "request.at_time") if request.HasField("at_time") else self._now_ns()
        number, version = await self._prices.current()
        return ledger_pb2.ListPricesResponse(
            prices=[price_message(row) for row in version if row.holds_at(at_ns) and request.model in ("", row.model)],
            price_book_version=number,
        )

    async def ListExchangeRates(
        self, request: ledger_pb2.ListExchangeRatesRequest, context: Any
    ) -> ledger_pb2.ListExchangeRatesResponse:
        """Give the dated exchange rates."""
        check_name(request.currency, "request.currency", optional=True)
        rates = await self._prices.rates.list(request.currency)
        return ledger_pb2.ListExchangeRatesResponse(rates=map(rate_message, rates))

    async def PlanBreakEven(
        self, request: ledger_pb2.PlanBreakEvenRequest, context: Any
    ) -> ledger_pb2.PlanBreakEvenResponse:
        """Compare own hardware with the API prices that hold now."""
        machine, average = hardware_rpc.machine(request)
        breakeven.check(machine, average)
        now = self._now_ns()
        _, rows = await self._prices.current()
        hour = hour_prices(rows)(machine.hardware, now)
        plan = breakeven.plan(machine, average, rows.at(now), hour, self._self_hosted())
        return hardware_rpc.plan_response(plan)

    async def GetIdleCost(self, request: ledger_pb2.GetIdleCostRequest, context: Any) -> ledger_pb2.GetIdleCostResponse:
        """Give what own hardware cost while it was idle."""
        hardware_rpc.require_operator()
        start, end = hardware_rpc.idle_window(request, self._now_ns())
        _, prices = await self._prices.current()
        rows = await self._reports.utilization(start, end)
        return hardware_rpc.idle_response(idle_cost(rows, start, end, hour_prices(prices)))

    async def GetMeasuredSavings(
        self, request: ledger_pb2.GetMeasuredSavingsRequest, context: Any
    ) -> ledger_pb2.GetMeasuredSavingsResponse:
        """Compare the control share with the others."""
        confidence = check_confidence(request.confidence, "request.confidence")
        sides = await self._reports.sides(_filter(request.filter))
        return hardware_rpc.measured_response(measure(*sides, confidence))

    async def GetBooksStatus(
        self, request: ledger_pb2.GetBooksStatusRequest, context: Any
    ) -> ledger_pb2.GetBooksStatusResponse:
        """Give the books' health."""
        status = await self._reports.status()
        return ledger_pb2.GetBooksStatusResponse(
            open_reservation_count=status.open_reservation_count,
            open_reserved_nano_usd=status.open_reserved,
            unreceipted_request_count=status.unreceipted_request_count,
            identity_violation_count=status.identity_violation_count,
            receipt_count=status.receipt_count,
            attempt_count=status.attempt_count,
        )


def _filter(message: ledger_pb2.ReceiptFilter) -> Filter:
    field = "request.filter"
    for name in ("tenant_id", "user_id", "project_id", "model", "tag_key", "tag_value"):
        check_name(getattr(message, name), f"{field}.{name}", optional=True)
    start = instant(message.start_time, f"{field}.start_time") if message.HasField("start_time") else None
    end = instant(message.end_time, f"{field}.end_time") if message.HasField("end_time") else None
    if start is not None and end is not None and end < start:
        raise invalid_argument("before start_time", field=f"{field}.end_time")
    if message.tag_value and not message.tag_key:
        raise invalid_argument("a tag's value without its key", field=f"{field}.tag_value")
    return Filter(
        start_ns=start,
        end_ns=end,
        tenant_id=_visible(message.tenant_id, f"{field}.tenant_id"),
        user_id=message.user_id,
        project_id=message.project_id,
        model=message.model,
        tag_key=message.tag_key,
        tag_value=message.tag_value,
    )


def _visible(tenant_id: str, field: str) -> str:
    """The tenant to narrow to: the one asked for, or the caller's own; empty for all where the caller may."""
    identity = current_identity()
    if identity.may_see_all_tenants or tenant_id == identity.tenant_id:
        return tenant_id
    if tenant_id:
        raise cross_tenant(field)
    return identity.tenant_id


def _spend_row(row: SpendRow) -> ledger_pb2.SpendRow:
    amounts = row.amounts
    return ledger_pb2.SpendRow(
        group=row.group,
        request_count=row.request_count,
        failed_count=row.failed_count,
        cache_hit_count=row.cache_hit_count,
        shadow_count=row.shadow_count,
        baseline_nano_usd=amounts["baseline"],
        savings=[
            receipt_pb2.LayerSaving(layer=receipt_pb2.Layer.ValueType(layer.value), saving_nano_usd=amounts[name])
            for layer, name in zip(Layer, SAVINGS, strict=True)
        ],
        overhead_nano_usd=amounts["overhead"],
        actual_nano_usd=amounts["actual"],
        input_token_count=amounts["input_tokens"],
        output_token_count=amounts["output_tokens"],
        baseline_prompt_cached_nano_usd=amounts["baseline_prompt_cached"],
        actual_in_currency=row.actual_in_currency,
        baseline_in_currency=row.baseline_in_currency,
    )
