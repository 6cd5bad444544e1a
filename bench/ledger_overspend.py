"""Can a hard budget be overspent? 64 clients, 4 replicas on one Postgres, random kills and cancelled calls.

Every client reserves, then settles, gives back or forgets what it holds, and retries on another replica whatever was
not acknowledged, as the orchestrator's outbox does. Replicas are killed with ``kill -9`` and started again.
"""

from __future__ import annotations

import asyncio
import random
import sys
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from sqlalchemy import func, select
from tenth.ledger.v1 import ledger_pb2 as pb
from tenth.ledger.v1 import ledger_pb2_grpc as rpc
from tenth.type.v1 import receipt_pb2

from bench.ledger_process import MODEL, TENANT, Replica, act, receipt, replicas
from bench.result import Result
from mesh.errors import TenthError
from services.ledger.store import write_engine
from services.ledger.tables import OPEN, SAVINGS, receipt_events, receipts, reservations

T = TypeVar("T")
CLIENTS, REPLICAS = 64, 4
_SETTLED_AT_ONCE = 5
_WINDOWS = "SELECT sum(spent), sum(reserved) FROM budget_windows"
_HELD_SECONDS, _FORGOTTEN_SECONDS = 600, 3


@dataclass
class Run:
    """What the clients did and saw."""

    snapshot: pb.GetAdmissionSnapshotResponse
    seed: int
    limit: int
    waiting: int
    acknowledged: dict[str, int] = field(default_factory=dict)
    """Settled costs by request."""
    outcomes: Counter[str] = field(default_factory=Counter)
    over: int = 0
    """Most that spent and reserved ever stood above the limit, nano-USD."""


async def measure(result: Result, url: str, folder: Path, seed: int, *, quick: bool) -> None:
    """Run it and look at the books afterwards."""
    count = 1_000 if quick else 20_000
    sweeps = {"TENTH_LEDGER_SWEEP_INTERVAL_SECONDS": "0.5"}
    with replicas(REPLICAS, url, folder, **sweeps) as ledgers:
        for each in ledgers:
            await each.ready()
        act()
        async with ledgers[0].channel() as channel:
            writes = rpc.LedgerServiceStub(channel)
            snapshot = await writes.GetAdmissionSnapshot(pb.GetAdmissionSnapshotRequest(), timeout=30)
            # Enough for about half of the requests: the second half fights for what comes back.
            limit = count * receipt("r", snapshot).actual_nano_usd // 2
            budget = pb.Budget(name="all", tenant_id=TENANT, limit_nano_usd=limit, hard=True)
            budget.window = pb.BUDGET_WINDOW_TOTAL
            await writes.SetBudget(pb.SetBudgetRequest(budget=budget), timeout=30)
        run = Run(snapshot, seed, limit, count)
        kills = asyncio.create_task(_kill(run, ledgers))
        watch = asyncio.create_task(_watch(run, url))
        await asyncio.gather(*(_client(run, number, ledgers) for number in range(CLIENTS)))
        kills.cancel()
        await asyncio.gather(kills, return_exceptions=True)
        for each in ledgers:
            if each.process is None or each.process.poll() is not None:
                each.start()  # It was just killed.
            await each.ready()
        await asyncio.sleep(_FORGOTTEN_SECONDS + 1)
        for _ in range(120):
            if not await _open_count(url):
                break
            await asyncio.sleep(0.5)
        watch.cancel()
        await _look(result, run, url, count)


async def _client(run: Run, number: int, ledgers: list[Replica]) -> None:
    chosen = random.Random(f"{run.seed}-{number}")  # noqa: S311  (a load, no secret)
    act()
    async with AsyncExitStack() as stack:
        stubs = [rpc.LedgerServiceStub(await stack.enter_async_context(each.channel())) for each in ledgers]
        done: list[receipt_pb2.Receipt] = []
        while run.waiting:
            run.waiting -= 1
            request_id = uuid.uuid4().hex
            fate = chosen.random()
            wanted = pb.ReserveFundsRequest(
                request_id=request_id, model=MODEL, input_token_count=1_200, max_output_token_count=200,
                price_book_version=run.snapshot.price_book_version,
                ttl=Duration(seconds=_FORGOTTEN_SECONDS if fate < 0.1 else _HELD_SECONDS),
            )  # fmt: skip
            held = await _reserve(run, stubs, wanted, chosen)
            if held is None or held.decision != pb.RESERVE_DECISION_OK:
                continue
            if fate < 0.1:
                run.outcomes["forgotten"] += 1  # Its lease ends, and the sweeper gives it back.
            elif fate < 0.2:
                release = pb.ReleaseFundsRequest(reservation_id=held.reservation_id)
                await _until_done(run, stubs, chosen, lambda stub: stub.ReleaseFunds(release, timeout=10))  # noqa: B023
                run.outcomes["released"] += 1
            else:
                tokens = chosen.randrange(100, 1_200), chosen.randrange(1, 200)
                made = receipt(
                    request_id, run.snapshot, input_tokens=tokens[0], output_tokens=tokens[1],
                    reservation_id=held.reservation_id,
                )  # fmt: skip
                done.append(made)
            if len(done) >= _SETTLED_AT_ONCE:
                await _settle(run, stubs, done, chosen)
        await _settle(run, stubs, done, chosen)


async def _reserve(
    run: Run, stubs: list[Any], wanted: pb.ReserveFundsRequest, chosen: random.Random
) -> pb.ReserveFundsResponse | None:
    """Reserve; some calls are cancelled on their way, and asked again or given up."""
    call = asyncio.ensure_future(_until_done(run, stubs, chosen, lambda stub: stub.ReserveFunds(wanted, timeout=10)))
    if chosen.random() < 0.1:
        await asyncio.wait([call], timeout=chosen.random() * 0.3)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        run.outcomes["cancelled"] += 1
        # Whether it holds something nobody knows: the same request finds out, and then gives it back or goes on.
        call = asyncio.ensure_future(
            _until_done(run, stubs, chosen, lambda stub: stub.ReserveFunds(wanted, timeout=10))
        )
    answer: pb.ReserveFundsResponse = await call
    run.outcomes[pb.ReserveDecision.Name(answer.decision)] += 1
    return answer


async def _settle(run: Run, stubs: list[Any], done: list[receipt_pb2.Receipt], chosen: random.Random) -> None:
    if not done:
        return
    request = pb.SettleReceiptsRequest(receipts=done)
    repeats = 2 if chosen.random() < 0.1 else 1
    for _ in range(repeats):
        call = asyncio.ensure_future(
            _until_done(run, stubs, chosen, lambda stub: stub.SettleReceipts(request, timeout=10))
        )
        if chosen.random() < 0.1:
            await asyncio.wait([call], timeout=chosen.random() * 0.3)
            if call.cancel():
                await asyncio.gather(call, return_exceptions=True)
                run.outcomes["cancelled"] += 1
                call = asyncio.ensure_future(
                    _until_done(run, stubs, chosen, lambda stub: stub.SettleReceipts(request, timeout=10))
                )
        answer = await call
        for made, each in zip(done, answer.results, strict=True):
            if each.error_reason:
                raise RuntimeError(f"a receipt was refused: {each.error_reason} {each.error_message}")
            run.acknowledged[made.facts.request_id] = made.actual_nano_usd
    done.clear()


async def _until_done(run: Run, stubs: list[Any], chosen: random.Random, call: Callable[[Any], Awaitable[T]]) -> T:
    while True:
        try:
            return await call(chosen.choice(stubs))
        except TenthError as error:
            run.outcomes[f"retried: {error.code.name}"] += 1
            await asyncio.sleep(0.05 + chosen.random() * 0.2)


async def _kill(run: Run, ledgers: list[Replica]) -> None:
    chosen = random.Random(run.seed)  # noqa: S311  (a load, no secret)
    while True:
        await asyncio.sleep(1 + chosen.random() * 3)
        victim = chosen.choice(ledgers)
        victim.kill()
        run.outcomes["kills"] += 1
        victim.start()
        await victim.ready()


async def _watch(run: Run, url: str) -> None:
    """Read the books beside the load: at no moment may they stand above the limit."""
    engine = write_engine(url)
    spent = select(func.coalesce(func.sum(receipts.c.actual), 0)).scalar_subquery()
    held = select(func.coalesce(func.sum(reservations.c.amount), 0)).where(reservations.c.state == OPEN)
    try:
        while True:
            async with engine.connect() as connection:
                total = (await connection.execute(select(spent + held.scalar_subquery()))).scalar_one()
            run.over = max(run.over, int(total) - run.limit)
            run.outcomes["looks"] += 1
            progress = f"\r{run.waiting} requests wait "
            if sys.stderr.isatty():
                sys.stderr.write(progress)
            await asyncio.sleep(0.25)
    finally:
        await engine.dispose()


async def _open_count(url: str) -> int:
    engine = write_engine(url)
    try:
        async with engine.connect() as connection:
            query = select(func.count()).select_from(reservations).where(reservations.c.state == OPEN)
            return int((await connection.execute(query)).scalar_one())
    finally:
        await engine.dispose()


async def _look(result: Result, run: Run, url: str, count: int) -> None:
    engine = write_engine(url)
    try:
        async with engine.connect() as connection:
            shown = (await connection.execute(select(receipts))).all()
            events = (await connection.execute(select(receipt_events.c.request_id))).scalars()
            times = Counter(events)
            window: Any = (await connection.exec_driver_sql(_WINDOWS)).one()
    finally:
        await engine.dispose()
    actual = {row.request_id: row.actual for row in shown}
    spent = sum(actual.values())
    lost = sum(actual.get(request) != cost for request, cost in run.acknowledged.items())
    double = sum(number > 1 for number in times.values()) + (int(window[0]) != spent)
    broken = sum(
        row.baseline - sum(getattr(row, name) for name in SAVINGS) + row.overhead != row.actual for row in shown
    )
    over = max(run.over, spent + int(window[1]) - run.limit, 0)
    result.add("overspend/ours/count", over, "nano-USD", count)
    result.add("leaked/ours/count", await _open_count(url) + (int(window[1]) != 0), "reservations", count)
    result.add("lost/ours/count", lost, "receipts", len(run.acknowledged))
    result.add("double_counted/ours/count", double, "receipts", len(shown))
    result.add("identity_violations/ours/count", broken, "receipts", len(shown))
    result.add("overspend/ours/spent_share", spent / run.limit, "ratio", len(shown))
    result.assumptions["overspend"] = {
        "clients": CLIENTS,
        "replicas": REPLICAS,
        "limit_nano_usd": run.limit,
        **dict(sorted(run.outcomes.items())),
    }
