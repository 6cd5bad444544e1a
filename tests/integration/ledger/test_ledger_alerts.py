"""Alerts of budgets: written once, delivered once, signed, retried; against a real HTTP server on loopback."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, update

from services.ledger.alerts import TRY_COUNT, Alerter, pause_seconds
from services.ledger.tables import alerts, budgets
from tests.integration.ledger.ledger_books import SECOND, START_NS, Books, open_books

ACTUAL = 1_710_000
KEY = b"a key of some length"


@dataclass
class Receiver:
    """A web server that keeps what it was sent and answers from a list, 200 when that is empty."""

    url: str = ""
    answers: list[bytes] = field(default_factory=list)
    heads: list[dict[str, str]] = field(default_factory=list)
    bodies: list[bytes] = field(default_factory=list)
    first_lines: list[str] = field(default_factory=list)
    asked: asyncio.Event = field(default_factory=asyncio.Event)
    may_answer: asyncio.Event = field(default_factory=asyncio.Event)
    served: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One request."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        fields = dict(line.split(": ", 1) for line in head[1:] if line)
        self.bodies.append(await reader.readexactly(int(fields["Content-Length"])))
        self.first_lines.append(head[0])
        self.heads.append(fields)
        self.asked.set()
        await self.may_answer.wait()
        writer.write(self.answers.pop(0) if self.answers else b"HTTP/1.1 204 No Content\r\n\r\n")
        writer.close()
        self.served.release()

    @property
    def said(self) -> list[dict[str, Any]]:
        """The bodies, read."""
        return [json.loads(body) for body in self.bodies]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    """A receiver on a port of its own."""
    made = Receiver()
    made.may_answer.set()
    server = await asyncio.start_server(made.serve, "127.0.0.1", 0)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook?of=tenth"
    async with server:
        yield made
        made.may_answer.set()
        for _ in made.bodies:
            await made.served.acquire()


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    """A file with the signing key."""
    path = tmp_path / "alert.key"
    path.write_bytes(KEY + b"\n")
    return path


@pytest.fixture
def alerter(books: Books, key_file: Path) -> Alerter:
    """The background task's worker."""
    return Alerter(books.store, books.clock, key_file)


async def spend(books: Books, times: int = 1) -> None:
    """Settle some receipts."""
    assert await books.settle(*[await books.receipt() for _ in range(times)]) == [""] * times


async def rows(books: Books) -> list[tuple[int, int | None, int]]:
    """Percent, next try (seconds from the start) and tries of every alert, in order."""
    columns = (alerts.c.percent, alerts.c.next_try_ns, alerts.c.try_count)
    async with books.store.read() as connection:
        found = await connection.execute(select(*columns).order_by(alerts.c.id))
        return [(row[0], None if row[1] is None else (row[1] - START_NS) // SECOND, row[2]) for row in found]


async def test_an_alert_is_delivered_once_and_signed(books: Books, receiver: Receiver, alerter: Alerter) -> None:
    await books.budget(10 * ACTUAL, hard=False, alert_percents=(20, 50), alert_url=receiver.url, window="month")
    await spend(books)
    assert await alerter.send_due() == 0
    await spend(books)
    assert await alerter.send_due() == 1
    assert await alerter.send_due() == 0
    [said] = receiver.said
    assert said == {
        "alert_id": f"1-{START_NS // SECOND}",
        "tenant_id": "acme",
        "budget": "all",
        "percent": 20,
        "limit_nano_usd": str(10 * ACTUAL),
        "spent_nano_usd": str(2 * ACTUAL),
        "hard": False,
        "window": "month",
        "window_start_time": "2026-06-01T00:00:00Z",
        "create_time": "2026-06-15T12:00:00Z",
    }
    [head] = receiver.heads
    assert receiver.first_lines == ["POST /hook?of=tenth HTTP/1.1"]
    assert head["Tenth-Timestamp"] == str(START_NS // SECOND)
    signed = f"{head['Tenth-Timestamp']}.".encode() + receiver.bodies[0]
    assert head["Tenth-Signature"] == "v1=" + hmac.new(KEY, signed, hashlib.sha256).hexdigest()
    assert await rows(books) == [(20, None, 1)]


async def test_each_mark_alerts_once_in_a_window(books: Books, receiver: Receiver, alerter: Alerter) -> None:
    await books.budget(4 * ACTUAL, alert_percents=(50, 80, 100), alert_url=receiver.url, window="day")
    await spend(books, 3)
    await spend(books, 1)
    await spend(books, 5)
    # The limit moves up and the marks are crossed again, in the same window.
    await books.budget(16 * ACTUAL, alert_percents=(50, 80, 100), alert_url=receiver.url, window="day")
    await spend(books, 6)
    assert await alerter.send_due() == 3
    assert sorted(each["percent"] for each in receiver.said) == [50, 80, 100]
    books.clock.advance(86_400)
    await spend(books, 8)
    assert await alerter.send_due() == 1
    assert receiver.said[-1]["window_start_time"] == "2026-06-16T00:00:00Z"


async def test_a_rolling_window_alerts_once_in_its_length(books: Books) -> None:
    await books.budget(2 * ACTUAL, alert_percents=(100,), window="rolling", rolling_seconds=3600)
    await spend(books, 1)
    assert await rows(books) == []
    books.clock.advance(600)
    await spend(books, 1)
    await spend(books, 1)
    assert len(await rows(books)) == 1
    books.clock.advance(7200)
    await spend(books, 1)
    assert len(await rows(books)) == 1
    await spend(books, 1)
    assert len(await rows(books)) == 2


async def test_a_new_scope_has_its_marks_ahead(books: Books) -> None:
    await books.budget(ACTUAL, alert_percents=(100,))
    await spend(books)
    assert len(await rows(books)) == 1
    await books.budget(ACTUAL, alert_percents=(100,), model="small")
    assert await rows(books) == []
    await spend(books)
    assert len(await rows(books)) == 1


async def test_what_is_only_reserved_or_given_back_alerts_nobody(books: Books) -> None:
    await books.budget(3_000_000, alert_percents=(1,))
    made = await books.book.reserve(books.wanted())
    await books.book.release("acme", made.reservation_id)
    assert await rows(books) == []


BROKEN = [
    b"HTTP/1.1 500 Internal Server Error\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n",
    b"",
    b"hello\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n",
    b"x" * 100_000,
]


@pytest.mark.parametrize("answer", BROKEN, ids=["500", "redirect", "nothing", "no http", "100 then 404", "cut", "long"])
async def test_what_is_not_delivered_is_tried_again(
    books: Books, receiver: Receiver, alerter: Alerter, answer: bytes
) -> None:
    await books.budget(ACTUAL, alert_percents=(100,), alert_url=receiver.url)
    await spend(books)
    receiver.answers = [answer]
    assert await alerter.send_due() == 0
    assert await rows(books) == [(100, 30, 1)]
    books.clock.advance(29)
    assert await alerter.send_due() == 0
    assert len(receiver.bodies) == 1
    books.clock.advance(1)
    assert await alerter.send_due() == 1
    assert receiver.bodies[0] == receiver.bodies[1]
    # Signed anew: the receiver may refuse what is old.
    assert receiver.heads[1]["Tenth-Timestamp"] == str(START_NS // SECOND + 30)
    assert await rows(books) == [(100, None, 2)]


async def test_it_is_given_up_after_some_tries(books: Books, receiver: Receiver, alerter: Alerter) -> None:
    await books.budget(ACTUAL, alert_percents=(100,), alert_url=receiver.url)
    await spend(books)
    receiver.answers = [BROKEN[0]] * 100
    for tries in range(1, TRY_COUNT + 5):
        await alerter.send_due()
        books.clock.advance(pause_seconds(tries))
    assert len(receiver.bodies) == TRY_COUNT
    assert await rows(books) == [(100, None, TRY_COUNT)]


async def test_replicas_send_it_once_between_them(books: Books, receiver: Receiver, key_file: Path) -> None:
    await books.budget(ACTUAL, alert_percents=(50, 100), alert_url=receiver.url)
    await spend(books)
    receiver.may_answer.clear()
    async with open_books(books.url, books.clock) as other:
        workers = [Alerter(each.store, books.clock, key_file) for each in (books, other)]
        sending = asyncio.gather(*(worker.send_due() for worker in workers * 4))
        await receiver.asked.wait()
        receiver.may_answer.set()
        sent = await sending
    assert sum(sent) == len(receiver.bodies) == 2


async def test_a_replica_that_died_after_its_claim_leaves_it_to_the_next(
    books: Books, receiver: Receiver, alerter: Alerter, key_file: Path
) -> None:
    await books.budget(ACTUAL, alert_percents=(100,), alert_url=receiver.url)
    await spend(books)
    receiver.may_answer.clear()
    dying = asyncio.create_task(alerter.send_due())
    await receiver.asked.wait()
    dying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await dying
    receiver.may_answer.set()
    async with open_books(books.url, books.clock) as restarted:
        worker = Alerter(restarted.store, books.clock, key_file)
        assert await worker.send_due() == 0
        books.clock.advance(121)
        assert await worker.send_due() == 1
    assert receiver.said[0]["alert_id"] == receiver.said[1]["alert_id"]


async def test_without_a_key_or_a_url_it_is_only_logged(
    books: Books, receiver: Receiver, key_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await books.budget(ACTUAL, alert_percents=(100,), alert_url=receiver.url)
    await books.budget(ACTUAL, name="quiet", alert_percents=(90,))
    await spend(books)
    for worker in (Alerter(books.store, books.clock, None), Alerter(books.store, books.clock, key_file)):
        assert await worker.send_due() == 0
    assert receiver.bodies == []
    assert [each for each in caplog.messages if "is spent" in each] == [
        f"budget 'all' of acme: 100% of {ACTUAL} nano-USD is spent",
        f"budget 'quiet' of acme: 90% of {ACTUAL} nano-USD is spent",
    ]
    assert [each[1] for each in await rows(books)] == [None, None]


@pytest.mark.parametrize("url", ["http://alerts.example/", "file:///etc/passwd", "http://10.0.0.1/"])
async def test_a_url_that_got_into_the_table_is_not_asked(books: Books, alerter: Alerter, url: str) -> None:
    await books.budget(ACTUAL, alert_percents=(100,), alert_url="https://alerts.example/")
    await books.store.write(lambda connection: connection.execute(update(budgets).values(alert_url=url)))
    await spend(books)
    assert await alerter.send_due() == 0
    assert await rows(books) == [(100, 30, 1)]


async def test_a_key_that_is_rotated_is_used_at_once(
    books: Books, receiver: Receiver, alerter: Alerter, key_file: Path
) -> None:
    await books.budget(ACTUAL, alert_percents=(100,), alert_url=receiver.url)
    await spend(books)
    await asyncio.to_thread(key_file.write_bytes, b"another key of some length")
    assert await alerter.send_due() == 1
    signed = f"{receiver.heads[0]['Tenth-Timestamp']}.".encode() + receiver.bodies[0]
    expected = hmac.new(b"another key of some length", signed, hashlib.sha256).hexdigest()
    assert receiver.heads[0]["Tenth-Signature"] == f"v1={expected}"


def test_a_key_that_is_too_short_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"short\n")
    with pytest.raises(ValueError, match="at least 16 bytes"):
        Alerter(None, lambda: 0, tmp_path / "short")  # type: ignore[arg-type]  # It does not come to the store.
    with pytest.raises(OSError, match="absent"):
        Alerter(None, lambda: 0, tmp_path / "absent")  # type: ignore[arg-type]


def test_pauses_double_up_to_six_hours() -> None:
    assert [pause_seconds(tries) for tries in (1, 2, 3, 10, 11, 12)] == [30, 60, 120, 15_360, 21_600, 21_600]


async def test_an_alert_under_way_of_a_deleted_budget_never_silences_another(
    books: Books, receiver: Receiver, alerter: Alerter
) -> None:
    await books.budget(ACTUAL, hard=False, alert_percents=(100,), alert_url=receiver.url)
    await spend(books)
    receiver.may_answer.clear()
    sending = asyncio.create_task(alerter.send_due())
    await receiver.asked.wait()
    assert await books.admin.delete_budget("acme", "all")
    assert await rows(books) == []
    books.clock.advance(1)
    # On SQLite this alert gets the number of the one that is gone.
    await books.budget(2 * ACTUAL, name="next", hard=False, alert_percents=(100,), alert_url=receiver.url)
    await spend(books)
    receiver.may_answer.set()
    await sending
    assert await alerter.send_due() == 1
    assert [each["budget"] for each in receiver.said] == ["all", "next"]
    assert len({each["alert_id"] for each in receiver.said}) == 2
