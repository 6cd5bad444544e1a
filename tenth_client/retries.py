"""When a call that found nobody is made again."""

from __future__ import annotations

import asyncio
import random
import time

from tenth_client.errors import TenthClientError

_FIRST_WAIT_SECONDS = 0.1
_MAX_WAIT_SECONDS = 2.0


class Retry:
    """Waits between attempts: doubling with jitter, or as long as the mesh asked, within one allowance of time."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self._wait = _FIRST_WAIT_SECONDS

    async def wait(self, error: TenthClientError) -> bool:
        """Sleep before the next attempt; False when there shall be none."""
        if not error.retryable:
            return False
        seconds = self._wait * random.uniform(0.7, 1.3)  # noqa: S311  (jitter, no secret)
        seconds = max(seconds, error.retry_after or 0.0)
        if time.monotonic() + seconds > self._until:
            return False
        self._wait = min(self._wait * 2, _MAX_WAIT_SECONDS)
        await asyncio.sleep(seconds)
        return True
