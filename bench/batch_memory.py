"""How much memory a batch of a hundred thousand items takes, in the batch service and in its worker."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

from tenth.batch.v1 import batch_pb2

from bench.batch_items import as_items, questions, request
from bench.batch_mesh import batch_mesh, peak_mb, resident_mb, run_batch
from bench.batch_standins import OWN_MODEL
from bench.result import Result
from tenth_client import Batches

MEMORY = "memory"
_SIDES = {"batch": "service", "batch-worker": "worker"}
_PIECE = 5000
_STAGES = (("temporal", "orchestrator", "inference", "ledger"), ("batch",), ("batch-worker",))


async def measure(result: Result, models_dir: Path, folder: Path, seed: int) -> None:
    """Stream them in, run them, stream all results out in input order."""
    count = 5_000 if result.quick else 100_000
    result.assumptions[MEMORY] = {
        "items": count, "layers": "stand-ins that answer at once; batch service, worker and Temporal are real",
        "lanes": "half local, half a provider's batches", "results": "streamed in input order after the end",
    }  # fmt: skip
    command = (sys.executable, "-m", "bench.batch_standins")
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(
            batch_mesh(
                folder,
                models_dir,
                local_model=False,
                sandbox="off",
                collector=False,
                stages=_STAGES,
                commands=dict.fromkeys(("orchestrator", "inference", "ledger"), command),
                env={"batch-worker": {"TENTH_BATCH_POLL_FIRST_SECONDS": "2", "TENTH_BATCH_POLL_LONGEST_SECONDS": "5"}},
            )
        )
        batches = await stack.enter_async_context(Batches(mesh.address("batch"), mesh.api_key, timeout=120))
        for name, side in _SIDES.items():
            result.add(f"memory_100k/{side}/idle_rss_mb", resident_mb(mesh.pids[name]), "MB", 1)
        sampled = dict.fromkeys(_SIDES, 0.0)

        def look() -> None:
            for name in _SIDES:
                sampled[name] = max(sampled[name], resident_mb(mesh.pids[name]))

        ran = await run_batch(batches, lambda: _items(count, seed), look_seconds=1.0, on_look=look, bar=True)
        answered = 0
        async for one in batches.results(ran.batch.batch_id, in_input_order=True):
            answered += one.HasField("completion")
            if answered % _PIECE == 0:
                look()
        if answered != count:
            result.skipped.append(f"{MEMORY}: {answered} of {count} items came back")
        peaks = {side: peak_mb(mesh.pids[name]) or sampled[name] for name, side in _SIDES.items()}
        for side, peak in peaks.items():
            result.add(f"memory_100k/{side}/rss_mb", peak, "MB", count)
        result.add("memory_100k/ours/rss_mb", max(peaks.values()), "MB", count)
        result.add("memory_100k/ours/seconds", ran.seconds, "s", count)


def _items(count: int, seed: int) -> Iterator[batch_pb2.BatchItem]:
    """One piece of the items in memory at a time: the client's memory is not the question."""
    for start in range(0, count, _PIECE):
        asked = questions(min(_PIECE, count - start), seed + start)
        for place, item in enumerate(as_items(request(each, OWN_MODEL, 60, cached=True) for each in asked)):
            item.custom_id = f"i{start + place}"
            yield item
