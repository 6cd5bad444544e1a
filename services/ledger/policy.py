"""Pure decisions about money: which budgets cover a request, what fits, and what a lost request has spent.

Imports no gRPC, no generated code and no SQLAlchemy. Instants are integer nanoseconds since the epoch, amounts
integer nano-USD.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from zoneinfo import ZoneInfo

from mesh.receipt import Usage

NANOS_PER_SECOND = 1_000_000_000
LAYERS = ("cache", "routing", "compression", "batch")
"""Layers with a kill switch, in the order of the request path."""
ALL_TENANTS = "*"
"""A switch's tenant that stands for every tenant."""


class Window(StrEnum):
    """A budget's window."""

    DAY = "day"
    MONTH = "month"
    TOTAL = "total"


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on spending; ``user_id`` and ``project_id`` narrow it, empty ones do not."""

    name: str
    tenant_id: str
    limit: int
    hard: bool
    user_id: str = ""
    project_id: str = ""
    window: Window = Window.MONTH
    time_zone: str = "UTC"
    budget_id: int = 0

    def covers(self, tenant_id: str, user_id: str, project_id: str) -> bool:
        """True when the request counts towards this budget."""
        return self.tenant_id == tenant_id and self.user_id in ("", user_id) and self.project_id in ("", project_id)

    def same_scope(self, other: Budget) -> bool:
        """True when both count the same requests in the same windows, whatever their limits."""
        mine = (self.tenant_id, self.user_id, self.project_id, self.window, self.time_zone)
        return mine == (other.tenant_id, other.user_id, other.project_id, other.window, other.time_zone)


@dataclass(frozen=True, slots=True)
class Position:
    """Where a budget stands in one window."""

    budget: Budget
    window_start_ns: int
    spent: int = 0
    reserved: int = 0

    @property
    def remaining(self) -> int:
        """What may still be spent; negative when the limit is passed."""
        return self.budget.limit - self.spent - self.reserved


class Verdict(StrEnum):
    """What becomes of a reservation."""

    OK = "ok"
    DOWNGRADE = "downgrade"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict, and the budget that decided it when it is not OK."""

    verdict: Verdict
    budget_name: str = ""
    remaining: int = 0


def decide(amount: int, positions: Iterable[Position]) -> Decision:
    """Whether an amount fits every hard budget.

    DOWNGRADE while something is left everywhere (a cheaper model may fit), REFUSED when a budget is spent; the
    tightest budget is named.
    """
    tight = [each for each in positions if each.budget.hard and amount > max(each.remaining, 0)]
    if not tight:
        return Decision(Verdict.OK)
    tightest = min(tight, key=lambda each: (each.remaining, each.budget.name))
    verdict = Verdict.DOWNGRADE if tightest.remaining > 0 else Verdict.REFUSED
    return Decision(verdict, tightest.budget.name, max(tightest.remaining, 0))


def window_bounds(window: Window, time_zone: str, at_ns: int) -> tuple[int, int | None]:
    """The first instant of the window that holds an instant, and the first one after it (None: never).

    Calendar windows begin at local midnight; where a clock change skips midnight, at the change.
    """
    if window is Window.TOTAL:
        return 0, None
    zone = ZoneInfo(time_zone)
    local = datetime.fromtimestamp(at_ns // NANOS_PER_SECOND, UTC).astimezone(zone)
    if window is Window.DAY:
        first = local.date()
        following = first + timedelta(days=1)
    else:
        first = local.date().replace(day=1)
        following = (first + timedelta(days=32)).replace(day=1)
    start, end = (
        int(datetime(day.year, day.month, day.day, tzinfo=zone).timestamp()) * NANOS_PER_SECOND
        for day in (first, following)
    )
    return start, end


def is_time_zone(name: object) -> bool:
    """True for a name of the IANA time zone database."""
    if not isinstance(name, str) or not name:
        return False
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # KeyError: ZoneInfoNotFoundError; OSError: the name of a folder.
        return False
    return True


class AttemptKind(StrEnum):
    """What an attempt's record says."""

    STARTED = "started"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    CORRECTED = "corrected"
    """What it used, known later than its end; stored beside an end of the same kind that was estimated."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One record of one attempt."""

    attempt: int
    purpose: str
    kind: AttemptKind
    model: str
    usage: Usage
    estimated: bool
    quantized: bool
    event_ns: int


@dataclass(frozen=True, slots=True)
class Spent:
    """What one attempt of a lost request spent."""

    kind: str
    attempt: Attempt
    estimated: bool


def spent_by_attempts(attempts: Sequence[Attempt], *, assume_worst: bool) -> tuple[Spent, ...] | None:
    """What a request whose receipt never came has spent, one item per attempt, in order.

    An attempt that started and never ended makes the answer None (wait), unless ``assume_worst``: then its worst
    case counts, marked as estimated. The usage of an exact end stands before an estimated one; how the attempt ended
    is what its first end says.
    """
    ends: dict[tuple[str, int], Attempt] = {}
    starts: dict[tuple[str, int], Attempt] = {}
    exact: dict[tuple[str, int], Attempt] = {}
    for each in sorted(attempts, key=lambda item: item.event_ns):
        key = (each.purpose, each.attempt)
        if each.kind is AttemptKind.STARTED:
            starts.setdefault(key, each)
            continue
        # The first end stands: records of one attempt come from one log; another one only corrects an estimate.
        first = ends.setdefault(key, each)
        if not each.estimated and each.model == first.model:
            exact.setdefault(key, each)
    items = []
    for key in sorted(starts | ends):
        end = ends.get(key)
        if end is None and not assume_worst:
            return None
        record = end or starts[key]
        if key in exact:
            record = replace(record, usage=exact[key].usage, estimated=False)
        items.append(Spent(_overhead_kind(record), record, record.estimated or end is None))
    return tuple(items)


def _overhead_kind(record: Attempt) -> str:
    if record.purpose == "classifier":
        return "classifier"
    return "cancelled_attempt" if record.kind is AttemptKind.CANCELLED else "failed_attempt"
