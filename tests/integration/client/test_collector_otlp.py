"""The development collector: the real OTLP exporters over a real socket, read back over its own RPCs."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Status, StatusCode
from tenth.trace.v1 import trace_pb2, trace_pb2_grpc

from sandbox.collector import TraceStore, start
from tenth_client.processes import healthy


class Collector:
    def __init__(self, store: TraceStore, port: int, path: Path) -> None:
        self.store = store
        self.address = f"127.0.0.1:{port}"
        self.path = path
        self.channel = grpc.aio.insecure_channel(self.address)
        self.stub: Any = trace_pb2_grpc.TraceServiceStub(self.channel)

    def provider(self, service: str) -> TracerProvider:
        provider = TracerProvider(resource=Resource.create({"service.name": service}), shutdown_on_exit=False)
        exporter = OTLPSpanExporter(endpoint=self.address, insecure=True, timeout=5)
        provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=50))
        return provider


@pytest.fixture
async def collector(tmp_path: Path) -> AsyncIterator[Collector]:
    path = tmp_path / "traces.db"
    store = TraceStore(path)
    server, port, _ = await start("127.0.0.1:0", store)
    made = Collector(store, port, path)
    yield made
    await made.channel.close()
    await server.stop(None)
    store.close()


async def test_round_trip(collector: Collector) -> None:
    orchestrator, cache = collector.provider("orchestrator"), collector.provider("cache")
    root = orchestrator.get_tracer("t").start_span(
        "request", attributes={"tenth.request_id": "r-1", "tenth.saved": 12, "tenth.hit": False, "list": ["a", "b"]}
    )
    child = cache.get_tracer("t").start_span("lookup", context=trace.set_span_in_context(root))
    child.set_status(Status(StatusCode.ERROR, "EMBEDDER_DOWN"))
    child.end()
    root.end()
    for provider in (orchestrator, cache):
        await asyncio.to_thread(provider.shutdown)

    trace_id = f"{root.get_span_context().trace_id:032x}"
    for wanted in (trace_id, "r-1"):
        found = await collector.stub.GetTrace(trace_pb2.GetTraceRequest(trace_id=wanted))
        assert found.trace_id == trace_id
        first, second = found.spans
        assert (first.service, first.name, first.parent_span_id) == ("orchestrator", "request", "")
        assert dict(first.attributes) == {
            "tenth.request_id": "r-1",
            "tenth.saved": "12",
            "tenth.hit": "false",
            "list": '["a", "b"]',
        }
        assert (second.service, second.name, second.parent_span_id) == ("cache", "lookup", first.span_id)
        assert second.error == "EMBEDDER_DOWN"
        assert second.end_time.ToNanoseconds() >= second.start_time.ToNanoseconds() > 0


async def test_many_spans_and_pages(collector: Collector) -> None:
    provider = collector.provider("load")
    tracer = provider.get_tracer("t")

    def make() -> None:
        for number in range(300):
            with tracer.start_as_current_span(f"root {number}"):
                for _ in range(4):
                    tracer.start_span("child").end()
        provider.shutdown()

    await asyncio.to_thread(make)
    seen: list[Any] = []
    token = ""
    while True:
        page = await collector.stub.ListTraces(trace_pb2.ListTracesRequest(page_size=120, page_token=token))
        seen.extend(page.traces)
        token = page.next_page_token
        if not token:
            break
    assert len({summary.trace_id for summary in seen}) == 300
    assert {summary.span_count for summary in seen} == {5}
    assert seen[0].name == "root 299"
    starts = [summary.start_time.ToNanoseconds() for summary in seen]
    assert starts == sorted(starts, reverse=True)


@pytest.mark.parametrize(
    ("method", "request_message", "code"),
    [
        ("GetTrace", trace_pb2.GetTraceRequest(trace_id="0" * 32), grpc.StatusCode.NOT_FOUND),
        ("GetTrace", trace_pb2.GetTraceRequest(trace_id="no such request"), grpc.StatusCode.NOT_FOUND),
        ("GetTrace", trace_pb2.GetTraceRequest(), grpc.StatusCode.INVALID_ARGUMENT),
        ("ListTraces", trace_pb2.ListTracesRequest(page_token="zz"), grpc.StatusCode.INVALID_ARGUMENT),
        ("ListTraces", trace_pb2.ListTracesRequest(page_size=-1), grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_errors(collector: Collector, method: str, request_message: Any, code: grpc.StatusCode) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(collector.stub, method)(request_message)
    assert caught.value.code() is code


async def test_metrics_keep_the_latest_value(collector: Collector) -> None:
    exporter = OTLPMetricExporter(endpoint=collector.address, insecure=True, timeout=5)
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=60_000)
    resource = Resource.create({"service.name": "cache"})
    provider = MeterProvider(metric_readers=[reader], resource=resource, shutdown_on_exit=False)
    meter = provider.get_meter("t")
    counter, histogram = meter.create_counter("hits"), meter.create_histogram("duration")
    counter.add(2, {"kind": "exact"})
    await asyncio.to_thread(provider.force_flush)
    counter.add(3, {"kind": "exact"})
    histogram.record(1.5)
    await asyncio.to_thread(provider.shutdown)
    rows = await collector.store.read(
        lambda database: database.execute("SELECT service, name, attributes, value, count FROM metrics").fetchall()
    )
    assert ("cache", "hits", '{"kind": "exact"}', 5.0, 1) in rows
    assert ("cache", "duration", "{}", 1.5, 1) in rows


async def test_garbage_is_survived(collector: Collector) -> None:
    export: Any = collector.channel.unary_unary("/opentelemetry.proto.collector.trace.v1.TraceService/Export")
    assert await export(b"\xff\xff\xff") == b""
    assert await healthy(collector.address)
    listed = await collector.stub.ListTraces(trace_pb2.ListTracesRequest())
    assert not listed.traces


async def test_old_spans_go(tmp_path: Path) -> None:
    from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

    store = TraceStore(tmp_path / "small.db", keep_spans=5)
    for number in range(20):
        request = trace_service_pb2.ExportTraceServiceRequest()
        span = request.resource_spans.add().scope_spans.add().spans.add()
        span.trace_id = number.to_bytes(16, "big")
        assert store.add("spans", request.SerializeToString())
        await store.read(lambda database: None)
    store.close()
    with sqlite3.connect(tmp_path / "small.db") as database:
        assert database.execute("SELECT count(*) FROM spans").fetchone() == (5,)
    database.close()


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "traces.db").write_text("this is not a database, but long enough to look like one" * 10)
    with pytest.raises(sqlite3.DatabaseError):
        TraceStore(tmp_path / "traces.db")
