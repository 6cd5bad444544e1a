"""How activities call the other services: on whose behalf, how patiently, and until when."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import TypeVar

from tenth.batch.v1 import stored_pb2
from tenth.inference.v1 import inference_pb2_grpc
from tenth.ledger.v1 import ledger_pb2_grpc
from tenth.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc

from mesh.auth import Identity
from mesh.errors import Code, TenthError
from services.batch.policy import Failure, pause_seconds

T = TypeVar("T")
_LATER = (Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED, Code.DEADLINE_EXCEEDED, Code.ABORTED, Code.CANCELLED)


@dataclass(frozen=True, slots=True)
class Layers:
    """Stubs of the services that a worker calls."""

    halves: orchestrator_pb2_grpc.CompletionHalvesServiceAsyncStub
    inference: inference_pb2_grpc.InferenceServiceAsyncStub
    providers: inference_pb2_grpc.ProviderBatchServiceAsyncStub
    ledger: ledger_pb2_grpc.LedgerServiceAsyncStub


class Stopped(Exception):  # noqa: N818  (no failure)
    """The work was asked to stop in the middle of something that is to be done again as a whole."""


class Stop:
    """Asks work in progress to come to an end: nothing new is begun, what runs gets some time."""

    def __init__(self, grace_seconds: float) -> None:
        self._event = asyncio.Event()
        self._grace_seconds = grace_seconds
        self._until = 0.0

    def set(self) -> None:
        """Begin; a second time changes nothing."""
        if not self._event.is_set():
            self._until = time.monotonic() + self._grace_seconds
            self._event.set()

    @property
    def is_set(self) -> bool:
        """True when nothing new may be begun."""
        return self._event.is_set()

    @property
    def seconds_left(self) -> float:
        """What running work still gets; for ever while nobody asks to stop."""
        return max(0.0, self._until - time.monotonic()) if self.is_set else float("inf")

    async def wait(self) -> None:
        """Until somebody asks to stop."""
        await self._event.wait()

    async def sleep(self, seconds: float) -> bool:
        """Wait; False when stopped meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return True
        return False


def identity_of(batch: stored_pb2.StoredBatch) -> Identity:
    """On whose behalf a batch runs."""
    return Identity(tenant_id=batch.tenant_id, caller=batch.caller, may_assert_user=batch.may_assert_user)


def failure_of(error: TenthError) -> Failure:
    """An error as the policy sees it."""
    return Failure(error.code.name, error.reason, error.retry_after_seconds)


def half_error(error: TenthError, *, retryable: bool) -> orchestrator_pb2.HalfError:
    """An error as an item's end."""
    return orchestrator_pb2.HalfError(
        reason=error.reason, message=error.message, field=error.field, retryable=retryable
    )


async def patiently(
    call: Callable[[], Awaitable[T]], seconds: float, stop: Stop | None = None, *, also: Collection[Code] = ()
) -> T:
    """Make a call again while the other side is away or busy, for some time. Raises its last TenthError.

    ``also``: codes beside the usual ones after which another try may go better.

    Only for calls that may be repeated. A stop cuts the waiting short, but not before a few tries: what is answered
    must still be written down.
    """
    until = time.monotonic() + seconds
    tried = 0
    while True:
        try:
            return await call()
        except TenthError as error:
            tried += 1
            pause = pause_seconds(failure_of(error), tried, random.random())  # noqa: S311  (spreads retries)
            stopped = stop is not None and stop.is_set and (tried > 5 or stop.seconds_left <= 0)
            if error.code not in (*_LATER, *also) or stopped or time.monotonic() + pause > until:
                raise
            await asyncio.sleep(pause)
