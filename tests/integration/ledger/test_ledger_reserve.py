"""Reservations: atomic against every budget, idempotent, on both stores."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from mesh.errors import TenthError
from services.ledger.policy import Scope, Verdict
from services.ledger.store import open_store
from tests.integration.ledger.ledger_books import SECOND, Books, open_books

COST = 3_000_000


async def test_without_a_budget_everything_fits(books: Books) -> None:
    made = await books.book.reserve(books.wanted())
    assert made.decision.verdict is Verdict.OK
    assert made.amount == COST
    assert made.reservation_id


async def test_a_budget_holds_downgrades_and_refuses(books: Books) -> None:
    await books.budget(2 * COST)
    first = await books.book.reserve(books.wanted())
    dear = await books.book.reserve(books.wanted(model="big"))
    assert (dear.decision.verdict, dear.decision.budget_name) == (Verdict.DOWNGRADE, "all")
    assert dear.decision.remaining == COST
    assert dear.reservation_id == ""
    second = await books.book.reserve(books.wanted())
    assert second.decision.verdict is Verdict.OK
    third = await books.book.reserve(books.wanted())
    assert (third.decision.verdict, third.decision.remaining) == (Verdict.REFUSED, 0)
    await books.book.release("acme", first.reservation_id)
    await books.book.release("acme", first.reservation_id)
    assert (await books.position()).reserved == COST
    assert (await books.book.reserve(books.wanted())).decision.verdict is Verdict.OK


async def test_after_a_downgrade_the_same_request_may_try_another_model(books: Books) -> None:
    await books.budget(COST)
    refused = await books.book.reserve(books.wanted("r", model="big"))
    assert refused.decision.verdict is Verdict.DOWNGRADE
    assert (await books.book.reserve(books.wanted("r"))).decision.verdict is Verdict.OK


async def test_the_same_request_gets_the_same_reservation(books: Books) -> None:
    await books.budget(COST)
    first = await books.book.reserve(books.wanted("r"))
    again = await books.book.reserve(books.wanted("r"))
    assert again == first
    assert (await books.position()).reserved == COST
    with pytest.raises(TenthError, match="REQUEST_ID_REUSED"):
        await books.book.reserve(books.wanted("r", max_output_tokens=7))


async def test_a_released_request_may_reserve_again_and_a_settled_one_may_not(books: Books) -> None:
    first = await books.book.reserve(books.wanted("r"))
    await books.book.release("acme", first.reservation_id)
    second = await books.book.reserve(books.wanted("r", model="big"))
    assert second.reservation_id not in ("", first.reservation_id)
    assert await books.settle(await books.receipt("r")) == [""]
    with pytest.raises(TenthError, match="REQUEST_ID_REUSED"):
        await books.book.reserve(books.wanted("r", model="big"))


async def test_two_tenants_may_use_one_request_id(books: Books) -> None:
    first = await books.book.reserve(books.wanted("r"))
    other = await books.book.reserve(books.wanted("r", scope=Scope("umbrella", "", ""), model="big"))
    assert first.reservation_id != other.reservation_id


@pytest.mark.parametrize("scope", ["user", "project"])
async def test_a_narrow_budget_covers_its_own_requests_only(books: Books, scope: str) -> None:
    narrow: dict[str, Any] = {f"{scope}_id": "ann"}
    await books.budget(0, **narrow)
    ann, bob = ((name, "") if scope == "user" else ("", name) for name in ("ann", "bob"))
    assert (await books.book.reserve(books.wanted(scope=Scope("acme", *bob)))).decision.verdict is Verdict.OK
    refused = await books.book.reserve(books.wanted(scope=Scope("acme", *ann)))
    assert refused.decision.verdict is Verdict.REFUSED


async def test_every_covering_budget_counts_and_the_tightest_decides(books: Books) -> None:
    await books.budget(10 * COST)
    await books.budget(COST, name="ann", user_id="ann")
    await books.budget(0, name="soft", hard=False)
    scope = Scope("acme", "ann", "")
    assert (await books.book.reserve(books.wanted(scope=scope))).decision.verdict is Verdict.OK
    refused = await books.book.reserve(books.wanted(scope=scope))
    assert refused.decision.budget_name == "ann"
    assert [(await books.position(name)).reserved for name in ("all", "ann", "soft")] == [COST, COST, COST]


async def test_a_day_begins_at_local_midnight(books: Books) -> None:
    await books.budget(COST, window="day", time_zone="Asia/Seoul")
    assert (await books.book.reserve(books.wanted())).decision.verdict is Verdict.OK
    books.clock.advance(2 * 3600)  # 23:00 in Seoul.
    assert (await books.book.reserve(books.wanted())).decision.verdict is Verdict.REFUSED
    books.clock.advance(3600)
    assert (await books.book.reserve(books.wanted())).decision.verdict is Verdict.OK


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": "nobody-priced-it"}, "PRICE_UNKNOWN"),
        ({"model": "cpu", "price_book_version": 0}, "PRICE_UNKNOWN"),
        ({"price_book_version": 99}, "UNKNOWN_PRICE_BOOK_VERSION"),
        ({"scope": Scope("nobody", "", "")}, "UNKNOWN_TENANT"),
        ({"input_tokens": 2**62}, "AMOUNT_OUT_OF_RANGE"),
        ({"input_tokens": -1}, "AMOUNT_OUT_OF_RANGE"),
    ],
)
async def test_refusals_are_typed_and_change_nothing(books: Books, changes: dict[str, object], reason: str) -> None:
    await books.budget(COST)
    with pytest.raises(TenthError) as caught:
        await books.book.reserve(books.wanted(**changes))  # type: ignore[arg-type]  # request_id is not among them.
    assert caught.value.reason == reason
    assert (await books.position()).reserved == 0


async def test_another_tenants_reservation_cannot_be_released(books: Books) -> None:
    made = await books.book.reserve(books.wanted())
    with pytest.raises(TenthError, match="UNKNOWN_RESERVATION"):
        await books.book.release("umbrella", made.reservation_id)


async def test_64_at_once_never_pass_a_hard_budget(books: Books) -> None:
    await books.budget(20 * COST + COST // 2)
    made = await asyncio.gather(*(books.book.reserve(books.wanted()) for _ in range(64)))
    assert sum(each.decision.verdict is Verdict.OK for each in made) == 20
    assert (await books.position()).reserved == 20 * COST


async def test_64_at_once_over_two_replicas_never_pass_a_hard_budget(books: Books) -> None:
    await books.budget(20 * COST)
    async with open_books(books.url, books.clock) as other:
        calls = [(books, other)[index % 2].book.reserve(books.wanted(f"r{index}")) for index in range(64)]
        made = await asyncio.gather(*calls)
    assert sum(each.decision.verdict is Verdict.OK for each in made) == 20
    assert (await books.position()).reserved == 20 * COST


async def test_the_same_request_64_times_at_once_holds_one_reservation(books: Books) -> None:
    await books.budget(64 * COST)
    made = await asyncio.gather(*(books.book.reserve(books.wanted("r", ttl_ns=SECOND)) for _ in range(64)))
    assert len({each.reservation_id for each in made}) == 1
    assert (await books.position()).reserved == COST


async def test_a_lost_database_connection_costs_one_typed_error_at_most(books: Books) -> None:
    if books.store.dialect == "sqlite":
        pytest.skip("a file has no connection to lose")
    await books.book.reserve(books.wanted())
    async with books.store.read() as connection:
        own = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND usename = 'tenth'"
        )
        await connection.execute(text(own))
    assert (await books.book.reserve(books.wanted())).decision.verdict is Verdict.OK
    await books.store.ping()


async def test_a_database_that_is_gone_is_a_typed_error(tmp_path: Path) -> None:
    async with open_store(f"postgresql+asyncpg://tenth@/none?host={tmp_path}") as store:
        with pytest.raises(TenthError, match="STORE_UNAVAILABLE"):
            await store.ping()
        with pytest.raises(TenthError, match="STORE_UNAVAILABLE"):
            await store.write(lambda connection: connection.execute(text("SELECT 1")))
