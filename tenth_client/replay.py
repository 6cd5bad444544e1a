"""Plays requests through the mesh and adds their receipts up: the savings table, layer by layer."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table
from tenth.type.v1 import chat_pb2, receipt_pb2

from formats.openai_answers import LAYERS
from tenth_client.client import Client
from tenth_client.errors import TenthClientError
from tenth_client.money import percent, usd


@dataclass(frozen=True, slots=True)
class Played:
    """One request's result. ``latency_ms`` is measured here, at the client, retries included."""

    index: int
    request_id: str
    latency_ms: float
    text: str = ""
    model: str = ""
    receipt: receipt_pb2.Receipt | None = None
    error: TenthClientError | None = None


@dataclass(slots=True)
class Summary:
    """Sums over played requests. Amounts in nano-USD, latencies in milliseconds."""

    requests: int = 0
    failed: int = 0
    baseline: int = 0
    baseline_prompt_cached: int = 0
    overhead: int = 0
    actual: int = 0
    savings: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LAYERS.values(), 0))
    hit_kinds: Counter[str] = field(default_factory=Counter)
    models: Counter[str] = field(default_factory=Counter)
    baseline_models: set[str] = field(default_factory=set)
    errors: Counter[str] = field(default_factory=Counter)
    trace_ids: set[str] = field(default_factory=set)
    latencies: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def cache_hits(self) -> int:
        """Requests answered from the cache or from another request's flight."""
        return sum(self.hit_kinds.values())

    @property
    def identity_holds(self) -> bool:
        """baseline - sum(savings) + overhead == actual, to the nano-dollar."""
        return self.baseline - sum(self.savings.values()) + self.overhead == self.actual

    def add(self, played: Played) -> None:
        """Add one result. Only a request without an answer counts as failed; its receipt (if any) still counts."""
        self.requests += 1
        if played.error is not None:
            self.failed += 1
            self.errors[f"{played.error.code.name} {played.error.reason}"] += 1
        else:
            self.latencies.append(played.latency_ms)
        receipt = played.receipt
        if receipt is None:
            return
        self.baseline += receipt.baseline_nano_usd
        self.baseline_prompt_cached += receipt.baseline_prompt_cached_nano_usd
        self.overhead += receipt.overhead_nano_usd
        self.actual += receipt.actual_nano_usd
        for saving in receipt.savings:
            self.savings[LAYERS.get(saving.layer, str(saving.layer))] += saving.saving_nano_usd
        facts = receipt.facts
        if facts.baseline_model:
            self.baseline_models.add(facts.baseline_model)
        if facts.cache_hit:
            self.hit_kinds[facts.cache_hit_kind or "hit"] += 1
        elif facts.model:
            self.models[facts.model] += 1
        if facts.trace_id:
            self.trace_ids.add(facts.trace_id)

    def report(self) -> dict[str, Any]:
        """The summary as the JSON object that ``--json`` and ``demo/report.json`` hold."""
        return {
            "requests": self.requests,
            "failed": self.failed,
            "baseline_models": sorted(self.baseline_models),
            "baseline_nano_usd": self.baseline,
            "baseline_prompt_cached_nano_usd": self.baseline_prompt_cached,
            "actual_nano_usd": self.actual,
            "overhead_nano_usd": self.overhead,
            "savings_nano_usd": dict(self.savings),
            "cache_hits": self.cache_hits,
            "hit_kinds": dict(self.hit_kinds),
            "models": dict(self.models),
            "errors": dict(self.errors),
            "latency_ms": {
                "p50": round(quantile(self.latencies, 0.5), 3),
                "p95": round(quantile(self.latencies, 0.95), 3),
            },
            "seconds": round(self.seconds, 3),
            "trace_ids": len(self.trace_ids),
        }


async def play(
    client: Client,
    requests: Sequence[chat_pb2.CompletionRequest],
    *,
    concurrency: int = 4,
    on_done: Callable[[Played], None] | None = None,
) -> list[Played]:
    """Send every request, ``concurrency`` at a time, in order. Failures are results, not exceptions."""
    pending = iter(enumerate(requests))
    results: list[Played] = []

    async def worker() -> None:
        for index, request in pending:
            played = await _play_one(client, index, request)
            results.append(played)
            if on_done is not None:
                on_done(played)

    await asyncio.gather(*(worker() for _ in range(max(1, concurrency))))
    return sorted(results, key=lambda played: played.index)


async def _play_one(client: Client, index: int, request: chat_pb2.CompletionRequest) -> Played:
    if not request.request_id:
        # Chosen here, so that a failed request can still be asked for its receipt.
        named = chat_pb2.CompletionRequest(request_id=str(uuid.uuid4()))
        named.MergeFrom(request)
        request = named
    started = time.perf_counter()
    try:
        answer = await client.complete(request)
    except TenthClientError as error:
        latency = (time.perf_counter() - started) * 1000
        receipt = await _receipt_of_failed(client, request.request_id)
        return Played(index, request.request_id, latency, receipt=receipt, error=error)
    latency = (time.perf_counter() - started) * 1000
    return Played(index, answer.request_id, latency, answer.text, answer.completion.model, answer.receipt)


async def _receipt_of_failed(client: Client, request_id: str) -> receipt_pb2.Receipt | None:
    try:
        return await client.receipt(request_id)
    except TenthClientError:
        return None  # Refused before anything was spent, or the mesh is gone: the failure itself is reported.


def summarize(results: Sequence[Played], seconds: float = 0.0) -> Summary:
    """Add results up."""
    summary = Summary(seconds=seconds)
    for played in results:
        summary.add(played)
    return summary


def quantile(values: Sequence[float], share: float) -> float:
    """The nearest-rank quantile; 0 of nothing."""
    if not values:
        return 0.0
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1))]


def waterfall(summary: Summary, title: str = "What it cost, and where the rest went") -> Table:
    """The savings table: from the baseline to the actual cost, layer by layer."""
    baseline = " / ".join(sorted(summary.baseline_models)) or "none"
    table = Table(title=title, title_justify="left", show_edge=False, pad_edge=False)
    table.add_column("step")
    table.add_column("USD", justify="right")
    table.add_column("of baseline", justify="right")
    table.add_row(f"baseline ({baseline})", usd(summary.baseline), percent(summary.baseline, summary.baseline))
    for layer, amount in summary.savings.items():
        table.add_row(f"- {layer.replace('_', ' ')}", usd(-amount), percent(-amount, summary.baseline))
    table.add_row("+ overhead", usd(summary.overhead), percent(summary.overhead, summary.baseline), end_section=True)
    table.add_row("= actual", usd(summary.actual), percent(summary.actual, summary.baseline), style="bold")
    return table


def counts(summary: Summary) -> Table:
    """The table of what was counted beside the money."""
    table = Table(show_header=False, show_edge=False, pad_edge=False)
    table.add_column()
    table.add_column(overflow="fold")
    table.add_row("requests", f"{summary.requests} ({summary.failed} failed)")
    kinds = ", ".join(f"{kind} {count}" for kind, count in sorted(summary.hit_kinds.items())) or "none"
    table.add_row("cache hits", f"{summary.cache_hits} ({percent(summary.cache_hits, summary.requests)}): {kinds}")
    table.add_row("answered by", ", ".join(f"{model} {count}" for model, count in summary.models.most_common()) or "-")
    table.add_row(
        "latency at the client",
        f"p50 {quantile(summary.latencies, 0.5):.0f} ms, p95 {quantile(summary.latencies, 0.95):.0f} ms",
    )
    if summary.seconds:
        table.add_row("took", f"{summary.seconds:.1f} s")
    cached = summary.baseline_prompt_cached
    table.add_row(
        "baseline with the provider's own prompt cache",
        f"{usd(cached)} (actual is {percent(summary.actual, cached)} of it)",
    )
    table.add_row("sums", "baseline - savings + overhead == actual" if summary.identity_holds else "DO NOT ADD UP")
    for error, count in summary.errors.most_common():
        table.add_row(f"failed: {error}", str(count))
    return table
