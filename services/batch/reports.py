"""What activities are asked and what they answer: names of objects and counts, through Temporal's JSON converter."""

from __future__ import annotations

from dataclasses import dataclass, field

from services.batch.refs import BatchRef, Progress

LAYER_COUNT = 6


@dataclass(slots=True)
class Counts:
    """How some items ended; money in nano-USD, savings by layer from LAYER_CACHE on."""

    done: int = 0
    failed: int = 0
    shared: int = 0
    cache_hits: int = 0
    actual_nano_usd: int = 0
    overhead_nano_usd: int = 0
    baseline_nano_usd: int = 0
    savings: list[int] = field(default_factory=lambda: [0] * LAYER_COUNT)
    lanes: dict[str, int] = field(default_factory=dict)

    @property
    def ended(self) -> int:
        """Items that have a result."""
        return self.done + self.failed

    def add(self, other: Counts) -> None:
        """Add another part's counts to these."""
        self.done += other.done
        self.failed += other.failed
        self.shared += other.shared
        self.cache_hits += other.cache_hits
        self.actual_nano_usd += other.actual_nano_usd
        self.overhead_nano_usd += other.overhead_nano_usd
        self.baseline_nano_usd += other.baseline_nano_usd
        self.savings = [one + two for one, two in zip(self.savings, other.savings, strict=True)]
        for lane, count in other.lanes.items():
            self.lanes[lane] = self.lanes.get(lane, 0) + count


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What the workflow must know of its run. Times in seconds since 1970."""

    item_count: int
    object_count: int
    deadline_seconds: float
    lanes: list[str]
    pace: Pace


@dataclass(frozen=True, slots=True)
class Pace:
    """The settings that the workflow itself goes by; read once a run, so that replays see the same."""

    prepare_parallel: int
    local_chunks: int
    online_chunks: int
    provider_batches: int
    safety_factor: float
    reserve_seconds: float
    online_items_per_second: float
    local_items_per_second: float
    check_least_seconds: float
    check_most_seconds: float
    poll_first_seconds: float
    poll_longest_seconds: float
    near_same: bool
    provider_tries: int
    provider_least_seconds: float
    provider_leave_seconds: float
    near_same_least_seconds: float
    heartbeat_seconds: float
    history_events: int
    provider_find_seconds: float = 3600.0
    close_seconds: float = 3600.0


@dataclass(frozen=True, slots=True)
class Prepare:
    """Prepare the items of one input object in one round."""

    ref: BatchRef
    round: int
    number: int
    deadline_seconds: float
    twins_wait: bool
    batch_prices: bool
    paced_until_seconds: float = 0.0
    """Until then (seconds since 1970) those wait that the tenant's limit of requests per minute holds back."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What became of them: some ended at once, some wait for the same question's answer, the others are prepared."""

    counts: Counts
    prepared: int
    waiting: int
    expected_nano_usd: int


@dataclass(frozen=True, slots=True)
class MakePlan:
    """Put what a round prepared in order."""

    ref: BatchRef
    round: int
    object_count: int
    deadline_seconds: float
    seconds_for_cheap_lanes: float
    lanes: list[str]
    near_same: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Plan objects of one lane and model: numbers ``first`` and on, as many items in each as ``sizes`` says."""

    lane: str
    model: str
    another_model: bool
    first: int
    sizes: list[int]
    batches: list[list[int]] = field(default_factory=list)
    """For providers: how the objects make up batches, as [first, count]."""


@dataclass(frozen=True, slots=True)
class Planned:
    """A round's plan. ``stem`` begins the names of its objects."""

    stem: str
    groups: list[Group]
    counts: Counts
    waiting: int
    words: list[str]
    waiting_nano_usd: int = 0
    """What was expected of those that wait; they are prepared, and counted, again."""


@dataclass(frozen=True, slots=True)
class RunChunk:
    """Run the items of one plan object that have no result yet."""

    ref: BatchRef
    lane: str
    model: str
    name: str
    another_model: bool
    at_batch_prices: bool
    moved: bool
    """True when another lane had it before: its attempts have other numbers."""
    deadline_seconds: float
    also_done: list[str] = field(default_factory=list)
    """Beginnings of other results' names that hold items of it: those of a provider's batch it was in."""


@dataclass(frozen=True, slots=True)
class ChunkEnd:
    """What became of a chunk or a provider's batch. ``left``: items without a result, when it was stopped."""

    counts: Counts
    left: int
    seconds: float


@dataclass(frozen=True, slots=True)
class ProviderWork:
    """A batch for a provider: plan objects ``first`` and on, less what has results. Times in seconds since 1970."""

    ref: BatchRef
    lane: str
    model: str
    stem: str
    first: int
    count: int
    submission: int
    begin_seconds: float
    deadline_seconds: float

    @property
    def name(self) -> str:
        """Begins the names of its results, those of earlier submissions too."""
        return f"{self.stem}-{self.first:06d}-{self.lane}"


@dataclass(frozen=True, slots=True)
class Submitted:
    """It is at the provider; without an id the provider refused it, for the reason."""

    provider_batch_id: str
    item_count: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class AtProvider:
    """A provider's batch by its id."""

    work: ProviderWork
    provider_batch_id: str


@dataclass(frozen=True, slots=True)
class Polled:
    """How far it is."""

    ended: bool
    failed: bool
    done: int
    message: str = ""
    retryable: bool = False
    """With ``failed``: the provider may take it later."""


@dataclass(frozen=True, slots=True)
class Share:
    """Give answers to the same questions, and say who must be prepared again."""

    ref: BatchRef
    stem: str
    object_count: int
    round: int = 1
    """After which round."""


@dataclass(frozen=True, slots=True)
class Shared:
    """``numbers``: input objects with items to prepare again."""

    counts: Counts
    again: int
    numbers: list[int]


@dataclass(frozen=True, slots=True)
class Close:
    """Give every item without a result the same end."""

    ref: BatchRef
    object_count: int
    reason: str
    message: str
    retryable: bool
    until_seconds: float = 0.0
    """After that (seconds since 1970) items get their ends without the orchestrator, if it is away; 0: never."""
    uncounted: list[str] = field(default_factory=list)
    """Beginnings of the names of results that nobody has counted yet."""
    half_prepared: list[int] = field(default_factory=list)
    """Input objects of which some items may hold reservations that no prepared object tells of."""


@dataclass(frozen=True, slots=True)
class End:
    """Keep how the run ended and remove what only it needed."""

    ref: BatchRef
    progress: Progress


@dataclass(slots=True)
class Piece:
    """A plan object that waits for a worker."""

    name: str
    item_count: int
    also_done: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Line:
    """The plan objects of one lane and model that wait, and how fast they go."""

    lane: str
    model: str
    another_model: bool
    moved: bool
    pieces: list[Piece]
    ended_count: int = 0
    busy_seconds: float = 0.0


@dataclass(slots=True)
class Outside:
    """A batch that is, or is to be, at a provider."""

    lane: str
    model: str
    stem: str
    first: int
    sizes: list[int]
    left: int
    submission: int = 1
    provider_batch_id: str = ""
    begin_seconds: float = 0.0
    polled: int = 0
    no_room: int = 0
    """How often the provider had no room for it."""


@dataclass(slots=True)
class Resume:
    """Where a workflow that continues as new goes on."""

    round: int
    facts: RunFacts
    counts: Counts
    expected_nano_usd: int
    waiting: int
    stem: str
    at_batch_prices: bool
    lines: list[Line]
    outside: list[Outside]
    cancelled: bool


@dataclass(frozen=True, slots=True)
class RunInput:
    """The workflow's argument: what a BatchRef says, and where one that continued as new goes on."""

    tenant_id: str
    batch_id: str
    run: int = 1
    resume: Resume | None = None
