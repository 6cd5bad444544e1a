"""When a failed engine is started again. Pure."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """``tries`` restarts within ``window_seconds``, the first after ``backoff_seconds``, then twice as long each."""

    tries: int = 5
    backoff_seconds: float = 0.5
    window_seconds: float = 600.0
    most_seconds: float = 30.0


class Restarts:
    """Remembers the failures of the last while."""

    def __init__(self, policy: RestartPolicy) -> None:
        self._policy = policy
        self._failed: deque[float] = deque()
        self.count = 0
        """Restarts so far."""

    def wait_seconds(self, now: float) -> float | None:
        """The engine has failed now: seconds until it is started again; None: it stays down, it failed too often."""
        while self._failed and now - self._failed[0] > self._policy.window_seconds:
            self._failed.popleft()
        self._failed.append(now)
        if len(self._failed) > self._policy.tries:
            return None
        self.count += 1
        wait = self._policy.backoff_seconds * 2.0 ** (len(self._failed) - 1)
        return min(wait, self._policy.most_seconds)

    @property
    def gave_up(self) -> str:
        """Why it stays down, for a person."""
        within = f"{self._policy.window_seconds:g} s"
        return f"the engine failed {len(self._failed)} times within {within} and stays down; the log has why"
