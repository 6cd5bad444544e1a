"""The receipt's arithmetic: savings that add up, layer by layer, to the nano-dollar.

Pure, and shared by the orchestrator (which answers with the receipt) and the ledger (which computes it again from
the same facts and price book version). Every step price is exact and rounded once; savings are differences of
rounded step prices, so they telescope:

    baseline - sum(savings) + overhead == actual
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import IntEnum
from fractions import Fraction

from mesh.errors import Code, TenthError
from mesh.money import MAX_NANO_USD, TOKENS_PER_PRICE, divide_half_even

PRICE_UNKNOWN = "PRICE_UNKNOWN"
"""Reason of the error for a model without a confirmed price: never free."""
AMOUNT_OUT_OF_RANGE = "AMOUNT_OUT_OF_RANGE"
"""Reason of the error for token counts or amounts that are negative or pass int64."""
CPU = "cpu"
"""Name of the price book entry for an hour of one CPU core."""
_MICROS_PER_HOUR = 3_600_000_000


class Layer(IntEnum):
    """The layers in the order of their step prices; numbers as in tenth.type.v1.Layer."""

    CACHE = 1
    ROUTING = 2
    COMPRESSION = 3
    PROMPT_CACHE = 4
    BATCH = 5
    QUANTIZATION = 6


@dataclass(frozen=True, slots=True)
class PriceStep:
    """Prices of a request with more than ``above`` input tokens; they hold for the whole request."""

    above: int
    input: int
    output: int
    cached_input: int | None = None
    cache_write_5m: int | None = None
    cache_write_1h: int | None = None


@dataclass(frozen=True, slots=True)
class Price:
    """One model's price, nano-USD per million tokens (hours and ``request_fee``: nano-USD). None: no such price."""

    model: str
    input: int
    output: int
    cached_input: int | None = None
    cache_write_5m: int | None = None
    cache_write_1h: int | None = None
    batch_input: int | None = None
    batch_output: int | None = None
    quantized_input: int | None = None
    quantized_output: int | None = None
    cpu_hour: int | None = None
    confirmed: bool = True
    flex_input: int | None = None
    flex_output: int | None = None
    reasoning_output: int | None = None
    request_fee: int | None = None
    gpu_hour: int | None = None
    steps: tuple[PriceStep, ...] = ()
    """Prices of long requests, by mark, the lowest first."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one generation. ``input`` includes cached and written ones, ``output`` the reasoning."""

    input: int = 0
    output: int = 0
    cached: int = 0
    write_5m: int = 0
    write_1h: int = 0
    reasoning: int = 0


@dataclass(frozen=True, slots=True)
class Overhead:
    """Something spent beside the answer: a model's usage, or plain CPU time."""

    model: str = ""
    usage: Usage = field(default_factory=Usage)
    compute_micros: int = 0
    quantized: bool = False


@dataclass(frozen=True, slots=True)
class Facts:
    """What a receipt is computed from (tenth.type.v1.ReceiptFacts without the labels)."""

    baseline_model: str
    baseline_input: int
    model: str = ""
    original_input: int = 0
    usage: Usage = field(default_factory=Usage)
    cache_hit: bool = False
    batch: bool = False
    flex: bool = False
    quantized: bool = False
    failed: bool = False
    overheads: tuple[Overhead, ...] = ()


@dataclass(frozen=True, slots=True)
class Amounts:
    """The receipt's money, nano-USD."""

    baseline: int
    baseline_prompt_cached: int
    savings: Mapping[Layer, int]
    overhead_items: tuple[int, ...]
    overhead: int
    actual: int


PriceBook = Mapping[str, Price]
"""Prices by model, at one version and time."""


def compute(facts: Facts, prices: PriceBook) -> Amounts:
    """The receipt's amounts.

    Raises PRICE_UNKNOWN for a model without a confirmed price and AMOUNT_OUT_OF_RANGE for counts that are
    negative or amounts past int64.
    """
    items = tuple(overhead_cost(item, prices) for item in facts.overheads)
    overhead = _bounded(sum(items))
    if facts.failed:
        return Amounts(0, 0, dict.fromkeys(Layer, 0), items, overhead, overhead)
    base = price_of(facts.baseline_model, prices)
    baseline = _plain(base, facts.baseline_input, facts.usage)
    steps = [baseline, *((0,) * 6 if facts.cache_hit else _steps(facts, price_of(facts.model, prices), baseline))]
    savings = {layer: before - after for layer, before, after in zip(Layer, steps[:-1], steps[1:], strict=True)}
    return Amounts(
        baseline=baseline,
        baseline_prompt_cached=_baseline_cached(facts, base),
        savings=savings,
        overhead_items=items,
        overhead=overhead,
        actual=_bounded(steps[-1] + overhead),
    )


def overhead_cost(item: Overhead, prices: PriceBook) -> int:
    """Price of one overhead item, rounded once. Compute without a "cpu" price in the book is PRICE_UNKNOWN."""
    cost = 0
    if item.model:
        price = price_of(item.model, prices)
        if item.usage != Usage():  # An attempt that used nothing never reached the model: no fee either.
            cost = actual_cost(price, item.usage, quantized=item.quantized)
    if item.compute_micros:
        _count(item.compute_micros)
        hour = price_of(CPU, prices).cpu_hour
        if hour is None:
            raise _unknown(CPU)
        cost += divide_half_even(item.compute_micros * hour, _MICROS_PER_HOUR)
    return _bounded(cost)


def actual_cost(price: Price, usage: Usage, *, batch: bool = False, flex: bool = False, quantized: bool = False) -> int:
    """What a usage costs on a model: cache discounts, batch or flex and quantized prices included."""
    return _discounted(price, usage, batch=batch, flex=flex, quantized=quantized)


def worst_case(price: Price, input_tokens: int, max_output_tokens: int, *, batch: bool = False) -> int:
    """Most that a generation can cost: all input uncached at the dearest write price, all output used.

    With ``batch``: at batch prices, where there are such.
    """
    # The count is an upper bound: the request may also stay below a mark, and be dearer there.
    reachable: list[Price | PriceStep] = [price, *(step for step in price.steps if step.above < input_tokens)]
    dearest = max(max(each.input, each.cache_write_5m or 0, each.cache_write_1h or 0) for each in reachable)
    dearest_output = max(price.reasoning_output or 0, *(each.output for each in reachable))
    money_in: int | Fraction = _count(input_tokens) * dearest
    money_out: int | Fraction = _count(max_output_tokens) * dearest_output
    if batch:
        money_in *= _ratio(price.batch_input, price.input)
        money_out *= _ratio(price.batch_output, price.output)
    return _rounded(money_in + money_out, price.request_fee)


def price_of(model: str, prices: PriceBook) -> Price:
    """The confirmed price of a model. Raises PRICE_UNKNOWN."""
    price = prices.get(model)
    if price is None or not price.confirmed:
        raise _unknown(model)
    return price


def _steps(facts: Facts, price: Price, baseline: int) -> tuple[int, int, int, int, int, int]:
    """Prices after each layer of a request that a model answered; the cache saved nothing of it."""
    usage, batch, flex = facts.usage, facts.batch, facts.flex
    discounted = _discounted(price, usage)
    # A layer that did not act costs no computation either: most requests are neither batched nor quantized.
    batched = _discounted(price, usage, batch=batch, flex=flex) if batch or flex else discounted
    return (
        baseline,
        _plain(price, facts.original_input, usage),
        _plain(price, usage.input, usage),
        discounted,
        batched,
        _discounted(price, usage, batch=batch, flex=flex, quantized=True) if facts.quantized else batched,
    )


def _at(price: Price, input_tokens: int) -> Price:
    """The price with the step of a request of that length; its batch, flex and quantized shares stay the base's."""
    found = None
    for step in price.steps:
        if input_tokens > step.above:
            found = step
    if found is None:
        return price
    return replace(
        price,
        input=found.input,
        output=found.output,
        cached_input=_or_none(found.cached_input, price.cached_input),
        cache_write_5m=_or_none(found.cache_write_5m, price.cache_write_5m),
        cache_write_1h=_or_none(found.cache_write_1h, price.cache_write_1h),
        steps=(),
    )


def _output(price: Price, usage: Usage) -> int:
    """Tokens times price of the output."""
    if price.reasoning_output is None or not usage.reasoning:
        return _count(usage.output) * price.output
    if usage.reasoning > usage.output:
        raise TenthError(Code.OUT_OF_RANGE, AMOUNT_OUT_OF_RANGE, "reasoning tokens exceed the output", "usage")
    return (usage.output - usage.reasoning) * price.output + _count(usage.reasoning) * price.reasoning_output


def _plain(price: Price, input_tokens: int, usage: Usage) -> int:
    step = _at(price, input_tokens)
    return _rounded(_count(input_tokens) * step.input + _output(step, usage), price.request_fee)


def _discounted(price: Price, usage: Usage, *, batch: bool = False, flex: bool = False, quantized: bool = False) -> int:
    plain = usage.input - usage.cached - usage.write_5m - usage.write_1h
    if plain < 0:
        raise TenthError(Code.OUT_OF_RANGE, AMOUNT_OUT_OF_RANGE, "cached and written tokens exceed the input", "usage")
    step = _at(price, usage.input)
    money_in: int | Fraction = (
        plain * step.input
        + _count(usage.cached) * _or(step.cached_input, step.input)
        + _count(usage.write_5m) * _or(step.cache_write_5m, step.input)
        + _count(usage.write_1h) * _or(step.cache_write_1h, step.input)
    )
    money_out: int | Fraction = _output(step, usage)
    # These prices scale each side as a whole: providers stack them with the cache multipliers and the steps.
    if batch:
        money_in *= _ratio(price.batch_input, price.input)
        money_out *= _ratio(price.batch_output, price.output)
    elif flex:
        money_in *= _ratio(price.flex_input, price.input)
        money_out *= _ratio(price.flex_output, price.output)
    if quantized:
        money_in *= _ratio(price.quantized_input, price.input)
        money_out *= _ratio(price.quantized_output, price.output)
    return _rounded(money_in + money_out, price.request_fee)


def _baseline_cached(facts: Facts, price: Price) -> int:
    """The baseline as a customer with the provider's own prompt caching would pay it.

    The share of the input that was read from a prompt cache is taken to be the same as it was for the model that
    answered; a hit says nothing about it and counts as uncached.
    """
    usage = facts.usage
    if facts.cache_hit or not usage.input:
        return _plain(price, facts.baseline_input, usage)
    cached = min(facts.baseline_input * usage.cached // usage.input, facts.baseline_input)
    return _discounted(price, Usage(facts.baseline_input, usage.output, cached=cached, reasoning=usage.reasoning))


def _or(value: int | None, default: int) -> int:
    return default if value is None else value


def _or_none(value: int | None, default: int | None) -> int | None:
    return default if value is None else value


def _ratio(part: int | None, whole: int) -> Fraction:
    return Fraction(1) if part is None or whole == 0 else Fraction(part, whole)


def _rounded(tokens_times_price: int | Fraction, fee: int | None) -> int:
    # A Fraction only where a price scales another: its arithmetic costs ten times that of whole numbers.
    amount = tokens_times_price
    return _bounded(divide_half_even(amount.numerator, amount.denominator * TOKENS_PER_PRICE) + (fee or 0))


def _count(value: int) -> int:
    if value < 0:
        raise TenthError(Code.OUT_OF_RANGE, AMOUNT_OUT_OF_RANGE, f"{value} is negative", "usage")
    return value


def _bounded(amount: int) -> int:
    if not 0 <= amount <= MAX_NANO_USD:
        raise TenthError(Code.OUT_OF_RANGE, AMOUNT_OUT_OF_RANGE, "the amount does not fit 64 bits", "usage")
    return amount


def _unknown(model: str) -> TenthError:
    return TenthError(
        Code.FAILED_PRECONDITION,
        PRICE_UNKNOWN,
        f"the price book has no confirmed price for {model!r}",
        metadata={"model": model},
    )
