"""Requests and tokens per minute, over all replicas: counted in the writer's transaction, beside the reservation."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, bindparam, case, delete, insert, select, update

from services.ledger.limits import MINUTE_NS, rate_wait_ns
from services.ledger.tables import rate_minutes

_MOST = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tenant may use in a minute; 0: no limit."""

    requests: int
    tokens: int

    def __bool__(self) -> bool:
        """True when anything is limited: without limits nothing is read or counted."""
        return self.requests > 0 or self.tokens > 0


def wait_ns(connection: Connection, tenant_id: str, limits: Limits, tokens: int, now: int) -> int:
    """How long until one more request with so many tokens fits; 0 when it fits now."""
    minute, into = divmod(now, MINUTE_NS)
    used = {
        row.minute: (row.request_count, row.token_count)
        for row in connection.execute(_USED, {"tenant": tenant_id, "minutes": [minute - 1, minute]})
    }
    before, current = (used.get(each, (0, 0)) for each in (minute - 1, minute))
    waits = [0]
    if limits.requests:
        waits.append(rate_wait_ns(limits.requests, 1, before[0], current[0], into))
    if limits.tokens:
        waits.append(rate_wait_ns(limits.tokens, tokens, before[1], current[1], into))
    return max(waits)


def count(connection: Connection, tenant_id: str, limits: Limits, tokens: int, now: int) -> None:
    """Count a request that was let through; only the last two minutes are kept."""
    minute = now // MINUTE_NS
    tokens = tokens if limits.tokens else 0  # Without a limit they might sum up past 64 bits.
    values = {"tenant": tenant_id, "at": minute, "more_requests": 1, "more_tokens": tokens}
    if not connection.execute(_COUNT, values).rowcount:
        old = rate_minutes.c.minute < minute - 1
        connection.execute(delete(rate_minutes).where(rate_minutes.c.tenant_id == tenant_id, old))
        row = {"tenant_id": tenant_id, "minute": minute, "request_count": 1, "token_count": tokens}
        connection.execute(insert(rate_minutes), row)


def give_back(connection: Connection, tenant_id: str, tokens: int, counted_ns: int) -> None:
    """Take a request out of the minute that counted it: it was given back, or its retry counts in its place."""
    tokens = min(tokens, _MOST)  # Without a limit of tokens any number was let through, and none was counted.
    values = {"tenant": tenant_id, "at": counted_ns // MINUTE_NS, "more_requests": -1, "more_tokens": -tokens}
    connection.execute(_COUNT, values)


_USED = select(rate_minutes.c.minute, rate_minutes.c.request_count, rate_minutes.c.token_count).where(
    rate_minutes.c.tenant_id == bindparam("tenant"), rate_minutes.c.minute.in_(bindparam("minutes", expanding=True))
)
_REQUESTS = rate_minutes.c.request_count + bindparam("more_requests", type_=rate_minutes.c.request_count.type)
_TOKENS = rate_minutes.c.token_count + bindparam("more_tokens", type_=rate_minutes.c.token_count.type)
_COUNT = (
    update(rate_minutes)
    .where(rate_minutes.c.tenant_id == bindparam("tenant"), rate_minutes.c.minute == bindparam("at"))
    # What was counted under other limits may be less than what is given back.
    .values(request_count=case((_REQUESTS < 0, 0), else_=_REQUESTS), token_count=case((_TOKENS < 0, 0), else_=_TOKENS))
)
