"""The proof as one page: ``python -m bench.report [--results bench/results] [--out bench/report.html]``.

One file without a script that loads nothing: readable offline, light and dark, in English and Korean. Every figure is
one of the JSON results'. ``--endtoend`` takes the end-to-end result from another file (of a reduced run), ``--demo``
makes one of what ``make demo`` wrote.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.report_page import page
from bench.result import Result
from bench.tables import RESULTS, read_results

OUT = Path("bench/report.html")


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page; 1 when there is no end-to-end result or no drawing library."""
    parser = argparse.ArgumentParser(prog="python -m bench.report", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of results (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--endtoend", type=Path, help="the end-to-end result, where it is not the folder's")
    parser.add_argument("--demo", type=Path, help="make the end-to-end result from the demo's report")
    options = parser.parse_args(arguments)
    results = read_results(options.results)
    try:
        if options.demo is not None:
            results["endtoend"] = from_demo(json.loads(options.demo.read_text("utf-8")))
        elif options.endtoend is not None:
            results["endtoend"] = json.loads(options.endtoend.read_text("utf-8"))
        if "endtoend" not in results:
            raise LookupError(f"{options.results}/endtoend.json: not there; `make bench` runs its reduced form")
        text = page(results)
    except (LookupError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(text, "utf-8")
    print(options.out)
    return 0


def from_demo(report: Mapping[str, Any]) -> dict[str, Any]:
    """The demo's report in the shape of an end-to-end result, with the mix ``demo``: costs alone, no quality."""
    baseline, count = int(report["baseline_nano_usd"]), int(report["requests"])
    result = Result("endtoend", quick=True)

    def add(measure: str, nano: int, below: int = baseline) -> None:
        result.add(f"demo/ours/{measure}", nano / (below or 1), "ratio", count)

    actual = int(report["actual_nano_usd"])
    add("cost_ratio", actual)
    add("cost_ratio_prompt_cached", actual, int(report["baseline_prompt_cached_nano_usd"]))
    for layer, saved in report["savings_nano_usd"].items():
        add(f"saved_by_{layer}", int(saved))
    add("overhead", int(report["overhead_nano_usd"]))
    result.add("demo/ours/usd_per_1000_requests", actual / 1e6 / max(1, count), "USD", count)
    result.add("demo/ours/failed", int(report["failed"]), "count", count)
    result.assumptions["workload"] = "the demo's; models played by the sandbox, prices those of deploy/catalog.yaml"
    result.assumptions["baseline"] = ", ".join(report["baseline_models"])
    result.skipped.append("quality, ablation, frontier, LiteLLM: the evaluation data is not here")
    return result.as_json() | {"seconds": report["seconds"]}


if __name__ == "__main__":
    sys.exit(main())
