"""Random walks over every kind of budget: the running sums stay what the rows say, and no hard limit is passed."""

from __future__ import annotations

from functools import partial
from random import Random
from typing import Any

import pytest
from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import receipt_pb2, usage_pb2

from mesh.wire import build_receipt
from services.ledger.balances import Balances, load_budgets
from services.ledger.policy import Budget, Position, Scope, Verdict, Window
from services.ledger.tables import budget_windows
from tests.integration.ledger.ledger_books import Books

USD = 10**9
BUDGETS: dict[str, dict[str, Any]] = {
    "all": {"limit": 40_000_000, "window": Window.DAY, "time_zone": "Asia/Seoul"},
    "week": {"limit": 400_000_000, "window": Window.WEEK, "time_zone": "America/New_York"},
    "roll": {"limit": 25_000_000, "window": Window.ROLLING, "rolling_seconds": 3600},
    "tag": {"limit": 12_000_000, "window": Window.ROLLING, "rolling_seconds": 900, "tag_key": "team"},
    "tag a": {"limit": 60_000_000, "window": Window.TOTAL, "tag_key": "team", "tag_value": "a"},
    "small": {"limit": 9_000_000, "window": Window.ROLLING, "rolling_seconds": 61, "model": "small"},
    "ann": {"limit": 30_000_000, "window": Window.MONTH, "user_id": "ann"},
}
STARTED, FAILED = ledger_pb2.ATTEMPT_KIND_STARTED, ledger_pb2.ATTEMPT_KIND_FAILED


class Walk:
    """One random history: requests that reserve, fail, are tried again, settle, or are never heard of again."""

    def __init__(self, books: Books, random: Random) -> None:
        self.books = books
        self.random = random
        self.open: dict[str, dict[str, Any]] = {}
        self.count = 0

    async def step(self) -> None:
        """One event."""
        self.books.clock.advance(self.random.choice([0, 1, 20, 60, 600, 3600]))
        step = self.random.random()
        if step < 0.45 or not self.open:
            await self.begin()
        elif step < 0.6:
            await self.fail(self.random.choice(list(self.open)))
        elif step < 0.8:
            await self.settle(self.random.choice(list(self.open)))
        elif step < 0.9:
            request_id = self.random.choice(list(self.open))
            made = self.open[request_id]
            if not made["spent"]:
                self.open.pop(request_id)
                await self.books.book.release("acme", made["reservation_id"])
        else:
            await self.books.sweeper.sweep()

    async def begin(self) -> None:
        """A new request."""
        self.count += 1
        tags = self.random.choice([(), (("team", "a"),), (("team", "b"),), (("other", "a"),)])
        made = {"user": self.random.choice(["ann", "bob"]), "tags": tags, "spent": [], "attempt": 0}
        await self.reserve(f"r{self.count}", made)

    async def reserve(self, request_id: str, made: dict[str, Any]) -> None:
        """Reserve; what is not let through is forgotten, with what it had spent left to the sweeper."""
        model = self.random.choice(["small", "small", "big"])
        limit = self.random.choice([10, 100, 1000])
        scope = Scope("acme", made["user"], "", model, made["tags"])
        wanted = self.books.wanted(
            request_id, scope=scope, model=model, input_tokens=limit, max_output_tokens=limit, payload_digest="ab" * 32
        )
        got = await self.books.book.reserve(wanted)
        self.open.pop(request_id, None)
        if got.decision.verdict is Verdict.OK:
            self.open[request_id] = {**made, "model": model, "limit": limit, "reservation_id": got.reservation_id}
            self.open[request_id]["attempt"] += 1
            await self.record(request_id, STARTED, limit)

    async def record(self, request_id: str, kind: ledger_pb2.AttemptKind.ValueType, tokens: int) -> None:
        """A record of the attempt that runs."""
        made = self.open[request_id]
        event = self.books.attempt(
            request_id,
            kind,
            made["attempt"],
            model=made["model"],
            usage=usage_pb2.Usage(input_token_count=tokens, output_token_count=tokens),
            reservation_id=made["reservation_id"],
            user_id=made["user"],
        )
        await self.books.record(event)

    async def fail(self, request_id: str) -> None:
        """The attempt fails and costs something; the next one is reserved for, on whatever model."""
        made = self.open[request_id]
        tokens = self.random.randrange(made["limit"] + 1)
        await self.record(request_id, FAILED, tokens)
        made["spent"].append((made["attempt"], made["model"], tokens))
        if self.random.random() < 0.8:
            await self.books.book.release("acme", made["reservation_id"])
        await self.reserve(request_id, made)

    async def settle(self, request_id: str) -> None:
        """The receipt comes, from an orchestrator whose clock is up to five minutes off."""
        made = self.open.pop(request_id)
        tokens = self.random.randrange(made["limit"] + 1)
        failed = self.random.random() < 0.2
        facts = self.books.facts(
            request_id,
            user_id=made["user"],
            payload_digest="ab" * 32,
            model="" if failed else made["model"],
            failed=failed,
            attempt=0 if failed else made["attempt"],
            reservation_id=made["reservation_id"],
            usage=usage_pb2.Usage(input_token_count=tokens, output_token_count=tokens),
            original_input_token_count=tokens,
        )
        facts.create_time.FromNanoseconds(self.books.clock.now + self.random.randrange(-300, 300) * USD)
        facts.tags.update(dict(made["tags"]))
        spent = [*made["spent"], (made["attempt"], made["model"], tokens)] if failed else made["spent"]
        for attempt, model, count in spent:
            item = facts.overheads.add(kind="failed_attempt", model=model, attempt=attempt)
            item.usage.CopyFrom(usage_pb2.Usage(input_token_count=count, output_token_count=count))
        book = await self.books.prices.at(1, self.books.clock.now)
        receipt = build_receipt(facts, book, receipt_pb2.RECEIPT_STATE_PENDING)
        assert await self.books.settle(receipt) == [""]


def positions(connection: Any, now: int) -> list[Position]:
    """Where every budget stands, by the running sums."""
    return [Balances(connection, [each]).position(each, now) for each in load_budgets(connection, ["acme"])]


def derived(connection: Any, now: int) -> list[Position]:
    """The same by the receipts and reservations alone; the running sums are put back."""
    kept = [dict(row._mapping) for row in connection.execute(budget_windows.select())]
    connection.execute(budget_windows.delete())
    found = positions(connection, now)
    if kept:
        connection.execute(budget_windows.insert(), kept)
    return found


@pytest.mark.parametrize("seed", [1, 22])
async def test_sums_are_what_the_rows_say_and_no_hard_limit_is_passed(books: Books, seed: int) -> None:
    for name, values in BUDGETS.items():
        await books.admin.set_budget(Budget(name, "acme", hard=True, **values))
    walk = Walk(books, Random(seed))
    for _ in range(60):
        await walk.step()
        now = books.clock.now
        stored = await books.store.write(partial(positions, now=now))
        assert stored == await books.store.write(partial(derived, now=now))
        for each in stored:
            assert each.spent >= 0 <= each.reserved
            assert each.remaining >= 0, each
    books.clock.advance(7200)
    await books.sweeper.sweep()
    await books.sweeper.sweep()
    status = await books.reports.status()
    assert (status.open_reservation_count, status.unreceipted_request_count) == (0, 0)
    assert all(each.reserved == 0 for each in await books.admin.budgets("acme"))
