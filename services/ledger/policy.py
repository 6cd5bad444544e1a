"""Pure decisions about money: which budgets cover a request, what fits, and what a lost request has spent.

What may be set as a budget is in ``limits.py``.

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
    WEEK = "week"
    MONTH = "month"
    TOTAL = "total"
    ROLLING = "rolling"


class LadderStep(StrEnum):
    """What a request may still do when a hard budget grows tight."""

    CACHE_ONLY = "cache_only"
    BATCH = "batch"
    CHEAPER_TIER = "cheaper_tier"


SIMPLE_TIER = 1
"""The tier that a cheaper-tier step lets pass, numbered as in tenth.type.v1.Tier."""
BUCKET_COUNT = 60
"""Steps in which a rolling window moves."""


@dataclass(frozen=True, slots=True)
class Rung:
    """A step of a ladder, and the percent of the limit, spent or reserved, from which it holds."""

    step: LadderStep
    from_percent: int


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose request it is, which model answers, and its labels as pairs in the order of their keys."""

    tenant_id: str
    user_id: str
    project_id: str
    model: str = ""
    tags: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit on spending; what narrows it (user, project, model, tag) is empty where it does not."""

    name: str
    tenant_id: str
    limit: int
    hard: bool
    user_id: str = ""
    project_id: str = ""
    window: Window = Window.MONTH
    time_zone: str = "UTC"
    budget_id: int = 0
    model: str = ""
    tag_key: str = ""
    tag_value: str = ""
    """Empty with a key: any value."""
    rolling_seconds: int = 0
    alert_percents: tuple[int, ...] = ()
    alert_url: str = ""
    ladder: tuple[Rung, ...] = ()
    """By percent, lowest first."""

    def covers(self, scope: Scope) -> bool:
        """True when the request counts towards this budget."""
        return (
            self.tenant_id == scope.tenant_id
            and self.user_id in ("", scope.user_id)
            and self.project_id in ("", scope.project_id)
            and self.model in ("", scope.model)
            and (
                not self.tag_key
                or any(key == self.tag_key and self.tag_value in ("", value) for key, value in scope.tags)
            )
        )

    def same_scope(self, other: Budget) -> bool:
        """True when both count the same requests in the same windows, whatever their limits."""
        return self._counted() == other._counted()

    def bounds(self, at_ns: int) -> tuple[int, int | None]:
        """First instant of the stored sum that an instant counts in, and the first after it (None: never).

        That is the calendar window, or the bucket (a sixtieth) of a rolling one.
        """
        if self.window is not Window.ROLLING:
            return window_bounds(self.window, self.time_zone, at_ns)
        start = at_ns - at_ns % self.bucket_ns
        return start, start + self.bucket_ns

    @property
    def bucket_ns(self) -> int:
        """Length of a rolling window's bucket, rounded up."""
        return -(-self.rolling_seconds * NANOS_PER_SECOND // BUCKET_COUNT)

    def first_bucket(self, at_ns: int) -> int:
        """Start of the oldest bucket of which some part lies within the rolling window that ends at an instant.

        So the sum covers at least the whole length: no stretch of that length holds more than the limit.
        """
        return self.bounds(at_ns)[0] - BUCKET_COUNT * self.bucket_ns

    def alert_window(self, at_ns: int) -> int:
        """What an alert goes out once for: the calendar window, or the stretch of a rolling window's length."""
        if self.window is not Window.ROLLING:
            return self.bounds(at_ns)[0]
        return at_ns - at_ns % (self.rolling_seconds * NANOS_PER_SECOND)

    def crossed(self, spent: int, above_percent: int) -> list[int]:
        """The alert marks above a percent that a sum has reached, lowest first."""
        if spent <= 0:
            return []
        return [
            each for each in sorted(self.alert_percents) if each > above_percent and spent * 100 >= self.limit * each
        ]

    def _counted(self) -> tuple[object, ...]:
        window = (self.window, self.time_zone, self.rolling_seconds)
        return (self.tenant_id, self.user_id, self.project_id, self.model, self.tag_key, self.tag_value, *window)


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

    @property
    def steps_begun(self) -> list[LadderStep]:
        """The steps of the ladder that have begun, the last one last."""
        used = (self.spent + self.reserved) * 100
        return [rung.step for rung in self.budget.ladder if used >= self.budget.limit * rung.from_percent]


class Verdict(StrEnum):
    """What becomes of a reservation."""

    OK = "ok"
    DOWNGRADE = "downgrade"
    BATCH = "batch"
    CACHE_ONLY = "cache_only"
    REFUSED = "refused"
    RATE_LIMITED = "rate_limited"


_STRICTNESS = tuple(Verdict)
_OF_STEP = {
    LadderStep.CACHE_ONLY: Verdict.CACHE_ONLY,
    LadderStep.BATCH: Verdict.BATCH,
    LadderStep.CHEAPER_TIER: Verdict.DOWNGRADE,
}


@dataclass(frozen=True, slots=True)
class Decision:
    """The verdict, and the budget that decided it when it is not OK."""

    verdict: Verdict
    budget_name: str = ""
    remaining: int = 0
    retry_after_ns: int = 0
    """With RATE_LIMITED: when there is room again."""


def decide(amount: int, positions: Iterable[Position], *, batch: bool = False, tier: int = 0) -> Decision:
    """Whether an amount fits every hard budget; the strictest of them decides, among equals the tightest.

    A budget that is spent refuses. While something is left, the step of its ladder that has begun last decides: a
    request passes when it takes a way that the ladder has opened (``batch``: the batch step; ``tier`` simple: the
    cheaper-tier step), but none passes while cache-only is the last. What may pass must also fit. What does not
    fit gets DOWNGRADE, unless there is a ladder and a cheaper tier is none of its ways.
    """
    found = [(_verdict(amount, each, batch=batch, tier=tier), each) for each in positions if each.budget.hard]
    against = [(verdict, each) for verdict, each in found if verdict is not Verdict.OK]
    if not against:
        return Decision(Verdict.OK)
    verdict, tightest = min(
        against, key=lambda item: (-_STRICTNESS.index(item[0]), item[1].remaining, item[1].budget.name)
    )
    return Decision(verdict, tightest.budget.name, max(tightest.remaining, 0))


def _verdict(amount: int, position: Position, *, batch: bool, tier: int) -> Verdict:
    if amount <= 0:
        return Verdict.OK
    if position.remaining <= 0:
        return Verdict.REFUSED
    begun = position.steps_begun
    if begun:
        last = begun[-1]
        taken = (batch and LadderStep.BATCH in begun) or (tier == SIMPLE_TIER and LadderStep.CHEAPER_TIER in begun)
        if last is LadderStep.CACHE_ONLY or not taken:
            return _OF_STEP[last]
    if amount <= position.remaining:
        return Verdict.OK
    ways = {rung.step for rung in position.budget.ladder}
    if not ways or (LadderStep.CHEAPER_TIER in ways and tier != SIMPLE_TIER):
        return Verdict.DOWNGRADE
    if LadderStep.BATCH in ways and not batch:
        return Verdict.BATCH
    return Verdict.CACHE_ONLY if LadderStep.CACHE_ONLY in ways else Verdict.REFUSED


def window_bounds(window: Window, time_zone: str, at_ns: int) -> tuple[int, int | None]:
    """The first instant of the window that holds an instant, and the first one after it (None: never).

    Calendar windows begin at local midnight, a week on Monday; where a clock change skips midnight, at the change.
    A rolling window has no calendar: ``Budget.bounds``.
    """
    if window is Window.TOTAL:
        return 0, None
    zone = ZoneInfo(time_zone)
    local = datetime.fromtimestamp(at_ns // NANOS_PER_SECOND, UTC).astimezone(zone)
    if window is Window.DAY:
        first = local.date()
        following = first + timedelta(days=1)
    elif window is Window.WEEK:
        first = local.date() - timedelta(days=local.weekday())
        following = first + timedelta(days=7)
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


ENDS = (AttemptKind.FINISHED.value, AttemptKind.FAILED.value, AttemptKind.CANCELLED.value)
"""Kinds of records that count as an attempt that ended."""


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
    if record.purpose in ("classifier", "summary", "tokenwise"):
        return record.purpose
    return "cancelled_attempt" if record.kind is AttemptKind.CANCELLED else "failed_attempt"
