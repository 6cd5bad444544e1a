"""What one hop of the mesh costs: CPU microseconds per unary call, client and server together in one process.

``python -m bench.hop [--calls N] [--rounds N]``: bare grpc.aio against a MeshServer called through a MeshChannel
(traced on both sides into a batch processor as in production, authenticated by signed identity, deadline, metrics).
The loads are interleaved in rounds; the median round and, for a noisy machine, the best one are given.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, cast

import grpc
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from tenth.cache.v1 import cache_pb2, cache_pb2_grpc

from mesh.settings import MeshSettings
from mesh.telemetry import start_telemetry
from mesh.testing import dial, running

SERVICE = "tenth.cache.v1.CacheService"


class Servicer:
    """Answers at once, so that only the hop is measured."""

    def __getattr__(self, name: str) -> object:
        return None  # The methods that are not measured.

    async def Embed(self, request: cache_pb2.EmbedRequest, context: Any) -> cache_pb2.EmbedResponse:
        """An empty answer."""
        return cache_pb2.EmbedResponse()


class EncodingExporter(SpanExporter):
    """Does an OTLP exporter's work (encoding) and drops the bytes."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Encode as OTLP does."""
        encode_spans(spans).SerializeToString()
        return SpanExportResult.SUCCESS


async def cpu_micros(call: Callable[[], Awaitable[object]], calls: int) -> float:
    """CPU microseconds of this process per call, made one after the other."""
    started = time.process_time()
    for _ in range(calls):
        await call()
    return (time.process_time() - started) / calls * 1e6


async def measure(calls: int, rounds: int) -> dict[str, float]:
    """CPU microseconds per call of each load in its median and best round, and ours over bare."""
    request = cache_pb2.EmbedRequest(texts=["a"])
    async with AsyncExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        server = grpc.aio.server()
        cache_pb2_grpc.add_CacheServiceServicer_to_server(cast(Any, Servicer()), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        stack.push_async_callback(server.stop, 0)
        bare = await stack.enter_async_context(grpc.aio.insecure_channel(f"127.0.0.1:{port}"))
        telemetry = start_telemetry("hop", MeshSettings(log_level="WARNING"), BatchSpanProcessor(EncodingExporter()))
        stack.callback(telemetry.close)
        target = await stack.enter_async_context(
            running(
                cast(Any, cache_pb2_grpc.add_CacheServiceServicer_to_server),
                Servicer(),
                SERVICE,
                folder,
                telemetry=telemetry,
            )
        )
        ours = await stack.enter_async_context(dial(target, telemetry=telemetry))
        loads = {
            "bare": cache_pb2_grpc.CacheServiceStub(bare),
            "ours": cache_pb2_grpc.CacheServiceStub(ours),
        }
        samples: dict[str, list[float]] = {name: [] for name in loads}
        for number in range(rounds + 1):
            for name, stub in loads.items():
                micros = await cpu_micros(partial(stub.Embed, request, timeout=5), calls)
                if number:  # The first round warms up.
                    samples[name].append(micros)
    result = {}
    for label, pick in (("median", statistics.median), ("best", min)):
        bare_us, ours_us = pick(samples["bare"]), pick(samples["ours"])
        result[f"{label}_bare_cpu_us_per_call"] = round(bare_us, 1)
        result[f"{label}_ours_cpu_us_per_call"] = round(ours_us, 1)
        result[f"{label}_ratio"] = round(ours_us / bare_us, 3)
    return result


def main() -> None:
    """Measure and print JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--calls", type=int, default=500, help="calls per round (default 500)")
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds (default 5)")
    options = parser.parse_args()
    print(json.dumps(asyncio.run(measure(options.calls, options.rounds))))


if __name__ == "__main__":
    main()
