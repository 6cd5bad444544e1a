"""A second attempt beside a late first one: the first answer wins, the other is cancelled, and both are paid for.

Source: Dean and Barroso, "The Tail at Scale", CACM 2013: a second request after the 95th percentile of the expected
latency takes most of the tail away for about 5% more requests. Opt-in by the catalogue (``hedge_after_seconds``).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar

from mesh.errors import TenthError
from services.inference.backend import Answer, Backend
from services.inference.policy import Event, Generation, Meter

T = TypeVar("T")

NUMBER_OFFSET = 250
"""What is added to an attempt's number for the one beside it; the orchestrator numbers a request's attempts from 1."""
_KEPT = 200
_ENOUGH = 20
_PERCENTILE = 0.95


class HedgeDelay:
    """How long a first answer is waited for: as the catalogue says, and once 20 answers are known, as long as 95% of
    the last 200 took to begin."""

    def __init__(self, seconds: float) -> None:
        self._first = seconds
        self._seen: deque[float] = deque(maxlen=_KEPT)

    def note(self, seconds: float) -> None:
        """An answer began, so long after it was asked for."""
        self._seen.append(seconds)

    @property
    def seconds(self) -> float:
        """The wait before a second attempt."""
        if len(self._seen) < _ENOUGH:
            return self._first
        return sorted(self._seen)[int(_PERCENTILE * (len(self._seen) - 1))]


class HedgedBackend:
    """A Backend that asks its provider a second time where the first answer is late.

    A whole answer races to its end, a streamed one to its first piece. An attempt that fails before the second began
    fails as it is: hedging is for the slow, not for the broken.
    """

    def __init__(self, backend: Backend, delay: HedgeDelay, clock: Callable[[], float]) -> None:
        """``clock`` never goes back, seconds."""
        self._backend = backend
        self._delay = delay
        self._clock = clock
        self.kind = backend.kind
        self.provider = backend.provider
        self.provider_model = backend.provider_model
        self.quantized = backend.quantized
        self.bills_abandoned = backend.bills_abandoned

    def unavailable_reason(self) -> str:
        """The provider's."""
        return self._backend.unavailable_reason()

    def unavailable_error(self) -> TenthError | None:
        """The provider's."""
        return self._backend.unavailable_error()

    async def generate(self, generation: Generation, meter: Meter) -> Answer:
        """The whole answer that comes first."""
        if meter.on_second is None:
            return await self._backend.generate(generation, meter)
        answer = await self._race(meter, lambda second: self._backend.generate(*_asked(generation, meter, second)))
        loser = meter.loser
        if loser is not None and loser.reached and loser.reported is None:
            # It was asked for whole, and a provider writes to the end what nobody waits for any more: as long an answer
            # as the winner's is the best guess.
            loser.reported = replace(answer.finished.usage, input=loser.estimated_input, cached=0, write_5m=0,
                                     write_1h=0, estimated=True)  # fmt: skip
        return answer

    async def stream(self, generation: Generation, meter: Meter) -> AsyncGenerator[Event]:
        """The pieces of the answer that begins first."""
        if meter.on_second is None:
            async with aclosing(self._backend.stream(generation, meter)) as only:
                async for event in only:
                    yield event
            return
        streams: dict[bool, AsyncGenerator[Event]] = {}

        def begin(second: bool) -> Awaitable[Event]:
            streams[second] = self._backend.stream(*_asked(generation, meter, second))
            return anext(streams[second])

        try:
            first = await self._race(meter, begin)
            for second, each in streams.items():
                if second != meter.second_won:
                    await each.aclose()
            yield first
            async for event in streams[meter.second_won]:
                yield event
        finally:
            for each in streams.values():
                await each.aclose()

    async def _race(self, meter: Meter, run: Callable[[bool], Awaitable[T]]) -> T:
        """What comes first of ``run(False)`` and, after the delay, ``run(True)``; the meter learns which it was."""
        began = self._clock()
        tasks = [asyncio.ensure_future(run(False))]
        try:
            await asyncio.wait(tasks, timeout=self._delay.seconds)
            # One that still waits for its turn is not helped by another that waits behind it.
            if not tasks[0].done() and meter.reached:
                try:
                    meter.begin_second()
                except TenthError:
                    pass  # It cannot be written down now, so it is not made.
                else:
                    tasks.append(asyncio.ensure_future(run(True)))
            while not all(task.done() for task in tasks):
                await asyncio.wait([task for task in tasks if not task.done()], return_when=asyncio.FIRST_COMPLETED)
                if any(_answered(task) for task in tasks):
                    break
            winner = next((number for number, task in enumerate(tasks) if _answered(task)), 0)
            meter.second_won = bool(winner)
            result = tasks[winner].result()
            self._delay.note(self._clock() - began)
            return result
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)


def _asked(generation: Generation, meter: Meter, second: bool) -> tuple[Generation, Meter]:
    if not second:
        return generation, meter
    assert meter.second is not None
    return replace(generation, attempt=generation.attempt + NUMBER_OFFSET), meter.second


def _answered(task: asyncio.Future[T]) -> bool:
    return task.done() and not task.cancelled() and task.exception() is None
