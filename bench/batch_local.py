"""What the local lane and its order give on a real engine: beside the online path, and beside the input's order."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from tenth.type.v1 import chat_pb2, usage_pb2

from bench.batch_items import instructions, interleaved, questions, request
from bench.batch_mesh import batch_mesh, run_batch
from bench.cache_sets import Choice, present, read_stream
from bench.progress import blocks
from bench.result import Result
from tenth_client import Batches, Client
from tenth_client.up import Mesh

LOCAL, PREFIX = "local", "prefix"
MODEL = "smollm2-135m"
_SET = "banking77"
_KV_BYTES = 256 * 1024 * 1024
_ANSWER_SECONDS = 300.0

Requests = Sequence[chat_pb2.CompletionRequest]


@dataclass(frozen=True, slots=True)
class Arm:
    """One way of running some items, once."""

    seconds: float
    usages: Sequence[usage_pb2.Usage]

    @property
    def per_second(self) -> float:
        """Items a second."""
        return len(self.usages) / self.seconds

    @property
    def output_tokens(self) -> int:
        """Of all answers."""
        return sum(usage.output_token_count for usage in self.usages)

    @property
    def cached_share(self) -> float:
        """Of the prompts' tokens, those that were in the prefix cache."""
        return cached_share(self.usages)


def cached_share(usages: Sequence[usage_pb2.Usage]) -> float:
    """Of the prompts' tokens, those that were in the engine's prefix cache; 0 without any."""
    tokens = sum(usage.input_token_count for usage in usages)
    return sum(usage.cached_input_token_count for usage in usages) / tokens if tokens else 0.0


def turns(arms: Sequence[str], round_number: int) -> list[str]:
    """The arms of a round: each round begins with another one."""
    start = round_number % len(arms)
    return [*arms[start:], *arms[:start]]


async def local(result: Result, data: Path | None, models_dir: Path, folder: Path, seed: int) -> None:
    """The local lane, one request at a time, and eight at once on the online path: the same items in turns."""
    rounds, count, tokens = (1, 32, 16) if result.quick else (3, 160, 16)
    asked = _asked(result, data, rounds * count, seed)
    (shared,) = instructions(1, 320, seed)
    said: dict[str, object] = {
        "model": MODEL, "items": count, "rounds": rounds, "max_output_tokens": tokens,
        "prefix_cache": "warm: the shared instruction is read before any arm; the questions are too short for a block",
        "output": "the API has no ignore_eos: temperature 0 and an output limit, the tokens of each arm are given",
        "cache_mode": "off",
    }  # fmt: skip
    result.assumptions[LOCAL] = said
    arms: dict[str, list[Arm]] = {"one_at_a_time": [], "online_c8": [], "batch": []}
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(batch_mesh(folder, models_dir, local_model=True))
        client = await stack.enter_async_context(_client(mesh))
        batches = await stack.enter_async_context(Batches(mesh.address("batch"), mesh.api_key))
        ways: dict[str, Callable[[Requests], Awaitable[Arm]]] = {
            "one_at_a_time": lambda requests: _online(client, requests, 1),
            "online_c8": lambda requests: _online(client, requests, 8),
            "batch": lambda requests: _lane(batches, requests),
        }
        for way in ways.values():
            await way([request(each, MODEL, tokens, system=shared) for each in questions(8, seed)])
        for (number,) in blocks(range(rounds), 1, LOCAL):
            mine = asked[number * count : (number + 1) * count]
            for name in turns(list(ways), number):
                arms[name].append(await ways[name]([request(each, MODEL, tokens, system=shared) for each in mine]))
    for name, runs in arms.items():
        _add_arm(result, f"local_lane/{name}", runs)
    for name, measure in (("one_at_a_time", "speedup_vs_one_at_a_time"), ("online_c8", "speedup_vs_online_c8")):
        ratios = [ours.per_second / other.per_second for ours, other in zip(arms["batch"], arms[name], strict=True)]
        add_spread(result, f"local_lane/ours/{measure}", ratios)


async def prefix(result: Result, models_dir: Path, folder: Path, seed: int) -> None:
    """The lane with its items in the planner's order and in the input's, each over texts nobody has read before.

    Two pairs of batch service and worker share the mesh and its engine; one worker is told to keep the input's order.
    """
    rounds, count, texts, words, tokens = (1, 48, 24, 470, 8) if result.quick else (2, 192, 24, 470, 8)
    result.assumptions[PREFIX] = {
        "model": MODEL, "items": count, "instructions": texts, "instruction_words": words, "rounds": rounds,
        "max_output_tokens": tokens, "kv_cache_bytes": _KV_BYTES, "cache_mode": "off",
        "prefix_cache": "fresh: every arm has an edition of the instructions of its own, new from the first word",
    }  # fmt: skip
    arms: dict[str, list[Arm]] = {"ordered": [], "input_order": []}
    replicas = {"batch": 2, "batch-worker": 2}
    env = {
        "inference": {"TENTH_INFERENCE_KV_CACHE_BYTES": str(_KV_BYTES)},
        **_queue(1, "bench-ordered", in_order=False),
        **_queue(2, "bench-plain", in_order=True),
    }
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(
            batch_mesh(folder, models_dir, local_model=True, replicas=replicas, env=env)
        )
        both = {
            name: await stack.enter_async_context(Batches(mesh.process_address(f"batch-{number}"), mesh.api_key))
            for number, name in enumerate(arms, start=1)
        }
        for batches in both.values():
            await _lane(batches, [request(each, MODEL, tokens) for each in questions(8, seed)])
        for (number,) in blocks(range(rounds), 1, PREFIX):
            asked = questions(count, seed + number)
            for name in turns(list(arms), number):
                edition = f"{name} edition {number + 1}. "
                made = interleaved(instructions(texts, words, seed, edition), asked, MODEL, tokens)
                arms[name].append(await _lane(both[name], made))
    for name, runs in arms.items():
        _add_arm(result, f"prefix_order/{name}", runs)
    ratios = [
        ours.per_second / plain.per_second for ours, plain in zip(arms["ordered"], arms["input_order"], strict=True)
    ]
    add_spread(result, "prefix_order/ours/speedup", ratios)


def add_spread(result: Result, name: str, ratios: Sequence[float]) -> None:
    """A ratio of each round: the median, the lowest, the highest."""
    result.add(name, statistics.median(ratios), "x", len(ratios))
    result.add(f"{name}_low", min(ratios), "x", len(ratios))
    result.add(f"{name}_high", max(ratios), "x", len(ratios))


def _add_arm(result: Result, name: str, runs: Sequence[Arm]) -> None:
    usages = [usage for run in runs for usage in run.usages]
    result.add(f"{name}/items_per_s", statistics.median(run.per_second for run in runs), "items/s", len(runs))
    result.add(f"{name}/cached_share", cached_share(usages), "ratio", len(usages))
    result.add(
        f"{name}/output_tokens_per_item", sum(run.output_tokens for run in runs) / len(usages), "tokens", len(usages)
    )
    result.add(
        f"{name}/input_tokens_per_item", sum(u.input_token_count for u in usages) / len(usages), "tokens", len(usages)
    )


def _asked(result: Result, data: Path | None, count: int, seed: int) -> list[str]:
    if data is not None and present(data, _SET):
        rows = read_stream(data, _SET, Choice(quick=False, held_out=False, seed=seed))
        texts = list(dict.fromkeys(row.text for row in rows))
        step = max(1, len(texts) // count)
        return texts[::step][:count]
    result.skipped.append(f"{LOCAL}, items: no {_SET} without --data; generated questions instead")
    return questions(count, seed)


def _client(mesh: Mesh) -> Client:
    return Client(mesh.address("orchestrator"), mesh.api_key, timeout=_ANSWER_SECONDS)


async def _online(client: Client, requests: Requests, at_once: int) -> Arm:
    gate = asyncio.Semaphore(at_once)

    async def ask(one: chat_pb2.CompletionRequest) -> usage_pb2.Usage:
        async with gate:
            return (await client.complete(one)).completion.usage

    began = time.perf_counter()
    usages = await asyncio.gather(*map(ask, requests))
    return Arm(time.perf_counter() - began, usages)


async def _lane(batches: Batches, requests: Requests) -> Arm:
    ran = await run_batch(batches, requests, lanes=("local",))
    usages = [each.completion.usage async for each in batches.results(ran.batch.batch_id)]
    return Arm(ran.seconds, usages)


def _queue(number: int, name: str, *, in_order: bool) -> dict[str, dict[str, str]]:
    queue = {"TENTH_BATCH_TASK_QUEUE_PREFIX": name}
    return {
        f"batch-{number}": queue,
        f"batch-worker-{number}": {**queue, "TENTH_BATCH_PREFIX_ORDER": "false" if in_order else "true"},
    }
