"""LiteLLM's map: each shape of key, what is left out and why, and what waits for a person."""

from __future__ import annotations

import gzip
import json
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import TenthError
from mesh.receipt import Price, PriceStep
from services.ledger.importing import FileRow
from services.ledger.litellm_map import parse_map
from services.ledger.price_files import LARGEST_BYTES, Format, read_file

FROM = 1_790_000_000 * 10**9
CHAT = {"mode": "chat", "input_cost_per_token": 1e-6, "output_cost_per_token": 4e-6}
IN, OUT = 10**9, 4 * 10**9


def row(entry: object, model: str = "m") -> FileRow:
    """The row of one entry."""
    [found] = parse_map(json.dumps({model: entry}), "test", FROM)
    return found


def price(**changes: Any) -> Price:
    """The price of CHAT with something more in it."""
    found = row({**CHAT, **changes})
    assert found.price is not None, found.reason
    return found.price.price


@pytest.mark.parametrize(
    ("key", "value", "field", "amount"),
    [
        ("input_cost_per_token", 2.5e-06, "input", 2_500_000_000),
        ("output_cost_per_token", 0.000015, "output", 15_000_000_000),
        ("input_cost_per_token", 1e-15, "input", 1),
        ("cache_read_input_token_cost", 1.25e-07, "cached_input", 125_000_000),
        ("cache_creation_input_token_cost", 1.25e-06, "cache_write_5m", 1_250_000_000),
        ("cache_creation_input_token_cost_above_1hr", 2e-06, "cache_write_1h", 2_000_000_000),
        ("input_cost_per_token_batches", 5e-7, "batch_input", 500_000_000),
        ("output_cost_per_token_batches", 2e-6, "batch_output", 2_000_000_000),
        ("input_cost_per_token_flex", 5e-7, "flex_input", 500_000_000),
        ("output_cost_per_token_flex", 2e-6, "flex_output", 2_000_000_000),
        ("output_cost_per_reasoning_token", 6e-6, "reasoning_output", 6_000_000_000),
        ("input_cost_per_request", 0.005, "request_fee", 5_000_000),
    ],
)
def test_each_key_is_an_amount_of_the_book(key: str, value: float, field: str, amount: int) -> None:
    found = price(**{key: value})
    assert (getattr(found, field), found.confirmed) == (amount, True)


@pytest.mark.parametrize(
    "key",
    [
        "input_cost_per_token_priority",
        "output_cost_per_token_above_200k_tokens_priority",
        "input_cost_per_audio_token",
        "cache_creation_input_token_cost_above_12hr",
        "search_context_cost_per_query",
    ],
)
def test_what_a_receipt_has_no_count_of_is_passed_over(key: str) -> None:
    assert price(**{key: 9e-6}) == price()


def test_prices_above_a_mark_are_steps_and_a_later_one_keeps_what_it_does_not_change() -> None:
    found = price(
        cache_read_input_token_cost=1e-7,
        input_cost_per_token_above_272k_tokens=3e-6,
        input_cost_per_token_above_128k_tokens=2e-6,
        cache_read_input_token_cost_above_128k_tokens=2e-7,
        cache_creation_input_token_cost_above_1hr_above_272k_tokens=5e-6,
        output_cost_per_token_above_272k_tokens=8e-6,
    )
    assert found.steps == (
        PriceStep(128_000, 2 * IN, OUT, cached_input=2 * 10**8),
        PriceStep(272_000, 3 * IN, 2 * OUT, cached_input=2 * 10**8, cache_write_1h=5 * IN),
    )


def tiered(*tiers: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A chat model that is priced by tiers alone."""
    return {"mode": "chat", "tiered_pricing": list(tiers), **changes}


def tier(start: float, end: float, times: int, **changes: Any) -> dict[str, Any]:
    """A tier at some times the price of CHAT."""
    amounts = {"input_cost_per_token": times * 1e-6, "output_cost_per_token": times * 4e-6}
    return {"range": [start, end], **amounts, **changes}


def test_tiers_are_steps() -> None:
    cached = {"cache_read_input_token_cost": 1e-7}
    found = row(tiered(tier(0, 32000.0, 1, **cached), tier(32000.0, 128000.0, 2), tier(128000, 1e6, 3)))
    assert found.price is not None
    # The upper tiers name no cached price: their cached tokens cost what plain ones do, not what the lowest tier says.
    assert found.price.price == Price(
        "m",
        IN,
        OUT,
        cached_input=10**8,
        steps=(
            PriceStep(32_000, 2 * IN, 2 * OUT, cached_input=2 * IN),
            PriceStep(128_000, 3 * IN, 3 * OUT, cached_input=3 * IN),
        ),
    )


@pytest.mark.parametrize(
    ("reasoning", "expected"), [((4e-6, 8e-6), None), ((6e-6, 6e-6), 6 * IN), ((None, None), None)]
)
def test_reasoning_that_is_the_same_in_all_tiers_is_kept(reasoning: Any, expected: int | None) -> None:
    low, high = ({} if each is None else {"output_cost_per_reasoning_token": each} for each in reasoning)
    found = row(tiered(tier(0, 10, 1, **low), tier(10, 20, 2, **high)))
    assert found.price is not None
    assert found.price.price.reasoning_output == expected


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (tiered(tier(0, 10, 1), tier(11, 20, 2)), r"tiered_pricing\[1\].range: does not go on"),
        (tiered(tier(5, 10, 1)), r"tiered_pricing\[0\].range: does not go on"),
        (tiered(tier(0, 0, 1)), r"tiered_pricing\[0\].range: does not go on"),
        (tiered(tier(0, 10.5, 1)), r"tiered_pricing\[0\].range: not two whole"),
        (tiered({**tier(0, 10, 1), "range": 7}), r"tiered_pricing\[0\].range: not two whole"),
        (tiered(tier(0, 10, 1, input_cost_per_query=1)), r"\[0\].input_cost_per_query: not a price that a step"),
        (tiered({"range": [0, 10], "input_cost_per_token": 1e-6}), r"tiered_pricing\[0\]: no output price"),
        (tiered(tier(0, 10, 1, output_cost_per_token="x")), r"\[0\].output_cost_per_token: 'x' is not a number"),
        (tiered(), "not a list of tiers"),
        (tiered("x"), "not a list of tiers"),  # type: ignore[arg-type]  # A wrong file.
        (tiered(tier(0, 10, 2), **CHAT), "its first tier is not the price of the row"),
        (tiered(tier(0, 10, 1), input_cost_per_token_above_1k_tokens=1), "stands beside prices above a mark"),
        (
            tiered(tier(0, 10, 1), tier(10, 20, 2, output_cost_per_reasoning_token=1)),
            "output_cost_per_reasoning_token differs",
        ),
        ({**CHAT, "mode": "image_generation"}, "mode 'image_generation' is not priced by text tokens"),
        ({**CHAT, "mode": ["chat"]}, "is not priced by text tokens"),
        ({"mode": "chat", "cost_per_second": 0.1}, "no input_cost_per_token: priced by cost_per_second"),
        ({"mode": "chat", "input_cost_per_token": 1e-6}, "^no output_cost_per_token$"),
        ({"mode": "chat", "output_cost_per_token": 1e-6}, "^no input_cost_per_token$"),
        ({**CHAT, "input_cost_per_token": None}, "^no input_cost_per_token$"),
        ({"mode": "rerank", "input_cost_per_query": 0.002, "input_cost_per_token": 0.0}, "priced by input_cost_per_q"),
        ({**CHAT, "output_cost_per_token": -1e-6}, "output_cost_per_token: -0.000001 is negative"),
        ({**CHAT, "output_cost_per_token": float("nan")}, "output_cost_per_token: NaN is not finite"),
        ({**CHAT, "input_cost_per_token_flex": float("inf")}, "input_cost_per_token_flex: Infinity is not finite"),
        ({**CHAT, "input_cost_per_token": 1e10}, "input_cost_per_token: .* is too large"),
        ({**CHAT, "input_cost_per_token": 9_300.0}, "input_cost_per_token: .* is too large"),
        ({**CHAT, "input_cost_per_request": 1e12}, "input_cost_per_request: .* is too large"),
        ({**CHAT, "cache_read_input_token_cost": "1e-7"}, "cache_read_input_token_cost: '1e-7' is not a number"),
        ({**CHAT, "input_cost_per_token_batches": True}, "input_cost_per_token_batches: 'True' is not a number"),
        ({**CHAT, "output_cost_per_token": {"a": 1}}, "output_cost_per_token: .* is not a number"),
        ({**CHAT, "input_cost_per_token_above_0k_tokens": 1e-6}, r"steps\[0\].above_input_tokens"),
        ("text", "no model"),
        (None, "no model"),
    ],
)
def test_a_row_that_the_book_cannot_hold_is_left_out_with_its_reason(entry: object, reason: str) -> None:
    found = row(entry)
    assert found.price is None
    with pytest.raises(ValueError, match=reason):
        raise ValueError(found.reason)


@pytest.mark.parametrize("number", ["1e-99999999999999999999", "1e999999999", "9" * 5000, "0." + "1" * 80])
def test_numbers_made_to_hurt_are_left_out_at_once(number: str) -> None:
    text = f'{{"m": {{"mode": "chat", "input_cost_per_token": {number}, "output_cost_per_token": 1e-6}}}}'
    [found] = parse_map(text, "test", FROM)
    assert found.price is None
    assert found.reason.startswith("input_cost_per_token: ")


def test_a_tiny_number_is_no_zero_by_rounding() -> None:
    found = row({**CHAT, "input_cost_per_token": 1e-300})
    assert found.price is not None
    assert not found.price.price.confirmed


@pytest.mark.parametrize("name", ["", "x" * 257, "a\nb", "\ud800"])
def test_a_name_that_cannot_be_sent_is_left_out(name: str) -> None:
    found = row(CHAT, name)
    assert found.price is None
    assert "name" in found.reason
    found.model.encode()


def test_the_maps_own_description_is_no_model() -> None:
    assert row(CHAT, "sample_spec").price is None


def test_what_is_given_twice_is_left_out() -> None:
    twice = parse_map('{"m": {}, "m": {"mode": "chat"}, "n": {"mode": "chat", "mode": "chat"}}', "test", FROM)
    assert [(each.model, each.reason) for each in twice] == [("m", "the file has it twice"), ("n", "mode: given twice")]


@pytest.mark.parametrize(
    ("entry", "confirmed", "output"),
    [
        ({**CHAT, "input_cost_per_token": 0, "output_cost_per_token": 0.0}, False, 0),
        ({**CHAT, "input_cost_per_token": 0.0}, False, OUT),
        ({**CHAT, "output_cost_per_token": 0}, False, 0),
        ({**CHAT, "cache_read_input_token_cost": 0.0}, False, OUT),
        ({**CHAT, "input_cost_per_token_above_128k_tokens": 0}, False, OUT),
        ({**CHAT, "input_cost_per_request": 0.0}, True, OUT),
        ({**CHAT, "output_cost_per_token": 1.4e-15}, False, 1),
        ({"mode": "embedding", "input_cost_per_token": 1e-7, "output_cost_per_token": 0.0}, True, 0),
        ({"mode": "embedding", "input_cost_per_token": 1e-7}, True, 0),
        ({"mode": "embedding", "input_cost_per_token": 1e-7, "output_cost_per_token": 4e-6}, True, OUT),
        ({"mode": "embedding", "input_cost_per_token": 0.0, "output_cost_per_token": 0.0}, False, 0),
        ({"input_cost_per_token": 1e-7, "output_cost_per_token": 4e-6}, True, OUT),
    ],
)
def test_a_zero_or_a_rounded_figure_waits_for_a_person_but_an_embedding_makes_no_tokens(
    entry: dict[str, Any], confirmed: bool, output: int
) -> None:
    found = row(entry)
    assert found.price is not None, found.reason
    assert (found.price.price.confirmed, found.price.price.output) == (confirmed, output)
    assert bool(found.reason) is not confirmed


def test_a_figure_finer_than_the_book_is_rounded_once_half_to_even() -> None:
    text = '{"m": {"input_cost_per_token": 2.5e-15, "output_cost_per_token": 3.5e-15}}'
    [found] = parse_map(text, "test", FROM)
    assert found.price is not None
    assert (found.price.price.input, found.price.price.output) == (2, 4)
    assert "input_cost_per_token 2.5E-15 is finer than the book holds" in found.reason


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({"cache_read_input_token_cost_batches": 5e-8}, True),
        ({"cache_read_input_token_cost_batches": 6e-8}, False),
        ({"input_cost_per_token_above_200k_tokens_batches": 1e-6}, True),
        ({"input_cost_per_token_above_200k_tokens_batches": 2e-6}, False),
        ({"output_cost_per_token_above_200k_tokens_batches": 2e-6}, True),
        ({"cache_read_input_token_cost_flex": 5e-8}, False),
    ],
)
def test_a_batch_price_that_is_no_share_of_the_plain_one_is_named(changes: dict[str, float], kept: bool) -> None:
    batch = {"input_cost_per_token_batches": 5e-7, "output_cost_per_token_batches": 2e-6}
    step = {"input_cost_per_token_above_200k_tokens": 2e-6, "cache_read_input_token_cost": 1e-7}
    found = row({**CHAT, **batch, **step, **changes})
    assert found.price is not None
    assert found.price.price.confirmed
    [key] = changes
    assert found.reason == ("" if kept else found.reason)
    assert (f"{key} is not kept" in found.reason) is not kept


def test_hours_of_the_day_are_not_told_apart() -> None:
    assert "off_peak_pricing is not kept" in row({**CHAT, "off_peak_pricing": {"windows": []}}).reason


@settings(deadline=None, max_examples=100)
@given(st.floats(min_value=1e-12, max_value=1e-2))
def test_a_number_is_read_as_its_decimal_text(value: float) -> None:
    found = row({**CHAT, "input_cost_per_token": value})
    assert found.price is not None
    exact = Decimal(repr(value)) * 10**15
    assert abs(found.price.price.input - exact) <= Decimal("0.5")
    assert found.price.price.confirmed is (found.price.price.input == exact)


def content(text: str | bytes, *, packed: bool = False) -> bytes:
    """A file."""
    raw = text if isinstance(text, bytes) else text.encode()
    return gzip.compress(raw) if packed else raw


@pytest.mark.parametrize("packed", [False, True])
def test_files_may_be_packed(packed: bool) -> None:
    [found] = read_file(content(json.dumps({"m": CHAT}), packed=packed), Format.LITELLM, "test", FROM)
    assert found.price is not None
    assert (found.price.source, found.price.valid_from_ns) == ("test", FROM)


@pytest.mark.parametrize(
    ("raw", "form", "message"),
    [
        (b"{", Format.LITELLM, "not JSON"),
        (b"[]", Format.LITELLM, "not a JSON object"),
        (b"7", Format.LITELLM, "not a JSON object"),
        (b"\xff\xfe", Format.LITELLM, "not UTF-8"),
        (b"[" * 200_000, Format.LITELLM, "not JSON"),
        (b"\x1f\x8bnot gzip", Format.LITELLM, "damaged gzip"),
        (gzip.compress(b"{}")[:-9], Format.LITELLM, "damaged gzip"),
        (gzip.compress(b" " * (LARGEST_BYTES + 1)), Format.LITELLM, "more than 33554432 bytes unpacked"),
        (b" " * (LARGEST_BYTES + 1), Format.TENTH, "more than 33554432 bytes unpacked"),
        (b"prices: [", Format.TENTH, "not YAML"),
        (b"prices: {a: b}", Format.TENTH, "prices: must be a list"),
        (b"prices:\n- {model: x, colour: red}", Format.TENTH, r"the file:2: prices\[0\].colour: unknown key"),
        (b"[" * 5_000, Format.TENTH, "nested too deep"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(raw: bytes, form: Format, message: str) -> None:
    with pytest.raises(TenthError, match=message) as caught:
        read_file(raw, form, "test", FROM)
    assert (caught.value.reason, caught.value.field) == ("PRICE_FILE_INVALID", "request.content")


def test_our_own_rows_carry_their_dates_and_sources() -> None:
    text = 'prices: [{model: m, valid_from: 2025-01-01, input: "1", output: "2", source: theirs}]'
    for source, expected in (("", "theirs"), ("mine", "mine")):
        [found] = read_file(content(text), Format.TENTH, source, None)
        assert found.price is not None
        assert found.price.source == expected
