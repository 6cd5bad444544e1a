"""``tenth plan breakeven``, ``tenth idle`` and ``tenth savings``: what they send, and what they say."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import receipt_pb2

from tests.integration.client.test_client_cli import Bench, bench

__all__ = ["bench"]

BREAKEVEN = (
    *("plan", "breakeven", "--hardware", "gpu:a100", "--count", "2", "--output-tps", "2400", "--input-tps", "30000"),
    *("--input", "800", "--output", "250"),
)


def answer_plan(bench: Bench, *models: ledger_pb2.BreakEven) -> None:
    bench.recorder.answers["PlanBreakEven"] = ledger_pb2.PlanBreakEvenResponse(
        day_nano_usd=192_500_000_000, capacity_per_day=660_437.2, request_nano_usd=291_474, models=models
    )
    price = receipt_pb2.Price(model="gpu:a100", gpu_hour_nano_usd=4_010_416_667, source="a [contract] of 2026")
    bench.recorder.answers["ListPrices"] = ledger_pb2.ListPricesResponse(prices=[price])


async def test_breakeven(bench: Bench) -> None:
    answer_plan(
        bench,
        ledger_pb2.BreakEven(model="opus", request_nano_usd=10_250_000, requests_per_day=18_780.4, utilization=0.02844),
        ledger_pb2.BreakEven(model="nano", request_nano_usd=140_000, beyond_capacity=True),
        ledger_pb2.BreakEven(model="gift", request_nano_usd=0),
    )
    status, text = await bench.run(*BREAKEVEN, "--paid-share", "0.5")
    assert status == 0
    (raw,) = bench.recorder.sent("PlanBreakEven")
    assert ledger_pb2.PlanBreakEvenRequest.FromString(raw) == ledger_pb2.PlanBreakEvenRequest(
        hardware="gpu:a100",
        unit_count=2,
        output_tokens_per_second=2400,
        input_tokens_per_second=30_000,
        input_token_count=800,
        output_token_count=250,
        paid_share=0.5,
    )
    lines = text.splitlines()
    assert lines[0].startswith("2 x gpu:a100: $192.50 a day, busy or idle. It can serve 660,437 requests a day of 800")
    assert lines[0].endswith("at full use one costs $0.000291.")
    assert lines[1] == "An hour of one: $4.010417 (a [contract] of 2026)."
    rows = {line.split()[0]: line for line in lines if line.startswith(("opus", "nano", "gift"))}
    assert "$0.010250" in rows["opus"]
    assert "18,780 a day" in rows["opus"]
    assert rows["opus"].rstrip().endswith("2.8%")
    assert "never" in rows["nano"]
    assert rows["nano"].rstrip().endswith("at 100% still 2.1x its price")
    assert "never: it is free" in rows["gift"]
    assert lines[-1].startswith("Assumes: the list prices")


async def test_breakeven_shows_the_first_models_all_of_them_or_those_that_match(bench: Bench) -> None:
    answer_plan(bench, *(ledger_pb2.BreakEven(model=f"model-{index:02}", request_nano_usd=1) for index in range(40)))

    async def shown(*options: str) -> tuple[int, str]:
        _, text = await bench.run(*BREAKEVEN, *options)
        return sum(line.startswith("model-") for line in text.splitlines()), text

    few, text = await shown()
    assert few == 25
    assert "and 15 more: --all, or --match TEXT" in text
    assert (await shown("--all"))[0] == 40
    assert (await shown("--match", "-3"))[0] == 10
    with pytest.raises(ValueError, match="--paid-share 0"):
        await shown("--paid-share", "0")


async def test_idle(bench: Bench) -> None:
    node = ledger_pb2.IdleCost(
        node="rack-1", hardware="gpu:a100", busy_share=0.25, busy_nano_usd=10**9, idle_nano_usd=3 * 10**9
    )
    node.duration.FromSeconds(5400)
    bench.recorder.answers["GetIdleCost"] = ledger_pb2.GetIdleCostResponse(nodes=[node], idle_nano_usd=3 * 10**9)
    status, text = await bench.run("idle", "--since", "2026-11-01", "--until", "2026-11-02T09:00:00+09:00")
    assert status == 0
    row = " ".join(text.splitlines()[2].split())
    assert row == "rack-1 │ gpu:a100 │ 1.50 │ 25.0% │ $1.000000 │ $3.000000"
    assert text.splitlines()[-1] == "idle: $3.000000, 75.0% of what the hardware cost in the time that is known"
    (raw,) = bench.recorder.sent("GetIdleCost")
    sent = ledger_pb2.GetIdleCostRequest.FromString(raw)
    assert sent.start_time.ToJsonString() == "2026-11-01T00:00:00Z"
    assert sent.end_time.ToJsonString() == "2026-11-02T00:00:00Z"
    bench.recorder.answers["GetIdleCost"] = ledger_pb2.GetIdleCostResponse()
    assert await bench.run("idle") == (0, "no own hardware reported in this time\n")
    assert not ledger_pb2.GetIdleCostRequest.FromString(bench.recorder.sent("GetIdleCost")[1]).HasField("start_time")


def measured(**changes: Any) -> ledger_pb2.GetMeasuredSavingsResponse:
    values = {
        "control_count": 120,
        "treated_count": 11_880,
        "control_mean_nano_usd": 10_250_000.4,
        "treated_mean_nano_usd": 1_230_000.6,
        "saving": 0.88,
        "saving_low": 0.861,
        "saving_high": 0.8961,
        "stated_saving": 0.89,
        "measured": True,
    }
    return ledger_pb2.GetMeasuredSavingsResponse(**{**values, **changes})


async def test_savings(bench: Bench) -> None:
    bench.recorder.answers["GetMeasuredSavings"] = measured()
    status, text = await bench.run("savings", "--since", "2026-11-01", "--tenant", "acme", "--confidence", "0.9")
    assert status == 0
    assert text.splitlines() == [
        "Really sent to the baseline model (the control share): 120 requests, $0.010250 each.",
        "The others, with every layer and all overhead: 11,880 requests, $0.001230 each.",
        "Measured: the layers saved 88.0%. With 90% confidence the saving lies between 86.1% and 89.6%.",
        "The receipts of the others state 89.0%, which agrees.",
    ]
    (raw,) = bench.recorder.sent("GetMeasuredSavings")
    sent = ledger_pb2.GetMeasuredSavingsRequest.FromString(raw)
    assert (sent.confidence, sent.filter.tenant_id, sent.filter.tag_key) == (0.9, "acme", "tenth.control")
    await bench.run("savings", "--all")
    (_, raw) = bench.recorder.sent("GetMeasuredSavings")
    assert ledger_pb2.GetMeasuredSavingsRequest.FromString(raw).filter.tag_key == ""


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"saving": -0.1, "saving_low": -0.2, "saving_high": -0.05, "stated_saving": -0.08}, "cost more: 10.0%"),
        ({"saving_low": -0.01}, "whether they save at all is not shown yet"),
        ({"stated_saving": 0.95}, "state 95.0%, more than was measured"),
        ({"stated_saving": 0.5}, "state 50.0%, less than was measured"),
        ({"measured": False, "control_count": 1}, "one side has fewer than two requests"),
        ({"measured": False}, "too few or too uneven"),
    ],
)
async def test_savings_in_other_words(bench: Bench, changes: dict[str, Any], said: str) -> None:
    bench.recorder.answers["GetMeasuredSavings"] = measured(**changes)
    status, text = await bench.run("savings")
    assert status == 0
    assert said in text
    assert ("Measured:" in text) == changes.get("measured", True)


CAPACITY = ("plan", "capacity", "--model", "llama-3.1-70b", "--gpu", "a100-80gb", "--context", "8192", "--lang", "en")


async def test_capacity_needs_no_mesh_and_invents_no_price(bench: Bench) -> None:
    status, text = await bench.run(*CAPACITY, "--scheme", "awq")
    assert status == 0
    assert bench.recorder.requests == []
    assert "39.8 GB" in text
    assert "105,655" in text
    assert "an UPPER BOUND".lower() in text.lower()
    assert "No cost: give --hour-price USD" in text
    status, text = await bench.run(*CAPACITY, "--count", "1")
    assert (status, "the weights do not fit" in text) == (1, True)


async def test_capacity_takes_the_price_books_hour_when_asked(bench: Bench) -> None:
    price = receipt_pb2.Price(model="gpu:a100-80gb", gpu_hour_nano_usd=3_600_000_000)
    bench.recorder.answers["ListPrices"] = ledger_pb2.ListPricesResponse(prices=[price])
    options = ("--scheme", "w4a16", "--hour-price", "book", "--tokens-per-second", "1000", "--utilization", "0.5")
    _, text = await bench.run(*CAPACITY, *options)
    assert "A million output tokens: $2.0000, at 50% utilization and $3.6000 a GPU hour (gpu:a100-80gb)." in text
    (raw,) = bench.recorder.sent("ListPrices")
    assert ledger_pb2.ListPricesRequest.FromString(raw).model == "gpu:a100-80gb"
    bench.recorder.answers["ListPrices"] = ledger_pb2.ListPricesResponse()
    with pytest.raises(ValueError, match="--hour-price book: the price book has no gpu_hour of gpu:a100-80gb"):
        await bench.run(*CAPACITY, *options)


async def test_capacity_in_korean_and_as_json(bench: Bench) -> None:
    _, text = await bench.run(*CAPACITY, "--scheme", "awq", "--lang", "ko")
    assert "들어가는 최소 텐서 병렬 수: 1." in text
    _, text = await bench.run(*CAPACITY, "--scheme", "fp8", "--count", "5", "--hour-price", "2", "--json")
    figures = json.loads(text)
    assert (figures["tensor_parallel"], figures["replicas"], figures["usd_is"]) == (2, 2, "lower bound")
    assert figures["kv_bytes_per_token"] == 327_680


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--model", "nobody/none"), "--model nobody/none: neither a folder"),
        (("--model", "."), "--model .: No such file or directory"),
        (("--gpu", "a9000"), "--gpu a9000: not known"),
        (("--scheme", "q5"), "--scheme q5: not known"),
        (("--context", "0"), "--context 0"),
        (("--count", "-1"), "--count -1"),
        (("--utilization", "0"), "--utilization 0"),
        (("--memory-share", "1.5"), "--memory-share 1.5"),
        (("--working-gib", "100"), "--working-gib 100"),
        (("--hour-price", "free"), "--hour-price free"),
        (("--hour-price", "-1"), "--hour-price -1"),
        (("--tokens-per-second", "-5"), "--tokens-per-second -5"),
    ],
)
async def test_capacity_names_the_flag_that_is_wrong(bench: Bench, options: tuple[str, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        await bench.run(*CAPACITY, *options)
