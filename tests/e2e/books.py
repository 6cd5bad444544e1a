"""Reading the books of a running mesh, for the tests that break it: receipts, sums, the provider's own count."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import httpx
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from tenth.type.v1 import receipt_pb2

from tenth_client import Client, TenthClientError
from tenth_client.rpc import Rpc
from tenth_client.up import Mesh

_NOT_YET = ("NOT_FOUND", "UNREACHABLE", "RECEIPT_NOT_FOUND")


def holds(receipt: receipt_pb2.Receipt) -> bool:
    """The identity of architecture.md."""
    saved = sum(item.saving_nano_usd for item in receipt.savings)
    return receipt.baseline_nano_usd - saved + receipt.overhead_nano_usd == receipt.actual_nano_usd


async def report(mesh: Mesh, requests: int = 0, seconds: float = 30.0) -> ledger_pb2.SpendRow:
    """The ledger's total, once it has so many requests: receipts of hits hold no reservation that shows as open."""
    until = time.monotonic() + seconds
    while True:
        async with Rpc(mesh.connection) as rpc:
            reply = await rpc.call(
                "ledger", ledger_pb2_grpc.LedgerReadServiceStub, "GetSpendReport", ledger_pb2.GetSpendReportRequest()
            )
        assert isinstance(reply, ledger_pb2.GetSpendReportResponse)
        total = reply.rows[0] if reply.rows else ledger_pb2.SpendRow()
        if total.request_count >= requests:
            return total
        assert time.monotonic() < until, f"{requests - total.request_count} receipts do not come"
        await asyncio.sleep(0.25)


async def status(mesh: Mesh) -> ledger_pb2.GetBooksStatusResponse:
    """The ledger's own health of its books."""
    async with Rpc(mesh.connection) as rpc:
        reply = await rpc.call(
            "ledger", ledger_pb2_grpc.LedgerReadServiceStub, "GetBooksStatus", ledger_pb2.GetBooksStatusRequest()
        )
    assert isinstance(reply, ledger_pb2.GetBooksStatusResponse)
    return reply


async def quiet(mesh: Mesh, seconds: float = 30.0) -> ledger_pb2.GetBooksStatusResponse:
    """Wait until no reservation is open and every attempt is in a receipt."""
    until = time.monotonic() + seconds
    while True:
        books = await status(mesh)
        if not books.open_reservation_count and not books.unreceipted_request_count:
            return books
        assert time.monotonic() < until, f"the books do not come to rest: {books}"
        await asyncio.sleep(0.25)


async def final_receipts(
    client: Client, request_ids: Sequence[str], seconds: float = 20.0
) -> list[receipt_pb2.Receipt]:
    """The receipts of some requests, each FINAL."""
    receipts = []
    until = time.monotonic() + seconds
    for request_id in request_ids:
        while True:
            try:
                receipt = await client.receipt(request_id)
            except TenthClientError as error:
                if error.reason not in _NOT_YET:
                    raise
            else:
                if receipt.state == receipt_pb2.RECEIPT_STATE_FINAL:
                    receipts.append(receipt)
                    break
            assert time.monotonic() < until, f"no final receipt of {request_id}"
            await asyncio.sleep(0.1)
    return receipts


async def provider_requests(mesh: Mesh) -> list[str]:
    """What the sandbox provider was asked, as REQUEST_ID/ATTEMPT, in order."""
    async with httpx.AsyncClient() as http:
        stats = (await http.get(f"http://{mesh.address('sandbox')}/sandbox/stats", timeout=5)).json()
    return [str(item) for item in stats["request_ids"]]


def attempts_on(receipts: Sequence[receipt_pb2.Receipt]) -> set[str]:
    """The attempts that receipts account for, as REQUEST_ID/ATTEMPT."""
    found = set()
    for receipt in receipts:
        facts = receipt.facts
        numbers = [facts.attempt, *(item.attempt for item in facts.overheads)]
        found |= {f"{facts.request_id}/{number}" for number in numbers if number}
    return found
