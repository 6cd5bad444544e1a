"""The router's parts, made from its settings. ``__main__`` puts them together."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from mesh.catalog import WatchedFile
from services.router.catalog import CLASS_OF_TIER, Catalog, unknown_arms
from services.router.classifier import Thresholds
from services.router.decide import DeciderSettings, Knowledge
from services.router.decision import Strategy
from services.router.exploration import ExplorationShares
from services.router.heads import Heads, HeadsError
from services.router.health import Health
from services.router.learning import Training
from services.router.quality import QualityPrices
from services.router.rules import Rules, unknown_models
from services.router.settings import RouterSettings
from services.router.sqlite import LogLimits, OutcomeLog

log = logging.getLogger("tenth.router")


def read_heads(path: Path | None) -> Heads | None:
    """The trained heads of the file, if one is set. Raises SystemExit naming the setting."""
    try:
        heads = None if path is None else Heads.load(path)
    except (HeadsError, OSError) as error:
        raise SystemExit(f"setting TENTH_ROUTER_HEADS_FILE: {error}") from None
    missing = set(CLASS_OF_TIER.values()) - set(heads.arms) if heads is not None else set()
    if missing:
        raise SystemExit(f"setting TENTH_ROUTER_HEADS_FILE: {path} has no arms {', '.join(sorted(missing))}")
    return heads


def knowledge_of(settings: RouterSettings) -> Knowledge:
    """What the strategies decide with. Raises SystemExit for a broken file of heads."""
    heads = read_heads(settings.heads_file)
    thresholds = Thresholds(settings.simple_below, settings.complex_from, settings.quality_target)
    return Knowledge(thresholds, heads, QualityPrices(heads.sample) if heads is not None else None)


def decider_settings(settings: RouterSettings) -> DeciderSettings:
    """How the deployment decides where nobody says."""
    return DeciderSettings(
        strategy=Strategy[settings.strategy.upper()],
        shadow=Strategy[settings.shadow_strategy.upper()] if settings.shadow_strategy else None,
        shares=ExplorationShares(
            explore=settings.explore_share,
            audit=settings.audit_share,
            extra_spend=settings.exploration_spend_share,
        ),
    )


def training_of(heads: Heads | None) -> Training:
    """What a report compares traffic with."""
    return Training() if heads is None else Training(heads.version, heads.quantiles())


def health_of(settings: RouterSettings) -> Health:
    """The health of models, all up until somebody says otherwise."""
    return Health(
        time.monotonic,
        failure_count=settings.health_failure_count,
        down_seconds=settings.health_down_seconds,
        max_down_seconds=settings.health_max_down_seconds,
    )


def current_rules(file: WatchedFile[Rules] | None) -> Callable[[], Rules]:
    """What gives the rules that are loaded now."""
    if file is None:
        none = Rules()
        return lambda: none
    return lambda: file.current


async def opened_log(settings: RouterSettings, data_dir: Path, stack: AsyncExitStack) -> OutcomeLog:
    """The outcome log, written in the background until the stack closes. Raises SystemExit naming the setting."""
    limits = LogLimits(
        settings.outcome_log_entries,
        settings.outcome_log_seconds,
        settings.outcome_queue_entries,
        settings.outcome_embeddings,
    )
    outcomes = OutcomeLog(data_dir / "outcomes.sqlite", limits, time.time)
    try:
        await outcomes.open()
    except OSError as error:
        raise SystemExit(f"setting TENTH_DATA_DIR: {error}") from None
    stack.push_async_callback(outcomes.close)
    watch(stack, outcomes.write_for_ever(settings.outcome_write_seconds))
    return outcomes


def watch(stack: AsyncExitStack, work: Coroutine[Any, Any, None]) -> None:
    """Run something in the background until the stack closes."""
    task = asyncio.create_task(work)
    stack.callback(task.cancel)


def warn(catalog: Catalog, rules: Rules, knowledge: Knowledge) -> None:
    """Log what is legal and surprising: rules and models that name what is not there."""
    for rule, model, line in unknown_models(rules, catalog):
        log.warning("rule %s (line %d) names %s, which the catalogue lacks: its requests fail", rule, line, model)
    if knowledge.heads is None:
        log.warning("no trained heads: the features decide")
        return
    for model, arm, line in unknown_arms(catalog, knowledge.heads.arms):
        log.warning("the heads do not know %s, which %s (line %d) is like: its tier's class stands", arm, model, line)
