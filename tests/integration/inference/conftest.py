"""A collector of the engines' spans: a process has one tracer provider, which exports where the first engine said."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc

from tests.integration.inference.span_collector import Collector


@pytest.fixture(scope="session")
def collector() -> Iterator[tuple[Collector, str]]:
    server = grpc.server(ThreadPoolExecutor(1))
    result = Collector()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(result, server)  # type: ignore[no-untyped-call]  # generated without types
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield result, f"127.0.0.1:{port}"
    server.stop(0)
