"""Money where two parts of the ledger meet: corrections, lost requests, limits and the price book; on both stores."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Connection, func, select
from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import usage_pb2

from services.ledger import pricebook
from services.ledger.policy import Scope
from services.ledger.seeds import parse_prices
from services.ledger.tables import rate_minutes
from tests.integration.ledger.ledger_books import Books

STARTED = ledger_pb2.ATTEMPT_KIND_STARTED
FINISHED = ledger_pb2.ATTEMPT_KIND_FINISHED
FAILED = ledger_pb2.ATTEMPT_KIND_FAILED
CANCELLED = ledger_pb2.ATTEMPT_KIND_CANCELLED
DIGEST = "a" * 64
GUESS = usage_pb2.Usage(input_token_count=800, output_token_count=500, estimated=True)
EXACT = usage_pb2.Usage(input_token_count=900, output_token_count=700)


async def test_a_corrected_answer_of_the_baseline_model_saves_nothing(books: Books) -> None:
    await books.record(
        books.attempt("r", STARTED, model="big"), books.attempt("r", CANCELLED, model="big", usage=GUESS)
    )
    given = await books.receipt(
        "r", model="big", baseline_input_token_count=800, original_input_token_count=800, usage=GUESS
    )
    assert await books.settle(given) == [""]
    await books.record(books.attempt("r", FINISHED, model="big", usage=EXACT))
    stored = await books.stored("r")
    assert stored.facts.usage == EXACT
    assert stored.baseline_nano_usd == stored.actual_nano_usd
    assert [item.saving_nano_usd for item in stored.savings] == [0] * 6


async def test_a_baseline_counted_by_its_own_tokenizer_stays_when_an_answer_is_corrected(books: Books) -> None:
    await books.record(books.attempt("r", STARTED), books.attempt("r", CANCELLED, usage=GUESS))
    assert await books.settle(await books.receipt("r", baseline_input_token_count=1100, usage=GUESS)) == [""]
    await books.record(books.attempt("r", FINISHED, usage=EXACT))
    assert (await books.stored("r")).facts.baseline_input_token_count == 1100


async def test_what_a_lost_request_spent_counts_in_the_budget_of_its_tag(books: Books) -> None:
    await books.budget(10**9, tag_key="team", tag_value="search")
    held = await books.book.reserve(books.wanted("r", scope=Scope("acme", "", "", "small", (("team", "search"),))))
    await books.record(books.attempt("r", STARTED), books.attempt("r", FINISHED, reservation_id=held.reservation_id))
    books.clock.advance(61)
    await books.sweeper.sweep()
    stored = await books.stored("r")
    assert dict(stored.facts.tags) == {"team": "search", "tenth.reconciled": "true"}
    position = await books.position()
    assert (position.spent, position.reserved) == (stored.actual_nano_usd, 0)


async def test_a_lost_request_keeps_its_tags_when_its_reservation_is_closed_already(books: Books) -> None:
    await books.budget(10**9, tag_key="team", tag_value="search")
    held = await books.book.reserve(books.wanted("r", scope=Scope("acme", "", "", "small", (("team", "search"),))))
    books.clock.advance(61)
    await books.sweeper.sweep()
    await books.record(books.attempt("r", STARTED), books.attempt("r", FINISHED, reservation_id=held.reservation_id))
    books.clock.advance(601)
    await books.sweeper.sweep()
    assert (await books.position()).spent == (await books.stored("r")).actual_nano_usd > 0


async def test_a_correction_is_no_attempt_of_its_own(books: Books) -> None:
    await books.record(books.attempt("r", STARTED), books.attempt("r", FINISHED, usage=GUESS))
    await books.record(books.attempt("r", FINISHED, usage=EXACT))
    assert (await books.reports.status()).attempt_count == 1


async def test_an_estimate_and_the_truth_may_come_in_one_call(books: Books) -> None:
    events = [books.attempt("r", STARTED), books.attempt("r", FINISHED, usage=GUESS)]
    assert await books.record(*events, books.attempt("r", FINISHED, usage=EXACT)) == 3
    assert await books.settle(await books.receipt("r", usage=GUESS, payload_digest=DIGEST)) == [""]
    assert (await books.stored("r")).facts.usage == EXACT


async def test_any_reservation_can_be_given_back(books: Books) -> None:
    await books.prices.add(
        parse_prices(
            "prices:\n  - {model: own, valid_from: 2025-01-02, input: '0', output: '0', confirmed: true, source: t}\n"
        )
    )
    wanted = books.wanted("r", model="own", price_book_version=2, input_tokens=2**62, max_output_tokens=2**63 - 1)
    held = await books.book.reserve(wanted)
    await books.book.release("acme", held.reservation_id)
    assert (await books.reports.status()).open_reservation_count == 0
    async with books.store.read() as connection:
        assert (await connection.execute(select(func.sum(rate_minutes.c.request_count)))).scalar_one() == 0


async def test_prices_at_hand_are_not_read_again_while_others_wait_to_write(
    books: Books, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []

    def counted(connection: Connection, version: int) -> Any:
        read.append(version)
        raise AssertionError("the price book is at hand")

    held = await books.book.reserve(books.wanted("r", payload_digest=DIGEST))
    monkeypatch.setattr(pricebook, "load_version", counted)
    await books.record(books.attempt("r", STARTED), books.attempt("r", FAILED, usage=GUESS))
    await books.book.release("acme", held.reservation_id)
    await books.settle(await books.receipt("r", usage=GUESS, payload_digest=DIGEST))
    await books.record(books.attempt("r", FINISHED, usage=EXACT))
    assert (await books.stored("r")).facts.usage == EXACT
    assert read == []
