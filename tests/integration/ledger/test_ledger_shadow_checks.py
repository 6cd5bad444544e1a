"""Receipts of shadow checks: their money counts everywhere, and they are no requests, on both stores."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import receipt_pb2, usage_pb2

from mesh.wire import build_receipt
from services.ledger.admin import Tenant
from services.ledger.policy import Scope, Verdict
from services.ledger.report import DIMENSIONS, Filter
from services.ledger.rollup_check import check_rollups
from services.ledger.rollups import Roller
from tests.integration.ledger.ledger_books import Books

TAGS = {"tenth.shadow": "worse", "tenth.shadow_mode": "safe", "team": "a"}
USED = usage_pb2.Usage(input_token_count=1000, output_token_count=500)


async def check(books: Books, request_id: str, verdict: str = "worse", **changes: object) -> receipt_pb2.Receipt:
    """The receipt of a shadow check: a second answer and two judgements, 2,000,000 + 2 * 1,100,000 nano-USD."""
    facts = books.facts(request_id, failed=True, attempt=0, **changes)
    facts.tags.update({**TAGS, "tenth.shadow": verdict})
    facts.overheads.add(kind="shadow", model="small", attempt=2601, usage=USED)
    judged = usage_pb2.Usage(input_token_count=1000, output_token_count=50)
    for number in (2701, 2702):
        facts.overheads.add(kind="judge", model="small", attempt=number, usage=judged)
    book = await books.prices.at(facts.price_book_version, facts.create_time.ToNanoseconds())
    return build_receipt(facts, book, receipt_pb2.RECEIPT_STATE_PENDING)


COST = 2_000_000 + 2 * 1_100_000


@pytest.mark.parametrize("rolled_in", [False, True])
async def test_checks_cost_money_and_are_no_requests(books: Books, rolled_in: bool) -> None:
    await books.budget(10**12)
    answered = await books.receipt("r1")
    assert await books.settle(answered, await check(books, "s1"), await check(books, "s2", "same")) == ["", "", ""]
    if rolled_in:
        await Roller(books.store).catch_up()
        assert await check_rollups(books.store) == []
    for group_by in ((), *((each,) for each in DIMENSIONS), ("tag:team",), ("day", "model")):
        rows, baselines = await books.reports.spend(Filter(), group_by)
        assert baselines == ["big"]
        assert sum(row.amounts["actual"] for row in rows) == answered.actual_nano_usd + 2 * COST
        counts = [(row.request_count, row.failed_count, row.cache_hit_count, row.shadow_count) for row in rows]
        assert tuple(map(sum, zip(*counts, strict=True))) == (1, 0, 0, 2)
    by_cache, _ = await books.reports.spend(Filter(), ["cache"])
    assert {row.group[0]: row.amounts["overhead"] for row in by_cache} == {"miss": 0, "shadow": 2 * COST}
    assert (await books.position()).spent == answered.actual_nano_usd + 2 * COST


async def test_the_report_groups_checks_by_verdict(books: Books) -> None:
    settled = [await check(books, f"s{index}", verdict) for index, verdict in enumerate(("same", "worse", "same"))]
    await books.settle(await books.receipt("r1"), *settled)
    rows, _ = await books.reports.spend(
        Filter(tag_key="tenth.shadow"), ["tag:tenth.shadow_mode", "model", "tag:tenth.shadow"]
    )
    assert [(row.group, row.shadow_count, row.amounts["actual"]) for row in rows] == [
        (("safe", "small", "same"), 2, 2 * COST),
        (("safe", "small", "worse"), 1, COST),
    ]


async def test_a_corrected_check_is_counted_once(books: Books) -> None:
    await books.settle(await check(books, "s1"))
    await Roller(books.store).catch_up()
    # A third judgement that inference has on record and the receipt has not.
    late = books.attempt("s1", ledger_pb2.ATTEMPT_KIND_FINISHED, 2703, purpose="judge", usage=USED)
    await books.record(late)
    assert (await books.sweeper.sweep()).reconciled == 1
    for _ in range(2):
        rows, _ = await books.reports.spend(Filter(), [])
        assert (rows[0].request_count, rows[0].failed_count, rows[0].shadow_count) == (0, 0, 1)
        assert rows[0].amounts["actual"] == COST + 2_000_000
        await Roller(books.store).catch_up()
    assert [item.kind for item in (await books.stored("s1")).facts.overheads] == ["shadow", "judge", "judge", "judge"]


async def test_a_check_whose_receipt_is_lost_is_made_from_its_attempts(books: Books) -> None:
    scope = Scope("acme", "", "", "small", tuple(sorted({**TAGS, "tenth.shadow": "undecided"}.items())))
    held = await books.book.reserve(replace(books.wanted("s1"), scope=scope))
    for kind in (ledger_pb2.ATTEMPT_KIND_STARTED, ledger_pb2.ATTEMPT_KIND_CANCELLED):
        await books.record(
            books.attempt("s1", kind, 2601, purpose="shadow", reservation_id=held.reservation_id, usage=USED)
        )
    books.clock.advance(3600)
    assert (await books.sweeper.sweep()).reconciled == 1
    receipt = await books.stored("s1")
    assert [(item.kind, item.model) for item in receipt.facts.overheads] == [("shadow", "small")]
    rows, _ = await books.reports.spend(Filter(tag_key="tenth.shadow"), ["model", "tag:tenth.shadow"])
    assert [(row.group, row.request_count, row.shadow_count) for row in rows] == [(("small", "undecided"), 0, 1)]


async def test_checks_take_no_callers_place_in_the_minute(books: Books) -> None:
    await books.admin.seed_tenants([(Tenant("acme", "big", 1), [])])
    tags = tuple(sorted(TAGS.items()))
    for name in ("s1", "s2"):
        held = await books.book.reserve(replace(books.wanted(name), scope=Scope("acme", "", "", "", tags)))
        assert held.decision.verdict is Verdict.OK
        await books.book.release("acme", held.reservation_id)
    assert (await books.book.reserve(books.wanted("r1"))).decision.verdict is Verdict.OK
    assert (await books.book.reserve(books.wanted("r2"))).decision.verdict is Verdict.RATE_LIMITED
    # Nor do they give back a place that they never took.
    held = await books.book.reserve(replace(books.wanted("s3"), scope=Scope("acme", "", "", "", tags)))
    await books.book.release("acme", held.reservation_id)
    assert (await books.book.reserve(books.wanted("r3"))).decision.verdict is Verdict.RATE_LIMITED


async def test_the_measured_comparison_leaves_checks_out(books: Books) -> None:
    await books.settle(await books.receipt("r1"), await check(books, "s1"))
    control, others = await books.reports.sides(Filter())
    assert (control.count, others.count) == (0, 1)


async def test_budgets_hold_for_checks(books: Books) -> None:
    await books.budget(1_000_000)
    scope = Scope("acme", "", "", "small", tuple(sorted(TAGS.items())))
    refused = await books.book.reserve(replace(books.wanted("s1"), scope=scope))
    assert refused.decision.verdict is not Verdict.OK
