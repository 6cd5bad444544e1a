"""Sums of the ledger's spend report as plain values, and their own sums."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation

from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from tenth.type.v1 import receipt_pb2

from formats.openai_answers import LAYERS
from tenth_client.rpc import Rpc

READ = ledger_pb2_grpc.LedgerReadServiceStub


@dataclass(frozen=True, slots=True)
class Sums:
    """Sums over requests. Amounts in nano-USD, the ``_local`` ones in the currency that was asked for, or None."""

    requests: int = 0
    failed: int = 0
    hits: int = 0
    checks: int = 0
    """Shadow checks: their cost is among the overhead, and they are no requests."""
    baseline: int = 0
    baseline_prompt_cached: int = 0
    savings: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LAYERS.values(), 0))
    overhead: int = 0
    actual: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    actual_local: Decimal | None = None
    baseline_local: Decimal | None = None

    @property
    def saved(self) -> int:
        """What all layers saved, before overhead."""
        return sum(self.savings.values())

    @property
    def adds_up(self) -> bool:
        """baseline - savings + overhead == actual, to the nano-dollar."""
        return self.baseline - self.saved + self.overhead == self.actual


@dataclass(frozen=True, slots=True)
class Group:
    """The sums of one group; ``values`` in the order of the dimensions asked for."""

    values: tuple[str, ...]
    sums: Sums


@dataclass(frozen=True, slots=True)
class Spend:
    """A spend report: its groups, what they were grouped by, the baseline models that occur."""

    dimensions: tuple[str, ...]
    groups: tuple[Group, ...]
    baseline_models: tuple[str, ...]
    currency: str = ""
    converted: Sums | None = None
    """The total as the ledger converted it: the groups' amounts in the other currency are rounded one by one."""

    @property
    def total(self) -> Sums:
        """The sum of all groups."""
        total, whole = add(group.sums for group in self.groups), self.converted
        if whole is None or (whole.baseline, whole.actual) != (total.baseline, total.actual):
            # Receipts can arrive between the two questions: then the sum of the groups it is.
            return total
        return replace(total, actual_local=whole.actual_local, baseline_local=whole.baseline_local)

    @property
    def baseline(self) -> str:
        """The baseline models' names, joined."""
        return ", ".join(self.baseline_models)


def add(parts: Iterable[Sums]) -> Sums:
    """The sum of sums. An amount in the other currency is absent when any part has none."""
    rows = list(parts)
    if not rows:
        return Sums()
    return Sums(
        requests=sum(row.requests for row in rows),
        failed=sum(row.failed for row in rows),
        hits=sum(row.hits for row in rows),
        checks=sum(row.checks for row in rows),
        baseline=sum(row.baseline for row in rows),
        baseline_prompt_cached=sum(row.baseline_prompt_cached for row in rows),
        savings={layer: sum(row.savings.get(layer, 0) for row in rows) for layer in LAYERS.values()},
        overhead=sum(row.overhead for row in rows),
        actual=sum(row.actual for row in rows),
        input_tokens=sum(row.input_tokens for row in rows),
        output_tokens=sum(row.output_tokens for row in rows),
        actual_local=_sum(row.actual_local for row in rows),
        baseline_local=_sum(row.baseline_local for row in rows),
    )


async def fetch(
    rpc: Rpc,
    which: ledger_pb2.ReceiptFilter,
    group_by: Sequence[str],
    *,
    time_zone: str = "",
    currency: str = "",
) -> Spend:
    """One spend report. Raises TenthClientError, e.g. EXCHANGE_RATE_UNKNOWN when a day has no rate."""
    request = ledger_pb2.GetSpendReportRequest(filter=which, group_by=group_by, time_zone=time_zone, currency=currency)
    response = await rpc.call("ledger", READ, "GetSpendReport", request, seconds=60)
    groups = tuple(Group(tuple(row.group), sums_of(row)) for row in response.rows)
    # A server that does not know the field says nothing in that currency.
    known = any(group.sums.actual_local is not None for group in groups)
    converted = None
    if known and group_by:
        request.ClearField("group_by")
        whole = await rpc.call("ledger", READ, "GetSpendReport", request, seconds=60)
        converted = add(sums_of(row) for row in whole.rows)
    return Spend(tuple(group_by), groups, tuple(response.baseline_models), currency if known else "", converted)


def sums_of(row: ledger_pb2.SpendRow) -> Sums:
    """A row of the report as plain values."""
    savings = dict.fromkeys(LAYERS.values(), 0)
    for saving in row.savings:
        savings[LAYERS.get(saving.layer, str(saving.layer))] = saving.saving_nano_usd
    return Sums(
        requests=row.request_count,
        failed=row.failed_count,
        hits=row.cache_hit_count,
        checks=row.shadow_count,
        baseline=row.baseline_nano_usd,
        baseline_prompt_cached=row.baseline_prompt_cached_nano_usd,
        savings=savings,
        overhead=row.overhead_nano_usd,
        actual=row.actual_nano_usd,
        input_tokens=row.input_token_count,
        output_tokens=row.output_token_count,
        actual_local=_decimal(row.actual_in_currency),
        baseline_local=_decimal(row.baseline_in_currency),
    )


def savings_of(receipt: receipt_pb2.Receipt) -> dict[str, int]:
    """A receipt's savings by layer's name, every layer in order."""
    savings = dict.fromkeys(LAYERS.values(), 0)
    for saving in receipt.savings:
        savings[LAYERS.get(saving.layer, str(saving.layer))] = saving.saving_nano_usd
    return savings


def _decimal(text: str) -> Decimal | None:
    try:
        return Decimal(text) if text else None
    except InvalidOperation:
        return None


def _sum(values: Iterable[Decimal | None]) -> Decimal | None:
    known = list(values)
    if any(value is None for value in known):
        return None
    return sum((value for value in known if value is not None), Decimal(0))
