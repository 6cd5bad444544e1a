"""Retention: what is past its time goes, its sums stay, and nothing goes that is not proven."""

from __future__ import annotations

import random
from typing import Any

import pytest
from sqlalchemy import Table, func, insert, select, update
from tenth.ledger.v1 import ledger_pb2

from mesh.errors import TenthError
from services.ledger.grains import DAY
from services.ledger.report import Filter
from services.ledger.retention import Pruned, Retention
from services.ledger.rollup_check import check_rollups
from services.ledger.rollups import Roller, rebuild, restart
from services.ledger.tables import attempts, rate_minutes, receipt_events, receipts, reservations, rollups
from tests.integration.ledger.ledger_books import SECOND, Books

HOUR = 3600 * SECOND


async def fill(books: Books) -> None:
    """Receipts and attempts over 20 days up to now."""
    chance = random.Random(1)  # Of a test.
    for index in range(40):
        books.clock.advance(43_200)
        name = f"r{index}"
        await books.record(
            books.attempt(name, ledger_pb2.ATTEMPT_KIND_STARTED), books.attempt(name, ledger_pb2.ATTEMPT_KIND_FINISHED)
        )
        user = chance.choice(("ann", "bob"))
        assert await books.settle(await books.receipt(name, user_id=user, payload_digest="ef" * 32)) == [""]
        if index % 7 == 0:
            books.clock.advance(1)
            again = await books.receipt(name, user_id="eve", payload_digest="ef" * 32)
            assert await books.settle(again) == [""]


async def count(books: Books, table: Table) -> int:
    """Rows."""
    async with books.store.read() as connection:
        return (await connection.execute(select(func.count()).select_from(table))).scalar_one()


def retention(books: Books, days: float = 10, reservation_days: float = 0) -> Retention:
    """Retention by the test's clock."""
    return Retention(books.store, books.clock, receipt_days=days, reservation_days=reservation_days)


REPORTS: list[tuple[list[str], str]] = [
    ([], ""),
    (["day", "model"], "Asia/Seoul"),
    (["month", "user"], ""),
    (["week", "baseline"], "UTC"),
    (["hour"], ""),
]


async def reports(books: Books) -> list[Any]:
    """Reports that rollups answer."""
    return [await books.reports.spend(Filter(), *each) for each in REPORTS]


async def test_sums_stay_when_receipts_go(books: Books) -> None:
    await fill(books)
    before, status = await reports(books), await books.reports.status()
    assert await retention(books).prune() == Pruned()  # Nothing is rolled in yet.
    await Roller(books.store).catch_up()
    assert (await retention(books).prune()).receipts == 19
    assert await count(books, receipts) == 21
    assert await count(books, attempts) == 42
    async with books.store.read() as connection:
        left = await connection.execute(select(receipt_events.c.request_id).distinct())
        assert set(left.scalars()) == {f"r{index}" for index in range(19, 40)}
    assert await reports(books) == before
    assert await books.reports.status() == status
    assert await check_rollups(books.store) == []
    assert await retention(books).prune() == Pruned()
    stored = await all_rollups(books)
    await rebuild(books.store)
    assert await all_rollups(books) == stored
    assert await reports(books) == before
    assert await books.reports.status() == status


async def all_rollups(books: Books) -> list[tuple[Any, ...]]:
    """The rollups."""
    async with books.store.read() as connection:
        return sorted(tuple(row) for row in await connection.execute(select(rollups)))


async def test_what_needs_deleted_receipts_is_an_error_and_no_wrong_number(books: Books) -> None:
    await fill(books)
    await Roller(books.store).catch_up()
    await retention(books).prune()
    kept = books.clock.now - 10 * DAY
    kept -= kept % HOUR
    for which, group_by, zone in (
        (Filter(tag_key="team"), [], ""),
        (Filter(), ["tag:team"], ""),
        (Filter(start_ns=kept - 3 * DAY + 1), [], ""),
        (Filter(), ["day"], "Asia/Kathmandu"),
    ):
        with pytest.raises(TenthError, match="RECEIPTS_PAST_RETENTION"):
            await books.reports.spend(which, group_by, zone)
        later = Filter(start_ns=kept, tag_key=which.tag_key)
        await books.reports.spend(later, group_by, zone)
    with pytest.raises(TenthError, match="RECEIPTS_PAST_RETENTION"):
        await books.reports.sides(Filter())
    await books.reports.sides(Filter(start_ns=kept))


async def test_nothing_goes_without_proof(books: Books) -> None:
    await fill(books)
    await Roller(books.store).catch_up()
    wrong = update(rollups).where(rollups.c.level == 0).values(actual=rollups.c.actual + 1)
    await books.store.write(lambda each: each.execute(wrong).rowcount)
    assert await retention(books).prune() == Pruned()
    assert await count(books, receipts) == 40


async def test_the_newest_rows_stay_so_that_ids_count_on(books: Books) -> None:
    await fill(books)
    await Roller(books.store).catch_up()
    books.clock.advance(100 * 86_400)
    assert (await retention(books).prune()).receipts == 39
    assert await books.settle(await books.receipt("later")) == [""]
    await books.record(books.attempt("later", ledger_pb2.ATTEMPT_KIND_FINISHED))
    await Roller(books.store).catch_up()
    status = await books.reports.status()
    assert (status.receipt_count, status.attempt_count) == (41, 41)
    assert (await books.reports.spend(Filter(), []))[0][0].request_count == 41
    assert await check_rollups(books.store) == []


async def test_a_late_receipt_of_a_past_hour_counts(books: Books) -> None:
    await fill(books)
    await Roller(books.store).catch_up()
    await retention(books).prune()
    late = books.facts("late")
    late.create_time.FromNanoseconds(books.clock.now - 15 * DAY)
    assert await books.settle(await books.receipt("late", create_time=late.create_time)) == [""]
    assert (await books.reports.spend(Filter(), []))[0][0].request_count == 41
    await Roller(books.store).catch_up()
    assert (await books.reports.spend(Filter(), ["user"]))[0][0].request_count == 1
    stored = await all_rollups(books)
    # Reports are right while the rollups are made anew.
    await restart(books.store)
    total = (await reports(books))[0]
    roller = Roller(books.store, batch=4)
    while await roller.step():
        assert (await reports(books))[0] == total
    assert await all_rollups(books) == stored
    assert (await retention(books).prune()).receipts == 0  # The newest of all stays.
    assert await books.settle(await books.receipt("later")) == [""]
    assert (await retention(books).prune()).receipts == 1
    assert (await books.reports.spend(Filter(), []))[0][0].request_count == 42


async def test_closed_reservations_and_past_minutes_go(books: Books) -> None:
    for name in ("a", "b", "open"):
        await books.book.reserve(books.wanted(name, ttl_ns=400 * DAY))
    assert await books.settle(await books.receipt("a")) == [""]
    books.clock.advance(20 * 86_400)
    assert await books.settle(await books.receipt("b")) == [""]
    minute = books.clock.now // (60 * SECOND)
    rows = [{"tenant_id": "acme", "minute": minute - n, "request_count": 1, "token_count": 1} for n in (0, 1, 11)]
    await books.store.write(lambda each: each.execute(insert(rate_minutes), rows).rowcount)
    assert await retention(books, 0, 10).prune() == Pruned(0, 1)
    assert await count(books, reservations) == 2
    assert await count(books, rate_minutes) == 2
