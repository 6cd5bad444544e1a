"""From decisions to figures: hit rates, precision, wrong answers, their intervals, and the frontier. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from bench.result import Result

_Z95 = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Asked:
    """What became of one asked question."""

    served: bool
    right: bool = False
    """The answer served is the asked row's own."""
    attainable: bool = False
    """The asked row's answer is in the store."""
    out_of_scope: bool = False
    bypassed: bool = False
    """The gate kept it out of the cache: a miss."""
    exact: bool = False
    """Served because the very text was stored."""
    score: float | None = None
    """How sure the system was of its best candidate; None when it had none that it might serve at any threshold."""
    best_right: bool = False
    """The best candidate's answer would have been right."""

    @property
    def wrong(self) -> bool:
        """Served, and not right; nothing is right out of scope."""
        return self.served and (self.out_of_scope or not self.right)


@dataclass(frozen=True, slots=True)
class Decided:
    """What became of one pair."""

    label: str
    served: bool
    kind: str = ""
    bypassed: bool = False


@dataclass(frozen=True, slots=True)
class Point:
    """What one threshold gives: both as shares of all asked."""

    threshold: float
    hit_rate: float
    wrong_rate: float


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """The 95% interval of a share (Wilson, 1927); ``trials`` above 0."""
    share, square = successes / trials, _Z95**2 / trials
    middle = (share + square / 2) / (1 + square)
    half = _Z95 * math.sqrt(share * (1 - share) / trials + square / (4 * trials)) / (1 + square)
    # Rounding may not push a bound past what is possible, nor past the share itself.
    return max(0.0, min(middle - half, share)), min(1.0, max(middle + half, share))


def add_share(result: Result, name: str, successes: int, trials: int, *, per: int = 1) -> None:
    """Note a share with its interval, or per so many. Of nothing there is no share: that is noted as skipped."""
    if not trials:
        result.skipped.append(f"{name}: of nothing")
        return
    low, high = wilson(successes, trials)
    unit = "ratio" if per == 1 else f"per {per}"
    result.add(name, per * successes / trials, unit, trials, (per * low, per * high))


def add_stream(result: Result, name: str, asked: Sequence[Asked]) -> None:
    """The figures of one system on one set with answer identity, under ``name`` ("set/system")."""
    count = len(asked)
    served = sum(each.served for each in asked)
    wrong = sum(each.wrong for each in asked)
    add_share(result, f"{name}/hit_rate", served, count)
    add_share(result, f"{name}/precision", served - wrong, served)
    add_share(result, f"{name}/wrong_per_1000", wrong, count, per=1000)
    add_share(result, f"{name}/attainable", sum(each.attainable for each in asked), count)
    add_share(result, f"{name}/exact_hit_rate", sum(each.served and each.exact for each in asked), count)
    add_share(result, f"{name}/bypassed", sum(each.bypassed for each in asked), count)
    out_of_scope = [each for each in asked if each.out_of_scope]
    if out_of_scope:
        served_there = sum(each.served for each in out_of_scope)
        add_share(result, f"{name}/oos_served_per_1000", served_there, len(out_of_scope), per=1000)


def add_pairs(result: Result, name: str, decided: Sequence[Decided]) -> None:
    """The figures of one system on one set of pairs."""
    served = sum(each.served for each in decided)
    same = [each for each in decided if each.label == "same"]
    right = sum(each.served for each in same)
    add_share(result, f"{name}/precision", right, served)
    add_share(result, f"{name}/recall", right, len(same))
    if any(each.kind == "identical" for each in same):
        reworded = [each for each in same if each.kind != "identical"]
        add_share(result, f"{name}/recall_reworded", sum(each.served for each in reworded), len(reworded))
    add_share(result, f"{name}/wrong_per_1000", served - right, len(decided), per=1000)
    add_share(result, f"{name}/bypassed", sum(each.bypassed for each in decided), len(decided))


def add_inference(result: Result, name: str, decided: Sequence[Decided]) -> None:
    """How often a premise's answer is served to each kind of hypothesis."""
    for label in ("contradiction", "neutral", "entailment"):
        of_label = [each for each in decided if each.label == label]
        add_share(result, f"{name}/{label}_served_rate", sum(each.served for each in of_label), len(of_label))
    add_share(result, f"{name}/bypassed", sum(each.bypassed for each in decided), len(decided))


def add_adversarial(result: Result, name: str, decided: Sequence[Decided]) -> None:
    """How many traps are refused, and how many harmless pairs pass, over all and by kind."""
    for suffix, chosen in (
        ("", list(decided)),
        *((f"_{kind}", [each for each in decided if each.kind == kind]) for kind in _kinds(decided)),
    ):
        traps = [each for each in chosen if each.label != "same"]
        harmless = [each for each in chosen if each.label == "same"]
        if traps:
            add_share(result, f"{name}/refused_rate{suffix}", sum(not each.served for each in traps), len(traps))
        if harmless:
            add_share(result, f"{name}/passed_rate{suffix}", sum(each.served for each in harmless), len(harmless))


def frontier(asked: Sequence[Asked]) -> list[Point]:
    """Hit rate and wrong rate at every threshold that changes either, highest threshold first."""
    scored = sorted(
        ((each.score, each.best_right and not each.out_of_scope) for each in asked if each.score is not None),
        key=lambda pair: -pair[0],
    )
    points: list[Point] = []
    wrong = 0
    for index, (score, right) in enumerate(scored):
        wrong += not right
        # Equal scores stand or fall together.
        if index + 1 == len(scored) or scored[index + 1][0] < score:
            points.append(Point(score, (index + 1) / len(asked), wrong / len(asked)))
    return points


def add_frontier(result: Result, name: str, points: Sequence[Point], count: int) -> None:
    """The best hit rate that some threshold has at 5 wrong per 1,000: chosen with hindsight, so a limit, no result."""
    within = [point.hit_rate for point in points if point.wrong_rate <= 0.005]
    result.add(f"{name}/hindsight_hit_rate_at_5", max(within, default=0.0), "ratio", count)


def _kinds(decided: Iterable[Decided]) -> list[str]:
    return sorted({each.kind for each in decided if each.kind})
