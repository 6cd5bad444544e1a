"""The service's own process: what SIGTERM and an engine that hangs make of it, and folders that it cannot serve."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tenth.inference.v1 import inference_pb2, inference_pb2_grpc
from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.errors import TenthError
from mesh.status import detail
from mesh.testing import KEY, dial, write_callers
from services.inference import vllm_thread
from services.inference.restarts import RestartPolicy
from services.inference.vllm import VllmBackend
from services.inference.vllm_load import EngineOptions

MODELS = Path(os.environ.get("TENTH_MODELS_DIR", ".models"))
NAME = "smollm2-135m-instruct"
STEP_SECONDS = 3.0
CHILD = """
# The service as it is, but for a step of the engine that does not come back once a file is there.
import sys, time
from pathlib import Path
from mesh.process import run
from services.inference import __main__, vllm_thread
real = vllm_thread.load
def load(model, options):
    loaded = real(model, options)
    step = loaded.engine.step
    def hanging():
        while Path(sys.argv[1]).exists():
            time.sleep(0.01)
        return step()
    loaded.engine.step = hanging
    return loaded
vllm_thread.load = load
run(__main__.main())
"""


class Process:
    """The service, and a stub for it."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes], stub: Any) -> None:
        self.folder = folder
        self.process = process
        self.stub: inference_pb2_grpc.InferenceServiceAsyncStub = stub

    async def stream(self, name: str, tokens: int, began: asyncio.Event) -> tuple[str, int, TenthError | None, float]:
        """A greedy stream: its text, its pieces, its error, and when it ended."""
        generation = inference_pb2.GenerateTextRequest(
            request_id=name,
            attempt=1,
            model="m",
            messages=[
                chat_pb2.ChatMessage(
                    role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=f"Tell a long story of {name}.")]
                )
            ],
        )
        generation.sampling.temperature = 0
        generation.sampling.max_output_tokens = tokens
        text, pieces, failure = "", 0, None
        try:
            asked = inference_pb2.StreamGenerateTextRequest(generation=generation)
            async for event in self.stub.StreamGenerateText(asked, timeout=100):
                text += event.delta.text
                pieces += event.HasField("delta")
                if pieces > 3:
                    began.set()
        except TenthError as error:
            failure = error
        return text, pieces, failure, time.monotonic()

    async def exit_code(self, seconds: float) -> int:
        return await asyncio.to_thread(self.process.wait, seconds)

    def ending(self, name: str) -> ledger_pb2.AttemptEvent:
        """How an attempt ended, read from the file that the process left."""
        with sqlite3.connect(self.folder / "data" / "attempts.db") as database:
            events = [
                ledger_pb2.AttemptEvent.FromString(row[0]) for row in database.execute("SELECT event FROM records")
            ]
        ended = [item for item in events if item.request_id == name and item.kind != ledger_pb2.ATTEMPT_KIND_STARTED]
        assert len(ended) == 1
        return ended[0]


@asynccontextmanager
async def serving(folder: Path, **settings: str) -> AsyncIterator[Process]:
    """The service in a process of its own, ready."""
    (folder / "key").write_bytes(KEY)
    catalog = {
        "providers": {"local": {"backend": "vllm"}},
        "models": {
            "m": {"provider": "local", "provider_model": NAME, "context_window_tokens": 2048, "max_output_tokens": 1800}
        },
    }
    (folder / "catalog.yaml").write_text(yaml.safe_dump(catalog))
    address = f"127.0.0.1:{free_port()}"
    environment = {
        **os.environ,
        "TENTH_LISTEN": address,
        "TENTH_DATA_DIR": str(folder / "data"),
        "TENTH_IDENTITY_KEY_FILE": str(folder / "key"),
        "TENTH_CALLERS_FILE": str(write_callers(folder / "callers.yaml")),
        "TENTH_DRAIN_SECONDS": "10",
        "TENTH_INFERENCE_CATALOG_FILE": str(folder / "catalog.yaml"),
        "TENTH_INFERENCE_MODELS_DIR": str(MODELS),
        "TENTH_INFERENCE_KV_CACHE_BYTES": str(256 * 2**20),
        "TENTH_INFERENCE_STEP_TIMEOUT_SECONDS": str(STEP_SECONDS),
        "TENTH_INFERENCE_MAX_RUNNING": "2",
        **settings,
    }
    process = spawn(folder / "hang", environment)
    try:
        async with dial(address) as channel:
            health = health_pb2_grpc.HealthStub(channel)
            end = time.monotonic() + 120
            while True:
                assert process.poll() is None, "it ended by itself"
                assert time.monotonic() < end, "it was never ready"
                try:
                    reply = await health.Check(health_pb2.HealthCheckRequest(), timeout=2)
                    if reply.status == health_pb2.HealthCheckResponse.SERVING:
                        break
                except TenthError:
                    pass  # Not listening yet.
                await asyncio.sleep(0.1)
            yield Process(folder, process, inference_pb2_grpc.InferenceServiceStub(channel))
    finally:
        process.kill()
        process.wait()


def spawn(hang: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(hang)], env=environment)


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


async def test_an_engine_that_hangs_ends_the_process_with_its_own_code(tmp_path: Path) -> None:
    async with serving(tmp_path) as process:
        began = asyncio.Event()
        stream = asyncio.create_task(process.stream("hung", 1500, began))
        await asyncio.wait_for(began.wait(), 60)
        hung_at = time.monotonic()
        (tmp_path / "hang").touch()
        _, pieces, error, ended = await stream
        assert error is not None
        assert (error.code.name, error.reason) == ("UNAVAILABLE", "ENGINE_FAILED")
        assert ended - hung_at < STEP_SECONDS + 2
        spent = detail(error, receipt_pb2.SpentDetail)
        assert isinstance(spent, receipt_pb2.SpentDetail)
        assert await process.exit_code(30) == 75
        ending = process.ending("hung")
        assert ending.kind == ledger_pb2.ATTEMPT_KIND_FAILED
        assert ending.usage == spent.attempts[0].usage
        assert ending.usage.output_token_count >= pieces > 3


async def test_sigterm_hands_back_what_waits_and_what_outlives_the_notice(tmp_path: Path) -> None:
    async with serving(
        tmp_path, TENTH_INFERENCE_NOTICE_SECONDS="5", TENTH_INFERENCE_STEP_TIMEOUT_SECONDS="60"
    ) as process:
        began = [asyncio.Event() for _ in range(3)]
        short = asyncio.create_task(process.stream("short", 40, began[0]))
        long = asyncio.create_task(process.stream("long", 1800, began[1]))
        await asyncio.wait_for(asyncio.gather(began[0].wait(), began[1].wait()), 60)
        waiting = asyncio.create_task(process.stream("waiting", 20, began[2]))
        listing = inference_pb2.ListServedModelsRequest()
        for _ in range(1000):
            listed = await process.stub.ListServedModels(listing, timeout=10)
            if listed.models[0].running_count == 3:
                break
            await asyncio.sleep(0.01)
        signalled = time.monotonic()
        process.process.send_signal(signal.SIGTERM)
        _, pieces, error, ended = await waiting
        if error is not None:  # On a fast machine the short one may have made room for it in time.
            assert (error.code.name, error.reason, pieces) == ("UNAVAILABLE", "DRAINING", 0)
            assert ended - signalled < 2
            assert detail(error, receipt_pb2.SpentDetail) is None
        text, _, error, _ = await short
        assert error is None, "it finished within the notice"
        assert text
        _, pieces, error, ended = await long
        assert error is not None
        assert (error.code.name, error.reason) == ("UNAVAILABLE", "DRAINING")
        assert 4 < ended - signalled < 8
        spent = detail(error, receipt_pb2.SpentDetail)
        assert isinstance(spent, receipt_pb2.SpentDetail)
        assert await process.exit_code(20) == 0
        assert process.ending("long").usage == spent.attempts[0].usage
        assert process.ending("long").usage.output_token_count >= pieces
        assert process.ending("short").kind == ledger_pb2.ATTEMPT_KIND_FINISHED


OPTIONS = EngineOptions(MODELS / NAME, 2048, 2, 256 * 2**20, 2)


async def unserved(options: EngineOptions) -> TenthError:
    """Why an engine is not served, once it is known."""
    backend = VllmBackend("m", "local", "folder", options)
    backend.start()
    try:
        for _ in range(3000):
            error = backend.unavailable_error()
            if error is not None and "starting" not in error.message and error.reason != "ENGINE_RESTARTING":
                with pytest.raises(TenthError):
                    await backend.ping()
                return error
            await asyncio.sleep(0.02)
        raise AssertionError("it was served, or did not say why not")
    finally:
        await backend.close()


async def test_a_truncated_weight_file_is_named(tmp_path: Path) -> None:
    for file in (MODELS / NAME).iterdir():
        if file.suffix == ".safetensors":
            with file.open("rb") as whole:
                (tmp_path / file.name).write_bytes(whole.read(1_000_000))
        else:
            shutil.copy(file, tmp_path)
    error = await unserved(replace(OPTIONS, folder=tmp_path))
    assert (error.code.name, error.reason) == ("UNAVAILABLE", "MODEL_CORRUPT")
    assert "model.safetensors" in error.message
    assert "damaged" in error.message


async def test_an_engine_that_never_starts_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def broken(model: str, options: EngineOptions) -> None:
        tries.append(model)
        raise RuntimeError("injected: the card is gone")

    monkeypatch.setattr(vllm_thread, "load", broken)
    error = await unserved(replace(OPTIONS, restart=RestartPolicy(tries=3, backoff_seconds=0.01)))
    assert error.reason == "MODEL_UNAVAILABLE"
    assert "4 times" in error.message
    assert len(tries) == 4
