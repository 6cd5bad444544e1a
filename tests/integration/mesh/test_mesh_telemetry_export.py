"""Span edges over two hops, and the OTLP exporters over a real socket."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from concurrent import futures
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from tenth.cache.v1 import cache_pb2, cache_pb2_grpc

from mesh.channel import MeshChannel
from mesh.errors import TenthError, unavailable
from mesh.settings import MeshSettings
from mesh.telemetry import annotate, current_trace_id, start_telemetry
from mesh.testing import dial, memory_telemetry
from tests.integration.mesh.mesh_fakes import Fake, piece, serving

ASK = cache_pb2.EmbedRequest(texts=["a"])


def stub_of(channel: MeshChannel) -> Any:
    return cache_pb2_grpc.CacheServiceStub(cast(Any, channel))


def ids(span: ReadableSpan) -> tuple[int, int, int | None]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id, span.parent.span_id if span.parent else None


async def test_one_trace_over_two_hops_with_attributes_and_status(tmp_path: Path) -> None:
    telemetry, exporter = memory_telemetry()
    seen: list[str] = []
    (tmp_path / "far").mkdir()

    async def far_follow(request: Any, context: Any) -> AsyncIterator[Any]:
        annotate({"tenth.cache.outcome": "hit", "tenth.receipt.actual_nano_usd": 12})
        yield piece("one")
        raise unavailable("gone", reason="STORE_DOWN")

    async with (
        serving(Fake(follow=far_follow), tmp_path / "far", telemetry) as (_, far),
        dial(far, telemetry=telemetry) as onward,
    ):

        async def embed(request: Any, context: Any) -> Any:
            seen.append(current_trace_id())
            with pytest.raises(TenthError):
                async for _ in stub_of(onward).FollowCompletion(cache_pb2.FollowCompletionRequest(), timeout=5):
                    pass
            annotate({"tenth.hop.cache": "degraded"})
            return cache_pb2.EmbedResponse()

        async with serving(Fake(embed), tmp_path, telemetry) as (_, near), dial(near, telemetry=telemetry) as channel:
            await stub_of(channel).Embed(ASK, timeout=5)

    spans = {
        (str(span.attributes["rpc.method"]), span.kind): span
        for span in exporter.get_finished_spans()
        if span.attributes
    }
    chain = [
        spans["Embed", SpanKind.CLIENT],
        spans["Embed", SpanKind.SERVER],
        spans["FollowCompletion", SpanKind.CLIENT],
        spans["FollowCompletion", SpanKind.SERVER],
    ]
    parent: int | None = None
    for span in chain:
        trace_id, span_id, parent_id = ids(span)
        assert f"{trace_id:032x}" == seen[0]
        assert parent_id == parent
        parent = span_id
        assert span.attributes is not None
        assert span.attributes["rpc.system"] == "grpc"
        assert span.attributes["rpc.service"] == "tenth.cache.v1.CacheService"
        assert span.name == "tenth.cache.v1.CacheService/" + str(span.attributes["rpc.method"])
    assert [span.status.status_code for span in chain] == [
        StatusCode.UNSET,
        StatusCode.UNSET,
        StatusCode.ERROR,
        StatusCode.ERROR,
    ]
    for span in chain[2:]:
        assert span.attributes is not None
        assert (span.status.description, span.attributes["rpc.grpc.status_code"]) == ("STORE_DOWN", 14)
    server = chain[3].attributes or {}
    assert (server["tenth.cache.outcome"], server["tenth.receipt.actual_nano_usd"]) == ("hit", 12)
    assert (chain[1].attributes or {})["tenth.hop.cache"] == "degraded"


async def test_parallel_calls_do_not_mix_their_traces(tmp_path: Path) -> None:
    telemetry, exporter = memory_telemetry()
    traces: list[str] = []

    async def embed(request: Any, context: Any) -> Any:
        before = current_trace_id()
        await asyncio.sleep(0.01)
        assert current_trace_id() == before
        traces.append(before)
        return cache_pb2.EmbedResponse()

    async with serving(Fake(embed), tmp_path, telemetry) as (_, target), dial(target, telemetry=telemetry) as channel:
        await asyncio.gather(*(stub_of(channel).Embed(ASK, timeout=5) for _ in range(20)))
    assert len(set(traces)) == 20
    assert len(exporter.get_finished_spans()) == 40


class Receiver:
    """A collector that keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        self.metrics: dict[str, Any] = {}

        outer = self

        class Traces(trace_service_pb2_grpc.TraceServiceServicer):
            def Export(self, request: Any, context: Any) -> Any:
                for resource in request.resource_spans:
                    names = {item.key: item.value.string_value for item in resource.resource.attributes}
                    outer.services.add(f"{names['service.namespace']}/{names['service.name']}")
                    outer.spans += [span for scope in resource.scope_spans for span in scope.spans]
                return trace_service_pb2.ExportTraceServiceResponse()

        class Metrics(metrics_service_pb2_grpc.MetricsServiceServicer):
            def Export(self, request: Any, context: Any) -> Any:
                for resource in request.resource_metrics:
                    for scope in resource.scope_metrics:
                        outer.metrics.update({metric.name: metric for metric in scope.metrics})
                return metrics_service_pb2.ExportMetricsServiceResponse()

        self.server = grpc.server(futures.ThreadPoolExecutor(2))
        cast(Any, trace_service_pb2_grpc).add_TraceServiceServicer_to_server(Traces(), self.server)
        cast(Any, metrics_service_pb2_grpc).add_MetricsServiceServicer_to_server(Metrics(), self.server)
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()


async def test_traces_and_metrics_reach_a_collector(tmp_path: Path) -> None:
    receiver = Receiver()
    telemetry = start_telemetry(
        "orchestrator", MeshSettings(otlp_endpoint=f"127.0.0.1:{receiver.port}", metrics_interval_seconds=60)
    )

    async def embed(request: Any, context: Any) -> Any:
        if request.texts[0] == "bad":
            raise unavailable("m")
        return cache_pb2.EmbedResponse()

    async with serving(Fake(embed), tmp_path, telemetry) as (_, target), dial(target, telemetry=telemetry) as channel:
        for _ in range(9):
            await stub_of(channel).Embed(ASK, timeout=5)
        with pytest.raises(TenthError):
            await stub_of(channel).Embed(cache_pb2.EmbedRequest(texts=["bad"]), timeout=5)
    await asyncio.to_thread(telemetry.close)
    receiver.server.stop(0).wait()
    assert len(receiver.spans) == 20
    assert receiver.services == {"tenth/orchestrator"}
    points = receiver.metrics["rpc.server.duration"].histogram.data_points
    counts = {
        next(item.value.string_value for item in point.attributes if item.key == "rpc.grpc.status_code"): point.count
        for point in points
    }
    assert counts == {"OK": 9, "UNAVAILABLE": 1}
    assert receiver.metrics["rpc.server.duration"].unit == "ms"


async def test_a_dead_collector_costs_no_call_and_a_bounded_close(tmp_path: Path, unused_tcp_port: int) -> None:
    telemetry = start_telemetry("t", MeshSettings(otlp_endpoint=f"127.0.0.1:{unused_tcp_port}"))
    async with serving(Fake(), tmp_path, telemetry) as (_, target), dial(target, telemetry=telemetry) as channel:
        for _ in range(5):
            await stub_of(channel).Embed(ASK, timeout=2)
    before = time.monotonic()
    await asyncio.to_thread(telemetry.close)
    assert time.monotonic() - before < 12
