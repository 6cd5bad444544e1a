"""Receipts as a FOCUS 1.2 data set (FinOps Open Cost and Usage Specification): one row per charge.

A receipt becomes the charge of its answer and one charge per overhead item, so BilledCost adds up to the ledger's
actual cost exactly. docs/focus.md gives the mapping and its reasons. Source: https://focus.finops.org/focus-specification/v1-2/
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from tenth.type.v1 import receipt_pb2, usage_pb2

from formats.openai_answers import LAYERS
from tenth_client.reporting.files import Column, Kind, Row, Value, cell, usd
from tenth_client.reporting.sums import savings_of

VERSION = "1.2"
CURRENCY = "USD"
SERVICE_CATEGORY = "AI and Machine Learning"
SERVICE_SUBCATEGORY = "Generative AI"
_TIMES = ("BillingPeriodEnd", "BillingPeriodStart", "ChargePeriodEnd", "ChargePeriodStart")
_DECIMALS = ("BilledCost", "ContractedCost", "EffectiveCost", "ListCost", "ConsumedQuantity", "PricingQuantity")
_NAMES = (
    "BilledCost",
    "BillingAccountId",
    "BillingAccountName",
    "BillingAccountType",
    "BillingCurrency",
    "BillingPeriodEnd",
    "BillingPeriodStart",
    "ChargeCategory",
    "ChargeClass",
    "ChargeDescription",
    "ChargeFrequency",
    "ChargePeriodEnd",
    "ChargePeriodStart",
    "ConsumedQuantity",
    "ConsumedUnit",
    "ContractedCost",
    "EffectiveCost",
    "InvoiceId",
    "InvoiceIssuerName",
    "ListCost",
    "PricingCategory",
    "PricingQuantity",
    "PricingUnit",
    "ProviderName",
    "PublisherName",
    "ResourceId",
    "ResourceName",
    "ResourceType",
    "ServiceCategory",
    "ServiceName",
    "ServiceSubcategory",
    "SkuId",
    "SkuMeter",
    "SkuPriceId",
    "SubAccountId",
    "SubAccountName",
    "SubAccountType",
    "Tags",
)
_OWN_DECIMALS = (
    "x_BaselineCost",
    "x_BaselinePromptCachedCost",
    *(f"x_Saving{''.join(word.title() for word in layer.split('_'))}" for layer in LAYERS.values()),
)
_OWN_TEXTS = ("x_BaselineModel", "x_OverheadKind", "x_RequestId", "x_UserId")


def _kind(name: str) -> Kind:
    if name in _TIMES:
        return Kind.TIME
    return Kind.DECIMAL if name in _DECIMALS else Kind.TEXT


COLUMNS = (
    *(Column(name, _kind(name)) for name in _NAMES),
    *(Column(name, Kind.DECIMAL) for name in _OWN_DECIMALS),
    *(Column(name, Kind.TEXT) for name in _OWN_TEXTS),
    Column("x_CacheHit", Kind.FLAG),
    Column("x_Failed", Kind.FLAG),
)
"""FOCUS's columns by name, then our own, which begin with ``x_`` as the specification wants."""


@dataclass(frozen=True, slots=True)
class Parties:
    """Who sells: the issuer of the invoice, and each model's provider where it is known."""

    issuer: str = "Tenth"
    providers: Mapping[str, str] = field(default_factory=dict)

    def provider(self, model: str) -> str:
        """The provider of a model; the issuer when nobody said."""
        return self.providers.get(model, self.issuer)


@dataclass(frozen=True, slots=True)
class _Charge:
    """One charge of a receipt; ``cost`` in nano-USD."""

    sku: str
    price: str
    description: str
    cost: int
    quantity: Decimal
    unit: str
    overhead: str | None = None


def rows(receipt: receipt_pb2.Receipt, parties: Parties) -> Iterator[Row]:
    """The rows of one receipt. A failed request that cost nothing has none."""
    facts = receipt.facts
    start = facts.create_time.ToDatetime(UTC).replace(microsecond=0)
    period_start = start.replace(day=1, hour=0, minute=0, second=0)
    period_end = (period_start + timedelta(days=32)).replace(day=1)
    last = facts.end_time.ToDatetime(UTC).replace(microsecond=0) if facts.HasField("end_time") else start
    # The end is exclusive and in whole seconds; a charge belongs to the period in which its request was admitted.
    end = min(max(last, start) + timedelta(seconds=1), period_end)
    project = facts.project_id or None
    savings = [usd(amount) for amount in savings_of(receipt).values()]
    answer = [usd(receipt.baseline_nano_usd), usd(receipt.baseline_prompt_cached_nano_usd), *savings]
    for charge in _charges(receipt):
        cost = usd(charge.cost)
        provider = parties.provider(charge.sku)
        own: list[Value] = [None] * len(answer) if charge.overhead else [*answer]
        values: dict[str, Value] = {
            "BilledCost": cost,
            "BillingAccountId": facts.tenant_id,
            "BillingAccountName": facts.tenant_id,
            "BillingAccountType": "Tenant",
            "BillingCurrency": CURRENCY,
            "BillingPeriodEnd": period_end,
            "BillingPeriodStart": period_start,
            "ChargeCategory": "Usage",
            "ChargeClass": None,
            "ChargeDescription": charge.description,
            "ChargeFrequency": "Usage-Based",
            "ChargePeriodEnd": end,
            "ChargePeriodStart": start,
            "ConsumedQuantity": charge.quantity,
            "ConsumedUnit": charge.unit,
            "ContractedCost": cost,
            "EffectiveCost": cost,
            "InvoiceId": None,
            "InvoiceIssuerName": parties.issuer,
            "ListCost": cost,
            "PricingCategory": "Standard",
            "PricingQuantity": Decimal(1),
            "PricingUnit": "Requests",
            "ProviderName": provider,
            "PublisherName": provider,
            "ResourceId": charge.sku,
            "ResourceName": charge.sku,
            "ResourceType": "Model",
            "ServiceCategory": SERVICE_CATEGORY,
            "ServiceName": "LLM inference",
            "ServiceSubcategory": SERVICE_SUBCATEGORY,
            "SkuId": charge.sku,
            "SkuMeter": {"cache": "Requests", "cpu": "Seconds"}.get(charge.sku, "Tokens"),
            "SkuPriceId": charge.price,
            "SubAccountId": project,
            "SubAccountName": project,
            "SubAccountType": "Project" if project else None,
            "Tags": json.dumps(dict(sorted(facts.tags.items())), ensure_ascii=False) if facts.tags else None,
            **dict(zip(_OWN_DECIMALS, own, strict=True)),
            "x_BaselineModel": facts.baseline_model or None,
            "x_OverheadKind": charge.overhead,
            "x_RequestId": facts.request_id,
            "x_UserId": facts.user_id or None,
            "x_CacheHit": facts.cache_hit,
            "x_Failed": facts.failed,
        }
        yield [values[column.name] for column in COLUMNS]


def text(value: Value) -> str:
    """A value as FOCUS's CSV wants it: times in whole seconds and UTC, an empty cell for null."""
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return cell(value)


def _charges(receipt: receipt_pb2.Receipt) -> Iterator[_Charge]:
    facts = receipt.facts
    cost = receipt.actual_nano_usd - receipt.overhead_nano_usd
    if facts.cache_hit and not facts.failed:
        # A charge of nothing: what the cache saved stands beside it.
        yield _Charge("cache", "cache", "Answer from the cache", cost, Decimal(1), "Requests")
    elif not facts.failed:
        terms = "batch" if facts.batch else "flex" if facts.flex else "online"
        terms += " quantized" if facts.quantized else ""
        quantity, unit = _consumed(facts.usage)
        yield _Charge(facts.model, f"{facts.model} {terms}", f"Answer by {facts.model}, {terms}", cost, quantity, unit)
    counted = 0
    for item in facts.overheads:
        counted += item.cost_nano_usd
        quantity, unit = _consumed(item.usage)
        if not item.model:
            quantity, unit = Decimal(item.compute_micros).scaleb(-6), "Seconds"
        if not quantity:
            quantity, unit = Decimal(1), "Requests"
        sku = item.model or "cpu"
        price = f"{sku} online{' quantized' if item.quantized else ''}"
        kind = item.kind or "overhead"
        yield _Charge(sku, price, f"Overhead: {kind} by {sku}", item.cost_nano_usd, quantity, unit, kind)
    rest = receipt.overhead_nano_usd - counted
    if rest:
        # Items without their cost (an older ledger): the sum must still be the ledger's.
        yield _Charge("overhead", "overhead", "Overhead, not itemised", rest, Decimal(1), "Requests", "unknown")


def _consumed(usage: usage_pb2.Usage) -> tuple[Decimal, str]:
    tokens = usage.input_token_count + usage.output_token_count
    return (Decimal(tokens), "Tokens") if tokens else (Decimal(1), "Requests")
