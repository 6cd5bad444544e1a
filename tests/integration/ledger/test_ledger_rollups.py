"""Rollups: whatever is settled, corrected and rolled in when, reports are the sums of the receipts."""

from __future__ import annotations

import asyncio
import json
import random
import shutil
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import Connection, insert, select, update
from tenth.type.v1 import receipt_pb2, usage_pb2

from mesh.errors import TenthError
from mesh.wire import build_receipt
from services.ledger.receipts import flatten
from services.ledger.report import DIMENSIONS, Filter
from services.ledger.rollup_check import check_rollups
from services.ledger.rollups import Roller, rebuild
from services.ledger.spend import AMOUNTS
from services.ledger.tables import exchange_rates, receipt_events, receipts, rollups
from tests.integration.ledger.ledger_books import SECOND, Books, open_books

HOUR = 3600 * SECOND
DIGEST = "ab" * 32
# Around changes of the clock in New York (March 8th, by an hour) and on Lord Howe (April 5th, by half of one).
DATES = [datetime(2026, *each, tzinfo=UTC) for each in ((3, 7), (3, 8), (4, 4), (4, 5), (6, 14))]
ZONES = ["UTC", "Asia/Seoul", "Asia/Kathmandu", "America/New_York", "Australia/Lord_Howe"]
TAGS = ["team", 'a"b', "a.b", "a[0]", "$", "it's", "a\\b", "키", "%s", ":x"]


async def settle_some(books: Books, chance: random.Random, count: int = 12) -> None:
    """Settle receipts over a few days, correct some of them, and roll in now and then."""
    roller = Roller(books.store, batch=3)
    for index in range(count):
        name = f"r{chance.randrange(index + 1) if chance.random() < 0.3 else index}"
        at = chance.choice(DATES) + timedelta(seconds=chance.randrange(86_400))
        facts = books.facts(
            name,
            user_id=chance.choice(("", "ann", "bob")),
            project_id=chance.choice(("", "x")),
            tenant_id=chance.choice(("acme", "umbrella")),
            model=chance.choice(("big", "small")),
            baseline_model=chance.choice(("big", "small")),
            usage=usage_pb2.Usage(input_token_count=chance.randrange(2000), output_token_count=chance.randrange(900)),
            cache_hit=chance.random() < 0.3,
            failed=chance.random() < 0.2,
            payload_digest=DIGEST,
        )
        facts.create_time.FromDatetime(at.replace(microsecond=chance.choice((0, 1))))
        if chance.random() < 0.7:
            facts.tags[chance.choice(TAGS)] = chance.choice(("red", "", "it's"))
        await books.settle(await with_amounts(books, facts))
        if chance.random() < 0.3:
            await roller.step()
    await keep_tags(books)


async def with_amounts(books: Books, facts: receipt_pb2.ReceiptFacts) -> receipt_pb2.Receipt:
    """The receipt of some facts."""
    book = await books.prices.at(1, facts.create_time.ToNanoseconds())
    return build_receipt(facts, book, receipt_pb2.RECEIPT_STATE_PENDING)


async def keep_tags(books: Books) -> None:
    """Write the tags of every receipt into its row."""

    def operation(connection: Connection) -> None:
        query = select(receipts.c.id, receipt_events.c.receipt).join(
            receipt_events, receipts.c.event_id == receipt_events.c.id
        )
        for row in connection.execute(query).all():
            tags = dict(receipt_pb2.Receipt.FromString(row.receipt).facts.tags)
            connection.execute(
                update(receipts).where(receipts.c.id == row.id).values(tags=json.dumps(tags, sort_keys=True))
            )

    await books.store.write(operation)


async def rows_of(books: Books) -> Sequence[Mapping[str, Any]]:
    """Every visible receipt's row."""
    async with books.store.read() as connection:
        return [dict(row) for row in (await connection.execute(select(receipts))).mappings()]


def value_of(row: Mapping[str, Any], name: str, zone: ZoneInfo) -> str:
    """A receipt's value of a dimension, by other means than the reports'."""
    at = datetime.fromtimestamp(row["create_ns"] // SECOND, zone)
    match name:
        case "hour":
            return at.astimezone(UTC).strftime("%Y-%m-%dT%H:00Z")
        case "day":
            return at.date().isoformat()
        case "week":
            return (at.date() - timedelta(days=at.weekday())).isoformat()
        case "month":
            return f"{at:%Y-%m}"
        case "tier":
            return "simple" if row["tier"] == 1 else ""
        case "baseline":
            return str(row["baseline_model"])
        case "tenant" | "user" | "project":
            return str(row[f"{name}_id"])
    if name.startswith("tag:"):
        return str(json.loads(row["tags"]).get(name[4:], ""))
    return str(row[name])


def summed_by_hand(
    rows: Sequence[Mapping[str, Any]], which: Filter, group_by: Sequence[str], zone: ZoneInfo
) -> dict[tuple[str, ...], dict[str, int]]:
    """What a report must say."""
    found: dict[tuple[str, ...], dict[str, int]] = defaultdict(lambda: defaultdict(int))
    for row in rows:
        if not which.holds(row, json.loads(row["tags"])):
            continue
        sums = found[tuple(value_of(row, name, zone) for name in group_by)]
        sums["requests"] += 1
        sums["failures"] += row["failed"]
        sums["hits"] += row["cache"] != "miss"
        for name in AMOUNTS:
            sums[name] += row[name]
    return found


async def compare(books: Books, which: Filter, group_by: Sequence[str], zone: str) -> None:
    """A report equals the sums by hand."""
    rows = await rows_of(books)
    expected = summed_by_hand(rows, which, group_by, ZoneInfo(zone))
    reported, baselines = await books.reports.spend(which, group_by, zone)
    got = {
        row.group: {
            "requests": row.request_count,
            "failures": row.failed_count,
            "hits": row.cache_hit_count,
            **row.amounts,
        }
        for row in reported
        if row.request_count
    }
    assert got == expected
    assert baselines == sorted({row["baseline_model"] for row in rows if which.holds(row, json.loads(row["tags"]))})


@st.composite
def questions(draw: st.DrawFn) -> tuple[Filter, list[str], str]:
    """A filter, dimensions and a time zone."""
    edges = st.none() | st.builds(
        lambda date, seconds, step: (int(date.timestamp()) + seconds // step * step) * SECOND,
        st.sampled_from(DATES),
        st.integers(0, 86_400),
        st.sampled_from((1, 3600)),
    )
    start, end = draw(edges), draw(edges)
    tag = draw(st.sampled_from(["", "", "", *TAGS]))
    which = Filter(
        start_ns=start,
        end_ns=end,
        tenant_id=draw(st.sampled_from(("", "", "acme"))),
        user_id=draw(st.sampled_from(("", "", "ann"))),
        project_id=draw(st.sampled_from(("", "", "x"))),
        model=draw(st.sampled_from(("", "", "big"))),
        tag_key=tag,
        tag_value=draw(st.sampled_from(("", "red", "it's"))) if tag else "",
    )
    names = st.sampled_from([*DIMENSIONS, *DIMENSIONS, "tag:team", *(f"tag:{key}" for key in TAGS[1:3])])
    return which, draw(st.lists(names, max_size=3, unique=True)), draw(st.sampled_from(ZONES))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32), st.lists(questions(), min_size=6, max_size=6))
def test_reports_are_sums_of_receipts_on_sqlite(
    migrated: Callable[[str], str], tmp_path: Path, seed: int, asked: list[tuple[Filter, list[str], str]]
) -> None:
    shutil.copy(migrated("sqlite").partition("///")[2], tmp_path / "ledger.db")
    for rest in ("-wal", "-shm"):
        (tmp_path / f"ledger.db{rest}").unlink(missing_ok=True)

    async def run() -> None:
        async with open_books(f"sqlite+aiosqlite:///{tmp_path / 'ledger.db'}") as books:
            await settle_some(books, random.Random(seed))  # Of a test.
            assert await check_rollups(books.store) == []
            for which, group_by, zone in asked:
                await compare(books, which, group_by, zone)

    asyncio.run(run())


@pytest.mark.parametrize("seed", range(2))
async def test_reports_are_sums_of_receipts(books: Books, seed: int) -> None:
    chance = random.Random(seed)  # Of a test.
    await settle_some(books, chance, 25)
    start = int(DATES[0].timestamp()) * SECOND
    for zone in ZONES:
        for group_by in ((), ("day",), ("week", "model"), ("month", "user", "tier"), ("tag:team", "day"), ("hour",)):
            await compare(books, Filter(), group_by, zone)
            await compare(books, Filter(start_ns=start + 7, end_ns=start + 30 * HOUR + 1), group_by, zone)
    for key in TAGS:
        await compare(books, Filter(tag_key=key), [f"tag:{key}"], "UTC")
        await compare(books, Filter(tag_key=key, tag_value="it's"), ["day"], "UTC")
        listed, _ = await books.reports.receipts(Filter(tag_key=key), 100, "")
        tags = [receipt_pb2.Receipt.FromString(blob).facts.tags for blob in listed]
        assert all(key in each for each in tags)
        assert len(tags) == sum(key in json.loads(row["tags"]) for row in await rows_of(books))
    assert await check_rollups(books.store) == []
    status = await books.reports.status()
    await Roller(books.store).catch_up()
    assert await books.reports.status() == status
    assert status.receipt_count == len(await rows_of(books))
    assert await check_rollups(books.store) == []
    await compare(books, Filter(), ("day", "model"), "Asia/Kathmandu")
    before = await stored(books)
    await rebuild(books.store)
    assert await stored(books) == before
    assert await books.reports.status() == status


async def stored(books: Books) -> list[tuple[Any, ...]]:
    """The rollups."""
    async with books.store.read() as connection:
        return sorted(tuple(row) for row in await connection.execute(select(rollups)))


@pytest.mark.parametrize("level", range(6))
async def test_the_check_finds_a_nano_dollar(books: Books, level: int) -> None:
    await settle_some(books, random.Random(5))  # Of a test.
    await Roller(books.store).catch_up()
    more = update(rollups).where(rollups.c.level == level).values(actual=rollups.c.actual + 1)
    await books.store.write(lambda each: each.execute(more).rowcount)
    found = await check_rollups(books.store)
    assert found
    assert any("actual is " in line for line in found) == (level == 0)
    await rebuild(books.store)
    assert await check_rollups(books.store) == []


async def test_sums_past_64_bits_stay_exact(books: Books) -> None:
    huge = usage_pb2.Usage(output_token_count=150 * 10**12)  # 7.5 billion USD on the big model.
    for name in ("a", "b", "c"):
        assert await books.settle(await books.receipt(name, model="big", usage=huge, payload_digest=DIGEST)) == [""]
        if name != "b":
            await Roller(books.store).catch_up()
    assert sum(row[0] == 0 for row in await stored(books)) == 3
    assert await check_rollups(books.store) == []
    with pytest.raises(TenthError, match="AMOUNT_OUT_OF_RANGE"):
        await books.reports.spend(Filter(), [])
    # Two of them are corrected to almost nothing: the third alone can be told again.
    books.clock.advance(1)
    for name in ("a", "b"):
        assert await books.settle(await books.receipt(name, model="big", payload_digest=DIGEST)) == [""]
    await compare(books, Filter(), (), "UTC")
    await Roller(books.store).catch_up()
    await compare(books, Filter(), (), "UTC")
    assert await check_rollups(books.store) == []


async def test_currency_is_converted_day_by_day(books: Books) -> None:
    seoul = ZoneInfo("Asia/Seoul")
    days = [datetime(2026, 6, day, tzinfo=seoul) for day in (10, 11, 12)]
    rates = {days[0]: 1_400_123_456_789, days[2]: 1_500 * 10**9}
    actual = 0
    for at in days:
        for index in range(3):
            facts = books.facts(f"{at:%d}-{index}", usage=usage_pb2.Usage(output_token_count=333_333 + index))
            facts.create_time.FromDatetime(at + timedelta(hours=index * 8))
            receipt = await with_amounts(books, facts)
            assert await books.settle(receipt) == [""]
            actual += receipt.actual_nano_usd * max((each, rate) for each, rate in rates.items() if each <= at)[1]
    await Roller(books.store).step()

    async def rate(at: datetime, nano: int) -> None:
        row = {"currency": "KRW", "valid_from_ns": int(at.timestamp()) * SECOND, "nano_units_per_usd": nano}
        await books.store.write(lambda each: each.execute(insert(exchange_rates), {**row, "source": "test"}).rowcount)

    await rate(days[2], rates[days[2]])
    with pytest.raises(TenthError, match=r"EXCHANGE_RATE_UNKNOWN.*2026-06-10"):
        await books.reports.spend(Filter(), [], "Asia/Seoul", "KRW")
    await rate(days[0], rates[days[0]])
    (total,), _ = await books.reports.spend(Filter(), [], "Asia/Seoul", "KRW")
    assert total.actual_in_currency == str(round(actual / 10**18))
    assert "." not in total.baseline_in_currency
    (dollars,), _ = await books.reports.spend(Filter(), [], "Asia/Seoul", "USD")
    assert dollars.actual_in_currency == f"{dollars.amounts['actual'] / 10**9:.2f}"
    # In UTC the first day is the 9th, which has none.
    with pytest.raises(TenthError, match="2026-06-09"):
        await books.reports.spend(Filter(), [], "UTC", "KRW")
    for wrong in ("krw", "KR", "1'; DROP TABLE receipts"):
        with pytest.raises(TenthError, match=r"request\.currency"):
            await books.reports.spend(Filter(), [], "", wrong)
    for wrong in ("Asia/Nowhere", "../../etc/passwd", "/etc/passwd"):
        with pytest.raises(TenthError, match=r"request\.time_zone"):
            await books.reports.spend(Filter(), ["day"], wrong)


async def test_a_zero_character_in_a_tag_breaks_no_report(books: Books) -> None:
    assert await books.settle(await books.receipt("r")) == [""]
    tags = json.dumps({"a": "x\0y", "b": "z"})
    await books.store.write(lambda each: each.execute(update(receipts).values(tags=tags)).rowcount)
    assert [row.group for row in (await books.reports.spend(Filter(), ["tag:b"]))[0]] == [("z",)]
    assert (await books.reports.spend(Filter(tag_key="a"), []))[0][0].request_count == 1


async def test_two_rollers_roll_every_event_once(books: Books) -> None:
    await settle_some(books, random.Random(9), 40)  # Of a test.
    await asyncio.gather(*(Roller(books.store, batch=4).catch_up() for _ in range(3)))
    assert await check_rollups(books.store) == []
    assert (await books.reports.status()).receipt_count == len(await rows_of(books))


async def test_a_broken_identity_is_seen_before_and_after_it_is_rolled_in(books: Books) -> None:
    receipt = await books.receipt("r", payload_digest=DIGEST)
    settlement = await books.settlement(receipt)
    receipt.CopyFrom(receipt_pb2.Receipt.FromString(settlement.blob))
    receipt.actual_nano_usd += 1
    broken = flatten(receipt, settlement.create_ns)
    assert await books.book.settle([replace(broken, digest=settlement.digest)]) == [None]
    assert (await books.reports.status()).identity_violation_count == 1
    await Roller(books.store).catch_up()
    assert (await books.reports.status()).identity_violation_count == 1
    books.clock.advance(1)
    assert await books.settle(await books.receipt("r", payload_digest=DIGEST)) == [""]
    assert (await books.reports.status()).identity_violation_count == 0
    await Roller(books.store).catch_up()
    assert (await books.reports.status()).identity_violation_count == 0
