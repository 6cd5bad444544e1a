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
from bench.endtoend_litellm import HttpAsker, body_of, configuration, direct_body
from bench.endtoend_mesh import CONCURRENCY, MOST_AT_ONCE, Running, Station
from bench.endtoend_play import Outcome, codes_of
from bench.endtoend_rows import MAIN, OMNIS, Reader, Rows
from bench.endtoend_sums import Run
from bench.endtoend_workload import MIXES, Arrival, arrival_times, read_mix, stream, unasked
from bench.mesh import cpu_seconds
from bench.peers import litellm_version, start_litellm
from bench.result import Result, arguments
from sandbox.recorded import Record, key
from sandbox.recorded import write as write_record
from tenth_client.batch_layer import missing_batch_layer
from tenth_client.local import free_ports

DATA = Path("../shared/data")
QUICK_REQUESTS = 120
TIMED = 80
"""Requests of each mix that are timed, at most."""
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
    parser.add_argument("--only-mixes", action="store_true", help="no ablation, frontier, timing or peer")
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
    if options.only_mixes:
        plans = arms.plan(mixes, streams, 0, 0, {})
    else:
        rest, most = unasked(rows.asks, streams.values()), min(TIMED, count // 4)
        timed = {name: stream(mix, rest, most, times, options.seed + 1) for name, mix in mixes.items()}
        plans = arms.plan(mixes, streams, max(count // 4, min(count, 40)), count // 5, timed)
    with tempfile.TemporaryDirectory(prefix="tenth-endtoend-") as folder:
        runs, record = await play(result, plans, rows, options, Path(folder))
    if options.outcomes is not None:
        write_outcomes(options.outcomes, runs)
    report.add(result, runs, record, mixes, options.seed)
    if options.plots is not None:
        report.draw(result, runs, options.plots)


async def play(
    result: Result,
    plans: Sequence[arms.RunPlan],
    rows: Rows,
    options: argparse.Namespace,
    folder: Path,
) -> tuple[dict[str, Run], Record]:
    """Every planned run through the mesh of each catalogue; what was asked of both stands in one run."""
    asks = list({key(a.ask.question): a.ask for each in plans for a in each.stream}.values())
    codes = codes_of(asks)
    record = Record(CLOCK, deploy.SPEEDS, {key(ask.question): ask.recorded() for ask in asks})
    write_record(folder / "recorded.jsonl", record)
    absent = missing_batch_layer()
    batch = not absent
    if absent:
        result.skipped.append(f"batches: {absent}; what can wait is answered online")
    found: dict[str, dict[int, Outcome]] = {each.name: {} for each in plans}
    streamed = {each.name: each.stream for each in plans}
    prompts: dict[str, str] = {}
    for catalog in (MAIN, OMNIS):
        wanted = [(each, part) for each in plans if (part := [a for a in each.stream if a.ask.catalog == catalog])]
        if not wanted:
            continue
        station = Station(catalog, folder, options.models_dir, held_out_heads=rows.held_out_heads)
        tenants = {each.arm.tenant: each.off for each, _ in wanted}
        async with station.running(tenants, codes, batch=batch and catalog == MAIN) as running:
            for each, part in wanted:
                started = time.perf_counter()
                outcomes, cpu = await running.run(each, part, PER_SECOND)
                found[each.name] |= {outcome.index: outcome for outcome in outcomes}
                if catalog == MAIN and each.name.endswith(("/ours", "/baseline")):
                    result.add(f"{each.name}/cpu_ms_per_request", cpu * 1000 / len(part), "ms", len(part))
                say(f"{catalog} {each.name}: {len(part)} in {time.perf_counter() - started:.1f} s")
            differences = await running.ledger_differences()
            result.add(f"ledger/ours/nano_usd_off_{catalog}", float(differences), "nano-USD", len(tenants))
            if catalog == MAIN and not options.only_mixes:
                theirs = [each for each in plans if each.name.endswith(("/ours", "/latency"))]
                for name, (asked, outcomes) in {
                    **await direct(running, theirs, codes),
                    **await peer(result, running, theirs, codes, options),
                }.items():
                    streamed[name], found[name] = asked, {outcome.index: outcome for outcome in outcomes}
        prompts |= station.prompts()
    runs = {name: Run(asked, [found[name][a.index] for a in asked], prompts) for name, asked in streamed.items()}
    return runs, record


async def direct(
    running: Running, plans: Sequence[arms.RunPlan], codes: Mapping[str, str]
) -> dict[str, tuple[Sequence[Arrival], list[Outcome]]]:
    """The strong model asked with nothing between, at the pace of the plans that have one; by name."""
    asker, found = HttpAsker(f"http://{running.mesh.address('sandbox')}/v1", codes, direct_body), {}
    for each in plans:
        if each.paced:
            await running.forget()
            outcomes = await asker.play(each.stream, "", MOST_AT_ONCE, PER_SECOND)
            found[each.name.replace("/latency", "/direct_latency")] = (each.stream, outcomes)
    return found


async def peer(
    result: Result,
    running: Running,
    plans: Sequence[arms.RunPlan],
    codes: Mapping[str, str],
    options: argparse.Namespace,
) -> dict[str, tuple[Sequence[Arrival], list[Outcome]]]:
    """LiteLLM's proxy on the streams of these plans, where it is installed; by name."""
    sandbox = f"http://{running.mesh.address('sandbox')}/v1"
    folder = running.mesh.data_dir / "litellm"
    proxy = await start_litellm(
        options.litellm, sandbox, free_ports(["litellm"])["litellm"], folder, configuration(sandbox)
    )
    if proxy is None:
        result.skipped.append(f"litellm: not installed in {options.litellm}")
        return {}
    result.assumptions["litellm"] = litellm_version(options.litellm)
    client, found = HttpAsker(f"{proxy.url}/v1", codes, body_of), {}
    try:
        for each in plans:
            await running.forget()
            name = each.name.replace("/ours", "/litellm").replace("/latency", "/litellm_latency")
            started, before = time.perf_counter(), cpu_seconds([proxy.pid])
            concurrency, per_second = (MOST_AT_ONCE, PER_SECOND) if each.paced else (CONCURRENCY, 0.0)
            outcomes = await client.play(each.stream, name, concurrency, per_second)
            found[name] = (each.stream, outcomes)
            if not each.paced:
                cpu = (cpu_seconds([proxy.pid]) - before) * 1000 / len(outcomes)
                result.add(f"{name}/cpu_ms_per_request", cpu, "ms", len(outcomes))
            say(f"{name}: {len(outcomes)} in {time.perf_counter() - started:.1f} s")
    finally:
        proxy.stop()
    return found


def say(line: str) -> None:
    """How far the run is, beside the figures."""
    print(line, file=sys.stderr, flush=True)


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
