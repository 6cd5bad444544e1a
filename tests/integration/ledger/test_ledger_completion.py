"""Retries and attempts that a receipt does not name: nothing counts twice, nothing is forgotten, on both stores."""

from __future__ import annotations

import pytest
from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import receipt_pb2, usage_pb2

from mesh.errors import TenthError
from mesh.wire import build_receipt
from services.ledger.reconcile import Swept
from tests.integration.ledger.ledger_books import Books

STARTED = ledger_pb2.ATTEMPT_KIND_STARTED
FINISHED = ledger_pb2.ATTEMPT_KIND_FINISHED
FAILED = ledger_pb2.ATTEMPT_KIND_FAILED
DIGEST, OTHER = "a" * 64, "b" * 64
SPENT = 1_800_000
"""800 input and 500 output tokens on the small model."""


async def test_an_attempt_that_no_receipt_names_becomes_overhead(books: Books) -> None:
    await books.budget(10**9)
    given = await books.receipt("r", attempt=2, payload_digest=DIGEST)
    await books.record(books.attempt("r", STARTED, 1), books.attempt("r", STARTED, 2), books.attempt("r", FINISHED, 2))
    assert await books.settle(given) == [""]
    assert (await books.reports.status()).unreceipted_request_count == 1
    assert await books.sweeper.sweep() == Swept(), "the attempt may still end"
    await books.record(books.attempt("r", FAILED, 1))
    assert await books.sweeper.sweep() == Swept(reconciled=1), "due at once, no waiting"
    stored = await books.stored("r")
    assert [(item.kind, item.attempt) for item in stored.facts.overheads] == [("failed_attempt", 1)]
    assert stored.overhead_nano_usd == SPENT
    assert stored.actual_nano_usd == given.actual_nano_usd + SPENT
    assert (await books.position()).spent == stored.actual_nano_usd
    assert (await books.reports.status()).unreceipted_request_count == 0
    assert await books.settle(given) == [""], "delivered again it is still the same receipt"
    assert (await books.stored("r")).actual_nano_usd == given.actual_nano_usd + SPENT
    assert (await books.position()).spent == given.actual_nano_usd + SPENT


async def test_an_attempt_that_came_before_the_receipt_is_found_at_settling(books: Books) -> None:
    await books.record(books.attempt("r", STARTED, 1), books.attempt("r", FAILED, 1))
    assert await books.settle(await books.receipt("r", attempt=2, payload_digest=DIGEST)) == [""]
    assert await books.sweeper.sweep() == Swept(reconciled=1)
    assert (await books.stored("r")).overhead_nano_usd == SPENT


async def test_an_attempt_that_spent_nothing_leaves_the_receipt_alone(books: Books) -> None:
    await books.settle(await books.receipt("r", attempt=2, payload_digest=DIGEST))
    nothing = usage_pb2.Usage()
    await books.record(books.attempt("r", STARTED, 1), books.attempt("r", FAILED, 1, usage=nothing))
    assert await books.sweeper.sweep() == Swept()
    assert (await books.reports.status()).unreceipted_request_count == 0
    assert not (await books.stored("r")).facts.overheads


async def test_an_attempt_that_never_ends_counts_with_its_worst_case(books: Books) -> None:
    await books.settle(await books.receipt("r", attempt=2, payload_digest=DIGEST))
    await books.record(books.attempt("r", STARTED, 1))
    assert await books.sweeper.sweep() == Swept()
    books.clock.advance(100_000)
    assert await books.sweeper.sweep() == Swept(reconciled=1)
    (item,) = (await books.stored("r")).facts.overheads
    assert item.usage.estimated


async def test_a_retry_after_a_failure_reserves_and_replaces_the_failed_receipt(books: Books) -> None:
    await books.budget(10**9)
    await books.record(books.attempt("r", STARTED, 1), books.attempt("r", FAILED, 1))
    failed = await failed_receipt(books, "r", attempt=1)
    assert await books.settle(failed) == [""]
    assert (await books.position()).spent == SPENT
    made = await books.book.reserve(books.wanted("r", payload_digest=DIGEST))
    assert made.reservation_id
    answered = await books.receipt("r", attempt=2, payload_digest=DIGEST)
    assert await books.settle(answered) == [""]
    assert await books.sweeper.sweep() == Swept(reconciled=1), "the first try's spend comes back as overhead"
    stored = await books.stored("r")
    assert not stored.facts.failed
    assert stored.actual_nano_usd == answered.actual_nano_usd + SPENT
    position = await books.position()
    assert (position.spent, position.reserved) == (stored.actual_nano_usd, 0)
    assert (await books.reports.status()).receipt_count == 1


async def test_a_late_failure_does_not_replace_an_answer(books: Books) -> None:
    answered = await books.receipt("r", attempt=2, payload_digest=DIGEST)
    await books.settle(answered)
    books.clock.advance(1)
    assert await books.settle(await failed_receipt(books, "r", attempt=1)) == [""]
    assert (await books.stored("r")).actual_nano_usd == answered.actual_nano_usd


async def test_of_two_answers_the_later_stands_whatever_the_order_of_arrival(books: Books) -> None:
    early = await books.receipt("r", attempt=1, payload_digest=DIGEST)
    books.clock.advance(5)
    late = await books.receipt("r", attempt=2, payload_digest=DIGEST)
    assert await books.settle(late, early) == ["", ""]
    assert (await books.stored("r")).facts.attempt == 2
    assert await books.settle(early) == [""]
    assert (await books.stored("r")).facts.attempt == 2
    await books.record(books.attempt("r", FINISHED, 1), books.attempt("r", FINISHED, 2))
    assert await books.sweeper.sweep() == Swept(reconciled=1)
    assert (await books.stored("r")).overhead_nano_usd == SPENT, "the earlier answer was paid for as well"


async def test_another_payload_is_refused(books: Books) -> None:
    await books.settle(await books.receipt("r", payload_digest=DIGEST))
    assert await books.settle(await books.receipt("r", attempt=9, payload_digest=OTHER)) == ["REQUEST_ID_REUSED"]
    with pytest.raises(TenthError) as caught:
        await books.book.reserve(books.wanted("r", payload_digest=OTHER))
    assert caught.value.reason == "REQUEST_ID_REUSED"


async def test_a_retry_with_another_model_takes_the_place_of_what_was_held(books: Books) -> None:
    await books.budget(5_000_000)
    first = await books.book.reserve(books.wanted("r", payload_digest=DIGEST))
    second = await books.book.reserve(books.wanted("r", payload_digest=DIGEST, max_output_tokens=500))
    assert second.reservation_id not in ("", first.reservation_id)
    assert (await books.position()).reserved == second.amount
    with pytest.raises(TenthError):
        await books.book.reserve(books.wanted("r", payload_digest=OTHER, max_output_tokens=400))


async def failed_receipt(books: Books, request_id: str, attempt: int) -> receipt_pb2.Receipt:
    """A failed request whose attempt is on its receipt."""
    item = receipt_pb2.OverheadItem(
        kind="failed_attempt",
        model="small",
        attempt=attempt,
        usage=usage_pb2.Usage(input_token_count=800, output_token_count=500),
    )
    facts = books.facts(request_id, failed=True, attempt=0, payload_digest=DIGEST)
    facts.overheads.append(item)
    book = await books.prices.at(facts.price_book_version, facts.create_time.ToNanoseconds())
    return build_receipt(facts, book, receipt_pb2.RECEIPT_STATE_PENDING)
