"""A price that changes around a request: what is reserved is never less than what its receipt can cost."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from services.ledger.policy import Verdict
from services.ledger.seeds import parse_prices
from tests.integration.ledger.ledger_books import SECOND, START_NS, Books

COST = 3_000_000
TTL = 60


async def change_price(books: Books, after_seconds: int, factor: int | float) -> int:
    """Let the small model cost so many times as much from then on; the version of the book that says so."""
    when = datetime.fromtimestamp(START_NS // SECOND + after_seconds, UTC).isoformat()
    values = f'input: "{factor}", output: "{2 * factor}", cached_input: "{factor / 10}"'
    return await books.prices.add(
        parse_prices(f'prices:\n  - {{model: small, valid_from: "{when}", {values}, source: test}}')
    )


@pytest.mark.parametrize(
    ("change", "factor", "created", "reserved", "amount"),
    [
        # Dearer when it was created, which is when its receipt is priced.
        (1, 0.5, 0, 2, COST),
        # Dearer now: attempts of a request whose receipt is lost are priced at their own time.
        (1, 4, 0, 2, 4 * COST),
        # Dearer before the reservation expires, at the expiry, and only after it.
        (30, 4, 0, 0, 4 * COST),
        (TTL, 4, 0, 0, 4 * COST),
        (TTL + 1, 4, 0, 0, COST),
        # Cheaper soon changes nothing.
        (30, 0.5, 0, 0, COST),
        # The orchestrator's clock is ahead, beyond the expiry.
        (100, 4, 120, 0, 4 * COST),
    ],
)
async def test_the_dearest_price_from_creation_to_expiry_is_reserved(
    books: Books, change: int, factor: float, created: int, reserved: int, amount: int
) -> None:
    version = await change_price(books, change, factor)
    books.clock.advance(reserved)
    wanted = books.wanted("r", price_book_version=version, ttl_ns=TTL * SECOND, create_ns=START_NS + created * SECOND)
    made = await books.book.reserve(wanted)
    assert (made.decision.verdict, made.amount) == (Verdict.OK, amount)
    at = Timestamp()
    at.FromNanoseconds(START_NS + created * SECOND)
    receipt = await books.receipt("r", price_book_version=version, create_time=at)
    assert receipt.actual_nano_usd <= made.amount
    assert await books.settle(receipt) == [""]


async def test_the_pinned_version_knows_no_later_price(books: Books) -> None:
    await change_price(books, 1, 4)
    books.clock.advance(2)
    assert (await books.book.reserve(books.wanted(price_book_version=1))).amount == COST


async def test_a_budget_refuses_what_only_the_older_price_would_pass(books: Books) -> None:
    await books.budget(COST // 2)
    version = await change_price(books, 1, 0.5)
    books.clock.advance(2)
    before = books.wanted("r", price_book_version=version, create_ns=START_NS)
    assert (await books.book.reserve(before)).decision.verdict is Verdict.DOWNGRADE
    after = books.wanted("s", price_book_version=version, create_ns=books.clock.now)
    assert (await books.book.reserve(after)).decision.verdict is Verdict.OK
    # The same request with another time of creation (a retry) is the same request.
    again = books.wanted("s", price_book_version=version, create_ns=books.clock.now + 1)
    assert (await books.book.reserve(again)).decision.verdict is Verdict.OK
