"""Delivers receipts from the outbox to the ledger, in batches, off every caller's path."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from tenth.type.v1 import receipt_pb2

from mesh import deadlines
from mesh.auth import set_identity
from mesh.errors import unavailable
from services.orchestrator.outbox import Outbox
from services.orchestrator.settings import OrchestratorSettings
from services.orchestrator.snapshot import SELF


class Settlement:
    """The delivering task; leaving it makes one last delivery."""

    def __init__(
        self, ledger: ledger_pb2_grpc.LedgerServiceAsyncStub, outbox: Outbox, settings: OrchestratorSettings
    ) -> None:
        self._ledger = ledger
        self._outbox = outbox
        self._settings = settings
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Settlement:
        self._task = asyncio.create_task(self._deliver())
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await asyncio.create_task(self._flush())

    async def ping(self) -> None:
        """Raises when the delivering task has died."""
        if self._task is None or self._task.done():
            raise unavailable("the settlement task has ended")

    async def settle(self, receipts: Sequence[receipt_pb2.Receipt]) -> Sequence[str]:
        """Settle a batch; returns a reason per receipt, empty when it was accepted."""
        reply = await self._ledger.SettleReceipts(
            ledger_pb2.SettleReceiptsRequest(receipts=receipts), timeout=self._settings.background_cap_seconds
        )
        if len(reply.results) != len(receipts):
            raise unavailable(f"{len(receipts)} receipts were sent, {len(reply.results)} results came back")
        return [
            f"{result.error_reason}: {result.error_message}" if result.error_reason else "" for result in reply.results
        ]

    async def _deliver(self) -> None:
        set_identity(SELF)
        deadlines.set_remaining(None)
        await self._outbox.deliver(
            self.settle, self._settings.settle_batch_size, self._settings.settle_interval_seconds
        )

    async def _flush(self) -> None:
        set_identity(SELF)
        deadlines.set_remaining(None)
        while await self._outbox.flush(self.settle, self._settings.settle_batch_size):
            continue
