"""Writes the tables of docs/benchmarks.md from bench/results/*.json: ``python -m bench.tables [--check]``.

A table stands between ``<!-- bench:NAME -->`` and ``<!-- /bench:NAME -->``. Results of ``--quick`` runs are refused.
With ``--check`` nothing is written; exit status 1 says that the document is not what would be.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.batch_tables import batch_tables
from bench.cache_tables import cache_tables
from bench.claims import claims_table
from bench.compressor_tables import compressor_tables
from bench.endtoend_seeds_table import seeds_table
from bench.endtoend_tables import endtoend_tables
from bench.inference_tables import inference_tables
from bench.router_tables import router_tables
from bench.soak_table import soak_table

DOCUMENT = Path("docs/benchmarks.md")
RESULTS = Path("bench/results")
CLAIMS = "claims"
"""The block that is made of several results."""
_BLOCK = re.compile(r"<!-- bench:(\w+) -->\n.*?<!-- /bench:\1 -->", re.DOTALL)

_KINDS = {"exact_hit": "exact hit", "semantic_hit": "semantic hit", "miss": "miss"}
_WRONGS = {
    "overspend": "most that spent and reserved stood above the limit, nano-USD",
    "leaked": "reservations still open after the sweeper's time",
    "lost": "acknowledged settlements that are not in the books",
    "double_counted": "requests settled twice, or not summed once",
    "identity_violations": "receipts whose savings do not add up",
}
_SYSTEMS = {"ours": "Tenth", "litellm": "LiteLLM", "direct": "direct"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the document; 1 when a result cannot be quoted, or with ``--check`` when the document is stale."""
    parser = argparse.ArgumentParser(prog="python -m bench.tables", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit status 1 when the document is stale")
    parser.add_argument("--document", type=Path, default=DOCUMENT)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    text = options.document.read_text("utf-8")
    new, problems = rendered(text, options.results)
    if options.check and new != text:
        problems.append(f"{options.document}: not what `python -m bench.tables` writes")
    if not options.check:
        options.document.write_text(new, "utf-8")
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


def rendered(text: str, folder: Path) -> tuple[str, list[str]]:
    """The document with the tables of a folder's results, and why some of them stayed as they were."""
    results = read_results(folder)
    problems: list[str] = []

    def block(match: re.Match[str]) -> str:
        name = match[1]
        if name == CLAIMS:
            quoted = {bench: result for bench, result in results.items() if not result["quick"]}
            return f"<!-- bench:{name} -->\n{claims_table(quoted)}\n<!-- /bench:{name} -->"
        file = folder / f"{name}.json"
        if name not in TABLES or name not in results:
            problems.append(f"{name}: no table or no {file}")
            return match[0]
        if results[name]["quick"]:
            problems.append(f"{file}: a quick run is not quoted")
            return match[0]
        return f"<!-- bench:{name} -->\n{TABLES[name](results[name])}\n<!-- /bench:{name} -->"

    return _BLOCK.sub(block, text), problems


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """Every result of a folder by its file's name."""
    return {file.stem: json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))}


def mesh_tables(result: Mapping[str, Any]) -> str:
    """Latency and CPU by kind, system and concurrency; then the goals."""
    metrics = result["metrics"]

    def value(name: str) -> float | None:
        return float(metrics[name]["value"]) if name in metrics else None

    lines = [
        "| request | system | concurrency | p50 ms | p95 ms | p99 ms | CPU ms per request | as intended |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    for kind, kind_name in _KINDS.items():
        for concurrency, suffix in ((1, ""), (32, "_c32")):
            for system, system_name in _SYSTEMS.items():
                measures = [
                    value(f"{kind}/{system}/{measure}{suffix}")
                    for measure in ("p50_ms", "p95_ms", "p99_ms", "cpu_ms_per_request", "as_intended")
                ]
                if measures[0] is None:
                    continue
                cells = [*map(_number, measures[:4]), "" if measures[4] is None else f"{measures[4]:.3f}"]
                lines.append(f"| {kind_name} | {system_name} | {concurrency} | {' | '.join(cells)} |")
    lines += ["", "| goal | concurrency | measured | goal |", "|---|--:|--:|--:|"]
    embed = value("miss/ours/embed_cpu_ms") or 0.0
    for concurrency, suffix in ((1, ""), (32, "_c32")):
        for kind, beside, goal in (("exact_hit", 0.0, 0.25), ("miss", embed, 0.6)):
            ours, other = (value(f"{kind}/{system}/cpu_ms_per_request{suffix}") for system in ("ours", "litellm"))
            if ours is not None and other:
                what = f"{_KINDS[kind]}: CPU{' beside the embedding' if beside else ''}, share of LiteLLM's"
                lines.append(f"| {what} | {concurrency} | {(ours - beside) / other:.2f} | below {goal} |")
    resident = _number(value("idle/ours/rss_mb"))
    lines.append(f"| idle mesh without the model process, MB resident | | {resident} | below 1288 (1.2 GiB) |")
    lines.append("")
    for kind in ("semantic_hit", "miss"):
        lines.append(
            f"Embedding on a {_KINDS[kind]}: {_number(value(f'{kind}/ours/embed_cpu_ms'))} ms of CPU, "
            "in the CPU above (what the compressor measures of itself, a tenth of a millisecond, is counted with it)."
        )
    lines.append("")
    machine = result["machine"]
    count = metrics["miss/ours/p50_ms"]["n"]
    lines.append(
        f"Commit {result['commit'][:12]}, {count} requests per system, kind and concurrency, "
        f"{result['seconds']:.0f} s, {machine['cpus']} CPUs ({machine['machine']}), Python {machine['python']}."
    )
    if result["assumptions"].get("litellm"):
        lines.append(f"LiteLLM's proxy is version {result['assumptions']['litellm']}.")
    lines += [f"Not measured: {item}." for item in result["skipped"]]
    return "\n".join(lines)


def ledger_tables(result: Mapping[str, Any]) -> str:
    """Settlements, reservations and sizes by store; the money's rights and wrongs; reports by size of the books."""
    metrics = result["metrics"]

    def value(name: str) -> str:
        return _number(float(metrics[name]["value"])) if name in metrics else ""

    lines = [
        "| store | settles/s, 1 writer | 8 writers | goal | reserve p50 ms | p95 | goal "
        "| reserve + settle p50 ms | p95 | bytes per event |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for store, name, goal in (("sqlite", "SQLite", "1000"), ("postgres", "Postgres", "2000")):
        of = f"{store}/ours/"
        cells = [
            *(value(f"{of}settles_per_s_{writers}") for writers in ("w1", "w8")),
            f"at least {goal}",
            *(value(f"{of}reserve_{share}_ms") for share in ("p50", "p95")),
            "at most 5",
            *(
                value(f"{of}{measure}")
                for measure in ("reserve_settle_p50_ms", "reserve_settle_p95_ms", "bytes_per_event")
            ),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", "| under kills and cancellations | measured | goal | of |", "|---|--:|--:|--:|"]
    for name, what in _WRONGS.items():
        metric = metrics.get(f"{name}/ours/count")
        if metric is not None:
            lines.append(f"| {what} | {metric['value']:.0f} | 0 | {metric['n']} |")
    lines += ["", "| books | median ms | slowest grouping, ms | goal | by |", "|---|--:|--:|--:|---|"]
    for name, what, most in (("report_1m", "1 million receipts", 1000), ("report_10m", "10 million receipts", 3000)):
        if f"{name}/ours/p50_ms" in metrics:
            slowest = result["assumptions"].get(f"{name}_worst", "").replace("_", ", ")
            cells = [value(f"{name}/ours/{measure}") for measure in ("p50_ms", "worst_p50_ms")]
            lines.append(f"| {what} | {cells[0]} | {cells[1]} | at most {most} | {slowest} |")
    mismatches = metrics.get("pricemap/ours/mismatches")
    if mismatches is not None:
        lines += [
            "",
            f"LiteLLM's price map against a second computation in decimal numbers: "
            f"{mismatches['value']:.0f} mismatches in {mismatches['n']} costs (goal: 0).",
        ]
    done = result["assumptions"].get("overspend")
    if done:
        lines += [
            "",
            f"The overspend test: {done['clients']} clients, {done['replicas']} replicas, "
            f"{done.get('kills', 0)} kills, {done.get('cancelled', 0)} cancelled calls, "
            f"{done.get('retried: UNAVAILABLE', 0)} calls asked again because a replica was gone, "
            f"{done.get('forgotten', 0)} reservations that nobody came back for; the books were read "
            f"{done.get('looks', 0)} times meanwhile.",
        ]
    machine = result["machine"]
    lines += [
        "",
        f"Commit {result['commit'][:12]}, {result['seconds']:.0f} s, {machine['cpus']} CPUs ({machine['machine']}), "
        f"Python {machine['python']}.",
    ]
    lines += [f"Not measured: {item}." for item in result["skipped"]]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


TABLES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "mesh": mesh_tables,
    "ledger": ledger_tables,
    "cache": cache_tables,
    "router": router_tables,
    "compressor": compressor_tables,
    "inference": inference_tables,
    "inference_soak": soak_table,
    "batch": batch_tables,
    "endtoend": endtoend_tables,
    "endtoend_seeds": seeds_table,
}
"""The tables by benchmark."""


if __name__ == "__main__":
    sys.exit(main())
