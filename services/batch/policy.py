"""What the batch layer decides about one item: its lane, whether it may share an answer, what to try after a failure.

Pure. Deadlines are in planning.py, order and chunks in ordering.py, near-same questions in grouping.py.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from enum import Enum

LOCAL, OPENAI, ANTHROPIC, ONLINE = "local", "openai", "anthropic", "online"
LANES = (LOCAL, OPENAI, ANTHROPIC, ONLINE)
"""Cheapest first."""
PROVIDER_LANES = (OPENAI, ANTHROPIC)

MOST_ATTEMPTS = 240
"""Numbers of a request's answers: inference counts those made beside a late one from 251, other work from 601."""

_NUMBERS_OF_A_DELIVERY = 16
_NUMBERS_OF_A_PREPARATION = 1000
"""The first half begins each range of a request's numbers at a multiple of this, and one: nobody else has these."""
_DELIVERIES_OF_A_RUN = 5


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What planning knows of a model."""

    model: str
    self_hosted: bool
    has_batch_price: bool
    provider_lane: str = ""
    """The provider's batch interface that takes it; empty: none."""


@dataclass(frozen=True, slots=True)
class LaneChoice:
    """Where an item runs. ``lane`` is empty when no allowed lane can take it."""

    lane: str
    another_model: bool
    """True when the item must be prepared again, without the model that was chosen for it."""
    why: str


def provider_lane(interface: str) -> str:
    """The provider's lane of a model, from its provider's batch interface; empty without one that is known."""
    return interface if interface in PROVIDER_LANES else ""


def choose_lane(facts: ModelFacts, allowed: Collection[str], seconds_left: float, least_seconds: float) -> LaneChoice:
    """The cheapest lane that can meet the deadline.

    ``allowed``: the batch's lanes, empty for all. ``seconds_left``: until the deadline, less the time that is kept for
    running everything online. ``least_seconds``: with less than that a provider's batch is not begun.
    """
    lanes = set(allowed) or set(LANES)
    if facts.self_hosted:
        if LOCAL in lanes:
            return LaneChoice(LOCAL, False, f"{facts.model} runs on own hardware")
        if ONLINE in lanes:
            return LaneChoice(ONLINE, True, f"{facts.model} runs on own hardware, which the batch does not allow")
        return LaneChoice("", False, f"no allowed lane runs {facts.model}")
    if facts.has_batch_price and facts.provider_lane in lanes:
        if seconds_left >= least_seconds:
            return LaneChoice(facts.provider_lane, False, f"{facts.model} has a batch price")
        if ONLINE in lanes:
            return LaneChoice(ONLINE, False, f"{seconds_left:.0f} s are too few for a provider's batch")
        return LaneChoice(facts.provider_lane, False, "the deadline is near, and no other lane is allowed")
    if ONLINE in lanes:
        return LaneChoice(ONLINE, False, f"{facts.model} has no batch lane")
    return LaneChoice("", False, f"no allowed lane runs {facts.model}")


def may_wait_for_twin(reads_cache: bool, temperature: float | None, temperature_limit: float) -> bool:
    """True when an item may get the answer of the same question in its batch, as far as the request alone says.

    A caller who does not read the cache wants an answer of its own; so does one who samples at a high temperature.
    An absent temperature is the model's own, and the first half then says whether the answer may be shared.
    """
    return reads_cache and (temperature is None or temperature <= temperature_limit)


def may_wait_for_near_same(lane: str, allowed: Collection[str]) -> bool:
    """True when an item of this lane may wait for one that means nearly the same.

    A provider takes the time it likes. What waits for its first batch goes in a second one, and where that cannot be
    left for the lane online it may end after the deadline.
    """
    return lane not in PROVIDER_LANES or not allowed or ONLINE in allowed


def may_share(cacheable: bool, temperature: float | None) -> bool:
    """True when the first one's answer goes to its twins: the cache would give it to them, or it is what greedy
    decoding gives again. Everything else (tools with effects, say) is asked again.
    """
    return cacheable or temperature == 0


def attempt_number(first: int, run: int, delivery: int, number: int) -> int:
    """The number of one generation of one item.

    ``first``: as prepared. ``run``: of the batch, from 1. ``delivery``: how often the chunk was handed to a worker,
    from 1: one that died may have used any of its numbers. ``number``: of this worker's tries, from 1. Numbers go round
    before they meet those that inference gives to other work.
    """
    before = ((run - 1) * _DELIVERIES_OF_A_RUN + (delivery - 1)) * _NUMBERS_OF_A_DELIVERY
    taken = (first - 1) % _NUMBERS_OF_A_PREPARATION
    return first + (before + number - 1) % max(MOST_ATTEMPTS - taken, 1)


class Next(Enum):
    """What to do after a failed generation."""

    AGAIN = "again"
    ANOTHER_MODEL = "another model"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Failure:
    """How a generation failed: the status code's name, the reason, how long the service asks to wait, seconds."""

    code: str
    reason: str
    retry_after_seconds: float | None


_FULL = ("RESOURCE_EXHAUSTED", "ABORTED", "CANCELLED", "ALREADY_EXISTS")
_DOWN = ("UNAVAILABLE", "DEADLINE_EXCEEDED", "INTERNAL", "UNKNOWN")
_UNFIT = ("UNIMPLEMENTED", "NOT_FOUND", "FAILED_PRECONDITION")
_TRIES_OF_A_MODEL_THAT_IS_DOWN = 2


def is_full(failure: Failure) -> bool:
    """True when the service is there but takes no more now: waiting is no failure of the model."""
    return failure.code in _FULL


def after_failure(failure: Failure, tried: int, waited: int, most_waits: int) -> Next:
    """What to do after a model failed on an item.

    ``tried``: failures of this model on it, this one included, less those that were a full queue; ``waited``: those.
    A full queue is waited for; a model that is down is tried once more and then left; one that cannot do what is asked
    is left at once; a wrong request fails.
    """
    if is_full(failure):
        return Next.AGAIN if waited < most_waits else Next.ANOTHER_MODEL
    if failure.code in _DOWN:
        return Next.AGAIN if tried < _TRIES_OF_A_MODEL_THAT_IS_DOWN else Next.ANOTHER_MODEL
    return Next.ANOTHER_MODEL if failure.code in _UNFIT else Next.FAIL


def pause_seconds(failure: Failure, tried: int, jitter: float) -> float:
    """How long to wait before the next try: as told, else 0.2 s doubled each time up to 20 s; ``jitter`` 0..1."""
    if failure.retry_after_seconds is not None:
        return failure.retry_after_seconds * (1 + 0.2 * jitter)
    return float(min(20.0, 0.2 * 2 ** min(tried - 1, 10))) * (0.5 + 0.5 * jitter)


def limit_seconds(told_seconds: float, held: int, waited: int, jitter: float) -> float:
    """How long to wait when a limit of requests per minute holds items back.

    ``told_seconds``: until one more may pass, 0: not known; ``held``: how many are held back; ``waited``: how often
    they were, this time included; ``jitter`` 0..1. Long enough for all of them, at most 20 s or as long as was told.
    """
    if told_seconds <= 0:
        return pause_seconds(Failure("RESOURCE_EXHAUSTED", "", None), waited + 2, jitter)
    return max(told_seconds, min(told_seconds * held, 20.0)) * (1 + 0.2 * jitter)
