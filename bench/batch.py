"""What batches give, cost and survive: the local lane, its order, the layer's own CPU and memory, kills.

- **local**: items a second of the local lane, beside one request at a time and eight at once on the online path;
- **prefix**: prompts that begin alike side by side, beside the input's order, where the KV cache is small;
- **overhead**: CPU of batch service, worker and Temporal for an item, over an instant sandbox;
- **memory**: of a batch of a hundred thousand items;
- **kills**: rounds of one batch and one kill -9 each, and the books afterwards.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

from bench import batch_kills, batch_local, batch_memory, batch_overhead, batch_plots
from bench.batch_mesh import BatchFailedError
from bench.kept import NOT_ASKED, keep
from bench.pictures import draw_all
from bench.result import Result, arguments
from tenth_client import TenthClientError
from tenth_client.batch_layer import missing_batch_layer
from tenth_client.local import missing_local_model
from tenth_client.processes import StartError
from tenth_client.up import MeshOptions

PARTS = (batch_local.LOCAL, batch_local.PREFIX, batch_overhead.OVERHEAD, batch_memory.MEMORY, batch_kills.KILLS)
_OF_THE_ENGINE = (batch_local.LOCAL, batch_local.PREFIX)
_PART_OF_A_METRIC = {
    "local_lane": batch_local.LOCAL,
    "prefix_order": batch_local.PREFIX,
    "memory_100k": batch_memory.MEMORY,
}


def main() -> int:
    """Run the benchmark; exit code 1 when it could not measure."""
    parser = arguments("batch", (__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", type=parts, default=PARTS, metavar="PART,...", help=", ".join(PARTS))
    parser.add_argument("--keep", action="store_true", help="keep what the --json file has of the other parts")
    parser.add_argument("--models-dir", type=Path, default=Path(".models"))
    options = parser.parse_args()
    result = Result("batch", options.quick)
    result.assumptions |= {"seed": options.seed, "load_before": round(os.getloadavg()[0], 2), "part_seconds": {}}
    result.skipped += [f"{part}{NOT_ASKED}" for part in PARTS if part not in options.only]
    missing = missing_batch_layer()
    if missing:
        result.skipped.append(f"everything: {missing}")
    else:
        with tempfile.TemporaryDirectory(prefix="tenth-bench-") as made:
            for part in PARTS:
                if part in options.only:
                    _run(part, result, options, Path(made) / part)
    measured = bool(result.metrics)
    if options.keep and options.json is not None:
        seconds = result.assumptions["part_seconds"]
        said = keep(result, options.json, options.only, part_of, ("seed",))
        result.assumptions["part_seconds"] = result.assumptions.get("part_seconds", {}) | seconds
        if said:
            result.skipped.append(said)
    if options.plots is not None:
        result.skipped += draw_all(options.plots, "batch", batch_plots.pictures(result.metrics))
    result.write(options.json)
    return 0 if measured else 1


def part_of(name: str) -> str:
    """The part that a metric, or what was skipped, belongs to."""
    first = name.partition("/")[0]
    return _PART_OF_A_METRIC.get(first, first)


def parts(text: str) -> tuple[str, ...]:
    """The parts of a comma-separated list, for argparse."""
    names = tuple(name for name in text.split(",") if name)
    unknown = [name for name in names if name not in PARTS]
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"{text!r} is not of {', '.join(PARTS)}")
    return names


def _run(part: str, result: Result, options: argparse.Namespace, folder: Path) -> None:
    """Measure a part, or note why not."""
    models, seed = options.models_dir, options.seed
    if part in _OF_THE_ENGINE and (missing := missing_local_model(MeshOptions().deploy_dir, models)):
        result.skipped.append(f"{part}: {missing}")
        return
    known: Mapping[str, Callable[[], Coroutine[Any, Any, None]]] = {
        batch_local.LOCAL: lambda: batch_local.local(result, options.data, models, folder, seed),
        batch_local.PREFIX: lambda: batch_local.prefix(result, models, folder, seed),
        batch_overhead.OVERHEAD: lambda: batch_overhead.measure(result, models, folder, seed),
        batch_memory.MEMORY: lambda: batch_memory.measure(result, models, folder, seed),
        batch_kills.KILLS: lambda: batch_kills.measure(result, models, folder, seed),
    }
    began = time.time()
    try:
        asyncio.run(known[part]())
    except (BatchFailedError, TenthClientError, StartError, OSError, TimeoutError) as error:
        result.skipped.append(f"{part}: {error or type(error).__name__}")
    result.assumptions["part_seconds"][part] = round(time.time() - began, 1)


if __name__ == "__main__":
    sys.exit(main())
