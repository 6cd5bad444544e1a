"""Own hardware: rows that are taken, and busy and idle cost that add up over any window."""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import Code, TenthError
from mesh.money import MAX_NANO_USD
from mesh.receipt import Price
from services.ledger.hardware import NodeCost, Utilization, admit, check, hour_prices, idle_cost
from services.ledger.hardware_rpc import idle_response
from services.ledger.prices import DatedPrice
from services.ledger.seeds import parse_prices, parse_self_hosted

SECOND = 10**9
HOUR = 3600 * SECOND
NOW = 1_780_000_000 * SECOND
ROW = Utilization("a", "gpu:a100", 2, NOW - HOUR, NOW, 0.25, "m", 7)


def gpu(hour: int | None, start_ns: int, end_ns: int | None = None, *, confirmed: bool = True) -> DatedPrice:
    return DatedPrice(Price("gpu:a100", 0, 0, gpu_hour=hour, confirmed=confirmed), start_ns, "test", end_ns)


def at_price(_hardware: str, _at_ns: int) -> int:
    return 4 * 10**9


def error_of(row: Utilization) -> tuple[str, str]:
    with pytest.raises(TenthError) as caught:
        check(row, NOW, "row")
    return caught.value.reason, caught.value.field


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("hardware", {"hardware": "tpu"}),
        ("hardware", {"hardware": "gpu:"}),
        ("hardware", {"hardware": "gpu:a 100"}),
        ("hardware", {"hardware": "gpu:a100\n"}),
        ("hardware", {"hardware": "gpu:" + "x" * 65}),
        ("unit_count", {"unit_count": 0}),
        ("unit_count", {"unit_count": 10_001}),
        ("start_time", {"start_ns": 0}),
        ("end_time", {"end_ns": ROW.start_ns}),
        ("end_time", {"start_ns": NOW - 31 * 24 * HOUR - 1}),
        ("end_time", {"start_ns": NOW + 24 * HOUR, "end_ns": NOW + 24 * HOUR + 1}),
        ("busy_share", {"busy_share": math.nan}),
        ("busy_share", {"busy_share": math.inf}),
        ("busy_share", {"busy_share": -0.1}),
        ("busy_share", {"busy_share": math.nextafter(1, 2)}),
        ("output_token_count", {"output_tokens": -1}),
    ],
)
def test_a_row_that_cannot_be_is_refused_by_field(field: str, changes: dict[str, Any]) -> None:
    assert error_of(replace(ROW, **changes)) == ("INVALID_FIELD", f"row.{field}")


def test_the_ends_of_every_range_are_taken() -> None:
    longest = replace(ROW, start_ns=NOW - 31 * 24 * HOUR, busy_share=1.0, unit_count=10_000, hardware="cpu")
    for row in (ROW, longest, replace(ROW, busy_share=0.0, unit_count=1, hardware="gpu:" + "x" * 64)):
        check(row, NOW, "row")
    assert error_of(replace(ROW, hardware="")) == ("REQUIRED_FIELD", "row.hardware")


def test_a_repeated_row_changes_nothing_and_an_overlap_is_refused() -> None:
    after = replace(ROW, start_ns=NOW, end_ns=NOW + 1)
    elsewhere = replace(ROW, node="b")
    assert admit([ROW], [ROW, after, elsewhere, after], "rows") == [after, elsewhere]
    for other in (replace(ROW, busy_share=0.5), replace(ROW, end_ns=ROW.start_ns + 1), replace(ROW, start_ns=NOW - 1)):
        for known, new in (([ROW], [after, other]), ([], [ROW, other])):
            with pytest.raises(TenthError) as caught:
                admit(known, new, "rows")
            assert (caught.value.reason, caught.value.field) == ("UTILIZATION_OVERLAP", "rows[1].start_time")


def test_a_windows_cost_by_hand() -> None:
    # 2 units at 4 USD for half an hour are 4 USD, a quarter of it busy.
    (cost,) = idle_cost([ROW], NOW - HOUR // 2, NOW + HOUR, at_price)
    assert (cost.node, cost.hardware, cost.covered_ns) == ("a", "gpu:a100", HOUR // 2)
    assert (cost.busy, cost.idle, cost.busy_share) == (10**9, 3 * 10**9, 0.25)
    assert idle_cost([ROW], NOW, NOW + HOUR, at_price) == []
    assert idle_cost([ROW], NOW - 2 * HOUR, NOW - HOUR, at_price) == []


def test_a_row_costs_what_holds_at_its_own_start() -> None:
    price = hour_prices([gpu(10**9, NOW - 9 * HOUR, NOW), gpu(3 * 10**9, NOW)])
    rows = [replace(ROW, end_ns=NOW - HOUR // 2), replace(ROW, start_ns=NOW - HOUR // 2, end_ns=NOW + HOUR)]
    # Both rows began before the new price, though the window lies after it.
    (cost,) = idle_cost(rows, NOW, NOW + HOUR, price)
    assert cost.busy + cost.idle == 2 * 10**9


@pytest.mark.parametrize(
    "book",
    [
        [],
        [gpu(None, 1)],
        [gpu(0, 1)],
        [gpu(5, 1, confirmed=False)],
        [gpu(5, NOW)],
        [gpu(5, 1, NOW - 2 * HOUR)],
        [DatedPrice(Price("gpu:a100", 0, 0, cpu_hour=5), 1, "test")],
    ],
)
def test_an_hour_without_a_price_is_never_free(book: list[DatedPrice]) -> None:
    with pytest.raises(TenthError, match="PRICE_UNKNOWN"):
        idle_cost([ROW], 0, NOW, hour_prices(book))


def test_a_cost_past_64_bits_is_an_error() -> None:
    with pytest.raises(TenthError, match="AMOUNT_OUT_OF_RANGE"):
        idle_cost([ROW], 0, NOW, lambda *_: 2**63 - 1)


pieces = st.lists(st.tuples(st.integers(1, HOUR), st.floats(0, 1), st.integers(1, 9)), min_size=1, max_size=8)


@given(pieces, st.integers(0, 9 * HOUR), st.integers(1, 9 * HOUR), st.integers(1, 10**13))
def test_busy_and_idle_are_the_exact_whole(
    drawn: list[tuple[int, float, int]], start: int, length: int, hour: int
) -> None:
    rows, at = [], NOW
    for duration, share, units in drawn:
        rows.append(replace(ROW, unit_count=units, start_ns=at, end_ns=at + duration, busy_share=share))
        at += duration
    window = NOW + start, NOW + start + length
    whole = busy = Fraction(0)
    covered = 0
    for row in rows:
        inside = max(0, min(row.end_ns, window[1]) - max(row.start_ns, window[0]))
        covered += inside
        worth = Fraction(inside * row.unit_count * hour, HOUR)
        whole += worth
        busy += worth * Fraction(round(row.busy_share * 10**9), 10**9)
    costs = idle_cost(rows, *window, lambda *_: hour)
    assert len(costs) == (covered > 0)
    for cost in costs:
        assert cost.covered_ns == covered
        assert (cost.busy, cost.busy + cost.idle) == (round(busy), round(whole))
        assert cost.idle >= 0
        assert 0 <= cost.busy_share <= 1


def test_the_shipped_catalogue_prices_a_gpu_and_names_its_own_models() -> None:
    text = (Path(__file__).parents[3] / "deploy" / "catalog.yaml").read_text("utf-8")
    month_usd = hour_prices(parse_prices(text))("gpu:a100-80gb", NOW) * 730 / 10**9
    assert month_usd * 1400 == pytest.approx(4_000_000, rel=1e-6)  # As its source says: KRW a month.
    assert parse_self_hosted(text) == {"smollm2-135m"}
    assert parse_self_hosted("") == frozenset()


def test_a_sum_over_nodes_past_64_bits_is_a_typed_error() -> None:
    most = [NodeCost(name, "cpu", 10**9, 0.5, 0, MAX_NANO_USD // 2) for name in "ab"]
    assert idle_response(most).idle_nano_usd == MAX_NANO_USD - 1
    with pytest.raises(TenthError) as caught:
        idle_response([*most, NodeCost("c", "cpu", 10**9, 0.5, 0, 2)])
    assert (caught.value.code, caught.value.reason) == (Code.OUT_OF_RANGE, "AMOUNT_OUT_OF_RANGE")
    assert caught.value.field == "request.end_time"
