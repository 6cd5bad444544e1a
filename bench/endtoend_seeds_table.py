"""The table of the mixes drawn with several seeds, for docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.cells import Figures, with_notes, yes
from bench.endtoend_tables import provenance
from bench.sheets import Sheet


def seeds_table(result: Mapping[str, Any]) -> str:
    """Cost and quality of each mix by seed, and whether they lie apart by less than their intervals."""
    figures = Figures(result)
    seeds = [f"seed_{seed}" for seed in result["assumptions"]["seeds"]]
    rows = []
    for mix in dict.fromkeys(name.split("/")[0] for name in figures.metrics):
        for measure, what in (("cost_ratio", "cost of the baseline's"), ("quality_ratio", "quality kept")):
            spread, width = (figures.value(f"{mix}/{each}/{measure}") for each in ("spread", "mean_interval"))
            if spread is not None and width is not None:
                values = (figures.with_interval(f"{mix}/{seed}/{measure}") for seed in seeds)
                rows.append((mix, what, *values, f"{spread:.3f}", f"{width:.3f}", yes(spread < width)))
    zeros = sum(float(figures.value(f"{mix}/{seed}/{measure}") or 0) for mix in {row[0] for row in rows}
                for seed in seeds for measure in ("failed", "identity_violations"))  # fmt: skip
    titles = ("mix", "", *(f"seed {seed}" for seed in result["assumptions"]["seeds"]),
              "they differ by", "their intervals are wide, on average", "less")  # fmt: skip
    counted = f"Requests that failed, and receipts that do not add up, over all of these runs: {zeros:.0f}."
    return with_notes([Sheet("seeds", titles, 2, rows).markdown(), counted, provenance(result)], result)
