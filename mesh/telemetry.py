"""Traces, metrics and logs of one process, without any global provider.

Spans follow OpenTelemetry's RPC and GenAI semantic conventions; attributes of our own start with ``tenth.``.
(vLLM sets the global tracer provider for itself, so everything here is passed explicitly.)
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import Histogram, Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanContext, TraceFlags, Tracer, TraceState
from opentelemetry.util.types import AttributeValue

from mesh.settings import MeshSettings

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
_TRACEPARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII)
_ABSENT = Context()


@dataclass(slots=True)
class Telemetry:
    """What a process needs to be observed. Close it last."""

    service: str
    tracer: Tracer
    meter: Meter
    rpc_duration: Histogram
    record_content: bool
    _traces: TracerProvider
    _metrics: MeterProvider

    def close(self) -> None:
        """Send what is left and stop. Blocks for at most a few seconds."""
        self._traces.shutdown()
        self._metrics.shutdown(timeout_millis=2000)


def start_telemetry(
    service: str, settings: MeshSettings, *processors: SpanProcessor, metric_readers: Iterable[MetricReader] = ()
) -> Telemetry:
    """Set up tracing, metrics and logging for a service; ``processors`` and ``metric_readers`` are added for tests."""
    logging.basicConfig(
        level=settings.log_level,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    resource = Resource.create({"service.name": service, "service.namespace": "tenth"})
    traces = TracerProvider(
        sampler=ParentBased(TraceIdRatioBased(settings.trace_sample_ratio)),
        resource=resource,
        shutdown_on_exit=False,
    )
    readers = list(metric_readers)
    if settings.otlp_endpoint:
        # Imported only where it is used: the exporters cost 8 MB and 150 ms of start-up.
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

        exporter = OTLPSpanExporter(endpoint=settings.otlp_endpoint, insecure=True, timeout=5)
        traces.add_span_processor(BatchSpanProcessor(exporter, max_queue_size=16_384, schedule_delay_millis=500))
        readers.append(
            PeriodicExportingMetricReader(
                OTLPMetricExporter(endpoint=settings.otlp_endpoint, insecure=True, timeout=5),
                export_interval_millis=settings.metrics_interval_seconds * 1000,
            )
        )
    for processor in processors:
        traces.add_span_processor(processor)
    metrics = MeterProvider(metric_readers=readers, resource=resource, shutdown_on_exit=False)
    meter = metrics.get_meter("tenth")
    return Telemetry(
        service=service,
        tracer=traces.get_tracer("tenth"),
        meter=meter,
        rpc_duration=meter.create_histogram("rpc.server.duration", unit="ms", description="Duration of served calls"),
        record_content=settings.record_content,
        _traces=traces,
        _metrics=metrics,
    )


def traceparent(span: Span) -> str:
    """W3C trace context of a span, for onward calls."""
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"


def parent_context(value: str | bytes | None, state: str | bytes | None = None) -> Context:
    """The context that ``traceparent`` and ``tracestate`` describe; an empty one when absent or malformed.

    Source: W3C Trace Context, level 1 (version 00 has exactly four parts; later ones may add some).
    """
    if not isinstance(value, str):
        return _ABSENT
    found = _TRACEPARENT.fullmatch(value)
    if found is None:
        return _ABSENT
    version, trace_id, span_id, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest is not None):
        return _ABSENT
    context = SpanContext(
        int(trace_id, 16),
        int(span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(int(flags, 16)),
        trace_state=TraceState.from_header([state]) if isinstance(state, str) else None,
    )
    if not context.is_valid:
        return _ABSENT
    return trace.set_span_in_context(trace.NonRecordingSpan(context), _ABSENT)


def current_trace_id() -> str:
    """The trace of the work in progress as 32 hex digits; empty outside of any."""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""


def annotate(attributes: Mapping[str, AttributeValue]) -> None:
    """Put attributes on the span of the work in progress."""
    span = trace.get_current_span()
    if span.is_recording():
        span.set_attributes(attributes)
