"""Requests and tokens per minute over all replicas, on both stores."""

from __future__ import annotations

import asyncio

from tenth.ledger.v1 import ledger_pb2

from services.ledger.admin import Tenant
from services.ledger.policy import Decision, Scope, Verdict
from services.ledger.seeds import parse_prices
from tests.integration.ledger.ledger_books import SECOND, Books, open_books

DIGEST = "ab" * 32
FAILED = ledger_pb2.ATTEMPT_KIND_FAILED


async def tenant(books: Books, requests: int = 0, tokens: int = 0) -> Scope:
    """A tenant with limits, and the scope of its requests."""
    await books.admin.seed_tenants([(Tenant("limited", "big", requests, tokens, 0.25), [])])
    return Scope("limited", "", "", "small")


async def test_requests_are_limited_over_replicas(books: Books) -> None:
    scope = await tenant(books, requests=10)
    async with open_books(books.url, books.clock) as other:
        calls = [(books, other)[index % 2].book.reserve(books.wanted(scope=scope)) for index in range(40)]
        made = await asyncio.gather(*calls)
    assert sum(each.decision.verdict is Verdict.OK for each in made) == 10
    limited = [each.decision for each in made if each.decision.verdict is not Verdict.OK]
    # The clock stands at a minute's beginning: room comes when the next minute has gone six seconds.
    assert set(limited) == {Decision(Verdict.RATE_LIMITED, retry_after_ns=66 * SECOND)}
    assert (await books.reports.status()).open_reservation_count == 10


async def test_limits_follow_the_callers_file(books: Books) -> None:
    scope = await tenant(books, requests=1)
    held = await books.admin.snapshot("")
    assert held is not None
    assert (await books.book.reserve(books.wanted(scope=scope))).decision.verdict is Verdict.OK
    assert (await books.book.reserve(books.wanted(scope=scope))).decision.verdict is Verdict.RATE_LIMITED
    await tenant(books, requests=1)
    assert await books.admin.snapshot(held.version) is None, "the same file changed something"
    await tenant(books, requests=3)
    snapshot = await books.admin.snapshot(held.version)
    assert snapshot is not None
    assert Tenant("limited", "big", 3, 0, 0.25) in [each.tenant for each in snapshot.policies]
    assert (await books.book.reserve(books.wanted(scope=scope))).decision.verdict is Verdict.OK


async def test_tokens_are_limited_by_the_worst_case(books: Books) -> None:
    scope = await tenant(books, tokens=5_000)  # A request is 2,000.
    made = [await books.book.reserve(books.wanted(scope=scope)) for _ in range(3)]
    assert [each.decision.verdict for each in made] == [Verdict.OK, Verdict.OK, Verdict.RATE_LIMITED]
    small = books.wanted(scope=scope, input_tokens=500, max_output_tokens=500)
    assert (await books.book.reserve(small)).decision.verdict is Verdict.OK


async def test_no_second_burst_at_the_minutes_edge(books: Books) -> None:
    scope = await tenant(books, requests=10)
    books.clock.advance(59)
    for _ in range(10):
        assert (await books.book.reserve(books.wanted(scope=scope))).decision.verdict is Verdict.OK
    books.clock.advance(1)
    decision = (await books.book.reserve(books.wanted(scope=scope))).decision
    assert (decision.verdict, decision.retry_after_ns) == (Verdict.RATE_LIMITED, 6 * SECOND)
    books.clock.advance(6)
    assert (await books.book.reserve(books.wanted(scope=scope))).decision.verdict is Verdict.OK
    assert (await books.book.reserve(books.wanted(scope=scope))).decision.verdict is Verdict.RATE_LIMITED
    books.clock.advance(600)
    for _ in range(10):
        assert (await books.book.reserve(books.wanted(scope=scope))).decision.verdict is Verdict.OK


async def test_a_retry_is_counted_once(books: Books) -> None:
    scope = await tenant(books, requests=2, tokens=60_000)
    for _ in range(3):
        assert (await books.book.reserve(books.wanted("r", scope=scope))).decision.verdict is Verdict.OK
    # Given back, and asked again with another model; then another model in the place of the first.
    made = await books.book.reserve(books.wanted("r", scope=scope))
    await books.book.release("limited", made.reservation_id)
    await books.book.release("limited", made.reservation_id)
    for model in ("big", "small"):
        wanted = books.wanted("r", scope=scope, model=model, payload_digest=DIGEST)
        assert (await books.book.reserve(wanted)).decision.verdict is Verdict.OK
    assert (await books.book.reserve(books.wanted(scope=scope))).decision.verdict is Verdict.OK
    assert (await books.book.reserve(books.wanted(scope=scope))).decision.verdict is Verdict.RATE_LIMITED


async def test_a_request_that_spent_something_is_given_back_once(books: Books) -> None:
    scope = await tenant(books, requests=3)
    await books.book.reserve(books.wanted(scope=scope))
    made = await books.book.reserve(books.wanted("r", scope=scope))
    failed = books.attempt("r", FAILED, tenant_id="limited", reservation_id=made.reservation_id)
    await books.record(failed)
    for _ in range(3):
        await books.book.release("limited", made.reservation_id)
    assert (await books.book.reserve(books.wanted("r", scope=scope))).decision.verdict is Verdict.OK
    assert (await books.book.reserve(books.wanted(scope=scope))).decision.verdict is Verdict.OK
    assert (await books.book.reserve(books.wanted(scope=scope))).decision.verdict is Verdict.RATE_LIMITED


async def test_what_a_budget_refuses_is_not_counted(books: Books) -> None:
    await books.budget(0)
    for _ in range(100):
        assert (await books.book.reserve(books.wanted())).decision.verdict is Verdict.REFUSED


async def test_counts_do_not_overflow(books: Books) -> None:
    scope = await tenant(books, requests=100_000)
    huge = {"scope": scope, "input_tokens": 4 * 10**18, "max_output_tokens": 0, "model": "free"}
    row = '{model: free, valid_from: 2025-01-01, input: "0", output: "0", confirmed: true, source: test}'
    version = await books.prices.add(parse_prices(f"prices: [{row}]"))
    for _ in range(3):
        made = await books.book.reserve(books.wanted(price_book_version=version, **huge))  # type: ignore[arg-type]
        assert made.decision.verdict is Verdict.OK


async def test_limits_go_out_with_the_snapshot(books: Books) -> None:
    await tenant(books, requests=3, tokens=4)
    snapshot = await books.admin.snapshot("")
    assert snapshot is not None
    [policy] = [each.tenant for each in snapshot.policies if each.tenant.tenant_id == "limited"]
    assert (policy.max_requests_per_minute, policy.max_tokens_per_minute, policy.control_share) == (3, 4, 0.25)


async def test_a_batch_neither_asks_nor_counts(books: Books) -> None:
    scope = await tenant(books, requests=2, tokens=60_000)
    for index in range(5):
        made = await books.book.reserve(books.wanted(f"b{index}", scope=scope, batch=True))
        assert made.decision.verdict is Verdict.OK
    # What was never counted is not given back either: two callers fit, and no third.
    await books.book.release("limited", made.reservation_id)
    for index in range(2):
        one = books.wanted(f"r{index}", scope=scope, payload_digest=DIGEST)
        assert (await books.book.reserve(one)).decision.verdict is Verdict.OK
    assert (await books.book.reserve(books.wanted(scope=scope))).decision.verdict is Verdict.RATE_LIMITED
    # A used-up minute stops no batch; one of the callers that turns into a batch's item gives its place back.
    assert (await books.book.reserve(books.wanted("late", scope=scope, batch=True))).decision.verdict is Verdict.OK
    turned = books.wanted("r0", scope=scope, batch=True, payload_digest=DIGEST)
    assert (await books.book.reserve(turned)).decision.verdict is Verdict.OK
    assert (await books.book.reserve(books.wanted("r2", scope=scope))).decision.verdict is Verdict.OK
    assert (await books.book.reserve(books.wanted(scope=scope))).decision.verdict is Verdict.RATE_LIMITED


async def test_a_batch_that_is_prepared_again_holds_its_funds_for_longer(books: Books) -> None:
    scope = await tenant(books)
    week = 7 * 86_400 * SECOND
    first = await books.book.reserve(books.wanted("r", scope=scope, batch=True, ttl_ns=week))
    books.clock.advance(86_400)
    again = await books.book.reserve(books.wanted("r", scope=scope, batch=True, ttl_ns=week))
    assert again.reservation_id == first.reservation_id
    books.clock.advance(7 * 86_400 - 1)
    await books.sweeper.sweep()
    assert (await books.reports.status()).open_reservation_count == 1
    books.clock.advance(2)
    await books.sweeper.sweep()
    assert (await books.reports.status()).open_reservation_count == 0
