"""One supervised process: its log, its health, its restarts. Knows nothing of services."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

HEALTH_METHOD = "/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"
"""HealthCheckResponse{status: SERVING} on the wire: one enum field, not worth a dependency."""
_POLL_SECONDS = 0.05
_FIRST_BACKOFF_SECONDS = 0.2
_MAX_BACKOFF_SECONDS = 5.0
_STEADY_SECONDS = 30.0
_LINE_LIMIT_BYTES = 1024 * 1024


class StartError(RuntimeError):
    """A process could not be started, or did not become healthy in time; the text ends with its last log lines."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """What to run. ``address`` is its host:port; ``health`` "grpc", "tcp" (the port is open) or "none"."""

    name: str
    command: Sequence[str]
    env: Mapping[str, str]
    address: str = ""
    health: str = "grpc"
    ready_seconds: float = 60.0
    nice: int = 0
    """How far the process steps back for the others, 0..19."""
    cwd: Path | None = None


@dataclass(slots=True)
class State:
    """What became of a process so far."""

    restarts: int = 0
    exits: list[int] = field(default_factory=list)


class SupervisedProcess:
    """Runs a ProcessSpec, starts it again after a crash (same port, growing pauses) and stops it cleanly."""

    def __init__(self, spec: ProcessSpec, log_file: Path, say: Callable[[str, str], None]) -> None:
        self.spec = spec
        self.state = State()
        self._log_file = log_file
        self._say = say
        self._process: asyncio.subprocess.Process | None = None
        self._tail: deque[str] = deque(maxlen=30)
        self._tasks: set[asyncio.Task[None]] = set()
        self._wanted = False
        self._restart = True
        self._started_at = 0.0

    @property
    def pid(self) -> int:
        """The process id; 0 while it does not run."""
        running = self._process is not None and self._process.returncode is None
        return self._process.pid if running and self._process is not None else 0

    @property
    def tail(self) -> str:
        """The last log lines."""
        return "\n".join(self._tail)

    async def start(self) -> None:
        """Start the process; does not wait for its health."""
        self._wanted = True
        self._restart = True
        await self._spawn()
        self._task(self._watch(), "watch")

    async def ready(self) -> None:
        """Wait until it is healthy. Raises StartError when it gives up, or ``ready_seconds`` pass."""
        until = time.monotonic() + self.spec.ready_seconds
        exits = len(self.state.exits)
        while time.monotonic() < until:
            if len(self.state.exits) > exits and self.state.exits[-1] == 2:
                raise StartError(f"{self.spec.name} refused its settings:\n{self.tail}")
            if len(self.state.exits) >= exits + 3:
                raise StartError(f"{self.spec.name} ended {len(self.state.exits)} times:\n{self.tail}")
            if self.pid and await healthy(self.spec.address, self.spec.health):
                return
            await asyncio.sleep(_POLL_SECONDS)
        raise StartError(f"{self.spec.name} was not healthy within {self.spec.ready_seconds:g} s:\n{self.tail}")

    def signal(self, number: int, *, restart: bool = True) -> None:
        """Send a signal to the process. ``restart`` False keeps it down once it ends. No-op when it is not running."""
        self._restart = restart
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    async def stop(self, grace_seconds: float) -> None:
        """SIGTERM, then SIGKILL to its whole group after the grace."""
        self._wanted = False
        process = self._process
        if process is not None and process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            try:
                await asyncio.wait_for(process.wait(), grace_seconds)
            except TimeoutError:
                self._note(f"did not stop within {grace_seconds:g} s: killed")
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        for task in list(self._tasks):
            # Readers end with the pipe; a watcher that waits for a restart must not start one.
            if task.get_name() == "watch":
                task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=1.0)
        for task in list(self._tasks):
            task.cancel()

    async def _spawn(self) -> None:
        self._started_at = time.monotonic()
        command = list(self.spec.command)
        nice, setpriv = shutil.which("nice"), shutil.which("setpriv")
        if self.spec.nice and nice is not None:
            command = [nice, "-n", str(self.spec.nice), *command]
        if setpriv is not None:
            # A supervisor that is killed outright must not leave its services running.
            command = [setpriv, "--pdeathsig", "TERM", *command]
        try:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                env=dict(self.spec.env),
                cwd=self.spec.cwd,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                limit=_LINE_LIMIT_BYTES,
            )
        except OSError as error:
            raise StartError(f"{self.spec.name}: {error}") from None
        assert self._process.stdout is not None
        self._task(self._read(self._process.stdout), "read")

    async def _watch(self) -> None:
        backoff = _FIRST_BACKOFF_SECONDS
        while self._process is not None:
            code = await self._process.wait()
            self.state.exits.append(code)
            if not self._wanted:
                return
            if not self._restart:
                self._note(f"ended ({_words(code)})")
                return
            if time.monotonic() - self._started_at > _STEADY_SECONDS:
                backoff = _FIRST_BACKOFF_SECONDS
            self._note(f"ended ({_words(code)}); starting again in {backoff:g} s")
            await asyncio.sleep(backoff)
            backoff = min(backoff * 2, _MAX_BACKOFF_SECONDS)
            if not self._wanted:
                return
            self.state.restarts += 1
            await self._spawn()

    async def _read(self, pipe: asyncio.StreamReader) -> None:
        with self._log_file.open("ab") as log:
            while True:
                try:
                    line = await pipe.readline()
                except ValueError:
                    continue  # A line over the limit: what is left of it follows.
                if not line:
                    return
                log.write(line)
                log.flush()
                text = line.decode("utf-8", "replace").rstrip()
                self._tail.append(text)
                self._say(self.spec.name, text)

    def _note(self, text: str) -> None:
        self._tail.append(text)
        self._say(self.spec.name, f"[supervisor] {text}")

    def _task(self, work: Coroutine[Any, Any, None], name: str) -> None:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def healthy(address: str, kind: str = "grpc", timeout: float = 2.0) -> bool:  # noqa: ASYNC109  (one probe's own bound)
    """True when the server at host:port is up and, for "grpc", says SERVING."""
    if kind == "none":
        return True
    host, _, port = address.rpartition(":")
    try:
        # A refused connection tells at once what a gRPC channel would only learn through its backoff.
        _, writer = await asyncio.wait_for(asyncio.open_connection(host, int(port)), timeout)
    except (OSError, TimeoutError):
        return False
    writer.close()
    if kind == "tcp":
        return True
    return await health_of(address, timeout) == "SERVING"


async def health_of(address: str, timeout: float = 2.0, credentials: grpc.ChannelCredentials | None = None) -> str:  # noqa: ASYNC109  (one probe's own bound)
    """What the server's health service says: "SERVING", "NOT_SERVING", or the status code's name when it fails."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    channel = (
        grpc.aio.insecure_channel(address, options=options)
        if credentials is None
        else grpc.aio.secure_channel(address, credentials, options=options)
    )
    async with channel:
        check: grpc.aio.UnaryUnaryMultiCallable[None, bool] = channel.unary_unary(
            HEALTH_METHOD, request_serializer=lambda _: b"", response_deserializer=lambda raw: raw == _SERVING
        )
        try:
            return "SERVING" if await check(None, timeout=timeout) else "NOT_SERVING"
        except grpc.aio.AioRpcError as error:
            return str(error.code().name)


def _words(code: int) -> str:
    if code >= 0:
        return f"exit status {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
