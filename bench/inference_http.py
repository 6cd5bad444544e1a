"""vLLM's own HTTP server as a process, with the engine's settings that the service has, and a caller of its streams."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import psutil

from bench.inference_engine import EngineError, EngineOptions, environment, log_end
from bench.inference_service import START_SECONDS, Streamed, cpu_seconds, free_port

_MODEL = "model"
_DATA = b"data: "


class HttpServer:
    """``python -m vllm.entrypoints.openai.api_server`` on a free port."""

    def __init__(self, model: Path, options: EngineOptions, dtype: str, *, cpu: bool, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "log"
        self._port = free_port()
        arguments = {
            "model": model,
            "served-model-name": _MODEL,
            "host": "127.0.0.1",
            "port": self._port,
            "max-model-len": options.context_window,
            "max-num-seqs": options.max_running,
            "uvicorn-log-level": "warning",
            **({"dtype": dtype, "kv-cache-memory-bytes": options.kv_cache_bytes} if cpu else {}),
            **({} if cpu else {"gpu-memory-utilization": options.gpu_memory_share}),
        }
        flags = ["--enable-prefix-caching", "--disable-log-stats", "--disable-uvicorn-access-log"]
        flags += [] if options.compile else ["--enforce-eager"]
        words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
        self._started = time.perf_counter()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603  (the command is ours)
                [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *words, *flags],
                env=environment(options),
                stdout=log,
                stderr=log,
            )

    async def ready(self, http: aiohttp.ClientSession) -> None:
        """Wait until it answers. Raises EngineError with the end of its log."""
        while True:
            try:
                async with http.get(f"http://127.0.0.1:{self._port}/health") as reply:
                    if reply.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            if self._process.poll() is not None or time.perf_counter() - self._started > START_SECONDS:
                raise EngineError(f"vLLM's HTTP server did not start: {log_end(self._log)}")
            await asyncio.sleep(0.1)

    async def ask(self, http: aiohttp.ClientSession, text: str, output_tokens: int) -> Streamed:
        """The whole stream of one greedy question."""
        body = {
            "model": _MODEL,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        made, started = Streamed(), time.perf_counter()
        async with http.post(f"http://127.0.0.1:{self._port}/v1/chat/completions", json=body) as reply:
            reply.raise_for_status()
            async for line in reply.content:
                if not line.startswith(_DATA) or line.strip() == b"data: [DONE]":
                    continue
                event = json.loads(line[len(_DATA) :])
                if any(choice["delta"].get("content") for choice in event["choices"]):
                    made.first_seconds = made.first_seconds or time.perf_counter() - started
                    made.chunks += 1
                if event.get("usage"):
                    made.tokens = event["usage"]["completion_tokens"]
        return made

    def cpu_seconds(self) -> float:
        """User and system time of the server and its engine's process."""
        return cpu_seconds(self._process.pid)

    def stop(self) -> None:
        """End it and what it has started."""
        if self._process.poll() is not None:
            return
        started = psutil.Process(self._process.pid).children(recursive=True)
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        _, left = psutil.wait_procs(started, timeout=10)
        for each in left:
            each.kill()


@asynccontextmanager
async def http_serving(server: HttpServer) -> AsyncIterator[tuple[HttpServer, aiohttp.ClientSession]]:
    """A started server for a while, ready, and connections to it that stay open."""
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=64)) as http:
            await server.ready(http)
            yield server, http
    finally:
        await asyncio.to_thread(server.stop)
