"""The receipt's arithmetic: it adds up to the nano-dollar, whatever the facts; it telescopes; it never guesses."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenth.type.v1 import receipt_pb2, usage_pb2

from mesh.errors import Code, TenthError
from mesh.money import MAX_NANO_USD
from mesh.receipt import (
    AMOUNT_OUT_OF_RANGE,
    CPU,
    PRICE_UNKNOWN,
    Amounts,
    Facts,
    Layer,
    Overhead,
    Price,
    PriceStep,
    Usage,
    actual_cost,
    compute,
    overhead_cost,
    worst_case,
)
from mesh.wire import build_receipt, facts_from_proto, price_from_proto, price_to_proto
from tests.unit.mesh.receipt_decimal import decimal_cost

quick = settings(deadline=None, max_examples=60)
"""No deadline: other work on the machine must not fail a test of arithmetic."""
tokens = st.integers(0, 10_000_000)
amounts = st.integers(0, 200 * 10**9)
optional = st.none() | amounts


@st.composite
def prices(draw: st.DrawFn, model: str) -> Price:
    """Any price; dear, free, with and without each discount, step and fee."""
    entered, made = draw(amounts), draw(amounts)
    names = ("cached_input", "cache_write_5m", "cache_write_1h", "reasoning_output", "request_fee")
    chosen: dict[str, Any] = {name: draw(optional) for name in names}
    # These scale whole sides; one far above the plain price would only find the end of 64 bits.
    for name in ("batch", "flex", "quantized"):
        for side, plain in (("input", entered), ("output", made)):
            chosen[f"{name}_{side}"] = draw(st.none() | st.integers(0, 2 * plain))
    marks = draw(st.lists(st.integers(1, 30_000_000), unique=True, max_size=2).map(sorted))
    steps = tuple(
        PriceStep(mark, draw(amounts), draw(amounts), draw(optional), draw(optional), draw(optional)) for mark in marks
    )
    return replace(Price(model, entered, made, steps=steps), **chosen)


@st.composite
def usages(draw: st.DrawFn) -> Usage:
    """Any usage whose parts fit its input."""
    parts = [draw(tokens) for _ in range(4)]
    output = draw(tokens)
    thought = draw(st.integers(0, output))
    return Usage(sum(parts), output, cached=parts[0], write_5m=parts[1], write_1h=parts[2], reasoning=thought)


@st.composite
def books(draw: st.DrawFn) -> dict[str, Price]:
    """A price book of a baseline, an answering model and CPU time."""
    cpu = Price(CPU, 0, 0, cpu_hour=draw(amounts))
    return {"big": draw(prices("big")), "small": draw(prices("small")), CPU: cpu}


overheads = st.builds(
    Overhead,
    model=st.sampled_from(["", "big", "small"]),
    usage=usages(),
    compute_micros=st.integers(0, 10**10),
    quantized=st.booleans(),
)
facts = st.builds(
    Facts,
    baseline_model=st.just("big"),
    baseline_input=tokens,
    model=st.sampled_from(["big", "small"]),
    original_input=tokens,
    usage=usages(),
    cache_hit=st.booleans(),
    batch=st.booleans(),
    flex=st.booleans(),
    quantized=st.booleans(),
    failed=st.booleans(),
    overheads=st.lists(overheads, max_size=3).map(tuple),
)


def adds_up(result: Amounts) -> bool:
    """The identity."""
    return result.baseline - sum(result.savings.values()) + result.overhead == result.actual


@quick
@given(facts, books())
def test_the_identity_holds_exactly(given_facts: Facts, book: dict[str, Price]) -> None:
    result = compute(given_facts, book)
    assert adds_up(result)
    assert list(result.savings) == list(Layer)
    assert result.overhead == sum(result.overhead_items)
    assert min(result.baseline, result.actual, result.overhead, result.baseline_prompt_cached) >= 0


@quick
@given(st.lists(facts, max_size=5), books())
def test_the_identity_holds_over_any_sum(many: list[Facts], book: dict[str, Price]) -> None:
    results = [compute(each, book) for each in many]
    saved = sum(sum(each.savings.values()) for each in results)
    total = sum(each.baseline for each in results) - saved + sum(each.overhead for each in results)
    assert total == sum(each.actual for each in results)


@quick
@given(facts, books())
def test_what_is_paid_is_what_the_provider_bills(given_facts: Facts, book: dict[str, Price]) -> None:
    result = compute(given_facts, book)
    answer = 0
    if not (given_facts.failed or given_facts.cache_hit):
        answer = actual_cost(
            book[given_facts.model],
            given_facts.usage,
            batch=given_facts.batch,
            flex=given_facts.flex,
            quantized=given_facts.quantized,
        )
    assert result.actual == answer + result.overhead


@quick
@given(facts, books())
def test_savings_telescope_step_by_step(given_facts: Facts, book: dict[str, Price]) -> None:
    plain = replace(given_facts, cache_hit=False, failed=False)
    result = compute(plain, book)
    price, usage = book[plain.model], plain.usage

    def step(input_tokens: int) -> int:
        return decimal_cost(price, Usage(input_tokens, usage.output, reasoning=usage.reasoning))

    reached = result.baseline - result.savings[Layer.CACHE] - result.savings[Layer.ROUTING]
    assert result.savings[Layer.CACHE] == 0
    assert reached == step(plain.original_input)
    assert reached - result.savings[Layer.COMPRESSION] == step(usage.input)


@quick
@given(facts, books())
def test_a_hit_saves_its_whole_baseline_and_a_failure_saves_nothing(given_facts: Facts, book: dict[str, Price]) -> None:
    hit = compute(replace(given_facts, cache_hit=True, failed=False), book)
    assert hit.savings[Layer.CACHE] == hit.baseline
    assert hit.actual == hit.overhead
    failed = compute(replace(given_facts, failed=True), book)
    assert failed.baseline == 0
    assert set(failed.savings.values()) == {0}
    assert failed.actual == failed.overhead


@quick
@given(usages(), books(), st.sampled_from(["big", "small"]))
def test_no_usage_within_its_bounds_passes_the_worst_case(usage: Usage, book: dict[str, Price], model: str) -> None:
    price = book[model]
    # A cached token dearer than a plain one is no price that exists.
    steps = tuple(replace(step, cached_input=min(step.cached_input or 0, step.input)) for step in price.steps)
    price = replace(price, cached_input=min(price.cached_input or 0, price.input), steps=steps)
    assert actual_cost(price, usage) <= worst_case(price, usage.input, usage.output)
    assert worst_case(price, usage.input, usage.output) <= worst_case(price, usage.input + 1, usage.output + 1)


@quick
@given(prices("m"), usages(), st.booleans(), st.booleans(), st.booleans())
def test_a_cost_is_what_a_second_computation_in_decimal_finds(
    price: Price, usage: Usage, batch: bool, flex: bool, quantized: bool
) -> None:
    found = actual_cost(price, usage, batch=batch, flex=flex, quantized=quantized)
    assert found == decimal_cost(price, usage, batch=batch, flex=flex, quantized=quantized)


def test_an_attempt_that_used_nothing_costs_no_fee() -> None:
    book = {"m": STEPPED}
    assert overhead_cost(Overhead("m", Usage()), book) == 0
    assert overhead_cost(Overhead("m", Usage(1)), book) == 1_000 + 5_000


USD = 10**9
STEPPED = Price(
    "m",
    1 * USD,
    4 * USD,
    cached_input=USD // 10,
    batch_input=USD // 2,
    batch_output=2 * USD,
    flex_input=USD // 4,
    flex_output=3 * USD,
    reasoning_output=6 * USD,
    request_fee=5_000,
    steps=(PriceStep(1000, 2 * USD, 8 * USD), PriceStep(5000, 3 * USD, 9 * USD, cached_input=USD)),
)


@pytest.mark.parametrize(
    ("usage", "flags", "cost"),
    [
        (Usage(), {}, 5_000),  # The fee alone.
        (Usage(1000, 10), {}, 1_000_000 + 40_000 + 5_000),  # At the mark: still below it.
        (Usage(1001, 10), {}, 2_002_000 + 80_000 + 5_000),  # Above it the whole request is dearer.
        (Usage(1001, 10, cached=1001), {}, 100_100 + 80_000 + 5_000),  # A step's absent price is the one below.
        (Usage(5001, 10, cached=5001), {}, 5_001_000 + 90_000 + 5_000),
        (Usage(100, 10, reasoning=4), {}, 100_000 + 24_000 + 24_000 + 5_000),  # Reasoning is part of the output.
        (Usage(5001, 10, reasoning=10), {}, 15_003_000 + 60_000 + 5_000),  # Its price has no steps.
        (Usage(1000, 10), {"flex": True}, 250_000 + 30_000 + 5_000),  # A fee is never discounted.
        (Usage(1000, 10), {"batch": True}, 500_000 + 20_000 + 5_000),
        (Usage(1000, 10), {"batch": True, "flex": True}, 500_000 + 20_000 + 5_000),  # Batch stands before flex.
        (Usage(2000, 10, cached=1000), {"flex": True}, 500_000 + 25_000 + 60_000 + 5_000),
    ],
)
def test_steps_reasoning_fee_and_flex(usage: Usage, flags: dict[str, bool], cost: int) -> None:
    assert actual_cost(STEPPED, usage, **flags) == cost
    facts = Facts("m", usage.input, "m", usage.input, usage, **flags)  # type: ignore[arg-type]  # Flags only.
    assert compute(facts, {"m": STEPPED}).actual == cost


def test_a_worst_case_holds_on_either_side_of_a_mark() -> None:
    cheaper = replace(STEPPED, steps=(PriceStep(1000, USD // 2, USD),))
    assert worst_case(cheaper, 1001, 10) >= actual_cost(cheaper, Usage(1000, 10, reasoning=10))


def test_reasoning_beyond_the_output_is_refused() -> None:
    with pytest.raises(TenthError, match=AMOUNT_OUT_OF_RANGE):
        actual_cost(STEPPED, Usage(1, 1, reasoning=2))


@pytest.mark.parametrize(("per_million", "count", "cost"), [(500_000, 1, 0), (500_000, 3, 2), (1_500_000, 1, 2)])
def test_ties_go_to_the_even_nano_dollar(per_million: int, count: int, cost: int) -> None:
    assert actual_cost(Price("m", per_million, 0), Usage(input=count)) == cost


@pytest.mark.parametrize("price", [None, Price("small", 0, 0, confirmed=False), Price("small", 5, 5, confirmed=False)])
@pytest.mark.parametrize("field", ["model", "baseline_model", "overheads"])
def test_a_model_without_a_confirmed_price_is_never_free(price: Price | None, field: str) -> None:
    book = {"big": Price("big", 10, 10)} | ({"small": price} if price else {})
    changes: dict[str, dict[str, Any]] = {
        "model": {"model": "small"},
        "baseline_model": {"baseline_model": "small"},
        "overheads": {"overheads": (Overhead("small"),)},
    }
    with pytest.raises(TenthError) as caught:
        compute(replace(Facts("big", 1, "big", 1, Usage(1, 1)), **changes[field]), book)
    assert (caught.value.code, caught.value.reason) == (Code.FAILED_PRECONDITION, PRICE_UNKNOWN)
    assert caught.value.metadata == {"model": "small"}


def test_a_confirmed_zero_is_free() -> None:
    free = {"own": Price("own", 0, 0)}
    assert compute(Facts("own", 5, "own", 5, Usage(5, 5)), free).actual == 0


@pytest.mark.parametrize("book", [{}, {CPU: Price(CPU, 0, 0)}, {CPU: Price(CPU, 0, 0, cpu_hour=1, confirmed=False)}])
def test_compute_without_a_price_is_never_free(book: dict[str, Price]) -> None:
    with pytest.raises(TenthError, match=PRICE_UNKNOWN):
        overhead_cost(Overhead(compute_micros=1), book)


@pytest.mark.parametrize(
    "changes",
    [
        {"baseline_input": -1},
        {"original_input": -1},
        {"usage": Usage(input=-1)},
        {"usage": Usage(output=-1)},
        {"usage": Usage(input=5, cached=-1)},
        {"usage": Usage(input=5, write_5m=-1)},
        {"usage": Usage(input=5, cached=3, write_1h=3)},
        {"baseline_input": MAX_NANO_USD},
        {"usage": Usage(output=MAX_NANO_USD)},
        {"overheads": (Overhead(compute_micros=-1),)},
        {"overheads": (Overhead("m", Usage(input=-1)),)},
        {"overheads": (Overhead("m", Usage(output=6 * 10**15)),) * 2},
    ],
)
def test_negative_counts_and_amounts_past_64_bits_are_refused(changes: dict[str, object]) -> None:
    book = {"m": Price("m", 10**9, 10**9), CPU: Price(CPU, 0, 0, cpu_hour=1)}
    valid = Facts("m", 5, "m", 5, Usage(5, 5))
    with pytest.raises(TenthError) as caught:
        compute(replace(valid, **changes), book)  # type: ignore[arg-type]  # Values of any field.
    assert (caught.value.code, caught.value.reason) == (Code.OUT_OF_RANGE, AMOUNT_OUT_OF_RANGE)


@quick
@given(facts, books())
def test_the_wire_carries_every_fact_that_money_depends_on(given_facts: Facts, book: dict[str, Price]) -> None:
    message = receipt_pb2.ReceiptFacts(
        baseline_model=given_facts.baseline_model,
        baseline_input_token_count=given_facts.baseline_input,
        model=given_facts.model,
        original_input_token_count=given_facts.original_input,
        cache_hit=given_facts.cache_hit,
        batch=given_facts.batch,
        flex=given_facts.flex,
        quantized=given_facts.quantized,
        failed=given_facts.failed,
    )
    for target, usage in ((message.usage, given_facts.usage), *_overheads(message, given_facts)):
        target.input_token_count, target.output_token_count = usage.input, usage.output
        target.cached_input_token_count, target.reasoning_output_token_count = usage.cached, usage.reasoning
        target.cache_write_5m_token_count, target.cache_write_1h_token_count = usage.write_5m, usage.write_1h
    assert facts_from_proto(message) == given_facts
    receipt = build_receipt(message, book, receipt_pb2.RECEIPT_STATE_PENDING)
    result = compute(given_facts, book)
    assert receipt.actual_nano_usd == result.actual
    assert [each.saving_nano_usd for each in receipt.savings] == list(result.savings.values())
    assert [each.cost_nano_usd for each in receipt.facts.overheads] == list(result.overhead_items)
    for price in book.values():
        assert price_from_proto(price_to_proto(price)) == price


def _overheads(message: receipt_pb2.ReceiptFacts, given_facts: Facts) -> list[tuple[usage_pb2.Usage, Usage]]:
    pairs: list[tuple[usage_pb2.Usage, Usage]] = []
    for each in given_facts.overheads:
        item = message.overheads.add(model=each.model, compute_micros=each.compute_micros, quantized=each.quantized)
        pairs.append((item.usage, each.usage))
    return pairs
