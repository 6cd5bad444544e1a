"""What reports and exports are made of: cells, numbers, periods, words, sums, FOCUS rows."""

from __future__ import annotations

import csv
import io
import json
import re
import string
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import receipt_pb2

from tenth_client.reporting import focus
from tenth_client.reporting.columns import RECEIPT, receipt_row
from tenth_client.reporting.files import Kind, Value, cell, usd
from tenth_client.reporting.numbers import day, decimals_for, local, money, short_day
from tenth_client.reporting.periods import MAX_DAYS, periods
from tenth_client.reporting.sums import Group, Spend, Sums, add, sums_of
from tenth_client.reporting.texts import TEXTS
from tests.integration.client.ledger_stand_in import receipts

WON = Decimal("22")
FORMULA = set("=+-@\t\r\n")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        ("", ""),
        ("plain", "plain"),
        ("=1+1", "'=1+1"),
        ("+82 10", "'+82 10"),
        ("-rm", "'-rm"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("  =1", "'  =1"),
        ("\t=1", "'\t=1"),
        (-5, "-5"),
        (Decimal("-0.000000001"), "-0.000000001"),
        (Decimal("1E+3"), "1000"),
        (True, "true"),
        (datetime(2026, 11, 1, 9, 0, 0, 500_000, UTC), "2026-11-01T09:00:00.500000Z"),
    ],
)
def test_cells(value: Value, text: str) -> None:
    assert cell(value) == text


@given(st.text())
def test_no_text_becomes_a_formula_and_all_of_it_comes_back(text: str) -> None:
    file = io.StringIO(newline="")
    csv.writer(file).writerow([cell(text.replace("\0", ""))])
    (read,) = next(csv.reader(io.StringIO(file.getvalue(), newline="")), [""])
    assert not set(read[:1]) & FORMULA
    assert not set(read.lstrip()[:1]) & FORMULA
    assert read.removeprefix("'") == text.replace("\0", "").removeprefix("'")


@given(st.integers(-(2**63), 2**63 - 1))
def test_usd_is_exact(nano: int) -> None:
    assert usd(nano) * 10**9 == nano
    assert "E" not in cell(usd(nano))


@pytest.mark.parametrize(
    ("nano", "places", "text"),
    [(0, 4, "$0.0000"), (-1, 4, "$0.0000"), (-1_500_000_000, 2, "-$1.50"), (12_516_700_000, 4, "$12.5167")],
)
def test_money(nano: int, places: int, text: str) -> None:
    assert money(nano, places) == text


def test_decimals_follow_the_largest_amount() -> None:
    assert [decimals_for([amount, 1]) for amount in (0, 10**6, 10**7, -(10**9), 10**11, 10**14)] == [6, 6, 5, 4, 2, 0]


@pytest.mark.parametrize(
    ("amount", "currency", "text"),
    [
        (Decimal("1234.5"), "KRW", "₩1,234"),
        (Decimal("-0.4"), "KRW", "₩0"),
        (Decimal("-2000"), "KRW", "-₩2,000"),
        (Decimal("3.456"), "EUR", "€3.46"),
        (Decimal(7), "CHF", "CHF 7.00"),
        (None, "KRW", ""),
    ],
)
def test_other_currencies(amount: Decimal | None, currency: str, text: str) -> None:
    assert local(amount, currency) == text


def test_dates_by_language() -> None:
    when = date(2026, 3, 9)
    assert [day(when, language) for language in ("en", "ko")] == ["Mar 9, 2026", "2026년 3월 9일"]
    assert [short_day(when, language) for language in ("en", "ko")] == ["Mar 9", "3/9"]


@given(st.sets(st.dates(date(2020, 1, 1), date(2027, 12, 31)), min_size=1, max_size=30))
def test_every_day_has_its_bucket_and_there_are_no_holes(days: set[date]) -> None:
    axis = periods(days)
    assert axis.weekly == (max(days) - min(days) >= timedelta(days=MAX_DAYS))
    for each in days:
        start = axis.starts[axis.index(each)]
        assert start <= each < start + timedelta(days=axis.days)
    assert {later - earlier for earlier, later in zip(axis.starts, axis.starts[1:], strict=False)} <= {
        timedelta(days=axis.days)
    }
    assert not axis.weekly or axis.starts[0].weekday() == 0


def test_both_languages_say_the_same_things() -> None:
    english, korean = TEXTS["en"], TEXTS["ko"]
    assert list(english) == list(korean)
    for name, text in english.items():
        fields = {field for _, field, _, _ in string.Formatter().parse(text) if field}
        assert fields == {field for _, field, _, _ in string.Formatter().parse(korean[name]) if field}, name
        words = re.sub(r"\{\w+\}|USD", "", korean[name])
        assert not re.search(r"[A-Za-z]", words), name
        assert re.search(r"[가-힣]", words) or not re.search(r"[A-Za-z]", re.sub(r"\{\w+\}", "", text)), name


def test_sums_of_sums() -> None:
    row = ledger_pb2.SpendRow(request_count=2, baseline_nano_usd=10, overhead_nano_usd=1, actual_nano_usd=8)
    row.savings.add(layer=receipt_pb2.LAYER_CACHE, saving_nano_usd=5)
    row.savings.add(layer=receipt_pb2.LAYER_PROMPT_CACHE, saving_nano_usd=-2)
    row.actual_in_currency = "11.5"
    one = sums_of(row)
    assert (one.saved, one.adds_up, one.savings["prompt_cache"]) == (3, True, -2)
    two = add([one, one])
    assert (two.requests, two.actual, two.actual_local, two.savings["cache"]) == (4, 16, Decimal(23), 10)
    assert add([one, Sums()]).actual_local is None
    assert not Sums(baseline=1).adds_up
    spend = Spend(("model",), (Group(("a",), one), Group(("b",), one)), ("big",), "KRW", replace(two, actual_local=WON))
    assert spend.total.actual_local == WON, "the ledger's own total is rounded once"
    later = replace(two, actual=17, actual_local=WON)
    assert replace(spend, converted=later).total.actual_local == Decimal(23), "a receipt came in between"


def test_a_receipt_fits_its_columns() -> None:
    for receipt in receipts(40):
        for column, value in zip(RECEIPT, receipt_row(receipt), strict=True):
            check_type(column.kind, value)
            if column.name.endswith("_usd") and not column.name.endswith("_nano_usd"):
                assert column.kind is Kind.DECIMAL


def check_type(kind: Kind, value: Value) -> None:
    types: dict[Kind, type] = {
        Kind.TEXT: str,
        Kind.COUNT: int,
        Kind.NANO_USD: int,
        Kind.DECIMAL: Decimal,
        Kind.TIME: datetime,
        Kind.FLAG: bool,
    }
    assert value is None or type(value) is types[kind]


# Of https://focus.finops.org/focus-specification/v1-2/: the columns that every data set must have, those that may not
# be null in a row of usage, and the values that are allowed.
FOCUS_MANDATORY = {
    "BilledCost", "BillingAccountId", "BillingAccountName", "BillingCurrency", "BillingPeriodEnd", "BillingPeriodStart",
    "ChargeCategory", "ChargeClass", "ChargeDescription", "ChargePeriodEnd", "ChargePeriodStart", "ContractedCost",
    "EffectiveCost", "InvoiceIssuerName", "ListCost", "PricingQuantity", "PricingUnit", "ProviderName", "PublisherName",
    "ServiceCategory", "ServiceName",
}  # fmt: skip
FOCUS_NULLABLE = {"ChargeClass", "InvoiceId", "SubAccountId", "SubAccountName", "SubAccountType", "Tags"}
FOCUS_ALLOWED: dict[str, set[Value]] = {
    "BillingCurrency": {"USD"},
    "ChargeCategory": {"Usage", "Purchase", "Tax", "Credit", "Adjustment"},
    "ChargeClass": {None, "Correction"},
    "ChargeFrequency": {"One-Time", "Recurring", "Usage-Based"},
    "PricingCategory": {"Standard", "Dynamic", "Committed", "Other"},
    "ServiceCategory": {"AI and Machine Learning"},
    "ServiceSubcategory": {"Generative AI"},
    "ConsumedUnit": {"Tokens", "Requests", "Seconds"},
    "PricingUnit": {"Requests"},
}
MONEY = ("BilledCost", "EffectiveCost", "ListCost", "ContractedCost")


def focus_rows(receipt: receipt_pb2.Receipt) -> list[dict[str, Value]]:
    names = [column.name for column in focus.COLUMNS]
    return [dict(zip(names, row, strict=True)) for row in focus.rows(receipt, focus.Parties())]


@given(st.integers(0, 10**6))
def test_focus_rows_are_what_the_specification_asks_for(seed: int) -> None:
    kinds = {column.name: column.kind for column in focus.COLUMNS}
    assert set(kinds) >= FOCUS_MANDATORY
    assert all(re.fullmatch(r"(x_)?[A-Z][A-Za-z]*", name) for name in kinds)
    for receipt in receipts(5, seed):
        rows = focus_rows(receipt)
        for name in MONEY:
            assert sum(Decimal(str(row[name])) for row in rows) * 10**9 == receipt.actual_nano_usd
        for row in rows:
            check_focus_row(row, kinds)


def check_focus_row(row: dict[str, Value], kinds: dict[str, Kind]) -> None:
    for name, value in row.items():
        check_type(kinds[name], value)
        if value is None:
            assert name in FOCUS_NULLABLE or name.startswith("x_"), name
        if name in FOCUS_ALLOWED:
            assert value in FOCUS_ALLOWED[name], name
        if isinstance(value, str):
            assert value, name
    start, end = row["ChargePeriodStart"], row["ChargePeriodEnd"]
    assert isinstance(start, datetime)
    assert isinstance(end, datetime)
    first, last = row["BillingPeriodStart"], row["BillingPeriodEnd"]
    assert isinstance(first, datetime)
    assert isinstance(last, datetime)
    assert first <= start < end <= last
    assert first.day == last.day == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", focus.text(start))
    assert (row["SubAccountId"] is None) == (row["SubAccountType"] is None)
    quantity = row["ConsumedQuantity"]
    assert isinstance(quantity, Decimal)
    assert quantity > 0
    if row["Tags"] is not None:
        assert all(isinstance(value, str) for value in json.loads(str(row["Tags"])).values())


def test_focus_keeps_the_identity_beside_the_cost() -> None:
    for receipt in receipts(40):
        rows = focus_rows(receipt)
        names = [name for name in rows[0] if name.startswith("x_Saving")] if rows else []
        assert len(names) in (0, 6)
        baseline = sum(Decimal(str(row["x_BaselineCost"] or 0)) for row in rows)
        saved = sum(Decimal(str(row[name] or 0)) for row in rows for name in names)
        overhead = sum(Decimal(str(row["BilledCost"])) for row in rows if row["x_OverheadKind"])
        assert (baseline - saved + overhead) * 10**9 == receipt.actual_nano_usd


def test_focus_never_loses_overhead_that_no_item_names() -> None:
    receipt = next(each for each in receipts(40) if not each.facts.cache_hit and not each.facts.overheads)
    receipt.overhead_nano_usd += 7
    receipt.actual_nano_usd += 7
    rows = focus_rows(receipt)
    assert rows[-1]["BilledCost"] == Decimal("0.000000007")
    assert rows[-1]["x_OverheadKind"] == "unknown"


def test_a_charge_at_the_end_of_a_month_stays_in_its_period() -> None:
    receipt = receipts(1)[0]
    receipt.facts.create_time.FromDatetime(datetime(2026, 11, 30, 23, 59, 59, 900_000, UTC))
    receipt.facts.end_time.FromDatetime(datetime(2026, 12, 1, 0, 0, 4, tzinfo=UTC))
    for row in focus_rows(receipt):
        assert row["BillingPeriodStart"] == datetime(2026, 11, 1, tzinfo=UTC)
        assert row["ChargePeriodEnd"] == row["BillingPeriodEnd"] == datetime(2026, 12, 1, tzinfo=UTC)
