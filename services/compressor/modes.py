"""The modes: which strategies may run in each, and how far. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from mesh.errors import invalid_argument
from services.compressor.dedupe import DedupeSettings
from services.compressor.errors import Reason
from services.compressor.history import HistorySettings
from services.compressor.output import OutputSettings
from services.compressor.tools import ToolSettings

CLEANUP, RETRIEVAL, HISTORY, DEDUPE, TOOLS, OUTPUT = "cleanup", "retrieval", "history", "dedupe", "tools", "output"
SUMMARY = "summary"
ORDERING = "order"
"""No strategy: under this name the caller is told what in the order of the prompt costs money."""
ORDER = (SUMMARY, CLEANUP, RETRIEVAL, HISTORY, DEDUPE, TOOLS, OUTPUT)
"""The strategies in the order they run. ``dedupe`` is after ``history``, which might drop the first of two copies."""
USUAL = frozenset((CLEANUP, RETRIEVAL, HISTORY, DEDUPE))
"""Those that every mode but ``off`` has. The others run when they are turned on by name."""


class Mode(StrEnum):
    """How hard the compressor may work."""

    OFF = "off"
    SAFE = "safe"
    BALANCED = "balanced"
    AGGRESSIVE = "aggressive"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a mode does. How far ``retrieval`` goes by mode was fitted (``weights/ranking.json``)."""

    mode: Mode
    history_tokens: int | None = None
    """Tokens of messages kept; None is no limit but the context window's."""
    history: HistorySettings | None = None
    """How messages are chosen; None keeps the newest."""
    dedupe: DedupeSettings = field(default_factory=DedupeSettings)
    tools: ToolSettings = field(default_factory=ToolSettings)
    output: OutputSettings = field(default_factory=OutputSettings)
    strategies: frozenset[str] = USUAL
    summary_over_tokens: int | None = None
    """Tokens of messages above which old turns are summarised; None: only where the window demands it."""

    def runs(self, strategy: str) -> bool:
        """True when the strategy may run."""
        return self.mode is not Mode.OFF and strategy in self.strategies

    def ranks(self, chunks: Sequence[str]) -> bool:
        """True when it matters which chunks are the best."""
        return self.runs(RETRIEVAL) and bool(chunks)


def plans(
    balanced_history: int,
    aggressive_history: int,
    history: HistorySettings | None = None,
    also: Sequence[str] = (),
) -> dict[Mode, Plan]:
    """The plan of each mode; ``also`` names strategies that all of them but ``off`` have beside the usual ones."""
    shortening = None if history is None else replace(history, shorten=True)
    strategies = USUAL | set(also)
    return {
        Mode.OFF: Plan(Mode.OFF),
        Mode.SAFE: Plan(Mode.SAFE, None, history, strategies=strategies),
        Mode.BALANCED: Plan(
            Mode.BALANCED, balanced_history, history, strategies=strategies, summary_over_tokens=balanced_history
        ),
        Mode.AGGRESSIVE: Plan(
            Mode.AGGRESSIVE,
            aggressive_history,
            shortening,
            strategies=strategies,
            summary_over_tokens=aggressive_history,
        ),
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
    if SUMMARY in wanted and plan.summary_over_tokens is None:
        # Named, it shall do something: safe and off have no budget of their own.
        modes = {
            mode: replace(one, summary_over_tokens=modes[Mode.BALANCED].history_tokens) for mode, one in modes.items()
        }
        plan = replace(plan, summary_over_tokens=modes[Mode.SAFE].summary_over_tokens)
    if plan.mode is Mode.OFF:
        return replace(modes[Mode.SAFE], strategies=frozenset(wanted)) if wanted else plan
    dropped = {strategy for strategy, on in switches.items() if not on}
    if HISTORY in wanted and plan.history_tokens is None:
        plan = replace(plan, history_tokens=modes[Mode.BALANCED].history_tokens)
    return replace(plan, strategies=(plan.strategies | wanted) - dropped)
