"""What the command shows: money, traces, sums."""

from __future__ import annotations

import io

import grpc
import pytest
from rich.console import Console
from tenth.type.v1 import receipt_pb2

from formats.openai_answers import LAYERS
from tenth_client.chat import describe
from tenth_client.errors import TenthClientError
from tenth_client.money import parse_usd, percent, usd
from tenth_client.replay import Played, counts, quantile, summarize, waterfall
from tenth_client.traces import SpanView, render


@pytest.mark.parametrize(
    ("nano", "decimals", "text"),
    [
        (0, 6, "$0.000000"),
        (1_250_000, 6, "$0.001250"),
        (-1_250_000, 6, "-$0.001250"),
        (500, 6, "$0.000000"),
        (-500, 6, "$0.000000"),
        (1_500, 6, "$0.000002"),
        (7, 9, "$0.000000007"),
        (1_234_567_000_000_000, 2, "$1,234,567.00"),
    ],
)
def test_usd(nano: int, decimals: int, text: str) -> None:
    assert usd(nano, decimals) == text


@pytest.mark.parametrize("text", ["-1", "nan", "inf", "ten", "0.0000000001", "1e30", ""])
def test_amounts_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="USD"):
        parse_usd(text)


def test_amounts() -> None:
    assert parse_usd("$1,000.50") == 1_000_500_000_000
    assert parse_usd("0") == 0
    assert percent(1, 3) == "33.3%"
    assert percent(0, 0) == "-"


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([], 0.5, 0.0), ([3.0], 0.95, 3.0), ([1.0, 2.0], 0.5, 1.0), (list(map(float, range(1, 101))), 0.95, 95.0)],
)
def test_quantile_is_the_nearest_rank(values: list[float], share: float, expected: float) -> None:
    assert quantile(values, share) == expected


def receipt(baseline: int, cache: int, overhead: int, hit: str = "", failed: bool = False) -> receipt_pb2.Receipt:
    facts = receipt_pb2.ReceiptFacts(
        baseline_model="opus",
        model="mini",
        cache_hit=bool(hit),
        cache_hit_kind=hit,
        failed=failed,
        trace_id=f"{baseline:032x}",
    )
    savings = [receipt_pb2.LayerSaving(layer=layer, saving_nano_usd=0) for layer in LAYERS]
    savings[0].saving_nano_usd = cache
    return receipt_pb2.Receipt(
        facts=facts,
        baseline_nano_usd=baseline,
        baseline_prompt_cached_nano_usd=baseline,
        savings=savings,
        overhead_nano_usd=overhead,
        actual_nano_usd=baseline - cache + overhead,
    )


def test_summary_adds_up() -> None:
    error = TenthClientError(grpc.StatusCode.UNAVAILABLE, "PROVIDER_FAILED", "down")
    summary = summarize(
        [
            Played(0, "a", 10.0, receipt=receipt(100, 0, 5)),
            Played(1, "b", 20.0, receipt=receipt(300, 300, 0, "exact")),
            Played(2, "c", 30.0, receipt=receipt(0, 0, 7, failed=True), error=error),
        ],
        seconds=1.5,
    )
    assert summary.identity_holds
    report = summary.report()
    assert report["requests"] == 3
    assert report["failed"] == 1
    assert report["baseline_nano_usd"] == 400
    assert report["actual_nano_usd"] == 112
    assert report["overhead_nano_usd"] == 12
    assert report["savings_nano_usd"]["cache"] == 300
    assert set(report["savings_nano_usd"]) == set(LAYERS.values())
    assert report["cache_hits"] == 1
    assert report["trace_ids"] == 3
    # A failed request's latency is not an answer's.
    assert report["latency_ms"] == {"p50": 10.0, "p95": 20.0}
    assert report["errors"] == {"UNAVAILABLE PROVIDER_FAILED": 1}
    text = plain(waterfall(summary)) + plain(counts(summary))
    assert "baseline (opus)" in text
    assert "- prompt cache" in text
    assert "exact 1" in text
    assert "baseline - savings + overhead == actual" in text


def test_sums_that_do_not_add_up_are_called_so() -> None:
    wrong = receipt(100, 0, 0)
    wrong.actual_nano_usd += 1
    summary = summarize([Played(0, "a", 1.0, receipt=wrong)])
    assert not summary.identity_holds
    assert "DO NOT ADD UP" in plain(counts(summary))


def test_line_under_an_answer() -> None:
    assert describe("mini", receipt(1_000_000_000, 0, 0), "r1").startswith(
        "mini · cost $1.000000 · saved $0.000000 (0.0%"
    )
    assert describe("mini", receipt(100, 100, 0, "semantic"), "r1").startswith("semantic hit (mini)")


SPANS = [
    SpanView(
        "1", "", "orchestrator", "pkg.Orchestrator/Generate", 0.0, 0.1, {"tenth.actual_nano_usd": "1500", "x": "y"}
    ),
    SpanView("2", "1", "orchestrator", "pkg.Cache/Lookup", 0.001, 0.011),
    SpanView("3", "2", "cache", "pkg.Cache/Lookup", 0.002, 0.010, {"tenth.cache.outcome": "miss"}),
    SpanView("4", "3", "cache", "embed", 0.003, 0.008),
    SpanView("5", "1", "orchestrator", "pkg.Inference/Generate", 0.02, 0.09, error="PROVIDER_FAILED"),
]


def test_tree_folds_both_sides_of_a_call() -> None:
    assert render("ab", SPANS).splitlines() == [
        "trace ab: 5 spans, 2 services, 100.0 ms",
        "orchestrator Generate  100.0 ms at +0.0  actual=$0.000001500",
        "├─ cache Lookup  8.0 ms at +2.0  wire 2.0  cache.outcome=miss",
        "│  └─ cache embed  5.0 ms at +3.0",
        "└─ orchestrator Generate  70.0 ms at +20.0  ERROR PROVIDER_FAILED",
    ]


def test_tree_of_everything() -> None:
    lines = render("ab", SPANS, everything=True).splitlines()
    assert len(lines) == 6
    assert "x=y" in lines[1]


@pytest.mark.parametrize(
    ("spans", "lines"),
    [
        ([], 1),
        ([SpanView("1", "gone", "s", "orphan", 0, 1)], 2),
        ([SpanView(str(n), str(n - 1), "s", f"n{n}", n, n + 1) for n in range(1, 3_000)], 3_000),
    ],
)
def test_damaged_traces_still_show(spans: list[SpanView], lines: int) -> None:
    assert len(render("ab", spans).splitlines()) == lines


def plain(renderable: object) -> str:
    console = Console(width=160, file=io.StringIO())
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()
