"""Settlements: computed again, idempotent, each for itself, on both stores."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import select
from tenth.type.v1 import receipt_pb2

from mesh.errors import TenthError
from mesh.wire import build_receipt
from services.ledger.receipts import settlement
from services.ledger.seeds import parse_prices
from services.ledger.tables import receipt_events
from tests.integration.ledger.ledger_books import Books

ACTUAL = 1_710_000
"""700 plain, 100 cached and 500 output tokens on the small model."""


async def events(books: Books) -> list[tuple[str, int]]:
    """Kinds and amounts of the receipt events, in order."""
    query = select(receipt_events.c.kind, receipt_events.c.actual_delta).order_by(receipt_events.c.id)
    async with books.store.read() as connection:
        return [(row.kind, row.actual_delta) for row in await connection.execute(query)]


async def test_a_settlement_moves_the_reserved_to_the_spent(books: Books) -> None:
    await books.budget(10**9)
    made = await books.book.reserve(books.wanted("r"))
    receipt = await books.receipt("r", reservation_id=made.reservation_id)
    assert await books.settle(receipt) == [""]
    position = await books.position()
    assert (position.spent, position.reserved) == (ACTUAL, 0)
    stored = await books.stored("r")
    assert stored.state == receipt_pb2.RECEIPT_STATE_FINAL
    assert stored.actual_nano_usd == ACTUAL
    assert stored.facts == receipt.facts
    assert (await books.reports.status()).open_reservation_count == 0


async def test_again_is_accepted_and_changes_nothing_and_another_is_refused(books: Books) -> None:
    await books.budget(10**9)
    receipt = await books.receipt("r")
    assert await books.settle(receipt) == [""]
    assert await books.settle(receipt, receipt) == ["", ""]
    assert await books.settle(await books.receipt("r", trace_id="0" * 32)) == ["REQUEST_ID_REUSED"]
    assert (await books.position()).spent == ACTUAL
    assert await events(books) == [("settled", ACTUAL)]


async def test_a_bad_one_in_a_batch_does_not_block_the_others(books: Books) -> None:
    first, second = await books.receipt("a"), await books.receipt("b")
    other = await books.receipt("a", model="big")
    assert await books.settle(first, other, second, first) == ["", "REQUEST_ID_REUSED", "", ""]
    assert (await books.reports.status()).receipt_count == 2


async def test_a_hit_costs_nothing_and_a_failure_has_no_baseline(books: Books) -> None:
    hit = await books.receipt("hit", cache_hit=True, cache_hit_kind="exact")
    failed = books.facts("failed", failed=True)
    failed.overheads.add(kind="failed_attempt", model="small", attempt=1).usage.input_token_count = 1000
    book = await books.prices.at(1, books.clock.now)
    assert await books.settle(hit, build_receipt(failed, book, receipt_pb2.RECEIPT_STATE_PENDING)) == ["", ""]
    assert (await books.stored("hit")).actual_nano_usd == 0
    stored = await books.stored("failed")
    assert (stored.baseline_nano_usd, stored.overhead_nano_usd, stored.actual_nano_usd) == (0, 1_000_000, 1_000_000)


async def test_old_versions_compute_as_they_did(books: Books) -> None:
    receipt = await books.receipt("old")
    row = '{model: small, valid_from: 2026-01-01, input: "9", output: "9", source: later}'
    assert await books.prices.add(parse_prices(f"prices: [{row}]")) == 2
    assert await books.settle(receipt) == [""]
    assert await books.settle(await books.receipt("new", price_book_version=2)) == [""]
    assert (await books.stored("old")).actual_nano_usd == ACTUAL
    assert (await books.stored("new")).actual_nano_usd == 1300 * 9_000


async def test_a_month_counts_what_was_spent_before_its_budget_was_set(books: Books) -> None:
    await books.settle(await books.receipt(user_id="ann"), await books.receipt(user_id="bob"))
    await books.book.reserve(books.wanted())
    assert (await books.budget(10**9, window="month")).spent == 2 * ACTUAL
    assert (await books.position()).reserved == 3_000_000
    # The same name with another scope counts other requests.
    assert (await books.budget(10**9, window="month", user_id="ann")).spent == ACTUAL
    await books.settle(await books.receipt(user_id="ann"), await books.receipt(user_id="bob"))
    assert (await books.position()).spent == 2 * ACTUAL


async def test_concurrent_settlements_sum_exactly(books: Books) -> None:
    await books.budget(10**9)
    receipts = [await books.receipt() for _ in range(100)]
    batches = [
        await asyncio.gather(*(books.settlement(each) for each in receipts[at : at + 10])) for at in range(0, 100, 5)
    ]
    # Every receipt is in two overlapping batches, and all are under way at once.
    results = await asyncio.gather(*(books.book.settle(batch) for batch in batches))
    assert all(error is None for batch in results for error in batch)
    assert (await books.position()).spent == 100 * ACTUAL
    status = await books.reports.status()
    assert (status.receipt_count, status.identity_violation_count) == (100, 0)


async def test_a_write_that_breaks_takes_no_other_with_it(books: Books) -> None:
    def broken(_: object) -> None:
        raise RuntimeError("a defect")

    wanted = [books.book.reserve(books.wanted()) for _ in range(5)]
    results = await asyncio.gather(*wanted, books.store.write(broken), return_exceptions=True)
    assert isinstance(results.pop(), RuntimeError)
    assert not any(isinstance(each, BaseException) for each in results)
    assert (await books.reports.status()).open_reservation_count == 5


async def test_a_closed_store_takes_no_write(books: Books) -> None:
    books.store.close()
    with pytest.raises(TenthError, match="STORE_UNAVAILABLE"):
        await books.book.reserve(books.wanted())


async def test_the_ledgers_own_computation_decides(books: Books) -> None:
    receipt = await books.receipt("r")
    receipt.actual_nano_usd -= 1
    reader = await books.prices.reader(1)
    with pytest.raises(TenthError, match="INVALID_RECEIPT") as caught:
        settlement(receipt, reader, books.clock.now, "request.receipts[0]")
    assert caught.value.field == "request.receipts[0].actual_nano_usd"


async def test_ids_are_the_tenants_own(books: Books) -> None:
    mine, theirs = await books.receipt("r"), await books.receipt("r", tenant_id="umbrella", model="big")
    assert await books.settle(mine, theirs) == ["", ""]
    assert await books.reports.receipt("r", "nobody", any_tenant=False) is None
    blob = await books.reports.receipt("r", "umbrella", any_tenant=True)
    assert blob is not None
    assert receipt_pb2.Receipt.FromString(blob).facts.tenant_id == "umbrella"
