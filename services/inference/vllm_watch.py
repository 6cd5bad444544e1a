"""Notices from the event loop what the engine's thread cannot tell: that it is dead, or that a step hangs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from services.inference.vllm_thread import EngineThread

INTERVAL_SECONDS = 0.25


async def watch(engine: EngineThread, step_seconds: float, clock: Callable[[], float]) -> None:
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
