"""The ledger as a process: seeds at start, keeps what it acknowledged through kill -9, drains on SIGTERM."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from google.protobuf.duration_pb2 import Duration
from tenth.ledger.v1 import ledger_pb2 as pb
from tenth.ledger.v1 import ledger_pb2_grpc as rpc
from tenth.type.v1 import receipt_pb2, usage_pb2

from mesh.auth import Identity, Signer, set_identity
from mesh.channel import connect
from mesh.errors import TenthError
from mesh.settings import MeshSettings
from mesh.testing import memory_telemetry
from mesh.wire import build_receipt, dated_prices

ROOT = Path(__file__).parents[3]
KEY = b"a key of at least sixteen bytes"
CALLERS = {
    "callers": [],
    "services": {"orchestrator": ["*"]},
    "tenants": [
        {
            "tenant_id": "demo",
            "baseline_model": "claude-opus-4-7",
            "budgets": [{"name": "monthly", "window": "month", "time_zone": "Asia/Seoul", "limit_usd": "1000"}],
        }
    ],
}


def environment(url: str, tmp_path: Path, port: int) -> dict[str, str]:
    """Settings of a ledger process."""
    (tmp_path / "callers.yaml").write_text(yaml.safe_dump(CALLERS))
    (tmp_path / "key").write_bytes(KEY)
    return {
        **os.environ,
        "TENTH_LISTEN": f"127.0.0.1:{port}",
        "TENTH_DATA_DIR": str(tmp_path),
        "TENTH_CALLERS_FILE": str(tmp_path / "callers.yaml"),
        "TENTH_IDENTITY_KEY_FILE": str(tmp_path / "key"),
        "TENTH_UNREADY_SECONDS": "0",
        "TENTH_LEDGER_DATABASE_URL": url,
        "TENTH_LEDGER_CATALOG_FILE": str(ROOT / "deploy" / "catalog.yaml"),
        "TENTH_LEDGER_SWEEP_INTERVAL_SECONDS": "0.2",
    }


def free_port() -> int:
    """A port that was free just now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@asynccontextmanager
async def ledger(url: str, tmp_path: Path, port: int) -> AsyncIterator[tuple[Any, Any, subprocess.Popen[bytes]]]:
    """A running ledger process, with stubs of both services."""
    process = subprocess.Popen(  # noqa: ASYNC220  # It only forks; the test waits for it in other ways.
        [sys.executable, "-m", "services.ledger"], cwd=ROOT, env=environment(url, tmp_path, port)
    )
    set_identity(Identity(tenant_id="demo", caller="test", may_see_all_tenants=True))
    channel = connect(f"127.0.0.1:{port}", MeshSettings(), memory_telemetry()[0], Signer(KEY, "orchestrator"))
    try:
        reads = rpc.LedgerReadServiceStub(channel)
        for _ in range(300):
            try:
                await reads.GetBooksStatus(pb.GetBooksStatusRequest(), timeout=1)
                break
            except TenthError:
                assert process.poll() is None
                await asyncio.sleep(0.1)
        yield rpc.LedgerServiceStub(channel), reads, process
    finally:
        await channel.close()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(20)


async def test_what_was_acknowledged_survives_kill_9(database_url: str, tmp_path: Path) -> None:
    port = free_port()
    async with ledger(database_url, tmp_path, port) as (writes, _, process):
        snapshot = await writes.GetAdmissionSnapshot(pb.GetAdmissionSnapshotRequest(), timeout=10)
        assert [each.tenant_id for each in snapshot.tenants] == ["demo"]
        assert snapshot.tenants[0].has_hard_budget
        receipts = [receipt(f"r{index}", snapshot) for index in range(50)]
        made = await writes.ReserveFunds(
            pb.ReserveFundsRequest(
                request_id="held",
                model="gpt-4o",
                input_token_count=10,
                max_output_token_count=10,
                price_book_version=snapshot.price_book_version,
                ttl=Duration(seconds=2),
            ),
            timeout=10,
        )
        assert made.decision == pb.RESERVE_DECISION_OK
        for at in range(0, 50, 10):
            await writes.SettleReceipts(pb.SettleReceiptsRequest(receipts=receipts[at : at + 10]), timeout=10)
        process.kill()
        process.wait(10)
    async with ledger(database_url, tmp_path, port) as (writes, reads, process):
        for each in receipts:
            found = await reads.GetReceipt(pb.GetReceiptRequest(request_id=each.facts.request_id), timeout=10)
            assert found.receipt.actual_nano_usd == each.actual_nano_usd
        again = await writes.SettleReceipts(pb.SettleReceiptsRequest(receipts=receipts), timeout=10)
        assert not any(result.error_reason for result in again.results)
        for _ in range(100):
            status = await reads.GetBooksStatus(pb.GetBooksStatusRequest(), timeout=10)
            if not status.open_reservation_count:
                break
            await asyncio.sleep(0.1)
        assert (status.receipt_count, status.open_reservation_count) == (50, 0)
        budget = (await reads.ListBudgets(pb.ListBudgetsRequest(), timeout=10)).budgets[0]
        assert budget.spent_nano_usd == sum(each.actual_nano_usd for each in receipts)
        assert budget.reserved_nano_usd == 0
        same = await writes.GetAdmissionSnapshot(pb.GetAdmissionSnapshotRequest(version=snapshot.version), timeout=10)
        assert same.unchanged, "seeding again changed something"
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 20) == 0


def receipt(request_id: str, snapshot: pb.GetAdmissionSnapshotResponse) -> receipt_pb2.Receipt:
    """A receipt as the orchestrator makes it from the snapshot's prices."""
    facts = receipt_pb2.ReceiptFacts(
        request_id=request_id,
        tenant_id="demo",
        price_book_version=snapshot.price_book_version,
        baseline_model="claude-opus-4-7",
        baseline_input_token_count=1234,
        model="gpt-4o-mini",
        original_input_token_count=1100,
        usage=usage_pb2.Usage(input_token_count=900, cached_input_token_count=256, output_token_count=77),
        attempt=1,
    )
    facts.overheads.add(kind="compute", compute_micros=1500)
    facts.create_time.GetCurrentTime()
    book = dated_prices(snapshot.prices).at(facts.create_time.ToNanoseconds())
    return build_receipt(facts, book, receipt_pb2.RECEIPT_STATE_PENDING)


def test_a_wrong_setting_ends_the_start_by_its_name(tmp_path: Path) -> None:
    environ = {**environment("", tmp_path, 0), "TENTH_LEDGER_SWEEP_INTERVAL_SECONDS": "never"}
    done = subprocess.run([sys.executable, "-m", "services.ledger"], cwd=ROOT, env=environ, capture_output=True)
    assert done.returncode == 2
    assert b"TENTH_LEDGER_SWEEP_INTERVAL_SECONDS" in done.stderr


def test_a_wrong_seed_ends_the_start_by_file_and_key(tmp_path: Path) -> None:
    environ = environment("", tmp_path, 0)
    (tmp_path / "catalog.yaml").write_text("prices:\n- {model: x, colour: red}\n")
    environ["TENTH_LEDGER_CATALOG_FILE"] = str(tmp_path / "catalog.yaml")
    done = subprocess.run([sys.executable, "-m", "services.ledger"], cwd=ROOT, env=environ, capture_output=True)
    assert done.returncode == 1
    assert b"catalog.yaml:2: prices[0].colour: unknown key" in done.stderr
