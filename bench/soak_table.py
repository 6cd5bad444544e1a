"""The table of the inference service's soak, for docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bench.cells import Figures, head, row, with_notes
from bench.endtoend_tables import provenance

_ZEROS = {
    "stuck": "requests still open 2 s after their deadline",
    "unbilled_tokens": "tokens read that nobody was billed for",
    "read_without_record": "attempts read that the ledger does not know",
    "finished_recorded_differently": "answers whose usage the ledger has otherwise",
    "ended_twice": "attempts ended twice",
    "started_never_ended": "attempts that never ended",
    "malformed_answered": "malformed requests that were answered",
}
_EVENTS = {"kill_9s": "kill -9", "sigterms": "SIGTERM", "faults": "faults of the engine"}
_OUTCOME = "soak/ours/outcome_"


def soak_table(result: Mapping[str, Any]) -> str:
    """What must be zero, memory, what was done to the service, and what became of the requests."""
    figures = Figures(result)

    def count(name: str) -> str:
        return f"{figures.value(f'soak/ours/{name}') or 0:,.0f}"

    def megabytes(name: str) -> str:
        return f"{figures.value(f'memory/ours/{name}') or 0:,.0f}"

    lines = head("soak", "", texts=1)
    lines += [row(what, count(name)) for name, what in _ZEROS.items()]
    lines.append(row("resident MB: first tenth of the part without kills, its last tenth",
                     f"{megabytes('rss_mb_first')}, {megabytes('rss_mb_last')}"))  # fmt: skip
    lines.append(row("slope there, MB per hour", megabytes("slope_mb_per_hour")))
    lines.append(row("requests", count("requests")))
    lines += [row(what, count(name)) for name, what in _EVENTS.items()]
    lines.append(row("seconds until ready again, p50", f"{figures.value('soak/ours/recovery_p50_s') or 0:.1f}"))
    outcomes = [
        f"{name.removeprefix(_OUTCOME)} {metric['value']:,.0f}"
        for name, metric in figures.metrics.items()
        if name.startswith(_OUTCOME)
    ]
    minutes = result["assumptions"]["minutes"]
    said = f"{minutes:.0f} minutes, {result['assumptions']['concurrency']} callers. Outcomes: {', '.join(outcomes)}."
    return with_notes(["\n".join(lines), said, provenance(result)], result)
