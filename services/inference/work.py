"""How much of the time the local engine had work, and how many tokens it made. Pure; one thread writes, one reads."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Work:
    """What was done since the last look: the share of the time with work, 0 to 1, and the output tokens."""

    busy_share: float
    output_tokens: int


class WorkMeter:
    """Counts busy time on a clock that never goes back (nanoseconds)."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._lock = threading.Lock()
        self._since = self._looked = clock_ns()
        self._working = False
        self._busy = self._tokens = 0

    def working(self, working: bool) -> None:
        """From now on the engine has work, or has none."""
        with self._lock:
            self._advance()
            self._working = working

    def made(self, output_tokens: int) -> None:
        """Output tokens were made."""
        with self._lock:
            self._tokens += output_tokens

    def take(self) -> Work:
        """What was done since the last look; counts anew from now."""
        with self._lock:
            now = self._advance()
            whole = now - self._looked
            work = Work(self._busy / whole if whole else 0.0, self._tokens)
            self._busy = self._tokens = 0
            self._looked = now
            return work

    def _advance(self) -> int:
        now = self._clock_ns()
        if self._working:
            self._busy += now - self._since
        self._since = now
        return now
