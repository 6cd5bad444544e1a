"""The orders of a set's rows that are compared, and their figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

from bench import router_baselines as baselines
from bench.result import Result
from bench.router_heads import Judging, arm_of
from bench.router_sets import MeasuredSet
from services.router.scores import Counts, Floats, Interval, mean, ordering

_MEASURES = ("apgr", "cpt50", "cpt80")


def scores(
    measured: MeasuredSet, heads: Mapping[str, Judging], seed: int, skip: Callable[[str], None], *, held_out: bool
) -> dict[str, Floats]:
    """A score of each measured row by the system's name; ``skip`` is told what cannot be made and why.

    Baselines that learn do so on the measured rows that are not in the row's own fold. When only held-out rows are
    measured they do so a second time, as ``<name>_in_domain``, on the rows that the heads learned from.
    """
    places = measured.measured
    rows = [measured.rows[place] for place in places]
    found: dict[str, Floats] = {}
    vectors = measured.vectors
    for name, each in heads.items():
        if vectors is None:
            continue
        questions = [measured.features[place] for place in places]
        try:
            weak, strong = arm_of(each, measured.weak), arm_of(each, measured.strong)
            found[name] = np.asarray(each.gain_many(vectors[places], questions, weak, strong), float)
        except (KeyError, ValueError) as error:
            skip(f"{measured.name}/{name}: the heads know nothing of {measured.weak} or {measured.strong}: {error}")
    learned: dict[str, baselines.Scorer] = {}
    if measured.tasks is None:
        skip(f"{measured.name}/task_prior: the set tells no tasks apart")
    else:
        learned["task_prior"] = baselines.by_task(measured.tasks, measured.gain)
    if vectors is None:
        skip(f"{measured.name}/knn: no embedder")
    else:
        learned["knn"] = baselines.by_neighbours(vectors, measured.gain)
    for name, scorer in learned.items():
        try:
            found[name] = baselines.cross_fitted(scorer, measured.digests, places, seed)
        except ValueError as error:
            skip(f"{measured.name}/{name}: {error}")
        if held_out and len(measured.training):
            found[f"{name}_in_domain"] = scorer(measured.training, places)
    found["length"] = baselines.by_length(rows)
    found["random"] = baselines.by_chance(len(rows))
    return found


def add(result: Result, measured: MeasuredSet, by_system: Mapping[str, Floats], draws: Counts) -> None:
    """The figures of every system, and what quality the fixed choices give."""
    weak, strong = measured.weak_quality, measured.strong_quality
    gain = measured.gain[measured.measured]
    for name, qualities in (
        ("always_weak", weak), ("always_strong", strong), ("oracle", np.maximum(weak, strong))
    ):  # fmt: skip
        put(result, f"{measured.name}/{name}/quality", mean(qualities, draws), len(gain))
    used = None
    for system, score in by_system.items():
        found = ordering(score, gain, draws)
        if found is None:
            result.skipped.append(
                f"{measured.name}, apgr and cpt: {measured.strong} is no better than {measured.weak} on "
                f"{len(gain)} rows ({gain.mean():+.3f})"
            )
            return
        used = found.resamples_used
        for measure in _MEASURES:
            put(result, f"{measured.name}/{system}/{measure}", getattr(found, measure), len(gain))
    if used is not None and used < len(draws):
        result.assumptions[f"{measured.name}_resamples"] = (
            f"{len(draws) - used} of {len(draws)} resamples had no gap to recover and are not in the intervals"
        )


def put(result: Result, name: str, figure: Interval, n: int, unit: str = "ratio") -> None:
    """Note one figure with its interval."""
    result.add(name, figure.value, unit, n, figure.ci95)
