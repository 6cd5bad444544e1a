"""Notices from the event loop what the engine cannot tell: that its thread or process is dead, or that a step hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

INTERVAL_SECONDS = 0.25


class Watched(Protocol):
    """An engine that can be watched."""

    hung: bool
    """True when a step did not come back and only the end of this process helps."""
    busy_since: float
    """When the step that runs now began, by the clock; 0: none does."""

    def died(self) -> bool:
        """True when what runs the engine is gone, although nobody told it to end."""
        ...

    def respawn(self) -> None:
        """It died: end its sequences and start another, while the restarts last."""
        ...

    def hang(self) -> None:
        """A step does not come back: end every sequence, and whatever is stuck."""
        ...


async def watch(engine: Watched, step_seconds: float, clock: Callable[[], float]) -> None:
    """Watch until the engine hangs or stays down, while it drains too. A step may take ``step_seconds``."""
    while not engine.hung:
        await asyncio.sleep(INTERVAL_SECONDS)
        began = engine.busy_since
        if began and clock() - began > step_seconds:
            engine.hang()
        elif engine.died():
            engine.respawn()
            if engine.died():
                return  # It stays down: the restarts are used up.
