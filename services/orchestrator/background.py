"""Work that goes on after the answer: shielded from the caller's deadline and departure, waited for at shutdown."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine

from mesh import deadlines
from mesh.errors import TenthError

log = logging.getLogger("tenth.background")


class Background:
    """Tasks that belong to the process, not to a request. Failures are counted and logged, never raised."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[None]] = set()
        self.failed_count = 0

    def spawn(self, name: str, work: Coroutine[None, None, None]) -> None:
        """Run something in the current context (identity, trace), without the request's deadline."""
        task = asyncio.get_running_loop().create_task(self._run(name, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def drain(self, timeout_seconds: float) -> None:
        """Wait for what is running; what is late is cancelled, and has its time to note what it spent."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=timeout_seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _run(self, name: str, work: Coroutine[None, None, None]) -> None:
        deadlines.set_remaining(None)
        try:
            await work
        except TenthError as error:
            self.failed_count += 1
            log.info("%s dropped: %s", name, error)
        except Exception:
            self.failed_count += 1
            log.exception("%s failed", name)
