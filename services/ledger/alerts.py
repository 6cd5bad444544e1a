"""Delivers budget alerts: a signed POST each, tried again with growing pauses, given up after some.

What is to be sent stands in the table ``alerts``, written in the transaction that crossed the mark. A replica claims an
alert by moving its next try ahead, in the writer's transaction, before it sends; so no other sends it meanwhile,
and one whose replica died is tried again when the claim has passed. A receiver that answers 2xx is never asked again;
after a crash between its answer and our note it may be, with the same ``alert_id``.

The signature is HMAC-SHA256 over the timestamp, a dot and the body, as Stripe's webhooks do it:

    Tenth-Timestamp: 1795000000
    Tenth-Signature: v1=<hex>
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from sqlalchemy import Connection, bindparam, select, update

from mesh.errors import TenthError
from services.ledger.balances import budget_of
from services.ledger.limits import is_alert_url
from services.ledger.policy import NANOS_PER_SECOND, Budget
from services.ledger.store import Store
from services.ledger.tables import alerts, budgets

log = logging.getLogger("tenth.ledger")

TRY_COUNT = 12
"""Tries before an alert is given up: with the pauses below, within some 14 hours."""
_FIRST_PAUSE_SECONDS = 30
_LONGEST_PAUSE_SECONDS = 6 * 3600
_SEND_SECONDS = 15
_CLAIM_SECONDS = 120
"""How long a claimed alert is nobody else's: well above the longest send."""
_AT_ONCE = 20
_LEAST_KEY_BYTES = 16


@dataclass(frozen=True, slots=True)
class Alert:
    """An alert that was claimed; ``tries`` counts the one that is to be made now."""

    alert_id: int
    budget: Budget
    window_start_ns: int
    percent: int
    spent: int
    create_ns: int
    tries: int


class Alerter:
    """Sends what is due."""

    def __init__(self, store: Store, now_ns: Callable[[], int], key_file: Path | None) -> None:
        """``key_file`` holds the key that signs; read for every round, so that it may be rotated. None: nothing goes.

        Raises OSError and ValueError when the file is absent or the key shorter than 16 bytes.
        """
        self._store = store
        self._now_ns = now_ns
        self._key_file = None if key_file in (None, Path()) else key_file
        self._key()

    async def run(self, interval_seconds: float) -> None:
        """Send for ever."""
        while True:
            await asyncio.sleep(interval_seconds)
            try:
                await self.send_due()
            except (TenthError, OSError, ValueError) as error:
                log.warning("alerts put off: %s", error)
            except Exception:
                log.exception("alerts failed")

    async def send_due(self) -> int:
        """Send what is due now; returns how many were delivered. Raises STORE_UNAVAILABLE, OSError for the key."""
        key = self._key()
        now = self._now_ns()
        async with self._store.read() as connection:
            # Only a read while there is nothing to do: an idle ledger writes nothing.
            if (await connection.execute(_ANY_DUE, {"now": now})).first() is None:
                return 0
        claimed = await self._store.write(lambda connection: _claim(connection, now))
        return sum(await asyncio.gather(*(self._send(alert, key) for alert in claimed)))

    async def _send(self, alert: Alert, key: bytes) -> bool:
        budget = alert.budget
        log.warning(
            "budget %r of %s: %d%% of %d nano-USD is spent", budget.name, budget.tenant_id, alert.percent, budget.limit
        )
        if not budget.alert_url or not key:
            await self._store.write(lambda connection: _note(connection, alert, None))
            return False
        timestamp = self._now_ns() // NANOS_PER_SECOND
        body = body_of(alert)
        try:
            await _post(budget.alert_url, body, timestamp, signature(key, timestamp, body))
        except (OSError, ValueError, EOFError, asyncio.LimitOverrunError) as error:  # TimeoutError is an OSError.
            given_up = alert.tries >= TRY_COUNT
            what = str(error) or type(error).__name__
            log.warning("alert %d was not delivered (try %d of %d): %s", alert.alert_id, alert.tries, TRY_COUNT, what)
            due = None if given_up else self._now_ns() + pause_seconds(alert.tries) * NANOS_PER_SECOND
            await self._store.write(lambda connection: _note(connection, alert, due))
            return False
        await self._store.write(lambda connection: _note(connection, alert, None))
        return True

    def _key(self) -> bytes:
        if self._key_file is None:
            return b""
        key = self._key_file.read_bytes().strip()
        if len(key) < _LEAST_KEY_BYTES:
            raise ValueError(f"{self._key_file}: the alert key must have at least {_LEAST_KEY_BYTES} bytes")
        return key


def pause_seconds(tries: int) -> int:
    """The pause after so many failed tries: 30 s, doubled each time, at most 6 h."""
    return int(min(_FIRST_PAUSE_SECONDS * 2 ** (tries - 1), _LONGEST_PAUSE_SECONDS))


def signature(key: bytes, timestamp: int, body: bytes) -> str:
    """What the header Tenth-Signature carries."""
    return "v1=" + hmac.new(key, f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


def body_of(alert: Alert) -> bytes:
    """The alert as JSON; amounts are texts, as in the JSON form of the protos."""
    budget = alert.budget
    return json.dumps(
        {
            # SQLite gives the number of an alert whose budget was deleted to a later one.
            "alert_id": f"{alert.alert_id}-{alert.create_ns // NANOS_PER_SECOND}",
            "tenant_id": budget.tenant_id,
            "budget": budget.name,
            "percent": alert.percent,
            "limit_nano_usd": str(budget.limit),
            "spent_nano_usd": str(alert.spent),
            "hard": budget.hard,
            "window": budget.window.value,
            "window_start_time": _time_text(alert.window_start_ns),
            "create_time": _time_text(alert.create_ns),
        },
        ensure_ascii=False,
    ).encode()


async def _post(url: str, body: bytes, timestamp: int, signed: str) -> None:
    """POST once, HTTP/1.1. Redirects are not followed, no proxy is asked. Raises OSError, ValueError, EOFError."""
    if not is_alert_url(url):
        raise ValueError("neither https nor http on loopback")
    parts = urlsplit(url)
    secure = parts.scheme == "https"
    context = ssl.create_default_context() if secure else None
    head = (
        f"POST {parts.path or '/'}{'?' + parts.query if parts.query else ''} HTTP/1.1\r\n"
        f"Host: {parts.netloc}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"Tenth-Timestamp: {timestamp}\r\nTenth-Signature: {signed}\r\nConnection: close\r\n\r\n"
    )
    async with asyncio.timeout(_SEND_SECONDS):
        reader, writer = await asyncio.open_connection(
            parts.hostname, parts.port or (443 if secure else 80), ssl=context
        )
        try:
            writer.write(head.encode("ascii") + body)
            await writer.drain()
            status = await _status(reader)
        finally:
            writer.close()
    if not 200 <= status < 300:
        raise ValueError(f"the receiver answered {status}")


async def _status(reader: asyncio.StreamReader) -> int:
    """The status of the answer, past interim ones (1xx)."""
    while True:
        found = re.match(rb"HTTP/1\.[01] ([1-5][0-9]{2})[ \r]", await reader.readline())
        if found is None:
            raise ValueError("the receiver does not speak HTTP")
        if not found[1].startswith(b"1"):
            return int(found[1])
        await reader.readuntil(b"\r\n\r\n")


def _claim(connection: Connection, now: int) -> list[Alert]:
    claimed = [
        Alert(
            alert_id=row.alert_id,
            budget=budget_of(row),
            window_start_ns=row.window_start_ns,
            percent=row.percent,
            spent=row.spent,
            create_ns=row.create_ns,
            tries=row.try_count + 1,
        )
        for row in connection.execute(_DUE, {"now": now})
    ]
    if claimed:
        until = now + _CLAIM_SECONDS * NANOS_PER_SECOND
        rows = [{"id_": each.alert_id, "due": until, "tries": each.tries} for each in claimed]
        connection.execute(_CLAIMED, rows)
    return claimed


def _note(connection: Connection, alert: Alert, due_ns: int | None) -> None:
    same = (alerts.c.id == alert.alert_id) & (alerts.c.create_ns == alert.create_ns)
    connection.execute(update(alerts).where(same).values(next_try_ns=due_ns))


def _time_text(at_ns: int) -> str:
    return datetime.fromtimestamp(at_ns // NANOS_PER_SECOND, UTC).isoformat().replace("+00:00", "Z")


_ANY_DUE = select(alerts.c.id).where(alerts.c.next_try_ns <= bindparam("now")).limit(1)
_DUE = (
    select(
        budgets,
        alerts.c.id.label("alert_id"),
        alerts.c.window_start_ns,
        alerts.c.percent,
        alerts.c.spent,
        alerts.c.create_ns,
        alerts.c.try_count,
    )
    .join(budgets, budgets.c.id == alerts.c.budget_id)
    .where(alerts.c.next_try_ns <= bindparam("now"))
    .order_by(alerts.c.next_try_ns, alerts.c.id)
    .limit(_AT_ONCE)
)
_CLAIMED = (
    update(alerts)
    .where(alerts.c.id == bindparam("id_"))
    .values(next_try_ns=bindparam("due"), try_count=bindparam("tries"))
)
