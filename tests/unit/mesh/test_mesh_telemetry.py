"""traceparent parsing, sampling, and that nothing global is set."""

from __future__ import annotations

import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from mesh.settings import MeshSettings
from mesh.telemetry import annotate, current_trace_id, parent_context, start_telemetry, traceparent

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


@pytest.mark.parametrize(
    ("header", "valid"),
    [
        (f"00-{TRACE}-{SPAN}-01", True),
        (f"00-{TRACE}-{SPAN}-00", True),
        (f"cc-{TRACE}-{SPAN}-01-what-the-future-will-be-like", True),
        (f"00-{TRACE}-{SPAN}-01-more", False),
        (f"ff-{TRACE}-{SPAN}-01", False),
        (f"00-{TRACE.upper()}-{SPAN}-01", False),
        (f"00-{'0' * 32}-{SPAN}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (f"00-{TRACE[:-1]}-{SPAN}-01", False),
        (f"00-{TRACE}0-{SPAN}-01", False),
        (f"00-0x{TRACE[2:]}-{SPAN}-01", False),
        (f"00-{TRACE[:4]}_{TRACE[5:]}-{SPAN}-01", False),
        (f"00-{TRACE}-{SPAN}", False),
        (f"00-{TRACE}-{SPAN}-1", False),
        (f" 00-{TRACE}-{SPAN}-01", False),
        (f"00-{TRACE}-{SPAN}-01\n", False),
        ("", False),
        ("garbage", False),
        ("-" * 55, False),
        (None, False),
        (b"00", False),
    ],
)
def test_traceparent(header: str | bytes | None, valid: bool) -> None:
    context = trace.get_current_span(parent_context(header)).get_span_context()
    assert context.is_valid is valid
    if valid:
        assert (f"{context.trace_id:032x}", f"{context.span_id:016x}", context.is_remote) == (TRACE, SPAN, True)


def test_tracestate_travels() -> None:
    context = trace.get_current_span(parent_context(f"00-{TRACE}-{SPAN}-01", "a=1,b=2")).get_span_context()
    assert context.trace_state.to_header() == "a=1,b=2"
    broken = trace.get_current_span(parent_context(f"00-{TRACE}-{SPAN}-01", "=,,=")).get_span_context()
    assert broken.is_valid


@pytest.mark.parametrize(
    ("ratio", "flag", "recorded"), [(0.0, None, 0), (1.0, None, 1), (0.0, "01", 1), (1.0, "00", 0)]
)
def test_sampling_follows_the_parent_first(ratio: float, flag: str | None, recorded: int) -> None:
    exporter = InMemorySpanExporter()
    telemetry = start_telemetry("t", MeshSettings(trace_sample_ratio=ratio), SimpleSpanProcessor(exporter))
    parent = parent_context(f"00-{TRACE}-{SPAN}-{flag}" if flag else None)
    span = telemetry.tracer.start_span("s", context=parent)
    sent = traceparent(span)
    span.end()
    telemetry.close()
    assert len(exporter.get_finished_spans()) == recorded
    # The decision goes on with the call, recorded or not (bit 0; others may be set as well).
    assert int(sent[-2:], 16) & 1 == recorded
    assert (TRACE in sent) is (flag is not None)


def test_annotate_without_a_span_does_nothing() -> None:
    annotate({"tenth.tenant_id": "acme"})
    assert current_trace_id() == ""


def test_nothing_global_is_set() -> None:
    # In a process of its own: other tests' libraries (vLLM) may set the globals.
    script = (
        "from mesh.settings import MeshSettings\n"
        "from mesh.telemetry import start_telemetry\n"
        "telemetry = start_telemetry('t', MeshSettings(otlp_endpoint='127.0.0.1:1'))\n"
        "from opentelemetry import trace, metrics\n"
        "import opentelemetry.metrics._internal as internal\n"
        "assert trace._TRACER_PROVIDER is None and internal._METER_PROVIDER is None\n"
        "assert not trace.get_tracer('x').start_span('y').is_recording()\n"
        "import os; os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, timeout=60)
