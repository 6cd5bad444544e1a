"""Speed of the compressor's text work on one core: counting, protected spans, safe cuts, clean-up.

``python -m bench.compressor_tokens [--models DIR]``: megabytes of UTF-8 per second of CPU time, the best of three. The
texts are this repository's own prose and code, and generated JSON, each about a megabyte; counts are not cached.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from services.compressor.cleanup import SYSTEM_STEPS, cleaned
from services.compressor.cuts import safe_cuts
from services.compressor.folders import FolderTokenizer
from services.compressor.protected import hard_spans, soft_spans
from services.compressor.token_cache import pieces
from services.compressor.vocabularies import Count, load_encoding

MEGABYTE = 1_000_000
ROUNDS = 3


def texts() -> dict[str, str]:
    """Texts of about a megabyte, by kind."""
    code = "".join(path.read_text("utf-8") for path in sorted(Path("services").rglob("*.py")))
    rows = [
        {"id": number, "name": f"row {number}", "price": number * 1.37, "ok": number % 2 == 0} for number in range(9000)
    ]
    found = {
        "English prose": Path("README.md").read_text("utf-8"),
        "Korean prose": Path("README.ko.md").read_text("utf-8"),
        "code": code,
        "JSON": json.dumps(rows, indent=1),
    }
    return {kind: text * (MEGABYTE // len(text.encode()) + 1) for kind, text in found.items()}


def speed(work: Callable[[str], object], text: str) -> float:
    """Megabytes per second of this thread's CPU time."""
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.thread_time()
        work(text)
        best = min(best, time.thread_time() - started)
    return len(text.encode()) / MEGABYTE / best


def works(models: Path) -> dict[str, Callable[[str], object]]:
    """What is measured, by name."""

    def counting(count: Count) -> Callable[[str], object]:
        return lambda text: sum(map(count, pieces(text)))

    found: dict[str, Callable[[str], object]] = {}
    for name in ("cl100k_base", "o200k_base"):
        count = load_encoding(name)
        if count is not None:
            found[f"count {name}"] = counting(count)
    for folder in sorted(path.parent for path in models.glob("*/chat_template.jinja")):
        found[f"count {folder.name}"] = counting(FolderTokenizer(folder).count)
    found["hard spans"] = hard_spans
    found["soft spans"] = soft_spans
    found["safe cuts"] = safe_cuts
    found["clean-up (system)"] = lambda text: cleaned(text, SYSTEM_STEPS)
    return found


def table(results: Mapping[str, Mapping[str, float]]) -> str:
    """The figures as a Markdown table."""
    kinds = list(next(iter(results.values())))
    lines = ["| MB/s | " + " | ".join(kinds) + " |", "|---|" + "---|" * len(kinds)]
    lines += (f"| {name} | " + " | ".join(f"{row[kind]:.1f}" for kind in kinds) + " |" for name, row in results.items())
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", type=Path, default=Path(".models"), help="directory of model folders")
    arguments = parser.parse_args()
    found = texts()
    print(
        table(
            {
                name: {kind: speed(work, text) for kind, text in found.items()}
                for name, work in works(arguments.models).items()
            }
        )
    )


if __name__ == "__main__":
    main()
