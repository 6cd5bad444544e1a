"""What may be set as a limit, how it is written as text, and the arithmetic of rate limits. Pure."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address
from urllib.parse import urlsplit

from mesh.errors import invalid_argument, required
from mesh.money import MAX_NANO_USD
from services.ledger.policy import NANOS_PER_SECOND, Budget, LadderStep, Rung, Window, is_time_zone

MINUTE_NS = 60 * NANOS_PER_SECOND
_SHORTEST_SECONDS = 60
_LONGEST_SECONDS = 400 * 86_400
_MOST_PERCENTS = 20
_LONGEST_URL = 2048
_SPAN = re.compile(r"([1-9][0-9]{0,8})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def check_budget(budget: Budget, field: str) -> Budget:
    """The budget with its marks and steps in order; names are checked where they come in.

    Raises INVALID_FIELD and REQUIRED_FIELD, naming the field as on the wire.
    """
    if not is_time_zone(budget.time_zone):
        raise invalid_argument(f"{budget.time_zone!r} is no IANA time zone", field=f"{field}.time_zone")
    if not 0 <= budget.limit <= MAX_NANO_USD:
        raise invalid_argument("negative, or more than 64 bits carry", field=f"{field}.limit_nano_usd")
    if budget.tag_value and not budget.tag_key:
        raise required(f"{field}.tag_key")
    _check_rolling(budget, f"{field}.rolling")
    _check_alerts(budget, field)
    _check_ladder(budget, f"{field}.ladder")
    return replace(budget, ladder=ordered(budget.ladder), alert_percents=tuple(sorted(budget.alert_percents)))


def is_alert_url(url: str) -> bool:
    """True for an https URL, or http on this machine; without credentials in it."""
    if len(url) > _LONGEST_URL or any(unicodedata.category(each) in ("Cc", "Zs") for each in url):
        return False
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return False
    if not host or port == 0 or "@" in parts.netloc or parts.fragment or not url.isascii():
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(host))


def parse_span(text: str) -> int:
    """Seconds of a length such as "90s", "30m", "12h" or "7d". Raises ValueError."""
    found = _SPAN.fullmatch(text)
    if found is None:
        raise ValueError(f"{text!r} is not a length such as 30m, 12h or 7d")
    return int(found[1]) * _SECONDS[found[2]]


def parse_percents(text: str) -> tuple[int, ...]:
    """Percents such as "50 80 100". Raises ValueError."""
    if not all(re.fullmatch("[1-9][0-9]{0,3}", each) for each in text.split()):
        raise ValueError(f"{text!r} is not a list of percents such as 50 80 100")
    return tuple(map(int, text.split()))


def percents_text(percents: Sequence[int]) -> str:
    """``parse_percents`` the other way round."""
    return " ".join(map(str, sorted(percents)))


def parse_ladder(text: str) -> tuple[Rung, ...]:
    """A ladder such as "batch=80 cheaper_tier=90". Raises ValueError."""
    rungs = []
    for each in text.split():
        name, _, percent = each.replace("-", "_").partition("=")
        if name not in tuple(LadderStep) or not re.fullmatch("[1-9][0-9]{0,2}", percent):
            raise ValueError(f"{each!r} is not one of cache_only, batch, cheaper_tier with =PERCENT")
        rungs.append(Rung(LadderStep(name), int(percent)))
    return ordered(rungs)


def ladder_text(ladder: Sequence[Rung]) -> str:
    """``parse_ladder`` the other way round."""
    return " ".join(f"{rung.step.value}={rung.from_percent}" for rung in ordered(ladder))


def ordered(ladder: Sequence[Rung]) -> tuple[Rung, ...]:
    """Rungs by percent."""
    return tuple(sorted(ladder, key=lambda rung: rung.from_percent))


def rate_wait_ns(limit: int, cost: int, previous: int, current: int, into_ns: int) -> int:
    """How long until a cost fits a limit per minute; 0 when it fits now.

    A sliding window out of two fixed minutes: what the last one let through counts with the share of it that lies
    within the last 60 seconds, ``previous * (60 s - into) / 60 s``. ``into_ns`` is how far the current one is.
    What is more than the whole limit never fits: a minute.
    """
    room = limit - cost
    if room < 0:
        return MINUTE_NS
    left = room - current
    if left >= 0:
        if previous * (MINUTE_NS - into_ns) <= left * MINUTE_NS:
            return 0
        return _quotient((previous - left) * MINUTE_NS, previous) - into_ns
    # Only in the next minute, when this one's count fades.
    return MINUTE_NS - into_ns + _quotient((current - room) * MINUTE_NS, current)


def _check_rolling(budget: Budget, field: str) -> None:
    if budget.window is not Window.ROLLING:
        if budget.rolling_seconds:
            raise invalid_argument("only with a rolling window", field=field)
        return
    if not budget.rolling_seconds:
        raise required(field)
    if not _SHORTEST_SECONDS <= budget.rolling_seconds <= _LONGEST_SECONDS:
        raise invalid_argument("not within 1 minute to 400 days", field=field)


def _check_alerts(budget: Budget, field: str) -> None:
    percents = budget.alert_percents
    if len(percents) > _MOST_PERCENTS:
        raise invalid_argument(f"more than {_MOST_PERCENTS} marks", field=f"{field}.alert_percents")
    for index, percent in enumerate(percents):
        if not 1 <= percent <= 1000:
            raise invalid_argument("not within 1 to 1000 percent", field=f"{field}.alert_percents[{index}]")
        if percent in percents[:index]:
            raise invalid_argument("given twice", field=f"{field}.alert_percents[{index}]")
    if budget.alert_url:
        if not is_alert_url(budget.alert_url):
            raise invalid_argument("neither https nor http on loopback", field=f"{field}.alert_url")
        if not percents:
            raise required(f"{field}.alert_percents")


def _check_ladder(budget: Budget, field: str) -> None:
    if budget.ladder and not budget.hard:
        raise invalid_argument("only hard budgets have a ladder", field=field)
    for index, rung in enumerate(budget.ladder):
        if not 1 <= rung.from_percent <= 100:
            raise invalid_argument("not within 1 to 100 percent", field=f"{field}[{index}].from_percent")
        earlier = budget.ladder[:index]
        if any(each.step is rung.step for each in earlier):
            raise invalid_argument("given twice", field=f"{field}[{index}].step")
        if any(each.from_percent == rung.from_percent for each in earlier):
            raise invalid_argument("two steps begin at the same percent", field=f"{field}[{index}].from_percent")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _quotient(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
