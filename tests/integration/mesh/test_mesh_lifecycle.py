"""Health, drain, SIGTERM, restarts, retries, balancing and dead replicas, with real servers and processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tenth.cache.v1 import cache_pb2, cache_pb2_grpc

import mesh.server
from mesh.auth import Authenticator
from mesh.channel import MeshChannel, routing_key
from mesh.errors import Code, TenthError, unavailable
from mesh.server import MeshServer
from mesh.settings import MeshSettings
from mesh.testing import KEY, dial, memory_telemetry, running, write_callers
from tests.integration.mesh.mesh_fakes import REGISTER, SERVICE, Fake, piece, serving, until

ASK = cache_pb2.EmbedRequest(texts=["a"])
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def stub_of(channel: MeshChannel) -> Any:
    return cache_pb2_grpc.CacheServiceStub(cast(Any, channel))


async def health_of(target: str, service: str = SERVICE) -> int:
    async with grpc.aio.insecure_channel(target) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)
        status: int = (await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=2)).status
        return status


async def becomes(target: str, wanted: int, seconds: float = 3.0) -> None:
    async with asyncio.timeout(seconds):
        while await health_of(target) != wanted:  # noqa: ASYNC110  (another process's state)
            await asyncio.sleep(0.02)


async def test_health_follows_the_pings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh.server, "_PING_SECONDS", 0.05)
    monkeypatch.setattr(mesh.server, "_PING_TIMEOUT_SECONDS", 0.2)
    up, hanging = asyncio.Event(), asyncio.Event()

    async def ping() -> None:
        while hanging.is_set():
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError:
                if not hanging.is_set():
                    raise  # A ping that does not even react to being cancelled.
        if not up.is_set():
            raise ConnectionError("the store is down")

    async def fine() -> None:
        return

    async with running(REGISTER, Fake(), SERVICE, tmp_path, pings={"store": ping, "other": fine}) as target:
        assert await health_of(target) == NOT_SERVING
        up.set()
        await becomes(target, SERVING)
        assert await health_of(target, "") == SERVING
        up.clear()
        await becomes(target, NOT_SERVING)
        up.set()
        await becomes(target, SERVING)
        hanging.set()
        await becomes(target, NOT_SERVING)
        hanging.clear()
        await becomes(target, SERVING)


async def test_drain_finishes_what_runs_and_refuses_what_is_new(tmp_path: Path) -> None:
    started = asyncio.Event()

    async def embed(request: Any, context: Any) -> Any:
        started.set()
        await asyncio.sleep(0.5)
        return cache_pb2.EmbedResponse(compute_micros=7)

    async with serving(Fake(embed), tmp_path, drain_seconds=5) as (server, target), dial(target) as channel:
        call = asyncio.create_task(stub_of(channel).Embed(ASK, timeout=10))
        await started.wait()
        draining = asyncio.create_task(server.drain())
        await asyncio.sleep(0.1)
        before = time.monotonic()
        with pytest.raises(TenthError) as caught:
            await stub_of(channel).Embed(ASK, timeout=5)
        assert caught.value.code is Code.UNAVAILABLE
        assert time.monotonic() - before < 3
        assert (await call).compute_micros == 7
        await draining


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_call_that_outlives_the_drain_is_told_so(tmp_path: Path, kind: str) -> None:
    started = asyncio.Event()

    async def embed(request: Any, context: Any) -> Any:
        started.set()
        await asyncio.sleep(30)

    async def follow(request: Any, context: Any) -> Any:
        yield piece("one")
        started.set()
        await asyncio.sleep(30)

    async with serving(Fake(embed, follow), tmp_path, drain_seconds=0.2) as (server, target), dial(target) as channel:
        stub = stub_of(channel)

        async def streamed() -> None:
            async for _ in stub.FollowCompletion(cache_pb2.FollowCompletionRequest(), timeout=20):
                pass

        call = asyncio.create_task(streamed() if kind == "stream" else stub.Embed(ASK, timeout=20))
        await started.wait()
        before = time.monotonic()
        await server.drain()
        assert time.monotonic() - before < 10
        with pytest.raises(TenthError) as caught:
            await call
        assert (caught.value.code, caught.value.reason) == (Code.UNAVAILABLE, "DRAINING")


async def test_draining_one_of_two_replicas_loses_no_retryable_call(tmp_path: Path) -> None:
    retryable = [(SERVICE, "Embed")]
    async with AsyncExitStack() as stack:
        servers, targets = [], []
        for number in range(2):
            folder = tmp_path / str(number)
            folder.mkdir()
            server, target = await stack.enter_async_context(serving(Fake(), folder, unready_seconds=0.05))
            servers.append(server)
            targets.append(target)
        channel = await stack.enter_async_context(dial("ipv4:" + ",".join(targets), retryable=retryable))
        answered = 0

        async def load() -> None:
            nonlocal answered
            for _ in range(60):
                await stub_of(channel).Embed(ASK, timeout=5)
                answered += 1
                await asyncio.sleep(0.005)

        calls = [asyncio.create_task(load()) for _ in range(3)]
        await asyncio.sleep(0.1)
        await servers[0].drain()
        await asyncio.gather(*calls)
        assert answered == 180


SERVER = """
import asyncio, sys
from pathlib import Path
from tests.integration.mesh.mesh_fakes import REGISTER, SERVICE, Fake
from tenth.cache.v1 import cache_pb2
from mesh.auth import Authenticator
from mesh.server import MeshServer
from mesh.settings import MeshSettings
from mesh.testing import KEY, memory_telemetry

async def embed(request, context):
    await asyncio.sleep(float(request.texts[0]))
    return cache_pb2.EmbedResponse()

async def main():
    settings = MeshSettings(listen=f"127.0.0.1:{sys.argv[1]}", unready_seconds=0.05, drain_seconds=3)
    server = MeshServer(settings, memory_telemetry()[0], Authenticator(Path(sys.argv[2]), KEY), {})
    server.add(REGISTER, Fake(embed), SERVICE)
    await server.serve()
    print("closed cleanly", flush=True)

asyncio.run(main())
"""


async def process(port: int, tmp_path: Path) -> asyncio.subprocess.Process:
    callers = write_callers(tmp_path / "callers.yaml")
    root = str(Path(__file__).parents[3])
    return await asyncio.create_subprocess_exec(
        sys.executable,
        *("-c", SERVER, str(port), str(callers)),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": root},
    )


async def test_a_killed_and_restarted_server_is_reached_again_and_sigterm_drains(
    tmp_path: Path, unused_tcp_port: int
) -> None:
    target = f"127.0.0.1:{unused_tcp_port}"
    first = await process(unused_tcp_port, tmp_path)
    quick = cache_pb2.EmbedRequest(texts=["0"])
    async with dial(target) as channel:
        await asyncio.wait_for(channel.channel_ready(), 20)
        await stub_of(channel).Embed(quick, timeout=5)
        first.send_signal(signal.SIGKILL)
        await first.wait()
        before = time.monotonic()
        with pytest.raises(TenthError) as caught:
            await stub_of(channel).Embed(quick, timeout=5)
        assert caught.value.code is Code.UNAVAILABLE
        assert time.monotonic() - before < 4  # Down is said at once, not at the deadline.
        await asyncio.sleep(2)  # Long enough for the backoff to have grown.
        second = await process(unused_tcp_port, tmp_path)
        async with dial(target, telemetry=memory_telemetry()[0]) as probe:
            await asyncio.wait_for(probe.channel_ready(), 20)
        before = time.monotonic()
        failed: set[Code] = set()
        while True:
            try:
                await stub_of(channel).Embed(quick, timeout=5)
                break
            except TenthError as error:
                failed.add(error.code)
                await asyncio.sleep(0.02)
        assert time.monotonic() - before < 2
        assert failed <= {Code.UNAVAILABLE}

        slow = asyncio.create_task(stub_of(channel).Embed(cache_pb2.EmbedRequest(texts=["0.7"]), timeout=5))
        await asyncio.sleep(0.2)
        second.send_signal(signal.SIGTERM)
        await slow  # In flight when the signal came: finishes.
        assert await asyncio.wait_for(second.wait(), 10) == 0
        assert second.stdout is not None
        assert b"closed cleanly" in await second.stdout.read()


async def test_serve_stops_by_event_and_gives_the_signal_handlers_back(tmp_path: Path) -> None:
    callers = write_callers(tmp_path / "callers.yaml")
    settings = MeshSettings(unready_seconds=0, drain_seconds=0.2)
    server = MeshServer(settings, memory_telemetry()[0], Authenticator(callers, KEY), {})
    server.add(REGISTER, Fake(), SERVICE)
    stop = asyncio.Event()
    serving_task = asyncio.create_task(server.serve(stop))
    await until(lambda: server.port != 0)
    await becomes(f"127.0.0.1:{server.port}", SERVING)
    stop.set()
    await serving_task
    assert not asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)


def test_a_wrong_service_name_is_refused(tmp_path: Path) -> None:
    async def attempt() -> None:
        server = MeshServer(MeshSettings(), memory_telemetry()[0], Authenticator(None, KEY), {})
        with pytest.raises(ValueError, match=SERVICE):
            server.add(REGISTER, Fake(), "tenth.cache.v1.Cache")

    asyncio.run(attempt())


@pytest.mark.parametrize(("retryable", "calls"), [([(SERVICE, "Embed")], 3), ([], 1), ([(SERVICE, "GetStats")], 1)])
async def test_only_listed_methods_are_tried_again(
    tmp_path: Path, retryable: list[tuple[str, str]], calls: int
) -> None:
    async def embed(request: Any, context: Any) -> Any:
        if fake.calls < 3:
            raise unavailable("not yet")
        return cache_pb2.EmbedResponse(compute_micros=fake.calls)

    fake = Fake(embed)
    async with serving(fake, tmp_path) as (_, target), dial(target, retryable=retryable) as channel:
        if calls == 3:
            assert (await stub_of(channel).Embed(ASK, timeout=5)).compute_micros == 3
        else:
            with pytest.raises(TenthError):
                await stub_of(channel).Embed(ASK, timeout=5)
    assert fake.calls == calls


@pytest.mark.parametrize("code", [code for code in Code if code not in (Code.UNAVAILABLE, Code.CANCELLED)])
async def test_nothing_but_a_server_that_is_away_is_tried_again(tmp_path: Path, code: Code) -> None:
    async def embed(request: Any, context: Any) -> Any:
        raise TenthError(code, "R", "m")

    fake = Fake(embed)
    async with serving(fake, tmp_path) as (_, target), dial(target, retryable=[(SERVICE, "Embed")]) as channel:
        with pytest.raises(TenthError):
            await stub_of(channel).Embed(ASK, timeout=5)
    assert fake.calls == 1


async def test_round_robin_over_several_addresses(tmp_path: Path) -> None:
    fakes = [Fake(), Fake()]
    async with AsyncExitStack() as stack:
        targets = []
        for number, fake in enumerate(fakes):
            (tmp_path / str(number)).mkdir()
            targets.append((await stack.enter_async_context(serving(fake, tmp_path / str(number))))[1])
        channel = await stack.enter_async_context(dial("ipv4:" + ",".join(targets)))
        await stub_of(channel).Embed(ASK, timeout=5)
        await asyncio.sleep(0.3)  # Both are connected now.
        for _ in range(40):
            await stub_of(channel).Embed(ASK, timeout=5)
    assert sum(fake.calls for fake in fakes) == 41
    assert min(fake.calls for fake in fakes) >= 18


async def test_a_dead_shard_is_unavailable_at_once_and_the_others_work(tmp_path: Path, unused_tcp_port: int) -> None:
    dead = f"127.0.0.1:{unused_tcp_port}"
    fake = Fake()
    async with serving(fake, tmp_path) as (_, alive), dial(f"{alive},{dead}", sharded=True) as channel:
        outcomes = {"ok": 0, "down": 0}
        for number in range(40):
            before = time.monotonic()
            try:
                with routing_key(f"key-{number}"):
                    await stub_of(channel).Embed(ASK, timeout=10)
                outcomes["ok"] += 1
            except TenthError as error:
                outcomes["down"] += error.code is Code.UNAVAILABLE
            assert time.monotonic() - before < 8
        assert sum(outcomes.values()) == 40
        assert min(outcomes.values()) >= 5
        # Calls without a key go where somebody answers.
        for _ in range(10):
            await stub_of(channel).Embed(ASK, timeout=5)
