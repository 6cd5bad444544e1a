"""Utilization on its way to a ledger that is away, refuses a row, or loses its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from mesh.auth import Identity, current_identity, set_identity
from mesh.errors import Code, TenthError, unavailable
from mesh.testing import dial, running
from services.inference.utilization import MOST_KEPT, Node, UtilizationReport
from services.inference.work import WorkMeter

NODE = Node("rack-1", "gpu:a100", 2, "m")
SECOND = 10**9
START = 1_780_000_000 * SECOND


class FakeLedger(ledger_pb2_grpc.LedgerServiceServicer):
    """Keeps rows by node and start; down while ``down``, refuses starts in ``refused``, forgets to answer once."""

    def __init__(self) -> None:
        self.rows: dict[tuple[str, int], ledger_pb2.NodeUtilization] = {}
        self.down = False
        self.lose = False
        self.refused: set[int] = set()
        self.largest = 0
        self.came = asyncio.Event()
        self.callers: set[tuple[str, str]] = set()

    async def RecordUtilization(
        self, request: ledger_pb2.RecordUtilizationRequest, context: Any
    ) -> ledger_pb2.RecordUtilizationResponse:
        self.callers.add((current_identity().tenant_id, current_identity().caller))
        if self.down:
            raise unavailable("away")
        starts = {node.start_time.ToNanoseconds() for node in request.nodes}
        if starts & self.refused:
            raise TenthError(Code.ALREADY_EXISTS, "UTILIZATION_OVERLAP", "no", "request.nodes[0].start_time")
        self.largest = max(self.largest, len(request.nodes))
        for node in request.nodes:
            self.rows.setdefault((node.node, node.start_time.ToNanoseconds()), node)
        self.came.set()
        if self.lose:
            self.lose = False
            raise unavailable("the answer is lost")
        return ledger_pb2.RecordUtilizationResponse(recorded_count=len(request.nodes))


class Bench:
    """A report with clocks that stand, and the ledger that it speaks to."""

    def __init__(self, ledger: FakeLedger, stub: Any) -> None:
        self.ledger = ledger
        self.now, self.ticks, self.alive = START, 0, True
        self.meter = WorkMeter(lambda: self.ticks)
        self.report = UtilizationReport(NODE, self.meter, lambda: self.alive, stub, lambda: self.now)

    def pass_time(self, seconds: int) -> None:
        """Both clocks move on."""
        self.now += seconds * SECOND
        self.ticks += seconds * SECOND

    async def send(self) -> None:
        """Send as the service does: for itself, on behalf of no tenant."""
        set_identity(Identity(tenant_id="", caller="inference"))
        await self.report.send()

    def starts(self) -> list[int]:
        """Seconds after the start at which the ledger's rows begin."""
        return sorted((start - START) // SECOND for _, start in self.ledger.rows)


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    ledger = FakeLedger()  # type: ignore[abstract]  # only what is called here is faked
    register = ledger_pb2_grpc.add_LedgerServiceServicer_to_server
    async with (
        running(register, ledger, "tenth.ledger.v1.LedgerService", tmp_path) as address,
        dial(address, None) as channel,
    ):
        yield Bench(ledger, ledger_pb2_grpc.LedgerServiceStub(channel))


async def test_a_minute_of_work_becomes_a_row_and_the_last_part_of_one_too(bench: Bench) -> None:
    worker = asyncio.create_task(bench.report.run(0.01))
    bench.meter.working(True)
    bench.pass_time(15)
    bench.meter.working(False)
    bench.meter.made(40)
    bench.pass_time(45)
    await asyncio.wait_for(bench.ledger.came.wait(), 5)
    (row,) = bench.ledger.rows.values()
    assert (row.node, row.hardware, row.unit_count, row.model) == ("rack-1", "gpu:a100", 2, "m")
    assert (row.busy_share, row.output_token_count) == (0.25, 40)
    assert row.end_time.ToNanoseconds() - row.start_time.ToNanoseconds() == 60 * SECOND
    worker.cancel()
    bench.pass_time(7)
    await bench.report.finish()
    assert bench.starts() == [0, 60]
    assert bench.ledger.callers == {("", "inference")}


async def test_rows_wait_for_a_ledger_that_is_away_and_none_is_lost_or_sent_twice(bench: Bench) -> None:
    bench.ledger.down = True
    for _ in range(700):
        bench.pass_time(60)
        bench.report.look()
    await bench.send()
    assert (bench.ledger.rows, bench.report.kept_count) == ({}, 700)
    bench.ledger.down = False
    bench.ledger.lose = True
    await bench.send()
    assert bench.report.kept_count == 700  # Nobody said that they arrived.
    await bench.send()
    assert bench.report.kept_count == 0
    assert bench.starts() == [60 * index for index in range(700)]
    assert bench.ledger.largest == 500


async def test_one_refused_row_is_dropped_and_the_others_arrive(bench: Bench) -> None:
    for _ in range(9):
        bench.pass_time(60)
        bench.report.look()
    bench.ledger.refused = {START + 4 * 60 * SECOND}
    await bench.send()
    assert bench.report.kept_count == 0
    assert bench.starts() == [60 * index for index in range(9) if index != 4]


async def test_no_row_without_an_engine_or_for_a_clock_set_back_and_memory_is_bounded(bench: Bench) -> None:
    bench.alive = False
    bench.pass_time(60)
    bench.report.look()
    bench.alive = True
    bench.now -= 3600 * SECOND
    bench.report.look()
    bench.report.look()
    assert bench.report.kept_count == 0
    for _ in range(MOST_KEPT + 3):
        bench.pass_time(1)
        bench.report.look()
    assert bench.report.kept_count == MOST_KEPT
    await bench.send()
    # The oldest are dropped; what is kept is after the clock was set back and before it came to where it was.
    assert bench.starts()[0] == 60 - 3600 + 3
