"""The attempt log: kill -9, a ledger that is away, a record that it refuses."""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from mesh.auth import current_identity
from mesh.errors import TenthError, invalid_argument, unavailable
from mesh.testing import dial, running
from services.inference.attempts import BATCH, AttemptDelivery, AttemptLog, DeliveryPace

STARTED, FINISHED, FAILED = (
    ledger_pb2.ATTEMPT_KIND_STARTED,
    ledger_pb2.ATTEMPT_KIND_FINISHED,
    ledger_pb2.ATTEMPT_KIND_FAILED,
)


def event(request_id: str, kind: ledger_pb2.AttemptKind.ValueType, output: int = 0) -> ledger_pb2.AttemptEvent:
    result = ledger_pb2.AttemptEvent(request_id=request_id, attempt=1, kind=kind, tenant_id="acme", model="m")
    result.usage.input_token_count = 10
    result.usage.output_token_count = output
    return result


def read(log: AttemptLog) -> list[tuple[str, int]]:
    events = [ledger_pb2.AttemptEvent.FromString(blob) for _, blob in log.pending()]
    return [(item.request_id, item.kind) for item in events]


CHILD = """
import sys, time
from pathlib import Path
from tenth.ledger.v1 import ledger_pb2
from services.inference.attempts import AttemptLog
log = AttemptLog(Path(sys.argv[1]), time.time)
for number in range(200):
    item = ledger_pb2.AttemptEvent(request_id=f"r{number}", attempt=1, kind=1, tenant_id="acme", model="m")
    item.usage.output_token_count = 77
    log.start(item)
    if number % 2:
        item.kind = 2
        item.usage.output_token_count = 5
        log.end(item)
    print(number, flush=True)
time.sleep(60)
"""


def test_a_killed_process_loses_nothing_and_its_open_attempts_are_closed(tmp_path: Path) -> None:
    path = tmp_path / "attempts.db"
    child = subprocess.Popen([sys.executable, "-c", CHILD, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    for line in child.stdout:
        if int(line) == 150:
            break
    os.kill(child.pid, signal.SIGKILL)
    rest = [int(line) for line in child.stdout]
    child.wait()
    child.stdout.close()
    last = rest[-1] if rest else 150
    log = AttemptLog(path, lambda: 1000.0)
    events = [ledger_pb2.AttemptEvent.FromString(blob) for _, blob in log.pending(10_000)]
    ends = {item.request_id: item for item in events if item.kind != STARTED}
    starts = [item.request_id for item in events if item.kind == STARTED]
    # What was printed was written before it; the process may have written one more.
    assert [f"r{number}" for number in range(last + 1)] == starts[: last + 1]
    assert set(ends) == set(starts)
    assert len(events) == len(starts) + len(ends)
    odd, even = ends["r1"], ends["r0"]
    assert (odd.kind, odd.usage.output_token_count, odd.usage.estimated) == (FINISHED, 5, False)
    assert (even.kind, even.usage.output_token_count, even.usage.estimated) == (FAILED, 77, True)
    assert even.event_time.seconds == 1000
    log.close()
    assert AttemptLog(path, time.time).recovered_count == 0


def test_two_processes_do_not_share_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = AttemptLog(tmp_path / "attempts.db", time.time)
    connect = sqlite3.connect

    def impatient(path: Path, **options: Any) -> Any:
        return connect(path, **{**options, "timeout": 0})

    monkeypatch.setattr(sqlite3, "connect", impatient)
    with pytest.raises(OSError, match="another inference process"):
        AttemptLog(tmp_path / "attempts.db", time.time)
    first.close()


async def test_both_writes_of_an_attempt_are_cheap(tmp_path: Path) -> None:
    log = AttemptLog(tmp_path / "attempts.db", time.time)
    started = time.process_time()
    for number in range(1000):
        log.start(event(f"r{number}", STARTED))
        log.end(event(f"r{number}", FINISHED))
    each = (time.process_time() - started) / 1000
    log.close()
    assert each < 0.001  # 0.08 ms on an idle machine; the bound leaves room for a busy one.


class FakeLedger(ledger_pb2_grpc.LedgerServiceServicer):
    """Records; down while ``down``; refuses ids in ``refused``; forgets to answer ``lost`` times."""

    def __init__(self) -> None:
        self.events: dict[tuple[str, int, int], ledger_pb2.AttemptEvent] = {}
        self.down = False
        self.refused: set[str] = set()
        self.lost = 0
        self.largest = 0
        self.callers: set[tuple[str, str]] = set()

    async def RecordAttempts(
        self, request: ledger_pb2.RecordAttemptsRequest, context: Any
    ) -> ledger_pb2.RecordAttemptsResponse:
        self.callers.add((current_identity().tenant_id, current_identity().caller))
        if self.down:
            raise unavailable("away")
        if any(item.request_id in self.refused for item in request.events):
            raise invalid_argument("no", field="events")
        self.largest = max(self.largest, len(request.events))
        before = len(self.events)
        for item in request.events:
            self.events.setdefault((item.request_id, item.attempt, item.kind), item)
        if self.lost:
            self.lost -= 1
            raise unavailable("the answer is lost")
        return ledger_pb2.RecordAttemptsResponse(recorded_count=len(self.events) - before)


async def test_delivery_survives_an_absent_ledger_and_a_bad_record(tmp_path: Path) -> None:
    ledger = FakeLedger()  # type: ignore[abstract]  # only what is called here is faked
    ledger.down = True
    log = AttemptLog(tmp_path / "attempts.db", time.time)
    register = ledger_pb2_grpc.add_LedgerServiceServicer_to_server
    async with (
        running(register, ledger, "tenth.ledger.v1.LedgerService", tmp_path) as address,
        dial(address, None) as channel,
    ):
        stub = ledger_pb2_grpc.LedgerServiceStub(channel)
        delivery = AttemptDelivery(log, stub, DeliveryPace(0.01, 0.02))
        worker = asyncio.create_task(delivery.run())
        ledger.refused = {"r7"}
        ledger.lost = 1
        for number in range(700):
            log.start(event(f"r{number}", STARTED))
            if number != 3:
                log.end(event(f"r{number}", FINISHED, 5))
        await asyncio.sleep(0.1)
        assert ledger.events == {}
        ledger.down = False
        await _until(lambda: log.pending_count() == 0)
        # All but the refused request's two records and the end of the one that still runs.
        assert len(ledger.events) == 1400 - 2 - 1
        assert ledger.largest <= BATCH
        assert ledger.callers == {("", "inference")}
        log.end(event("r3", FINISHED, 5))
        await _until(lambda: ("r3", 1, FINISHED) in ledger.events and log.pending_count() == 0)
        worker.cancel()
    log.close()
    # Nothing is left but what the ledger refused, and that is not sent again.
    again = AttemptLog(tmp_path / "attempts.db", time.time)
    assert again.recovered_count == 0
    assert read(again) == []
    again.close()


async def test_a_delivered_start_is_remembered_until_its_end(tmp_path: Path) -> None:
    ledger = FakeLedger()  # type: ignore[abstract]  # only what is called here is faked
    log = AttemptLog(tmp_path / "attempts.db", time.time)
    register = ledger_pb2_grpc.add_LedgerServiceServicer_to_server
    async with (
        running(register, ledger, "tenth.ledger.v1.LedgerService", tmp_path) as address,
        dial(address, None) as channel,
    ):
        delivery = AttemptDelivery(log, ledger_pb2_grpc.LedgerServiceStub(channel), DeliveryPace(0.01))
        log.start(event("r", STARTED, 30))
        await delivery.finish()
        assert list(ledger.events) == [("r", 1, STARTED)]
    log.close()  # The process dies here.
    again = AttemptLog(tmp_path / "attempts.db", time.time)
    assert again.recovered_count == 1
    assert read(again) == [("r", FAILED)]
    again.close()


async def test_finish_keeps_what_it_cannot_deliver(tmp_path: Path) -> None:
    log = AttemptLog(tmp_path / "attempts.db", time.time)
    log.start(event("r", STARTED))
    async with dial("127.0.0.1:1", None) as channel:
        await AttemptDelivery(log, ledger_pb2_grpc.LedgerServiceStub(channel), DeliveryPace(0.01)).finish()
    with pytest.raises(TenthError) as caught:
        log.start(event("r", STARTED))
    assert caught.value.reason == "ATTEMPT_RUNNING"
    log.close()
    with pytest.raises(TenthError) as closed:
        log.start(event("other", STARTED))
    assert closed.value.reason == "ATTEMPT_LOG_UNAVAILABLE"


async def _until(condition: Any) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come to pass")
