"""The one shape of every benchmark: its flags, its metrics, its JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Metrics = dict[str, dict[str, Any]]


@dataclass(slots=True)
class Result:
    """What a benchmark measured."""

    bench: str
    quick: bool
    started: float = field(default_factory=time.time)
    assumptions: dict[str, Any] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    metrics: Metrics = field(default_factory=dict)

    def add(self, name: str, value: float, unit: str, n: int, ci95: tuple[float, float] | None = None) -> None:
        """Note one figure, named ``set/system/measure``."""
        self.metrics[name] = {"value": value, "unit": unit, "n": n, "ci95": list(ci95) if ci95 else None}

    def write(self, path: Path | None) -> None:
        """Print the figures, and write them as JSON where asked."""
        width = max(map(len, self.metrics), default=0)
        for name, metric in self.metrics.items():
            print(f"{name:<{width}}  {metric['value']:>12.4g} {metric['unit']}  (n={metric['n']})")
        for item in self.skipped:
            print(f"skipped: {item}")
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(self.as_json(), indent=1, ensure_ascii=False) + "\n", "utf-8")

    def as_json(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "bench": self.bench,
            "commit": _commit(),
            "quick": self.quick,
            "machine": {"cpus": os.cpu_count(), "machine": platform.machine(), "python": platform.python_version()},
            "seconds": round(time.time() - self.started, 1),
            "assumptions": self.assumptions,
            "skipped": self.skipped,
            "metrics": self.metrics,
        }


def arguments(bench: str, description: str) -> argparse.ArgumentParser:
    """The flags that every benchmark takes."""
    parser = argparse.ArgumentParser(prog=f"python -m bench.{bench}", description=description)
    parser.add_argument("--data", type=Path, help="folder with the layout of the evaluation data")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--quick", action="store_true", help="a short run, marked as such; never quoted")
    parser.add_argument("--plots", type=Path, help="write pictures here")
    parser.add_argument("--seed", type=int, default=7)
    return parser


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a share of the sorted values lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def median(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S607  (the git on the path is the one meant)
    return found.stdout.strip()
