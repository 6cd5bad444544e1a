"""Parts ``start``, ``cancel`` and ``prefix``: how a service begins, lets go, and reads a prefix once.

- **start**: from the process's start to the first token of a real request, with the files in the page cache.
- **cancel**: a service that works on one sequence at a time. A stream is left after its third piece; measured is until
  the service says that nothing runs, and, with a second request waiting behind it, until that one's first token. The
  second figure holds only when the engine itself has let go.
- **prefix**: time to the first token of two prompts with the same 2,000 tokens before their ends, on the engine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path

from tenth.inference.v1 import inference_pb2 as pb

from bench.inference_engine import EngineError, EngineOptions, running
from bench.inference_service import Caller, Service, serving
from bench.result import Result, median, percentile

START, CANCEL, PREFIX = "start", "cancel", "prefix"
_PREFIX_TOKENS = 2000
_LONG_TOKENS = 1500
_PIECES = 3
_ANSWER_SECONDS = 60.0


async def start(result: Result, model: str, models_dir: Path, logs: Path) -> None:
    """Raises EngineError when the service does not start."""
    seconds = []
    # The first one reads the files into the page cache.
    count = 1 if result.quick else 4
    for number in range(count):
        service = Service(logs / f"start{number}", models_dir)
        try:
            await service.ready()
            async with service.channel() as channel:
                before = service.age_seconds
                answer = await Caller(channel, model).ask("What is the capital of France?", 4)
                if answer.chunks:
                    seconds.append(before + answer.first_seconds)
        finally:
            await asyncio.to_thread(service.stop)
    kept = seconds if count == 1 else seconds[1:]
    if not kept:
        raise EngineError("the service gave no answer")
    result.add(f"{START}/ours/first_token_s", median(kept), "s", len(kept))


async def cancel(result: Result, model: str, models_dir: Path, logs: Path) -> None:
    """Raises EngineError when the service does not start."""
    count = 6 if result.quick else 40
    settings = {"TENTH_INFERENCE_MAX_RUNNING": "1"}
    async with serving(logs / CANCEL, models_dir, **settings) as service, service.channel() as channel:
        caller = Caller(channel, model)
        await caller.ask("Hello", 4)
        freed = [await _freed(caller, number) for number in range(count)]
        alone = [(await caller.ask(f"How far is {number} miles?", 1)).first_seconds for number in range(count)]
        behind = [await _next(caller, number) for number in range(count)]
    add_cancel(result, freed, behind, alone)


def add_cancel(result: Result, freed: Sequence[float], behind: Sequence[float], alone: Sequence[float]) -> None:
    """The figures, of seconds: until nothing runs, until a waiting request's first token, and that of one alone."""
    of = f"{CANCEL}/ours"
    for name, seconds in (("slot_free", freed), ("next_first_token", behind), ("first_token_alone", alone)):
        result.add(f"{of}/{name}_p50_ms", median(seconds) * 1e3, "ms", len(seconds))
        result.add(f"{of}/{name}_p95_ms", percentile(seconds, 0.95) * 1e3, "ms", len(seconds))


def prefix(result: Result, folder: Path, options: EngineOptions, logs: Path, seed: int) -> None:
    """Raises EngineError when the engine does not start."""
    with running(folder, options, logs / "prefix.log") as engine:
        prompts = 2 if result.quick else 8
        made = engine.ask(PREFIX, prefix_tokens=_PREFIX_TOKENS, prompts=prompts, seed=seed)
    add_prefix(result, made["pairs"])
    result.assumptions[PREFIX] = {"model": folder.name, "prefix_tokens": _PREFIX_TOKENS, "block_tokens": 128}


def add_prefix(result: Result, pairs: Sequence[tuple[float, float, int]]) -> None:
    """The figures, of (first seconds, second seconds, cached tokens of the second) by prompt."""
    of, count = "prefix_cache/vllm", len(pairs)
    result.add(f"{of}/ttft_ratio", median([second / first for first, second, _ in pairs]), "ratio", count)
    result.add(f"{of}/first_ttft_ms", median([first for first, _, _ in pairs]) * 1e3, "ms", count)
    result.add(f"{of}/second_ttft_ms", median([second for _, second, _ in pairs]) * 1e3, "ms", count)
    result.add(f"{of}/cached_tokens", median([cached for _, _, cached in pairs]), "tokens", count)


async def _freed(caller: Caller, number: int) -> float:
    """Seconds from leaving a stream until the service says that nothing runs."""
    async with aclosing(caller.pieces(_long(number), _LONG_TOKENS)) as events:
        await _some(events)
        if not await caller.running():
            raise EngineError("the service does not count the stream that runs")
        left = time.perf_counter()
    while await caller.running():
        if time.perf_counter() - left > _ANSWER_SECONDS:
            raise EngineError("a stream that was left is still running")
    return time.perf_counter() - left


async def _next(caller: Caller, number: int) -> float:
    """Seconds from leaving a stream until the first token of the request that waits behind it."""
    async with aclosing(caller.pieces(_long(number), _LONG_TOKENS)) as events:
        await _some(events)
        sent = time.perf_counter()
        waiting = asyncio.create_task(caller.ask(f"How wide is {number} feet?", 1))
        await _some(events)
        if waiting.done():
            raise EngineError("the second request did not wait for the first")
        left = time.perf_counter()
    answer = await asyncio.wait_for(waiting, _ANSWER_SECONDS)
    return sent + answer.first_seconds - left


async def _some(events: AsyncIterator[pb.StreamGenerateTextResponse]) -> None:
    pieces = 0
    async for event in events:
        pieces += bool(event.delta.text)
        if pieces == _PIECES:
            return
    raise EngineError("a long answer ended before it could be left")


def _long(number: int) -> str:
    return f"Tell a very long story about lighthouse {number}, with many chapters."
