"""A plain model of the books: what each request shows, holds and has recorded, and what budgets must say of it.

All of it is exact, what a reservation holds included: max(its own worst case, its own attempts) + all other attempts
that no receipt accounts for. Only what a sweep completes is taken from the books, and every step of it checked.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from tenth.type.v1 import receipt_pb2

from services.ledger.policy import Budget, window_bounds

GIVEN, MADE = "given", "reconciled"
INPUT, CACHED, OUTPUT = 1_000, 100, 2_000
"""Prices of the model "small" per token, nano-USD."""


@dataclass(frozen=True)
class Receipt:
    """A receipt: whose, when, what it costs, and the attempts on it."""

    user: str
    create_ns: int
    """When it was made, by its maker's clock."""
    cost: int
    digest: str
    failed: bool
    numbers: frozenset[int]
    reservation_id: str = ""
    origin: str = GIVEN
    message: receipt_pb2.Receipt | None = None
    """As the orchestrator made it; None for one that the ledger made."""
    found: tuple[tuple[int, int], ...] = ()
    """Attempts that the ledger added, with their costs."""
    counted_ns: int = 0
    """When it counts in budgets, by the ledger's clock."""

    @property
    def actual(self) -> int:
        """What it costs with what the ledger added."""
        return self.cost + sum(cost for _, cost in self.found)


@dataclass(frozen=True)
class Held:
    """An open reservation."""

    reservation_id: str
    user: str
    amount: int
    create_ns: int
    expire_ns: int
    payload: tuple[int, int, str] | None
    """None: it holds only what was spent, until a receipt has it."""
    digest: str


@dataclass
class Request:
    """What the books must know of one request."""

    shown: Receipt | None = None
    held: Held | None = None
    started: dict[int, int] = field(default_factory=dict)
    ended: dict[int, int] = field(default_factory=dict)
    """Costs of the attempts' records, by number."""
    under: dict[tuple[int, bool], str] = field(default_factory=dict)
    """The reservation that a record names, by number and whether it is the end."""
    opened: dict[str, int] = field(default_factory=dict)
    """When its reservations were made, by id."""

    def cost_of(self, number: int) -> int:
        """What an attempt counts with now."""
        return self.ended[number] if number in self.ended else self.started[number]

    @property
    def accounted(self) -> set[int]:
        """Attempts on its receipt."""
        return set() if self.shown is None else {*self.shown.numbers} | {number for number, _ in self.shown.found}

    @property
    def owed(self) -> int:
        """What attempts that no receipt accounts for count with."""
        return sum(self.cost_of(number) for number in {*self.started, *self.ended} - self.accounted)

    def taken(self, user: str) -> int:
        """What it takes of a budget of a user, or of everybody's."""
        shown = self.shown.actual if self.shown is not None and user in ("", self.shown.user) else 0
        return shown + (self.held.amount if self.held is not None and user in ("", self.held.user) else 0)

    def give_back(self, held: Held) -> None:
        """Close a reservation; what its request has spent stays held."""
        self.held = replace(held, amount=self.owed, payload=None) if self.owed else None

    def cost_under(self, reservation_id: str, *, own: bool) -> int:
        """What the records of attempts on no receipt cost that name a reservation (or do not)."""
        costs = {}
        for number, ended in sorted(self.under):  # The end after the start, which it replaces.
            if number not in self.accounted and (self.under[number, ended] == reservation_id) == own:
                costs[number] = (self.ended if ended else self.started)[number]
        return sum(costs.values())

    def record(self, number: int, cost: int, reservation_id: str, *, ended: bool) -> int:
        """Record an attempt; how many records are new."""
        records = self.ended if ended else self.started
        if number in records:
            return 0
        held = self.held
        others = self.cost_under(held.reservation_id, own=False) if held is not None else 0
        records[number], self.under[number, ended] = cost, reservation_id
        if held is not None:
            own = self.cost_under(held.reservation_id, own=True)
            amount = max(held.amount - others, own) + self.cost_under(held.reservation_id, own=False)
            self.held = replace(held, amount=amount)
        found = dict(self.shown.found) if self.shown is not None else {}
        if ended and self.shown is not None and number in found:
            # Its worst case was assumed: what it really spent corrects that.
            self.shown = replace(self.shown, found=tuple({**found, number: cost}.items()))
        return 1

    @property
    def unfinished(self) -> set[int]:
        """Attempts that started and did not end."""
        return set(self.started) - set(self.ended)

    def counted_at(self, create_ns: int, reservation_id: str, now: int) -> int:
        """When a receipt counts: with the reservation that it ends, else as the one before it did."""
        if self.held is not None:
            return self.held.create_ns
        if self.shown is not None:
            return self.shown.counted_ns
        return self.opened.get(reservation_id, min(create_ns, now))

    def settle(self, given: Receipt) -> bool:
        """Settle; whether it is accepted."""
        before = self.shown
        if before is not None and before.origin == GIVEN:
            if before.message == given.message:
                return True
            if not given.digest or given.digest != before.digest:
                return False
            better = before.failed if given.failed != before.failed else given.create_ns > before.create_ns
            given = given if better else before
        self.shown, self.held = given, None
        return True


class Model:
    """All requests of one tenant."""

    def __init__(self, requests: int) -> None:
        self.requests = [Request() for _ in range(requests)]
        self.beyond = {"": 0, "ann": 0}
        """Spent or held without being asked, by a budget's user: receipts and records above what was reserved."""

    def grown(self, number: int, before: Request) -> None:
        """Note by how much a request takes more than it did before, by anything but a reservation."""
        for user in self.beyond:
            self.beyond[user] += max(self.requests[number].taken(user) - before.taken(user), 0)

    def settle(self, given: list[tuple[int, Receipt]], now: int) -> list[bool]:
        """Settle receipts in one call, each of a request by its number; whether each is accepted.

        Each counts from where its request stood before the call: one that another of the call replaces never counts.
        """
        before = {number: replace(self.requests[number]) for number, _ in given}
        results = []
        for number, receipt in given:
            at = before[number].counted_at(receipt.create_ns, receipt.reservation_id, now)
            one_before = replace(self.requests[number])
            results.append(self.requests[number].settle(replace(receipt, counted_ns=at)))
            self.grown(number, one_before)
        return results

    def comes_along(self, number: int, budgets: list[Budget], user: str, at_ns: int) -> int:
        """What a request's earlier receipt adds to a reservation: all of it, if some budget counts it in the past."""
        shown = self.requests[number].shown
        starts = (
            window_bounds(each.window, each.time_zone, at_ns)[0] for each in budgets if each.user_id in ("", user)
        )
        return shown.actual if shown is not None and any(shown.counted_ns < start for start in starts) else 0

    def sums(self, budget: Budget, at_ns: int) -> tuple[int, int]:
        """Spent and reserved of a budget in the window that holds an instant."""
        start, end = window_bounds(budget.window, budget.time_zone, at_ns)

        def counts(user: str, create_ns: int) -> bool:
            return budget.user_id in ("", user) and start <= create_ns and (end is None or create_ns < end)

        shown = (each.shown for each in self.requests if each.shown is not None)
        held = (each.held for each in self.requests if each.held is not None)
        return (
            sum(each.actual for each in shown if counts(each.user, each.counted_ns)),
            sum(each.amount for each in held if counts(each.user, each.create_ns)),
        )

    def fits(self, budgets: list[Budget], user: str, amount: int, at_ns: int) -> bool:
        """Whether an amount fits every hard budget that covers a user."""
        return all(
            amount <= max(budget.limit - sum(self.sums(budget, at_ns)), 0)
            for budget in budgets
            if budget.hard and budget.user_id in ("", user)
        )


def swept(before: Request, stored: receipt_pb2.Receipt | None, *, still_held: bool, now: int, grace_ns: int) -> Request:
    """What a request must be after a sweep, from what the books show of it; every step checked."""
    after = replace(before, started=dict(before.started), ended=dict(before.ended))
    if before.held is not None:
        if not still_held:
            assert before.held.expire_ns <= now, "a reservation that has not expired was closed"
            after.held = None
        else:
            waits = before.held.expire_ns > now or before.unfinished
            assert waits, "an expired reservation whose attempts all ended stays open"
    else:
        assert not still_held, "a closed reservation is open again"
    if stored is None:
        assert before.shown is None, "a receipt is lost"
        return after
    items = [(item.attempt, item.cost_nano_usd) for item in stored.facts.overheads]
    base = before.shown if before.shown is not None and before.shown.origin == GIVEN else None
    if base is not None:
        assert base.message is not None
        items = items[len(base.message.facts.overheads) :]
        assert stored.facts.create_time == base.message.facts.create_time
    else:
        assert stored.facts.failed
        base = Receipt(
            user=stored.facts.user_id,
            create_ns=stored.facts.create_time.ToNanoseconds(),
            cost=0,
            digest="",
            failed=True,
            numbers=frozenset(),
            origin=MADE,
        )
    numbers = [number for number, _ in items]
    assert len(numbers) == len(set(numbers)), "an attempt counts twice"
    assert not base.numbers & set(numbers), "an attempt on the receipt counts again"
    found = tuple(items)
    if before.shown is None or before.shown.found != found:
        for number, cost in items:
            assert cost == before.cost_of(number), "an attempt does not count with what it spent"
        for item in stored.facts.overheads:
            if item.attempt in before.unfinished and item.attempt in numbers:
                assert item.usage.estimated, "a worst case is not marked as estimated"
        assert not before.unfinished & set(numbers) or grace_ns <= now, "a worst case counted at once"
    # A reservation that closes without a new receipt (nothing was spent) moves nothing.
    moved = before.shown is None or before.shown.found != found or (base.origin == MADE and after.held is None)
    moved = moved and (before.held is None or after.held is None)
    at = before.shown.counted_ns if before.shown is not None else 0
    if moved:
        at = before.counted_at(stored.facts.create_time.ToNanoseconds(), stored.facts.reservation_id, now)
    after.shown = replace(base, found=found, counted_ns=at)
    return after
