"""``make demo``: starts the mesh, asks, shows what it cost and where the rest went, stops.

The report is honest about its parts: models that are played by the sandbox are named on screen and in the file,
and the sums are checked against the ledger before they are shown.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from formats.openai_answers import LAYERS
from tenth_client import cache_commands, traces
from tenth_client.batch_layer import missing_batch_layer
from tenth_client.cli import printer
from tenth_client.client import Client
from tenth_client.commands import fetch_trace, play_with_bar
from tenth_client.connection import CLIENT_FILE
from tenth_client.demo import batch, workload
from tenth_client.errors import TenthClientError
from tenth_client.local import missing_local_model, read_yaml
from tenth_client.money import percent, usd
from tenth_client.processes import StartError
from tenth_client.replay import Played, Summary, counts, summarize, waterfall
from tenth_client.rpc import Rpc
from tenth_client.up import Mesh, MeshOptions

FIRST = 10
"""Requests played first, so that a newcomer sees answers at once."""
_SETTLE_SECONDS = 60.0
_TRACE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that must hold, and whether it does."""

    text: str
    holds: bool


async def run(arguments: argparse.Namespace, console: Console) -> int:
    """The whole demo; 0 when every request was answered and every check holds."""
    data_dir = fresh(arguments.data_dir)
    absent = "" if arguments.no_model else missing_local_model(arguments.deploy_dir, arguments.models_dir)
    if absent:
        console.print(f"[yellow]without the local model:[/] {absent}")
    no_batch = "" if arguments.no_batch else missing_batch_layer()
    if no_batch:
        console.print(f"[yellow]without the batch layer:[/] {no_batch}", soft_wrap=True)
    options = MeshOptions(
        data_dir=data_dir,
        models_dir=arguments.models_dir,
        deploy_dir=arguments.deploy_dir,
        local_model=not (arguments.no_model or absent),
        sandbox=arguments.sandbox,
        batch=not (arguments.no_batch or no_batch),
        free_ports=True,
        env={
            "cache": {"TENTH_CACHE_NAMESPACES_FILE": str(rules_file(data_dir))},
            "batch-worker": batch.ENVIRONMENT,
        },
    )
    started = time.perf_counter()
    console.print("Starting the mesh: every service its own process ...")
    async with Mesh(options, say=printer(console, quiet=True)) as mesh:
        console.print(f"up after {time.perf_counter() - started:.1f} s; logs in {mesh.data_dir / 'logs'}")
        label(mesh, console)
        requests = workload.requests(arguments.max_tokens)[: arguments.requests]
        async with Client(mesh.address("orchestrator"), mesh.api_key) as client, Rpc(mesh.connection) as rpc:
            await import_help_centre(rpc, data_dir, arguments.max_tokens, console)
            began = time.perf_counter()
            results, _ = await play_with_bar(client, requests[:FIRST], 1, console)
            show_first(results, workload.bodies(arguments.max_tokens), console)
            more, _ = await play_with_bar(client, requests[FIRST:], arguments.concurrency, console)
            results += more
            summary = summarize(results, time.perf_counter() - began)
            checks = [
                Check("baseline - sum(savings) + overhead == actual", summary.identity_holds),
                await ledger_agrees(rpc, results, summary),
                help_centre_right(results, workload.bodies(arguments.max_tokens)),
            ]
            show_sums(mesh, summary, checks, console)
            await show_cache(rpc, console)
            await show_trace(rpc, results, console)
            if mesh.options.batch:
                # After the sums: its receipts are not among those that were added up.
                real = batch.real_providers(read_yaml(mesh.data_dir / "catalog.yaml"), mesh.played_providers)
                window = "10m" if real else "24h"
                answered = await batch.play_batch(rpc, data_dir, arguments.max_tokens, window, console)
                checks.append(Check("every item of the batch was answered", answered))
                show_check(checks[-1], console)
        write_report(arguments.json, mesh, summary, checks)
        console.print(f"\nreport: {arguments.json}    traces (SQLite): {mesh.trace_file}")
    console.print("The mesh has stopped. Next: `tenth up` in one terminal, `tenth chat` in another;")
    console.print("docs/request-path.md follows one request; the code starts in services/orchestrator/flow.py.")
    show_failures(results, console)
    return 0 if summary.failed == 0 and all(check.holds for check in checks) else 1


def fresh(data_dir: Path) -> Path:
    """An empty data directory: what an earlier demo left would answer from its cache and spoil the sums."""
    if data_dir.exists() and any(data_dir.iterdir()):
        if not (data_dir / CLIENT_FILE).exists():
            raise StartError(f"{data_dir} is not empty and was not made by the demo; name another --data-dir")
        shutil.rmtree(data_dir)
    data_dir.mkdir(parents=True, exist_ok=True)
    return data_dir


def rules_file(data_dir: Path) -> Path:
    """The demo's rules of namespaces, where the cache reads them."""
    path = data_dir.resolve() / "namespaces.yaml"
    path.write_text(workload.rules(), "utf-8")
    return path


async def import_help_centre(rpc: Rpc, data_dir: Path, max_tokens: int, console: Console) -> None:
    """Put the shop's help centre into the cache, as its operator would. Raises StartError when it is not taken."""
    path = data_dir / "faq.jsonl"
    lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in workload.help_centre(max_tokens))
    path.write_text("".join(lines), "utf-8")
    console.print(f"\n$ tenth cache import {path}", markup=False, soft_wrap=True)
    wanted = argparse.Namespace(file=str(path), namespace="", renew=False, encoding="utf-8", dry_run=False)
    if await cache_commands.import_file(rpc, wanted, console) != 0:
        raise StartError("the help centre was not taken in")


async def show_cache(rpc: Rpc, console: Console) -> None:
    """What the cache holds and did, and by which rules."""
    for name, command in (("stats", cache_commands.stats), ("namespaces", cache_commands.namespaces)):
        console.print(f"\n$ tenth cache {name}", markup=False)
        await command(rpc, argparse.Namespace(namespace="", json=False), console)


def label(mesh: Mesh, console: Console) -> None:
    """Say which models are not what they are called."""
    if mesh.played_providers:
        console.print(
            f"[bold yellow]SANDBOX:[/] no API key for {', '.join(mesh.played_providers)}. Their models are played by "
            f"{mesh.played_by}: the answers' quality is not theirs; tokens are counted and priced as theirs."
        )
    elif mesh.options.sandbox != "off":
        console.print("Every provider has its key: real models answer, and real money is spent.")


def show_first(results: list[Played], bodies: list[dict[str, Any]], console: Console) -> None:
    """The first answers."""
    console.print(f"\nThe first {len(results)} requests:")
    for played in results:
        question = str(bodies[played.index]["messages"][-1]["content"])
        if played.receipt is None or played.error is not None:
            console.print(f"  {question[:60]!r} failed: {played.error}", style="red", markup=False)
            continue
        facts = played.receipt.facts
        saved = played.receipt.baseline_nano_usd - played.receipt.actual_nano_usd
        source = f"{facts.cache_hit_kind} hit" if facts.cache_hit else played.model
        share = percent(saved, played.receipt.baseline_nano_usd)
        answer = " ".join(played.text.split())[:70]
        console.print(f"  Q {question[:70]}\n  A {answer}", markup=False)
        line = f"    {source}, {played.latency_ms:.0f} ms, {usd(played.receipt.actual_nano_usd)}, saved {share}"
        console.print(line, style="dim", markup=False)


def show_sums(mesh: Mesh, summary: Summary, checks: list[Check], console: Console) -> None:
    """The waterfall, the counts and the checks."""
    console.print()
    console.print(waterfall(summary, title=f"{summary.requests} requests: what they cost, and where the rest went"))
    console.print()
    console.print(counts(summary))
    for check in checks:
        show_check(check, console)
    if mesh.played_providers:
        console.print(
            f"[yellow]Played by {mesh.played_by}: models of {', '.join(mesh.played_providers)}. The savings are this "
            "workload's at the price book's prices; they say nothing about answer quality.[/]"
        )


def show_check(check: Check, console: Console) -> None:
    """One check, and whether it holds."""
    mark = "[green]holds[/]" if check.holds else "[bold red]DOES NOT HOLD[/]"
    console.print(f"check: {check.text}: {mark}")


def help_centre_right(results: list[Played], bodies: list[dict[str, Any]]) -> Check:
    """No answer of the help centre went to another question than its own."""
    answers = workload.right_answers()
    texts = set(answers.values())
    # In the order of the workload; ``index`` counts within a batch.
    asked = [str(body["messages"][-1]["content"]) for body in bodies[: len(results)]]
    served = [(question, played.text) for question, played in zip(asked, results, strict=True) if played.text in texts]
    right = sum(text == answers.get(question) for question, text in served)
    text = f"{right} of {len(served)} answers from the help centre are those to their question"
    return Check(text, right == len(served))


async def ledger_agrees(rpc: Rpc, results: list[Played], summary: Summary) -> Check:
    """Wait until the ledger has every receipt and compare its sums, layer by layer."""
    expected = sum(played.receipt is not None for played in results)
    until = time.monotonic() + _SETTLE_SECONDS
    text = "the ledger's report has not come"
    while time.monotonic() < until:
        request = ledger_pb2.GetSpendReportRequest()
        try:
            response = await rpc.call("ledger", ledger_pb2_grpc.LedgerReadServiceStub, "GetSpendReport", request)
        except TenthClientError as error:
            text = str(error)
        else:
            row = response.rows[0] if response.rows else ledger_pb2.SpendRow()
            text = f"the ledger has {row.request_count} of {expected} receipts"
            if row.request_count >= expected:
                return Check(
                    f"the ledger's report of {row.request_count} receipts equals their sum", same(row, summary)
                )
        await asyncio.sleep(0.3)
    return Check(text, holds=False)


def same(row: ledger_pb2.SpendRow, summary: Summary) -> bool:
    """True when the ledger's row equals the receipts' sums to the nano-dollar."""
    ledger = dict.fromkeys(LAYERS.values(), 0)
    for saving in row.savings:
        ledger[LAYERS.get(saving.layer, str(saving.layer))] = saving.saving_nano_usd
    theirs = (row.baseline_nano_usd, row.overhead_nano_usd, row.actual_nano_usd, ledger, row.cache_hit_count)
    ours = (summary.baseline, summary.overhead, summary.actual, summary.savings, summary.cache_hits)
    return theirs == ours


async def show_trace(rpc: Rpc, results: list[Played], console: Console) -> None:
    """One request that went all the way, as a tree."""
    whole = [played for played in results if played.receipt is not None and not played.receipt.facts.cache_hit]
    if not whole or whole[-1].receipt is None:
        return
    request_id, trace_id = whole[-1].request_id, whole[-1].receipt.facts.trace_id
    until = time.monotonic() + _TRACE_SECONDS
    while time.monotonic() < until:
        found, spans = await fetch_trace(rpc, trace_id or request_id)
        # Processes send their spans every half second; the root comes last.
        if spans and any(not span.parent_span_id for span in spans) and len({span.service for span in spans}) > 1:
            await asyncio.sleep(0.6)
            found, spans = await fetch_trace(rpc, found)
            console.print(f"\n$ tenth trace {request_id}", markup=False)
            console.print(traces.render(found, spans), markup=False, soft_wrap=True)
            return
        await asyncio.sleep(0.3)
    console.print(f"no complete trace of {request_id} has arrived", style="red")


def write_report(path: Path, mesh: Mesh, summary: Summary, checks: list[Check]) -> None:
    """Write demo/report.json."""
    report = {
        **summary.report(),
        "checks": {check.text: check.holds for check in checks},
        "sandbox": {"providers": list(mesh.played_providers), "played_by": mesh.played_by}
        if mesh.played_providers
        else None,
        "trace_file": str(mesh.trace_file),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2, ensure_ascii=False) + "\n", "utf-8")


def show_failures(results: list[Played], console: Console) -> None:
    """Every failed request, by id."""
    for played in results:
        if played.error is not None:
            console.print(f"request {played.request_id} failed: {played.error}", style="red", markup=False)


def main() -> None:
    """Parse the arguments and run."""
    parser = argparse.ArgumentParser(prog="python -m tenth_client.demo", description=(__doc__ or "").split("\n")[0])
    models = os.environ.get("TENTH_MODELS_DIR", ".models")
    parser.add_argument("--requests", type=int, default=200, help="how many of the workload (default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=4, help="requests at a time (default: %(default)s)")
    parser.add_argument("--max-tokens", type=int, default=workload.MAX_TOKENS, help="output tokens per answer")
    parser.add_argument("--data-dir", type=Path, default=Path("demo/data"), help="emptied first (default: %(default)s)")
    parser.add_argument("--models-dir", type=Path, default=Path(models), help="model folders (default: %(default)s)")
    parser.add_argument("--deploy-dir", type=Path, default=Path("deploy"), help="catalogue and callers")
    parser.add_argument("--json", type=Path, default=Path("demo/report.json"), help="the report (default: %(default)s)")
    parser.add_argument("--no-model", action="store_true", help="without the local model")
    parser.add_argument("--no-batch", action="store_true", help="without the batch layer (and Temporal)")
    parser.add_argument("--sandbox", choices=("auto", "off", "instant"), default="auto", help="as in `tenth up`")
    arguments = parser.parse_args()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)
    try:
        status = asyncio.run(run(arguments, console))
    except (StartError, FileNotFoundError) as error:
        console.print(f"the demo could not start: {error}", style="red", markup=False, soft_wrap=True)
        status = 1
    except KeyboardInterrupt:
        status = 130
    raise SystemExit(status)


if __name__ == "__main__":
    main()
