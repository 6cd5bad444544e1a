"""The table of what a benchmark reaches for, and whether it does."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from bench.cells import Figures, head, row, yes


def ratio(value: float) -> str:
    """A ratio to three digits."""
    return f"{value:.3f}"


def times(value: float) -> str:
    """How many times as much."""
    return f"{value:.2f}x"


def milliseconds(value: float) -> str:
    """Milliseconds to two digits."""
    return f"{value:.2f} ms"


@dataclass(frozen=True, slots=True)
class Goal:
    """One figure that has a reach."""

    what: str
    metric: str
    reach: float
    more: bool = False
    """True where more is better."""
    form: Callable[[float], str] = ratio


def goals_table(figures: Figures, goals: Iterable[Goal]) -> list[str]:
    """Those that were measured: with their 95% interval, or with the lowest and highest of the rounds."""
    lines = head("what", "measured", "reach", "reached", texts=1)
    for goal in goals:
        value = figures.value(goal.metric)
        if value is None:
            continue
        reached = value >= goal.reach if goal.more else value <= goal.reach
        bound = f"at {'least' if goal.more else 'most'} {goal.form(goal.reach)}"
        low, high = figures.metrics[goal.metric]["ci95"] or (value, value)
        spread = f" [{goal.form(low)}, {goal.form(high)}]" if low != high else ""
        lowest, highest = (figures.value(f"{goal.metric}_{end}") for end in ("low", "high"))
        if not spread and lowest is not None and highest is not None and lowest != highest:
            spread = f" ({goal.form(lowest)} to {goal.form(highest)})"
        lines.append(row(goal.what, f"{goal.form(value)}{spread}", bound, yes(reached)))
    return lines
