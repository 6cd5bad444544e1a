"""A full disk under the attempt log: SQLite's own error (the file may not grow), and nothing is lost."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from mesh.errors import TenthError
from mesh.testing import dial, running
from services.inference.attempts import AttemptDelivery, AttemptLog, DeliveryPace

STARTED, FINISHED, FAILED = (
    ledger_pb2.ATTEMPT_KIND_STARTED,
    ledger_pb2.ATTEMPT_KIND_FINISHED,
    ledger_pb2.ATTEMPT_KIND_FAILED,
)


def event(name: str, kind: ledger_pb2.AttemptKind.ValueType, output: int) -> ledger_pb2.AttemptEvent:
    result = ledger_pb2.AttemptEvent(request_id=name, attempt=1, kind=kind, tenant_id="acme", model="m" * 2000)
    result.usage.output_token_count = output
    return result


def fill(log: AttemptLog) -> None:
    """From now on the file may not grow: every insert that needs a page fails as on a full disk."""
    (pages,) = log._database.execute("PRAGMA page_count").fetchone()
    log._database.execute(f"PRAGMA max_page_count = {pages}")


def free(log: AttemptLog) -> None:
    log._database.execute("PRAGMA max_page_count = 1000000")


def read(log: AttemptLog) -> list[tuple[str, int, int]]:
    events = [ledger_pb2.AttemptEvent.FromString(blob) for _, blob in log.pending()]
    return [(item.request_id, item.kind, item.usage.output_token_count) for item in events]


def start_until_full(log: AttemptLog) -> tuple[int, TenthError]:
    for number in range(50):
        try:
            log.start(event(f"more{number}", STARTED, 77))
        except TenthError as error:
            return number, error
    raise AssertionError("the disk was never full")


def test_nothing_begins_on_a_full_disk_and_the_message_says_what_to_do(tmp_path: Path) -> None:
    log = AttemptLog(tmp_path / "attempts.db", time.time)
    log.start(event("running", STARTED, 77))
    fill(log)
    begun, error = start_until_full(log)
    assert (error.code.name, error.reason) == ("UNAVAILABLE", "ATTEMPT_LOG_UNAVAILABLE")
    assert "TENTH_DATA_DIR" in error.message
    assert "full" in error.message
    log.end(event("running", FINISHED, 5))  # The answer is given; its record waits.
    assert log.kept_count == 1
    free(log)
    log.start(event("later", STARTED, 77))
    assert log.kept_count == 0
    assert ("running", FINISHED, 5) in read(log)
    assert [row for row in read(log) if row[0] == "running"] == [("running", STARTED, 77), ("running", FINISHED, 5)]
    assert len(read(log)) == begun + 3
    log.close()


def test_a_process_that_dies_with_a_full_disk_books_the_worst_case(tmp_path: Path) -> None:
    log = AttemptLog(tmp_path / "attempts.db", time.time)
    log.start(event("running", STARTED, 77))
    fill(log)
    start_until_full(log)
    log.end(event("running", FINISHED, 5))
    log._database.close()  # As kill -9: what is in memory is gone.
    again = AttemptLog(tmp_path / "attempts.db", time.time)
    assert ("running", FAILED, 77) in read(again)
    again.close()


class Ledger:
    def __init__(self) -> None:
        self.events: list[ledger_pb2.AttemptEvent] = []

    async def RecordAttempts(self, request: ledger_pb2.RecordAttemptsRequest, context: Any) -> Any:
        self.events += request.events
        return ledger_pb2.RecordAttemptsResponse()

    def __getattr__(self, name: str) -> object:
        return None  # The methods that inference does not call.


async def test_what_was_kept_is_delivered_when_there_is_room_again(tmp_path: Path) -> None:
    log = AttemptLog(tmp_path / "attempts.db", time.time)
    ledger = Ledger()
    register = ledger_pb2_grpc.add_LedgerServiceServicer_to_server
    async with (
        running(register, ledger, "tenth.ledger.v1.LedgerService", tmp_path) as address,
        dial(address) as channel,
    ):
        delivery = AttemptDelivery(log, ledger_pb2_grpc.LedgerServiceStub(channel), DeliveryPace(0.01))
        log.start(event("running", STARTED, 77))
        fill(log)
        start_until_full(log)
        log.end(event("running", FINISHED, 5))
        with pytest.raises(TenthError, match="full"):
            await delivery.deliver_all()
        assert not [item for item in ledger.events if item.kind == FINISHED]
        free(log)
        await delivery.deliver_all()
        assert [item.usage.output_token_count for item in ledger.events if item.kind == FINISHED] == [5]
    log.close()
