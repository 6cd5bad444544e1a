"""Books for tests: prices in round figures, two tenants, a clock that stands until it is moved."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import receipt_pb2, usage_pb2

from mesh.wire import build_receipt
from services.ledger.admin import Admin, Tenant
from services.ledger.book import Book
from services.ledger.policy import Budget, Position, Scope, Window
from services.ledger.pricebook import PriceBooks
from services.ledger.receipts import Settlement, attempt_record, settlement
from services.ledger.reconcile import Sweeper
from services.ledger.report import Reports
from services.ledger.reserving import Reserve
from services.ledger.seeds import parse_prices
from services.ledger.store import Store, open_store

SECOND = 10**9
START_NS = int(datetime(2026, 6, 15, 12, tzinfo=UTC).timestamp()) * SECOND
PRICES = """
prices:
  - {model: big, valid_from: 2025-01-01, input: "10", output: "50", cached_input: "1", source: test}
  - {model: small, valid_from: 2025-01-01, input: "1", output: "2", cached_input: "0.1", batch_input: "0.5",
     batch_output: "1", source: test}
  - {model: cpu, valid_from: 2025-01-01, cpu_hour: "0.04", source: test}
"""


@dataclass
class Clock:
    """A clock that stands."""

    now: int = START_NS

    def __call__(self) -> int:
        """The time, nanoseconds."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Move on."""
        self.now += int(seconds * SECOND)


@dataclass
class Books:
    """Every part of the ledger on one store."""

    url: str
    store: Store
    prices: PriceBooks
    admin: Admin
    book: Book
    sweeper: Sweeper
    reports: Reports
    clock: Clock

    async def budget(self, limit: int, *, name: str = "all", hard: bool = True, **scope: Any) -> Position:
        """Set a budget of acme, in total unless ``window`` says otherwise."""
        window = Window(scope.pop("window", "total"))
        return await self.admin.set_budget(Budget(name, "acme", limit, hard, window=window, **scope))

    async def position(self, name: str = "all") -> Position:
        """Where a budget of acme stands."""
        return next(each for each in await self.admin.budgets("acme") if each.budget.name == name)

    def wanted(self, request_id: str = "", **changes: object) -> Reserve:
        """A reservation of 1,000 input and 1,000 output tokens on the small model: 3,000,000 nano-USD."""
        values: dict[str, object] = {
            "scope": Scope("acme", "", ""),
            "request_id": request_id or uuid.uuid4().hex,
            "model": "small",
            "input_tokens": 1000,
            "max_output_tokens": 1000,
            "price_book_version": 1,
            "ttl_ns": 60 * SECOND,
        }
        return Reserve(**{**values, **changes})  # type: ignore[arg-type]  # Values of one test, not of an API.

    async def receipt(self, request_id: str = "", **changes: object) -> receipt_pb2.Receipt:
        """A receipt as the orchestrator sends it: 800 input and 500 output tokens on the small model."""
        facts = self.facts(request_id, **changes)
        book = await self.prices.at(facts.price_book_version, facts.create_time.ToNanoseconds())
        return build_receipt(facts, book, receipt_pb2.RECEIPT_STATE_PENDING)

    def facts(self, request_id: str = "", **changes: object) -> receipt_pb2.ReceiptFacts:
        """The facts of such a receipt."""
        facts = receipt_pb2.ReceiptFacts(
            request_id=request_id or uuid.uuid4().hex,
            tenant_id="acme",
            price_book_version=1,
            baseline_model="big",
            baseline_input_token_count=1000,
            model="small",
            original_input_token_count=1000,
            usage=usage_pb2.Usage(input_token_count=800, cached_input_token_count=100, output_token_count=500),
            attempt=1,
            tier=1,  # type: ignore[arg-type]  # Tier SIMPLE by number.
        )
        facts.create_time.FromNanoseconds(self.clock.now)
        for name, value in changes.items():
            if isinstance(value, int | str | bool):
                setattr(facts, name, value)
            else:
                getattr(facts, name).CopyFrom(value)
        return facts

    async def settlement(self, receipt: receipt_pb2.Receipt) -> Settlement:
        """A receipt as the servicer hands it to the books."""
        return settlement(receipt, await self.prices.reader(receipt.facts.price_book_version), self.clock.now)

    async def settle(self, *receipts: receipt_pb2.Receipt) -> list[str]:
        """Settle; the error reason of each, empty when it is settled."""
        results = await self.book.settle([await self.settlement(each) for each in receipts])
        return ["" if error is None else error.reason for error in results]

    async def record(self, *events: ledger_pb2.AttemptEvent) -> int:
        """Record attempts."""
        return await self.book.record([attempt_record(each, "event") for each in events])

    def attempt(
        self, request_id: str, kind: ledger_pb2.AttemptKind.ValueType, attempt: int = 1, **changes: Any
    ) -> ledger_pb2.AttemptEvent:
        """A record of an attempt on the small model: 800 input, 500 output tokens."""
        event = ledger_pb2.AttemptEvent(
            request_id=request_id,
            attempt=attempt,
            kind=kind,
            tenant_id="acme",
            model="small",
            usage=usage_pb2.Usage(input_token_count=800, output_token_count=500),
            price_book_version=1,
            purpose="answer",
        )
        event.event_time.FromNanoseconds(self.clock.now)
        for name, value in changes.items():
            if isinstance(value, int | str | bool):
                setattr(event, name, value)
            else:
                getattr(event, name).CopyFrom(value)
        return event

    async def stored(self, request_id: str) -> receipt_pb2.Receipt:
        """The visible receipt of a request."""
        blob = await self.reports.receipt(request_id, "acme", any_tenant=False)
        assert blob is not None
        return receipt_pb2.Receipt.FromString(blob)


@asynccontextmanager
async def open_books(url: str, clock: Clock | None = None) -> AsyncIterator[Books]:
    """Open and seed a migrated database."""
    clock = clock or Clock()
    async with open_store(url, read_connection_count=4) as store:
        prices = PriceBooks(store)
        admin = Admin(store, prices, clock)
        book = Book(store, prices, clock, lambda: uuid.uuid4().hex)
        await prices.add(parse_prices(PRICES), only_absent=True)
        await admin.seed_tenants([(Tenant("acme", "big", 60), []), (Tenant("umbrella", "big"), [])])
        sweeper = Sweeper(book, attempt_ttl_seconds=600, unfinished_grace_seconds=900)
        yield Books(url, store, prices, admin, book, sweeper, Reports(store), clock)
