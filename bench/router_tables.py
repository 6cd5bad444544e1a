"""The tables of the router bench for docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bench.cells import Figures, head, row, with_notes

SYSTEMS = {
    "ours_in_domain": "Tenth, in domain",
    "ours_transfer": "Tenth, never saw the set",
    "task_prior": "task's mean",
    "task_prior_in_domain": "task's mean, of training",
    "knn": "20 nearest",
    "knn_in_domain": "20 nearest, of training",
    "length": "length",
    "random": "random",
}
_PRICINGS = {"": "surely 99%", "_on_average": "99% on average", "_at_60": "60% of the cost"}
_STEPS = {"ours": "whole decision", "features": "features alone", "heads": "heads alone"}
_ALL = "all"


class _Figures(Figures):
    """Those of the router."""

    def share(self, name: str) -> str:
        """A ratio to two digits."""
        return f"{self.metrics[name]['value']:.2f}" if name in self.metrics else ""

    def micros(self, name: str) -> str:
        """Whole microseconds."""
        return f"{self.metrics[name]['value']:.0f}" if name in self.metrics else ""

    def sets_with(self, measure: str) -> list[str]:
        """Sets that have this measure of any system, in the order measured; ``quality_target`` has sets of its own."""
        return list(
            dict.fromkeys(
                name.partition("/")[0]
                for name in self.metrics
                if name.endswith(f"/{measure}") and not name.startswith("quality_target/")
            )
        )


def router_tables(result: Mapping[str, Any]) -> str:
    """Recovered gap, calls to recover it, costs, the quality target, time of a decision."""
    figures, said = _Figures(result), result["assumptions"]
    parts = [
        _apgr(figures, said),
        _cpt(figures),
        _costs(figures, said),
        _target(figures),
        _decision(figures),
    ]
    machine = result["machine"]
    texts = ["\n".join(part) for part in parts if len(part) > 2]
    texts.append(
        f"Commit {result['commit'][:12]}, rows: {said['rows']}, seed {said['seed']}, "
        f"{result['seconds']:.0f} s, {machine['cpus']} CPUs ({machine['machine']}), Python {machine['python']}."
    )
    return with_notes(texts, result)


def _apgr(figures: _Figures, said: Mapping[str, Any]) -> list[str]:
    systems = _measured(figures, "apgr")
    lines = head("APGR: set", "pair", "rows", *(SYSTEMS[system] for system in systems), texts=2)
    for name in figures.sets_with("apgr"):
        cells = [figures.with_interval(f"{name}/{system}/apgr") for system in systems]
        lines.append(row(name, said.get(f"{name}_pair", ""), figures.n(f"{name}/random/apgr"), *cells))
    return lines


def _cpt(figures: _Figures) -> list[str]:
    systems = _measured(figures, "cpt50")
    title = "strong calls to recover 50% / 80%: set"
    lines = head(title, *(SYSTEMS[system] for system in systems), texts=1)
    for name in figures.sets_with("cpt50"):
        cells = []
        for system in systems:
            both = [figures.share(f"{name}/{system}/{measure}") for measure in ("cpt50", "cpt80")]
            cells.append(" / ".join(both) if all(both) else "")
        lines.append(row(name, *cells))
    return lines


def _costs(figures: _Figures, said: Mapping[str, Any]) -> list[str]:
    titles = ("recorded costs: set", "best single", "system", "price set", "quality of best", "cost of best", "rows")
    lines = head(*titles, texts=4)
    for name in figures.sets_with("score_ratio"):
        for system in ("ours_in_domain", "ours_transfer"):
            of, best = f"{name}/{system}", said.get(f"{name}_best_single", "")
            for ending, how in _PRICINGS.items():
                score, cost = f"{of}/score_ratio{ending}", f"{of}/cost_ratio{ending}"
                if score in figures.metrics:
                    cells = [figures.with_interval(score), figures.with_interval(cost)]
                    lines.append(row(name, best, SYSTEMS[system], how, *cells, figures.n(score)))
    return lines


def _target(figures: _Figures) -> list[str]:
    lines = head("quality target: set", "target", "promised at least", "kept", "cost of the strongest", "rows", texts=1)
    prefix, ending = "quality_target/", "/ratio_"
    for metric in figures.metrics:
        if metric.startswith(prefix) and ending in metric:
            name, _, target = metric.removeprefix(prefix).partition(ending)
            of = f"{prefix}{name}"
            promised = figures.share(f"{of}/bound_{target}")
            cells = [figures.with_interval(metric), figures.with_interval(f"{of}/cost_share_{target}")]
            title = "all together" if name == _ALL else name
            lines.append(row(title, f"{target}%", promised, *cells, figures.n(metric)))
    violations = figures.metrics.get(f"{prefix}{_ALL}/violations")
    if violations is not None:
        below = f"{violations['value']:.0f} of {violations['n']}"
        lines += ["", f"Below the target of 95% beyond noise: {below} (each set, and all together)."]
    return lines


def _decision(figures: _Figures) -> list[str]:
    lines = head("decision, vector given", "p50 µs", "p95 µs", "CPU µs", "questions", texts=1)
    for step, title in _STEPS.items():
        of = f"decision/{step}"
        if f"{of}/p50_us" in figures.metrics:
            cells = [figures.micros(f"{of}/{measure}") for measure in ("p50_us", "p95_us", "cpu_us")]
            lines.append(row(title, *cells, figures.n(f"{of}/p50_us")))
    return lines


def _measured(figures: _Figures, measure: str) -> Sequence[str]:
    there = {name.split("/")[1] for name in figures.metrics if name.endswith(f"/{measure}")}
    return [system for system in SYSTEMS if system in there]
