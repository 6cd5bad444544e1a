"""A trace as text: the span tree with services, milliseconds, decisions and money.

Spans come from the development collector (tenth.trace.v1) or from Jaeger's HTTP API.
"""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tenth.trace.v1 import trace_pb2

from tenth_client.money import usd

_TRACE_ID = re.compile(r"[0-9a-fA-F]{32}")
_SHOWN = (
    "gen_ai.request.model",
    "gen_ai.response.model",
    "gen_ai.usage.input_tokens",
    "gen_ai.usage.cache_read.input_tokens",
    "gen_ai.usage.output_tokens",
)
_HIDDEN = ("tenth.request_id", "tenth.tenant_id", "tenth.tenant")
_JAEGER_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class SpanView:
    """One span. Times are seconds since the epoch."""

    span_id: str
    parent_span_id: str
    service: str
    name: str
    start: float
    end: float
    attributes: Mapping[str, str] = field(default_factory=dict)
    error: str = ""

    @property
    def milliseconds(self) -> float:
        """How long it took."""
        return (self.end - self.start) * 1000


def from_proto(response: trace_pb2.GetTraceResponse) -> list[SpanView]:
    """The spans of the development collector's answer."""
    return [
        SpanView(
            span_id=span.span_id,
            parent_span_id=span.parent_span_id,
            service=span.service,
            name=span.name,
            start=span.start_time.ToNanoseconds() / 1e9,
            end=span.end_time.ToNanoseconds() / 1e9,
            attributes=dict(span.attributes),
            error=span.error,
        )
        for span in response.spans
    ]


def is_trace_id(text: str) -> bool:
    """True for 32 hex digits."""
    return _TRACE_ID.fullmatch(text) is not None


def from_jaeger(base_url: str, wanted: str) -> tuple[str, list[SpanView]]:
    """A trace and its id from Jaeger's HTTP API, by trace id or request id; ("", []) when Jaeger has none.

    Blocks. Raises OSError when Jaeger does not answer and ValueError when it answers no JSON.
    """
    base = base_url.rstrip("/")
    if is_trace_id(wanted):
        found = _jaeger_get(f"{base}/api/traces/{wanted}")
    else:
        tags = urllib.parse.quote(json.dumps({"tenth.request_id": wanted}))
        found = _jaeger_get(f"{base}/api/traces?service=orchestrator&lookback=30d&limit=1&tags={tags}")
    if not found:
        return "", []
    trace = found[0]
    services = {key: str(value.get("serviceName", "")) for key, value in trace.get("processes", {}).items()}
    return str(trace.get("traceID", "")), [_jaeger_span(span, services) for span in trace.get("spans", [])]


def _jaeger_get(url: str) -> list[Any]:
    if not url.startswith(("http://", "https://")):
        raise ValueError("TENTH_JAEGER_URL must be an http or https URL")
    try:
        with urllib.request.urlopen(url, timeout=_JAEGER_SECONDS) as response:  # noqa: S310  (the scheme is checked)
            return list(json.load(response).get("data") or [])
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return []
        raise


def _jaeger_span(span: Mapping[str, Any], services: Mapping[str, str]) -> SpanView:
    attributes = {str(tag["key"]): str(tag["value"]) for tag in span.get("tags", [])}
    parents = [ref["spanID"] for ref in span.get("references", []) if ref.get("refType") == "CHILD_OF"]
    start = span["startTime"] / 1e6
    failed = attributes.get("error", "").lower() == "true"
    return SpanView(
        span_id=span["spanID"],
        parent_span_id=parents[0] if parents else "",
        service=services.get(span.get("processID", ""), ""),
        name=span["operationName"],
        start=start,
        end=start + span["duration"] / 1e6,
        attributes=attributes,
        error=attributes.get("otel.status_description", "error") if failed else "",
    )


def render(trace_id: str, spans: Iterable[SpanView], *, everything: bool = False) -> str:
    """The tree as text, one span a line.

    A client span and the server span it caused are one line, with the time between them as ``wire``;
    ``everything`` shows both, and every attribute.
    """
    known = {span.span_id: span for span in spans}
    children: dict[str, list[SpanView]] = defaultdict(list)
    for span in sorted(known.values(), key=lambda span: span.start):
        children[span.parent_span_id if span.parent_span_id in known else ""].append(span)
    if not known:
        return f"trace {trace_id}: no spans"
    begin = min(span.start for span in known.values())
    total = (max(span.end for span in known.values()) - begin) * 1000
    services = len({span.service for span in known.values()})
    lines = [f"trace {trace_id}: {len(known)} spans, {services} services, {total:.1f} ms"]

    # The tree is walked with a stack of its own: a damaged trace may be deeper than Python's.
    stack = [(span, "", index == 0, 0) for index, span in enumerate(reversed(children[""]))]
    while stack:
        span, prefix, last, depth = stack.pop()
        shown, wire = span, 0.0
        below = children[span.span_id]
        if not everything and len(below) == 1 and below[0].name == span.name and below[0].service != span.service:
            shown = below[0]
            wire = span.milliseconds - shown.milliseconds
            below = children[shown.span_id]
        branch = "" if depth == 0 else ("└─ " if last else "├─ ")
        lines.append(prefix + branch + _line(shown, begin, wire, everything))
        inner = prefix if depth == 0 else prefix + ("   " if last else "│  ")
        stack.extend((child, inner, index == 0, depth + 1) for index, child in enumerate(reversed(below)))
    return "\n".join(lines)


def _line(span: SpanView, begin: float, wire: float, everything: bool) -> str:
    name = span.name if everything else span.name.rpartition("/")[2]
    parts = [f"{span.service} {name}", f"{span.milliseconds:.1f} ms at +{(span.start - begin) * 1000:.1f}"]
    if wire > 0.05:
        parts.append(f"wire {wire:.1f}")
    parts.extend(_attributes(span.attributes, everything))
    if span.error:
        parts.append(f"ERROR {span.error}")
    return "  ".join(parts)


def _attributes(attributes: Mapping[str, str], everything: bool) -> list[str]:
    texts = []
    for key in sorted(attributes):
        value = attributes[key]
        shown = key in _SHOWN or (key.startswith("tenth.") and key not in _HIDDEN)
        # Nothing and no money say nothing.
        empty = value in ("", "[]") or (value == "0" and key.endswith(("nano_usd", "cache_read.input_tokens")))
        if everything or (shown and not empty):
            texts.append(f"{_short(key)}={_value(key, value)}")
    return texts


def _short(key: str) -> str:
    return key.removeprefix("tenth.").removeprefix("gen_ai.").removesuffix("_nano_usd")


def _value(key: str, value: str) -> str:
    if key.endswith("nano_usd"):
        try:
            return usd(int(value), 9)
        except ValueError:
            return value
    try:
        number = float(value)
    except ValueError:
        return value if " " not in value else json.dumps(value, ensure_ascii=False)
    return value if number == int(number) else f"{number:.4g}"
