"""Ledger processes for the benchmark: the real service on loopback, on a SQLite file or a Postgres of its own."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import asyncpg  # type: ignore[import-untyped]  # It has no stubs.
import psutil
import yaml
from google.protobuf.timestamp_pb2 import Timestamp
from tenth.ledger.v1 import ledger_pb2 as pb
from tenth.ledger.v1 import ledger_pb2_grpc as rpc
from tenth.type.v1 import receipt_pb2, usage_pb2

from mesh.auth import Identity, Signer, set_identity
from mesh.channel import MeshChannel, connect
from mesh.errors import TenthError
from mesh.settings import MeshSettings
from mesh.telemetry import start_telemetry
from mesh.wire import build_receipt, dated_prices

TENANT, MODEL, BASELINE = "bench", "gpt-4o-mini", "claude-opus-4-7"
_START_SECONDS = 60.0


@dataclass
class Replica:
    """One ledger process, which can be killed and started again at the same address."""

    url: str
    folder: Path
    environment: dict[str, str] = field(default_factory=dict)
    key: bytes = field(default_factory=lambda: secrets.token_hex(16).encode())
    port: int = 0
    process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it; it may take a while to answer."""
        self.folder.mkdir(parents=True, exist_ok=True)
        tenant = {"tenant_id": TENANT, "baseline_model": BASELINE, "max_requests_per_minute": 10_000_000}
        callers = {"callers": [], "services": {"orchestrator": ["*"]}, "tenants": [tenant]}
        (self.folder / "callers.yaml").write_text(yaml.safe_dump(callers))
        (self.folder / "key").write_bytes(self.key)
        self.port = self.port or _free_port()
        environment = {
            **os.environ,
            "TENTH_LISTEN": self.address,
            "TENTH_DATA_DIR": str(self.folder),
            "TENTH_CALLERS_FILE": str(self.folder / "callers.yaml"),
            "TENTH_IDENTITY_KEY_FILE": str(self.folder / "key"),
            "TENTH_UNREADY_SECONDS": "0",
            "TENTH_LOG_LEVEL": "WARNING",
            "TENTH_LEDGER_DATABASE_URL": self.url,
            **self.environment,
        }
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "services.ledger"], env=environment, stdout=log, stderr=log
            )

    def kill(self) -> None:
        """As ``kill -9`` does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def stop(self) -> None:
        """Let it finish."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()

    def cpu_seconds(self) -> float:
        """User and system time that the running process has taken."""
        if self.process is None:
            return 0.0
        times = psutil.Process(self.process.pid).cpu_times()
        return float(times.user + times.system)

    def channel(self) -> MeshChannel:
        """A new connection, as the orchestrator makes it."""
        settings = MeshSettings(log_level="ERROR")
        return connect(self.address, settings, start_telemetry("bench", settings), Signer(self.key, "orchestrator"))

    async def ready(self) -> None:
        """Wait until it answers. Raises RuntimeError with its log when it ends instead."""
        act()
        async with self.channel() as channel:
            reads = rpc.LedgerReadServiceStub(channel)
            problem = ""
            for _ in range(int(_START_SECONDS / 0.1)):
                try:
                    await reads.ListBudgets(pb.ListBudgetsRequest(), timeout=5)
                    return
                except TenthError as error:
                    problem = str(error)
                    if self.process is None or self.process.poll() is not None:
                        break
                    await asyncio.sleep(0.1)
        log = (self.folder / "log").read_text("utf-8", "replace")
        raise RuntimeError(f"the ledger did not start: {problem} {log}")


@contextmanager
def replicas(count: int, url: str, folder: Path, **environment: str) -> Iterator[list[Replica]]:
    """Some replicas on one database with one identity key, started one after the other."""
    key = secrets.token_hex(16).encode()
    made = [Replica(url, folder / f"replica{number}", environment, key) for number in range(count)]
    try:
        for each in made:
            each.start()
        yield made
    finally:
        for each in made:
            each.stop()


def act() -> None:
    """Calls of this context are the benchmark's tenant's."""
    set_identity(Identity(tenant_id=TENANT, caller="bench", may_see_all_tenants=True))


async def new_database(server: Path) -> str:
    """The URL of a new database on a Postgres server, by its socket's directory."""
    name = f"bench_{uuid.uuid4().hex}"
    connection = await asyncpg.connect(host=str(server), user="tenth", database="postgres")
    try:
        await connection.execute(f"CREATE DATABASE {name}")
    finally:
        await connection.close()
    return f"postgresql+asyncpg://tenth@/{name}?host={server}"


def receipt(
    request_id: str, snapshot: pb.GetAdmissionSnapshotResponse, *, input_tokens: int = 900, output_tokens: int = 77,
    reservation_id: str = "",
) -> receipt_pb2.Receipt:  # fmt: skip
    """A receipt as the orchestrator makes it from the snapshot's prices."""
    now = Timestamp()
    now.GetCurrentTime()
    facts = receipt_pb2.ReceiptFacts(
        request_id=request_id,
        tenant_id=TENANT,
        price_book_version=snapshot.price_book_version,
        baseline_model=BASELINE,
        baseline_input_token_count=input_tokens + 300,
        model=MODEL,
        original_input_token_count=input_tokens + 200,
        usage=usage_pb2.Usage(input_token_count=input_tokens, output_token_count=output_tokens),
        attempt=1,
        create_time=now,
        reservation_id=reservation_id,
    )
    facts.overheads.add(kind="compute", compute_micros=1500)
    book = dated_prices(snapshot.prices).at(now.ToNanoseconds())
    return build_receipt(facts, book, receipt_pb2.RECEIPT_STATE_PENDING)


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
