"""How the savings grow while a cold cache warms, as figures of the result, so that the page can draw them later."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.endtoend_sums import Run, cumulative
from bench.result import Result

POINTS = 20
"""At most so many of each mix."""
_SAVED, _HITS = "saved_until_", "hits_until_"


def add_warming(result: Result, runs: Mapping[str, Run]) -> None:
    """Saved share and share of hits of a window that ends at a request, by mix; ``n`` is the window's length."""
    for mix, run in runs.items():
        window = max(20, len(run.outcomes) // 20)
        points = cumulative(run.outcomes, window)
        for end, saved, hits in points[:: max(1, -(-len(points) // POINTS))]:
            result.add(f"{mix}/ours/{_SAVED}{end}", saved, "ratio", window)
            result.add(f"{mix}/ours/{_HITS}{end}", hits, "ratio", window)


def warming(metrics: Mapping[str, Mapping[str, Any]]) -> dict[str, Sequence[tuple[int, float, float]]]:
    """The points by ``MIX/ours``, as the picture takes them: (requests so far, saved share, share of hits)."""
    found: dict[str, list[tuple[int, float, float]]] = {}
    for name, metric in metrics.items():
        of, _, end = name.rpartition(_SAVED)
        hits = metrics.get(f"{of}{_HITS}{end}")
        if of.endswith("/ours/") and hits is not None:
            found.setdefault(of.removesuffix("/"), []).append((int(end), float(metric["value"]), float(hits["value"])))
    return {name: sorted(points) for name, points in found.items()}
