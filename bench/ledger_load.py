"""How many receipts a ledger settles each second, and how long a reservation takes."""

from __future__ import annotations

import asyncio
import time
import uuid
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from tenth.ledger.v1 import ledger_pb2 as pb
from tenth.ledger.v1 import ledger_pb2_grpc as rpc
from tenth.type.v1 import receipt_pb2

from bench.ledger_process import MODEL, TENANT, Replica, act, receipt, replicas
from bench.result import Result, median, percentile
from services.ledger.store import write_engine

BATCH = 200
"""Receipts of one call: the orchestrator's default."""
_LIMIT = 10**18


async def measure(result: Result, store: str, url: str, folder: Path, *, quick: bool) -> None:
    """Settlements by 1 and by 8 writers in turn, then one client's reservations, on one ledger process."""
    rounds, each = (1, 2_000) if quick else (5, 8_000)
    count = 100 if quick else 1_000
    with replicas(1, url, folder) as (replica,):
        await replica.ready()
        act()
        async with replica.channel() as channel:
            writes = rpc.LedgerServiceStub(channel)
            snapshot = await writes.GetAdmissionSnapshot(pb.GetAdmissionSnapshotRequest(), timeout=30)
            budget = pb.Budget(name="month", tenant_id=TENANT, limit_nano_usd=_LIMIT, hard=True)
            budget.window, budget.time_zone = pb.BUDGET_WINDOW_MONTH, "Asia/Seoul"
            await writes.SetBudget(pb.SetBudgetRequest(budget=budget), timeout=30)
            await _settles(replica, [receipt(uuid.uuid4().hex, snapshot) for _ in range(2 * BATCH)], 2)  # Warms up.
            before, count_all = await _size(url), 2 * rounds * each
            rates: dict[int, list[float]] = {1: [], 8: []}
            cpu = 0.0
            for _ in range(rounds):
                for writers, measured in rates.items():
                    made = [receipt(uuid.uuid4().hex, snapshot) for _ in range(each)]
                    started = replica.cpu_seconds()
                    measured.append(await _settles(replica, made, writers))
                    cpu += replica.cpu_seconds() - started
            for writers, measured in rates.items():
                result.add(f"{store}/ours/settles_per_s_w{writers}", median(measured), "1/s", rounds * each)
            result.add(f"{store}/ours/cpu_ms_per_settle", cpu * 1000 / count_all, "ms", count_all)
            result.add(f"{store}/ours/bytes_per_event", (await _size(url) - before) / count_all, "bytes", count_all)
            await _latencies(result, store, writes, snapshot, count)


async def _settles(replica: Replica, made: list[receipt_pb2.Receipt], writers: int) -> float:
    """Receipts settled each second by writers that each wait for their call's answer, on connections of their own."""
    requests = [pb.SettleReceiptsRequest(receipts=made[at : at + BATCH]) for at in range(0, len(made), BATCH)]
    waiting = iter(requests)
    async with AsyncExitStack() as stack:
        stubs = []
        for _ in range(writers):
            stubs.append(rpc.LedgerServiceStub(await stack.enter_async_context(replica.channel())))
            await stubs[-1].GetAdmissionSnapshot(pb.GetAdmissionSnapshotRequest(), timeout=30)

        async def write(stub: Any) -> None:
            for request in waiting:
                answer = await stub.SettleReceipts(request, timeout=60)
                if any(each.error_reason for each in answer.results):
                    raise RuntimeError(f"refused: {answer.results[0]}")

        started = time.perf_counter()
        await asyncio.gather(*map(write, stubs))
        return len(made) / (time.perf_counter() - started)


async def _latencies(
    result: Result, store: str, writes: Any, snapshot: pb.GetAdmissionSnapshotResponse, count: int
) -> None:
    reserves, pairs = [], []
    for _ in range(count):
        request_id = uuid.uuid4().hex
        wanted = pb.ReserveFundsRequest(
            request_id=request_id, model=MODEL, input_token_count=1_000, max_output_token_count=500,
            price_book_version=snapshot.price_book_version,
        )  # fmt: skip
        started = time.perf_counter()
        held = await writes.ReserveFunds(wanted, timeout=30)
        reserved = time.perf_counter() - started
        settle = pb.SettleReceiptsRequest(receipts=[receipt(request_id, snapshot, reservation_id=held.reservation_id)])
        started = time.perf_counter()
        await writes.SettleReceipts(settle, timeout=30)
        reserves.append(reserved * 1000)
        pairs.append((reserved + time.perf_counter() - started) * 1000)
    for name, values in (("reserve", reserves), ("reserve_settle", pairs)):
        for share, label in ((0.5, "p50"), (0.95, "p95")):
            result.add(f"{store}/ours/{name}_{label}_ms", percentile(values, share), "ms", count)


async def _size(url: str) -> int:
    """Bytes of the whole database."""
    engine = write_engine(url)
    try:
        async with engine.connect() as connection:
            if engine.dialect.name != "sqlite":
                query = "SELECT pg_database_size(current_database())"
                return int((await connection.exec_driver_sql(query)).scalar_one())
            pages = (await connection.exec_driver_sql("PRAGMA page_count")).scalar_one()
            of = (await connection.exec_driver_sql("PRAGMA page_size")).scalar_one()
            return int(pages) * int(of)
    finally:
        await engine.dispose()
