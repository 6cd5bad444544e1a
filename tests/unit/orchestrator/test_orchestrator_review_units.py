"""Clocks that are set back, disks that fill up."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
from tenth.type.v1 import receipt_pb2

from mesh.errors import TenthError
from services.orchestrator.admission import RateLimiter
from services.orchestrator.outbox import Outbox

Settle = Callable[[Sequence[receipt_pb2.Receipt]], Awaitable[Sequence[str]]]


class FullOnce(Outbox):
    """An outbox whose disk is full for one delivery."""

    failures = 1

    async def flush(self, settle: Settle, batch_size: int) -> bool:
        if self.failures:
            self.failures -= 1
            raise sqlite3.OperationalError("database or disk is full")
        return await super().flush(settle, batch_size)


def test_a_clock_that_is_set_back_locks_nobody_out() -> None:
    now = 10_000.0
    limiter = RateLimiter(lambda: now)
    limiter.admit("acme", 60)
    now -= 3600
    for _ in range(59):
        limiter.admit("acme", 60)
    with pytest.raises(TenthError) as raised:
        limiter.admit("acme", 60)
    assert raised.value.retry_after_seconds == pytest.approx(1.0)
    now -= 3600
    with pytest.raises(TenthError):
        limiter.admit("acme", 60)
    now += 1
    limiter.admit("acme", 60)


async def test_a_full_disk_does_not_end_the_delivery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sleep = asyncio.sleep
    monkeypatch.setattr(asyncio, "sleep", lambda seconds: sleep(min(seconds, 0.001)))
    outbox = FullOnce(tmp_path / "outbox.sqlite", 600, lambda: 0.0)
    taken: list[str] = []

    async def settle(receipts: Sequence[receipt_pb2.Receipt]) -> Sequence[str]:
        taken.extend(receipt.facts.request_id for receipt in receipts)
        return [""] * len(receipts)

    delivering = asyncio.create_task(outbox.deliver(settle, 10, 0.001))
    facts = receipt_pb2.ReceiptFacts(tenant_id="acme", request_id="r")
    outbox.append(b"d", receipt_pb2.Receipt(facts=facts), None)
    async with asyncio.timeout(5):
        while not taken and not delivering.done():  # noqa: ASYNC110  (another task changes it)
            await asyncio.sleep(0.001)
    delivering.cancel()
    outbox.close()
    assert taken == ["r"]
