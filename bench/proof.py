"""What ``make bench`` runs: the end-to-end benchmark, its page, and the tables that quote it.

``python -m bench.proof [--data DIR] [--full]``. The reduced form (``--quick`` of ``bench.endtoend``) goes into the page
alone, from a file beside the committed results: it is never quoted. With ``--full`` the result becomes
bench/results/endtoend.json, that of three seeds stands beside it, the pictures are those of docs/images, and
docs/benchmarks.md and the READMEs are written from them. Without the evaluation data the demo's workload is played, and
the page says so.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.headline import RESULT
from bench.report import OUT

DATA = Path("../shared/data")
REDUCED = Path(".data/bench/endtoend.json")
SEEDS = RESULT.with_name("endtoend_seeds.json")
DEMO = Path("demo/report.json")
IMAGES = Path("docs/images")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the steps in order; the exit status of the first that fails."""
    parser = argparse.ArgumentParser(prog="python -m bench.proof", description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="evaluation data (default: %(default)s)")
    parser.add_argument("--full", action="store_true", help="all requests, long on two cores; what the documents quote")
    options = parser.parse_args(arguments)
    there = options.data.is_dir()
    if options.full and not there:
        print(f"{options.data}: no evaluation data, and the full form needs it", file=sys.stderr)
        return 1
    if not there:
        print(f"{options.data}: no evaluation data, so the demo's workload is played; nothing is known of its quality")
    for step in steps(options.data, data_there=there, full=options.full, quoted=RESULT.is_file()):
        print(f"$ python -m {' '.join(step)}", flush=True)
        status = subprocess.run([sys.executable, "-m", *step], check=False).returncode  # noqa: S603  (our own modules)
        if status:
            return status
    return 0


def steps(data: Path, *, data_there: bool, full: bool, quoted: bool) -> list[list[str]]:
    """The modules to run with their arguments; ``quoted``: a full result is there that the documents quote. Pure."""
    if not data_there:
        found = [["tenth_client.demo", "--json", str(DEMO)], ["bench.report", "--demo", str(DEMO)]]
    elif full:
        found = [
            ["bench.endtoend", "--data", str(data), "--json", str(RESULT), "--plots", str(IMAGES)],
            ["bench.endtoend_seeds", "--data", str(data), "--json", str(SEEDS)],
            ["bench.report"],
        ]
    else:
        found = [
            ["bench.endtoend", "--data", str(data), "--quick", "--json", str(REDUCED)],
            ["bench.report", "--endtoend", str(REDUCED)],
        ]
    found[-1] += ["--out", str(OUT)]
    if full or quoted:
        found += [["bench.tables"], ["bench.headline"]]
    return found


if __name__ == "__main__":
    sys.exit(main())
