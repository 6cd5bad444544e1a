"""The sweeper: no spend is lost, none counts twice, no reservation stays open, on both stores."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import select
from tenth.ledger.v1 import ledger_pb2

from services.ledger.receipts import MADE_HERE
from services.ledger.reconcile import Swept
from services.ledger.report import Filter
from services.ledger.seeds import parse_prices
from services.ledger.tables import receipt_events
from tests.integration.ledger.ledger_books import Books

STARTED = ledger_pb2.ATTEMPT_KIND_STARTED
FINISHED = ledger_pb2.ATTEMPT_KIND_FINISHED
FAILED = ledger_pb2.ATTEMPT_KIND_FAILED
CANCELLED = ledger_pb2.ATTEMPT_KIND_CANCELLED
SPENT = 1_800_000
"""800 input and 500 output tokens on the small model."""


async def test_a_reservation_that_nothing_came_of_is_released_at_its_end(books: Books) -> None:
    await books.budget(10**9)
    await books.book.reserve(books.wanted())
    assert await books.sweeper.sweep() == Swept()
    books.clock.advance(61)
    assert await books.sweeper.sweep() == Swept(released=1)
    assert (await books.position()).reserved == 0
    assert (await books.reports.status()).receipt_count == 0


async def test_attempts_without_a_receipt_become_a_failed_one(books: Books) -> None:
    await books.budget(10**9)
    made = await books.book.reserve(books.wanted("r"))
    held: dict[str, Any] = {"reservation_id": made.reservation_id}
    await books.record(books.attempt("r", STARTED, **held), books.attempt("r", FAILED, **held))
    await books.record(books.attempt("r", STARTED, 2, **held), books.attempt("r", CANCELLED, 2, **held))
    await books.record(books.attempt("r", FINISHED, 1001, purpose="classifier"))
    assert (await books.reports.status()).unreceipted_request_count == 1
    books.clock.advance(61)
    assert await books.sweeper.sweep() == Swept(released=1, reconciled=1)
    receipt = await books.stored("r")
    assert receipt.facts.failed
    assert receipt.facts.tags[MADE_HERE] == "true"
    assert [item.kind for item in receipt.facts.overheads] == ["failed_attempt", "cancelled_attempt", "classifier"]
    assert (receipt.baseline_nano_usd, receipt.actual_nano_usd) == (0, 3 * SPENT)
    position = await books.position()
    assert (position.spent, position.reserved) == (3 * SPENT, 0)
    status = await books.reports.status()
    assert (status.open_reservation_count, status.unreceipted_request_count, status.attempt_count) == (0, 0, 3)
    books.clock.advance(10_000)
    assert await books.sweeper.sweep() == Swept()


async def test_an_attempt_that_never_ended_counts_with_its_worst_case_after_a_grace_period(books: Books) -> None:
    await books.book.reserve(books.wanted("r"))
    await books.record(books.attempt("r", STARTED))
    books.clock.advance(61)
    assert await books.sweeper.sweep() == Swept()
    assert (await books.reports.status()).open_reservation_count == 1
    books.clock.advance(900)
    assert await books.sweeper.sweep() == Swept(released=1, reconciled=1)
    item = (await books.stored("r")).facts.overheads[0]
    assert item.usage.estimated
    assert item.cost_nano_usd == SPENT


async def test_attempts_without_any_reservation_are_reconciled_when_they_are_quiet(books: Books) -> None:
    await books.budget(10**9)
    await books.record(books.attempt("r", STARTED), books.attempt("r", FINISHED))
    books.clock.advance(599)
    assert await books.sweeper.sweep() == Swept()
    books.clock.advance(2)
    assert await books.sweeper.sweep() == Swept(reconciled=1)
    assert (await books.position()).spent == SPENT


async def test_the_orchestrators_receipt_takes_the_place_of_the_ledgers_and_counts_once(books: Books) -> None:
    await books.budget(10**9)
    await books.record(books.attempt("r", FINISHED))
    books.clock.advance(601)
    await books.sweeper.sweep()
    receipt = await books.receipt("r", user_id="ann")
    assert await books.settle(receipt) == [""]
    assert await books.settle(receipt) == [""]
    assert not (await books.stored("r")).facts.failed
    assert (await books.position()).spent == receipt.actual_nano_usd
    query = select(receipt_events.c.kind, receipt_events.c.actual_delta).order_by(receipt_events.c.id)
    async with books.store.read() as connection:
        kinds = [tuple(row) for row in await connection.execute(query)]
    assert kinds == [("reconciled", SPENT), ("corrected", receipt.actual_nano_usd - SPENT)]
    rows, _ = await books.reports.spend(Filter(), [])
    assert (rows[0].request_count, rows[0].amounts["actual"]) == (1, receipt.actual_nano_usd)


async def test_a_late_attempt_is_added_to_the_ledgers_receipt_and_not_to_the_orchestrators(books: Books) -> None:
    await books.budget(10**9)
    await books.record(books.attempt("r", FAILED))
    await books.settle(await books.receipt("s"))
    spent = (await books.position()).spent
    books.clock.advance(601)
    await books.sweeper.sweep()
    await books.record(books.attempt("r", FINISHED, 2), books.attempt("s", FINISHED))
    assert (await books.reports.status()).unreceipted_request_count == 1
    books.clock.advance(601)
    assert await books.sweeper.sweep() == Swept(reconciled=1)
    assert (await books.position()).spent == spent + 2 * SPENT
    assert len((await books.stored("r")).facts.overheads) == 2


async def test_records_are_added_once(books: Books) -> None:
    event = books.attempt("r", FINISHED)
    assert await books.record(event, event) == 1
    assert await books.record(event, books.attempt("r", FINISHED, 2)) == 1


@pytest.mark.parametrize("version", [1, 99])
async def test_without_a_price_the_request_waits_for_one_and_its_reservation_does_not(
    books: Books, version: int
) -> None:
    await books.book.reserve(books.wanted("r"))
    await books.record(books.attempt("r", FINISHED, model="unpriced", price_book_version=version))
    books.clock.advance(601)
    assert await books.sweeper.sweep() == Swept(released=1)
    status = await books.reports.status()
    assert (status.open_reservation_count, status.unreceipted_request_count) == (0, 1)
    row = '{model: unpriced, valid_from: 2025-01-01, input: "1", output: "2", source: late}'
    await books.prices.add(parse_prices(f"prices: [{row}]"))
    books.clock.advance(601)
    assert await books.sweeper.sweep() == Swept(reconciled=1)
    assert (await books.stored("r")).actual_nano_usd == SPENT


async def test_a_settled_request_leaves_nothing_to_reconcile(books: Books) -> None:
    await books.book.reserve(books.wanted("r"))
    await books.record(books.attempt("r", STARTED), books.attempt("r", FINISHED))
    await books.settle(await books.receipt("r"))
    books.clock.advance(10_000)
    assert await books.sweeper.sweep() == Swept()
    assert (await books.reports.status()).unreceipted_request_count == 0
