"""The seeds: what the shipped files say, and what is refused, by file, entry and key."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from mesh.receipt import CPU, PriceStep
from services.ledger.policy import Window
from services.ledger.prices import add, book_at
from services.ledger.seeds import parse_prices, parse_tenants

DEPLOY = Path(__file__).parents[3] / "deploy"
NOW = 1_795_000_000 * 10**9  # November 2026.


def test_the_shipped_catalogue_prices_every_model() -> None:
    text = (DEPLOY / "catalog.yaml").read_text("utf-8")
    book = book_at(add([], parse_prices(text)).added, NOW)
    models = set(yaml.safe_load(text)["models"])
    assert models <= set(book)
    assert book[CPU].cpu_hour == 40_000_000
    assert all(book[each].input > 0 and book[each].output > 0 and book[each].confirmed for each in models)
    for each in models:
        price = book[each]
        assert price.cached_input is None or price.cached_input < price.input
        assert price.batch_output is None or price.batch_output <= price.output
    assert (book["claude-opus-4-7"].input, book["claude-opus-4-7"].output) == (5 * 10**9, 25 * 10**9)
    early = book_at(add([], parse_prices(text)).added, 1_745_000_000 * 10**9)
    assert (early["claude-opus-4-7"].input, early["claude-haiku-4-5-20251001"].output) == (15 * 10**9, 4 * 10**9)


def test_the_shipped_tenants() -> None:
    [(tenant, [budget])] = parse_tenants((DEPLOY / "callers.yaml").read_text("utf-8"))
    assert (tenant.tenant_id, tenant.baseline_model, tenant.max_requests_per_minute) == ("demo", "claude-opus-4-7", 0)
    assert (budget.window, budget.time_zone, budget.limit, budget.hard) == (Window.MONTH, "Asia/Seoul", 10**12, True)


def test_nothing_is_nothing() -> None:
    assert parse_prices("") == []
    assert parse_tenants("callers: []") == []


GOOD = {"model": "m", "valid_from": "2025-01-01", "input": "1", "output": "2", "source": "s"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, r"^catalogue:2: prices\[0\].colour: unknown key"),
        ({"model": None}, r"prices\[0\].model: required"),
        ({"source": None}, r"prices\[0\].source: required"),
        ({"source": "  "}, r"prices\[0\].source"),
        ({"valid_from": None}, r"prices\[0\].valid_from: required"),
        ({"valid_from": "soon"}, r"prices\[0\].valid_from: 'soon' is not a date or time of ISO 8601"),
        ({"valid_to": "2024-01-01"}, r"prices\[0\].valid_to_time: ends before it begins"),
        ({"input": None}, r"input and output are required"),
        ({"input": 2.5}, r"prices\[0\].input: 2.5 is not a decimal string in quotes"),
        ({"input": "-1"}, r"prices\[0\].input: '-1' is negative"),
        ({"input": "NaN"}, r"prices\[0\].input: 'NaN' is not finite"),
        ({"input": "1e30"}, r"prices\[0\].input: '1e30' is too large"),
        ({"batch_input": "x"}, r"prices\[0\].batch_input: 'x' is not a decimal number"),
        ({"confirmed": "yes"}, r"prices\[0\].confirmed: 'yes' is neither true nor false"),
        ({"input": "0", "output": "0"}, r"prices\[0\].confirmed: a price of zero needs"),
        ({"model": "cpu"}, r"prices\[0\].cpu_hour"),
        ({"model": "cpu", "cpu_hour": "0", "confirmed": True}, r"prices\[0\].cpu_hour"),
        ({"model": "gpu:h100"}, r"prices\[0\].gpu_hour"),
        ({"model": "gpu:h100", "gpu_hour": "0", "confirmed": True}, r"prices\[0\].gpu_hour"),
        ({"flex_input": "-1"}, r"prices\[0\].flex_input: '-1' is negative"),
        ({"request_fee": 0.5}, r"prices\[0\].request_fee: 0.5 is not a decimal string"),
        ({"steps": "x"}, r"prices\[0\].steps: must be a list"),
        ({"steps": [{"above": 5}]}, r"prices\[0\].steps\[0\].above: unknown key"),
        ({"steps": [{"input": "1"}]}, r"prices\[0\].steps\[0\].above_input_tokens: required"),
        ({"steps": [{"above_input_tokens": 0}]}, r"prices\[0\].steps\[0\].above_input_tokens: '0' is not a whole"),
        ({"steps": [{"above_input_tokens": 9}] * 2}, r"steps\[1\].above_input_tokens: 9 is not above the mark"),
        ({"steps": [{"above_input_tokens": 9, "input": "1e30"}]}, r"steps\[0\].input: '1e30' is too large"),
        ({"steps": [{"above_input_tokens": 9, "flex_input": "1"}]}, r"steps\[0\].flex_input: unknown key"),
    ],
)
def test_a_wrong_price_is_refused_by_its_key(changes: dict[str, object], message: str) -> None:
    entry = {key: value for key, value in {**GOOD, **changes}.items() if value is not None}
    with pytest.raises(ValueError, match=message):
        parse_prices(yaml.safe_dump({"prices": [entry]}))


def test_a_zero_may_be_confirmed_or_left_unconfirmed() -> None:
    for confirmed in (True, False):
        [row] = parse_prices(
            yaml.safe_dump({"prices": [{**GOOD, "input": "0", "output": "0", "confirmed": confirmed}]})
        )
        assert row.price.confirmed is confirmed


def test_a_row_may_say_everything_that_a_price_has() -> None:
    keys = ("flex_input", "flex_output", "reasoning_output", "request_fee", "batch_input", "cache_write_1h")
    steps = [
        {"above_input_tokens": 1000, "input": "3"},
        {"above_input_tokens": 5000, "output": "4", "cached_input": "1"},
    ]
    more = {key: f"0.{index}" for index, key in enumerate(keys, 1)}
    gpu = {"model": "gpu:h100", "valid_from": "2026-01-01", "gpu_hour": "2.5", "source": "s"}
    hardware, row = parse_prices(yaml.safe_dump({"prices": [{**GOOD, **more, "steps": steps}, gpu]}))
    assert [getattr(row.price, key) for key in keys] == [index * 10**8 for index in range(1, 7)]
    # What a step does not say is as below its mark.
    assert row.price.steps == (
        PriceStep(1000, 3 * 10**9, 2 * 10**9),
        PriceStep(5000, 3 * 10**9, 4 * 10**9, cached_input=10**9),
    )
    assert (hardware.price.gpu_hour, hardware.price.confirmed) == (2_500_000_000, True)


TENANT = {"tenant_id": "t", "baseline_model": "m"}
BUDGET = {"name": "b", "window": "day", "limit_usd": "1"}


@pytest.mark.parametrize(
    ("tenants", "message"),
    [
        ("x", r"^callers:1: tenants: must be a list"),
        (["x"], r"tenants\[0\]: must be a mapping"),
        ([{**TENANT, "x": 1}], r"^callers:4: tenants\[0\].x: unknown key"),
        ([{"tenant_id": "t"}], r"tenants\[0\].baseline_model: required"),
        ([TENANT, TENANT], r"two of the same tenant_id"),
        (
            [{**TENANT, "max_requests_per_minute": -1}],
            r"max_requests_per_minute: '-1' is not a whole number",
        ),
        (
            [{**TENANT, "max_requests_per_minute": True}],
            r"max_requests_per_minute: 'true' is not a whole number",
        ),
        ([{**TENANT, "budgets": "x"}], r"tenants\[0\].budgets: must be a list"),
        ([{**TENANT, "budgets": [BUDGET, BUDGET]}], r"budgets: two of the same name"),
        ([{**TENANT, "budgets": [{**BUDGET, "window": "year"}]}], r"budgets\[0\].window: 'year' is none of"),
        ([{**TENANT, "budgets": [{**BUDGET, "time_zone": "Mars"}]}], r"budgets\[0\].time_zone: 'Mars' is no IANA"),
        ([{**TENANT, "budgets": [{**BUDGET, "limit_usd": "-1"}]}], r"budgets\[0\].limit_usd: '-1' is negative"),
        ([{**TENANT, "budgets": [{**BUDGET, "limit_usd": 5}]}], r"budgets\[0\].limit_usd: 5 is not a decimal string"),
        ([{**TENANT, "budgets": [{**BUDGET, "hard": "no"}]}], r"budgets\[0\].hard: 'no' is neither true nor false"),
        ([{**TENANT, "budgets": [{"window": "day", "limit_usd": "1"}]}], r"budgets\[0\].name: required"),
        ([{**TENANT, "max_tokens_per_minute": -1}], r"max_tokens_per_minute: '-1' is not a whole number"),
        ([{**TENANT, "control_share": "1.5"}], r"control_share: '1.5' is not a share from 0 to 1"),
        ([{**TENANT, "control_share": "-0.1"}], r"control_share: '-0.1' is not a share"),
        ([{**TENANT, "control_share": "NaN"}], r"control_share: 'NaN' is not a share"),
        ([{**TENANT, "control_share": 0.5}], r"control_share: must be text"),
        ([{**TENANT, "budgets": [{**BUDGET, "rolling": "7d"}]}], r"budgets\[0\].rolling: only with a rolling window"),
        ([{**TENANT, "budgets": [{**BUDGET, "window": "rolling"}]}], r"budgets\[0\].*rolling"),
        ([{**TENANT, "budgets": [{**BUDGET, "rolling": "soon"}]}], r"budgets\[0\].rolling: 'soon' is not a length"),
        ([{**TENANT, "budgets": [{**BUDGET, "tag_value": "x"}]}], r"budgets\[0\].*tag_key"),
        (
            [{**TENANT, "budgets": [{**BUDGET, "alert_percents": "x"}]}],
            r"alert_percents: 'x' is not a list of percents",
        ),
        ([{**TENANT, "budgets": [{**BUDGET, "alert_percents": "1001"}]}], r"alert_percents: not within 1 to 1000"),
        (
            [{**TENANT, "budgets": [{**BUDGET, "alert_percents": "50", "alert_url": "http://x.example"}]}],
            r"alert_url: neither https nor",
        ),
        ([{**TENANT, "budgets": [{**BUDGET, "ladder": "faster=80"}]}], r"ladder: 'faster=80' is not one of"),
        ([{**TENANT, "budgets": [{**BUDGET, "ladder": "batch=80", "hard": False}]}], r"ladder: only hard budgets"),
    ],
)
def test_a_wrong_tenant_is_refused_by_its_key(tenants: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_tenants(yaml.safe_dump({"tenants": tenants}))


def test_a_tenant_with_everything() -> None:
    budget = {
        **BUDGET,
        "window": "rolling",
        "rolling": "7d",
        "model": "m",
        "tag_key": "team",
        "tag_value": "search",
        "alert_percents": "80 50",
        "alert_url": "https://alerts.example/hook",
        "ladder": "batch=80 cheaper-tier=90",
    }
    entry = {**TENANT, "max_tokens_per_minute": 1000, "control_share": "0.01", "budgets": [budget]}
    [(tenant, [made])] = parse_tenants(yaml.safe_dump({"tenants": [entry]}))
    assert (tenant.max_tokens_per_minute, tenant.control_share) == (1000, 0.01)
    assert (made.window, made.rolling_seconds, made.model) == (Window.ROLLING, 604_800, "m")
    assert (made.tag_key, made.tag_value, made.alert_percents) == ("team", "search", (50, 80))
    assert made.alert_url == "https://alerts.example/hook"
    assert [(rung.step.value, rung.from_percent) for rung in made.ladder] == [("batch", 80), ("cheaper_tier", 90)]


def test_what_is_not_yaml_is_refused() -> None:
    with pytest.raises(ValueError, match="not YAML"):
        parse_prices("prices: [")
