"""Estimates on receipts that the truth corrects later: amounts, budgets, events, nothing twice; on both stores."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import receipt_pb2, usage_pb2

from mesh.wire import build_receipt
from services.ledger.reconcile_usage import Outcome, Row, reconcile
from services.ledger.seeds import parse_prices
from services.ledger.tables import attempts, receipt_events
from tests.integration.ledger.ledger_books import Books

STARTED = ledger_pb2.ATTEMPT_KIND_STARTED
FINISHED = ledger_pb2.ATTEMPT_KIND_FINISHED
FAILED = ledger_pb2.ATTEMPT_KIND_FAILED
CANCELLED = ledger_pb2.ATTEMPT_KIND_CANCELLED
DIGEST = "a" * 64
GUESS = usage_pb2.Usage(input_token_count=800, output_token_count=500, estimated=True)
MORE = usage_pb2.Usage(input_token_count=900, cached_input_token_count=100, output_token_count=700)
LESS = usage_pb2.Usage(input_token_count=700, output_token_count=300, reasoning_output_token_count=200)
COST = {"guess": 1_800_000, "more": 800_000 + 10_000 + 1_400_000, "less": 1_300_000}


async def estimated(books: Books, kind: Any = CANCELLED, **changes: Any) -> receipt_pb2.Receipt:
    """A settled answer whose usage is an estimate, with the records of its attempt."""
    await books.record(books.attempt("r", STARTED), books.attempt("r", kind, usage=GUESS))
    given = await books.receipt("r", usage=GUESS, cancelled=kind == CANCELLED, payload_digest=DIGEST, **changes)
    assert await books.settle(given) == [""]
    return given


async def kinds_and_deltas(books: Books) -> list[tuple[str, int]]:
    query = select(receipt_events.c.kind, receipt_events.c.actual_delta).order_by(receipt_events.c.id)
    async with books.store.read() as connection:
        return [(row.kind, row.actual_delta) for row in await connection.execute(query)]


def identity_holds(receipt: receipt_pb2.Receipt) -> bool:
    saved = sum(item.saving_nano_usd for item in receipt.savings)
    return receipt.baseline_nano_usd - saved + receipt.overhead_nano_usd == receipt.actual_nano_usd


@pytest.mark.parametrize(("truth", "cost"), [(MORE, COST["more"]), (LESS, COST["less"])], ids=["up", "down"])
@pytest.mark.parametrize("kind", [CANCELLED, FAILED, FINISHED], ids=["cancelled", "failed", "finished"])
async def test_an_estimated_answer_is_corrected(books: Books, truth: Any, cost: int, kind: Any) -> None:
    await books.budget(10**9)
    given = await estimated(books, kind)
    assert (await books.position()).spent == given.actual_nano_usd == COST["guess"]
    books.clock.advance(3_600)
    assert await books.record(books.attempt("r", FINISHED, usage=truth)) == 1
    stored = await books.stored("r")
    assert stored.actual_nano_usd == cost
    assert stored.facts.usage == truth
    assert stored.facts.original_input_token_count == 1000 * truth.input_token_count // 800
    assert identity_holds(stored)
    assert (await books.position()).spent == cost
    assert await kinds_and_deltas(books) == [("settled", COST["guess"]), ("corrected", cost - COST["guess"])]
    # Nothing of it twice, and the receipt that was settled is still the same one.
    assert await books.record(books.attempt("r", FINISHED, usage=truth)) == 0
    assert await books.settle(given) == [""]
    assert (await books.position()).spent == cost
    assert len(await kinds_and_deltas(books)) == 2
    assert (await books.reports.status()).unreceipted_request_count == 0


async def test_the_truth_may_come_before_the_receipt(books: Books) -> None:
    await books.budget(10**9)
    await books.record(books.attempt("r", STARTED), books.attempt("r", CANCELLED, usage=GUESS))
    assert await books.record(books.attempt("r", FINISHED, usage=MORE)) == 1
    await books.settle(await books.receipt("r", usage=GUESS, payload_digest=DIGEST))
    assert (await books.stored("r")).actual_nano_usd == COST["more"]
    assert (await books.position()).spent == COST["more"]


async def test_the_record_of_inference_corrects_what_the_orchestrator_guessed(books: Books) -> None:
    await books.settle(await books.receipt("r", usage=GUESS, payload_digest=DIGEST))
    await books.record(books.attempt("r", STARTED), books.attempt("r", CANCELLED, usage=LESS))
    assert (await books.stored("r")).facts.usage == LESS


async def test_an_estimated_overhead_is_corrected_and_the_answer_left_alone(books: Books) -> None:
    await books.record(books.attempt("r", STARTED, 1), books.attempt("r", FAILED, 1, usage=GUESS))
    facts = books.facts("r", attempt=2, payload_digest=DIGEST)
    facts.overheads.add(kind="failed_attempt", model="small", attempt=1, usage=GUESS)
    book = await books.prices.at(1, books.clock.now)
    given = build_receipt(facts, book, receipt_pb2.RECEIPT_STATE_PENDING)
    await books.settle(given)
    await books.record(books.attempt("r", FINISHED, 1, usage=MORE))
    stored = await books.stored("r")
    assert stored.overhead_nano_usd == COST["more"]
    assert stored.actual_nano_usd - stored.overhead_nano_usd == given.actual_nano_usd - COST["guess"]
    assert stored.facts.usage == given.facts.usage
    assert stored.facts.overheads[0].kind == "failed_attempt"


async def test_a_receipt_made_from_attempts_is_corrected_too(books: Books) -> None:
    await books.budget(10**9)
    await books.record(books.attempt("r", STARTED))
    books.clock.advance(100_000)
    await books.sweeper.sweep()
    assert (await books.stored("r")).facts.overheads[0].usage.estimated, "its worst case"
    await books.record(books.attempt("r", FINISHED, usage=LESS))
    stored = await books.stored("r")
    assert stored.facts.failed
    assert stored.facts.overheads[0].usage == LESS, "with its reasoning"
    assert stored.actual_nano_usd == (await books.position()).spent == COST["less"]


async def test_reasoning_of_a_lost_request_is_on_its_receipt(books: Books) -> None:
    await books.record(books.attempt("r", STARTED), books.attempt("r", FAILED, usage=LESS))
    books.clock.advance(700)
    await books.sweeper.sweep()
    assert (await books.stored("r")).facts.overheads[0].usage == LESS


async def test_an_end_that_comes_after_its_worst_case_was_assumed_corrects_it(books: Books) -> None:
    await books.budget(10**9)
    given = await books.receipt("r", attempt=2, payload_digest=DIGEST)
    await books.settle(given)
    await books.record(books.attempt("r", STARTED, 1), books.attempt("other", STARTED, 1))
    books.clock.advance(100_000)
    await books.sweeper.sweep()
    assert (await books.stored("r")).facts.overheads[0].usage.estimated
    await books.record(books.attempt("r", FAILED, 1, usage=usage_pb2.Usage()))
    stored = await books.stored("r")
    assert (stored.overhead_nano_usd, stored.actual_nano_usd) == (0, given.actual_nano_usd)
    (done,) = await reconcile(books.store, [row("other")], books.clock, apply=True)
    assert (done.outcome, done.delta) == (Outcome.CORRECTED, COST["more"] - COST["guess"])
    assert (await books.position()).spent == given.actual_nano_usd + COST["more"]


async def test_an_exact_usage_is_never_corrected(books: Books) -> None:
    await books.record(books.attempt("r", STARTED), books.attempt("r", FAILED, usage=LESS))
    await books.settle(await books.receipt("r", usage=LESS, payload_digest=DIGEST))
    await books.record(books.attempt("r", FINISHED, usage=MORE))
    assert (await books.stored("r")).facts.usage == LESS
    assert [kind for kind, _ in await kinds_and_deltas(books)] == ["settled"]


async def test_another_estimate_corrects_nothing(books: Books) -> None:
    await estimated(books)
    wild = usage_pb2.Usage(input_token_count=1, output_token_count=1, estimated=True)
    await books.record(books.attempt("r", FINISHED, usage=wild))
    assert (await books.stored("r")).actual_nano_usd == COST["guess"]


async def test_another_tenants_and_another_models_record_corrects_nothing(books: Books) -> None:
    await estimated(books)
    await books.record(books.attempt("r", FINISHED, usage=MORE, tenant_id="umbrella"))
    await books.record(books.attempt("r", FINISHED, usage=MORE, model="big"))
    await books.record(books.attempt("other", FINISHED, usage=MORE))
    assert (await books.stored("r")).actual_nano_usd == COST["guess"]


async def test_a_correction_leaves_what_a_retry_holds(books: Books) -> None:
    await books.budget(10**9)
    await books.record(books.attempt("r", STARTED), books.attempt("r", FAILED, usage=GUESS))
    facts = books.facts("r", failed=True, attempt=0, payload_digest=DIGEST)
    facts.overheads.add(kind="failed_attempt", model="small", attempt=1, usage=GUESS)
    book = await books.prices.at(1, books.clock.now)
    await books.settle(build_receipt(facts, book, receipt_pb2.RECEIPT_STATE_PENDING))
    held = await books.book.reserve(books.wanted("r", payload_digest=DIGEST))
    await books.record(books.attempt("r", FINISHED, usage=MORE))
    position = await books.position()
    assert (position.spent, position.reserved) == (COST["more"], held.amount)


async def test_the_price_is_that_of_the_admission(books: Books) -> None:
    await estimated(books)
    books.clock.advance(60)
    later = "prices:\n  - {model: small, valid_from: 2026-06-15T12:00:30, input: '9', output: '9', source: t}\n"
    await books.prices.add(parse_prices(later))
    await books.record(books.attempt("r", FINISHED, usage=LESS))
    assert (await books.stored("r")).actual_nano_usd == COST["less"]


def row(request_id: str = "r", attempt: int = 1, usage: usage_pb2.Usage = MORE, tenant_id: str = "") -> Row:
    counts = {
        "input": usage.input_token_count,
        "cached": usage.cached_input_token_count,
        "write_5m": 0,
        "write_1h": 0,
        "output": usage.output_token_count,
        "reasoning": usage.reasoning_output_token_count,
    }
    return Row(2, request_id, attempt, counts, tenant_id)


@pytest.mark.parametrize("kind", [CANCELLED, FINISHED], ids=["cancelled", "finished"])
async def test_an_operators_file_corrects_and_says_so_first(books: Books, kind: Any) -> None:
    await books.budget(10**9)
    await estimated(books, kind)

    async def run(*rows: Row, apply: bool) -> list[tuple[Outcome, int]]:
        return [(done.outcome, done.delta) for done in await reconcile(books.store, rows, books.clock, apply=apply)]

    change = COST["more"] - COST["guess"]
    assert await run(row(), row("never"), apply=False) == [(Outcome.CORRECTED, change), (Outcome.UNKNOWN, 0)]
    assert (await books.stored("r")).actual_nano_usd == COST["guess"], "a dry run changes nothing"
    assert (await books.position()).spent == COST["guess"]
    assert await run(row(), apply=True) == [(Outcome.CORRECTED, change)]
    assert (await books.position()).spent == (await books.stored("r")).actual_nano_usd == COST["more"]
    assert await run(row(), row(usage=LESS), apply=True) == [(Outcome.ALREADY, 0), (Outcome.CONFLICT, 0)]
    assert await run(row(tenant_id="umbrella"), row(attempt=7), apply=True) == [(Outcome.UNKNOWN, 0)] * 2
    assert (await books.position()).spent == COST["more"]


async def test_an_operators_file_names_the_tenant_where_two_have_the_request(books: Books) -> None:
    await estimated(books)
    await books.record(books.attempt("r", CANCELLED, usage=GUESS, tenant_id="umbrella"))
    (done,) = await reconcile(books.store, [row()], books.clock, apply=True)
    assert done.outcome is Outcome.AMBIGUOUS
    (done,) = await reconcile(books.store, [row(tenant_id="umbrella")], books.clock, apply=True)
    assert done.outcome is Outcome.RECORDED
    assert (await books.stored("r")).actual_nano_usd == COST["guess"]
    async with books.store.read() as connection:
        query = select(attempts.c.tenant_id, attempts.c.kind).order_by(attempts.c.id)
        found = [tuple(each) for each in await connection.execute(query)]
    assert found[-1] == ("umbrella", "corrected")


async def test_the_command_runs_beside_a_running_ledger(books: Books, tmp_path: Path) -> None:
    await estimated(books)
    path = tmp_path / "usage.csv"
    path.write_text("request_id,attempt,input,cached,output\nr,1,900,100,700\n")
    environment = {**os.environ, "TENTH_LEDGER_DATABASE_URL": books.url}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "services.ledger.reconcile_usage", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=60)

    dry = run(str(path))
    assert (dry.returncode, dry.stderr) == (0, "")
    assert "line 2: r/1: corrected +410000 nano-USD" in dry.stdout
    assert "would change by +410000 nano-USD" in dry.stdout
    assert (await books.stored("r")).actual_nano_usd == COST["guess"]
    assert run(str(path), "--apply").returncode == 0
    assert (await books.stored("r")).actual_nano_usd == COST["more"]
    path.write_text("request_id,attempt,input,output\nr,1,many,700\n")
    wrong = run(str(path))
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "line 2: input is 'many'" in wrong.stderr
