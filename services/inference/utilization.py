"""Tells the ledger how busy this node's hardware was: a row a minute, kept and sent again while the ledger is away.

Best effort: rows that cannot be sent are kept in memory only, the oldest are dropped first, and the time for which
no row arrives is simply not known to the ledger.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from mesh.auth import Identity, set_identity
from mesh.errors import Code, TenthError
from services.inference.served import Served
from services.inference.settings import InferenceSettings
from services.inference.vllm import VllmBackend
from services.inference.work import WorkMeter

log = logging.getLogger("tenth.inference.utilization")

MOST_KEPT = 1440
"""Most rows kept for a ledger that is away: a day of minutes."""
_MOST_SENT = 500
_CALL_SECONDS = 5.0
_REFUSALS = frozenset((Code.INVALID_ARGUMENT, Code.ALREADY_EXISTS, Code.OUT_OF_RANGE))


@dataclass(frozen=True, slots=True)
class Node:
    """What is reported on: the node, the price book's name of its hardware, how many units, the model it serves."""

    name: str
    hardware: str
    unit_count: int
    model: str


def node_of(settings: InferenceSettings, model: str) -> Node:
    """This node by its settings."""
    units = settings.unit_count or (settings.threads if settings.hardware == "cpu" else 1)
    return Node(settings.node or socket.gethostname(), settings.hardware, units, model)


def start_reporting(
    served: Iterable[Served],
    settings: InferenceSettings,
    ledger: ledger_pb2_grpc.LedgerServiceAsyncStub,
    stack: AsyncExitStack,
) -> None:
    """Report on the local engine, if there is one, for as long as the stack is open."""
    engine = next((each.backend for each in served if isinstance(each.backend, VllmBackend)), None)
    if engine is None or not settings.hardware or not settings.utilization_interval_seconds:
        return
    report = UtilizationReport(node_of(settings, engine.model), engine.work, engine.runs, ledger, time.time_ns)
    stack.push_async_callback(report.finish)
    stack.callback(asyncio.create_task(report.run(settings.utilization_interval_seconds)).cancel)


class UtilizationReport:
    """Rows of one node. ``runs`` says whether the engine is there at all: without it there is nothing to report."""

    def __init__(
        self,
        node: Node,
        meter: WorkMeter,
        runs: Callable[[], bool],
        ledger: ledger_pb2_grpc.LedgerServiceAsyncStub,
        now_ns: Callable[[], int],
    ) -> None:
        self._node = node
        self._meter = meter
        self._runs = runs
        self._ledger = ledger
        self._now_ns = now_ns
        self._from_ns = now_ns()
        self._kept: deque[ledger_pb2.NodeUtilization] = deque(maxlen=MOST_KEPT)
        self._away = False

    @property
    def kept_count(self) -> int:
        """Rows that the ledger does not have yet."""
        return len(self._kept)

    async def run(self, interval_seconds: float) -> None:
        """Report until cancelled."""
        # The fleet's hardware is no tenant's: the service speaks for itself.
        set_identity(Identity(tenant_id="", caller="inference", service="inference"))
        while True:
            await asyncio.sleep(interval_seconds)
            try:
                self.look()
                await self.send()
            except Exception:
                # Whatever it is, serving goes on and so does reporting.
                log.exception("utilization is not reported")

    async def finish(self) -> None:
        """Report the last part of a minute, once."""
        set_identity(Identity(tenant_id="", caller="inference", service="inference"))
        self.look()
        try:
            await asyncio.wait_for(self.send(), timeout=2)
        except TimeoutError:
            log.warning("%d rows of utilization are lost", len(self._kept))

    def look(self) -> None:
        """Keep a row for the time since the last look."""
        work, start, end = self._meter.take(), self._from_ns, self._now_ns()
        self._from_ns = end
        if not self._runs() or end <= start:  # A clock that was set back: that time is not told.
            return
        row = ledger_pb2.NodeUtilization(
            node=self._node.name,
            hardware=self._node.hardware,
            unit_count=self._node.unit_count,
            busy_share=work.busy_share,
            model=self._node.model,
            output_token_count=work.output_tokens,
        )
        row.start_time.FromNanoseconds(start)
        row.end_time.FromNanoseconds(end)
        self._kept.append(row)

    async def send(self) -> None:
        """Send what is kept; what the ledger cannot take now stays, what it refuses is dropped."""
        while self._kept:
            batch = [self._kept[index] for index in range(min(len(self._kept), _MOST_SENT))]
            try:
                await self._deliver(batch)
            except TenthError as error:
                if not self._away:
                    log.warning("the ledger does not take utilization (%s); it is kept and sent again", error)
                self._away = True
                return
            self._away = False
            for _ in batch:
                self._kept.popleft()

    async def _deliver(self, batch: Sequence[ledger_pb2.NodeUtilization]) -> None:
        request = ledger_pb2.RecordUtilizationRequest(nodes=batch)
        try:
            await self._ledger.RecordUtilization(request, timeout=_CALL_SECONDS)
        except TenthError as error:
            if error.code not in _REFUSALS:
                raise
            if len(batch) == 1:
                log.error("the ledger refuses a row of %s: %s", self._node.name, error)
                return
            # One bad row must not block the others. Rows that were taken already change nothing when sent again.
            middle = len(batch) // 2
            await self._deliver(batch[:middle])
            await self._deliver(batch[middle:])
