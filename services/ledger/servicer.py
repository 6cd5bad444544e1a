"""LedgerService: writes, translated between the wire and the books."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import receipt_pb2

from mesh.auth import act_for, current_identity
from mesh.errors import TenthError, invalid_argument
from mesh.receipt import PRICE_UNKNOWN, PriceBook
from mesh.telemetry import annotate
from services.ledger.admin import Admin
from services.ledger.book import Book
from services.ledger.errors import Reason, cross_tenant
from services.ledger.operator_servicer import OperatorServicer, check_count
from services.ledger.policy import NANOS_PER_SECOND, Scope, Verdict
from services.ledger.price_rpc import price_message
from services.ledger.receipts import (
    Settlement,
    attempt_record,
    check_digest,
    check_name,
    check_tags,
    instant,
    settlement,
)
from services.ledger.reserving import Reserve

SPENDERS = frozenset({"orchestrator", "inference"})
"""Services that may name the tenant in what they send: they serve all of them."""
_LONGEST_TTL_SECONDS = 8 * 86_400
"""A batch may take a week, and a day to be finished."""
_ITEM_REASONS = frozenset({Reason.REQUEST_ID_REUSED, PRICE_UNKNOWN, Reason.INVALID_RECEIPT})
_VERDICTS = {
    Verdict.OK: ledger_pb2.RESERVE_DECISION_OK,
    Verdict.DOWNGRADE: ledger_pb2.RESERVE_DECISION_DOWNGRADE,
    Verdict.BATCH: ledger_pb2.RESERVE_DECISION_BATCH,
    Verdict.CACHE_ONLY: ledger_pb2.RESERVE_DECISION_CACHE_ONLY,
    Verdict.REFUSED: ledger_pb2.RESERVE_DECISION_REFUSED,
    Verdict.RATE_LIMITED: ledger_pb2.RESERVE_DECISION_RATE_LIMITED,
}


class LedgerServicer(OperatorServicer):
    """Writes of the request path; those of operators are inherited."""

    def __init__(self, book: Book, admin: Admin, now_ns: Callable[[], int], *, reservation_ttl_seconds: float) -> None:
        super().__init__(admin, book.prices, now_ns)
        self._book = book
        self._ttl_ns = int(reservation_ttl_seconds * NANOS_PER_SECOND)

    async def ReserveFunds(
        self, request: ledger_pb2.ReserveFundsRequest, context: Any
    ) -> ledger_pb2.ReserveFundsResponse:
        """Reserve the worst case of one request."""
        identity = current_identity()
        if not identity.service:
            identity = act_for(request.user_id, request.project_id)
        check_name(request.request_id, "request.request_id")
        check_name(request.model, "request.model")
        check_name(request.user_id, "request.user_id", optional=True)
        check_name(request.project_id, "request.project_id", optional=True)
        for name in ("input_token_count", "max_output_token_count", "price_book_version"):
            if getattr(request, name) < 0:
                raise invalid_argument("negative", field=f"request.{name}")
        wanted = Reserve(
            scope=Scope(
                identity.tenant_id,
                request.user_id,
                request.project_id,
                request.model,
                tuple(sorted(check_tags(request.tags, "request.tags").items())),
            ),
            request_id=request.request_id,
            model=request.model,
            input_tokens=request.input_token_count,
            max_output_tokens=request.max_output_token_count,
            price_book_version=request.price_book_version,
            ttl_ns=self._ttl(request),
            payload_digest=check_digest(request.payload_digest, "request.payload_digest"),
            batch=request.batch,
            tier=request.tier,
            create_ns=instant(request.create_time, "request.create_time") if request.HasField("create_time") else None,
        )
        made = await self._book.reserve(wanted)
        decision = made.decision
        annotate(
            {
                "tenth.request_id": request.request_id,
                "gen_ai.request.model": request.model,
                "tenth.reserve.decision": decision.verdict.value,
                "tenth.reserve.budget": decision.budget_name,
                "tenth.reserved_nano_usd": made.amount,
            }
        )
        response = ledger_pb2.ReserveFundsResponse(
            decision=_VERDICTS[decision.verdict],
            reservation_id=made.reservation_id,
            reserved_nano_usd=made.amount,
            budget_name=decision.budget_name,
            remaining_nano_usd=decision.remaining,
        )
        if decision.retry_after_ns:
            response.retry_after.FromNanoseconds(decision.retry_after_ns)
        return response

    async def ReleaseFunds(
        self, request: ledger_pb2.ReleaseFundsRequest, context: Any
    ) -> ledger_pb2.ReleaseFundsResponse:
        """Give a reservation back."""
        check_name(request.reservation_id, "request.reservation_id")
        await self._book.release(current_identity().tenant_id, request.reservation_id)
        return ledger_pb2.ReleaseFundsResponse()

    async def SettleReceipts(
        self, request: ledger_pb2.SettleReceiptsRequest, context: Any
    ) -> ledger_pb2.SettleReceiptsResponse:
        """Settle receipts, each for itself."""
        check_count(request.receipts, "request.receipts")
        books = await self._books(request.receipts)
        outcomes: list[Settlement | TenthError] = []
        for index, receipt in enumerate(request.receipts):
            outcomes.append(self._settlement(receipt, books, f"request.receipts[{index}]"))
        good = [each for each in outcomes if isinstance(each, Settlement)]
        settled = iter(await self._book.settle(good))
        errors = [next(settled) if isinstance(each, Settlement) else each for each in outcomes]
        refused = sum(each is not None for each in errors)
        annotate(
            {
                "tenth.receipt.count": len(outcomes),
                "tenth.receipt.refused_count": refused,
                "tenth.actual_nano_usd": sum(each.actual for each in good),
            }
        )
        return ledger_pb2.SettleReceiptsResponse(
            results=[
                _result(receipt.facts.request_id, error)
                for receipt, error in zip(request.receipts, errors, strict=True)
            ]
        )

    async def RecordAttempts(
        self, request: ledger_pb2.RecordAttemptsRequest, context: Any
    ) -> ledger_pb2.RecordAttemptsResponse:
        """Record what inference did."""
        check_count(request.events, "request.events")
        records = []
        for index, event in enumerate(request.events):
            records.append(attempt_record(event, f"request.events[{index}]"))
            if not _may_spend_for(event.tenant_id):
                raise cross_tenant(f"request.events[{index}].tenant_id")
        count = await self._book.record(records)
        annotate({"tenth.attempt.count": len(records), "tenth.attempt.new_count": count})
        return ledger_pb2.RecordAttemptsResponse(recorded_count=count)

    async def GetAdmissionSnapshot(
        self, request: ledger_pb2.GetAdmissionSnapshotRequest, context: Any
    ) -> ledger_pb2.GetAdmissionSnapshotResponse:
        """Give what admission needs, unless the caller has it."""
        snapshot = await self._admin.snapshot(request.version)
        if snapshot is None:
            return ledger_pb2.GetAdmissionSnapshotResponse(unchanged=True, version=request.version)
        return ledger_pb2.GetAdmissionSnapshotResponse(
            version=snapshot.version,
            price_book_version=snapshot.price_book_version,
            prices=[price_message(row) for row in snapshot.prices],
            tenants=[
                ledger_pb2.TenantPolicy(
                    tenant_id=each.tenant.tenant_id,
                    has_hard_budget=each.has_hard_budget,
                    baseline_model=each.tenant.baseline_model,
                    disabled_layers=each.disabled_layers,
                    max_requests_per_minute=each.tenant.max_requests_per_minute,
                    max_tokens_per_minute=each.tenant.max_tokens_per_minute,
                    control_share=each.tenant.control_share,
                )
                for each in snapshot.policies
            ],
        )

    def _ttl(self, request: ledger_pb2.ReserveFundsRequest) -> int:
        if not request.HasField("ttl"):
            return self._ttl_ns
        seconds = request.ttl.seconds + request.ttl.nanos / 1e9
        if not 0 < seconds <= _LONGEST_TTL_SECONDS:
            raise invalid_argument(f"not within 0..{_LONGEST_TTL_SECONDS} seconds", field="request.ttl")
        return int(seconds * NANOS_PER_SECOND)

    async def _books(
        self, receipts: Sequence[receipt_pb2.Receipt]
    ) -> dict[int, Callable[[int], PriceBook] | TenthError]:
        books: dict[int, Callable[[int], PriceBook] | TenthError] = {}
        for version in {each.facts.price_book_version for each in receipts}:
            try:
                books[version] = await self._book.prices.reader(version)
            except TenthError as error:
                if error.reason != Reason.UNKNOWN_PRICE_BOOK_VERSION:
                    raise
                books[version] = error
        return books

    def _settlement(
        self,
        receipt: receipt_pb2.Receipt,
        books: dict[int, Callable[[int], PriceBook] | TenthError],
        field: str,
    ) -> Settlement | TenthError:
        book = books[receipt.facts.price_book_version]
        if isinstance(book, TenthError):
            return invalid_argument(
                book.message, field=f"{field}.facts.price_book_version", reason=Reason.INVALID_RECEIPT
            )
        if not _may_spend_for(receipt.facts.tenant_id):
            return invalid_argument(
                "the caller may settle for its own tenant only",
                field=f"{field}.facts.tenant_id",
                reason=Reason.INVALID_RECEIPT,
            )
        try:
            return settlement(receipt, book, self._now_ns(), field)
        except TenthError as error:
            if error.reason not in _ITEM_REASONS:
                raise
            return error


def _may_spend_for(tenant_id: str) -> bool:
    identity = current_identity()
    return identity.service in SPENDERS or identity.tenant_id == tenant_id


def _result(request_id: str, error: TenthError | None) -> ledger_pb2.SettleResult:
    if error is None:
        return ledger_pb2.SettleResult(request_id=request_id)
    message = f"{error.field}: {error.message}" if error.field else error.message
    return ledger_pb2.SettleResult(request_id=request_id, error_reason=error.reason, error_message=message)
