"""Reservations hold what running requests can still cost, on both stores."""

from __future__ import annotations

from typing import Any

import pytest
from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import receipt_pb2, usage_pb2

from mesh.errors import TenthError
from mesh.wire import build_receipt
from services.ledger.policy import Scope, Verdict
from tests.integration.ledger.ledger_books import Books

STARTED = ledger_pb2.ATTEMPT_KIND_STARTED
FAILED = ledger_pb2.ATTEMPT_KIND_FAILED
CANCELLED = ledger_pb2.ATTEMPT_KIND_CANCELLED
FINISHED = ledger_pb2.ATTEMPT_KIND_FINISHED
COST = 3_000_000
"""A reservation: 1,000 input and 1,000 output tokens on the small model."""
SPENT = 1_800_000
"""An attempt: 800 input and 500 output tokens."""
DIGEST = "ab" * 32
WORST = usage_pb2.Usage(input_token_count=1000, output_token_count=1000)


async def held(books: Books) -> int:
    """What is reserved: by the budget's window and by the reservations themselves, which must agree."""
    reserved = (await books.position()).reserved
    assert (await books.reports.status()).open_reserved == reserved
    return reserved


async def test_a_first_attempt_is_within_its_reservation(books: Books) -> None:
    await books.budget(10 * COST)
    made = await books.book.reserve(books.wanted("r"))
    await books.record(books.attempt("r", STARTED, usage=WORST, reservation_id=made.reservation_id))
    assert await held(books) == COST
    await books.record(books.attempt("r", FINISHED, reservation_id=made.reservation_id))
    assert await held(books) == COST


async def test_a_second_attempt_raises_what_is_held(books: Books) -> None:
    await books.budget(10 * COST)
    made = await books.book.reserve(books.wanted("r"))
    under: dict[str, Any] = {"reservation_id": made.reservation_id}
    await books.record(books.attempt("r", STARTED, usage=WORST, **under), books.attempt("r", FAILED, **under))
    assert await held(books) == COST
    await books.record(books.attempt("r", STARTED, 2, usage=WORST, **under))
    assert await held(books) == SPENT + COST
    # Its records come again: nothing is added twice.
    await books.record(books.attempt("r", STARTED, 2, usage=WORST, **under), books.attempt("r", FAILED, **under))
    assert await held(books) == SPENT + COST
    # And is counted at admission: 10 - 1.6 leaves 8 and a bit.
    made_now = [await books.book.reserve(books.wanted()) for _ in range(9)]
    assert [each.decision.verdict for each in made_now] == [Verdict.OK] * 8 + [Verdict.DOWNGRADE]


@pytest.mark.parametrize("end", ["settle", "expire"])
async def test_exactly_what_is_held_is_taken_out(books: Books, end: str) -> None:
    await books.budget(10 * COST)
    made = await books.book.reserve(books.wanted("r"))
    under: dict[str, Any] = {"reservation_id": made.reservation_id}
    await books.record(books.attempt("r", FAILED, **under), books.attempt("r", STARTED, 2, usage=WORST, **under))
    await books.record(books.attempt("r", FAILED, 2, **under), books.attempt("r", STARTED, 3, usage=WORST, **under))
    assert await held(books) == 2 * SPENT + COST
    if end == "settle":
        facts = books.facts("r", attempt=3)
        for number in (1, 2):
            item = facts.overheads.add(kind="failed_attempt", model="small", attempt=number)
            item.usage.CopyFrom(usage_pb2.Usage(input_token_count=800, output_token_count=500))
        book = await books.prices.at(1, books.clock.now)
        assert await books.settle(build_receipt(facts, book, receipt_pb2.RECEIPT_STATE_PENDING)) == [""]
        assert (await books.position()).spent == 2 * SPENT + 1_710_000
    else:
        books.clock.advance(60 + 900 + 1)
        await books.sweeper.sweep()
        assert (await books.position()).spent == 2 * SPENT + COST
    assert await held(books) == 0


async def test_what_was_spent_stays_held_when_the_rest_is_given_back(books: Books) -> None:
    await books.budget(10 * COST)
    made = await books.book.reserve(books.wanted("r"))
    await books.record(books.attempt("r", FAILED, reservation_id=made.reservation_id))
    for _ in range(2):
        await books.book.release("acme", made.reservation_id)
        assert await held(books) == SPENT
    # The receipt never comes: the sweeper makes one of the records.
    books.clock.advance(61)
    await books.sweeper.sweep()
    assert await held(books) == 0
    assert (await books.position()).spent == SPENT
    await books.book.release("acme", made.reservation_id)
    assert await held(books) == 0


@pytest.mark.parametrize("digest", ["", DIGEST])
async def test_the_same_again_after_it_was_given_back_holds_its_worst_case_too(books: Books, digest: str) -> None:
    await books.budget(10 * COST)
    made = await books.book.reserve(books.wanted("r", payload_digest=digest))
    await books.record(books.attempt("r", FAILED, reservation_id=made.reservation_id))
    await books.book.release("acme", made.reservation_id)
    again = await books.book.reserve(books.wanted("r", payload_digest=digest))
    assert again.amount == await held(books) == SPENT + COST
    with pytest.raises(TenthError, match="REQUEST_ID_REUSED"):
        await books.book.reserve(books.wanted("r", model="big", payload_digest="cd" * 32))


async def test_what_was_spent_stays_held_when_the_next_model_is_refused(books: Books) -> None:
    await books.budget(2 * COST)
    made = await books.book.reserve(books.wanted("r", payload_digest=DIGEST))
    await books.record(books.attempt("r", FAILED, reservation_id=made.reservation_id))
    dear = await books.book.reserve(books.wanted("r", model="big", payload_digest=DIGEST))
    assert dear.decision.verdict is Verdict.DOWNGRADE
    assert await held(books) == SPENT
    cheap = await books.book.reserve(books.wanted("r", max_output_tokens=500, payload_digest=DIGEST))
    assert cheap.amount == await held(books) == SPENT + 2_000_000


async def test_another_model_after_a_failure_holds_both(books: Books) -> None:
    await books.budget(10 * COST)
    first = await books.book.reserve(books.wanted("r", payload_digest=DIGEST))
    failed = books.attempt("r", FAILED, reservation_id=first.reservation_id)
    await books.record(books.attempt("r", STARTED, usage=WORST, reservation_id=first.reservation_id), failed)
    await books.book.release("acme", first.reservation_id)
    second = await books.book.reserve(books.wanted("r", max_output_tokens=2000, payload_digest=DIGEST))
    assert second.amount == SPENT + 5_000_000
    assert await held(books) == second.amount


async def test_a_record_that_comes_after_the_next_reservation_is_added(books: Books) -> None:
    await books.budget(10 * COST)
    first = await books.book.reserve(books.wanted("r", payload_digest=DIGEST))
    await books.book.release("acme", first.reservation_id)
    second = await books.book.reserve(books.wanted("r", max_output_tokens=2000, payload_digest=DIGEST))
    await books.record(books.attempt("r", STARTED, usage=WORST, reservation_id=first.reservation_id))
    assert await held(books) == second.amount + COST
    await books.record(books.attempt("r", FAILED, reservation_id=first.reservation_id))
    assert await held(books) == second.amount + SPENT
    await books.record(books.attempt("r", STARTED, 2, usage=WORST, reservation_id=second.reservation_id))
    assert await held(books) == second.amount + SPENT


async def test_the_routers_own_call_is_held(books: Books) -> None:
    await books.budget(10 * COST)
    await books.record(books.attempt("r", FINISHED, 501, purpose="classifier"))
    assert (await books.book.reserve(books.wanted("r"))).amount == COST + SPENT


async def test_what_a_receipt_accounts_for_is_not_held_again(books: Books) -> None:
    await books.budget(10 * COST)
    made = await books.book.reserve(books.wanted("r", payload_digest=DIGEST))
    await books.record(books.attempt("r", FAILED, reservation_id=made.reservation_id))
    failed = books.facts("r", failed=True, payload_digest=DIGEST, model="")
    item = failed.overheads.add(kind="failed_attempt", model="small", attempt=1)
    item.usage.CopyFrom(usage_pb2.Usage(input_token_count=800, output_token_count=500))
    book = await books.prices.at(1, books.clock.now)
    assert await books.settle(build_receipt(failed, book, receipt_pb2.RECEIPT_STATE_PENDING)) == [""]
    again = await books.book.reserve(books.wanted("r", payload_digest=DIGEST))
    assert again.amount == COST
    await books.record(books.attempt("r", STARTED, 2, usage=WORST, reservation_id=again.reservation_id))
    assert await held(books) == COST


async def test_a_model_without_a_price_does_not_stop_the_records(books: Books) -> None:
    await books.budget(10 * COST)
    await books.book.reserve(books.wanted("r"))
    event = books.attempt("r", FAILED, model="nobody-priced-it")
    assert await books.record(event, books.attempt("r", FAILED, 2, price_book_version=77)) == 2
    assert await held(books) == COST


async def test_the_other_tenants_request_of_that_id_is_left_alone(books: Books) -> None:
    await books.budget(10 * COST)
    await books.book.reserve(books.wanted("r"))
    await books.book.reserve(books.wanted("r", scope=Scope("umbrella", "", "", "small")))
    await books.record(*(books.attempt("r", STARTED, number, tenant_id="umbrella", usage=WORST) for number in (1, 2)))
    assert (await books.position()).reserved == COST
    assert (await books.reports.status()).open_reserved == 2 * COST + 2 * COST


async def test_an_amount_past_64_bits_is_held_at_its_end(books: Books) -> None:
    await books.budget(2**63 - 1)
    made = await books.book.reserve(books.wanted("r", input_tokens=8 * 10**15, max_output_tokens=0))
    huge = usage_pb2.Usage(input_token_count=8 * 10**15)
    under: dict[str, Any] = {"reservation_id": made.reservation_id, "usage": huge}
    await books.record(books.attempt("r", FAILED, **under), books.attempt("r", STARTED, 2, **under))
    assert await held(books) == 2**63 - 1
    assert (await books.book.reserve(books.wanted())).decision.verdict is Verdict.REFUSED
