"""Temporal is away, comes, goes and comes again: the service starts, says so, and loses nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tenth.batch.v1 import batch_pb2

from mesh.errors import Code, TenthError
from services.batch.creating import batch_id_of
from services.batch.settings import BatchSettings
from services.batch.temporal import Temporal
from tests.integration.batch.batch_rig import batch_service, item, request, wait_for, worker
from tests.integration.batch.temporal_dev import TemporalServer

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def temporal(tmp_path: Path) -> Iterator[TemporalServer]:
    server = TemporalServer(tmp_path)
    try:
        yield server
    finally:
        server.kill()


async def test_what_is_taken_in_meanwhile_is_started_when_temporal_comes(
    tmp_path: Path, temporal: TemporalServer
) -> None:
    async with batch_service(tmp_path, temporal.address, temporal_timeout_seconds=1.0) as rig:
        request_id = str(uuid.uuid4())
        with pytest.raises(TenthError) as error:
            await rig.create([item("a")], request_id=request_id)
        assert (error.value.code, error.value.reason) == (Code.UNAVAILABLE, "TEMPORAL_UNAVAILABLE")
        batch_id = batch_id_of("acme", request_id)
        assert rig.names(f"batches/acme/{batch_id}/batch.pb")
        one = request(request_id=str(uuid.uuid4()))
        one.policy.completion_window.seconds = 3600
        with pytest.raises(TenthError) as error:
            await rig.stub.EnqueueCompletion(batch_pb2.EnqueueCompletionRequest(request=one), timeout=20)
        assert error.value.reason == "TEMPORAL_UNAVAILABLE"
        assert not rig.names("queued")  # Refused, so not kept: it may be asked elsewhere now.
        with pytest.raises(TenthError) as error:
            await rig.sweeper.look_after()
        assert error.value.reason == "TEMPORAL_UNAVAILABLE"

        await temporal.restart()
        await rig.sweeper.look_after()
        async with worker(rig):
            await rig.until(batch_id, lambda batch: batch.state == batch_pb2.BATCH_STATE_RUNNING)
            await rig.tell(batch_id, done=1)
            await rig.until(batch_id, lambda batch: batch.done_count == 1)
        temporal.kill()
        with pytest.raises(TenthError) as error:
            await rig.stub.GetBatch(batch_pb2.GetBatchRequest(batch_id=batch_id), timeout=20)
        assert error.value.code == Code.UNAVAILABLE
        await temporal.restart()
        # Without any worker: how far it is stands in the workflow's memo.
        batch = (await rig.stub.GetBatch(batch_pb2.GetBatchRequest(batch_id=batch_id), timeout=20)).batch
        assert batch.done_count == 1
        async with worker(rig):
            await rig.tell(batch_id, state="done", done=1)
            await rig.until(batch_id, lambda batch: batch.state == batch_pb2.BATCH_STATE_DONE)
        temporal.kill()
        # What has ended is known without Temporal.
        batch = (await rig.stub.GetBatch(batch_pb2.GetBatchRequest(batch_id=batch_id), timeout=20)).batch
        assert batch.state == batch_pb2.BATCH_STATE_DONE


def started(folder: Path, temporal_address: str) -> tuple[subprocess.Popen[bytes], int]:
    """The service as a process, and its port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    callers = folder / "callers.yaml"
    callers.write_text("callers: []\nservices: {}\n")
    environment = os.environ | {
        "TENTH_LISTEN": f"127.0.0.1:{port}",
        "TENTH_DATA_DIR": str(folder / "data"),
        "TENTH_CALLERS_FILE": str(callers),
        "TENTH_BATCH_TEMPORAL_ADDRESS": temporal_address,
        "TENTH_BATCH_TEMPORAL_TIMEOUT_SECONDS": "1",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'gen'}",
    }
    command = [sys.executable, "-m", "services.batch"]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log), port


async def test_the_process_starts_without_temporal_and_serves_when_it_comes(
    tmp_path: Path, temporal: TemporalServer
) -> None:
    process, port = started(tmp_path, temporal.address)
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            states: list[int] = []

            async def watch() -> None:
                wanted = health_pb2.HealthCheckRequest(service="tenth.batch.v1.BatchService")
                async for answer in health_pb2_grpc.HealthStub(channel).Watch(wanted, wait_for_ready=True):
                    states.extend([answer.status])

            watching = asyncio.create_task(watch())
            serving, not_serving = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
            await wait_for(lambda: states == [not_serving])
            await temporal.restart()
            await wait_for(lambda: states == [not_serving, serving])
            temporal.kill()
            await wait_for(lambda: states == [not_serving, serving, not_serving])
            watching.cancel()
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 20) == 0
    finally:
        process.kill()
        process.wait()
    assert b"Traceback" not in (tmp_path / "log").read_bytes()


async def test_many_that_wait_for_a_silent_temporal_are_told_at_once() -> None:
    with socket.socket() as silent:  # Connections are taken and never answered.
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        temporal = Temporal(BatchSettings(temporal_address=address, temporal_timeout_seconds=1.0))
        async with asyncio.timeout(5):
            told = await asyncio.gather(*(temporal.ping() for _ in range(50)), return_exceptions=True)
    assert {one.reason for one in told if isinstance(one, TenthError)} == {"TEMPORAL_UNAVAILABLE"}
    assert len(told) == 50
