"""The inference service as a process under a supervisor of the bench's own, and a ledger that keeps what it is told."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tenth.inference.v1 import inference_pb2_grpc
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from mesh.auth import Authenticator, Identity, Signer, set_identity
from mesh.channel import connect
from mesh.errors import TenthError
from mesh.server import MeshServer
from mesh.settings import MeshSettings
from mesh.telemetry import start_telemetry

MODEL, FOLDER = "m", "smollm2-135m-instruct"
CONTEXT_TOKENS, MOST_OUTPUT = 2048, 512
_READY_SECONDS = 600.0
_CHILD = """
# The service as it is, but for a step of the engine that raises once when a file is there.
import sys
from pathlib import Path
from mesh.process import run
from services.inference import __main__, vllm_thread
fault, real = Path(sys.argv[1]), vllm_thread.load
def load(model, options):
    loaded = real(model, options)
    step = loaded.engine.step
    def faulty():
        if fault.exists():
            fault.unlink()
            raise ValueError("injected by the soak")
        return step()
    loaded.engine.step = faulty
    return loaded
vllm_thread.load = load
run(__main__.main())
"""

Key = tuple[str, int]


class Ledger:
    """Keeps attempt events: what was charged, by request and attempt."""

    def __init__(self) -> None:
        self.ends: dict[Key, list[ledger_pb2.AttemptEvent]] = defaultdict(list)
        self.started: set[Key] = set()

    async def RecordAttempts(self, request: ledger_pb2.RecordAttemptsRequest, context: Any) -> Any:
        """Idempotent by request, attempt and kind, as the real one is."""
        for event in request.events:
            key = (event.request_id, event.attempt)
            if event.kind == ledger_pb2.ATTEMPT_KIND_STARTED:
                self.started.add(key)
            elif all(event.kind != known.kind for known in self.ends[key]):
                self.ends[key].append(event)
        return ledger_pb2.RecordAttemptsResponse()

    async def RecordUtilization(self, request: ledger_pb2.RecordUtilizationRequest, context: Any) -> Any:
        """Not of interest here."""
        return ledger_pb2.RecordUtilizationResponse()

    def __getattr__(self, name: str) -> object:
        return None  # The methods that inference does not call.


@dataclass
class Service:
    """The process, kept alive: started again whenever it ends, at the same address and on the same data."""

    folder: Path
    models: Path
    address: str
    ledger_address: str
    key: bytes
    settings: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    exits: list[int] = field(default_factory=list)
    wanted: bool = True

    @property
    def fault(self) -> Path:
        """A file that has the engine's next step fail."""
        return self.folder / "fault"

    def start(self) -> None:
        """Start the process."""
        environment = {
            **os.environ,
            "TENTH_LISTEN": self.address,
            "TENTH_DATA_DIR": str(self.folder / "data"),
            "TENTH_IDENTITY_KEY_FILE": str(self.folder / "key"),
            "TENTH_CALLERS_FILE": str(self.folder / "callers.yaml"),
            "TENTH_LOG_LEVEL": "WARNING",
            "TENTH_INFERENCE_CATALOG_FILE": str(self.folder / "catalog.yaml"),
            "TENTH_INFERENCE_MODELS_DIR": str(self.models),
            "TENTH_INFERENCE_LEDGER_ADDRESS": self.ledger_address,
            **self.settings,
        }
        with (self.folder / "log").open("ab") as log:
            command = [sys.executable, "-c", _CHILD, str(self.fault)]
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)  # noqa: S603  (ours)

    async def supervise(self) -> None:
        """Start it again whenever it ends, until it is not wanted any more."""
        while self.wanted:
            assert self.process is not None
            code = self.process.poll()
            if code is not None:
                self.exits.append(code)
                self.start()
            await asyncio.sleep(0.1)

    def signal(self, number: int) -> None:
        """Send a signal to the process."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)

    def rss_mb(self) -> float:
        """Resident memory, MB; 0 while it does not run."""
        try:
            assert self.process is not None
            return float(psutil.Process(self.process.pid).memory_info().rss) / 1e6
        except psutil.Error:
            return 0.0

    async def stop(self) -> None:
        """SIGTERM, and wait: what it has recorded is delivered before it ends."""
        self.wanted = False
        self.signal(signal.SIGTERM)
        if self.process is not None:
            try:
                await asyncio.to_thread(self.process.wait, 60)
            except subprocess.TimeoutExpired:
                self.process.kill()


@dataclass(frozen=True, slots=True)
class Soaked:
    """What the load speaks to."""

    service: Service
    ledger: Ledger
    stub: inference_pb2_grpc.InferenceServiceAsyncStub
    health: health_pb2_grpc.HealthAsyncStub

    async def ready(self) -> bool:
        """True while the service says so."""
        try:
            reply = await self.health.Check(health_pb2.HealthCheckRequest(), timeout=2)
        except TenthError:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    async def until_ready(self) -> float:
        """Seconds that it took. Raises TimeoutError."""
        began = time.monotonic()
        while not await self.ready():
            if time.monotonic() - began > _READY_SECONDS:
                raise TimeoutError("the service is not ready")
            await asyncio.sleep(0.1)
        return time.monotonic() - began


@asynccontextmanager
async def soaked(folder: Path, models: Path, settings: dict[str, str]) -> AsyncIterator[Soaked]:
    """The service and its ledger, ready; both stopped at the end."""
    key = secrets.token_hex(16).encode()
    (folder / "key").write_bytes(key)
    everything = {"callers": [], "services": {"bench": ["*"], "inference": ["*"]}}
    (folder / "callers.yaml").write_text(yaml.safe_dump(everything))
    model = {
        "provider": "local",
        "provider_model": FOLDER,
        "context_window_tokens": CONTEXT_TOKENS,
        "max_output_tokens": MOST_OUTPUT,
        "abilities": {"json_schema": True},
    }
    catalog = {"providers": {"local": {"backend": "vllm"}}, "models": {MODEL: model}}
    (folder / "catalog.yaml").write_text(yaml.safe_dump(catalog))
    own = MeshSettings(unready_seconds=0, drain_seconds=0.5)
    telemetry = start_telemetry("bench", own)
    ledger = Ledger()
    server = MeshServer(own, telemetry, Authenticator(folder / "callers.yaml", key), {})
    register = ledger_pb2_grpc.add_LedgerServiceServicer_to_server
    server.add(register, ledger, "tenth.ledger.v1.LedgerService")
    port = await server.start()
    address = f"127.0.0.1:{_free_port()}"
    service = Service(folder, models, address, f"127.0.0.1:{port}", key, settings)
    service.start()
    keeper = asyncio.create_task(service.supervise())
    set_identity(Identity(tenant_id="bench", caller="bench"))
    try:
        async with connect(address, own, telemetry, Signer(key, "bench")) as channel:
            stub = inference_pb2_grpc.InferenceServiceStub(channel)
            result = Soaked(service, ledger, stub, health_pb2_grpc.HealthStub(channel))
            await result.until_ready()
            yield result
    finally:
        keeper.cancel()
        await service.stop()
        await server.drain()
        telemetry.close()


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
