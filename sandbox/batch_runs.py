"""How a batch runs in the sandbox, in either format: its clock, what shall go wrong with it, the turns of its items.

What happens is decided by the plan's seed and the batch's size alone, so that a test sees it again.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

Responder = Callable[[dict[str, Any], str], Awaitable[tuple[int, dict[str, Any]]]]
"""Answers one request as the online endpoint does: (body, id) -> (HTTP status, JSON body)."""
_AT_ONCE = 8
"""Items that are answered at the same time: a model that writes the text batches them."""


@dataclass(frozen=True, slots=True)
class BatchPlan:
    """How the batches that are created from now on go. Counts of 0 and times of 0: nothing of the kind happens."""

    seed: int = 1
    speed: float = 1.0
    """Seconds of this plan that pass in one second of the real clock."""
    validating_seconds: float = 0.0
    item_seconds: float = 0.0
    finalizing_seconds: float = 0.0
    window_seconds: float = 86_400.0
    """After which what has not run is given up."""
    failed_share: float = 0.0
    """Share of the items that fail with HTTP 500, 0 to 1."""
    expire_after: int = 0
    """Items that run before the batch expires."""
    pause_after: int = 0
    """Items that run before nothing goes on until the batch is cancelled."""
    duplicate_share: float = 0.0
    """Share of the result lines that come twice, the second time with another item's result."""
    stranger_lines: int = 0
    """Result lines of ids that nobody sent."""
    garbage_lines: int = 0
    """Result lines that are no JSON, in place of good ones."""
    truncate_bytes: int = 0
    """Bytes that the results' end lacks."""
    fail_validation: bool = False
    full_creates: int = 0
    """Batches that fail because too much waits at the provider, before one is taken (OpenAI's format)."""
    refuse_creates: int = 0
    """Creations that are refused with 429 before one is taken."""
    drop_creates: int = 0
    """Creations that are carried out and whose answer never arrives."""
    drop_uploads: int = 0
    """The same of uploads of files."""

    @classmethod
    def from_json(cls, text: str) -> BatchPlan:
        """A plan from a JSON object of the names above; absent ones keep their default. Raises ValueError."""
        body = json.loads(text or "{}")
        known = {field.name: field.default for field in fields(cls)}
        if not isinstance(body, dict) or not body.keys() <= known.keys():
            raise ValueError(f"a batch plan is an object with the keys {', '.join(known)}")
        for name, value in body.items():
            if isinstance(value, bool) != isinstance(known[name], bool) or not isinstance(value, int | float):
                raise ValueError(f"{name} has a value of a wrong kind: {value!r}")
        return cls(**body)


class BatchClock:
    """Wall time, and waits that are as much shorter as the plan's clock is faster."""

    def __init__(self, now: Callable[[], float] = time.time) -> None:
        """``now``: seconds since 1970."""
        self.now = now

    async def wait(self, seconds: float, speed: float, stop: asyncio.Event) -> None:
        """Wait for a plan's seconds, or until ``stop``."""
        if seconds <= 0:
            return
        try:
            async with asyncio.timeout(seconds / speed):
                await stop.wait()
        except TimeoutError:
            pass


@dataclass(slots=True)
class BatchControl:
    """What the sandbox was told of batches, and what it did: ``runs`` counts every request it was asked to run, by its
    custom id."""

    plan: BatchPlan
    clock: BatchClock
    runs: Counter[str]

    def take(self, name: str) -> bool:
        """True when one of the things that shall happen a number of times is due; it is counted down."""
        left: int = getattr(self.plan, name)
        if left > 0:
            self.plan = replace(self.plan, **{name: left - 1})  # type: ignore[arg-type]  # the name of a count
        return left > 0


@dataclass(frozen=True, slots=True)
class BatchItem:
    """One request of a batch."""

    custom_id: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Outcome:
    """How an item ended: "answered" with a status and a body, "expired" or "cancelled"."""

    custom_id: str
    kind: str
    status: int = 0
    body: dict[str, Any] | None = None


class BatchRun:
    """One batch on its way: its state is "validating", "in_progress", "finalizing" or "ended"."""

    def __init__(
        self, items: Sequence[BatchItem], control: BatchControl, responder: Responder, failure: dict[str, Any]
    ) -> None:
        """``failure`` is the format's body of an answer with status 500. Runs until it is over; see ``task``."""
        self._items = items
        self._plan = control.plan
        self._control = control
        self._responder = responder
        self._failure = failure
        self._stop = asyncio.Event()
        self.created_at = control.clock.now()
        self.expires_at = self.created_at + self._plan.window_seconds / self._plan.speed
        self.state = "validating"
        self.times: dict[str, float] = {}
        self.outcomes: list[Outcome] = []
        self.cancelled = False
        self.expired = False
        self.task = asyncio.create_task(self._run())

    @property
    def total(self) -> int:
        """Items of the batch."""
        return len(self._items)

    def count(self, kind: str, *, good: bool | None = None) -> int:
        """Outcomes of a kind; of answers: the good ones, or the others."""
        return sum(each.kind == kind and (good is None or good == (each.status < 400)) for each in self.outcomes)

    def cancel(self) -> None:
        """Stop it; what runs comes to its end."""
        if self.state in ("validating", "in_progress") and not self.cancelled:
            self.cancelled = True
            self.times["cancelling"] = self._control.clock.now()
            self._stop.set()

    def lines(self, make: Callable[[Outcome], dict[str, Any]], wanted: Callable[[Outcome], bool]) -> bytes:
        """A result file of the wanted outcomes, with what the plan says is wrong with it."""
        chance = random.Random(f"{self._plan.seed} lines {self.total}")  # noqa: S311  # repeatable, no secret
        made = [make(each) for each in self.outcomes if wanted(each)]
        lines: list[str] = []
        for number, line in enumerate(made):
            lines.append("<html>" if number < self._plan.garbage_lines else json.dumps(line))
            if chance.random() < self._plan.duplicate_share:
                lines.append(json.dumps(made[number - 1] | {"custom_id": line["custom_id"]}))
        if made:
            lines += [json.dumps(made[0] | {"custom_id": f"nobody{n}"}) for n in range(self._plan.stranger_lines)]
        raw = "".join(line + "\n" for line in lines).encode()
        return raw[: max(len(raw) - self._plan.truncate_bytes, 0)] if self._plan.truncate_bytes else raw

    async def _run(self) -> None:
        plan, clock = self._plan, self._control.clock
        await clock.wait(plan.validating_seconds, plan.speed, self._stop)
        self._enter("in_progress")
        chance = random.Random(f"{plan.seed} order {self.total}")  # noqa: S311  # repeatable, no secret
        order = list(range(self.total))
        chance.shuffle(order)
        failing = {place for place in range(self.total) if chance.random() < plan.failed_share}
        most = min(plan.expire_after or self.total, plan.pause_after or self.total)
        done = 0
        while done < most and not self._stop.is_set() and clock.now() < self.expires_at:
            group = order[done : min(done + _AT_ONCE, most)]
            self.outcomes += await asyncio.gather(*(self._answer(place, place in failing) for place in group))
            done += len(group)
            await clock.wait(plan.item_seconds * len(group), plan.speed, self._stop)
            await asyncio.sleep(0)
        if plan.pause_after and done < self.total:
            await self._stop.wait()
        self.expired = done < self.total and not self.cancelled
        kind = "cancelled" if self.cancelled else "expired"
        self.outcomes += [Outcome(self._items[place].custom_id, kind) for place in order[done:]]
        self._enter("finalizing")
        await clock.wait(plan.finalizing_seconds, plan.speed, asyncio.Event())
        self._enter("ended")

    async def _answer(self, place: int, failing: bool) -> Outcome:
        item = self._items[place]
        self._control.runs[item.custom_id] += 1
        if failing:
            return Outcome(item.custom_id, "answered", 500, self._failure)
        status, body = await self._responder(item.body, item.custom_id)
        return Outcome(item.custom_id, "answered", status, body)

    def _enter(self, state: str) -> None:
        self.state = state
        self.times[state] = self._control.clock.now()
