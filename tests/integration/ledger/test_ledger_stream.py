"""The stream of receipts: everything once, oldest first, as the books were when it began."""

from __future__ import annotations

import random
from datetime import timedelta

import pytest
from tenth.type.v1 import receipt_pb2

from services.ledger.report import Filter
from services.ledger.rollups import Roller
from services.ledger.stream import Streaming
from tests.integration.ledger.ledger_books import SECOND, Books

DIGEST = "cd" * 32


async def settle(books: Books, name: str, at_ns: int, output: int, user: str = "") -> None:
    """Settle, or correct, one receipt."""
    facts = books.facts(name, payload_digest=DIGEST, user_id=user)
    facts.usage.output_token_count = output
    facts.create_time.FromNanoseconds(at_ns)
    assert await books.settle(
        await books.receipt(name, payload_digest=DIGEST, user_id=user, usage=facts.usage, create_time=facts.create_time)
    ) == [""]


def shown(blob: bytes) -> tuple[int, str, int]:
    """When, which, what."""
    facts = receipt_pb2.Receipt.FromString(blob).facts
    return facts.create_time.ToNanoseconds(), facts.request_id, facts.usage.output_token_count


@pytest.mark.parametrize("seed", range(3))
async def test_a_stream_is_the_state_that_it_began_with(books: Books, seed: int) -> None:
    chance = random.Random(seed)  # Of a test.
    start = books.clock.now
    books.clock.advance(20)  # A receipt never counts later than now.
    counted: dict[str, int] = {}

    async def new(name: str, when: int, cost: int, user: str = "") -> None:
        counted[name] = when  # Where it stays, whatever a correction's own time is.
        await settle(books, name, when, cost, user)

    for index in range(40):
        await new(f"r{index}", start + chance.randrange(10) * SECOND, 10, chance.choice(("ann", "bob")))
    at = dict(counted)
    for which in (Filter(), Filter(user_id="ann"), Filter(start_ns=start + 3 * SECOND, end_ns=start + 8 * SECOND)):
        stream = Streaming(books.store, which, page=5).pages()
        before: list[tuple[int, str, int]] = []
        async for page in Streaming(books.store, which, page=7).pages():
            assert 0 < len(page) <= 7
            before += map(shown, page)
        assert [counted[each[1]] for each in before] == sorted(counted[each[1]] for each in before)
        assert len({each[1] for each in before}) == len(before)
        got: list[tuple[int, str, int]] = []
        async for page in stream:
            assert len(page) <= 5
            got += map(shown, page)
            # While it runs: new receipts, and corrections of what came and of what is to come, also of corrections.
            for name in chance.sample(sorted(at), 6):
                at[name] = max(at[name], start + chance.randrange(12) * SECOND) + 1
                await settle(books, name, at[name], chance.randrange(11, 500), chance.choice(("ann", "bob")))
            await new(f"new{which}{len(got)}", start + chance.randrange(12) * SECOND, 1)
            await Roller(books.store).step()
        assert sorted(got) == sorted(before)
        assert [counted[each[1]] for each in got] == [counted[each[1]] for each in before]


async def test_an_empty_stream_has_no_message(books: Books) -> None:
    assert [page async for page in books.reports.stream(Filter())] == []
    await settle(books, "r", books.clock.now, 5)
    assert [list(map(shown, page)) async for page in books.reports.stream(Filter())] == [[(books.clock.now, "r", 5)]]
    later = books.clock.now + int(timedelta(seconds=1).total_seconds()) * SECOND
    assert [page async for page in books.reports.stream(Filter(start_ns=later))] == []
