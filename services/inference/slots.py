"""How many requests run at one provider at once. Pure but for waiting: asyncio, no I/O."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from mesh.errors import Code, TenthError
from services.inference.errors import Reason

_SHARE_OF_NEW = 0.2
_FIRST_GUESS_SECONDS = 1.0


class Slots:
    """First come, first served. A request that would not get its turn within its deadline is refused at once."""

    def __init__(self, provider: str, limit: int, clock: Callable[[], float]) -> None:
        """``limit`` 0: none. ``clock`` never goes back, seconds."""
        self._provider = provider
        self._limit = limit
        self._clock = clock
        self._semaphore = asyncio.Semaphore(limit) if limit else None
        self._held = _FIRST_GUESS_SECONDS
        self.waiting = 0
        self.running = 0

    @asynccontextmanager
    async def hold(self, seconds: float | None) -> AsyncIterator[None]:
        """A turn, waited for at most ``seconds`` (None: as long as it takes). Raises PROVIDER_BUSY."""
        if self._semaphore is None:
            yield
            return
        if self._semaphore.locked():
            expected = self._held * (self.waiting + 1) / self._limit
            if seconds is not None and expected >= seconds:
                raise self._busy(expected)
            await self._wait(seconds, expected)
        else:
            await self._semaphore.acquire()
        began = self._clock()
        self.running += 1
        try:
            yield
        finally:
            self.running -= 1
            self._held += _SHARE_OF_NEW * (self._clock() - began - self._held)
            self._semaphore.release()

    async def _wait(self, seconds: float | None, expected: float) -> None:
        assert self._semaphore is not None
        self.waiting += 1
        try:
            async with asyncio.timeout(seconds):
                await self._semaphore.acquire()
        except TimeoutError:
            raise self._busy(expected) from None
        finally:
            self.waiting -= 1

    def _busy(self, expected: float) -> TenthError:
        return TenthError(
            Code.RESOURCE_EXHAUSTED,
            Reason.PROVIDER_BUSY,
            f"{self._provider}: {self._limit} requests run and {self.waiting} wait, as many as the catalogue allows",
            metadata={"provider": self._provider},
            retry_after_seconds=max(0.1, expected),
        )
