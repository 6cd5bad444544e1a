"""Quality and money of the end-to-end benchmark, from outcomes that are made up here."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bench.endtoend_arms import ABLATED, SWITCHES, ablations, plan, with_repeats
from bench.endtoend_litellm import body_of, cost, direct_body, prices
from bench.endtoend_play import Arm, Outcome, request_of
from bench.endtoend_quality import Quality, kept, quality_of
from bench.endtoend_rows import MAIN, STRONG, WEAK, Ask
from bench.endtoend_seeds import combine
from bench.endtoend_seeds_table import seeds_table
from bench.endtoend_sums import OPUS, Run, add_latency, add_run, cumulative, shortfall, whatif_costs
from bench.endtoend_workload import Arrival, Mix
from bench.result import Metrics, Result
from services.compressor.datasets import Case

SUPPORT = Ask("support", "1", "t", ({"role": "user", "content": "Where is my card?"},), "aaaaaa", {"*": 10})
HARD = replace(SUPPORT, workload="reasoning", code="bbbbbb", correct={WEAK[MAIN]: 0.0, STRONG[MAIN]: 1.0})
CASE = Case("1", "g", "Who?", (), ("Title\nIt was Ada Lovelace.", "Other\nNothing."), (0,), ("Ada Lovelace",))
RAG = replace(SUPPORT, workload="rag", code="cccccc", case=CASE, chunks=CASE.chunks)
HIT = Outcome(0, model=STRONG[MAIN], hit="semantic", code="aaaaaa", baseline=100, savings={"cache": 100})
MISS = Outcome(0, model=STRONG[MAIN], code="aaaaaa", baseline=100, actual=100)


@pytest.mark.parametrize(
    ("ask", "outcome", "expected"),
    [
        (SUPPORT, HIT, Quality(1.0, 1.0)),
        (SUPPORT, replace(HIT, code="dddddd"), Quality(0.0, 1.0)),
        (replace(SUPPORT, servable=False), replace(HIT, code="dddddd"), Quality(0.0, 1.0)),
        (replace(SUPPORT, servable=False), replace(HIT, hit="exact"), Quality(1.0, 1.0)),
        (SUPPORT, MISS, None),
        (HARD, replace(MISS, code="bbbbbb"), Quality(1.0, 1.0)),
        (HARD, replace(MISS, code="bbbbbb", model=WEAK[MAIN]), Quality(0.0, 1.0)),
        (HARD, replace(MISS, code="aaaaaa"), Quality(0.0, 1.0)),
        (HARD, Outcome(0, error="UNAVAILABLE X"), Quality(0.0, 1.0)),
        (RAG, replace(MISS, code="cccccc", prompt="gone"), Quality(0.0, 1.0)),
    ],
)
def test_quality_is_what_is_recorded(ask: Ask, outcome: Outcome, expected: Quality | None) -> None:
    assert quality_of(ask, outcome, {}) == expected


def test_an_answer_is_kept_while_it_stands_in_the_context_alone() -> None:
    outcome = replace(MISS, code="cccccc", prompt="d")
    sent = "system\nContext:\n[1] Title\nIt was Ada Lovelace.\n\nWho?"
    assert quality_of(RAG, outcome, {"d": sent}) == Quality(1.0, 1.0)
    assert not kept(CASE, "Ada Lovelace\nContext:\n[1] Other\nNothing.\n\nWho was Ada Lovelace?")


def test_evidence_is_a_sentence_whatever_its_blanks() -> None:
    case = replace(CASE, answers=(), evidence=(frozenset({"It was  Ada\nLovelace."}),))
    assert kept(case, "Context:\n[1] It was Ada Lovelace. More.\n\nWho?")
    assert not kept(case, "Context:\n[1] It was Ada.\n\nWho?")


def test_a_run_says_what_is_left_of_the_bill_and_of_the_quality() -> None:
    stream = [Arrival(0, 0.0, SUPPORT, ""), Arrival(1, 1.0, HARD, "")]
    outcomes = [HIT, replace(MISS, index=1, code="bbbbbb", model=WEAK[MAIN], actual=10, savings={"routing": 90})]
    result = Result("endtoend", quick=False)
    add_run(result, "m/ours", Run(stream, outcomes, {}), seed=7)
    values = {name: metric["value"] for name, metric in result.metrics.items()}
    assert values["m/ours/cost_ratio"] == pytest.approx(0.05)
    assert values["m/ours/quality_ratio"] == pytest.approx(0.5)
    assert values["m/ours/quality_covered"] == 1.0
    assert values["m/ours/identity_violations"] == 0
    assert values["m/ours/saved_by_cache"] == pytest.approx(0.5)
    assert values["m/ours/reasoning_quality_ratio"] == 0.0


def test_a_receipt_that_does_not_add_up_is_counted() -> None:
    result = Result("endtoend", quick=False)
    add_run(result, "m/ours", Run([Arrival(0, 0.0, SUPPORT, "")], [replace(MISS, actual=99)], {}), seed=7)
    assert result.metrics["m/ours/identity_violations"]["value"] == 1


def test_latency_is_what_the_mesh_adds_to_the_model() -> None:
    stream = [Arrival(at, 0.0, SUPPORT, "") for at in range(2)]
    outcomes = [replace(HIT, milliseconds=4.0), replace(MISS, index=1, milliseconds=110.0)]
    result = Result("endtoend", quick=False)
    add_latency(result, "m/ours", Run(stream, outcomes, {}), {0: 100.0, 1: 100.0})
    assert result.metrics["m/ours/added_p50_ms_semantic_hit"]["value"] == 4.0
    assert result.metrics["m/ours/added_p50_ms_miss"]["value"] == pytest.approx(10.0)
    assert "m/ours/added_p50_ms_exact_hit" not in result.metrics


def test_what_the_model_takes_when_asked_directly_is_not_the_meshs() -> None:
    stream = [Arrival(at, 0.0, SUPPORT, "") for at in range(2)]
    miss = replace(MISS, index=1, milliseconds=110.0, hops={"cache": 3.0, "inference": 106.5})
    run = Run(stream, [replace(HIT, milliseconds=4.0), miss], {})
    result = Result("endtoend", quick=False)
    add_latency(result, "m/ours", run, {0: 100.0, 1: 100.0}, {0: 2.5, 1: 2.5})
    values = {name: metric["value"] for name, metric in result.metrics.items()}
    assert values["m/ours/added_p50_ms_miss"] == pytest.approx(7.5)
    assert values["m/ours/added_p50_ms_semantic_hit"] == 4.0, "a hit asks no model"
    assert values["m/ours/hop_p50_ms_cache"] == 3.0
    assert values["m/ours/hop_p50_ms_inference"] == pytest.approx(4.0)


def test_who_asks_directly_asks_the_strong_model() -> None:
    body = direct_body(RAG, "anything")
    assert body["model"] == STRONG[MAIN]
    assert "cache" not in body
    assert "Ada Lovelace" in body["messages"][-1]["content"]


def test_seeds_differ_by_less_than_their_intervals_or_not() -> None:
    def metrics(cost: float, low: float, high: float) -> Metrics:
        result = Result("endtoend", quick=False)
        result.add("m/ours/cost_ratio", cost, "ratio", 600, (low, high))
        result.add("m/ours/failed", 0, "count", 600)
        return result.metrics

    result = Result("endtoend_seeds", quick=False)
    combine(result, {7: metrics(0.05, 0.03, 0.07), 8: metrics(0.08, 0.05, 0.12)})
    assert result.metrics["m/spread/cost_ratio"]["value"] == pytest.approx(0.03)
    assert result.metrics["m/mean_interval/cost_ratio"]["value"] == pytest.approx(0.055)
    assert result.metrics["m/seed_8/cost_ratio"]["ci95"] == [0.05, 0.12]
    result.assumptions["seeds"] = [7, 8]
    table = seeds_table(result.as_json())
    assert "| m | cost of the baseline's | 0.050 [0.030, 0.070] | 0.080 [0.050, 0.120] | 0.030 | 0.055 | yes |" in table
    assert "over all of these runs: 0." in table


def test_the_what_if_prices_the_strong_models_tokens_anew() -> None:
    strong = replace(
        MISS, baseline_input_tokens=1000, input_tokens=800, cached_tokens=300, output_tokens=100, batch=True
    )
    weak = replace(strong, model=WEAK[MAIN], actual=7, batch=False)
    actual, baseline = whatif_costs([strong, weak], OPUS)
    assert baseline.tolist() == [7_500_000.0, 7_500_000.0]
    assert actual.tolist() == [(500 * 5 + 300 * 0.5 + 100 * 25) * 1000 / 2, 7.0]


def test_savings_that_overlap_leave_a_shortfall() -> None:
    assert shortfall(0.2, {"cache": 0.5, "routing": 0.4}) == pytest.approx(0.3)


def test_savings_grow_as_windows_move_on() -> None:
    assert cumulative([MISS, MISS, HIT, HIT], 2) == [(2, 0.0, 0.0), (3, 0.5, 0.5), (4, 1.0, 1.0)]


def test_every_layer_is_measured_alone_and_missing() -> None:
    found = ablations()
    assert found["full"] == ()
    assert found["none"] == SWITCHES
    assert found["only_cache"] == ("routing", "compression", "batch")
    assert found["without_cache"] == ("cache",)


def test_every_run_has_a_tenant_of_its_own() -> None:
    streams = {name: [Arrival(0, 0.0, HARD, ""), Arrival(1, 1.0, SUPPORT, "")] for name in (ABLATED, "even")}
    mixes = {name: Mix(name, {"reasoning": 1.0}, 0.98) for name in streams}
    runs = plan(mixes, streams, ablation=2, frontier=2, timed=streams)
    assert sum(each.paced for each in runs) == 2
    assert len({each.arm.tenant for each in runs}) == len(runs) == len({each.name for each in runs})
    assert all(each.ask.correct for run in runs if "frontier" in run.name for each in run.stream)


def test_repeats_come_after_all_others_under_numbers_of_their_own() -> None:
    stream = [Arrival(at, float(at), SUPPORT, "") for at in range(8)]
    again = with_repeats(stream)[8:]
    assert [each.index for each in again] == [-1, -2]
    assert all(each.seconds > 7.0 for each in again)


def test_requests_say_what_may_answer_and_how_long_they_can_wait() -> None:
    arm = Arm("t", 0.98)
    assert request_of(Arrival(0, 0.0, HARD, ""), arm).policy.quality_target == 0.98
    assert not request_of(Arrival(0, 0.0, SUPPORT, ""), arm).policy.HasField("quality_target")
    bulk = Arrival(0, 0.0, replace(SUPPORT, workload="bulk"), "")
    assert request_of(bulk, arm).policy.completion_window.seconds == 86_400
    assert not request_of(bulk, replace(arm, batch=False)).policy.HasField("completion_window")


def test_the_peer_is_asked_the_same_with_passages_before_the_question() -> None:
    body = body_of(RAG, "mix")
    assert body["messages"][-1]["content"].startswith("Context:\n[1] Title\n")
    assert body["messages"][-1]["content"].endswith("\n\nWhere is my card?")
    assert body_of(HARD, "mix")["model"] != body["model"]


def test_the_peers_costs_are_of_the_same_prices() -> None:
    small = prices(MAIN)["gpt-4o-mini"]
    assert cost(small, 1_000_000, 0, 0) == 150_000_000
    assert cost(small, 1_000_000, 1_000_000, 1_000_000) == 75_000_000 + 600_000_000
