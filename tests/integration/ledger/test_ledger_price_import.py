"""Importing prices over a real socket: the diff, conflicts, confirmation, rates; old receipts stay as they were."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from tenth.ledger.v1 import ledger_pb2 as pb
from tenth.type.v1 import receipt_pb2, usage_pb2

from mesh.errors import Code, TenthError
from mesh.wire import build_receipt
from tests.integration.ledger.ledger_books import SECOND, START_NS
from tests.integration.ledger.test_ledger_rpc import OPERATOR, PLAIN, Ledger, at, ledger, price, reserve

__all__ = ["ledger"]  # The fixture.

MAP = {
    "small": {"mode": "chat", "input_cost_per_token": 3e-6, "output_cost_per_token": 5e-6},
    "zero": {"mode": "chat", "input_cost_per_token": 0, "output_cost_per_token": 0.0},
    "embed": {"mode": "embedding", "input_cost_per_token": 1e-7, "output_cost_per_token": 0.0},
    "long": {
        "mode": "chat",
        "input_cost_per_token": 1e-6,
        "output_cost_per_token": 4e-6,
        "output_cost_per_reasoning_token": 6e-6,
        "input_cost_per_token_flex": 5e-7,
        "output_cost_per_token_flex": 2e-6,
        "input_cost_per_token_above_1k_tokens": 2e-6,
        "input_cost_per_request": 0.000005,
    },
    "bad": {"mode": "chat", "input_cost_per_token": -1e-6, "output_cost_per_token": 4e-6},
    "picture": {"mode": "image_generation", "output_cost_per_image": 0.1},
}
NAMES = pb.ImportOutcome


def file(content: bytes | str = json.dumps(MAP), seconds: int = -3600, **changes: Any) -> pb.ImportPricesRequest:
    """An import of a map whose prices began an hour ago."""
    values: dict[str, Any] = {
        "content": content if isinstance(content, bytes) else content.encode(),
        "format": pb.PRICE_FORMAT_LITELLM,
        "source": "a map",
        "valid_from_time": at(seconds),
    }
    return pb.ImportPricesRequest(**{**values, **changes})


def outcomes(response: pb.ImportPricesResponse) -> dict[str, str]:
    """What became of each model."""
    return {row.model: NAMES.Name(row.outcome).removeprefix("IMPORT_OUTCOME_") for row in response.rows}


async def test_an_import_is_shown_first_refuses_conflicts_and_does_what_it_is_told(ledger: Ledger) -> None:
    writes, reads = ledger.stubs()
    shown = await writes.ImportPrices(file(dry_run=True))
    expected = {
        "small": "CONFLICT",
        "zero": "UNCONFIRMED",
        "embed": "NEW",
        "long": "NEW",
        "bad": "SKIPPED",
        "picture": "SKIPPED",
    }
    assert outcomes(shown) == expected
    assert shown.price_book_version == 1
    by_model = {row.model: row for row in shown.rows}
    assert by_model["bad"].reason == "input_cost_per_token: -0.000001 is negative"
    small = by_model["small"]
    assert (small.before.input_nano_usd_per_million_tokens, small.after.input_nano_usd_per_million_tokens) == (
        10**9,
        3 * 10**9,
    )
    with pytest.raises(TenthError, match="PRICE_CONFLICT") as caught:
        await writes.ImportPrices(file())
    assert (caught.value.code, caught.value.metadata["models"]) == (Code.FAILED_PRECONDITION, "small")
    assert not (await reads.ListPrices(pb.ListPricesRequest(model="long"))).prices
    taken = await writes.ImportPrices(file(gzip.compress(json.dumps(MAP).encode()), take=["*"]))
    assert outcomes(taken) == {**expected, "small": "TAKEN"}
    assert taken.price_book_version == 2
    again = await writes.ImportPrices(file())
    assert Counter(outcomes(again).values()) == {"SAME": 4, "SKIPPED": 2}
    assert again.price_book_version == 2
    listed = (await reads.ListPrices(pb.ListPricesRequest(model="long"))).prices[0]
    assert (listed.source, listed.confirmed, listed.valid_from_time) == ("a map", True, at(-3600))
    assert listed.flex_output_nano_usd_per_million_tokens == 2 * 10**9
    assert listed.reasoning_output_nano_usd_per_million_tokens == 6 * 10**9
    assert listed.request_fee_nano_usd == 5_000
    assert [step.above_input_token_count for step in listed.steps] == [1000]
    # Both prices of the model stand in the book, each at its time.
    amounts = [
        (await reads.ListPrices(pb.ListPricesRequest(model="small", at_time=at(when)))).prices[0] for when in (-7200, 0)
    ]
    assert [each.input_nano_usd_per_million_tokens for each in amounts] == [10**9, 3 * 10**9]
    assert amounts[0].valid_to_time == amounts[1].valid_from_time


async def test_a_price_of_ours_stays_and_only_some_models_come_in(ledger: Ledger) -> None:
    writes, reads = ledger.stubs()
    kept = await writes.ImportPrices(file(keep=["small"], models=["small", "embed"]))
    assert outcomes(kept) == {"small": "KEPT", "embed": "NEW"}
    now = (await reads.ListPrices(pb.ListPricesRequest(model="small"))).prices[0]
    assert now.input_nano_usd_per_million_tokens == 10**9
    # Before the book's own price began there is nothing to take: a price is never put before another.
    early = file(valid_from_time=Timestamp(seconds=1_600_000_000), take=["small"], models=["small"])
    with pytest.raises(TenthError, match="a new one must begin later"):
        await writes.ImportPrices(early)


async def test_our_own_yaml_comes_in_with_its_dates(ledger: Ledger) -> None:
    text = """
prices:
  - {model: own, valid_from: 2024-01-01, input: "15", output: "75", source: an article}
  - {model: own, valid_from: 2026-01-01, input: "5", output: "25", source: a map,
     steps: [{above_input_tokens: 200000, input: "10"}]}
  - {model: "gpu:h100", valid_from: 2026-01-01, gpu_hour: "2.5", source: a bill}
  - {model: small, valid_from: 2025-01-01, input: "1", output: "2", cached_input: "0.1", batch_input: "0.5",
     batch_output: "1", source: another}
"""
    request = file(text, format=pb.PRICE_FORMAT_TENTH, source="", valid_from_time=None)
    writes, reads = ledger.stubs()
    response = await writes.ImportPrices(request)
    assert [NAMES.Name(row.outcome)[15:] for row in response.rows] == ["NEW", "NEW", "NEW", "SAME"]
    for seconds, amount, source in ((1_720_000_000, 15, "an article"), (START_NS // SECOND, 5, "a map")):
        asked = pb.ListPricesRequest(model="own", at_time=Timestamp(seconds=seconds))
        found = (await reads.ListPrices(asked)).prices[0]
        assert (found.input_nano_usd_per_million_tokens, found.source) == (amount * 10**9, source)
    gpu = (await reads.ListPrices(pb.ListPricesRequest(model="gpu:h100"))).prices[0]
    assert gpu.gpu_hour_nano_usd == 2_500_000_000


async def test_a_zero_is_unknown_until_a_person_confirms_it(ledger: Ledger) -> None:
    writes, reads = ledger.stubs()
    version = (await writes.ImportPrices(file(take=["*"]))).price_book_version
    with pytest.raises(TenthError, match="PRICE_UNKNOWN"):
        await writes.ReserveFunds(reserve(model="zero", price_book_version=version))
    done = await writes.ConfirmPrice(pb.ConfirmPriceRequest(model="zero"))
    assert (done.price_book_version, done.price.confirmed, done.price.confirmed_by) == (version + 1, True, "operator")
    assert done.price.source == "a map"
    again = await writes.ConfirmPrice(pb.ConfirmPriceRequest(model="zero", valid_from_time=at(-3600)))
    assert again == done
    held = await writes.ReserveFunds(reserve(model="zero", price_book_version=version + 1))
    assert (held.decision, held.reserved_nano_usd) == (pb.RESERVE_DECISION_OK, 0)
    # The version before says what it said.
    with pytest.raises(TenthError, match="PRICE_UNKNOWN"):
        await writes.ReserveFunds(reserve(request_id="s", model="zero", price_book_version=version))
    shown = (await reads.ListPrices(pb.ListPricesRequest(model="zero"))).prices
    assert [(each.confirmed, each.confirmed_by) for each in shown] == [(True, "operator")]
    # A person's word outlives the same file.
    assert outcomes(await writes.ImportPrices(file(take=["*"])))["zero"] == "SAME"
    # A price that needed nobody stays as it is.
    plain = await writes.ConfirmPrice(pb.ConfirmPriceRequest(model="embed"))
    assert (plain.price_book_version, plain.price.confirmed_by) == (version + 1, "")


async def test_receipts_derive_again_after_the_price_has_changed(ledger: Ledger) -> None:
    writes, _ = ledger.stubs()
    await writes.ImportPrices(file(models=["long", "embed"]))
    usage = usage_pb2.Usage(
        input_token_count=1234, cached_input_token_count=77, output_token_count=501, reasoning_output_token_count=123
    )
    receipts = []
    changed_facts: list[dict[str, Any]] = [{}, {"flex": True}, {"model": "small"}]
    for index, changes in enumerate(changed_facts):
        values: dict[str, Any] = {"model": "long", "usage": usage, "price_book_version": 2, **changes}
        receipts.append(await ledger.books.receipt(f"r{index}", **values))
    settled = await writes.SettleReceipts(pb.SettleReceiptsRequest(receipts=receipts))
    assert [each.error_reason for each in settled.results] == ["", "", ""]
    # By hand: above 1,000 tokens all input is 2, the output 4 and its reasoning 6 USD a million; 5,000 for the request.
    assert receipts[0].actual_nano_usd == 1234 * 2_000 + (501 - 123) * 4_000 + 123 * 6_000 + 5_000
    ledger.books.clock.advance(3600)
    changed = {
        name: {**entry, "input_cost_per_token": 9e-6} for name, entry in MAP.items() if name in ("long", "small")
    }
    await writes.ImportPrices(file(json.dumps(changed), seconds=60, take=["*"]))
    await writes.AddPrices(price(model="big", valid_from_time=at(120)))
    await writes.ConfirmPrice(pb.ConfirmPriceRequest(model="embed"))
    for version in (2, 3, 4):
        # At the instant of its admission even a later version has the price that held then.
        for before in receipts:
            facts = receipt_pb2.ReceiptFacts()
            facts.CopyFrom(before.facts)
            facts.price_book_version = version
            ledger.books.prices._versions.clear()  # From the database, not from memory.
            book = await ledger.books.prices.at(version, facts.create_time.ToNanoseconds())
            again = build_receipt(facts, book, receipt_pb2.RECEIPT_STATE_PENDING)
            again.facts.price_book_version = 2
            assert again == before
    for before in receipts:
        stored = await ledger.books.stored(before.facts.request_id)
        assert stored.actual_nano_usd == before.actual_nano_usd
    repeated = await writes.SettleReceipts(pb.SettleReceiptsRequest(receipts=receipts))
    assert [each.error_reason for each in repeated.results] == ["", "", ""]
    new = await ledger.books.receipt("new", model="small", usage=usage, price_book_version=4)
    # 77 cached tokens have no price of their own in the new row.
    assert new.actual_nano_usd == 1234 * 9_000 + 501 * 5_000


async def test_a_price_that_begins_within_a_second_settles_on_either_side(ledger: Ledger) -> None:
    writes, _ = ledger.stubs()
    begins = Timestamp(seconds=START_NS // SECOND, nanos=500_000_001)
    await writes.AddPrices(price(valid_from_time=begins))
    costs = []
    for index, nanos in enumerate((500_000_000, 500_000_001)):
        facts = ledger.books.facts(f"r{index}", price_book_version=2)
        facts.create_time.FromNanoseconds(START_NS + nanos)
        book = await ledger.books.prices.at(2, START_NS + nanos)
        receipt = build_receipt(facts, book, receipt_pb2.RECEIPT_STATE_PENDING)
        result = await writes.SettleReceipts(pb.SettleReceiptsRequest(receipts=[receipt]))
        assert result.results[0].error_reason == ""
        costs.append(receipt.actual_nano_usd)
    assert costs == [710_000 + 1_000_000, 0]


def rate(units: str = "1400.5", seconds: int = 0, **changes: Any) -> pb.AddExchangeRateRequest:
    """A rate of the won."""
    values: dict[str, Any] = {
        "currency": "KRW",
        "units_per_usd": units,
        "valid_from_time": at(seconds),
        "source": "a bank",
    }
    return pb.AddExchangeRateRequest(rate=pb.ExchangeRate(**{**values, **changes}))


async def test_rates_are_dated_and_never_change(ledger: Ledger) -> None:
    writes, reads = ledger.stubs()
    await writes.AddExchangeRate(rate())
    await writes.AddExchangeRate(rate("1390.250000000", 60))
    await writes.AddExchangeRate(rate())  # The same again.
    await writes.AddExchangeRate(rate("0.92", currency="EUR"))
    for request in (rate("1401"), rate("1400.5", 30), rate("1390.25", 60, source="another")):
        with pytest.raises(TenthError, match="RATE_NOT_LATER") as caught:
            await writes.AddExchangeRate(request)
        assert caught.value.field == "request.rate.valid_from_time"
    listed = (await reads.ListExchangeRates(pb.ListExchangeRatesRequest())).rates
    assert [(each.currency, each.units_per_usd) for each in listed] == [
        ("EUR", "0.92"),
        ("KRW", "1400.5"),
        ("KRW", "1390.25"),
    ]
    won = (await reads.ListExchangeRates(pb.ListExchangeRatesRequest(currency="KRW"))).rates
    assert [each.valid_from_time for each in won] == [at(0), at(60)]
    assert won[0].source == "a bank"


async def test_only_operators_of_all_tenants_change_prices_and_rates(ledger: Ledger) -> None:
    writes, reads = ledger.stubs(PLAIN, "cli")
    calls: list[Callable[[], Any]] = [
        lambda: writes.ImportPrices(file(dry_run=True)),
        lambda: writes.ConfirmPrice(pb.ConfirmPriceRequest(model="small")),
        lambda: writes.AddExchangeRate(rate()),
    ]
    for call in calls:
        with pytest.raises(TenthError) as caught:
            await call()
        assert (caught.value.code, caught.value.reason) == (Code.PERMISSION_DENIED, "CROSS_TENANT_FORBIDDEN")
    assert not (await reads.ListExchangeRates(pb.ListExchangeRatesRequest())).rates


BAD_REQUESTS: list[tuple[str, Any, str, str]] = [
    ("ImportPrices", file(b""), "REQUIRED_FIELD", "request.content"),
    ("ImportPrices", file(format=0), "INVALID_FIELD", "request.format"),
    ("ImportPrices", file(format=9), "INVALID_FIELD", "request.format"),
    ("ImportPrices", file(source=" "), "REQUIRED_FIELD", "request.source"),
    ("ImportPrices", file(source="x" * 1001), "INVALID_FIELD", "request.source"),
    ("ImportPrices", file(valid_from_time=None), "REQUIRED_FIELD", "request.valid_from_time"),
    ("ImportPrices", file(valid_from_time=Timestamp(seconds=-5)), "REQUIRED_FIELD", "request.valid_from_time"),
    ("ImportPrices", file(valid_from_time=Timestamp(seconds=2**62)), "INVALID_FIELD", "request.valid_from_time"),
    ("ImportPrices", file("{"), "PRICE_FILE_INVALID", "request.content"),
    ("ImportPrices", file(gzip.compress(b" " * (33 * 2**20))), "PRICE_FILE_INVALID", "request.content"),
    ("ImportPrices", file("prices: [", format=pb.PRICE_FORMAT_TENTH), "INVALID_FIELD", "request.valid_from_time"),
    (
        "ImportPrices",
        file("prices: [", format=pb.PRICE_FORMAT_TENTH, valid_from_time=None),
        "PRICE_FILE_INVALID",
        "request.content",
    ),
    ("ImportPrices", file(take=["nobody"]), "INVALID_FIELD", "request.take[0]"),
    ("ImportPrices", file(keep=["nobody"]), "INVALID_FIELD", "request.keep[0]"),
    ("ImportPrices", file(models=["nobody"]), "INVALID_FIELD", "request.models[0]"),
    ("ImportPrices", file(take=["small"], keep=["small"]), "INVALID_FIELD", "request.keep"),
    ("ConfirmPrice", pb.ConfirmPriceRequest(), "REQUIRED_FIELD", "request.model"),
    ("ConfirmPrice", pb.ConfirmPriceRequest(model="nobody"), "PRICE_NOT_FOUND", "request.model"),
    ("ConfirmPrice", pb.ConfirmPriceRequest(model="small", valid_from_time=at(1)), "PRICE_NOT_FOUND", "request.model"),
    ("ConfirmPrice", pb.ConfirmPriceRequest(model="x'; DROP TABLE prices; --"), "PRICE_NOT_FOUND", "request.model"),
    ("AddExchangeRate", pb.AddExchangeRateRequest(), "REQUIRED_FIELD", "request.rate"),
    ("AddExchangeRate", rate("NaN"), "INVALID_FIELD", "request.rate.units_per_usd"),
    ("AddExchangeRate", rate("-1"), "INVALID_FIELD", "request.rate.units_per_usd"),
    ("AddExchangeRate", rate("1e30"), "INVALID_FIELD", "request.rate.units_per_usd"),
    ("AddExchangeRate", rate(currency="won"), "INVALID_FIELD", "request.rate.currency"),
    ("AddExchangeRate", rate(source=""), "REQUIRED_FIELD", "request.rate.source"),
    ("AddExchangeRate", rate(source="x" * 1001), "INVALID_FIELD", "request.rate.source"),
    ("AddExchangeRate", rate(valid_from_time=None), "REQUIRED_FIELD", "request.rate.valid_from_time"),
    ("ListExchangeRates", pb.ListExchangeRatesRequest(currency="\0"), "INVALID_FIELD", "request.currency"),
    ("AddPrices", price(flex_input_nano_usd_per_million_tokens=-1), "INVALID_FIELD", "request.prices[0].flex_input"),
    ("AddPrices", price(request_fee_nano_usd=-1), "INVALID_FIELD", "request.prices[0].request_fee"),
    ("AddPrices", price(model="gpu:h100"), "REQUIRED_FIELD", "request.prices[0].gpu_hour"),
    (
        "AddPrices",
        price(steps=[receipt_pb2.PriceStep()]),
        "INVALID_FIELD",
        "request.prices[0].steps[0].above_input_tokens",
    ),
    (
        "AddPrices",
        price(steps=[receipt_pb2.PriceStep(above_input_token_count=5)] * 2),
        "INVALID_FIELD",
        "request.prices[0].steps[1].above_input_tokens",
    ),
    (
        "AddPrices",
        price(steps=[receipt_pb2.PriceStep(above_input_token_count=5, input_nano_usd_per_million_tokens=-1)]),
        "INVALID_FIELD",
        "request.prices[0].steps[0].input",
    ),
]


async def test_every_bad_request_gets_a_typed_error_and_changes_nothing(ledger: Ledger) -> None:
    writes, reads = ledger.stubs(OPERATOR)
    for method, request, reason, field in BAD_REQUESTS:
        stub = writes if hasattr(writes, method) else reads
        with pytest.raises(TenthError) as caught:
            await getattr(stub, method)(request)
        assert (caught.value.reason, caught.value.field) == (reason, field), (method, str(request)[:200])
    assert (await reads.ListPrices(pb.ListPricesRequest())).price_book_version == 1
    assert not (await reads.ListExchangeRates(pb.ListExchangeRatesRequest())).rates
