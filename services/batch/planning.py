"""When work leaves a cheap lane so that the batch still meets its deadline. Pure.

Everything that is left can run online at the measured rate; what is at a provider, and what own hardware will not get
to, must start there early enough. Nothing is moved before: until then the cheap lane may still answer it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from services.batch.policy import LOCAL, ONLINE, PROVIDER_LANES


@dataclass(frozen=True, slots=True)
class LaneLoad:
    """What is left in a lane: for one model, or for one batch at a provider."""

    key: str
    """Names it for the one who asks."""
    lane: str
    item_count: int
    """Not yet answered, those in hand included."""
    items_per_second: float = 0.0
    """Measured, or a guess; of a provider's batch nothing is assumed."""
    leave_seconds: float = 0.0
    """How long it takes to get work out of the lane: a provider stops a batch when it pleases."""


@dataclass(frozen=True, slots=True)
class Margins:
    """How careful to be."""

    safety_factor: float
    """By how much everything may take longer than measured; 1 or more."""
    reserve_seconds: float
    """Kept before the deadline for collecting and finishing."""


@dataclass(frozen=True, slots=True)
class Move:
    """Items to take out of a lane and to run online."""

    key: str
    item_count: int
    why: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, and when to ask again (seconds since 1970), as long as nothing else happens."""

    moves: tuple[Move, ...]
    ask_again: float
    words: str


def online_start(deadline: float, item_count: float, items_per_second: float, margins: Margins) -> float:
    """The latest time at which this many items can begin to run online and be done at the deadline."""
    if item_count <= 0:
        return deadline - margins.reserve_seconds
    return deadline - margins.reserve_seconds - margins.safety_factor * item_count / max(items_per_second, 1e-9)


def pace_end(now: float, deadline: float, item_count: int, items_per_second: float, margins: Margins) -> float:
    """Until when items wait for a limit of requests per minute: what has passed must still run, so it is the latest
    time at which all can begin online, but at least half of what is left.
    """
    return max(online_start(deadline, item_count, items_per_second, margins), (now + deadline) / 2)


def local_overflow(now: float, deadline: float, load: LaneLoad, margins: Margins) -> int:
    """How many of a lane's items it will not get to before the deadline, at its rate and with the margins."""
    seconds = max(0.0, deadline - margins.reserve_seconds - now)
    return max(0, load.item_count - int(seconds * load.items_per_second / margins.safety_factor))


def plan(
    now: float,
    deadline: float,
    loads: Sequence[LaneLoad],
    online_items_per_second: float,
    margins: Margins,
    *,
    online_allowed: bool = True,
) -> Plan:
    """What must move online now. Times in seconds since 1970."""
    if not online_allowed:
        return Plan((), deadline, "online is not allowed: work stays where it is")
    candidates: list[Move] = []
    online = 0
    for load in loads:
        if load.lane == ONLINE:
            online += load.item_count
        elif load.lane in PROVIDER_LANES and load.item_count:
            candidates.append(Move(load.key, load.item_count, "the provider has not answered"))
        elif load.lane == LOCAL and (late := local_overflow(now, deadline, load, margins)):
            why = f"{load.item_count} items at {load.items_per_second:.3g} a second are {late} too many"
            candidates.append(Move(load.key, late, why))
    total = online + sum(move.item_count for move in candidates)
    moving = {move.key for move in candidates}
    leave = max((load.leave_seconds for load in loads if load.key in moving), default=0.0)
    start = online_start(deadline, total, online_items_per_second, margins) - leave
    left = deadline - now
    if not candidates:
        return Plan((), max(now + 1, start), f"all is on time, {left:.0f} s before the deadline")
    if now < start:
        words = f"{total} items could still run online from {start - now:.0f} s on; the deadline is in {left:.0f} s"
        return Plan((), start, words)
    words = f"{total} items at {online_items_per_second:.3g} a second online need the {left:.0f} s that are left"
    return Plan(tuple(candidates), deadline, words)


def check_seconds(now: float, ask_again: float, least: float, most: float) -> float:
    """How long to sleep before asking again: until that time, but now and then before, because rates change."""
    return min(max(least, (ask_again - now) / 4 if ask_again - now > 4 * least else ask_again - now), most)


def poll_seconds(polled: int, first: float, longest: float, left: float) -> float:
    """How long to wait before a provider is asked again: 1.5 times as long each time, never past the give-up time."""
    return max(0.01, min(first * 1.5 ** min(polled, 40), longest, left))


def may_wait(seconds_left: float, least_seconds: float, margins: Margins) -> bool:
    """True when there is time to let items wait for others: those that must run after all do so in a second round."""
    return seconds_left - margins.reserve_seconds >= least_seconds


def measured_rate(item_count: int, seconds: float, guess: float) -> float:
    """Items a second; the guess while too little is known."""
    return item_count / seconds if item_count >= 8 and seconds > 0 else guess
