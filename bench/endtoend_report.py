"""The end-to-end benchmark's figures and pictures from its runs, and the assumptions that stand beside them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bench import endtoend_plots as plots
from bench.endtoend_arms import ABLATED, FRONTIERS, TARGETS, frontier_name
from bench.endtoend_deploy import HERE, SPEEDS
from bench.endtoend_play import Outcome
from bench.endtoend_rows import MAIN, OMNIS, Rows
from bench.endtoend_sums import LAYERS, OPUS, Run, add_latency, add_run, cumulative, shortfall
from bench.endtoend_warming import add_warming
from bench.endtoend_workload import Arrival, Mix
from bench.result import Result
from sandbox.recorded import Record
from services.router.scores import ratio, resamples

SAME_AS = {"only_quantization": "none", "without_quantization": "full"}
"""No model of the catalogue runs on own hardware: this layer has nothing to do, and the runs would be the same."""


def assume(
    result: Result,
    rows: Rows,
    mixes: Mapping[str, Mix],
    streams: Mapping[str, Sequence[Arrival]],
    clock: float,
    per_second: float,
) -> None:
    """What stands beside every table: prices, shares, rows, and what is modelled."""
    said: dict[str, Any] = {
        "held_out_side_only": rows.fitted,
        "router_heads": "held_out.npz" if rows.held_out_heads else "heads.npz",
        "prices": {name: _prices(name) for name in (MAIN, OMNIS)},
        "mixes": {
            name: {
                "shares": dict(mix.shares),
                "quality_target": mix.quality_target,
                "requests": len(streams[name]),
                "by_workload": dict(Counter(each.ask.workload for each in streams[name])),
                "different_questions": len({each.ask.question for each in streams[name]}),
            }
            for name, mix in mixes.items()
        },
        "model_speeds": {name: [speed.first_token_seconds, speed.tokens_per_second] for name, speed in SPEEDS.items()},
        "clock": clock,
        "requests_per_second_paced": per_second,
        "modelled": "output tokens of multiple-choice answers (48), help-centre answers (60 to 140), passages "
        "(30 to 90) and labels (8); those of GSM8K, omnisbench and the chats are recorded. A help-centre answer is the "
        "same text for every wording of a topic. Speeds are modelled.",
        "quality": "reasoning: recorded correctness of the model that answered; cache hits: same topic; passages: what "
        "the answer needs is still in the prompt, whoever answers; new answers to support questions, open chats and "
        "labels: not recorded",
        "whatif": f"{OPUS.name} {OPUS.input}/{OPUS.output} USD per million in the place of {OPUS.model}, same tokens",
        "idle": "no own hardware, so no idle cost",
    }
    result.assumptions |= said


def add(result: Result, runs: Mapping[str, Run], record: Record, mixes: Mapping[str, Mix], seed: int) -> None:
    """All figures."""
    for name, run in runs.items():
        if not name.rpartition("/")[2].startswith(("frontier_", "latency", "litellm_", "direct_")):
            add_run(result, name, run, seed)
    for mix in mixes:
        ours, baseline = runs.get(f"{mix}/ours"), runs.get(f"{mix}/baseline")
        if ours is None or baseline is None:
            continue
        straight = runs.get(f"{mix}/direct_latency")
        beyond = beyond_model(straight, record) if straight is not None else {}
        for system, name in (("ours", "latency"), ("litellm", "litellm_latency"), ("direct", "direct_latency")):
            timed = runs.get(f"{mix}/{name}")
            if timed is not None:
                played = {each.index: _played(each, record) for each in timed.outcomes}
                add_latency(result, f"{mix}/{system}", timed, played, beyond if system != "direct" else None)
        _add_against_sent(result, mix, ours, baseline, seed)
        if mix in FRONTIERS:
            _add_frontier(result, mix, runs, seed)
    if f"{ABLATED}/full" in runs:
        _add_ablation(result)
    add_warming(result, {name.partition("/")[0]: run for name, run in runs.items() if name.endswith("/ours")})


def beyond_model(straight: Run, record: Record) -> dict[int, float]:
    """What requests that went straight to their model took beyond its modelled time, ms by index."""
    return {each.index: each.milliseconds - _played(each, record) for each in straight.outcomes if not each.error}


def _played(outcome: Outcome, record: Record) -> float:
    return record.seconds(outcome.model, outcome.output_tokens) * 1000


def draw(result: Result, runs: Mapping[str, Run], folder: Path) -> None:
    """The pictures; why there are none stands under ``skipped``."""
    warming = {name: cumulative(run.outcomes, max(20, len(run.outcomes) // 20)) for name, run in runs.items()
               if name.endswith("/ours")}  # fmt: skip
    missing = plots.draw_all(result.metrics, warming, folder)
    if missing:
        result.skipped.append(f"plots: {missing}")


def frontier_run(mix: str, runs: Mapping[str, Run], target: float) -> Run | None:
    """The mix as it would be at another quality target: what it decides is asked again, the rest is as it was.

    Where fewer requests were asked again than the mix has, those stand for all: only they and their share count.
    """
    ours, again = runs[f"{mix}/ours"], runs.get(f"{mix}/{frontier_name(target)}")
    if again is None:
        return None
    new = {each.index: each for each in again.outcomes}
    places = [at for at, each in enumerate(ours.stream) if not each.ask.correct or each.index in new]
    return Run(
        [ours.stream[at] for at in places],
        [new.get(ours.stream[at].index, ours.outcomes[at]) for at in places],
        ours.prompts,
    )


def _add_frontier(result: Result, mix: str, runs: Mapping[str, Run], seed: int) -> None:
    for target in TARGETS:
        run, again = frontier_run(mix, runs, target), runs.get(f"{mix}/{frontier_name(target)}")
        if run is None or again is None:
            continue
        name = f"{mix}/{frontier_name(target)}"
        weights = _weights(runs[f"{mix}/ours"], run)
        ratios = _ratio(run, weights, seed)
        result.add(f"{name}/cost_ratio", ratios[0], "ratio", len(run.outcomes), ratios[1])
        result.add(f"{name}/quality_covered", *_covered(run, weights), len(run.outcomes))
        quality = _quality(run, weights, seed)
        result.add(f"{name}/quality_ratio", quality[0], "ratio", len(run.outcomes), quality[1])
        alone = Run(again.stream, again.outcomes, again.prompts)
        add_run(result, f"{name}_reasoning", alone, seed)


def _weights(whole: Run, part: Run) -> list[float]:
    """How many of the whole run's requests each of the part stands for."""
    asked = sum(bool(each.ask.correct) for each in whole.stream)
    kept = sum(bool(each.ask.correct) for each in part.stream)
    return [asked / kept if each.ask.correct else 1.0 for each in part.stream]


def _ratio(run: Run, weights: Sequence[float], seed: int) -> tuple[float, tuple[float, float] | None]:
    actual = plots.array([each.actual * weight for each, weight in zip(run.outcomes, weights, strict=True)])
    base = plots.array([each.baseline * weight for each, weight in zip(run.outcomes, weights, strict=True)])
    found = ratio(actual, base, resamples(len(weights), 1000, seed))
    return found.value, found.ci95


def _quality(run: Run, weights: Sequence[float], seed: int) -> tuple[float, tuple[float, float] | None]:
    known = [(each, weight) for each, weight in zip(run.qualities(), weights, strict=True) if each is not None]
    ours = plots.array([each.ours * weight for each, weight in known])
    base = plots.array([each.baseline * weight for each, weight in known])
    found = ratio(ours, base, resamples(len(known), 1000, seed))
    return found.value, found.ci95


def _covered(run: Run, weights: Sequence[float]) -> tuple[float, str]:
    known = sum(weight for each, weight in zip(run.qualities(), weights, strict=True) if each is not None)
    return known / sum(weights), "ratio"


def _add_against_sent(result: Result, mix: str, ours: Run, baseline: Run, seed: int) -> None:
    """Ours beside what the baseline's own requests cost when they were really sent, pair by pair."""
    actual = plots.array([each.actual for each in ours.outcomes])
    sent = plots.array([each.actual for each in baseline.outcomes])
    draws = resamples(len(actual), 1000, seed)
    found = ratio(actual, sent, draws)
    result.add(f"{mix}/ours/cost_ratio_sent", found.value, "ratio", len(actual), found.ci95)
    counted = plots.array([each.baseline for each in ours.outcomes])
    check = ratio(counted, sent, draws)
    result.add(f"{mix}/ours/baseline_counted_to_sent", check.value, "ratio", len(actual), check.ci95)


def _add_ablation(result: Result) -> None:
    metrics = result.metrics
    for name, other in SAME_AS.items():
        for measure in ("cost_ratio", "quality_ratio"):
            found = metrics.get(f"{ABLATED}/{other}/{measure}")
            if found is not None:
                metrics[f"{ABLATED}/{name}/{measure}"] = dict(found)
    result.assumptions["quantization"] = (
        "no model of the catalogue runs on own hardware: only_quantization is `none`, without_quantization `full`"
    )
    only = {layer: float(metrics[f"{ABLATED}/only_{layer}/cost_ratio"]["value"]) for layer in LAYERS}
    full = metrics[f"{ABLATED}/full/cost_ratio"]
    result.add("additivity/ours/shortfall", shortfall(float(full["value"]), only), "ratio", full["n"])


def _prices(catalog: str) -> list[dict[str, Any]]:
    content = yaml.safe_load((HERE / f"endtoend_catalog_{catalog}.yaml").read_text("utf-8"))
    return [{name: str(value) for name, value in row.items()} for row in content["prices"]]
