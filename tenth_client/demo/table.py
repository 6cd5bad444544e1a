"""Writes the demo's waterfall into README.md and README.ko.md: ``python -m tenth_client.demo.table``.

The figures come from demo/report.json alone, so that none is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_BLOCK = re.compile(r"(<!-- demo:begin[^>]*-->\n).*?(<!-- demo:end -->)", re.DOTALL)
_NANO = 1_000_000_000


def table(report: Mapping[str, Any]) -> str:
    """The waterfall as a Markdown table."""
    baseline = int(report["baseline_nano_usd"])
    rows = [(f"baseline ({', '.join(report['baseline_models'])})", baseline)]
    rows += [(f"- {layer.replace('_', ' ')}", -int(saved)) for layer, saved in report["savings_nano_usd"].items()]
    rows += [("+ overhead", int(report["overhead_nano_usd"])), ("= actual", int(report["actual_nano_usd"]))]
    lines = ["| step | USD | of baseline |", "|---|---:|---:|"]
    lines += [f"| {name} | {nano / _NANO:.6f} | {nano / baseline:.1%} |" for name, nano in rows]
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(report["hit_kinds"].items()))
    lines += [
        "",
        f"{report['requests']} requests, {report['failed']} failed, {report['cache_hits']} cache hits "
        f"({kinds or 'none'}); "
        f"p50 {report['latency_ms']['p50'] / 1000:.1f} s, p95 {report['latency_ms']['p95'] / 1000:.1f} s, "
        "nearly all of it the local model's own time on the CPU.",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Rewrite the marked block of each page; 1 when a page has none."""
    parser = argparse.ArgumentParser(prog="python -m tenth_client.demo.table", description=__doc__)
    parser.add_argument("--report", type=Path, default=Path("demo/report.json"))
    parser.add_argument("pages", nargs="*", type=Path, default=[Path("README.md"), Path("README.ko.md")])
    options = parser.parse_args(arguments)
    text = table(json.loads(options.report.read_text("utf-8")))
    for page in options.pages:
        old = page.read_text("utf-8")
        new, count = _BLOCK.subn(lambda found: found[1] + text + found[2], old)
        if count != 1:
            print(f"{page}: no block marked demo:begin", file=sys.stderr)
            return 1
        page.write_text(new, "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
