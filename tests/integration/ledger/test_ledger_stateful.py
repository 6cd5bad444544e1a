"""Random interleavings of all that is done to the books, crashes and lost callers included, against a plain model.

After every step: no hard budget holds more than its limit and what was spent beyond a reservation; every balance is
what the model says and what derives from the rows; every receipt is the sum of its events and adds up.
"""

from __future__ import annotations

import asyncio
import itertools
import shutil
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import Connection, select
from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import receipt_pb2, usage_pb2

from mesh.errors import TenthError
from mesh.wire import build_receipt
from services.ledger.balances import Scope
from services.ledger.policy import Budget, Verdict, Window, window_bounds
from services.ledger.tables import SAVINGS, budget_windows, receipt_events, receipts, reservations
from tests.integration.ledger.ledger_books import SECOND, Books, Clock, open_books
from tests.integration.ledger.ledger_model import CACHED, INPUT, OUTPUT, Held, Model, Receipt, swept
from tests.integration.ledger.test_ledger_budget_walk import derived, positions

REQUESTS = 3
STARTED = ledger_pb2.ATTEMPT_KIND_STARTED
ENDS = (ledger_pb2.ATTEMPT_KIND_FINISHED, ledger_pb2.ATTEMPT_KIND_FAILED, ledger_pb2.ATTEMPT_KIND_CANCELLED)
GRACE_NS = 900 * SECOND
BUDGETS = [
    Budget("all", "acme", 6_000_000, hard=True, window=Window.TOTAL),
    Budget("ann", "acme", 4_000_000, hard=True, user_id="ann", window=Window.TOTAL),
    Budget("day", "acme", 5_000_000, hard=False, window=Window.DAY, time_zone="Asia/Seoul"),
    Budget("soft", "acme", 1, hard=False, window=Window.MONTH, time_zone="Asia/Seoul"),
]
DIGESTS = ("a" * 64, "a" * 64, "a" * 64, "", "b" * 64)

request_numbers = st.integers(0, REQUESTS - 1)
users = st.sampled_from(["", "ann", "ann", "bob"])
digests = st.sampled_from(DIGESTS)
counts = st.sampled_from([0, 400, 1000])
sizes = st.sampled_from([400, 1000])
attempt_numbers = st.integers(1, 3)
indices = st.integers(0, 100)


class Ledger(RuleBasedStateMachine):
    """Two replicas on one database, driven through one event loop."""

    def __init__(self, database: Callable[[], str]) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.clock = Clock()
        self.url = database()
        self.stack = AsyncExitStack()
        self.model = Model(REQUESTS)
        self.made: list[tuple[int, Receipt]] = []
        self.reservation_ids: list[str] = []
        self.budgets: list[Budget] = []
        self.copies = itertools.count()

    def run(self, work: Awaitable[Any]) -> Any:
        """Run on the machine's own loop."""

        async def awaited() -> Any:
            return await work

        return self.runner.run(awaited())

    async def open(self) -> None:
        """Open both replicas."""
        self.replicas: list[Books] = [
            await self.stack.enter_async_context(open_books(self.url, self.clock)) for _ in range(2)
        ]
        for each in self.replicas:
            await each.prices.version(1)

    @initialize(known=st.lists(st.sampled_from(BUDGETS), unique=True))
    def begin(self, known: list[Budget]) -> None:
        self.run(self.open())
        for each in known:
            self.set_budget(each)

    def teardown(self) -> None:
        try:
            if hasattr(self, "replicas"):
                self.run(self.at_rest())
        finally:
            self.run(self.stack.aclose())
            self.runner.close()

    # What clients do.

    @rule(budget=st.sampled_from(BUDGETS))
    def set_budget_late(self, budget: Budget) -> None:
        self.set_budget(budget)

    def set_budget(self, budget: Budget) -> None:
        if budget not in self.budgets:
            self.budgets.append(budget)
            position = self.run(self.replicas[0].admin.set_budget(budget))
            assert (position.spent, position.reserved) == self.model.sums(budget, self.clock.now)
            if budget.hard:
                # What was spent and held before the budget was set is not its doing.
                over = max(position.spent + position.reserved - budget.limit, 0)
                self.model.beyond[budget.user_id] += over

    @rule(request=request_numbers, user=users, digest=digests, size=counts, replica=st.integers(0, 1))
    def reserve(self, request: int, user: str, digest: str, size: int, replica: int) -> None:
        before = len(self.reservation_ids)
        self.reserved(request, user, digest, size, self.run(self.reserving(replica, request, user, digest, size)))
        if len(self.reservation_ids) > before:
            # Whatever the model knows: what was just let through fits every hard budget that covers it.
            for each in self.run(self.replicas[1 - replica].admin.budgets("acme")):
                assert not each.budget.hard or each.budget.user_id not in ("", user) or each.remaining >= 0

    @rule(
        request=request_numbers, user=users, digest=digests, cached=counts, output=counts, attempt=st.integers(0, 3),
        failed=st.booleans(), extra=st.lists(attempt_numbers, max_size=2, unique=True), later=st.booleans(),
        named=st.booleans(), off=st.sampled_from([0, 0, -300, 300]),
    )  # fmt: skip
    def make_receipt(
        self, request: int, user: str, digest: str, cached: int, output: int, attempt: int, failed: bool,
        extra: list[int], later: bool, named: bool, off: int,
    ) -> None:  # fmt: skip
        """An orchestrator, its clock up to minutes off, makes a receipt and delivers it now or later, in any order."""
        made_ns = self.clock.now + off * SECOND
        opened = list(self.model.requests[request].opened)
        reservation_id = opened[-1] if named and opened else ""
        books, item = self.replicas[0], usage_pb2.Usage(input_token_count=100, output_token_count=50)
        usage = usage_pb2.Usage(input_token_count=1000, cached_input_token_count=cached, output_token_count=output)
        attempt = 0 if failed else attempt
        facts = books.facts(f"r{request}", user_id=user, payload_digest=digest, attempt=attempt, usage=usage)
        facts.failed, facts.reservation_id = failed, reservation_id
        facts.create_time.FromNanoseconds(made_ns)
        numbers = [each for each in extra if each != attempt]
        for number in numbers:
            facts.overheads.add(kind="failed_attempt", model="small", attempt=number, usage=item)
        message = build_receipt(facts, self.run(books.prices.at(1, made_ns)), receipt_pb2.RECEIPT_STATE_PENDING)
        answer = 0 if failed else (1000 - cached) * INPUT + cached * CACHED + output * OUTPUT
        cost = answer + len(numbers) * (100 * INPUT + 50 * OUTPUT)
        assert message.actual_nano_usd == cost
        on_it = frozenset(filter(None, (attempt, *numbers)))
        self.made.append(
            (request, Receipt(user, made_ns, cost, digest, failed, on_it, reservation_id, message=message))
        )
        if not later:
            last = len(self.made) - 1
            assert self.run(self.settling(0, last)) == self.settled(last)
        self.clock.advance(1)

    @precondition(lambda self: self.made)
    @rule(data=st.data(), replica=st.integers(0, 1))
    def settle(self, data: st.DataObject, replica: int) -> None:
        """One to four receipts in one call, repetitions and corrections among them."""
        chosen = data.draw(st.lists(st.sampled_from(range(len(self.made))), min_size=1, max_size=4))
        assert self.run(self.settling(replica, *chosen)) == self.settled(*chosen)

    @rule(index=indices, replica=st.integers(0, 1))
    def release(self, index: int, replica: int) -> None:
        # How many there are may hang on the order of what ran at once: what is drawn must not.
        if not self.reservation_ids:
            return
        reservation_id = self.reservation_ids[index % len(self.reservation_ids)]
        self.run(self.replicas[replica].book.release("acme", reservation_id))
        self.released(reservation_id)

    @rule(
        request=request_numbers, number=attempt_numbers, ended=st.booleans(), size=sizes, replica=st.integers(0, 1),
        under=st.booleans(),
    )  # fmt: skip
    def record(self, request: int, number: int, ended: bool, size: int, replica: int, under: bool) -> None:
        """An attempt's record, under the reservation that is open or under none."""
        held = self.model.requests[request].held
        reservation_id = held.reservation_id if under and held is not None else ""
        result = self.run(self.recording(replica, request, number, ended, size, reservation_id))
        assert result == self.recorded(request, number, ended, size, reservation_id)

    @rule(seconds=st.sampled_from([1, 61, 601, 1700, 4 * 3600]))
    def wait(self, seconds: int) -> None:
        self.clock.advance(seconds)

    @rule(replica=st.integers(0, 1))
    def sweep(self, replica: int) -> None:
        self.run(self.sweeping(replica))

    # Many at once, some of whose callers go away.

    @rule(data=st.data())
    def at_once(self, data: st.DataObject) -> None:
        """Work of different requests at the same time; the callers who went away ask again."""
        chosen = data.draw(st.lists(request_numbers, min_size=2, unique=True))
        work: list[tuple[Callable[[], Awaitable[Any]], Callable[[Any], None]]] = []
        gone = set()
        flip = partial(data.draw, st.booleans())
        for place, request in enumerate(chosen):
            replica = data.draw(st.integers(0, 1))
            if flip():
                gone.add(place)
            mine = [index for index, (of, _) in enumerate(self.made) if of == request]
            if mine and flip():
                index = data.draw(st.sampled_from(mine))
                work.append((partial(self.settling, replica, index), partial(self.expect_settled, index)))
            else:
                wanted = (request, data.draw(users), data.draw(digests), data.draw(counts))
                work.append((partial(self.reserving, replica, *wanted), partial(self.reserved, *wanted, exact=False)))
        results = self.run(self.gathering([each for each, _ in work], gone, data.draw(st.integers(0, 3))))
        for (_, note), result in zip(work, results, strict=True):
            note(result)

    async def gathering(self, work: list[Callable[[], Awaitable[Any]]], gone: set[int], turns: int) -> list[Any]:
        tasks = [asyncio.ensure_future(each()) for each in work]
        for _ in range(turns):
            await asyncio.sleep(0)
        for place in gone:
            tasks[place].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        return [
            await work[place]() if isinstance(result, asyncio.CancelledError) else result
            for place, result in enumerate(results)
        ]

    @rule(
        request=request_numbers, user=users, size=sizes, replica=st.integers(0, 1), index=indices
    )  # fmt: skip
    def crash(self, request: int, user: str, size: int, replica: int, index: int) -> None:
        """Killed while it reserves, settles and records."""
        work: list[Awaitable[Any]] = [
            self.reserving(replica, request, user, "", size),
            self.recording(replica, request, 1, True, size),
        ]
        notes: list[Callable[[Any], object]] = [
            partial(self.reserved, request, user, "", size, exact=False),
            lambda result: self.expect_equal(result, self.recorded(request, 1, True, size)),
        ]
        if self.made:
            at = index % len(self.made)
            work.append(self.settling(replica, at))
            notes.append(partial(self.expect_settled, at))
        for note, result in zip(notes, self.run(self.crashing(replica, work)), strict=False):
            if not (isinstance(result, TenthError) and result.reason == "STORE_UNAVAILABLE"):
                note(result)

    async def crashing(self, replica: int, work: list[Awaitable[Any]]) -> list[Any]:
        """What became of the work: nothing of it on SQLite, what the next connection took up on Postgres."""
        results: list[Any] = []
        store = self.replicas[replica].store
        if store.dialect == "sqlite":
            path = Path(self.url.partition("///")[2])
            copy = path.with_name(f"{path.stem}-{next(self.copies)}.db")

            def die(_: Connection) -> None:
                # What a killed process leaves: the file and its log in the middle of a transaction.
                for end in ("", "-wal"):
                    shutil.copyfile(f"{path}{end}", f"{copy}{end}")

            await asyncio.gather(*work, store.write(die), return_exceptions=True)
            self.url = f"sqlite+aiosqlite:///{copy}"
        else:

            def die_there(connection: Connection) -> None:
                connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")

            results = await asyncio.gather(*work, store.write(die_there), return_exceptions=True)
            assert isinstance(results.pop(), TenthError)
        await self.stack.aclose()
        self.stack = AsyncExitStack()
        await self.open()
        return results

    # The calls, and what they must do to the model.

    async def reserving(self, replica: int, request: int, user: str, digest: str, size: int) -> Any:
        books = self.replicas[replica]
        wanted = books.wanted(
            f"r{request}", scope=Scope("acme", user, ""), payload_digest=digest, input_tokens=500,
            max_output_tokens=size,
        )  # fmt: skip
        try:
            return await books.book.reserve(wanted)
        except TenthError as error:
            return error

    def reserved(self, request: int, user: str, digest: str, size: int, result: Any, *, exact: bool = True) -> None:
        of, now = self.model.requests[request], self.clock.now
        amount, payload = 500 * INPUT + size * OUTPUT, (500, size, user)
        settled = of.shown is not None and of.shown.origin == "given"
        if settled and not (digest and of.shown is not None and of.shown.digest == digest):
            return self.expect_reused(result)
        old = of.held
        if of.held is not None:
            if of.held.payload == payload:
                assert (result.reservation_id, result.amount) == (of.held.reservation_id, of.held.amount)
                return None
            if not (of.held.digest == digest and (digest or of.held.payload is None)):
                return self.expect_reused(result)
            of.held = None
        amount += of.owed + self.model.comes_along(request, self.budgets, user, now)
        if exact:
            fits = self.model.fits(self.budgets, user, amount, now)
            assert (result.decision.verdict is Verdict.OK) == fits
        if result.decision.verdict is Verdict.OK:
            assert result.amount == amount
            self.reservation_ids.append(result.reservation_id)
            of.opened[result.reservation_id] = now
            of.held = Held(result.reservation_id, user, amount, now, now + 60 * SECOND, payload, digest)
        elif old is not None:
            of.give_back(old)
        return None

    async def settling(self, replica: int, *indices: int) -> list[str]:
        messages = [self.made[index][1].message for index in indices]
        return await self.replicas[replica].settle(*(each for each in messages if each is not None))

    def settled(self, *indices: int) -> list[str]:
        accepted = self.model.settle([self.made[index] for index in indices], self.clock.now)
        return ["" if each else "REQUEST_ID_REUSED" for each in accepted]

    def released(self, reservation_id: str) -> None:
        for each in self.model.requests:
            if each.held is not None and each.held.reservation_id == reservation_id:
                each.give_back(each.held)

    async def recording(self, replica: int, request: int, number: int, ended: bool, size: int, under: str = "") -> int:
        books = self.replicas[replica]
        usage = usage_pb2.Usage(input_token_count=size, output_token_count=size)
        kind = ENDS[number - 1] if ended else STARTED
        return await books.record(
            books.attempt(f"r{request}", kind, number, usage=usage, user_id="ann", reservation_id=under)
        )

    def recorded(self, request: int, number: int, ended: bool, size: int, under: str = "") -> int:
        of = self.model.requests[request]
        before = replace(of)
        new = of.record(number, size * (INPUT + OUTPUT), under, ended=ended)
        self.model.grown(request, before)
        return new

    async def sweeping(self, replica: int) -> None:
        books = self.replicas[replica]
        await books.sweeper.sweep()
        async with books.store.read() as connection:
            query = select(reservations.c.request_id).where(reservations.c.state == "open")
            held = set((await connection.execute(query)).scalars())
        for number, before in enumerate(self.model.requests):
            blob = await books.reports.receipt(f"r{number}", "acme", any_tenant=False)
            stored = receipt_pb2.Receipt.FromString(blob) if blob is not None else None
            after = swept(before, stored, still_held=f"r{number}" in held, now=self.clock.now, grace_ns=GRACE_NS)
            self.model.requests[number] = after
            self.model.grown(number, before)
        stored_sums = await books.store.write(partial(positions, now=self.clock.now))
        derived_sums = await books.store.write(partial(derived, now=self.clock.now))
        assert stored_sums == derived_sums

    def expect_settled(self, index: int, result: Any) -> None:
        assert result == self.settled(index)

    @staticmethod
    def expect_equal(result: Any, wanted: Any) -> None:
        assert result == wanted

    @staticmethod
    def expect_reused(result: Any) -> None:
        assert isinstance(result, TenthError)
        assert result.reason == "REQUEST_ID_REUSED"

    # What must hold after every step.

    @invariant()
    def books_and_model_agree(self) -> None:
        if hasattr(self, "replicas"):
            self.run(self.check())

    async def check(self) -> None:
        books = self.replicas[0]
        positions = {each.budget.name: each for each in await books.admin.budgets("acme")}
        assert set(positions) == {each.name for each in self.budgets}
        for budget in self.budgets:
            position = positions[budget.name]
            assert (position.spent, position.reserved) == self.model.sums(budget, self.clock.now), budget.name
            if budget.hard:
                assert position.spent + position.reserved <= budget.limit + self.model.beyond[budget.user_id]
        async with books.store.read() as connection:
            shown = (await connection.execute(select(receipts))).all()
            events = (await connection.execute(select(receipt_events).order_by(receipt_events.c.id))).all()
            held = (await connection.execute(select(reservations).where(reservations.c.state == "open"))).all()
            windows = (await connection.execute(select(budget_windows))).all()
        wanted = {f"r{n}": each for n, each in enumerate(self.model.requests)}
        assert {row.request_id: row.actual for row in shown} == {
            name: each.shown.actual for name, each in wanted.items() if each.shown is not None
        }
        assert {row.request_id: row.reservation_id for row in held} == {
            name: each.held.reservation_id for name, each in wanted.items() if each.held is not None
        }
        total: dict[str, int] = defaultdict(int)
        last: dict[str, Any] = {}
        for event in events:
            total[event.request_id] += event.actual_delta
            last[event.request_id] = event
        assert Counter(row.request_id for row in shown) == Counter(dict.fromkeys(last, 1))
        for row in shown:
            assert row.actual == total[row.request_id], "the events do not add up to the receipt"
            assert row.event_id == last[row.request_id].id
            assert row.baseline - sum(getattr(row, name) for name in SAVINGS) + row.overhead == row.actual
            assert receipt_pb2.Receipt.FromString(last[row.request_id].receipt).actual_nano_usd == row.actual
        by_id = {position.budget.budget_id: position.budget for position in positions.values()}
        for window in windows:
            budget = by_id[window.budget_id]
            start, end = window_bounds(budget.window, budget.time_zone, window.window_start_ns)
            inside = range(start, end if end is not None else 2**63)
            spent = sum(row.actual for row in shown if budget.user_id in ("", row.user_id) and row.create_ns in inside)
            reserved = sum(
                row.amount for row in held if budget.user_id in ("", row.user_id) and row.create_ns in inside
            )
            assert (window.spent, window.reserved) == (spent, reserved), budget.name

    async def at_rest(self) -> None:
        """Long after the last call nothing is held, and every attempt that spent something is on one receipt."""
        for _ in range(3):
            self.clock.advance(20 * 86_400)
            await self.sweeping(0)
        await self.check()
        status = await self.replicas[0].reports.status()
        assert (status.open_reservation_count, status.unreceipted_request_count) == (0, 0)
        assert status.identity_violation_count == 0
        for each in self.model.requests:
            spent = {number for number in (*each.started, *each.ended) if each.cost_of(number)}
            assert spent <= each.accounted, "an attempt's spend is lost"


@pytest.mark.parametrize(("store", "examples", "steps"), [("sqlite", 30, 25), ("postgres", 5, 20)])
def test_no_interleaving_breaks_the_books(
    store: str, examples: int, steps: int, new_database: Callable[[str], str], pytestconfig: pytest.Config
) -> None:
    """The same histories in every run; others with ``pytest --hypothesis-seed=NUMBER``."""
    seeded = pytestconfig.getoption("--hypothesis-seed", default=None) is not None
    machine: Any = lambda: Ledger(lambda: new_database(store))  # noqa: E731  (typed as a class, called as a factory)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=not seeded,
            database=None,
            # Shrinking a history takes minutes; the steps of a failing one are printed as they are.
            phases=[Phase.explicit, Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
