"""Retries, expiry and broken records where one of them met the other, on both stores."""

from __future__ import annotations

import pytest
from tenth.ledger.v1 import ledger_pb2

from mesh.errors import TenthError
from services.ledger.reconcile import Swept
from tests.integration.ledger.ledger_books import Books

STARTED = ledger_pb2.ATTEMPT_KIND_STARTED
FINISHED = ledger_pb2.ATTEMPT_KIND_FINISHED
DIGEST = "a" * 64


async def test_the_reservation_of_a_retry_that_died_is_released(books: Books) -> None:
    await books.budget(10**9)
    await books.record(books.attempt("r", STARTED, 1), books.attempt("r", FINISHED, 1))
    assert await books.settle(await books.receipt("r", payload_digest=DIGEST)) == [""]
    await books.book.reserve(books.wanted("r", payload_digest=DIGEST))
    books.clock.advance(61)
    assert await books.sweeper.sweep() == Swept(released=1)
    assert (await books.position()).reserved == 0
    assert await books.sweeper.sweep() == Swept()


async def test_the_reservation_of_a_retry_is_released_with_what_its_attempt_spent(books: Books) -> None:
    await books.budget(10**9)
    given = await books.receipt("r", payload_digest=DIGEST)
    assert await books.settle(given) == [""]
    await books.book.reserve(books.wanted("r", payload_digest=DIGEST))
    await books.record(books.attempt("r", STARTED, 2), books.attempt("r", FINISHED, 2))
    books.clock.advance(61)
    assert await books.sweeper.sweep() == Swept(released=1, reconciled=1)
    assert (await books.position()).reserved == 0
    assert (await books.position()).spent == (await books.stored("r")).actual_nano_usd > given.actual_nano_usd


async def test_a_retry_may_reserve_after_its_budget_was_added(books: Books) -> None:
    first = await books.book.reserve(books.wanted("r", payload_digest=DIGEST))
    await books.budget(10**9)
    second = await books.book.reserve(books.wanted("r", payload_digest=DIGEST, max_output_tokens=500))
    assert second.reservation_id not in ("", first.reservation_id)
    assert (await books.position()).reserved == second.amount


async def test_a_retry_may_reserve_after_the_lost_try_was_reconciled(books: Books) -> None:
    await books.record(books.attempt("r", STARTED, 1), books.attempt("r", FINISHED, 1))
    books.clock.advance(601)
    assert await books.sweeper.sweep() == Swept(reconciled=1)
    assert (await books.book.reserve(books.wanted("r", payload_digest=DIGEST))).reservation_id
    await books.record(books.attempt("r", STARTED, 2), books.attempt("r", FINISHED, 2))
    assert await books.settle(await books.receipt("r", attempt=2, payload_digest=DIGEST)) == [""]
    assert await books.sweeper.sweep() == Swept(reconciled=1)
    stored = await books.stored("r")
    assert not stored.facts.failed
    assert [item.attempt for item in stored.facts.overheads] == [1], "what the lost try spent is not forgotten"
    with pytest.raises(TenthError, match="settled already"):
        await books.book.reserve(books.wanted("r", payload_digest="b" * 64))


async def test_a_receipt_that_replaces_nothing_still_ends_its_reservation(books: Books) -> None:
    await books.budget(10**9)
    answered = await books.receipt("r", payload_digest=DIGEST)
    assert await books.settle(answered) == [""]
    await books.book.reserve(books.wanted("r", payload_digest=DIGEST))
    assert await books.settle(answered) == [""]
    assert (await books.position()).reserved > 0, "delivered again it says nothing about the retry"
    failed = await books.receipt("r", attempt=0, failed=True, payload_digest=DIGEST)
    assert await books.settle(failed) == [""]
    assert (await books.position()).reserved == 0
    assert (await books.stored("r")).actual_nano_usd == answered.actual_nano_usd


async def test_one_broken_record_does_not_stop_the_reconciling_of_others(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b", "c"):
        await books.book.reserve(books.wanted(name))
    books.clock.advance(61)
    real = books.sweeper._reconcile

    async def broken(tenant_id: str, request_id: str) -> Swept:
        if request_id == "a":
            raise KeyError("a defect")
        return await real(tenant_id, request_id)

    monkeypatch.setattr(books.sweeper, "_reconcile", broken)
    assert await books.sweeper.sweep() == Swept(released=2)
