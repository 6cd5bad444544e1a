"""Temporal's real development server, as a process on a loopback port; it can be killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

BINARY = Path(sys.executable).with_name("temporal")
"""The wheel's, beside the interpreter: the environment need not be the one that the shell has activated."""


class TemporalServer:
    """One server with its database in a file, so that a restart finds its workflows again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start it and wait until it says that it serves."""
        command = (
            *(str(BINARY), "server", "start-dev", "--headless", "--ip", "127.0.0.1", "--port", str(self.port)),
            *("--db-filename", str(self._folder / "temporal.db"), "--log-level", "error"),
            *("--sqlite-pragma", "journal_mode=WAL", "--sqlite-pragma", "synchronous=NORMAL"),
        )
        with (self._folder / "temporal.log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        wanted = health_pb2.HealthCheckRequest(service="temporal.api.workflowservice.v1.WorkflowService")
        for _ in range(300):
            with grpc.insecure_channel(self.address) as channel, contextlib.suppress(grpc.RpcError):
                answer = health_pb2_grpc.HealthStub(channel).Check(wanted, timeout=2, wait_for_ready=True)
                if answer.status == health_pb2.HealthCheckResponse.SERVING:
                    return
            assert self._process.poll() is None, (self._folder / "temporal.log").read_text()
            time.sleep(0.05)
        raise AssertionError("Temporal did not start")

    async def restart(self) -> None:
        """Start it again."""
        await asyncio.to_thread(self.start)

    def kill(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
