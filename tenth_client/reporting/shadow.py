"""The shadow check in the report: answers to compressed prompts beside answers to the whole ones, as judged."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from rich.table import Table
from rich.text import Text
from tenth.ledger.v1 import ledger_pb2

from tenth_client.errors import TenthClientError
from tenth_client.money import percent, usd
from tenth_client.reporting.sums import READ
from tenth_client.rpc import Rpc

TAG, MODE_TAG = "tenth.shadow", "tenth.shadow_mode"
"""Tags of a check's receipt: its verdict, and the compression mode of the request."""
_Z = 1.959963984540054
"""The normal distribution's quantile of a two-sided 95% interval."""
_PAST_RETENTION = "RECEIPTS_PAST_RETENTION"


@dataclass(frozen=True, slots=True)
class Checks:
    """The checks of one compression mode and model, by verdict; ``cost`` in nano-USD."""

    mode: str
    model: str
    same: int = 0
    worse: int = 0
    better: int = 0
    undecided: int = 0
    cost: int = 0

    @property
    def compared(self) -> int:
        """Checks with a verdict that the judge gave in both orders."""
        return self.same + self.worse + self.better

    @property
    def worse_text(self) -> str:
        """The share that is worse with its 95% interval, such as ``2.0% (0.6% to 7.0%)``; ``-`` of nothing."""
        if not self.compared:
            return "-"
        low, high = wilson(self.worse, self.compared)
        return f"{percent(self.worse, self.compared)} ({100 * low:.1f}% to {100 * high:.1f}%)"


def wilson(count: int, of: int) -> tuple[float, float]:
    """The 95% score interval of a share (E. B. Wilson, JASA 22 (1927) 209-212); (0, 1) of nothing.

    It keeps within 0 and 1 and holds for few observations, where none or all were counted.
    """
    if not of:
        return 0.0, 1.0
    share, z2 = count / of, _Z * _Z
    middle = (share + z2 / (2 * of)) / (1 + z2 / of)
    half = _Z / (1 + z2 / of) * math.sqrt(share * (1 - share) / of + z2 / (4 * of * of))
    # None and all are bounds that rounding must not move.
    return (max(middle - half, 0.0) if count else 0.0), (min(middle + half, 1.0) if count < of else 1.0)


async def fetch_checks(rpc: Rpc, which: ledger_pb2.ReceiptFilter) -> tuple[Checks, ...] | None:
    """The checks by mode and model; None when the receipts that say so are deleted. Raises TenthClientError."""
    request = ledger_pb2.GetSpendReportRequest(filter=which, group_by=[f"tag:{MODE_TAG}", "model", f"tag:{TAG}"])
    request.filter.tag_key, request.filter.tag_value = TAG, ""
    try:
        response = await rpc.call("ledger", READ, "GetSpendReport", request, seconds=60)
    except TenthClientError as error:
        if error.reason != _PAST_RETENTION:
            raise
        return None
    return checks_of(response.rows)


def checks_of(rows: Iterable[ledger_pb2.SpendRow]) -> tuple[Checks, ...]:
    """Rows by mode, model and verdict as one row per mode and model, in their order."""
    found: dict[tuple[str, str], Checks] = {}
    for row in rows:
        mode, model, verdict = row.group
        checks = found.get((mode, model), Checks(mode, model))
        # A verdict of a later revision decides nothing here.
        name = verdict if verdict in ("same", "worse", "better") else "undecided"
        found[mode, model] = replace(
            checks,
            **{name: getattr(checks, name) + row.shadow_count},
            cost=checks.cost + row.actual_nano_usd,
        )
    return tuple(found.values())


def total(checks: Sequence[Checks]) -> Checks:
    """The sum of all modes and models."""
    names = ("same", "worse", "better", "undecided", "cost")
    return Checks("", "", **{name: sum(getattr(each, name) for each in checks) for name in names})


def table(checks: Sequence[Checks]) -> Table:
    """The checks for a terminal."""
    made = Table(show_edge=False, pad_edge=False, title_justify="left")
    made.title = "shadow check: answers to compressed prompts, beside the same model's to the whole ones"
    for index, name in enumerate(
        ("mode", "model", "compared", "same", "worse", "better", "undecided", "worse, of compared (95%)", "cost")
    ):
        made.add_column(name, justify="left" if index < 2 else "right", overflow="fold")
    for each in checks:
        made.add_row(Text(each.mode), Text(each.model), *_cells(each))
    if len(checks) > 1:
        made.add_section()
        made.add_row("all", "", *_cells(total(checks)), style="bold")
    return made


def _cells(checks: Checks) -> list[str]:
    counts = (checks.compared, checks.same, checks.worse, checks.better, checks.undecided)
    return [*map(str, counts), checks.worse_text, usd(checks.cost)]
