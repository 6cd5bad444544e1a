"""How long a report takes over a million receipts and more.

The books are filled in bulk, in the real tables: each receipt is one of a few thousand real ones (models, tiers,
users, projects, cache hits and failures as they come), with its own id and time inside of the stored bytes too. The
reports are asked of the real service.
"""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp
from tenth.ledger.v1 import ledger_pb2 as pb
from tenth.ledger.v1 import ledger_pb2_grpc as rpc
from tenth.type.v1 import receipt_pb2, usage_pb2

from bench.ledger_process import act, replicas
from bench.result import Result, median
from mesh.receipt import Price
from mesh.wire import build_receipt
from services.ledger.migrate import migrate
from services.ledger.receipts import flatten

DAYS = 90
GROUPS: Sequence[tuple[str, ...]] = (
    (),
    ("day",),
    ("model",),
    ("tenant", "model"),
    ("user",),
    ("project",),
    ("cache", "tier"),
    ("day", "model"),
    ("hour",),
)
_REPEATS = 5
_TEMPLATES = 4_000
_CHUNK = 20_000
_SECOND = 10**9
_START = int(datetime(2026, 6, 1, tzinfo=UTC).timestamp())
_ID = "r%011d"
_BOOK = {
    "claude-opus-4-7": Price("claude-opus-4-7", 5 * 10**9, 25 * 10**9, cached_input=5 * 10**8),
    "claude-haiku-4-5": Price("claude-haiku-4-5", 10**9, 5 * 10**9, cached_input=10**8),
    "gpt-4o": Price("gpt-4o", 25 * 10**8, 10**10, cached_input=125 * 10**7),
    "gpt-4o-mini": Price("gpt-4o-mini", 15 * 10**7, 6 * 10**8, cached_input=75 * 10**6),
}


@dataclass(frozen=True, slots=True)
class _Template:
    """A receipt's columns and bytes, the bytes cut where its id and time stand."""

    columns: dict[str, Any]
    blob: bytes
    digest: str


def measure(result: Result, folder: Path, name: str, count: int, seed: int) -> None:
    """Fill a SQLite file and ask it."""
    path = folder / f"{name}.db"
    url = f"sqlite+aiosqlite:///{path}"
    asyncio.run(migrate(url))
    started = time.perf_counter()
    _fill(path, count, seed)
    result.add(f"{name}/ours/fill_s", time.perf_counter() - started, "s", count)
    if find_spec("services.ledger.rollups") is not None:
        started = time.perf_counter()
        environment = {**os.environ, "TENTH_LEDGER_DATABASE_URL": url, "TENTH_DATA_DIR": str(folder)}
        subprocess.run([sys.executable, "-m", "services.ledger.rollups", "rebuild"], env=environment, check=True)
        result.add(f"{name}/ours/rollup_rebuild_s", time.perf_counter() - started, "s", count)
    size = sum(each.stat().st_size for each in folder.glob(f"{name}.db*"))
    result.add(f"{name}/ours/bytes_per_event", size / count, "bytes", count)
    try:
        asyncio.run(_ask(result, folder, url, name, count))
    finally:
        for each in folder.glob(f"{name}.db*"):
            each.unlink()


async def _ask(result: Result, folder: Path, url: str, name: str, count: int) -> None:
    with replicas(1, url, folder / name) as (replica,):
        await replica.ready()
        act()
        async with replica.channel() as channel:
            reads = rpc.LedgerReadServiceStub(channel)
            every, worst = [], (0.0, "")
            for groups in GROUPS:
                request = pb.GetSpendReportRequest(group_by=groups)
                measured = []
                for _ in range(_REPEATS):
                    started = time.perf_counter()
                    answer = await reads.GetSpendReport(request, timeout=300)
                    measured.append((time.perf_counter() - started) * 1000)
                total = sum(row.request_count for row in answer.rows)
                if total != count:
                    raise RuntimeError(f"a report by {groups} counts {total} of {count} receipts")
                every += measured
                worst = max(worst, (median(measured), "_".join(groups) or "total"))
                result.add(f"{name}/ours/p50_ms_by_{'_'.join(groups) or 'nothing'}", median(measured), "ms", _REPEATS)
            result.add(f"{name}/ours/p50_ms", median(every), "ms", len(every))
            result.add(f"{name}/ours/worst_p50_ms", worst[0], "ms", _REPEATS)
            result.assumptions[f"{name}_worst"] = worst[1]


def _fill(path: Path, count: int, seed: int) -> None:
    templates = list(_templates(random.Random(seed)))  # noqa: S311  (traffic, no secret)
    names = [*templates[0].columns, "origin", "digest", "event_id"]
    marks = ", ".join("?" * len(names))
    # The file is thrown away with the run, so a crash may lose it.
    with sqlite3.connect(path) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=OFF")
        database.execute("PRAGMA cache_size=-200000")
        chosen = random.Random(seed + 1)  # noqa: S311
        for at in range(0, count, _CHUNK):
            events, rows = [], []
            for number in range(at, min(at + _CHUNK, count)):
                template = chosen.choice(templates)
                request_id, seconds = _ID % number, _START + number * DAYS * 86_400 // count
                blob = template.blob.replace(_PLACE, request_id.encode()).replace(_MARK, _varint(seconds))
                tenant_id, at_ns = template.columns["tenant_id"], seconds * _SECOND
                events.append((number + 1, tenant_id, request_id, "settled", at_ns, template.columns["actual"], blob))
                values = {**template.columns, "request_id": request_id, "create_ns": at_ns}
                rows.append((*values.values(), "given", template.digest, number + 1))
            database.executemany(
                "INSERT INTO receipt_events (id, tenant_id, request_id, kind, event_ns, actual_delta, receipt) "
                "VALUES (?, ?, ?, ?, ?, ?, ?)",
                events,
            )
            database.executemany(f"INSERT INTO receipts ({', '.join(names)}) VALUES ({marks})", rows)  # noqa: S608  (column names)
            database.commit()
            if sys.stderr.isatty():
                sys.stderr.write(f"\r{at + len(rows)} of {count} receipts")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    database.close()


def _templates(chosen: random.Random) -> Iterator[_Template]:
    models = [name for name in _BOOK if name != "claude-opus-4-7"]
    for _ in range(_TEMPLATES):
        tenant = f"tenant{min(int(chosen.expovariate(0.5)), 9)}"
        total = int(chosen.lognormvariate(6.5, 0.8)) + 20
        facts = receipt_pb2.ReceiptFacts(
            request_id=_PLACE.decode(),
            tenant_id=tenant,
            user_id=f"user{min(int(chosen.expovariate(0.05)), 99)}",
            project_id=f"project{chosen.randrange(8)}",
            price_book_version=1,
            baseline_model="claude-opus-4-7",
            baseline_input_token_count=total,
            original_input_token_count=total,
            tier=chosen.randrange(1, 4),  # type: ignore[arg-type]  # A tier by number.
            trace_id=f"{chosen.getrandbits(128):032x}",
            create_time=Timestamp(seconds=_MARK_SECONDS),
        )
        kept = int(total * chosen.uniform(0.4, 1))
        facts.usage.CopyFrom(
            usage_pb2.Usage(
                input_token_count=kept,
                cached_input_token_count=chosen.choice([0, 0, kept // 2]),
                output_token_count=int(chosen.lognormvariate(5, 0.7)) + 1,
            )
        )
        fate = chosen.random()
        if fate < 0.3:
            facts.cache_hit, facts.cache_hit_kind = True, chosen.choice(["exact", "semantic"])
        else:
            facts.model, facts.attempt = chosen.choices(models, [3, 1, 6])[0], 1
            facts.failed = fate > 0.98
        receipt = build_receipt(facts, _BOOK, receipt_pb2.RECEIPT_STATE_FINAL)
        made = flatten(receipt, _MARK_SECONDS * _SECOND)
        if made.blob.count(_PLACE) == made.blob.count(_MARK) == 1:  # Not by chance a token count as well.
            yield _Template(made.columns, made.blob, made.digest)


def _varint(number: int) -> bytes:
    """Five bytes for every second from 1978 to 3058."""
    low, rest = [], number
    while rest >= 0x80:
        low.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes((*low, rest))


_PLACE = (_ID % 0).encode()
_MARK_SECONDS = 1_799_999_999
_MARK = _varint(_MARK_SECONDS)
