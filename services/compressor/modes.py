"""The modes: which strategies may run in each, and how far. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from mesh.errors import invalid_argument
from services.compressor.errors import Reason

CLEANUP, RETRIEVAL, HISTORY = "cleanup", "retrieval", "history"
ORDERING = "order"
"""No strategy: under this name the caller is told what in the order of the prompt costs money."""
ORDER = (CLEANUP, RETRIEVAL, HISTORY)
"""The strategies in the order they run: what changes no meaning first, then behind the cached start, then the start."""


class Mode(StrEnum):
    """How hard the compressor may work."""

    OFF = "off"
    SAFE = "safe"
    BALANCED = "balanced"
    AGGRESSIVE = "aggressive"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a mode does. ``None`` is no limit but the context window's."""

    mode: Mode
    most_chunks: int | None = None
    chunk_threshold: float = 0.0
    least_chunks: int = 1
    history_tokens: int | None = None
    strategies: frozenset[str] = frozenset(ORDER)

    def runs(self, strategy: str) -> bool:
        """True when the strategy may run."""
        return self.mode is not Mode.OFF and strategy in self.strategies

    def ranks(self, chunks: Sequence[str]) -> bool:
        """True when it matters which chunks are the best."""
        return self.runs(RETRIEVAL) and self.most_chunks is not None and len(set(chunks)) > self.least_chunks


def plans(
    safe_chunks: int, balanced_chunks: int, aggressive_chunks: int, balanced_history: int, aggressive_history: int
) -> dict[Mode, Plan]:
    """The plan of each mode."""
    return {
        Mode.OFF: Plan(Mode.OFF),
        Mode.SAFE: Plan(Mode.SAFE, safe_chunks, 0.35, 3),
        Mode.BALANCED: Plan(Mode.BALANCED, balanced_chunks, 0.5, 2, balanced_history),
        Mode.AGGRESSIVE: Plan(Mode.AGGRESSIVE, aggressive_chunks, 0.6, 1, aggressive_history),
    }


def overridden(plan: Plan, switches: Mapping[str, bool], modes: Mapping[Mode, Plan]) -> Plan:
    """The plan with strategies turned on or off. Turned on where the mode has them off, they go as far as ``safe``.

    Raises UNKNOWN_STRATEGY.
    """
    for strategy in switches:
        if strategy not in ORDER:
            raise invalid_argument(
                f"{strategy!r} is none of {', '.join(ORDER)}",
                field="strategy_overrides",
                reason=Reason.UNKNOWN_STRATEGY,
            )
    wanted = {strategy for strategy, on in switches.items() if on}
    if plan.mode is Mode.OFF:
        return replace(modes[Mode.SAFE], strategies=frozenset(wanted)) if wanted else plan
    dropped = {strategy for strategy, on in switches.items() if not on}
    if HISTORY in wanted and plan.history_tokens is None:
        plan = replace(plan, history_tokens=modes[Mode.BALANCED].history_tokens)
    return replace(plan, strategies=(plan.strategies | wanted) - dropped)
