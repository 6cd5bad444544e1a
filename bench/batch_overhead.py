"""What the batch layer itself costs: CPU of its processes and of the others, over an instant sandbox."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from tenth.type.v1 import chat_pb2

from bench.batch_items import questions, request
from bench.batch_mesh import SHORT_WINDOW_SECONDS, WINDOW_SECONDS, batch_mesh, peak_mb, run_batch, used_seconds
from bench.result import Result
from tenth_client import Batches

OVERHEAD = "overhead"
OURS = ("batch", "batch-worker", "temporal")
"""The processes of the batch layer."""
APART = ("sandbox", "collector")
"""Neither the batch layer's nor a service of the mesh: the provider that is played, and where spans go."""
MODEL = "gpt-4o"
_WORDS = 24
_LANES = {"provider": WINDOW_SECONDS, "online": SHORT_WINDOW_SECONDS}


def milliseconds_per_item(before: Mapping[str, float], after: Mapping[str, float], count: int) -> dict[str, float]:
    """CPU of each process between two looks, ms an item."""
    return {name: (after[name] - before.get(name, 0.0)) * 1e3 / count for name in after}


async def measure(result: Result, models_dir: Path, folder: Path, seed: int) -> None:
    """A batch in a provider's lane and one in the online lane, each of new questions, on one mesh."""
    count = 500 if result.quick else 10_000
    result.assumptions[OVERHEAD] = {
        "items": count, "model": f"{MODEL}, played by the instant sandbox", "output_tokens": _WORDS, "cache_mode": "on",
        "near_same": "on", "tracing": "every request, spans exported",
    }  # fmt: skip
    dearest = 0.0
    async with AsyncExitStack() as stack:
        env = {"batch-worker": {"TENTH_BATCH_POLL_FIRST_SECONDS": "2", "TENTH_BATCH_POLL_LONGEST_SECONDS": "5"}}
        mesh = await stack.enter_async_context(
            batch_mesh(folder, models_dir, local_model=False, sandbox="instant", env=env)
        )
        batches = await stack.enter_async_context(Batches(mesh.address("batch"), mesh.api_key))
        for place, (lane, window) in enumerate(_LANES.items()):
            await run_batch(batches, _items(100, seed + 100 + place), window_seconds=window)
            before = used_seconds(mesh)
            ran = await run_batch(
                batches, _items(count, seed + place), window_seconds=window, look_seconds=1.0, bar=True
            )
            used = milliseconds_per_item(before, used_seconds(mesh), count)
            ours = sum(used[name] for name in OURS)
            dearest = max(dearest, ours)
            result.add(f"overhead/ours/cpu_ms_per_item_{lane}", ours, "ms", count)
            others = sum(value for name, value in used.items() if name not in (*OURS, *APART))
            result.add(f"overhead/ours/others_cpu_ms_per_item_{lane}", others, "ms", count)
            for name, value in used.items():
                result.add(f"overhead/ours/{name}_cpu_ms_per_item_{lane}", value, "ms", count)
            result.add(f"overhead/ours/seconds_{lane}", ran.seconds, "s", 1)
            result.add(f"overhead/ours/items_per_s_{lane}", count / ran.seconds, "items/s", 1)
            shared = (ran.batch.shared_count + ran.batch.cache_hit_count) / count
            result.add(f"overhead/ours/answered_by_another_{lane}", shared, "ratio", count)
        result.add("overhead/ours/cpu_ms_per_item", dearest, "ms", count)
        for name, pid in mesh.pids.items():
            result.add(f"overhead/ours/{name}_peak_rss_mb", peak_mb(pid), "MB", 1)


def _items(count: int, seed: int) -> list[chat_pb2.CompletionRequest]:
    return [request(each, MODEL, _WORDS, cached=True) for each in questions(count, seed)]
