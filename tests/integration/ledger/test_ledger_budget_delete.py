"""A budget that is deleted: what it held goes on, and nothing of it is left, on both stores."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import func, select
from tenth.ledger.v1 import ledger_pb2

from mesh.errors import TenthError
from services.ledger.policy import Scope, Verdict
from services.ledger.tables import alerts, budget_windows
from tests.integration.ledger.ledger_books import Books

COST = 3_000_000
ACTUAL = 1_710_000


async def left(books: Books) -> int:
    """Windows and alerts in the database."""
    async with books.store.read() as connection:
        counts = [
            (await connection.execute(select(func.count()).select_from(table))).scalar_one()
            for table in (budget_windows, alerts)
        ]
    return sum(counts)


async def test_deleting_lifts_the_limit_and_again_changes_nothing(books: Books) -> None:
    await books.budget(COST, window="rolling", rolling_seconds=3600, alert_percents=(50,))
    await books.budget(10 * COST, name="other")
    assert (await books.book.reserve(books.wanted())).decision.verdict is Verdict.OK
    assert await books.settle(await books.receipt()) == [""]
    assert (await books.book.reserve(books.wanted())).decision.verdict is Verdict.REFUSED
    before = await books.admin.snapshot("")
    assert before is not None
    assert await books.admin.delete_budget("acme", "all")
    after = await books.admin.snapshot(before.version)
    assert after is not None
    assert (await books.book.reserve(books.wanted())).decision.verdict is Verdict.OK
    assert [each.budget.name for each in await books.admin.budgets("acme")] == ["other"]
    assert await left(books) == 1
    assert not await books.admin.delete_budget("acme", "all")
    assert not await books.admin.delete_budget("umbrella", "other")
    # What changed nothing makes no new snapshot.
    assert await books.admin.snapshot(after.version) is None
    with pytest.raises(TenthError, match="UNKNOWN_TENANT"):
        await books.admin.delete_budget("nobody", "other")


async def test_the_last_hard_budget_of_a_tenant_is_gone_from_the_snapshot(books: Books) -> None:
    async def hard() -> bool:
        snapshot = await books.admin.snapshot("")
        assert snapshot is not None
        return next(each.has_hard_budget for each in snapshot.policies if each.tenant.tenant_id == "acme")

    await books.budget(COST)
    assert await hard()
    await books.admin.delete_budget("acme", "all")
    assert not await hard()


async def test_what_it_held_is_settled_released_and_reconciled_all_the_same(books: Books) -> None:
    await books.budget(100 * COST)
    await books.budget(100 * COST, name="month", window="month")
    made = [await books.book.reserve(books.wanted(f"r{index}")) for index in range(4)]
    await books.record(books.attempt("r2", ledger_pb2.ATTEMPT_KIND_STARTED))
    await books.record(books.attempt("r2", ledger_pb2.ATTEMPT_KIND_FINISHED))
    await books.admin.delete_budget("acme", "all")
    assert await books.settle(await books.receipt("r0")) == [""]
    await books.book.release("acme", made[1].reservation_id)
    books.clock.advance(601)
    swept = await books.sweeper.sweep()
    assert (swept.released, swept.reconciled) == (2, 1)
    position = await books.position("month")
    assert (position.spent, position.reserved) == (ACTUAL + 1_800_000, 0)
    status = await books.reports.status()
    assert (status.open_reservation_count, status.receipt_count, status.unreceipted_request_count) == (0, 2, 0)


async def test_a_budget_made_anew_counts_what_was_spent_and_held_meanwhile(books: Books) -> None:
    first = await books.budget(10 * COST)
    await books.book.reserve(books.wanted("r"))
    await books.admin.delete_budget("acme", "all")
    await books.book.reserve(books.wanted("s"))
    assert await books.settle(await books.receipt("r")) == [""]
    again = await books.budget(10 * COST)
    assert (first.spent, first.reserved) == (0, 0)
    assert (again.spent, again.reserved) == (ACTUAL, COST)


async def test_deleted_while_48_reserve_each_is_refused_or_holds(books: Books) -> None:
    await books.budget(5 * COST)
    asked = [asyncio.create_task(books.book.reserve(books.wanted())) for _ in range(48)]
    assert await books.admin.delete_budget("acme", "all")
    verdicts = [each.decision.verdict for each in await asyncio.gather(*asked)]
    assert set(verdicts) <= {Verdict.OK, Verdict.REFUSED}
    assert verdicts.count(Verdict.OK) >= 5
    assert (await books.budget(100 * COST)).reserved == verdicts.count(Verdict.OK) * COST


@pytest.mark.parametrize("model", ["smal", "cpu", "gpu:h100"])
async def test_a_budget_by_a_model_that_nobody_priced_is_refused(books: Books, model: str) -> None:
    with pytest.raises(TenthError) as caught:
        await books.budget(COST, model=model)
    assert (caught.value.reason, caught.value.field) == ("PRICE_NOT_FOUND", "request.budget.model")
    assert await books.admin.budgets("acme") == []


async def test_a_budget_by_a_priced_model_holds(books: Books) -> None:
    await books.budget(COST, model="small")
    await books.budget(2 * COST, model="small")
    small = books.wanted(scope=Scope("acme", "", "", "small"))
    assert (await books.book.reserve(small)).decision.verdict is Verdict.OK
    assert (await books.position()).reserved == COST
