"""The report on a terminal: a line of totals, the sums by dimension, the savings by layer."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from formats.openai_answers import LAYERS
from tenth_client.money import percent, usd
from tenth_client.reporting import shadow
from tenth_client.reporting.numbers import local
from tenth_client.reporting.sums import Spend, Sums


def show(spend: Spend, console: Console) -> None:
    """Print a report."""
    total, baseline = spend.total, spend.baseline or "none"
    if total.requests:
        console.print(f"baseline: {baseline}", markup=False, soft_wrap=True)
    console.print(totals(total, baseline, spend.currency), markup=False, soft_wrap=True)
    if not total.adds_up:
        console.print("THE SUMS DO NOT ADD UP: do not use this report", style="bold red")
    console.print()
    console.print(by_group(spend))
    console.print()
    console.print(by_layer(spend))


def show_checks(checks: Sequence[shadow.Checks] | None, console: Console) -> None:
    """Print the shadow checks, when there were any; None: their receipts are deleted."""
    if checks:
        console.print()
        console.print(shadow.table(checks))
    elif checks is None:
        console.print("\nshadow check: single receipts of this time are deleted; ask --since a later day", markup=False)


def totals(total: Sums, baseline: str, currency: str) -> str:
    """The report in one sentence; percentages name what they are of."""
    if not total.requests:
        return "no requests in this time"
    spent = f"{usd(total.actual)}{_beside(total, currency)}"
    cached = total.baseline_prompt_cached
    return (
        f"{total.requests} requests ({total.failed} failed, {total.hits} from the cache): spent {spent}, "
        f"{percent(total.actual, total.baseline)} of {baseline} ({usd(total.baseline)}); with the provider's own "
        f"prompt caching that baseline is {usd(cached)}, and {percent(total.actual, cached)} of it was spent"
    )


def by_group(spend: Spend) -> Table:
    """Counts and money by group, with the sum below when there are several."""
    money = ("baseline", "saved", "overhead", "actual")
    extra = (f"actual {spend.currency}",) if spend.currency else ()
    columns = (*spend.dimensions, "requests", "failed", "hits", *money, *extra, "of baseline")
    table = _table(columns, len(spend.dimensions))
    for group in spend.groups:
        table.add_row(*map(Text, group.values), *_cells(group.sums, spend.currency))
    if len(spend.groups) > 1:
        table.add_section()
        table.add_row("all", *[""] * (len(spend.dimensions) - 1), *_cells(spend.total, spend.currency), style="bold")
    return table


def by_layer(spend: Spend) -> Table:
    """What each layer saved by group; a layer that cost more than it saved is negative and red."""
    table = _table((*spend.dimensions, *LAYERS.values()), len(spend.dimensions))
    table.title, table.title_justify = "saved by layer", "left"
    rows = [(group.values, group.sums) for group in spend.groups]
    if len(rows) > 1:
        rows.append((("all", *[""] * (len(spend.dimensions) - 1)), spend.total))
    for values, sums in rows:
        amounts = (sums.savings.get(layer, 0) for layer in LAYERS.values())
        table.add_row(*map(Text, values), *(Text(usd(value), style="red" if value < 0 else "") for value in amounts))
    return table


def _cells(sums: Sums, currency: str) -> list[str]:
    money = (sums.baseline, sums.saved, sums.overhead, sums.actual)
    extra = [local(sums.actual_local, currency)] if currency else []
    counts = (sums.requests, sums.failed, sums.hits)
    return [*map(str, counts), *(usd(value) for value in money), *extra, percent(sums.actual, sums.baseline)]


def _beside(total: Sums, currency: str) -> str:
    return f" ({local(total.actual_local, currency)})" if currency and total.actual_local is not None else ""


def _table(columns: tuple[str, ...], text_count: int) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index < text_count else "right", overflow="fold")
    return table
