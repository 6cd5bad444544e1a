"""Budgets by model and tag, by week and rolling window, and their ladder, on both stores."""

from __future__ import annotations

import asyncio
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import func, select
from tenth.type.v1 import receipt_pb2, usage_pb2

from mesh.money import MAX_NANO_USD
from mesh.wire import build_receipt
from services.ledger.balances import Balances, load_budgets
from services.ledger.limits import parse_ladder
from services.ledger.operator_servicer import budget_status
from services.ledger.policy import Position, Scope, Verdict
from services.ledger.tables import budget_windows, receipts
from tests.integration.ledger.ledger_books import SECOND, Books

COST = 3_000_000
ACTUAL = 1_710_000
WEEK = 7 * 86_400


def scope(model: str = "small", **tags: str) -> Scope:
    """A request of acme on a model, with tags."""
    return Scope("acme", "", "", model, tuple(sorted(tags.items())))


async def verdict(books: Books, **tags: str) -> Verdict:
    """What becomes of one more reservation."""
    return (await books.book.reserve(books.wanted(scope=scope(**tags)))).decision.verdict


async def derived(books: Books, name: str = "all") -> Position:
    """Where a budget stands when nothing but receipts and reservations is known."""

    def read(connection: object) -> Position:
        [budget] = [each for each in load_budgets(connection, ["acme"]) if each.name == name]  # type: ignore[arg-type]
        unknown = Balances(connection, [budget])  # type: ignore[arg-type]  # run_sync hands on a Connection.
        unknown._connection.execute(budget_windows.delete())
        return unknown.position(budget, books.clock.now)

    return await books.store.write(read)


async def test_a_models_budget_counts_its_model_alone(books: Books) -> None:
    await books.budget(COST, model="small")
    big = books.wanted(model="big", scope=scope("big"))
    assert (await books.book.reserve(big)).decision.verdict is Verdict.OK
    assert await verdict(books) is Verdict.OK
    assert await verdict(books) is Verdict.REFUSED
    assert (await books.position()).reserved == COST


@pytest.mark.parametrize(
    ("value", "tags", "covered"),
    [
        ("", {"team": "search"}, True),
        ("", {"team": ""}, True),
        ("", {"other": "team"}, False),
        ("search", {"team": "search", "a": "b"}, True),
        ("search", {"team": "ads", "search": "team"}, False),
        ("search", {}, False),
    ],
)
async def test_a_tags_budget_counts_requests_with_it(
    books: Books, value: str, tags: dict[str, str], covered: bool
) -> None:
    await books.budget(10 * COST, tag_key="team", tag_value=value)
    await books.book.reserve(books.wanted("r", scope=scope(**tags)))
    assert (await books.position()).reserved == (COST if covered else 0)
    assert (await derived(books)).reserved == (COST if covered else 0)
    receipt = await books.receipt("r")
    facts = receipt.facts
    facts.tags.update(tags)
    book = await books.prices.at(1, books.clock.now)
    assert await books.settle(build_receipt(facts, book, receipt_pb2.RECEIPT_STATE_PENDING)) == [""]
    for position in (await books.position(), await derived(books)):
        assert (position.spent, position.reserved) == (ACTUAL if covered else 0, 0)


TEXTS = ('a"b', "a'b", "a\\b", "$.x", "팀", "%", "a]b", "x' OR 1=1 --", ":k", "\U0001f600")


@pytest.mark.parametrize("key", TEXTS)
async def test_a_tag_may_be_any_text(books: Books, key: str) -> None:
    await books.budget(10 * COST, tag_key=key, tag_value=key)
    await books.book.reserve(books.wanted(scope=scope(**{key: key})))
    await books.book.reserve(books.wanted(scope=scope(**{key: "other", "other": key})))
    assert (await books.position()).reserved == (await derived(books)).reserved == COST


async def test_a_row_says_tags_latency_and_control(books: Books) -> None:
    facts = books.facts("r")
    facts.tags.update({"b": "2", "a": "1", "tenth.control": "true"})
    facts.end_time.FromNanoseconds(books.clock.now + 1_500_000_000)
    book = await books.prices.at(1, books.clock.now)
    plain = await books.receipt("plain")
    early = await books.receipt("early")
    early.facts.end_time.FromNanoseconds(books.clock.now - 1)
    assert await books.settle(build_receipt(facts, book, receipt_pb2.RECEIPT_STATE_PENDING), plain, early) == [""] * 3
    async with books.store.read() as connection:
        columns = (receipts.c.request_id, receipts.c.tags, receipts.c.latency_ns, receipts.c.control)
        rows = {row[0]: tuple(row[1:]) for row in await connection.execute(select(*columns))}
    assert rows["r"] == ('{"a":"1","b":"2","tenth.control":"true"}', 1_500_000_000, True)
    assert json.loads(rows["r"][0]) == dict(facts.tags)
    assert rows["plain"] == ("{}", None, False)
    assert rows["early"][1] is None


async def test_a_failure_counts_for_the_model_that_was_asked_last(books: Books) -> None:
    await books.budget(10**9, model="small")
    await books.budget(10**9, name="big", model="big")
    facts = books.facts("r", failed=True, model="")
    for number, model in ((1, "big"), (2, "small")):
        facts.overheads.add(kind="failed_attempt", model=model, attempt=number).usage.input_token_count = 1000
    book = await books.prices.at(1, books.clock.now)
    assert await books.settle(build_receipt(facts, book, receipt_pb2.RECEIPT_STATE_PENDING)) == [""]
    assert (await books.position()).spent == 11_000_000
    assert (await books.position("big")).spent == 0


@pytest.mark.parametrize("zone", ["Asia/Seoul", "America/New_York"])
async def test_a_week_begins_on_monday_where_the_tenant_is(books: Books, zone: str) -> None:
    position = await books.budget(COST, window="week", time_zone=zone)
    assert await verdict(books) is Verdict.OK
    until_monday = (position.window_start_ns - books.clock.now) // SECOND + WEEK
    books.clock.advance(until_monday - 1)
    assert await verdict(books) is Verdict.REFUSED
    books.clock.advance(1)
    assert await verdict(books) is Verdict.OK


async def test_a_week_of_169_hours(books: Books) -> None:
    # The clocks of New York go back on 2026-11-01.
    books.clock.now = int(datetime(2026, 10, 28, tzinfo=UTC).timestamp()) * SECOND
    position = await books.budget(COST, window="week", time_zone="America/New_York")
    assert await verdict(books) is Verdict.OK
    books.clock.now = position.window_start_ns + (WEEK + 3600) * SECOND - 1
    assert await verdict(books) is Verdict.REFUSED
    books.clock.now += 1
    assert await verdict(books) is Verdict.OK


async def test_a_rolling_window_forgets_bucket_by_bucket(books: Books) -> None:
    await books.budget(2 * COST, window="rolling", rolling_seconds=3600)
    assert await verdict(books) is Verdict.OK
    books.clock.advance(1800)
    assert await verdict(books) is Verdict.OK
    assert await verdict(books) is Verdict.REFUSED
    # A whole hour after the first it is still inside; a sixtieth later it is not.
    books.clock.advance(1800)
    assert await verdict(books) is Verdict.REFUSED
    books.clock.advance(60)
    assert (await books.position()).reserved == COST
    assert await verdict(books) is Verdict.OK
    assert await verdict(books) is Verdict.REFUSED
    books.clock.advance(1800)
    assert await verdict(books) is Verdict.OK


async def test_a_rolling_window_is_what_its_receipts_say(books: Books) -> None:
    await books.budget(10**9, window="rolling", rolling_seconds=61)
    for step in range(40):
        books.clock.advance(2.9)
        await books.book.reserve(books.wanted(f"r{step}"))
        if step % 3:
            assert await books.settle(await books.receipt(f"r{step}")) == [""]
    kept = await books.position()
    assert kept.spent > 0 < kept.reserved
    assert await derived(books) == kept
    # A budget that is new counts what was spent before it was set.
    assert (await books.budget(10**9, name="new", window="rolling", rolling_seconds=61)).spent == kept.spent


async def test_old_buckets_are_dropped(books: Books) -> None:
    await books.budget(10**9, window="rolling", rolling_seconds=60)
    for _ in range(5):
        await verdict(books)
        books.clock.advance(100)
    async with books.store.read() as connection:
        query = select(func.count()).select_from(budget_windows)
        assert (await connection.execute(query)).scalar_one() == 61


async def test_another_length_counts_anew(books: Books) -> None:
    await books.budget(10**9, window="rolling", rolling_seconds=3600)
    await verdict(books)
    books.clock.advance(1800)
    assert (await books.position()).reserved == COST
    assert (await books.budget(10**9, window="rolling", rolling_seconds=600)).reserved == 0
    assert (await books.budget(10**9, window="rolling", rolling_seconds=7200)).reserved == COST


async def test_64_at_once_never_pass_a_rolling_budget_by_tag(books: Books) -> None:
    await books.budget(20 * COST, window="rolling", rolling_seconds=60, tag_key="team")
    made = await asyncio.gather(*(verdict(books, team="x") for _ in range(64)))
    assert made.count(Verdict.OK) == 20
    assert (await books.position()).reserved == 20 * COST


async def test_the_ladder_lets_its_own_pass(books: Books) -> None:
    await books.budget(10 * COST, ladder=parse_ladder("batch=30 cheaper_tier=60 cache_only=90"))
    for _ in range(3):
        assert await verdict(books) is Verdict.OK
    assert await verdict(books) is Verdict.BATCH
    batch = await books.book.reserve(books.wanted(batch=True, tier=3))
    # At batch prices: half.
    assert (batch.decision.verdict, batch.amount) == (Verdict.OK, COST // 2)
    for _ in range(5):
        await books.book.reserve(books.wanted(batch=True))
    assert (await books.position()).reserved == 6 * COST
    told = (await books.book.reserve(books.wanted(tier=3))).decision
    assert (told.verdict, told.budget_name, told.remaining) == (Verdict.DOWNGRADE, "all", 4 * COST)
    for _ in range(3):
        assert (await books.book.reserve(books.wanted(tier=1))).decision.verdict is Verdict.OK
    assert (await books.book.reserve(books.wanted(tier=1))).decision.verdict is Verdict.CACHE_ONLY


async def test_an_overspent_window_refuses_until_it_is_over(books: Books) -> None:
    await books.budget(ACTUAL, window="rolling", rolling_seconds=60)
    assert await books.settle(await books.receipt(), await books.receipt()) == ["", ""]
    assert (await books.position()).remaining == -ACTUAL
    assert await verdict(books) is Verdict.REFUSED
    books.clock.advance(62)
    assert (await books.position()).remaining == ACTUAL


@pytest.mark.parametrize("window", [{}, {"window": "rolling", "rolling_seconds": 60}], ids=["total", "rolling"])
async def test_sums_past_64_bits_stay_at_the_end_of_the_range(books: Books, window: dict[str, Any]) -> None:
    dear = usage_pb2.Usage(input_token_count=6 * 10**14)  # 6e18 nano-USD on the big model.
    for step in range(2):
        facts = {"model": "big", "usage": dear, "original_input_token_count": 6 * 10**14}
        assert await books.settle(await books.receipt(f"r{step}", **facts)) == [""]
        if window and not step:
            books.clock.advance(2)
    # Derived from the receipts, and written as it is derived; then read back.
    derived = await books.budget(COST, **window)
    assert derived.spent >= MAX_NANO_USD
    assert budget_status(derived).spent_nano_usd == MAX_NANO_USD
    await verdict(books)
    assert (await books.position()).spent >= MAX_NANO_USD
    assert await verdict(books) is Verdict.REFUSED
    # What is added to a sum at the end of the range leaves it there.
    assert await books.settle(await books.receipt("small")) == [""]
    assert budget_status(await books.position()).spent_nano_usd == MAX_NANO_USD
