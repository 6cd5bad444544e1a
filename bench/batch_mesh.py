"""A mesh with its batch layer for the batch bench: started, asked, and what its processes used."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import Progress
from tenth.batch.v1 import batch_pb2
from tenth.type.v1 import chat_pb2

from bench.batch_items import as_items
from bench.inference_service import cpu_seconds
from tenth_client import Batches
from tenth_client.batches import ENDED
from tenth_client.up import Mesh, MeshOptions

WINDOW_SECONDS = 4 * 3600.0
"""Long enough for a provider's batch."""
SHORT_WINDOW_SECONDS = 840.0
"""Too short for one (TENTH_BATCH_PROVIDER_LEAST_SECONDS is 900): such a batch runs online."""
PATIENT = {
    # The bench measures cost and order, not the caps of hops: a busy machine must not change what runs.
    f"TENTH_ORCHESTRATOR_{hop}_CAP_SECONDS": "10"
    for hop in ("LOOKUP", "SELECT", "COMPRESS", "RESERVE")
}
STEADY = {"TENTH_ROUTER_EXPLORE_SHARE": "0", "TENTH_ROUTER_AUDIT_SHARE": "0"}
"""Requests name their model; none of them explores."""
_END_SECONDS = 1800.0


class BatchFailedError(RuntimeError):
    """A batch did not end as a sound one does."""


@dataclass(frozen=True, slots=True)
class Ran:
    """A batch from its upload to its end."""

    batch: batch_pb2.Batch
    seconds: float


@asynccontextmanager
async def batch_mesh(folder: Path, models_dir: Path, **options: Any) -> AsyncIterator[Mesh]:
    """A mesh in a folder; ``env`` comes on top of what every bench sets."""
    env: dict[str, Mapping[str, str]] = {"orchestrator": PATIENT, "router": STEADY}
    for name, more in options.pop("env", {}).items():
        env[name] = {**env.get(name, {}), **more}
    made = MeshOptions(data_dir=folder, models_dir=models_dir, free_ports=True, batch=True, env=env, **options)
    async with Mesh(made) as mesh:
        yield mesh


async def run_batch(
    batches: Batches,
    requests: Iterable[chat_pb2.CompletionRequest] | Callable[[], Iterable[batch_pb2.BatchItem]],
    *,
    lanes: Sequence[str] = (),
    window_seconds: float = WINDOW_SECONDS,
    look_seconds: float = 0.1,
    on_look: Callable[[], None] = lambda: None,
    bar: bool = False,
) -> Ran:
    """Upload and wait for the end. Raises BatchFailedError unless every item was answered. ``bar``: on a terminal."""
    source = requests if callable(requests) else list(as_items(requests))
    began = time.perf_counter()
    created = await batches.create(source, completion_window_seconds=window_seconds, lanes=lanes)
    if created.line_errors:
        raise BatchFailedError(f"line {created.line_errors[0].line}: {created.line_errors[0].message}")
    batch = created.batch
    console = Console(stderr=True)
    async with asyncio.timeout(_END_SECONDS):
        with Progress(console=console, transient=True, disable=not (console.is_terminal and bar)) as progress:
            task = progress.add_task("items", total=batch.item_count)
            while batch.state not in ENDED:
                await asyncio.sleep(look_seconds)
                on_look()
                batch = await batches.get(batch.batch_id)
                progress.update(task, completed=batch.done_count)
    seconds = time.perf_counter() - began
    if batch.state != batch_pb2.BATCH_STATE_DONE or batch.failed_count:
        raise BatchFailedError(f"{batch.failed_count} of {batch.item_count} items failed; {batch.error_message}")
    return Ran(batch, seconds)


def used_seconds(mesh: Mesh) -> dict[str, float]:
    """CPU of each process so far, user and system."""
    return {name: cpu_seconds(pid) for name, pid in mesh.pids.items() if pid}


def resident_mb(pid: int) -> float:
    """Resident memory of a process, MB."""
    return float(psutil.Process(pid).memory_info().rss) / 1e6


def peak_mb(pid: int) -> float:
    """The most memory that a process has had resident, MB; 0 where the kernel keeps no such count."""
    try:
        status = Path(f"/proc/{pid}/status").read_text("utf-8")
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith("VmHWM:")), 0.0)
