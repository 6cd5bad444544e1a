"""A ledger's reads for the client's tests: real gRPC over receipts in memory, with the sums computed from them."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import grpc
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from tenth.type.v1 import receipt_pb2, usage_pb2

RATE = Decimal("1462.5")
EVIL = "<script>alert(1)</script>"
BASELINE = "claude-opus-4-7"
START = datetime(2026, 11, 1, 3, tzinfo=UTC)
SHADOW = "tenth.shadow"
_AMOUNTS = ("baseline_nano_usd", "overhead_nano_usd", "actual_nano_usd", "baseline_prompt_cached_nano_usd")


def stand_in(made: Sequence[receipt_pb2.Receipt], *, old: bool = False) -> LedgerStandIn:
    """A ledger with some receipts."""
    return LedgerStandIn(made, old)  # type: ignore[abstract]  # The commands call no other method.


def receipts(count: int, seed: int = 1, days: int = 9) -> list[receipt_pb2.Receipt]:
    """Receipts whose identity holds, of every kind, oldest first; the prompt cache costs more than it saves."""
    dice = random.Random(seed)
    return [_receipt(dice, index, START + timedelta(days=days * index / count)) for index in range(count)]


def _receipt(dice: random.Random, index: int, when: datetime) -> receipt_pb2.Receipt:
    kind = dice.choice(("miss", "miss", "hit", "failed"))
    facts = receipt_pb2.ReceiptFacts(
        request_id=f"r{index}",
        tenant_id=dice.choice(("acme", "한빛")),
        project_id=dice.choice((EVIL, "=1+1", "helpdesk", "")),
        user_id=dice.choice(("", "@user")),
        tags={"team": "-blue"} if index % 2 else {},
        baseline_model=BASELINE,
        model=dice.choice(("mini", "haiku", EVIL)),
        cache_hit=kind == "hit",
        cache_hit_kind="exact" if kind == "hit" else "",
        failed=kind == "failed",
        batch=kind == "miss" and index % 3 == 0,
    )
    if kind != "failed":
        facts.usage.CopyFrom(usage_pb2.Usage(input_token_count=dice.randrange(1, 9000), output_token_count=99))
    facts.create_time.FromDatetime(when)
    facts.end_time.FromDatetime(when + timedelta(seconds=dice.uniform(0.01, 4)))
    for overhead in ("classifier", "compute", "failed_attempt")[: dice.randrange(4)]:
        item = facts.overheads.add(kind=overhead, cost_nano_usd=dice.randrange(10**6))
        if overhead == "compute":
            item.compute_micros = dice.randrange(10**6)
        else:
            item.model = "mini"
            item.usage.input_token_count = dice.randrange(2)
    overhead_cost = sum(item.cost_nano_usd for item in facts.overheads)
    made = receipt_pb2.Receipt(facts=facts, state=receipt_pb2.RECEIPT_STATE_FINAL, overhead_nano_usd=overhead_cost)
    left = made.baseline_nano_usd = 0 if kind == "failed" else dice.randrange(10**8, 10**10)
    made.baseline_prompt_cached_nano_usd = made.baseline_nano_usd * 9 // 10
    for layer in receipt_pb2.Layer.values()[1:]:
        saved = 0
        if kind == "hit":
            saved = left
        elif kind == "miss" and layer == receipt_pb2.LAYER_PROMPT_CACHE:
            saved = -dice.randrange(10**7)
        elif kind == "miss":
            saved = dice.randrange(left // 3)
        made.savings.add(layer=layer, saving_nano_usd=saved)
        left -= saved
    made.actual_nano_usd = left + overhead_cost
    return made


@dataclass
class LedgerStandIn(ledger_pb2_grpc.LedgerReadServiceServicer):
    """Answers GetSpendReport, StreamReceipts and ListReceipts. ``old``: as a ledger before this release."""

    receipts: Sequence[receipt_pb2.Receipt]
    old: bool = False
    requests: list[Any] = field(default_factory=list)

    async def GetSpendReport(self, request: Any, context: Any) -> ledger_pb2.GetSpendReportResponse:
        """Sums by group; days in the time zone asked for."""
        self.requests.append(request)
        zone = ZoneInfo("UTC" if self.old else request.time_zone or "UTC")
        groups: dict[tuple[str, ...], ledger_pb2.SpendRow] = {}
        for each in self._chosen(request.filter):
            key = tuple(_value(each.facts, name, zone) for name in request.group_by)
            row = groups.setdefault(key, _empty(key))
            check = SHADOW in each.facts.tags
            row.shadow_count += check
            row.request_count += not check
            row.failed_count += each.facts.failed and not check
            row.cache_hit_count += each.facts.cache_hit
            row.input_token_count += each.facts.usage.input_token_count
            for name in _AMOUNTS:
                setattr(row, name, getattr(row, name) + getattr(each, name))
            for saving, more in zip(row.savings, each.savings, strict=True):
                saving.saving_nano_usd += more.saving_nano_usd
        if request.currency and not self.old:
            for row in groups.values():
                row.actual_in_currency = str((Decimal(row.actual_nano_usd).scaleb(-9) * RATE).quantize(Decimal(1)))
                row.baseline_in_currency = str((Decimal(row.baseline_nano_usd).scaleb(-9) * RATE).quantize(Decimal(1)))
        return ledger_pb2.GetSpendReportResponse(
            rows=[groups[key] for key in sorted(groups)], baseline_models=[BASELINE] if groups else []
        )

    async def StreamReceipts(self, request: Any, context: Any) -> AsyncIterator[ledger_pb2.StreamReceiptsResponse]:
        """Oldest first, seven in one message."""
        self.requests.append(request)
        if self.old:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
        found = self._chosen(request.filter)
        for at in range(0, len(found), 7):
            yield ledger_pb2.StreamReceiptsResponse(receipts=found[at : at + 7])

    async def ListReceipts(self, request: Any, context: Any) -> ledger_pb2.ListReceiptsResponse:
        """Newest first, in pages of at most 50."""
        self.requests.append(request)
        found, at = self._chosen(request.filter)[::-1], int(request.page_token or 0)
        token = str(at + 50) if at + 50 < len(found) else ""
        return ledger_pb2.ListReceiptsResponse(receipts=found[at : at + 50], next_page_token=token)

    def _chosen(self, which: ledger_pb2.ReceiptFilter) -> list[receipt_pb2.Receipt]:
        return [
            each
            for each in self.receipts
            if (not which.tag_key or which.tag_key in each.facts.tags)
            and (not which.tenant_id or each.facts.tenant_id == which.tenant_id)
            and (not which.HasField("start_time") or _ns(each) >= which.start_time.ToNanoseconds())
            and (not which.HasField("end_time") or _ns(each) < which.end_time.ToNanoseconds())
        ]


def check(
    number: int, verdict: str, mode: str = "safe", model: str = "mini", cost: int = 7_000_000
) -> receipt_pb2.Receipt:
    """The receipt of a shadow check."""
    tags = {SHADOW: verdict, "tenth.shadow_mode": mode}
    facts = receipt_pb2.ReceiptFacts(
        request_id=f"s{number}", tenant_id="acme", tags=tags, baseline_model=BASELINE, model=model, failed=True
    )
    facts.create_time.FromDatetime(START + timedelta(minutes=number))
    facts.end_time.FromDatetime(START + timedelta(minutes=number, seconds=9))
    facts.overheads.add(kind="shadow", model=model, cost_nano_usd=cost)
    made = receipt_pb2.Receipt(facts=facts, state=receipt_pb2.RECEIPT_STATE_FINAL)
    made.savings.extend(receipt_pb2.LayerSaving(layer=layer) for layer in receipt_pb2.Layer.values()[1:])
    made.overhead_nano_usd = made.actual_nano_usd = cost
    return made


def _ns(receipt: receipt_pb2.Receipt) -> int:
    return receipt.facts.create_time.ToNanoseconds()


def _empty(key: tuple[str, ...]) -> ledger_pb2.SpendRow:
    layers = receipt_pb2.Layer.values()[1:]
    return ledger_pb2.SpendRow(group=key, savings=[receipt_pb2.LayerSaving(layer=layer) for layer in layers])


def _value(facts: receipt_pb2.ReceiptFacts, name: str, zone: ZoneInfo) -> str:
    if name.startswith("tag:"):
        return facts.tags.get(name.removeprefix("tag:"), "")
    if name == "day":
        return facts.create_time.ToDatetime(UTC).astimezone(zone).strftime("%Y-%m-%d")
    return {"model": facts.model, "tenant": facts.tenant_id, "project": facts.project_id}[name]
