"""The inference service as a process for its bench, and a caller of its streams over a real channel."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml
from tenth.inference.v1 import inference_pb2 as pb
from tenth.inference.v1 import inference_pb2_grpc as rpc
from tenth.type.v1 import chat_pb2

from bench.inference_engine import EngineError, log_end
from formats.openai import text_message
from mesh.auth import Identity, Signer, set_identity
from mesh.channel import MeshChannel, connect
from mesh.settings import MeshSettings
from mesh.telemetry import start_telemetry
from tenth_client.processes import healthy

START_SECONDS = 240.0
_STOP_SECONDS = 30.0
_ANSWER_SECONDS = 300.0
_CALLER = "bench"


@dataclass(slots=True)
class Streamed:
    """One answer that came in pieces."""

    first_seconds: float = 0.0
    """From the call to the first piece with text."""
    chunks: int = 0
    tokens: int = 0


class Service:
    """``python -m services.inference`` on a free port, with its own defaults but for the models' folder."""

    def __init__(self, folder: Path, models_dir: Path, **settings: str) -> None:
        """``settings`` are environment variables of the service."""
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "log"
        self._key = secrets.token_hex(16).encode()
        (folder / "key").write_bytes(self._key)
        (folder / "callers.yaml").write_text(yaml.safe_dump({"callers": [], "services": {_CALLER: ["*"]}}))
        self._port = free_port()
        environment = {
            **os.environ,
            "TENTH_LISTEN": self.address,
            "TENTH_DATA_DIR": str(folder),
            "TENTH_CALLERS_FILE": str(folder / "callers.yaml"),
            "TENTH_IDENTITY_KEY_FILE": str(folder / "key"),
            "TENTH_UNREADY_SECONDS": "0",
            "TENTH_LOG_LEVEL": "WARNING",
            "TENTH_INFERENCE_MODELS_DIR": str(models_dir),
            **settings,
        }
        environment.pop("OMP_NUM_THREADS", None)  # The service's setting says how many threads its engine has.
        self._started = time.perf_counter()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "services.inference"], env=environment, stdout=log, stderr=log
            )

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    @property
    def age_seconds(self) -> float:
        """Time since it was started."""
        return time.perf_counter() - self._started

    async def ready(self) -> None:
        """Wait until it says SERVING. Raises EngineError with the end of its log."""
        while not await healthy(self.address):
            if self._process.poll() is not None or self.age_seconds > START_SECONDS:
                raise EngineError(f"the service did not start: {log_end(self._log)}")
            await asyncio.sleep(0.05)

    def cpu_seconds(self) -> float:
        """User and system time of the process."""
        return cpu_seconds(self._process.pid)

    def thread_seconds(self) -> Mapping[str, float]:
        """The same by thread, by "ID NAME"; empty where there is no /proc."""
        return thread_seconds(self._process.pid)

    def channel(self) -> MeshChannel:
        """A connection as a service of the mesh makes it."""
        set_identity(Identity(tenant_id="bench", caller=_CALLER))
        settings = MeshSettings(log_level="ERROR")
        return connect(self.address, settings, start_telemetry("bench", settings), Signer(self._key, _CALLER))

    def stop(self) -> None:
        """Let it finish."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


@asynccontextmanager
async def serving(folder: Path, models_dir: Path, **settings: str) -> AsyncIterator[Service]:
    """The service for a while, ready."""
    service = Service(folder, models_dir, **settings)
    try:
        await service.ready()
        yield service
    finally:
        await asyncio.to_thread(service.stop)


class Caller:
    """Asks the service for streams of one model."""

    def __init__(self, channel: MeshChannel, model: str) -> None:
        self._stub = rpc.InferenceServiceStub(channel)
        self._model = model

    def request(self, text: str, output_tokens: int) -> pb.StreamGenerateTextRequest:
        """A greedy question."""
        generation = pb.GenerateTextRequest(
            request_id=str(uuid.uuid4()),
            attempt=1,
            model=self._model,
            messages=[text_message(chat_pb2.ROLE_USER, text)],
            purpose=pb.PURPOSE_ANSWER,
            estimated_input_token_count=100,
        )
        generation.sampling.temperature = 0
        generation.sampling.max_output_tokens = output_tokens
        return pb.StreamGenerateTextRequest(generation=generation)

    def pieces(self, text: str, output_tokens: int) -> AsyncGenerator[pb.StreamGenerateTextResponse]:
        """The stream's events; closing it cancels the call."""
        # A mesh channel's stream is an async generator, which the generated stub's types do not know.
        call: Any = self._stub.StreamGenerateText(self.request(text, output_tokens), timeout=_ANSWER_SECONDS)
        events: AsyncGenerator[pb.StreamGenerateTextResponse] = call
        return events

    async def ask(self, text: str, output_tokens: int) -> Streamed:
        """The whole stream."""
        made, started = Streamed(), time.perf_counter()
        async with aclosing(self.pieces(text, output_tokens)) as events:
            async for event in events:
                if event.delta.text:
                    made.first_seconds = made.first_seconds or time.perf_counter() - started
                    made.chunks += 1
                if event.HasField("finished"):
                    made.tokens = event.finished.usage.output_token_count
        return made

    async def running(self) -> int:
        """Generations that the service works on now, of this model."""
        listed = await self._stub.ListServedModels(pb.ListServedModelsRequest(), timeout=10)
        return sum(model.running_count for model in listed.models if model.model == self._model)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and of those it has started."""
    process = psutil.Process(pid)
    times = [each.cpu_times() for each in (process, *process.children(recursive=True))]
    return float(sum(each.user + each.system for each in times))


def thread_seconds(pid: int) -> dict[str, float]:
    """CPU seconds of each thread of a process, by "ID NAME", to the nanosecond; empty where there is no /proc."""
    found = {}
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        try:
            name = (thread / "comm").read_text("utf-8").strip()
            found[f"{thread.name} {name}"] = int((thread / "schedstat").read_text("utf-8").split()[0]) / 1e9
        except (OSError, ValueError, IndexError):
            continue  # It ended meanwhile, or the kernel keeps no such count.
    return found


def free_port() -> int:
    """A port of loopback that nobody has now."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])
