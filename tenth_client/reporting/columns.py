"""The columns of the exported receipts, and of a report's groups."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Decimal

from google.protobuf.timestamp_pb2 import Timestamp
from tenth.type.v1 import chat_pb2, receipt_pb2

from formats.openai_answers import LAYERS
from tenth_client.reporting.files import Column, Kind, Row, Value, usd
from tenth_client.reporting.sums import Group, Spend, savings_of

_TIERS = {chat_pb2.TIER_SIMPLE: "simple", chat_pb2.TIER_MEDIUM: "medium", chat_pb2.TIER_COMPLEX: "complex"}


def _money(name: str) -> tuple[Column, Column]:
    return Column(f"{name}_nano_usd", Kind.NANO_USD), Column(f"{name}_usd", Kind.DECIMAL)


_SAVINGS = tuple(column for layer in LAYERS.values() for column in _money(f"saving_{layer}"))
RECEIPT = (
    *(Column(name, Kind.TEXT) for name in ("request_id", "tenant_id", "user_id", "project_id", "tags")),
    Column("create_time", Kind.TIME),
    Column("end_time", Kind.TIME),
    *(Column(name, Kind.TEXT) for name in ("baseline_model", "model", "tier", "cache_hit_kind", "trace_id")),
    *(Column(name, Kind.FLAG) for name in ("cache_hit", "failed", "cancelled", "batch", "flex", "quantized")),
    *(
        Column(f"{name}_count", Kind.COUNT)
        for name in (
            "baseline_input_token",
            "original_input_token",
            "input_token",
            "cached_input_token",
            "output_token",
        )
    ),
    Column("price_book_version", Kind.COUNT),
    *_money("baseline"),
    *_money("baseline_prompt_cached"),
    *_SAVINGS,
    *_money("overhead"),
    *_money("actual"),
)
"""One row per receipt. Every amount stands twice: whole nano-USD, and decimal USD."""


def receipt_row(receipt: receipt_pb2.Receipt) -> Row:
    """One receipt in the columns of RECEIPT; tags as a JSON object."""
    facts, usage = receipt.facts, receipt.facts.usage
    amounts = (
        receipt.baseline_nano_usd,
        receipt.baseline_prompt_cached_nano_usd,
        *savings_of(receipt).values(),
        receipt.overhead_nano_usd,
        receipt.actual_nano_usd,
    )
    return (
        facts.request_id,
        facts.tenant_id,
        facts.user_id,
        facts.project_id,
        json.dumps(dict(sorted(facts.tags.items())), ensure_ascii=False),
        _time(facts.create_time) if facts.HasField("create_time") else None,
        _time(facts.end_time) if facts.HasField("end_time") else None,
        facts.baseline_model,
        facts.model,
        _TIERS.get(facts.tier, ""),
        facts.cache_hit_kind,
        facts.trace_id,
        facts.cache_hit,
        facts.failed,
        facts.cancelled,
        facts.batch,
        facts.flex,
        facts.quantized,
        facts.baseline_input_token_count,
        facts.original_input_token_count,
        usage.input_token_count,
        usage.cached_input_token_count,
        usage.output_token_count,
        facts.price_book_version,
        *_twice(amounts),
    )


def group_columns(spend: Spend) -> tuple[Column, ...]:
    """A report's columns: its dimensions, the counts, the money, and the other currency when it has one."""
    local = f"_{spend.currency.lower()}"
    return (
        *(Column(name, Kind.TEXT) for name in spend.dimensions),
        Column("baseline_models", Kind.TEXT),
        *(Column(f"{name}_count", Kind.COUNT) for name in ("request", "failed", "cache_hit", "shadow_check")),
        Column("input_token_count", Kind.COUNT),
        Column("output_token_count", Kind.COUNT),
        *_money("baseline"),
        *_money("baseline_prompt_cached"),
        *_SAVINGS,
        *_money("overhead"),
        *_money("actual"),
        *((Column(f"{name}{local}", Kind.DECIMAL) for name in ("baseline", "actual")) if spend.currency else ()),
    )


def group_row(spend: Spend, group: Group) -> Row:
    """One group in the columns of ``group_columns``."""
    sums = group.sums
    amounts = (sums.baseline, sums.baseline_prompt_cached, *sums.savings.values(), sums.overhead, sums.actual)
    return (
        *group.values,
        spend.baseline,
        sums.requests,
        sums.failed,
        sums.hits,
        sums.checks,
        sums.input_tokens,
        sums.output_tokens,
        *_twice(amounts),
        *((_nine_places(sums.baseline_local), _nine_places(sums.actual_local)) if spend.currency else ()),
    )


def _time(time: Timestamp) -> datetime:
    return time.ToDatetime(UTC)


def _nine_places(amount: Decimal | None) -> Decimal | None:
    # As many as the columns have; the ledger may say more.
    return None if amount is None else amount.quantize(Decimal("1e-9"), ROUND_HALF_EVEN)


def _twice(amounts: Sequence[int]) -> list[Value]:
    return [value for amount in amounts for value in (amount, usd(amount))]
