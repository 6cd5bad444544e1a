"""From outcomes to figures: cost and quality beside the baseline with intervals, latency, layers, what-ifs. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bench.endtoend_play import Outcome
from bench.endtoend_quality import Quality, quality_of
from bench.endtoend_workload import Arrival
from bench.result import Result, percentile
from services.router.scores import Interval, mean, ratio, resamples

LAYERS = ("routing", "compression", "cache", "batch", "quantization")
RESAMPLES = 1000
HIT_KINDS = {"exact": "exact_hit", "semantic": "semantic_hit", "": "miss"}
_MILLION = 1_000_000


@dataclass(frozen=True, slots=True)
class WhatIf:
    """USD per million tokens of another strong model; the batch price is a share of both."""

    name: str
    model: str
    """The model that it stands in for."""
    input: float
    cached_input: float
    output: float
    batch_share: float = 0.5


OPUS = WhatIf("claude-opus-4-7", "gpt-4-1106-preview", 5.0, 0.5, 25.0)


@dataclass(frozen=True, slots=True)
class Run:
    """A stream and what came of it under one system."""

    stream: Sequence[Arrival]
    outcomes: Sequence[Outcome]
    prompts: Mapping[str, str]

    def qualities(self) -> list[Quality | None]:
        """Of each request."""
        return [
            quality_of(arrival.ask, outcome, self.prompts)
            for arrival, outcome in zip(self.stream, self.outcomes, strict=True)
        ]


def add_run(result: Result, name: str, run: Run, seed: int, whatif: WhatIf = OPUS) -> None:
    """The figures of one run, named ``MIX/SYSTEM``."""
    count = len(run.outcomes)
    draws = resamples(count, RESAMPLES, seed)
    actual, baseline, cached = (
        np.array([float(getattr(each, field)) for each in run.outcomes])
        for field in ("actual", "baseline", "baseline_prompt_cached")
    )
    other_actual, other_baseline = whatif_costs(run.outcomes, whatif)
    for measure, above, below in (
        ("cost_ratio", actual, baseline),
        ("cost_ratio_prompt_cached", actual, cached),
        (f"cost_ratio_if_{whatif.name}", other_actual, other_baseline),
    ):
        if below.any():
            _put(result, f"{name}/{measure}", ratio(above, below, draws), count)
    _put(result, f"{name}/usd_per_1000_requests", mean(actual / 1e6, draws), count, "USD")
    add_quality(result, name, run.qualities(), seed)
    result.add(f"{name}/failed", sum(bool(each.error) for each in run.outcomes), "count", count)
    broken = sum(not each.identity_holds for each in run.outcomes)
    result.add(f"{name}/identity_violations", broken, "count", count)
    _add_layers(result, name, run.outcomes)
    _add_workloads(result, name, run)


def add_quality(result: Result, name: str, qualities: Sequence[Quality | None], seed: int) -> None:
    """quality_ratio over the rows with recorded quality, and their share."""
    known = [each for each in qualities if each is not None]
    result.add(f"{name}/quality_covered", len(known) / max(1, len(qualities)), "ratio", len(qualities))
    if known and any(each.baseline for each in known):
        ours = np.array([each.ours for each in known])
        base = np.array([each.baseline for each in known])
        _put(result, f"{name}/quality_ratio", ratio(ours, base, resamples(len(known), RESAMPLES, seed)), len(known))


def add_latency(
    result: Result, name: str, run: Run, played: Mapping[int, float], direct: Mapping[int, float] | None = None
) -> None:
    """What a system adds to the model's time, by how the request was answered.

    ``played``: the model's modelled time, ms, by index. ``direct``: what the same request takes beyond that when the
    model is asked with nothing between (connection, and the sandbox's own work on a long prompt); none of a hit.
    """
    added: dict[str, list[float]] = {}
    hops: dict[str, list[float]] = {}
    for arrival, each in zip(run.stream, run.outcomes, strict=True):
        kind = HIT_KINDS.get(each.hit)
        if not kind or each.error or not each.milliseconds:
            continue
        own = 0.0 if each.hit else played[each.index] + (direct or {}).get(each.index, 0.0)
        added.setdefault(kind, []).append(each.milliseconds - own)
        if not each.hit:  # Passages are embedded before they are cut, which takes longer than all the rest.
            added.setdefault(f"{kind}_{arrival.ask.workload}", []).append(each.milliseconds - own)
            for hop, milliseconds in each.hops.items():
                hops.setdefault(hop, []).append(milliseconds - (own if hop == "inference" else 0.0))
    for kind, found in sorted(added.items()):
        result.add(f"{name}/added_p50_ms_{kind}", percentile(found, 0.5), "ms", len(found))
        result.add(f"{name}/added_p95_ms_{kind}", percentile(found, 0.95), "ms", len(found))
    for hop, found in hops.items():
        result.add(f"{name}/hop_p50_ms_{hop}", percentile(found, 0.5), "ms", len(found))
        result.add(f"{name}/hop_p95_ms_{hop}", percentile(found, 0.95), "ms", len(found))


def whatif_costs(outcomes: Sequence[Outcome], whatif: WhatIf) -> tuple[np.ndarray, np.ndarray]:
    """(actual, baseline), nano-USD by request, had the strong model been another one with the same tokens."""
    actual, baseline = [], []
    for each in outcomes:
        output = each.output_tokens * whatif.output
        base = (each.baseline_input_tokens * whatif.input + output) * 1e9 / _MILLION if each.baseline else 0.0
        own = float(each.actual)
        if not each.hit and each.model == whatif.model:
            read = each.cached_tokens
            fresh = (each.input_tokens - read) * whatif.input + read * whatif.cached_input + output
            own = fresh * (whatif.batch_share if each.batch else 1.0) * 1e9 / _MILLION + each.overhead
        actual.append(own)
        baseline.append(base)
    return np.array(actual), np.array(baseline)


def shortfall(full: float, only: Mapping[str, float]) -> float:
    """(Sum of the layers' own savings - the full saving) / baseline, of cost ratios."""
    return sum(1.0 - each for each in only.values()) - (1.0 - full)


def cumulative(outcomes: Sequence[Outcome], window: int) -> list[tuple[int, float, float]]:
    """(requests so far, saved share of the last ``window``, hit share of them), while a cache warms."""
    points = []
    for end in range(window, len(outcomes) + 1, max(1, window // 4)):
        part = outcomes[end - window : end]
        spent, base = sum(each.actual for each in part), sum(each.baseline for each in part)
        points.append((end, 1 - spent / base if base else 0.0, sum(bool(each.hit) for each in part) / window))
    return points


def _add_layers(result: Result, name: str, outcomes: Sequence[Outcome]) -> None:
    base = sum(each.baseline for each in outcomes) or 1
    for layer in ("cache", "routing", "compression", "prompt_cache", "batch", "quantization"):
        saved = sum(each.savings.get(layer, 0) for each in outcomes)
        result.add(f"{name}/saved_by_{layer}", saved / base, "ratio", len(outcomes))
    result.add(f"{name}/overhead", sum(each.overhead for each in outcomes) / base, "ratio", len(outcomes))


def _add_workloads(result: Result, name: str, run: Run) -> None:
    """Each workload's share of the baseline, its own cost ratio and quality, and how it was answered."""
    whole = sum(each.baseline for each in run.outcomes) or 1
    qualities = run.qualities()
    for workload in dict.fromkeys(arrival.ask.workload for arrival in run.stream):
        places = [at for at, arrival in enumerate(run.stream) if arrival.ask.workload == workload]
        mine = [run.outcomes[at] for at in places]
        n, base = len(mine), sum(each.baseline for each in mine)
        result.add(f"{name}/{workload}_baseline_share", base / whole, "ratio", n)
        result.add(f"{name}/{workload}_cost_ratio", sum(each.actual for each in mine) / (base or 1), "ratio", n)
        result.add(f"{name}/{workload}_hit_share", sum(bool(each.hit) for each in mine) / n, "ratio", n)
        known = [qualities[at] for at in places if qualities[at] is not None]
        right = sum(each.baseline for each in known if each is not None)
        if right:
            ours = sum(each.ours for each in known if each is not None)
            result.add(f"{name}/{workload}_quality_ratio", ours / right, "ratio", len(known))
        models: dict[str, int] = {}
        for each in mine:
            if not each.hit and each.model:
                models[each.model] = models.get(each.model, 0) + 1
        for model, count in sorted(models.items()):
            result.add(f"{name}/{workload}_share_{model}", count / n, "ratio", n)


def _put(result: Result, name: str, found: Interval, n: int, unit: str = "ratio") -> None:
    result.add(name, found.value, unit, n, found.ci95)
