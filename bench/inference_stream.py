"""Part ``stream``: what our gRPC stream adds to the engine, beside vLLM's own HTTP server.

Three engines of the same settings are there at once, each in its own process, and work in turns: the service (asked
through a generated stub), vLLM's HTTP server, and the engine alone, which is given token ids and timed where it is
stepped. So what is added includes the chat template and the tokenizer.

Added time to the first token: differences within a round of turns, one stream at a time. CPU per chunk: the process's
CPU for many streams at once, less what the engine alone took for as many tokens in the same round, by chunks. Of the
service the same is also read by thread: all its threads but the engine's, a figure without the engine's noise.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.inference_engine import Engine, EngineOptions, running
from bench.inference_http import HttpServer, http_serving
from bench.inference_service import Caller, Service, Streamed, serving
from bench.progress import blocks
from bench.result import Result, median
from mesh.process import settle_memory

PART = "stream"
OURS, HTTP, ENGINE = "ours", "vllm_http", "engine"
CONCURRENCY = 32
_RESAMPLES = 1000
_SETTLE_SECONDS = 0.2
"""What a process still does when its last answer is out."""


@dataclass(frozen=True, slots=True)
class Load:
    """How much is measured."""

    turns: int
    """Single streams of each system."""
    rounds: int
    """Times that each system gets ``CONCURRENCY`` streams at once."""
    output_tokens: int


FULL = Load(100, 8, 64)
QUICK = Load(12, 1, 24)


@dataclass(frozen=True, slots=True)
class Batch:
    """What many streams at once took of one process."""

    cpu_seconds: float
    tokens: int
    chunks: int
    own_seconds: float = 0.0
    """CPU of the service's threads other than the engine's; 0 where it cannot be told."""


@dataclass(slots=True)
class Turns:
    """By system, in the order of the rounds."""

    first_seconds: dict[str, list[float]] = field(default_factory=dict)
    batches: dict[str, list[Batch]] = field(default_factory=dict)


async def measure(
    result: Result,
    model: str,
    models_dir: Path,
    provider_model: str,
    options: EngineOptions,
    logs: Path,
    seed: int,
) -> None:
    """All three systems. Raises EngineError when one of them does not start."""
    load = QUICK if result.quick else FULL
    folder = models_dir / provider_model
    async with AsyncExitStack() as stack:
        # One after another: engines that start at once slow each other.
        engine = stack.enter_context(running(folder, options, logs / "engine.log"))
        on_cpu = engine.ready["device"] == "cpu"
        server = HttpServer(folder, options, engine.ready["dtype"], cpu=on_cpu, folder=logs / "http")
        http, session = await stack.enter_async_context(http_serving(server))
        shared = {} if on_cpu else {"TENTH_INFERENCE_GPU_MEMORY_UTILIZATION": str(options.gpu_memory_share)}
        service = await stack.enter_async_context(serving(logs / "service", models_dir, **shared))
        caller = Caller(await stack.enter_async_context(service.channel()), model)

        async def alone(texts: Sequence[str], tokens: int) -> tuple[list[Streamed], float]:
            made = await asyncio.to_thread(engine.ask, "answers", texts=texts, output_tokens=tokens)
            answers = [Streamed(each["first_seconds"], each["chunks"], each["tokens"]) for each in made["answers"]]
            return answers, made["cpu_seconds"]

        asking: dict[str, Callable[[str, int], Awaitable[Streamed]]] = {
            OURS: caller.ask,
            HTTP: lambda text, tokens: http.ask(session, text, tokens),
        }
        turns = Turns()
        settle_memory()  # As the service does: collections of this process would count as added time.
        for system in asking:
            await asyncio.gather(*(asking[system](text, 4) for text in _stories(CONCURRENCY, 0)))
        await alone(_stories(CONCURRENCY, 0), 4)
        for block in blocks(range(load.turns), 1, "stream: first tokens"):
            for system in _order((OURS, HTTP, ENGINE), block[0]):
                text = f"How many days has a year of {1000 + block[0]} hours?"
                one = (await alone([text], 4))[0][0] if system == ENGINE else await asking[system](text, 4)
                turns.first_seconds.setdefault(system, []).append(one.first_seconds)
        for block in blocks(range(load.rounds), 1, "stream: CPU"):
            texts = _stories(CONCURRENCY, block[0] + 1)
            for system in _order((OURS, HTTP, ENGINE), block[0]):
                if system == ENGINE:
                    answers, cpu = await alone(texts, load.output_tokens)
                    batch = _batch(answers, cpu)
                else:
                    process = service if system == OURS else http
                    batch = await _together(process, asking[system], texts, load.output_tokens, options.threads)
                turns.batches.setdefault(system, []).append(batch)
        _assume(result, engine, options, load, provider_model)
    add(result, turns, seed)


def add(result: Result, turns: Turns, seed: int) -> None:
    """The figures of what was measured."""
    for system, seconds in turns.first_seconds.items():
        result.add(f"{PART}/{system}/ttft_p50_ms", median(seconds) * 1e3, "ms", len(seconds))
        if system != ENGINE:
            added = [(own - base) * 1e3 for own, base in zip(seconds, turns.first_seconds[ENGINE], strict=True)]
            value, interval = middle(added, seed)
            result.add(f"{PART}/{system}/ttft_overhead_ms", value, "ms", len(added), interval)
    alone = turns.batches.get(ENGINE, [])
    if alone:
        per_token = [batch.cpu_seconds / batch.tokens * 1e3 for batch in alone]
        result.add(f"{PART}/{ENGINE}/cpu_ms_per_token", median(per_token), "ms", len(alone))
    for system, batches in turns.batches.items():
        if system == ENGINE:
            continue
        chunks = sum(batch.chunks for batch in batches)
        added = [added_ms(batch, base) for batch, base in zip(batches, alone, strict=True)]
        value, interval = middle(added, seed)
        result.add(f"{PART}/{system}/cpu_ms_per_chunk", value, "ms", chunks, interval)
        own = [batch.own_seconds / batch.chunks * 1e3 for batch in batches if batch.own_seconds]
        if own:
            value, interval = middle(own, seed)
            result.add(f"{PART}/{system}/cpu_ms_per_chunk_by_thread", value, "ms", chunks, interval)


def added_ms(batch: Batch, alone: Batch) -> float:
    """CPU ms per chunk beyond what the engine alone took for as many tokens."""
    return (batch.cpu_seconds - alone.cpu_seconds / alone.tokens * batch.tokens) / batch.chunks * 1e3


def middle(values: Sequence[float], seed: int) -> tuple[float, tuple[float, float]]:
    """The median, with its 95% interval by resampling."""
    source = random.Random(seed)  # noqa: S311  (it resamples, nothing is secret)
    found = sorted(median(source.choices(values, k=len(values))) for _ in range(_RESAMPLES))
    return median(values), (found[int(0.025 * _RESAMPLES)], found[int(0.975 * _RESAMPLES)])


def own_seconds(before: Mapping[str, float], after: Mapping[str, float], pid: int, engine_threads: int) -> float:
    """CPU seconds of the service's own threads, of threads by "ID NAME": its event loop's (the process's first),
    gRPC's, its database's. Left out are the engine's: its ``engine_threads`` busiest (the stepping one and its OpenMP
    pool are Python's by name) and torch's ``gloo`` threads."""
    spent = {name: seconds - before.get(name, 0.0) for name, seconds in after.items()}
    main = spent.pop(next((name for name in spent if name.startswith(f"{pid} ")), ""), 0.0)
    others = sorted(seconds for name, seconds in spent.items() if "gloo" not in name)
    return main + sum(others[: max(0, len(others) - engine_threads)])


async def _together(
    process: Service | HttpServer,
    ask: Callable[[str, int], Awaitable[Streamed]],
    texts: Sequence[str],
    output_tokens: int,
    engine_threads: int,
) -> Batch:
    threads = process.thread_seconds() if isinstance(process, Service) else {}
    cpu = process.cpu_seconds()
    answers = await asyncio.gather(*(ask(text, output_tokens) for text in texts))
    await asyncio.sleep(_SETTLE_SECONDS)
    cpu = process.cpu_seconds() - cpu
    if not isinstance(process, Service):
        return _batch(answers, cpu)
    return _batch(answers, cpu, own_seconds(threads, process.thread_seconds(), process.pid, engine_threads))


def _batch(answers: Sequence[Streamed], cpu: float, own: float = 0.0) -> Batch:
    return Batch(cpu, sum(each.tokens for each in answers), sum(each.chunks for each in answers), own)


def _stories(count: int, number: int) -> list[str]:
    """Questions whose answers are long, and no two the same."""
    return [f"Tell a long story about town {number} and its {each + 2} bridges." for each in range(count)]


def _order(systems: Sequence[str], turn: int) -> Sequence[str]:
    """Each system is first, second and last as often as the others."""
    at = turn % len(systems)
    return [*systems[at:], *systems[:at]]


def _assume(result: Result, engine: Engine, options: EngineOptions, load: Load, model: str) -> None:
    said: dict[str, Any] = {
        "model": model,
        "dtype": engine.ready["dtype"],
        "turns": load.turns,
        "rounds": load.rounds,
        "concurrency": CONCURRENCY,
        "output_tokens": load.output_tokens,
        "threads": options.threads,
        "service": "defaults; no tracing, no ledger",
    }
    result.assumptions[PART] = said
