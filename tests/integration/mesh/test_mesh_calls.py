"""Calls over a real socket: errors, deadlines, cancellation, streams, malformed messages, unknown methods."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from tenth.cache.v1 import cache_pb2, cache_pb2_grpc
from tenth.type.v1 import receipt_pb2

from mesh import deadlines
from mesh.auth import current_identity
from mesh.channel import MeshChannel, connect
from mesh.errors import Code, Reason, TenthError, invalid_argument, unavailable
from mesh.settings import MeshSettings
from mesh.status import detail
from mesh.testing import TEST_IDENTITY, dial, memory_telemetry
from tests.integration.mesh.mesh_fakes import SERVICE, Fake, piece, serving, until

ASK = cache_pb2.EmbedRequest(texts=["a"])
FOLLOW = cache_pb2.FollowCompletionRequest(flight_id="f")
SPENT = receipt_pb2.SpentDetail(request_id="r", spent_nano_usd=9)


def stub_of(channel: MeshChannel) -> Any:
    return cache_pb2_grpc.CacheServiceStub(cast(Any, channel))


async def failure(work: Any) -> TenthError:
    with pytest.raises(TenthError) as caught:
        await work
    return caught.value


async def drain(stream: Any) -> list[str]:
    return [event.delta.text async for event in stream]


ERRORS = [
    (invalid_argument("m", field="request.texts[0]"), "request.texts[0]", None),
    (TenthError(Code.RESOURCE_EXHAUSTED, "BUDGET", "m", retry_after_seconds=2.5), "", 2.5),
    (TenthError(Code.ABORTED, "SPENT", "한국어 메시지", details=(SPENT,)), "", None),
    (TenthError(Code.NOT_FOUND, "GONE", "m" * 100_000, "f", metadata={"k": "v"}, details=(SPENT,)), "f", None),
    (unavailable("m"), "", None),
]


@pytest.mark.parametrize(("error", "field", "retry"), ERRORS)
@pytest.mark.parametrize("kind", ["unary", "first", "mid-stream", "client stream"])
async def test_errors_arrive_typed(
    tmp_path: Path, error: TenthError, field: str, retry: float | None, kind: str
) -> None:
    async def embed(request: Any, context: Any) -> Any:
        raise error

    async def follow(request: Any, context: Any) -> AsyncIterator[Any]:
        if kind == "mid-stream":
            yield piece("one")
        raise error

    async def publish(requests: Any, context: Any) -> Any:
        await anext(requests)
        raise error

    async def messages() -> AsyncIterator[Any]:
        while True:
            yield cache_pb2.PublishCompletionRequest(lease_id="l")
            await asyncio.sleep(0.01)

    async with serving(Fake(embed, follow, publish), tmp_path) as (_, target), dial(target) as channel:
        stub = stub_of(channel)
        work = {
            "unary": lambda: stub.Embed(ASK, timeout=5),
            "client stream": lambda: stub.PublishCompletion(messages()),
        }
        got = await failure(work.get(kind, lambda: drain(stub.FollowCompletion(FOLLOW, timeout=5)))())
    assert (got.code, got.reason, got.field, got.retry_after_seconds) == (error.code, error.reason, field, retry)
    assert got.message == error.message or got.message.endswith("…")
    assert detail(got, receipt_pb2.SpentDetail) == (SPENT if error.details else None)


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_defect_leaks_nothing_and_is_logged_with_the_trace(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, kind: str
) -> None:
    async def embed(request: Any, context: Any) -> Any:
        raise RuntimeError("the prompt was: secret")

    async def follow(request: Any, context: Any) -> AsyncIterator[Any]:
        yield piece("one")
        raise KeyError("secret")

    async with serving(Fake(embed, follow), tmp_path) as (_, target), dial(target) as channel:
        stub = stub_of(channel)
        with caplog.at_level(logging.ERROR):
            got = await failure(stub.Embed(ASK) if kind == "unary" else drain(stub.FollowCompletion(FOLLOW)))
    assert (got.code, got.reason) == (Code.INTERNAL, Reason.INTERNAL)
    assert "secret" not in str(got) + str(got.metadata)
    assert got.metadata["trace_id"] in caplog.text


@pytest.mark.parametrize("answer", [None, "not a message", cache_pb2.GetStatsRequest])
async def test_an_answer_that_cannot_be_encoded_is_internal(tmp_path: Path, answer: Any) -> None:
    async def embed(request: Any, context: Any) -> Any:
        return answer

    async def follow(request: Any, context: Any) -> AsyncIterator[Any]:
        yield piece("one")
        yield answer

    async with serving(Fake(embed, follow), tmp_path) as (_, target), dial(target) as channel:
        for work in (
            stub_of(channel).Embed(ASK, timeout=5),
            drain(stub_of(channel).FollowCompletion(FOLLOW, timeout=5)),
        ):
            assert (await failure(work)).code is Code.INTERNAL


async def test_an_inner_cancellation_is_an_error_not_a_silence(tmp_path: Path) -> None:
    async def embed(request: Any, context: Any) -> Any:
        task = asyncio.create_task(asyncio.sleep(10))
        task.cancel()
        await task

    async with serving(Fake(embed), tmp_path) as (_, target), dial(target) as channel:
        assert (await failure(stub_of(channel).Embed(ASK, timeout=3))).code is Code.INTERNAL


async def test_a_cancelled_answer_from_another_service_does_not_cancel_the_caller(tmp_path: Path) -> None:
    async def embed(request: Any, context: Any) -> Any:
        raise TenthError(Code.CANCELLED, "GIVEN_UP", "m")

    async def follow(request: Any, context: Any) -> AsyncIterator[Any]:
        yield piece("one")
        raise TenthError(Code.CANCELLED, "GIVEN_UP", "m")

    async with serving(Fake(embed, follow), tmp_path) as (_, target), dial(target) as channel:
        assert (await failure(stub_of(channel).Embed(ASK))).reason == "GIVEN_UP"
        assert (await failure(drain(stub_of(channel).FollowCompletion(FOLLOW)))).reason == "GIVEN_UP"


@pytest.mark.parametrize("raw", [b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x0a\x7f"])
async def test_bytes_that_are_no_message(tmp_path: Path, raw: bytes) -> None:
    async with serving(Fake(), tmp_path) as (_, target), dial(target) as channel:
        got = await failure(channel.unary_unary(f"/{SERVICE}/Embed", bytes, bytes)(raw, timeout=5))
        assert (got.code, got.reason, got.field) == (Code.INVALID_ARGUMENT, "MALFORMED_MESSAGE", "request")
        await stub_of(channel).Embed(ASK, timeout=5)


async def test_an_answer_that_is_no_message(tmp_path: Path) -> None:
    async def embed(request: Any, context: Any) -> Any:
        return cache_pb2.EmbedResponse(compute_micros=1)

    def broken(raw: bytes) -> Any:
        return cache_pb2.EmbedResponse.FromString(b"\xff\xff")

    async with serving(Fake(embed), tmp_path) as (_, target), dial(target) as channel:
        call = channel.unary_unary(f"/{SERVICE}/Embed", cache_pb2.EmbedRequest.SerializeToString, broken)
        assert (await failure(call(ASK, timeout=5))).reason == "MALFORMED_MESSAGE"


@pytest.mark.parametrize("method", [f"/{SERVICE}/NoSuchMethod", "/no.such.Service/Method", f"/{SERVICE}/GetStats"])
async def test_unknown_methods_are_unimplemented(tmp_path: Path, method: str) -> None:
    async with serving(Fake(), tmp_path) as (_, target), dial(target) as channel:
        got = await failure(channel.unary_unary(method, bytes, bytes)(b"", timeout=5))
        assert (got.code, got.reason) == (Code.UNIMPLEMENTED, "UNIMPLEMENTED")


async def test_a_message_over_the_limit_is_refused_and_the_server_lives(tmp_path: Path) -> None:
    async with serving(Fake(), tmp_path, max_message_bytes=4096) as (_, target), dial(target) as channel:
        got = await failure(stub_of(channel).Embed(cache_pb2.EmbedRequest(texts=["x" * 10_000]), timeout=5))
        assert got.code is Code.RESOURCE_EXHAUSTED
        await stub_of(channel).Embed(ASK, timeout=5)


async def test_health_and_reflection_are_open_and_the_service_is_not(tmp_path: Path) -> None:
    async with serving(Fake(), tmp_path) as (_, target), grpc.aio.insecure_channel(target) as bare:
        health: Any = health_pb2_grpc.HealthStub(bare)
        state = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE))
        assert state.status == health_pb2.HealthCheckResponse.NOT_SERVING
        listing = reflection_pb2_grpc.ServerReflectionStub(bare).ServerReflectionInfo(
            iter([reflection_pb2.ServerReflectionRequest(list_services="")])
        )
        names = {item.name async for answer in listing for item in answer.list_services_response.service}
        assert SERVICE in names
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cache_pb2_grpc.CacheServiceStub(bare).Embed(ASK)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_the_identity_arrives_and_is_the_callers(tmp_path: Path) -> None:
    seen: list[Any] = []

    async def embed(request: Any, context: Any) -> Any:
        seen.append(current_identity())
        return cache_pb2.EmbedResponse()

    async with serving(Fake(embed), tmp_path) as (_, target), dial(target) as channel:
        await stub_of(channel).Embed(ASK)
    assert (seen[0].tenant_id, seen[0].service) == (TEST_IDENTITY.tenant_id, "test")


@pytest.mark.parametrize(
    ("seconds", "low", "high"), [(2.0, 1.0, 2.1), (None, 100, 122)]
)  # The wire rounds a timeout up: a few milliseconds of a short one, whole seconds of a long one.
async def test_every_unary_call_has_a_deadline(tmp_path: Path, seconds: float | None, low: float, high: float) -> None:
    seen: list[float | None] = []

    async def embed(request: Any, context: Any) -> Any:
        seen.append(deadlines.remaining())
        return cache_pb2.EmbedResponse()

    async with serving(Fake(embed), tmp_path) as (_, target), dial(target) as channel:
        await stub_of(channel).Embed(ASK, timeout=seconds)
    assert seen[0] is not None
    assert low < seen[0] <= high


async def test_a_client_without_deadline_gets_the_servers(tmp_path: Path) -> None:
    async def embed(request: Any, context: Any) -> Any:
        await asyncio.sleep(30)

    async with (
        serving(Fake(embed), tmp_path, default_deadline_seconds=0.2) as (_, target),
        dial(target) as ours,
        grpc.aio.insecure_channel(target) as bare,
    ):
        headers = ours.metadata(memory_telemetry()[0].tracer.start_span("s"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await cache_pb2_grpc.CacheServiceStub(bare).Embed(ASK, metadata=headers)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_the_budget_shrinks_from_hop_to_hop(tmp_path: Path) -> None:
    seen: list[float] = []
    (tmp_path / "far").mkdir()
    async with serving(Fake(), tmp_path / "far") as (_, far), dial(far) as onward:

        async def embed(request: Any, context: Any) -> Any:
            await asyncio.sleep(0.2)
            seen.append(deadlines.budget(60.0) or 0)
            return await stub_of(onward).Embed(request, timeout=60)

        async with serving(Fake(embed), tmp_path) as (_, near), dial(near) as channel:
            await stub_of(channel).Embed(ASK, timeout=1)
    assert 0.3 < seen[0] < 0.8


@pytest.mark.parametrize("how", ["break", "cancel", "deadline"])
async def test_a_stream_the_client_left_stops_at_the_server(tmp_path: Path, how: str) -> None:
    closed = asyncio.Event()
    contexts: list[str] = []

    async def follow(request: Any, context: Any) -> AsyncIterator[Any]:
        contexts.append(current_identity().tenant_id)
        try:
            while True:
                yield piece("x" * 1000)
                await asyncio.sleep(0.005)
        finally:
            contexts.append(current_identity().tenant_id)  # The clean-up still knows whose request it was.
            closed.set()

    telemetry, exporter = memory_telemetry()
    async with serving(Fake(follow=follow), tmp_path, telemetry) as (server, target), dial(target) as channel:
        stream = stub_of(channel).FollowCompletion(FOLLOW, timeout=0.3 if how == "deadline" else 30)
        if how == "break":
            await anext(stream)
            await stream.aclose()
        elif how == "cancel":
            task = asyncio.create_task(drain(stream))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            assert (await failure(drain(stream))).code is Code.DEADLINE_EXCEEDED
        await asyncio.wait_for(closed.wait(), 3)
        await until(lambda: not server._handlers.running)
        await until(lambda: bool(exporter.get_finished_spans()))
    assert contexts == ["acme", "acme"]
    span = exporter.get_finished_spans()[0]
    assert span.attributes is not None
    assert span.attributes["tenth.cancelled"] is True


async def test_a_unary_call_that_is_cancelled_stops_at_the_server(tmp_path: Path) -> None:
    stopped = asyncio.Event()

    async def embed(request: Any, context: Any) -> Any:
        try:
            await asyncio.sleep(30)
        finally:
            stopped.set()

    fake = Fake(embed)
    async with serving(fake, tmp_path) as (_, target), dial(target) as channel:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await stub_of(channel).Embed(ASK, timeout=30)
        await asyncio.wait_for(stopped.wait(), 3)


async def test_client_streams_deliver_and_their_own_errors_come_back(tmp_path: Path) -> None:
    async def publish(requests: Any, context: Any) -> Any:
        return cache_pb2.PublishCompletionResponse(follower_count=len([one async for one in requests]))

    closed = []

    async def messages(count: int, error: Exception | None = None) -> AsyncIterator[Any]:
        try:
            for _ in range(count):
                yield cache_pb2.PublishCompletionRequest(lease_id="l")
            if error is not None:
                raise error
        finally:
            closed.append(count)

    async with serving(Fake(publish=publish), tmp_path) as (_, target), dial(target) as channel:
        stub = stub_of(channel)
        assert (await stub.PublishCompletion(messages(5), timeout=5)).follower_count == 5
        assert (await stub.PublishCompletion(messages(0), timeout=5)).follower_count == 0
        with pytest.raises(LookupError, match="the leader's own"):
            await stub.PublishCompletion(messages(2, LookupError("the leader's own")), timeout=5)
        got = await failure(stub.PublishCompletion(messages(1, unavailable("m", reason="MINE")), timeout=5))
        assert got.reason == "MINE"
    assert closed == [5, 0, 2, 1]


async def test_an_early_answer_closes_the_clients_generator(tmp_path: Path) -> None:
    async def publish(requests: Any, context: Any) -> Any:
        await anext(requests)
        return cache_pb2.PublishCompletionResponse(follower_count=1)

    closed = asyncio.Event()

    async def messages() -> AsyncIterator[Any]:
        try:
            while True:
                yield cache_pb2.PublishCompletionRequest(lease_id="l")
                await asyncio.sleep(0.01)
        finally:
            closed.set()

    async with serving(Fake(publish=publish), tmp_path) as (_, target), dial(target) as channel:
        assert (await stub_of(channel).PublishCompletion(messages(), timeout=5)).follower_count == 1
        assert closed.is_set()


async def test_a_closed_channel_is_unavailable(tmp_path: Path) -> None:
    async def embed(request: Any, context: Any) -> Any:
        await asyncio.sleep(30)

    async with serving(Fake(embed), tmp_path) as (_, target):
        channel = dial(target)
        call = asyncio.create_task(stub_of(channel).Embed(ASK, timeout=20))
        await asyncio.sleep(0.1)
        await channel.close()
        assert (await failure(call)).code is Code.UNAVAILABLE
        assert (await failure(stub_of(channel).Embed(ASK, timeout=1))).code is Code.UNAVAILABLE


async def test_an_api_key_over_plaintext(tmp_path: Path) -> None:
    async with serving(Fake(), tmp_path) as (_, target):
        channel = connect(target, MeshSettings(), memory_telemetry()[0], api_key="unknown")
        async with channel:
            assert (await failure(stub_of(channel).Embed(ASK, timeout=5))).code is Code.UNAUTHENTICATED
