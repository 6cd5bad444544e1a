"""Receipt events by month: ids that say it, partitions made in time, and dropped whole when all of them is past."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import DBAPIError

from services.ledger.grains import DAY
from services.ledger.partitions import Partitions, first_id, month_of, partition_name, start_ns
from services.ledger.report import Filter
from services.ledger.retention import Retention
from services.ledger.rollup_check import check_rollups
from services.ledger.rollups import Roller, rebuild
from services.ledger.tables import receipt_events, receipts
from tests.integration.ledger.ledger_books import SECOND, Books

JUNE = month_of(int(datetime(2026, 6, 15, tzinfo=UTC).timestamp()) * SECOND)


async def partitions(books: Books) -> set[str]:
    """The partitions that there are; none on SQLite."""
    if books.store.dialect == "sqlite":
        return set()
    query = "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE 'receipt_events\\_%'"
    async with books.store.read() as connection:
        return set((await connection.execute(text(query))).scalars())


async def ids(books: Books) -> list[int]:
    """The events' ids, in order."""
    async with books.store.read() as connection:
        return list((await connection.execute(select(receipt_events.c.id).order_by(receipt_events.c.id))).scalars())


@pytest.fixture
async def parted(books: Books) -> Books:
    """Books with the partitions of June 2026 and the two months after it, where there are partitions."""
    made = await Partitions(books.store).make(books.clock.now)
    assert len(made) == (3 if books.store.dialect == "postgresql" else 0)
    return books


def retention(books: Books, days: float) -> Retention:
    """Retention by the test's clock."""
    return Retention(books.store, books.clock, receipt_days=days, reservation_days=0)


def test_a_month_is_a_range_of_ids() -> None:
    for month in (0, JUNE, JUNE + 6, JUNE + 7):
        assert month_of(start_ns(month)) == month
        assert month_of(start_ns(month + 1) - 1) == month
    assert [partition_name(each) for each in (0, JUNE, JUNE + 6)] == [
        "receipt_events_1970_01",
        "receipt_events_2026_06",
        "receipt_events_2026_12",
    ]
    assert first_id(month_of(start_ns(12 * 200))) < 2**63


async def test_ids_say_the_month_and_only_grow(parted: Books) -> None:
    books = parted
    assert await books.settle(*[await books.receipt() for _ in range(2)]) == ["", ""]
    books.clock.advance(40 * 86_400)
    assert await books.settle(await books.receipt()) == [""]
    books.clock.advance(-40 * 86_400)  # A clock that is put back.
    assert await books.settle(await books.receipt()) == [""]
    june, july = first_id(JUNE), first_id(JUNE + 1)
    assert await ids(books) == [june, june + 1, july, july + 1]
    assert await Roller(books.store).catch_up() == 4
    assert await check_rollups(books.store) == []


async def test_events_go_into_their_months_partition(parted: Books) -> None:
    books = parted
    if books.store.dialect == "sqlite":
        pytest.skip("one table")
    for _ in range(4):
        assert await books.settle(await books.receipt()) == [""]
        books.clock.advance(30 * 86_400)
    query = "SELECT tableoid::regclass::text, count(*) FROM receipt_events GROUP BY 1 ORDER BY 1"
    async with books.store.read() as connection:
        found = [tuple(row) for row in await connection.execute(text(query))]
    # Nobody made September's in time: its events are in the rest, and nothing stops.
    assert found == [
        ("receipt_events_2026_06", 1),
        ("receipt_events_2026_07", 1),
        ("receipt_events_2026_08", 1),
        ("receipt_events_rest", 1),
    ]
    # September stays there; the months after it get their own.
    assert await Partitions(books.store).make(books.clock.now - 30 * DAY) == [
        "receipt_events_2026_10",
        "receipt_events_2026_11",
    ]
    assert await Partitions(books.store).make(books.clock.now) == ["receipt_events_2026_12"]
    assert await Partitions(books.store).make(books.clock.now) == []


async def test_an_id_is_unique_over_all_partitions(parted: Books) -> None:
    books = parted
    assert await books.settle(await books.receipt("r")) == [""]
    again = receipt_events.insert().from_select([each.name for each in receipt_events.columns], select(receipt_events))
    with pytest.raises(Exception, match=r"(?i)unique"):
        await books.store.write(lambda connection: connection.execute(again).rowcount)
    orphan = receipts.update().values(event_id=first_id(JUNE + 1))
    with pytest.raises(Exception, match=r"(?i)foreign key"):
        await books.store.write(lambda connection: connection.execute(orphan).rowcount)


async def test_a_past_month_goes_as_a_whole_and_its_sums_stay(parted: Books) -> None:
    books = parted
    for index in range(20):  # From 15 June to 12 September.
        assert await books.settle(await books.receipt(f"r{index}", payload_digest="ef" * 32)) == [""]
        books.clock.advance(4.5 * 86_400)
        await Partitions(books.store).make(books.clock.now)
    await Roller(books.store).catch_up()
    before = await books.reports.spend(Filter(), ["month", "model"])
    status = await books.reports.status()
    pruned = await retention(books, 50).prune()
    assert pruned.receipts == 9
    left = await ids(books)
    if books.store.dialect == "postgresql":
        # Of July some events are left that have no receipt, and go with it.
        assert "receipt_events_2026_06" not in await partitions(books)
        assert "receipt_events_2026_07" in await partitions(books)
        assert len(left) == 16
    else:
        assert len(left) == 11
    assert min(left) >= first_id(JUNE + 1)
    assert await check_rollups(books.store) == []
    for _ in range(2):
        assert await books.reports.spend(Filter(), ["month", "model"]) == before
        assert await books.reports.status() == status
        await rebuild(books.store)
    books.clock.advance(10 * 86_400)
    await retention(books, 50).prune()
    assert "receipt_events_2026_07" not in await partitions(books)
    assert await books.reports.spend(Filter(), ["month", "model"]) == before
    await rebuild(books.store)
    assert await books.reports.status() == status


async def test_a_month_stays_while_a_receipt_needs_one_of_its_events(parted: Books) -> None:
    books = parted
    if books.store.dialect == "sqlite":
        pytest.skip("one table")
    digest = "ef" * 32
    await books.book.reserve(books.wanted("r", payload_digest=digest))
    assert await books.settle(await books.receipt("r", failed=True, payload_digest=digest)) == [""]
    books.clock.advance(20 * 86_400)
    # Tried again in July, under another reservation: the receipt counts in July, its first event is of June.
    await books.book.reserve(books.wanted("r", payload_digest=digest))
    assert await books.settle(await books.receipt("r", payload_digest=digest)) == [""]
    assert await books.settle(await books.receipt("s")) == [""]
    await Roller(books.store).catch_up()
    books.clock.advance(20 * 86_400)
    for days, gone in ((25, False), (15, True)):
        assert await books.settle(await books.receipt()) == [""]
        await Roller(books.store).catch_up()
        await retention(books, days).prune()
        assert ("receipt_events_2026_06" not in await partitions(books)) is gone
        await rebuild(books.store)
        assert await check_rollups(books.store) == []
        assert (await books.reports.status()).receipt_count == (3 if not gone else 4)


async def test_the_month_that_is_not_rolled_in_stays(parted: Books) -> None:
    books = parted
    if books.store.dialect == "sqlite":
        pytest.skip("one table")
    assert await books.settle(await books.receipt("r")) == [""]
    books.clock.advance(40 * 86_400)
    assert await books.settle(await books.receipt("s")) == [""]
    await books.store.write(lambda connection: connection.execute(receipts.delete()).rowcount)
    assert await Partitions(books.store).drop(books.clock.now) == []
    await Roller(books.store).catch_up()
    assert await Partitions(books.store).drop(books.clock.now) == ["receipt_events_2026_06"]
    # August is empty. July holds the newest event, whose id the next one counts on from.
    assert await Partitions(books.store).drop(books.clock.now + 60 * DAY) == ["receipt_events_2026_08"]


async def test_a_long_read_only_puts_it_off(parted: Books) -> None:
    books = parted
    if books.store.dialect == "sqlite":
        pytest.skip("one table")
    async with books.store.read() as connection:
        await connection.execute(select(func.count()).select_from(receipt_events))
        later = asyncio.create_task(Partitions(books.store).make(books.clock.now + 30 * DAY))
        # Other writers wait for it, and then go on.
        settled = asyncio.create_task(books.settle(await books.receipt()))
        assert (await later, await settled) == ([], [""])
    assert await Partitions(books.store).make(books.clock.now + 30 * DAY) == ["receipt_events_2026_09"]


async def test_a_month_that_cannot_be_made_stops_nothing(parted: Books) -> None:
    books = parted
    if books.store.dialect == "sqlite":
        pytest.skip("one table")
    # Something else has the name: the database refuses for a reason of its own.
    await books.store.write(lambda connection: connection.execute(text("CREATE TABLE receipt_events_2026_09 ()")))
    try:
        assert await Partitions(books.store).make(books.clock.now + 30 * DAY) == []
        books.clock.advance(80 * 86_400)
        assert await books.settle(await books.receipt()) == [""]
    finally:
        await books.store.write(lambda connection: connection.execute(text("DROP TABLE receipt_events_2026_09")))


async def test_replicas_make_and_drop_together(parted: Books) -> None:
    books = parted
    if books.store.dialect == "sqlite":
        pytest.skip("one table")
    at = books.clock.now + 30 * DAY
    made = await asyncio.gather(*(Partitions(books.store).make(at) for _ in range(4)))
    assert sorted(name for each in made for name in each) == ["receipt_events_2026_09"]
    dropped = await asyncio.gather(*(Partitions(books.store).drop(at) for _ in range(4)))
    assert sorted(name for each in dropped for name in each) == ["receipt_events_2026_06"]
    with pytest.raises(DBAPIError, match="does not exist"):
        await books.store.write(lambda connection: connection.execute(text("SELECT FROM receipt_events_2026_06")))
