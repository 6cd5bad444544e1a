"""The draw of the control share: fair, the same on every replica, and none where nothing is measured."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.receipt import Facts, Layer, Price, Usage, compute
from services.orchestrator.policy import control_side


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5])
def test_the_share_is_kept(share: float) -> None:
    drawn = [control_side("acme", f"request-{number}", share, layers_on=True) for number in range(20_000)]
    # Five standard errors of a binomial count; the ids are fixed, so this either holds or does not.
    assert abs(sum(map(bool, drawn)) - 20_000 * share) < 5 * math.sqrt(20_000 * share * (1 - share))
    assert None not in drawn


@given(st.text(), st.text(), st.floats(0, 1), st.floats(0, 1))
def test_a_draw_is_repeatable_and_grows_with_the_share(tenant: str, request: str, one: float, other: float) -> None:
    low, high = sorted((one, other))
    before = control_side(tenant, request, low, layers_on=True)
    assert before == control_side(tenant, request, low, layers_on=True)
    if before:
        assert control_side(tenant, request, high, layers_on=True)


@pytest.mark.parametrize("share", [0.0, -1.0, math.nan])
def test_nothing_is_measured_without_a_share(share: float) -> None:
    assert control_side("acme", "r", share, layers_on=True) is None


def test_a_request_that_leaves_layers_off_takes_no_part_and_a_share_of_one_takes_every_other() -> None:
    assert control_side("acme", "r", 1.0, layers_on=False) is None
    assert all(control_side("acme", f"{number}", 1.0, layers_on=True) for number in range(1000))


@given(*(st.integers(0, 10**6) for _ in range(5)))
def test_a_control_receipt_differs_from_its_baseline_by_prompt_caching_alone(
    plain: int, cached: int, write_5m: int, write_1h: int, output: int
) -> None:
    price = Price("b", 5_000_000_123, 25_000_000_457, 500_000_077, 6_250_000_001, 10_000_000_003)
    usage = Usage(plain + cached + write_5m + write_1h, output, cached, write_5m, write_1h)
    amounts = compute(Facts("b", usage.input, model="b", original_input=usage.input, usage=usage), {"b": price})
    assert amounts.actual == amounts.baseline - amounts.savings[Layer.PROMPT_CACHE]
    assert all(not saving for layer, saving in amounts.savings.items() if layer is not Layer.PROMPT_CACHE)
