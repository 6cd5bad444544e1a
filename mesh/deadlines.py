"""The deadline budget of the request being served.

grpc.aio does not pass deadlines from hop to hop, so the server keeps the caller's in a context variable and the
channel derives each onward call's timeout from it: the hop's own cap, but never more than what is left less a
margin for the way back. (Boulder's deadline interceptors do the same.)
"""

from __future__ import annotations

import time
from contextvars import ContextVar

from mesh.errors import deadline_exceeded

MARGIN_SECONDS = 0.01
"""Kept back from every onward call, so that there is time left to answer."""

_deadline: ContextVar[float | None] = ContextVar("tenth_deadline", default=None)


def set_remaining(seconds: float | None) -> None:
    """Start the budget of the current request; None: no deadline."""
    _deadline.set(None if seconds is None else time.monotonic() + seconds)


def remaining() -> float | None:
    """Seconds left of the current request, or None without a deadline."""
    deadline = _deadline.get()
    return None if deadline is None else deadline - time.monotonic()


def budget(cap_seconds: float | None) -> float | None:
    """Timeout for an onward call: the cap, or what is left if that is less.

    Raises DEADLINE_EXCEEDED when nothing is left, so that late work is never started.
    """
    left = remaining()
    if left is None:
        return cap_seconds
    left -= MARGIN_SECONDS
    if left <= 0:
        raise deadline_exceeded()
    return left if cap_seconds is None else min(cap_seconds, left)
