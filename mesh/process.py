"""How a service's process runs: on libuv's event loop where there is one, with what start-up left out of collection."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import sys
from collections.abc import Coroutine
from typing import Any

_COLLECT_AFTER = 20_000
"""Objects made before the youngest generation is collected; Python's own 700 is reached within ten requests."""


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a service until it ends. As ``asyncio.run``, at a tenth less CPU per request."""
    if sys.platform == "win32":
        asyncio.run(main)
        return
    import uvloop  # Not on Windows.

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)


def settle_memory() -> None:
    """Called once when everything is loaded: what start-up made stays, and is never looked through again."""
    give_back_memory()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 20)


def give_back_memory() -> None:
    """Collect what is of no use, and return freed memory to the system, which glibc's allocator would keep: much of
    what a start takes is needed once (measured for an engine of 1.3 GB: 0.2 GB)."""
    gc.collect()
    if sys.platform == "linux":
        # musl's C library has no such call, and no such need.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
