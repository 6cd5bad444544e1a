"""The shared money messages of tenth.type.v1 to and from the plain types of ``mesh/receipt.py``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

from tenth.type.v1 import receipt_pb2, usage_pb2

from mesh import receipt
from mesh.dated import DatedPrices

_PRICE_FIELDS = (
    ("cached_input", "cached_input_nano_usd_per_million_tokens"),
    ("cache_write_5m", "cache_write_5m_nano_usd_per_million_tokens"),
    ("cache_write_1h", "cache_write_1h_nano_usd_per_million_tokens"),
    ("batch_input", "batch_input_nano_usd_per_million_tokens"),
    ("batch_output", "batch_output_nano_usd_per_million_tokens"),
    ("quantized_input", "quantized_input_nano_usd_per_million_tokens"),
    ("quantized_output", "quantized_output_nano_usd_per_million_tokens"),
    ("cpu_hour", "cpu_hour_nano_usd"),
    ("flex_input", "flex_input_nano_usd_per_million_tokens"),
    ("flex_output", "flex_output_nano_usd_per_million_tokens"),
    ("reasoning_output", "reasoning_output_nano_usd_per_million_tokens"),
    ("request_fee", "request_fee_nano_usd"),
    ("gpu_hour", "gpu_hour_nano_usd"),
)
_STEP_FIELDS = _PRICE_FIELDS[:3]


def price_from_proto(message: receipt_pb2.Price) -> receipt.Price:
    """A price without its dates and source."""
    optional = {name: getattr(message, wire) for name, wire in _PRICE_FIELDS if message.HasField(cast(Any, wire))}
    steps = sorted((_step_from_proto(step) for step in message.steps), key=lambda step: step.above)
    return receipt.Price(
        model=message.model,
        input=message.input_nano_usd_per_million_tokens,
        output=message.output_nano_usd_per_million_tokens,
        confirmed=message.confirmed,
        steps=tuple(steps),
        **optional,
    )


def price_to_proto(price: receipt.Price) -> receipt_pb2.Price:
    """A price message; dates and source are left for the caller to fill."""
    message = receipt_pb2.Price(
        model=price.model,
        input_nano_usd_per_million_tokens=price.input,
        output_nano_usd_per_million_tokens=price.output,
        confirmed=price.confirmed,
    )
    for name, wire in _PRICE_FIELDS:
        value = getattr(price, name)
        if value is not None:
            setattr(message, wire, value)
    for step in price.steps:
        added = message.steps.add(
            above_input_token_count=step.above,
            input_nano_usd_per_million_tokens=step.input,
            output_nano_usd_per_million_tokens=step.output,
        )
        for name, wire in _STEP_FIELDS:
            value = getattr(step, name)
            if value is not None:
                setattr(added, wire, value)
    return message


def _step_from_proto(message: receipt_pb2.PriceStep) -> receipt.PriceStep:
    return receipt.PriceStep(
        above=message.above_input_token_count,
        input=message.input_nano_usd_per_million_tokens,
        output=message.output_nano_usd_per_million_tokens,
        **{name: getattr(message, wire) for name, wire in _STEP_FIELDS if message.HasField(cast(Any, wire))},
    )


def usage_from_proto(message: usage_pb2.Usage) -> receipt.Usage:
    """The token counts that money depends on."""
    return receipt.Usage(
        input=message.input_token_count,
        output=message.output_token_count,
        cached=message.cached_input_token_count,
        write_5m=message.cache_write_5m_token_count,
        write_1h=message.cache_write_1h_token_count,
        reasoning=message.reasoning_output_token_count,
    )


def usage_to_proto(usage: receipt.Usage, *, estimated: bool = False) -> usage_pb2.Usage:
    """Token counts for the wire."""
    return usage_pb2.Usage(
        input_token_count=usage.input,
        cached_input_token_count=usage.cached,
        cache_write_5m_token_count=usage.write_5m,
        cache_write_1h_token_count=usage.write_1h,
        output_token_count=usage.output,
        reasoning_output_token_count=usage.reasoning,
        estimated=estimated,
    )


def facts_from_proto(message: receipt_pb2.ReceiptFacts) -> receipt.Facts:
    """The facts that money depends on."""
    return receipt.Facts(
        baseline_model=message.baseline_model,
        baseline_input=message.baseline_input_token_count,
        model=message.model,
        original_input=message.original_input_token_count,
        usage=usage_from_proto(message.usage),
        cache_hit=message.cache_hit,
        batch=message.batch,
        flex=message.flex,
        quantized=message.quantized,
        failed=message.failed,
        overheads=tuple(overhead_from_proto(item) for item in message.overheads),
    )


def overhead_from_proto(message: receipt_pb2.OverheadItem) -> receipt.Overhead:
    """One overhead item without its kind."""
    return receipt.Overhead(
        model=message.model,
        usage=usage_from_proto(message.usage),
        compute_micros=message.compute_micros,
        quantized=message.quantized,
    )


def build_receipt(
    facts: receipt_pb2.ReceiptFacts, prices: receipt.PriceBook, state: receipt_pb2.ReceiptState.ValueType
) -> receipt_pb2.Receipt:
    """The whole receipt of some facts. Raises as ``mesh.receipt.compute`` does."""
    amounts = receipt.compute(facts_from_proto(facts), prices)
    result = receipt_pb2.Receipt(
        facts=facts,
        state=state,
        baseline_nano_usd=amounts.baseline,
        baseline_prompt_cached_nano_usd=amounts.baseline_prompt_cached,
        savings=[
            receipt_pb2.LayerSaving(layer=cast(receipt_pb2.Layer.ValueType, layer.value), saving_nano_usd=saving)
            for layer, saving in amounts.savings.items()
        ],
        overhead_nano_usd=amounts.overhead,
        actual_nano_usd=amounts.actual,
    )
    for item, cost in zip(result.facts.overheads, amounts.overhead_items, strict=True):
        item.cost_nano_usd = cost
    return result


def dated_prices(messages: Iterable[receipt_pb2.Price]) -> DatedPrices[receipt_pb2.Price]:
    """Dated prices of the wire, indexed by model."""
    return DatedPrices(
        messages,
        model=lambda message: message.model,
        starts=lambda message: message.valid_from_time.ToNanoseconds(),
        ends=lambda message: message.valid_to_time.ToNanoseconds() if message.HasField("valid_to_time") else None,
        price=price_from_proto,
    )
