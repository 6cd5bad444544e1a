"""The tables of the cache bench for docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from bench.cache_sets import INFERENCE, PAIRS, STREAMS
from bench.cells import Figures, head, row, with_notes, yes

SYSTEMS = {"article": "article's default", "ours_strict": "Tenth, strict", "ours_faq": "Tenth, faq"}
_LOOKUP_SYSTEMS = {"ours": "Tenth, in the process", "ours_rpc": "Tenth, by RPC", "gptcache": "GPTCache"}


@dataclass(frozen=True, slots=True)
class Reach:
    """What a set is to reach in one mode."""

    set_name: str
    system: str
    hit_rate: float
    wrong_per_1000: float
    oos_served_per_1000: float | None = None


REACH = (
    Reach("parakqc_ko", "ours_strict", 0.75, 5),
    Reach("banking77", "ours_faq", 0.45, 5),
    Reach("clinc150", "ours_faq", 0.40, 3, 2),
)
MOST_CONTRADICTIONS = 0.01
MOST_LOOKUP_MS = {"lookup_10k": 1.0, "lookup_100k": 5.0}


class _Figures(Figures):
    """Those of the cache: shares, and counts per 1,000."""

    def count(self, name: str) -> str:
        """A figure per 1,000, or of milliseconds."""
        value = self.value(name)
        if value is None:
            return ""
        return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"

    def with_interval(self, name: str) -> str:
        """The same with its 95% interval."""
        metric = self.metrics.get(name)
        if metric is None:
            return ""
        shown = self.share if metric["unit"] == "ratio" else self.count
        if not metric["ci95"]:
            return shown(name)
        low, high = (f"{bound:.3f}" if metric["unit"] == "ratio" else f"{bound:.1f}" for bound in metric["ci95"])
        return f"{shown(name)} [{low}, {high}]"


def cache_tables(result: Mapping[str, Any]) -> str:
    """Measured against reach; then everything, set by set."""
    figures = _Figures(result)
    parts = [
        _reach(figures),
        _streams(figures),
        _pairs(figures),
        _inference(figures),
        _adversarial(figures),
        _lookup(figures),
    ]
    machine, said = result["machine"], result["assumptions"]
    lines = ["\n".join(part) for part in parts if len(part) > 2]
    lines.append(
        f"Commit {result['commit'][:12]}, rows: {said['rows']}, seed {said['seed']}, embedder {said['embedder']}, "
        f"{result['seconds']:.0f} s, {machine['cpus']} CPUs ({machine['machine']}), Python {machine['python']}."
    )
    return with_notes(lines, result)


def _reach(figures: _Figures) -> list[str]:
    lines = head("what", "measure", "article's default", "Tenth", "reach", "reached", texts=2)
    for reach in REACH:
        ours, article = f"{reach.set_name}/{reach.system}", f"{reach.set_name}/article"
        if figures.value(f"{ours}/hit_rate") is None:
            continue
        goals = [
            ("hit rate", "hit_rate", reach.hit_rate, True),
            ("wrong per 1,000", "wrong_per_1000", reach.wrong_per_1000, False),
        ]
        if reach.oos_served_per_1000 is not None:
            goals.append(("out of scope served per 1,000", "oos_served_per_1000", reach.oos_served_per_1000, False))
        for title, measure, goal, at_least in goals:
            value = figures.value(f"{ours}/{measure}")
            if value is None:
                continue
            reached = value >= goal if at_least else value <= goal
            lines.append(
                row(
                    f"{reach.set_name}, {reach.system.removeprefix('ours_')}",
                    title,
                    figures.with_interval(f"{article}/{measure}"),
                    figures.with_interval(f"{ours}/{measure}"),
                    f"at {'least' if at_least else 'most'} {goal:g}",
                    yes(reached),
                )
            )
    for name in INFERENCE:
        for system in ("ours_strict", "ours_faq"):
            measure = "contradiction_served_rate"
            value = figures.value(f"{name}/{system}/{measure}")
            if value is not None:
                lines.append(
                    row(
                        f"{name}, {system.removeprefix('ours_')}",
                        "contradictions served",
                        figures.with_interval(f"{name}/article/{measure}"),
                        figures.with_interval(f"{name}/{system}/{measure}"),
                        f"at most {MOST_CONTRADICTIONS:g}",
                        yes(value <= MOST_CONTRADICTIONS),
                    )
                )
    for name, most in MOST_LOOKUP_MS.items():
        value = figures.value(f"{name}/ours/p50_ms")
        if value is not None:
            size = name.removeprefix("lookup_")
            lines.append(
                row(
                    f"lookup, {size} entries", "p50 ms", "", figures.count(f"{name}/ours/p50_ms"),
                    f"at most {most:g}", yes(value <= most),
                )
            )  # fmt: skip
    return lines


def _streams(figures: _Figures) -> list[str]:
    lines = head(
        "set", "system", "asked", "hit rate", "precision", "wrong per 1,000", "attainable", "bypassed",
        "out of scope served per 1,000", "hit rate with hindsight", texts=2,
    )  # fmt: skip
    for name, system in _each(STREAMS):
        of = f"{name}/{system}/"
        if f"{of}hit_rate" in figures.metrics:
            lines.append(
                row(
                    name, SYSTEMS[system], str(figures.metrics[f"{of}hit_rate"]["n"]),
                    figures.with_interval(f"{of}hit_rate"), figures.share(f"{of}precision"),
                    figures.with_interval(f"{of}wrong_per_1000"), figures.share(f"{of}attainable"),
                    figures.share(f"{of}bypassed"), figures.count(f"{of}oos_served_per_1000"),
                    figures.share(f"{of}hindsight_hit_rate_at_5"),
                )
            )  # fmt: skip
    return lines


def _pairs(figures: _Figures) -> list[str]:
    lines = head("pairs", "system", "pairs", "precision", "recall", "bypassed", texts=2)
    for name, system in _each(PAIRS):
        of = f"{name}/{system}/"
        if f"{of}recall" in figures.metrics:
            lines.append(
                row(
                    name, SYSTEMS[system], str(figures.metrics[f"{of}bypassed"]["n"]),
                    figures.with_interval(f"{of}precision"), figures.with_interval(f"{of}recall"),
                    figures.share(f"{of}bypassed"),
                )
            )  # fmt: skip
    return lines


def _inference(figures: _Figures) -> list[str]:
    lines = head("hypotheses served", "system", "contradictions", "neutral", "entailed", texts=2)
    for name, system in _each(INFERENCE):
        of = f"{name}/{system}/"
        if f"{of}contradiction_served_rate" in figures.metrics:
            labels = ("contradiction", "neutral", "entailment")
            cells = [figures.with_interval(f"{of}{label}_served_rate") for label in labels]
            lines.append(row(name, SYSTEMS[system], *cells))
    return lines


def _adversarial(figures: _Figures) -> list[str]:
    lines = head("traps of this project", "kind", "system", "must be refused: refused", "harmless: served", texts=3)
    sets = sorted({name.partition("/")[0] for name in figures.metrics if name.startswith("adversarial_")})
    for name in sets:
        kinds = _kinds(figures.metrics, f"{name}/")
        for kind in ("", *kinds):
            for system in SYSTEMS if not kind else ("ours_strict",):
                suffix = f"_{kind}" if kind else ""
                cells = []
                for measure in ("refused_rate", "passed_rate"):
                    metric = figures.metrics.get(f"{name}/{system}/{measure}{suffix}")
                    cells.append(f"{metric['value']:.3f} of {metric['n']}" if metric else "")
                if any(cells):
                    lines.append(row(name.removeprefix("adversarial_"), kind or "all", SYSTEMS[system], *cells))
    return lines


def _lookup(figures: _Figures) -> list[str]:
    lines = head("lookup, embedding apart", "system", "p50 ms", "p95 ms", "CPU ms", texts=2)
    seen = dict.fromkeys(tuple(name.split("/")[:2]) for name in figures.metrics if name.startswith("lookup_"))
    for name, system in seen:
        cells = [figures.count(f"{name}/{system}/{measure}") for measure in ("p50_ms", "p95_ms", "cpu_ms")]
        if any(cells):
            title = name.removeprefix("lookup_").replace("_", " ")
            lines.append(row(f"{title} entries", _LOOKUP_SYSTEMS.get(system, system), *cells))
    return lines


def _kinds(names: Iterable[str], prefix: str) -> list[str]:
    marks = ("/refused_rate_", "/passed_rate_")
    own = [name for name in names if name.startswith(prefix)]
    return sorted({name.partition(mark)[2] for name in own for mark in marks if mark in name})


def _each(sets: Iterable[str]) -> list[tuple[str, str]]:
    return [(name, system) for name in sets for system in SYSTEMS]
