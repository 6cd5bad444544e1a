"""``tenth budget``: budgets set, deleted and shown, over RPC alone."""

from __future__ import annotations

import argparse
from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from tenth_client.money import parse_usd, usd
from tenth_client.rpc import Rpc

_READ = ledger_pb2_grpc.LedgerReadServiceStub
_WRITE = ledger_pb2_grpc.LedgerServiceStub
_WINDOWS = {
    "day": ledger_pb2.BUDGET_WINDOW_DAY,
    "week": ledger_pb2.BUDGET_WINDOW_WEEK,
    "month": ledger_pb2.BUDGET_WINDOW_MONTH,
    "total": ledger_pb2.BUDGET_WINDOW_TOTAL,
    "rolling": ledger_pb2.BUDGET_WINDOW_ROLLING,
}
_STEPS = {
    "cache-only": ledger_pb2.LADDER_STEP_CACHE_ONLY,
    "batch": ledger_pb2.LADDER_STEP_BATCH,
    "cheaper-tier": ledger_pb2.LADDER_STEP_CHEAPER_TIER,
}
_SPANS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


async def budget_set(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Create or replace a budget. Raises ValueError for an empty scope, a length or a ladder that cannot be read."""
    for option in ("user", "project", "model", "tag"):
        # A shell's unset variable would make a budget of one team a budget of everybody.
        if getattr(arguments, option) == "":
            raise ValueError(f"--{option}: empty; leave it out to cover all")
    tag_key, _, tag_value = (arguments.tag or "").partition("=")
    budget = ledger_pb2.Budget(
        name=arguments.name,
        tenant_id=arguments.tenant,
        user_id=arguments.user or "",
        project_id=arguments.project or "",
        window=_WINDOWS[arguments.window],
        time_zone=arguments.time_zone,
        limit_nano_usd=parse_usd(arguments.limit),
        hard=not arguments.soft,
        model=arguments.model or "",
        tag_key=tag_key,
        tag_value=tag_value,
        alert_percents=arguments.alert,
        alert_url=arguments.alert_url,
        ladder=_ladder(arguments.ladder),
    )
    if arguments.rolling:
        budget.rolling.FromSeconds(_span(arguments.rolling))
    response = await rpc.call("ledger", _WRITE, "SetBudget", ledger_pb2.SetBudgetRequest(budget=budget))
    console.print(_budgets([response.status]))
    return 0


async def budget_delete(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Delete a budget; one that is not there is no error."""
    request = ledger_pb2.DeleteBudgetRequest(tenant_id=arguments.tenant, name=arguments.name)
    response = await rpc.call("ledger", _WRITE, "DeleteBudget", request)
    name, tenant = escape(arguments.name), escape(arguments.tenant)
    console.print(f"deleted budget {name} of {tenant}" if response.deleted else f"{tenant} has no budget {name}")
    return 0


async def budget_list(rpc: Rpc, arguments: argparse.Namespace, console: Console) -> int:
    """Budgets and where they stand."""
    request = ledger_pb2.ListBudgetsRequest(tenant_id=arguments.tenant)
    response = await rpc.call("ledger", _READ, "ListBudgets", request)
    console.print(_budgets(response.budgets))
    return 0


def _budgets(statuses: Iterable[ledger_pb2.BudgetStatus]) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for column in ("budget", "tenant", "covers", "window", "kind", "limit", "spent", "reserved", "left", "marks"):
        right = column in ("limit", "spent", "reserved", "left")
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    names = {value: name for name, value in _WINDOWS.items()}
    for status in statuses:
        budget = status.budget
        covers = ", ".join(filter(None, (budget.user_id, budget.project_id, budget.model, _tag(budget)))) or "all"
        left = budget.limit_nano_usd - status.spent_nano_usd - status.reserved_nano_usd
        where = _span_text(budget.rolling.seconds) if budget.HasField("rolling") else budget.time_zone
        window = f"{names.get(budget.window, '?')} {where}".strip()
        money = (budget.limit_nano_usd, status.spent_nano_usd, status.reserved_nano_usd, left)
        kind = "hard" if budget.hard else "soft"
        amounts = [usd(value) for value in money]
        table.add_row(budget.name, budget.tenant_id, covers, window, kind, *amounts, _marks(budget))
    return table


def _tag(budget: ledger_pb2.Budget) -> str:
    return f"{budget.tag_key}={budget.tag_value or '*'}" if budget.tag_key else ""


def _marks(budget: ledger_pb2.Budget) -> str:
    """Alerts and steps of the ladder, by percent."""
    steps = {value: name for name, value in _STEPS.items()}
    marks = [(rung.from_percent, steps.get(rung.step, "?")) for rung in budget.ladder]
    marks += [(percent, "alert") for percent in budget.alert_percents]
    return ", ".join(f"{percent}% {what}" for percent, what in sorted(marks)) or "-"


def _ladder(text: str) -> list[ledger_pb2.LadderRung]:
    rungs = []
    for each in filter(None, text.split(",")):
        name, _, percent = each.strip().partition("=")
        if name not in _STEPS or not percent.isdecimal():
            raise ValueError(f"{each!r} is not STEP=PERCENT with a step of {', '.join(_STEPS)}")
        rungs.append(ledger_pb2.LadderRung(step=_STEPS[name], from_percent=int(percent)))
    return rungs


def _span(text: str) -> int:
    """Seconds of a length such as 7d."""
    if text[-1:] not in _SPANS or not text[:-1].isdecimal():
        raise ValueError(f"{text!r} is not a length such as 30m, 12h or 7d")
    return int(text[:-1]) * _SPANS[text[-1]]


def _span_text(seconds: int) -> str:
    unit = next(name for name in ("d", "h", "m", "s") if seconds % _SPANS[name] == 0)
    return f"{seconds // _SPANS[unit]}{unit}"
