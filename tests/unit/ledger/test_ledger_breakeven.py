"""Break-even: figures by hand, what is left out, what is refused, and that the two sides really meet there."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import TenthError
from mesh.receipt import Price, PriceStep
from services.ledger.breakeven import BreakEven, Machine, Request, plan

USD = 10**9
MACHINE = Machine("gpu:a100", 1, output_rate=2000, input_rate=20_000)
REQUEST = Request(1000, 500)
"""0.05 s of reading and 0.25 s of writing: 288,000 a day."""


def book(*prices: Price) -> dict[str, Price]:
    return {price.model: price for price in prices}


API = Price("api", 5 * USD, 10 * USD)
"""10 USD for 1,000 such requests."""


def test_a_plan_by_hand() -> None:
    made = plan(MACHINE, REQUEST, book(API), 4 * USD)
    assert made.day_cost == 96 * USD
    assert made.capacity_per_day == pytest.approx(288_000)
    assert made.request_cost == 333_333
    (found,) = made.models
    assert found.request_cost == USD // 100
    assert found.requests_per_day == pytest.approx(9_600)
    assert found.utilization == pytest.approx(9_600 / 288_000)
    assert not found.beyond_capacity


def test_paid_hours_scale_cost_and_capacity_and_leave_the_price_of_a_request() -> None:
    whole, half = (plan(replace(MACHINE, paid_share=share), REQUEST, book(API), 4 * USD) for share in (1.0, 0.5))
    assert plan(MACHINE, REQUEST, book(API), 4 * USD) == whole
    assert (half.day_cost, half.capacity_per_day) == (whole.day_cost // 2, whole.capacity_per_day / 2)
    assert half.request_cost == whole.request_cost
    assert half.models[0].requests_per_day == whole.models[0].requests_per_day / 2
    assert half.models[0].utilization == whole.models[0].utilization
    four = plan(replace(MACHINE, unit_count=4), REQUEST, book(API), 4 * USD)
    assert four.day_cost == 4 * whole.day_cost


def test_what_is_compared_and_in_which_order() -> None:
    made = plan(
        MACHINE,
        REQUEST,
        book(
            Price("dear", 50 * USD, 100 * USD),
            API,
            Price("cheap", USD // 1000, USD // 1000),
            Price("cheaper", USD // 2000, USD // 2000),
            Price("embedding", USD, 0),
            Price("free", 0, 0),
            Price("doubt", USD, USD, confirmed=False),
            Price("cpu", 0, 0, cpu_hour=USD),
            Price("gpu:a100", 0, 0, gpu_hour=4 * USD),
            Price("own-quantized", USD, USD, quantized_output=USD),
            Price("own", USD, USD),
        ),
        4 * USD,
        own={"own"},
    )
    assert [each.model for each in made.models] == ["dear", "api", "cheap", "cheaper"]
    never = [each for each in made.models if not each.requests_per_day]
    assert never == [
        BreakEven("cheap", 1_500, 0.0, 0.0, beyond_capacity=True),
        BreakEven("cheaper", 750, 0.0, 0.0, beyond_capacity=True),
    ]
    # Never is never: at full use a request still costs more here than there.
    assert all(each.request_cost < made.request_cost for each in never)


def test_fees_and_steps_of_long_requests_count() -> None:
    fee = replace(API, model="fee", request_fee=USD)
    long = replace(API, model="long", steps=(PriceStep(999, 50 * USD, 100 * USD),))
    found = plan(MACHINE, REQUEST, book(API, fee, long), 4 * USD).models
    costs = {each.model: each.request_cost for each in found}
    assert costs == {"api": USD // 100, "fee": USD // 100 + USD, "long": USD // 10}


@pytest.mark.parametrize(
    ("field", "machine", "request_"),
    [
        *(
            (f"{side}_tokens_per_second", {f"{side}_rate": rate}, {})
            for side in ("output", "input")
            for rate in (0.0, -1.0, math.nan, math.inf, -math.inf, 1e10)
        ),
        *(("paid_share", {"paid_share": share}, {}) for share in (-0.1, 1.1, math.nan, math.inf)),
        *(("unit_count", {"unit_count": count}, {}) for count in (0, -1, 10_001)),
        *(("hardware", {"hardware": name}, {}) for name in ("gpt-4o", "gpu:", "gpu:a/b")),
        *((f"{side}_token_count", {}, {side: count}) for side in ("input", "output") for count in (0, -1, 10**9 + 1)),
    ],
)
def test_figures_that_cannot_be_are_refused_by_field(
    field: str, machine: dict[str, Any], request_: dict[str, Any]
) -> None:
    with pytest.raises(TenthError) as caught:
        plan(replace(MACHINE, **machine), replace(REQUEST, **request_), book(API), 4 * USD)
    assert (caught.value.reason, caught.value.field) == ("INVALID_FIELD", f"request.{field}")


def test_amounts_past_64_bits_are_an_error() -> None:
    for machine, hour in ((replace(MACHINE, unit_count=10_000), 2**62), (replace(MACHINE, input_rate=1e-300), USD)):
        with pytest.raises(TenthError, match="AMOUNT_OUT_OF_RANGE"):
            plan(machine, REQUEST, book(API), hour)


@given(
    output_rate=st.floats(0.001, 1e6),
    input_rate=st.floats(0.001, 1e6),
    tokens_in=st.integers(1, 10**6),
    tokens_out=st.integers(1, 10**6),
    price=st.integers(1, 100 * USD),
    hour=st.integers(1, 100 * USD),
    share=st.floats(0, 1),
)
def test_the_two_sides_meet_at_the_break_even(
    output_rate: float, input_rate: float, tokens_in: int, tokens_out: int, price: int, hour: int, share: float
) -> None:
    machine = Machine("cpu", 1, output_rate, input_rate, share)
    made = plan(machine, Request(tokens_in, tokens_out), book(Price("api", price, price)), hour)
    day = Fraction(hour * 24) * (Fraction(share) or 1)
    (found,) = made.models
    if found.requests_per_day:
        assert Fraction(found.requests_per_day) * found.request_cost == pytest.approx(day, rel=1e-12)
        assert 0 < found.utilization <= 1 + 1e-12
        assert found.requests_per_day <= made.capacity_per_day * (1 + 1e-12)
    else:
        assert found.beyond_capacity == (found.request_cost > 0)
        assert Fraction(made.capacity_per_day) * found.request_cost <= day * (1 + Fraction(1, 10**12))
