"""The development collector: receives OTLP over gRPC, keeps spans in SQLite, answers tenth.trace.v1.TraceService.

In production an OpenTelemetry collector and Jaeger stand here. Spans are kept as the bytes they came in and decoded
only when somebody reads a trace, and one thread does all database work, so that receiving costs the event loop
nothing but a queue.

    python -m sandbox.collector --listen 127.0.0.1:4317 --db traces.db
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import queue
import signal
import sqlite3
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.metrics.v1 import metrics_pb2
from opentelemetry.proto.trace.v1 import trace_pb2 as otlp
from tenth.trace.v1 import trace_pb2, trace_pb2_grpc

from mesh.errors import Code, Reason, TenthError, invalid_argument
from mesh.status import grpc_code, trailing_metadata

log = logging.getLogger("tenth.collector")

REQUEST_ID = "tenth.request_id"
"""The attribute by which a trace is found from its request."""
_REQUEST_ID_BYTES = REQUEST_ID.encode()
_QUEUE_LIMIT = 2_000
_PAGE_LIMIT = 1_000
_TRACE_SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
_METRICS_SERVICE = "opentelemetry.proto.collector.metrics.v1.MetricsService"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS spans (trace_id BLOB NOT NULL, service TEXT NOT NULL, span BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS spans_by_trace ON spans (trace_id);
CREATE TABLE IF NOT EXISTS traces (
  trace_id BLOB PRIMARY KEY, name TEXT NOT NULL, start_ns INTEGER NOT NULL, span_count INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS traces_by_start ON traces (start_ns, trace_id);
CREATE TABLE IF NOT EXISTS requests (request_id TEXT PRIMARY KEY, trace_id BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS metrics (
  service TEXT NOT NULL, name TEXT NOT NULL, attributes TEXT NOT NULL,
  value REAL NOT NULL, count INTEGER NOT NULL, time_ns INTEGER NOT NULL,
  PRIMARY KEY (service, name, attributes)
) WITHOUT ROWID;
"""


@dataclass(slots=True)
class _Trace:
    name: str = ""
    start_ns: int = 2**63 - 1
    span_count: int = 0


@dataclass(slots=True)
class _Batch:
    """What one turn of the writer puts into the database."""

    spans: list[tuple[bytes, str, bytes]] = field(default_factory=list)
    traces: dict[bytes, _Trace] = field(default_factory=dict)
    requests: dict[str, bytes] = field(default_factory=dict)
    metrics: list[tuple[str, str, str, float, int, int]] = field(default_factory=list)


class TraceStore:
    """Spans in one SQLite file; one thread owns the connection. Close it to write what is queued."""

    def __init__(self, path: Path, keep_spans: int = 1_000_000) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        self._keep_spans = keep_spans
        self._queue: queue.Queue[tuple[str, Any] | None] = queue.Queue(_QUEUE_LIMIT)
        self._thread = threading.Thread(target=self._work, name="trace-store", daemon=True)
        self._opened: Future[None] = Future()
        self._thread.start()
        self._opened.result()

    def add(self, kind: str, raw: bytes) -> bool:
        """Queue an export request ("spans" or "metrics"), still encoded. False when the queue is full."""
        try:
            self._queue.put_nowait((kind, raw))
        except queue.Full:
            return False
        return True

    async def read(self, query: Callable[[sqlite3.Connection], Any]) -> Any:
        """Run a query after everything that is queued has been written."""
        done: Future[Any] = Future()
        await asyncio.to_thread(self._queue.put, ("read", (query, done)))
        return await asyncio.wrap_future(done)

    def close(self) -> None:
        """Write what is queued and end."""
        self._queue.put(None)
        self._thread.join()

    def _work(self) -> None:
        try:
            database = sqlite3.connect(self._path, isolation_level=None)
            database.execute("PRAGMA journal_mode=WAL")
            database.execute("PRAGMA synchronous=OFF")  # Development traces: not worth a disk flush each.
            database.executescript(_SCHEMA)
        except sqlite3.Error as error:
            self._opened.set_exception(error)
            return
        self._opened.set_result(None)
        running = True
        while running:
            items = [self._queue.get()]
            while len(items) < 500 and not self._queue.empty():
                items.append(self._queue.get())
            batch = _Batch()
            reads = []
            for item in items:
                if item is None:
                    running = False
                elif item[0] == "read":
                    reads.append(item[1])
                else:
                    _collect(batch, *item)
            try:
                self._write(database, batch)
            except sqlite3.Error:
                log.exception("spans were lost")
            for query, done in reads:
                try:
                    done.set_result(query(database))
                except Exception as error:  # Belongs to the reader, who gets it.
                    done.set_exception(error)
        database.close()

    def _write(self, database: sqlite3.Connection, batch: _Batch) -> None:
        database.execute("BEGIN")
        database.executemany("INSERT INTO spans VALUES (?, ?, ?)", batch.spans)
        database.executemany(
            "INSERT INTO traces VALUES (?, ?, ?, ?) ON CONFLICT (trace_id) DO UPDATE SET "
            "name = CASE WHEN excluded.name = '' THEN name ELSE excluded.name END, "
            "start_ns = min(start_ns, excluded.start_ns), span_count = span_count + excluded.span_count",
            [(key, trace.name, trace.start_ns, trace.span_count) for key, trace in batch.traces.items()],
        )
        # The first trace of a request id stays: a retry that joins it must not hide where the work was done.
        database.executemany("INSERT OR IGNORE INTO requests VALUES (?, ?)", batch.requests.items())
        database.executemany("INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?, ?, ?)", batch.metrics)
        if batch.spans:
            (last,) = database.execute("SELECT max(rowid) FROM spans").fetchone()
            database.execute("DELETE FROM spans WHERE rowid <= ?", (last - self._keep_spans,))
        database.execute("COMMIT")


def _collect(batch: _Batch, kind: str, raw: bytes) -> None:
    try:
        if kind == "spans":
            _collect_spans(batch, trace_service_pb2.ExportTraceServiceRequest.FromString(raw))
        else:
            _collect_metrics(batch, metrics_service_pb2.ExportMetricsServiceRequest.FromString(raw))
    except DecodeError:
        log.warning("an export request of %d bytes is no OTLP message", len(raw))


def _collect_spans(batch: _Batch, request: trace_service_pb2.ExportTraceServiceRequest) -> None:
    for resource in request.resource_spans:
        service = _service(resource.resource.attributes)
        for scope in resource.scope_spans:
            for span in scope.spans:
                encoded = span.SerializeToString()
                trace_id = span.trace_id
                batch.spans.append((trace_id, service, encoded))
                trace = batch.traces.get(trace_id)
                if trace is None:
                    trace = batch.traces[trace_id] = _Trace()
                trace.span_count += 1
                trace.start_ns = min(trace.start_ns, span.start_time_unix_nano)
                if not span.parent_span_id:
                    trace.name = span.name
                if _REQUEST_ID_BYTES in encoded:
                    for attribute in span.attributes:
                        if attribute.key == REQUEST_ID:
                            batch.requests.setdefault(attribute.value.string_value, trace_id)


def _collect_metrics(batch: _Batch, request: metrics_service_pb2.ExportMetricsServiceRequest) -> None:
    for resource in request.resource_metrics:
        service = _service(resource.resource.attributes)
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                for attributes, value, count, time_ns in _points(metric):
                    key = json.dumps({item.key: _text(item.value) for item in attributes}, sort_keys=True)
                    batch.metrics.append((service, metric.name, key, value, count, time_ns))


def _points(metric: metrics_pb2.Metric) -> Iterable[tuple[Iterable[common_pb2.KeyValue], float, int, int]]:
    kind = metric.WhichOneof("data")
    if kind in ("gauge", "sum"):
        for point in getattr(metric, kind).data_points:
            value = point.as_double if point.WhichOneof("value") == "as_double" else float(point.as_int)
            yield point.attributes, value, 1, point.time_unix_nano
    elif kind in ("histogram", "exponential_histogram"):
        for point in getattr(metric, kind).data_points:
            yield point.attributes, point.sum, point.count, point.time_unix_nano


class TraceServicer(trace_pb2_grpc.TraceServiceServicer):
    """Reads traces back."""

    def __init__(self, store: TraceStore) -> None:
        self._store = store

    async def GetTrace(self, request: trace_pb2.GetTraceRequest, context: Any) -> trace_pb2.GetTraceResponse:
        """The spans of one trace, found by its id or by a request's."""
        wanted = request.trace_id.strip()
        if not wanted:
            await _abort(context, invalid_argument("a trace id or request id is needed", field="trace_id"))
        trace_id, rows = await self._store.read(lambda database: _find(database, wanted))
        if not rows:
            message = f"no span of {wanted} has arrived"
            await _abort(context, TenthError(Code.NOT_FOUND, Code.NOT_FOUND.name, message, "trace_id"))
        spans = [_span(service, otlp.Span.FromString(encoded)) for service, encoded in rows]
        spans.sort(key=lambda span: (span.start_time.seconds, span.start_time.nanos))
        return trace_pb2.GetTraceResponse(trace_id=trace_id.hex(), spans=spans)

    async def ListTraces(self, request: trace_pb2.ListTracesRequest, context: Any) -> trace_pb2.ListTracesResponse:
        """The newest traces."""
        size = min(request.page_size or 100, _PAGE_LIMIT)
        if size < 0:
            await _abort(context, invalid_argument("must not be negative", field="page_size"))
        try:
            start_text, _, id_text = request.page_token.partition(":")
            before = (int(start_text), bytes.fromhex(id_text)) if request.page_token else (2**63 - 1, b"")
        except ValueError:
            await _abort(context, invalid_argument("is not a token of this service", field="page_token"))
        rows = await self._store.read(
            lambda database: database.execute(
                "SELECT trace_id, name, start_ns, span_count FROM traces WHERE (start_ns, trace_id) < (?, ?) "
                "ORDER BY start_ns DESC, trace_id DESC LIMIT ?",
                (*before, size + 1),
            ).fetchall()
        )
        response = trace_pb2.ListTracesResponse()
        for trace_id, name, start_ns, span_count in rows[:size]:
            summary = response.traces.add(trace_id=trace_id.hex(), name=name, span_count=span_count)
            summary.start_time.FromNanoseconds(start_ns)
        if len(rows) > size:
            response.next_page_token = f"{rows[size - 1][2]}:{rows[size - 1][0].hex()}"
        return response


def _find(database: sqlite3.Connection, wanted: str) -> tuple[bytes, list[tuple[str, bytes]]]:
    row = database.execute("SELECT trace_id FROM requests WHERE request_id = ?", (wanted,)).fetchone()
    if row is not None:
        trace_id = row[0]
    else:
        try:
            trace_id = bytes.fromhex(wanted)
        except ValueError:
            return b"", []
    found = database.execute("SELECT service, span FROM spans WHERE trace_id = ?", (trace_id,)).fetchall()
    return trace_id, found


def _span(service: str, span: otlp.Span) -> trace_pb2.Span:
    result = trace_pb2.Span(
        span_id=span.span_id.hex(),
        parent_span_id=span.parent_span_id.hex(),
        service=service,
        name=span.name,
        attributes={item.key: _text(item.value) for item in span.attributes},
    )
    if span.status.code == otlp.Status.STATUS_CODE_ERROR:
        result.error = span.status.message or "error"
    result.start_time.FromNanoseconds(span.start_time_unix_nano)
    result.end_time.FromNanoseconds(span.end_time_unix_nano)
    return result


def _text(value: common_pb2.AnyValue) -> str:
    kind = value.WhichOneof("value")
    if kind is None:
        return ""
    if kind == "bool_value":
        return "true" if value.bool_value else "false"
    if kind == "array_value":
        return json.dumps([_text(item) for item in value.array_value.values], ensure_ascii=False)
    if kind == "kvlist_value":
        return json.dumps({item.key: _text(item.value) for item in value.kvlist_value.values}, ensure_ascii=False)
    if kind == "bytes_value":
        return value.bytes_value.hex()
    return str(getattr(value, kind))


def _service(attributes: Iterable[common_pb2.KeyValue]) -> str:
    for attribute in attributes:
        if attribute.key == "service.name":
            return attribute.value.string_value
    return "unknown"


async def _abort(context: Any, error: TenthError) -> None:
    await context.abort(grpc_code(error.code), error.message, trailing_metadata(error))


def _receiver(store: TraceStore, kind: str, service: str, reply: bytes) -> grpc.GenericRpcHandler:
    async def export(raw: bytes, context: Any) -> bytes:
        if not store.add(kind, raw):
            # OTLP exporters try again on UNAVAILABLE.
            await _abort(context, TenthError(Code.UNAVAILABLE, Reason.UNREACHABLE, "the collector is behind"))
        return reply

    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(cast(Any, export), None, None)
    return grpc.method_handlers_generic_handler(service, {"Export": handler})


async def start(listen: str, store: TraceStore) -> tuple[grpc.aio.Server, int, HealthServicer]:
    """Serve on host:port (0: a free one). Returns the server, its port and its health."""
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", 64 * 1024 * 1024), ("grpc.so_reuseport", 0)])
    reply = trace_service_pb2.ExportTraceServiceResponse().SerializeToString()
    server.add_generic_rpc_handlers(
        (
            _receiver(store, "spans", _TRACE_SERVICE, reply),
            _receiver(store, "metrics", _METRICS_SERVICE, reply),
        )
    )
    trace_pb2_grpc.add_TraceServiceServicer_to_server(TraceServicer(store), server)
    health = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health, server)
    port = server.add_insecure_port(listen)
    await server.start()
    await health.set("", health_pb2.HealthCheckResponse.SERVING)
    log.info("listening on %s:%d", listen.rpartition(":")[0], port)
    return server, port, health


async def serve(listen: str, path: Path, keep_spans: int) -> None:
    """Receive until SIGTERM or SIGINT, then write what is queued."""
    store = TraceStore(path, keep_spans)
    try:
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        server, _, health = await start(listen, store)
        await stop.wait()
        await health.enter_graceful_shutdown()
        await server.stop(1.0)
    finally:
        store.close()


def main() -> None:
    """Parse the arguments and serve."""
    parser = argparse.ArgumentParser(prog="python -m sandbox.collector", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--listen", default="127.0.0.1:4317", help="host:port of the OTLP gRPC receiver")
    parser.add_argument("--db", type=Path, default=Path(".data/traces.db"), help="SQLite file of the spans")
    parser.add_argument("--keep-spans", type=int, default=1_000_000, help="spans kept; the oldest go first")
    arguments = parser.parse_args()
    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    asyncio.run(serve(arguments.listen, arguments.db, arguments.keep_spans))


if __name__ == "__main__":
    main()
