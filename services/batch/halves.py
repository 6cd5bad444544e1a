"""The orchestrator's two halves, a hundred items a call: what activities ask of them, again where that may help."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tenth.orchestrator.v1 import orchestrator_pb2 as pb

from mesh.errors import Code, TenthError
from services.batch.calls import Layers, Stop, Stopped, patiently
from services.batch.policy import Failure, limit_seconds, pause_seconds
from services.batch.settings import WorkerSettings

PER_CALL = 100
"""Most items of one call."""
_BYTES_PER_CALL = 8 * 1024 * 1024
"""Most bytes of a call of several items: the answer has the prompts again, and both must fit into a message."""
_UNCLEAR = (Code.INTERNAL, Code.UNKNOWN)
"""The orchestrator could not keep the ends it was told, for its disk is full, say: told again, nothing is lost."""
_TRIES_WHEN_STOPPED = 5
_RATE_LIMITED = "RATE_LIMITED"
"""The orchestrator's reason for a request that came too soon after others."""
_MOST_TTL_SECONDS = 8 * 86_400 - 60
_TTL_SLACK_SECONDS = 3600


def reservation_seconds(now: float, deadline: float) -> int:
    """How long a reservation must stand so that an item answered late still finds it."""
    return int(min(max(deadline - now, 0) + _TTL_SLACK_SECONDS, _MOST_TTL_SECONDS))


@dataclass(frozen=True, slots=True)
class Halves:
    """Calls of CompletionHalvesService."""

    layers: Layers
    settings: WorkerSettings

    async def prepare(
        self, items: Sequence[pb.CompletionToPrepare], stop: Stop, paced_seconds: float = 0.0
    ) -> list[pb.PrepareOutcome]:
        """The first half, item by item in order; those that may go better later are asked again a few times.

        ``paced_seconds``: as long those are asked again that only the tenant's limit of requests per minute holds back.
        Raises TenthError while the orchestrator stays away, Stopped when there is no time to ask again.
        """
        outcomes: list[pb.PrepareOutcome] = [pb.PrepareOutcome()] * len(items)
        places = list(range(len(items)))
        until, tried, waited = time.monotonic() + paced_seconds, 0, 0
        while places:
            for part in _calls(items, places):
                request = pb.PrepareCompletionsRequest(items=[items[place] for place in part])
                answer = await patiently(lambda: self._prepare(request), self.settings.patience_seconds, stop)  # noqa: B023
                for place, outcome in zip(part, answer.outcomes, strict=True):
                    outcomes[place] = outcome
            again = [place for place in places if outcomes[place].error.retryable]
            held = [place for place in again if outcomes[place].error.reason == _RATE_LIMITED]
            others = [place for place in again if outcomes[place].error.reason != _RATE_LIMITED]
            pause = 0.0
            if held:
                waited += 1
                told = max(outcomes[place].error.retry_after.ToNanoseconds() / 1e9 for place in held)
                pause = limit_seconds(told, len(held), waited, random.random())  # noqa: S311
                if time.monotonic() + pause > until:
                    held = []
            if others:
                tried += 1
                pause = max(pause, pause_seconds(Failure("UNAVAILABLE", "", None), tried + 2, random.random()))  # noqa: S311
                if tried >= self.settings.prepare_tries:
                    others = []
            places = sorted([*held, *others])
            if places and not await stop.sleep(pause):
                raise Stopped
        return outcomes

    async def finish(
        self, items: Sequence[pb.CompletionToFinish], stop: Stop, patience_seconds: float | None = None
    ) -> list[pb.FinishOutcome]:
        """The second half, item by item in order; those that may go better later are asked again.

        ``patience_seconds``: how long the orchestrator is waited for, None: as the settings say. Raises TenthError
        while it stays away, or can still not finish one of them: what was answered and paid for would be lost
        otherwise. Told all over again, the others' ends come back as they were kept.
        """
        outcomes: list[pb.FinishOutcome] = [pb.FinishOutcome()] * len(items)
        places = list(range(len(items)))
        seconds = self.settings.patience_seconds if patience_seconds is None else patience_seconds
        until, tried = time.monotonic() + seconds, 0
        while places:
            for part in _calls(items, places):
                request = pb.FinishCompletionsRequest(items=[items[place] for place in part])
                answer = await patiently(lambda: self._finish(request), seconds, stop, also=_UNCLEAR)  # noqa: B023
                for place, outcome in zip(part, answer.outcomes, strict=True):
                    outcomes[place] = outcome
            places = [place for place in places if outcomes[place].error.retryable]
            if not places:
                break
            tried += 1
            pause = pause_seconds(Failure("UNAVAILABLE", "", None), tried, random.random())  # noqa: S311
            stopped = stop.is_set and (tried > _TRIES_WHEN_STOPPED or stop.seconds_left <= 0)
            if stopped or time.monotonic() + pause > until:
                error = outcomes[places[0]].error
                raise TenthError(Code.UNAVAILABLE, error.reason, error.message, error.field)
            await asyncio.sleep(pause)
        return outcomes

    async def _prepare(self, request: pb.PrepareCompletionsRequest) -> pb.PrepareCompletionsResponse:
        return await self.layers.halves.PrepareCompletions(request, timeout=self.settings.call_seconds)

    async def _finish(self, request: pb.FinishCompletionsRequest) -> pb.FinishCompletionsResponse:
        return await self.layers.halves.FinishCompletions(request, timeout=self.settings.call_seconds)


def _calls(
    items: Sequence[pb.CompletionToPrepare] | Sequence[pb.CompletionToFinish], places: Sequence[int]
) -> Iterator[list[int]]:
    """The places cut into calls, in order; one item alone may have any size."""
    part: list[int] = []
    size = 0
    for place in places:
        weight = items[place].ByteSize()
        if part and (len(part) >= PER_CALL or size + weight > _BYTES_PER_CALL):
            yield part
            part, size = [], 0
        part.append(place)
        size += weight
    if part:
        yield part
