"""When a refused call is made again: what the provider says, and waits that do not fall on each other. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime

_LONGEST_SECONDS = 86_400.0


def retry_after_seconds(headers: Mapping[str, str], now: float) -> float | None:
    """What ``retry-after-ms`` or ``retry-after`` ask for, seconds; None: nothing that can be read.

    RFC 9110, 10.2.3: seconds, or a date, which is taken against the provider's own ``date`` where it gives one (its
    clock need not be ours), else against ``now`` (seconds since 1970). A date that has passed is a wait of 0.
    """
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * scale
        except ValueError:
            at = _seconds_of(value)
            if at is None:
                continue
            seconds = max(0.0, at - (_seconds_of(headers.get("date", "")) or now))
        if 0 <= seconds < _LONGEST_SECONDS:
            return seconds
    return None


def backoff_seconds(base: float, tries: int, random: Callable[[], float]) -> float:
    """The wait before another try: doubled with each, half of it by chance, so that callers do not come together.

    Source: Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015 ("equal jitter"). ``random`` gives
    0 to 1.
    """
    whole = base * 2.0**tries
    return whole / 2 + whole / 2 * random()


def spread_seconds(asked: float, random: Callable[[], float]) -> float:
    """A wait that the provider asked for, never less and up to a tenth more."""
    return asked * (1 + 0.1 * random())


def _seconds_of(value: str) -> float | None:
    try:
        return parsedate_to_datetime(value).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None
