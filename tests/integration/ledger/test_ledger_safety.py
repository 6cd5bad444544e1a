"""What must not break the books: cancellation at any point, replays, and hostile texts, on both stores."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from sqlalchemy import event
from tenth.ledger.v1 import ledger_pb2

from mesh.errors import TenthError
from services.ledger.policy import Budget, Scope, Verdict, Window
from tests.integration.ledger.ledger_books import Books

COST = 3_000_000
ACTUAL = 1_710_000
FINISHED = ledger_pb2.ATTEMPT_KIND_FINISHED


async def state(books: Books) -> tuple[int, int, int, int]:
    """Spent and reserved of the budget, open reservations, receipts."""
    position, status = await books.position(), await books.reports.status()
    assert status.open_reserved == position.reserved
    return position.spent, position.reserved, status.open_reservation_count, status.receipt_count


async def cancelled(work: Coroutine[Any, Any, object], steps: int) -> None:
    """Begin, let the loop turn so often, cancel."""
    task = asyncio.ensure_future(work)
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def closed(work: Coroutine[Any, Any, object], steps: int) -> None:
    """Begin, and drop the coroutine where it waits: GeneratorExit."""
    try:
        work.send(None)
        for _ in range(steps):
            await asyncio.sleep(0)
    except StopIteration:
        pass
    work.close()


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("leave", [cancelled, closed])
async def test_a_caller_who_leaves_while_reserving_leaks_nothing(
    books: Books, leave: Callable[..., Coroutine[Any, Any, None]], steps: int
) -> None:
    await books.budget(10 * COST)
    await books.prices.version(1)
    await leave(books.book.reserve(books.wanted("r")), steps)
    # Whether it was made or not, the request gets one reservation, and one only.
    made = await books.book.reserve(books.wanted("r"))
    assert await state(books) == (0, COST, 1, 0)
    await books.book.release("acme", made.reservation_id)
    await leave(books.book.reserve(books.wanted("s")), steps)
    await books.store.write(lambda connection: None)  # Writes are made in order: the one left behind is done now.
    books.clock.advance(3600)
    await books.sweeper.sweep()
    assert await state(books) == (0, 0, 0, 0)


@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize("leave", [cancelled, closed])
async def test_a_caller_who_leaves_while_settling_loses_nothing(
    books: Books, leave: Callable[..., Coroutine[Any, Any, None]], steps: int
) -> None:
    await books.budget(10 * COST)
    made = await books.book.reserve(books.wanted("r"))
    receipt = await books.receipt("r", reservation_id=made.reservation_id)
    await leave(books.book.settle([await books.settlement(receipt)]), steps)
    assert await books.settle(receipt) == [""]
    assert await state(books) == (ACTUAL, 0, 0, 1)


@pytest.mark.parametrize("leave", [cancelled, closed])
async def test_a_caller_who_leaves_while_recording_or_releasing(
    books: Books, leave: Callable[..., Coroutine[Any, Any, None]]
) -> None:
    await books.budget(10 * COST)
    made = await books.book.reserve(books.wanted("r"))
    event = books.attempt("r", FINISHED, reservation_id=made.reservation_id)
    await leave(books.record(event), 2)
    await books.record(event)
    await leave(books.book.release("acme", made.reservation_id), 2)
    await books.book.release("acme", made.reservation_id)
    # What the attempt has spent stays held until a receipt has it.
    assert await state(books) == (0, 1_800_000, 1, 0)
    assert (await books.reports.status()).attempt_count == 1
    books.clock.advance(3600)
    await books.sweeper.sweep()
    assert await state(books) == (1_800_000, 0, 0, 1)


async def test_one_who_leaves_takes_no_other_with_it(books: Books) -> None:
    await books.budget(100 * COST)
    tasks = [asyncio.ensure_future(books.book.reserve(books.wanted(f"r{number}"))) for number in range(40)]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks[1::2]:
        assert task.result().decision.verdict is Verdict.OK
    for number in range(40):
        await books.book.reserve(books.wanted(f"r{number}"))
    assert await state(books) == (0, 40 * COST, 40, 0)


async def test_replays_in_any_order_change_nothing(books: Books) -> None:
    await books.budget(10 * COST)
    made = await books.book.reserve(books.wanted("r"))
    receipt = await books.receipt("r", reservation_id=made.reservation_id)
    events = [books.attempt("r", FINISHED, reservation_id=made.reservation_id)]
    assert await books.settle(receipt) == [""]
    before = await state(books)
    for _ in range(2):
        await books.record(*events, *events)
        await books.book.release("acme", made.reservation_id)
        assert await books.settle(receipt, receipt) == ["", ""]
        with pytest.raises(TenthError, match="REQUEST_ID_REUSED"):
            await books.book.reserve(books.wanted("r"))
        books.clock.advance(3600)
        await books.sweeper.sweep()
    assert await state(books) == before == (ACTUAL, 0, 0, 1)


HOSTILE = [
    "'; DROP TABLE receipts; --",
    '" OR 1=1 --',
    "%",
    "_",
    "\\",
    "${jndi:ldap://x}",
    "{0}",
    "%s",
    "\U0001f4b8",
    "한국어",
    "a" * 256,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
async def test_texts_are_only_texts(books: Books, text: str) -> None:
    await books.budget(10 * COST)
    await books.budget(10 * COST, name=text, user_id=text, project_id=text, tag_key=text, tag_value=text)
    scope = Scope("acme", text, text, "small", ((text, text),))
    made = await books.book.reserve(books.wanted(text, scope=scope))
    assert (await books.position(text)).reserved == COST
    receipt = await books.receipt(text, user_id=text, project_id=text, reservation_id=made.reservation_id)
    receipt.facts.tags[text] = text
    assert await books.settle(receipt) == [""]
    assert (await books.stored(text)).facts == receipt.facts
    assert (await books.position(text)).spent == ACTUAL
    assert await state(books) == (ACTUAL, 0, 0, 1)


@pytest.mark.parametrize(
    ("budgets", "statements"),
    [
        (0, ["SELECT", "SELECT", "INSERT"]),
        (1, ["SELECT", "SELECT", "SELECT", "INSERT", "UPDATE"]),
    ],
)
async def test_limits_tags_and_ladders_cost_nothing_where_there_are_none(
    books: Books, budgets: int, statements: list[str]
) -> None:
    """A reservation reads its request's state, the budgets and their windows, and writes itself and the windows."""
    if books.store.dialect != "sqlite":
        pytest.skip("the statements are the same; they are counted where one thread runs them")
    scope = Scope("umbrella", "", "", "small")
    for number in range(budgets):
        await books.admin.set_budget(Budget(str(number), "umbrella", 10 * COST, True, window=Window.TOTAL))
    await books.book.reserve(books.wanted(scope=scope))
    seen: list[str] = []

    def note(_: object, __: object, statement: str, *___: object) -> None:
        seen.append(statement.split()[0])

    await books.store.write(lambda connection: event.listen(connection.engine, "before_cursor_execute", note))
    await books.book.reserve(books.wanted(scope=scope))
    await books.store.write(lambda connection: event.remove(connection.engine, "before_cursor_execute", note))
    assert [each for each in seen if each != "BEGIN"] == statements
