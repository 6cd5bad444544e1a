"""The whole mesh on whole workloads: what is left of the bill, and of the quality, beside the strong model alone.

Requests of three mixes go through the real mesh (processes, sockets, embedded vectors, SQLite ledger, traces); the
models are played by the sandbox, which answers what was recorded of them (``sandbox/recorded.py``). Every system begins
cold: nothing is imported into a cache. ``baseline`` is the strong model with every layer off, really asked.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import endtoend_arms as arms
from bench import endtoend_deploy as deploy
from bench import endtoend_report as report
from bench.endtoend_bulk import Operations
from bench.endtoend_mesh import Station
from bench.endtoend_play import Outcome, codes_of
from bench.endtoend_rows import MAIN, OMNIS, Reader, Rows
from bench.endtoend_sums import Run
from bench.endtoend_workload import MIXES, Arrival, arrival_times, read_mix, stream
from bench.result import Result, arguments
from sandbox.recorded import Record, key
from sandbox.recorded import write as write_record

DATA = Path("../shared/data")
QUICK_REQUESTS = 120
CLOCK = 0.02
"""Seconds of ours for each of the models' own."""
PER_SECOND = 3.0
"""Mean rate of the runs that time the mesh: what two cores, which also run the callers and the sandbox, take without
queueing."""


def main() -> int:
    """Run the benchmark; exit code 1 when it could not measure."""
    parser = arguments("endtoend", __doc__ or "")
    parser.add_argument("--requests", type=int, default=2000, help="requests of each mix (default %(default)s)")
    parser.add_argument("--mix", default=",".join(MIXES), help="which mixes, by comma (default: all)")
    parser.add_argument("--models-dir", type=Path, default=Path(".models"))
    parser.add_argument("--litellm", type=Path, default=Path(".venv-litellm"), help="environment with litellm[proxy]")
    parser.add_argument("--outcomes", type=Path, help="write every request's outcome here, JSON lines")
    options = parser.parse_args()
    result = Result("endtoend", options.quick)
    try:
        asyncio.run(measure(result, options))
    except (ValueError, OSError) as error:
        print(f"could not measure: {error}", file=sys.stderr)
        return 1
    result.write(options.json)
    return 0


async def measure(result: Result, options: argparse.Namespace) -> None:
    """Everything. Raises ValueError when there is nothing to ask."""
    data: Path = options.data or DATA
    rows = Reader(data, options.seed).read()
    result.skipped += rows.skipped
    count = QUICK_REQUESTS if options.quick else options.requests
    mixes = {name: read_mix(name) for name in options.mix.split(",") if name}
    times = arrival_times(data, count, options.seed)
    streams = {name: stream(mix, rows.asks, count, times, options.seed) for name, mix in mixes.items()}
    if not times:
        result.skipped.append("azure_llm_conv: no file; requests arrive evenly")
    report.assume(result, rows, mixes, streams, CLOCK, PER_SECOND)
    plans = arms.plan(mixes, streams, ablation=max(count // 4, min(count, 40)), frontier=count // 5, latency=min(80, count // 4))
    with tempfile.TemporaryDirectory(prefix="tenth-endtoend-") as folder:
        runs, record = await play(result, plans, streams, rows, options, Path(folder))
    if options.outcomes is not None:
        write_outcomes(options.outcomes, runs)
    report.add(result, runs, record, mixes, options.seed)
    if options.plots is not None:
        report.draw(result, runs, options.plots)


async def play(
    result: Result,
    plans: Sequence[arms.RunPlan],
    streams: Mapping[str, Sequence[Arrival]],
    rows: Rows,
    options: argparse.Namespace,
    folder: Path,
) -> tuple[dict[str, Run], Record]:
    """Every planned run through the mesh of each catalogue; what was asked of both stands in one run."""
    asks = list({key(a.ask.question): a.ask for each in streams.values() for a in each}.values())
    record = Record(CLOCK, deploy.SPEEDS, {key(ask.question): ask.recorded() for ask in asks})
    write_record(folder / "recorded.jsonl", record)
    found: dict[str, dict[int, Outcome]] = {each.name: {} for each in plans}
    prompts: dict[str, str] = {}
    for catalog in (MAIN, OMNIS):
        wanted = [(each, [a for a in each.stream if a.ask.catalog == catalog]) for each in plans]
        wanted = [(each, part) for each, part in wanted if part]
        if not wanted:
            continue
        station = Station(catalog, folder, options.models_dir, held_out_heads=rows.held_out_heads)
        tenants = {each.arm.tenant: each.off for each, _ in wanted}
        async with station.running(tenants, codes_of(asks), Operations()) as running:
            for each, part in wanted:
                started = time.perf_counter()
                outcomes, cpu = await running.run(each, part, PER_SECOND)
                found[each.name] |= {outcome.index: outcome for outcome in outcomes}
                if each.name.endswith(("/ours", "/baseline")):
                    result.add(f"{each.name}/cpu_ms_per_request_{catalog}", cpu * 1000 / len(part), "ms", len(part))
                print(f"{catalog} {each.name}: {len(part)} in {time.perf_counter() - started:.1f} s", file=sys.stderr)
            differences = await running.ledger_differences()
            result.add(f"ledger/ours/nano_usd_off_{catalog}", float(differences), "nano-USD", len(tenants))
        prompts |= station.prompts()
    return (
        {each.name: Run(each.stream, [found[each.name][a.index] for a in each.stream], prompts) for each in plans},
        record,
    )


def write_outcomes(path: Path, runs: Mapping[str, Run]) -> None:
    """Every outcome as a JSON line, for a closer look."""
    with path.open("w", encoding="utf-8") as file:
        for name, run in runs.items():
            qualities = run.qualities()
            for arrival, outcome, quality in zip(run.stream, run.outcomes, qualities, strict=True):
                line = {field: getattr(outcome, field) for field in Outcome.__slots__}
                line |= {"run": name, "workload": arrival.ask.workload, "row": arrival.ask.row_id}
                line |= {"topic": arrival.ask.topic, "wanted": arrival.ask.code}
                line["quality"] = None if quality is None else [quality.ours, quality.baseline]
                file.write(json.dumps(line) + "\n")



if __name__ == "__main__":
    sys.exit(main())
