"""Clocks that differ: money counts in the window that was checked, by the ledger's own clock."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tenth.ledger.v1 import ledger_pb2

from services.ledger.policy import Position, Verdict
from tests.integration.ledger.ledger_books import SECOND, Books

COST = 3_000_000
ACTUAL = 1_710_000
DIGEST = "ab" * 32
DAY = 86_400
NOON_TO_MIDNIGHT = 12 * 3600
WINDOWS = [
    {"window": "day"},
    {"window": "rolling", "rolling_seconds": 60},
]


async def windows(books: Books, offset: int = 0) -> Position:
    """Where the budget stands at an instant, seconds from now."""
    books.clock.advance(offset)
    position = await books.position()
    books.clock.advance(-offset)
    return position


@pytest.mark.parametrize("skew", [-300, 300])
@pytest.mark.parametrize("window", WINDOWS, ids=["day", "rolling"])
async def test_a_receipt_counts_where_its_reservation_was_checked(
    books: Books, window: dict[str, Any], skew: int
) -> None:
    # Two minutes before midnight, or two after it, by the ledger: the orchestrator's clock is on another day.
    books.clock.advance(NOON_TO_MIDNIGHT - 120 if skew > 0 else NOON_TO_MIDNIGHT + 120)
    await books.budget(COST, **window)
    made = await books.book.reserve(books.wanted("r"))
    assert made.decision.verdict is Verdict.OK
    books.clock.advance(skew)
    receipt = await books.receipt("r", reservation_id=made.reservation_id)
    books.clock.advance(-skew)
    assert await books.settle(receipt) == [""]
    assert (await books.position()).spent == ACTUAL
    assert (await books.position()).reserved == 0
    # The budget's hold on the day is as it was: what is left is not enough for another.
    assert (await books.book.reserve(books.wanted())).decision.verdict is Verdict.DOWNGRADE
    # The receipt itself is as it was sent, and delivered again it changes nothing.
    assert (await books.stored("r")).facts == receipt.facts
    assert await books.settle(receipt) == [""]
    assert (await books.position()).spent == ACTUAL


async def test_a_request_over_midnight_counts_on_the_day_of_its_reservation(books: Books) -> None:
    books.clock.advance(NOON_TO_MIDNIGHT - 1)
    await books.budget(COST, window="day")
    early = books.clock.now
    made = await books.book.reserve(books.wanted("r"))
    books.clock.advance(2)
    begun = Timestamp()
    begun.FromNanoseconds(early - SECOND)
    receipt = await books.receipt("r", reservation_id=made.reservation_id, create_time=begun)
    assert await books.settle(receipt) == [""]
    assert (await books.position()).spent == 0
    assert (await windows(books, -2)).spent == ACTUAL
    assert (await books.book.reserve(books.wanted())).decision.verdict is Verdict.OK


async def test_a_receipt_that_comes_after_the_expiry_still_counts_there(books: Books) -> None:
    books.clock.advance(NOON_TO_MIDNIGHT - 1)
    await books.budget(COST, window="day")
    made = await books.book.reserve(books.wanted("r"))
    books.clock.advance(120)
    await books.sweeper.sweep()
    assert (await windows(books, -120)).reserved == 0
    assert await books.settle(await books.receipt("r", reservation_id=made.reservation_id)) == [""]
    assert (await windows(books, -120)).spent == ACTUAL
    assert (await books.position()).spent == 0


async def test_a_reservation_of_another_request_moves_nothing(books: Books) -> None:
    books.clock.advance(NOON_TO_MIDNIGHT - 1)
    await books.budget(10 * COST, window="day")
    made = await books.book.reserve(books.wanted("other"))
    await books.book.release("acme", made.reservation_id)
    books.clock.advance(2)
    assert await books.settle(await books.receipt("r", reservation_id=made.reservation_id)) == [""]
    assert (await books.position()).spent == ACTUAL


async def test_a_request_of_the_future_counts_now(books: Books) -> None:
    await books.budget(COST, window="day")
    books.clock.advance(DAY - 1)
    receipt = await books.receipt("r")
    books.clock.advance(1 - DAY)
    assert await books.settle(receipt) == [""]
    assert (await books.position()).spent == ACTUAL
    assert (await windows(books, DAY)).spent == 0


async def test_a_retry_on_the_next_day_holds_what_the_first_try_spent(books: Books) -> None:
    books.clock.advance(NOON_TO_MIDNIGHT - 1)
    await books.budget(COST, window="day")
    await books.book.reserve(books.wanted("r", payload_digest=DIGEST))
    first = await books.receipt("r", payload_digest=DIGEST)
    assert await books.settle(first) == [""]
    books.clock.advance(2)
    refused = await books.book.reserve(books.wanted("r", payload_digest=DIGEST))
    assert refused.decision.verdict is Verdict.DOWNGRADE
    await books.budget(COST + ACTUAL, window="day")
    again = await books.book.reserve(books.wanted("r", payload_digest=DIGEST))
    assert again.amount == COST + ACTUAL
    second = await books.receipt("r", payload_digest=DIGEST, attempt=2, reservation_id=again.reservation_id)
    assert await books.settle(second) == [""]
    # One receipt, on the day of its retry; the day before has nothing of it any more.
    assert ((await books.position()).spent, (await windows(books, -2)).spent) == (ACTUAL, 0)


async def test_the_later_of_two_answers_is_the_later_by_the_clock_that_made_them(books: Books) -> None:
    # The orchestrator is five minutes behind: what counts later by the ledger's clock was made before.
    made = await books.book.reserve(books.wanted("r", payload_digest=DIGEST))
    books.clock.advance(-300)
    first = await books.receipt("r", payload_digest=DIGEST, reservation_id=made.reservation_id)
    books.clock.advance(60)
    second = await books.receipt("r", payload_digest=DIGEST, attempt=2)
    books.clock.advance(300)
    assert await books.settle(first) == [""]
    assert await books.settle(second, first) == ["", ""]
    assert (await books.stored("r")).facts.attempt == 2


async def test_attempts_of_a_clock_ahead_are_reconciled_in_the_window_that_was_checked(books: Books) -> None:
    books.clock.advance(NOON_TO_MIDNIGHT - 120)
    await books.budget(COST, window="day")
    made = await books.book.reserve(books.wanted("r"))
    books.clock.advance(300)
    event = books.attempt("r", ledger_pb2.ATTEMPT_KIND_FINISHED, reservation_id=made.reservation_id)
    await books.record(event)
    await books.sweeper.sweep()
    assert (await windows(books, -300)).spent == 1_800_000
    assert (await books.position()).spent == 0
