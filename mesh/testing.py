"""For tests of services: a real server on a loopback port, a caller that may do everything, spans in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import yaml
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mesh.auth import Authenticator, Identity, Signer, set_identity
from mesh.channel import MeshChannel, connect
from mesh.server import MeshServer, Ping
from mesh.settings import MeshSettings
from mesh.telemetry import Telemetry, start_telemetry

KEY = b"a key for tests, nothing more"
TEST_IDENTITY = Identity(tenant_id="acme", caller="test", may_assert_user=True, may_see_all_tenants=True)


def write_callers(path: Path) -> Path:
    """A callers file under which the service named "test" may call everything."""
    path.write_text(yaml.safe_dump({"callers": [], "services": {"test": ["*"]}}))
    return path


def memory_telemetry(service: str = "test") -> tuple[Telemetry, InMemorySpanExporter]:
    """Telemetry whose finished spans can be read back."""
    exporter = InMemorySpanExporter()
    return start_telemetry(service, MeshSettings(), SimpleSpanProcessor(exporter)), exporter


def memory_metrics(service: str = "test") -> tuple[Telemetry, InMemoryMetricReader]:
    """Telemetry whose metrics can be read back."""
    reader = InMemoryMetricReader()
    return start_telemetry(service, MeshSettings(), metric_readers=[reader]), reader


def metric_points(reader: InMemoryMetricReader, name: str) -> dict[frozenset[tuple[str, Any]], Any]:
    """The data points of one metric now, by attributes; empty while it has none."""
    data = reader.get_metrics_data()
    return {
        frozenset((point.attributes or {}).items()): point
        for resource in (data.resource_metrics if data is not None else ())
        for scope in resource.scope_metrics
        for metric in scope.metrics
        if metric.name == name
        for point in metric.data.data_points
    }


@asynccontextmanager
async def running(
    register: Callable[[Any, Any], None],
    servicer: object,
    full_name: str,
    tmp_path: Path,
    *,
    pings: Mapping[str, Ping] | None = None,
    telemetry: Telemetry | None = None,
    settings: MeshSettings | None = None,
) -> AsyncIterator[str]:
    """Serve one servicer on a free loopback port; yields its address."""
    settings = settings or MeshSettings(unready_seconds=0, drain_seconds=0.5)
    callers = write_callers(tmp_path / "callers.yaml")
    server = MeshServer(settings, telemetry or memory_telemetry()[0], Authenticator(callers, KEY), pings or {})
    server.add(register, servicer, full_name)
    port = await server.start()
    watcher = asyncio.create_task(server.watch_health())
    try:
        yield f"127.0.0.1:{port}"
    finally:
        watcher.cancel()
        await server.drain()


def dial(
    target: str, identity: Identity | None = TEST_IDENTITY, telemetry: Telemetry | None = None, **options: Any
) -> MeshChannel:
    """A channel that calls as the service "test" on behalf of an identity (set in the current context)."""
    set_identity(identity)
    return connect(target, MeshSettings(), telemetry or memory_telemetry()[0], Signer(KEY, "test"), **options)
