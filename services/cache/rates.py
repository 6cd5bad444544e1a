"""How fast answers may be stored and near misses judged: token buckets, in bounded memory. Pure; the clock is given."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

_MINUTE = 60.0


class TokenBuckets:
    """One bucket per key. A bucket holds what comes in ``burst_seconds``, and at least one."""

    def __init__(self, now: Callable[[], float], most_buckets: int = 20_000, burst_seconds: float = _MINUTE) -> None:
        """``now`` in seconds; nothing comes while it goes back.

        Of more than ``most_buckets`` the one used longest ago is forgotten: it begins full again, which is what it has
        mostly become by then.
        """
        self._now = now
        self._most = most_buckets
        self._burst_seconds = burst_seconds
        self._buckets: OrderedDict[tuple[str, ...], tuple[float, float]] = OrderedDict()

    def take(self, *wanted: tuple[tuple[str, ...], float]) -> bool:
        """Take one from each bucket, given as (key, per minute); from none when one of them is empty."""
        now = self._now()
        left = [(key, self._level(key, per_minute, now)) for key, per_minute in wanted]
        if any(level < 1.0 for _, level in left):
            return False
        for key, level in left:
            self._buckets[key] = (level - 1.0, now)
            self._buckets.move_to_end(key)
        while len(self._buckets) > self._most:
            self._buckets.popitem(last=False)
        return True

    def _level(self, key: tuple[str, ...], per_minute: float, now: float) -> float:
        most = max(1.0, per_minute * self._burst_seconds / _MINUTE)
        level, at = self._buckets.get(key, (most, now))
        return min(most, level + max(0.0, now - at) * per_minute / _MINUTE)
