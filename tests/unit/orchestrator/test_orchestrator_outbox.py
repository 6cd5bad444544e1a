"""The durable outbox: what survives a kill, what is delivered, replayed, refused, forgotten."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.errors import unavailable
from services.orchestrator.outbox import Outbox


class Clock:
    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


class Ledger:
    """Takes receipts, or says why not."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.down = 0
        self.problems: dict[str, str] = {}

    async def __call__(self, receipts: Sequence[receipt_pb2.Receipt]) -> Sequence[str]:
        if self.down:
            self.down -= 1
            raise unavailable("down")
        self.batches.append([receipt.facts.request_id for receipt in receipts])
        return [self.problems.get(receipt.facts.request_id, "") for receipt in receipts]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outbox(tmp_path: Path, clock: Clock) -> Iterator[Outbox]:
    outbox = Outbox(tmp_path / "deep" / "outbox.sqlite", 600, clock)
    yield outbox
    outbox.close()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = asyncio.sleep

    async def short(seconds: float) -> None:
        await sleep(min(seconds, 0.001))

    monkeypatch.setattr("services.orchestrator.outbox.asyncio.sleep", short)


def receipt(request_id: str, tenant: str = "acme", user: str = "", actual: int = 1) -> receipt_pb2.Receipt:
    facts = receipt_pb2.ReceiptFacts(request_id=request_id, tenant_id=tenant, user_id=user)
    return receipt_pb2.Receipt(facts=facts, actual_nano_usd=actual)


def answer(text: str = "Hello.") -> chat_pb2.Completion:
    return chat_pb2.Completion(message=chat_pb2.ChatMessage(parts=[chat_pb2.ContentPart(text=text)]))


def test_a_row_is_found_as_it_was_appended(outbox: Outbox) -> None:
    outbox.append(b"digest", receipt("r"), answer(), "entry", "", "app", "acme/app")
    kept = outbox.find("acme", "r")
    assert kept is not None
    assert (kept.digest, kept.receipt, kept.completion) == (b"digest", receipt("r"), answer())
    assert (kept.entry_id, kept.namespace, kept.settled, kept.expire_time) == ("entry", "app", False, 1600.0)
    assert kept.shard == "acme/app"
    assert outbox.find("other", "r") is None
    outbox.append(b"d", receipt("failed"), None, error="BUDGET_EXCEEDED: none left")
    failed = outbox.find("acme", "failed")
    assert failed is not None
    assert failed.completion is None
    assert failed.error == "BUDGET_EXCEEDED: none left"


def test_a_file_of_an_earlier_revision_goes_on(tmp_path: Path, clock: Clock) -> None:
    path = tmp_path / "outbox.sqlite"
    outbox = Outbox(path, 600, clock)
    outbox.append(b"d", receipt("old"), answer())
    outbox.close()
    database = sqlite3.connect(path)
    database.execute("ALTER TABLE answers DROP COLUMN shard")  # As it was.
    database.commit()
    database.close()
    outbox = Outbox(path, 600, clock)
    outbox.append(b"d", receipt("new"), answer(), shard="s")
    old, new = outbox.find("acme", "old"), outbox.find("acme", "new")
    assert old is not None
    assert new is not None
    assert (old.shard, new.shard) == ("", "s")
    assert (old.completion, outbox.open_count()) == (answer(), 2)
    outbox.close()


def test_a_transaction_keeps_all_or_nothing(outbox: Outbox) -> None:
    with outbox.transaction():
        outbox.append(b"d", receipt("one"), answer())
        outbox.append(b"d", receipt("two"), None, error="LATE: too late")
    assert outbox.open_count() == 2

    def broken() -> None:
        with outbox.transaction():
            outbox.append(b"d", receipt("three"), answer())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        broken()
    assert outbox.find("acme", "three") is None
    outbox.append(b"d", receipt("four"), answer())
    assert outbox.open_count() == 3


async def test_only_a_failure_that_is_not_settled_is_withdrawn(outbox: Outbox) -> None:
    outbox.append(b"d", receipt("settled"), None, error="DOWN: for now")
    ledger = Ledger()
    await outbox.flush(ledger, 10)
    outbox.append(b"d", receipt("failed"), None, error="DOWN: for now")
    outbox.append(b"d", receipt("answered"), answer())
    for request_id in ("settled", "failed", "answered"):
        outbox.withdraw("acme", request_id)
        outbox.withdraw("other", request_id)
    assert outbox.find("acme", "failed") is None
    assert outbox.find("acme", "settled") is not None
    await outbox.flush(ledger, 10)
    assert ledger.batches == [["settled"], ["answered"]]


def test_the_entry_is_noted_later(outbox: Outbox) -> None:
    outbox.append(b"d", receipt("r"), answer())
    outbox.note_entry("acme", "r", "entry-9")
    kept = outbox.find("acme", "r")
    assert kept is not None
    assert kept.entry_id == "entry-9"


CHILD = """
import sys, time
from pathlib import Path
from tenth.type.v1 import chat_pb2, receipt_pb2
from services.orchestrator.outbox import Outbox
outbox = Outbox(Path(sys.argv[1]), 600, time.time)
number = 0
while True:
    facts = receipt_pb2.ReceiptFacts(request_id=str(number), tenant_id="acme")
    outbox.append(b"d", receipt_pb2.Receipt(facts=facts), chat_pb2.Completion(model="m"))
    print(number, flush=True)
    number += 1
"""


def append_until_killed(path: Path) -> list[int]:
    """Kill -9 a process that appends; what it said it had appended."""
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    acknowledged = [int(child.stdout.readline()) for _ in range(50)]
    os.kill(child.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in child.stdout.read().split(b"\n")[:-1]]
    child.wait()
    child.stdout.close()
    return acknowledged


async def test_what_was_appended_survives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "outbox.sqlite"
    acknowledged = append_until_killed(path)
    outbox = Outbox(path, 600, lambda: 0.0)
    ledger = Ledger()
    assert outbox.open_count() >= len(acknowledged)
    while await outbox.flush(ledger, 500):
        pass
    delivered = {int(each) for batch in ledger.batches for each in batch}
    assert delivered >= set(acknowledged)
    outbox.close()


async def test_batches_are_delivered_once(outbox: Outbox) -> None:
    for number in range(5):
        outbox.append(b"d", receipt(str(number)), answer())
    ledger = Ledger()
    assert await outbox.flush(ledger, 2)
    while await outbox.flush(ledger, 2):
        pass
    assert sorted(each for batch in ledger.batches for each in batch) == list("01234")
    assert [len(batch) for batch in ledger.batches] == [2, 2, 1]
    assert outbox.open_count() == 0
    kept = outbox.find("acme", "0")
    assert kept is not None
    assert kept.settled


async def test_while_the_ledger_is_down_receipts_wait(outbox: Outbox) -> None:
    ledger = Ledger()
    ledger.down = 3
    delivering = asyncio.create_task(outbox.deliver(ledger, 10, 0.001))
    outbox.append(b"d", receipt("r"), answer())
    async with asyncio.timeout(5):
        while not ledger.batches:  # noqa: ASYNC110  (another task changes it)
            await asyncio.sleep(0.001)
    outbox.append(b"d", receipt("later"), answer())
    async with asyncio.timeout(5):
        while len(ledger.batches) < 2:  # noqa: ASYNC110  (another task changes it)
            await asyncio.sleep(0.001)
    delivering.cancel()
    assert ledger.batches == [["r"], ["later"]]


async def test_a_receipt_that_was_replaced_during_delivery_still_goes(outbox: Outbox) -> None:
    outbox.append(b"d", receipt("r", actual=1), None, error="UNREACHABLE: down")
    sent: list[int] = []

    async def ledger(receipts: Sequence[receipt_pb2.Receipt]) -> Sequence[str]:
        sent.extend(each.actual_nano_usd for each in receipts)
        if len(sent) == 1:
            outbox.append(b"d", receipt("r", actual=2), answer())
        return [""] * len(receipts)

    while await outbox.flush(ledger, 10):
        pass
    assert sent == [1, 2]
    assert outbox.open_count() == 0


async def test_a_refused_receipt_is_marked_and_blocks_nobody(outbox: Outbox, tmp_path: Path) -> None:
    ledger = Ledger()
    ledger.problems = {"bad": "INVALID_RECEIPT: no"}
    outbox.append(b"d", receipt("bad"), answer())
    outbox.append(b"d", receipt("good"), answer())
    while await outbox.flush(ledger, 10):
        pass
    assert outbox.open_count() == 0
    with sqlite3.connect(tmp_path / "deep" / "outbox.sqlite") as other:
        rows = other.execute("SELECT request_id, problem FROM answers ORDER BY request_id").fetchall()
    other.close()
    assert rows == [("bad", "INVALID_RECEIPT: no"), ("good", "")]


async def test_a_reply_of_the_wrong_length_settles_nothing(outbox: Outbox) -> None:
    async def confused(receipts: Sequence[receipt_pb2.Receipt]) -> Sequence[str]:
        raise unavailable("1 receipts were sent, 0 results came back")

    outbox.append(b"d", receipt("r"), answer())
    assert not await outbox.flush(confused, 10)
    assert outbox.open_count() == 1


async def test_an_expired_answer_is_not_replayed_and_its_row_goes(outbox: Outbox, clock: Clock) -> None:
    ledger = Ledger()
    outbox.append(b"d", receipt("r"), answer())
    clock.seconds += 601
    kept = outbox.find("acme", "r")
    assert kept is not None  # Not settled yet: its receipt is still to be had.
    while await outbox.flush(ledger, 10):
        pass
    assert outbox.find("acme", "r") is None
    outbox.append(b"d", receipt("new"), answer())
    while await outbox.flush(ledger, 10):
        pass
    assert outbox.find("acme", "new") is not None


async def test_a_forgotten_user_leaves_nothing_but_unsettled_receipts(outbox: Outbox, tmp_path: Path) -> None:
    ledger = Ledger()
    outbox.append(b"d", receipt("old", user="u"), answer("a secret"))
    while await outbox.flush(ledger, 10):
        pass
    outbox.append(b"d", receipt("open", user="u"), answer("a secret"))
    outbox.append(b"d", receipt("other", user="v"), answer())
    outbox.append(b"d", receipt("elsewhere", tenant="t2", user="u"), answer())
    assert outbox.forget_user("acme", "u") == 2
    assert outbox.find("acme", "old") is None
    still = outbox.find("acme", "open")
    assert still is not None
    assert still.completion is None
    for tenant, request_id in (("acme", "other"), ("t2", "elsewhere")):
        kept = outbox.find(tenant, request_id)
        assert kept is not None
        assert kept.completion == answer()
    while await outbox.flush(ledger, 10):
        pass
    assert "open" in ledger.batches[-1]
    assert outbox.find("acme", "open") is None


async def test_what_waits_at_start_is_delivered(tmp_path: Path) -> None:
    first = Outbox(tmp_path / "o.sqlite", 600, lambda: 0.0)
    first.append(b"d", receipt("r"), answer())
    first.close()
    again = Outbox(tmp_path / "o.sqlite", 600, lambda: 0.0)
    ledger = Ledger()
    delivering = asyncio.create_task(again.deliver(ledger, 10, 0.001))
    async with asyncio.timeout(5):
        while not ledger.batches:  # noqa: ASYNC110  (another task changes it)
            await asyncio.sleep(0.001)
    delivering.cancel()
    again.close()
    assert ledger.batches == [["r"]]
