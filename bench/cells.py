"""Figures of a result as cells of a Markdown table; the tables of each benchmark are built from these."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Figures:
    """The metrics of a result."""

    def __init__(self, result: Mapping[str, Any]) -> None:
        self.metrics: Mapping[str, Mapping[str, Any]] = result["metrics"]

    def value(self, name: str) -> float | None:
        """The figure, if it was measured."""
        return float(self.metrics[name]["value"]) if name in self.metrics else None

    def share(self, name: str) -> str:
        """A ratio to three digits; empty when not measured."""
        value = self.value(name)
        return "" if value is None else f"{value:.3f}"

    def with_interval(self, name: str) -> str:
        """A ratio to three digits with its 95% interval; empty when not measured."""
        metric = self.metrics.get(name)
        if metric is None:
            return ""
        low, high = (f"{bound:.3f}" for bound in metric["ci95"] or (0, 0))
        return f"{metric['value']:.3f}" + (f" [{low}, {high}]" if low != high else "")

    def n(self, name: str) -> str:
        """Of how many rows a figure is."""
        return str(self.metrics[name]["n"]) if name in self.metrics else ""


def with_notes(texts: list[str], result: Mapping[str, Any]) -> str:
    """The texts, then which parts are of earlier commits, and what was not measured."""
    kept = result["assumptions"].get("kept", {})
    notes = [f"{part}: measured on commit {commit[:12]}." for part, commit in kept.items()]
    skipped = "\n".join(f"Not measured: {item}." for item in result["skipped"])
    return "\n\n".join([*texts, *notes, *([skipped] if skipped else [])])


def head(*titles: str, texts: int) -> list[str]:
    """The head of a table whose first columns are text and whose others are numbers."""
    return [row(*titles), f"|{'---|' * texts}{'--:|' * (len(titles) - texts)}"]


def row(*cells: str) -> str:
    """One line of a table."""
    return f"| {' | '.join(cells)} |"


def yes(reached: bool) -> str:
    """Whether a goal was reached."""
    return "yes" if reached else "**no**"
