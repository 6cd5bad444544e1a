"""The end-to-end benchmark's tables, the article's claims, README's table: they say what the result says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import headline
from bench.claims import CLAIMS, NOT, alone, claims_table
from bench.endtoend_tables import endtoend_tables, verdict
from bench.result import Result
from bench.sheets import Sheet, percent
from bench.tables import TABLES, main, rendered
from tests.unit.bench.endtoend_result import small_result


def test_every_system_of_a_mix_has_a_row_with_intervals() -> None:
    lines = endtoend_tables(small_result().as_json()).splitlines()
    assert (
        "| support_heavy | Tenth | 2000 | 0.081 [0.073, 0.089] | 0.091 [0.081, 0.101] |  | 0.111 | 1.137 "
        "| 0.993 [0.981, 1.003] | 0.257 |"
    ) in lines
    assert any(line.startswith("| adversarial | LiteLLM | 2000 | 0.016 ") for line in lines)
    assert any("if the strong model were other-model" in line for line in lines)


@pytest.mark.parametrize(
    "said",
    [
        "| support_heavy | Tenth | 45.9% | 27.6% | 18.4% | 0.0% | 0.0% | 0.0% | 0.001% | 8.1% |",
        "| routing | 500 | 0.700 [0.650, 0.750] | 1.000 | 0.700 [0.650, 0.750] | 1.000 |",
        f"| adversarial | 80% | 400{' | 0.400 [0.100, 0.600] | 0.800 [0.700, 1.000]' * 2} |",
        "| support_heavy | miss | 31.4 | 141 | 80 |  |  |  | 2.5 |  | 80 |",
        "| support_heavy | 8.1 | 2.2 |  |  | 5.4 |",
        "| support_heavy | rag | 200 |  | 0.271 |  |  |  |  |",
        "| main | <b>strong</b> | a \\| list | 10 | 30 |  |  |  |  |",
        "| support_heavy | 0.55 | 0.00 | 0.00 | 0.00 | 0.00 | 0.98 | 2000 | 900 |",
        "- held out side only: cache/one, router/two",
        "Not measured: litellm: not <installed>.",
    ],
)
def test_layers_ablation_frontier_latency_and_assumptions_are_printed(said: str) -> None:
    assert said in endtoend_tables(small_result().as_json()).splitlines()


def test_the_verdict_is_the_figures() -> None:
    lines = verdict(small_result().as_json()).splitlines()
    assert lines[0] == (
        "- support_heavy: 8.1% [7.3%, 8.9%] of the bill: at most a tenth, 99.3% of the quality, which is known of 26% "
        "of the requests (98% was asked for)."
    )
    assert "26.7% [24.0%, 29.4%] of the bill: more than a tenth" in lines[1]
    assert "31.0%" in lines[2]


def test_a_claim_needs_its_whole_interval() -> None:
    result = small_result()
    result.add("support_heavy/ours/cost_ratio", 0.089, "ratio", 100, (0.035, 0.156))
    assert "8.9% [3.5%, 15.6%] of the bill: a tenth is in the interval" in verdict(result.as_json())


def test_runs_with_other_names_are_no_mixes() -> None:
    assert not any(line.startswith("| additivity") for line in endtoend_tables(small_result().as_json()).splitlines())


def test_a_table_of_uneven_rows_is_refused() -> None:
    with pytest.raises(ValueError, match="odd: 1 cells under 2 titles"):
        Sheet("odd", ("a", "b"), 1, [("x",)]).markdown()


@pytest.mark.parametrize(("value", "said"), [(None, ""), (-0.00001, "0.0%"), (0.1234, "12.3%"), (-0.2, "-20.0%")])
def test_percentages(value: float | None, said: str) -> None:
    assert percent(value) == said


def test_claims_stand_beside_what_each_benchmark_measured() -> None:
    cache, batch, engine = (Result(name, quick=False) for name in ("cache", "batch", "inference"))
    cache.add("banking77/ours_faq/hit_rate", 0.6, "ratio", 900)
    cache.add("banking77/ours_faq/wrong_per_1000", 1.43, "per 1000", 900)
    batch.add("local_lane/ours/speedup_vs_one_at_a_time", 4.321, "x", 3)
    engine.add("batching/vllm/speedup_c32", 9.5, "x", 3)
    engine.add("int8/vllm/weights_ratio", 0.606, "ratio", 1)
    results = {each.bench: each.as_json() for each in (cache, batch, engine, small_result())}
    lines = {line.split(" | ")[0].removeprefix("| "): line for line in claims_table(results).splitlines()}
    assert (
        "30.0% of the bill [25.0%, 35.0%], 100.0% of the quality where it is known | banking77 (faq): "
        "60.0% of requests, 1.4 wrong in 1,000 |"
    ) in lines["cache"]
    assert "4.32 times the throughput of one at a time; the engine alone, 32 at once: 9.50 times one" in lines["batch"]
    assert "int8: 39.4% of the weights |" in lines["quantization"]
    assert f"| {NOT} |" in lines["routing"]


@pytest.mark.parametrize("layer", [claim.layer for claim in CLAIMS])
def test_what_was_not_run_is_not_measured(layer: str) -> None:
    assert alone(layer, {}) == NOT


def test_the_document_is_checked_and_quick_runs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    document, results = tmp_path / "page.md", tmp_path / "results"
    results.mkdir()
    document.write_text("a\n<!-- bench:endtoend -->\nold\n<!-- /bench:endtoend -->\nz\n", "utf-8")
    arguments = ["--document", str(document), "--results", str(results)]
    (results / "endtoend.json").write_text(json.dumps(small_result(quick=True).as_json()), "utf-8")
    assert main(arguments) == 1
    assert "a quick run is not quoted" in capsys.readouterr().err
    assert "\nold\n" in document.read_text("utf-8")
    (results / "endtoend.json").write_text(json.dumps(small_result().as_json()), "utf-8")
    assert main([*arguments, "--check"]) == 1
    assert "\nold\n" in document.read_text("utf-8")
    assert main(arguments) == 0
    assert main([*arguments, "--check"]) == 0
    assert TABLES["endtoend"](json.loads((results / "endtoend.json").read_text("utf-8"))) in document.read_text("utf-8")


def test_quick_results_are_no_part_of_the_claims(tmp_path: Path) -> None:
    text = "<!-- bench:claims -->\n<!-- /bench:claims -->"
    (tmp_path / "endtoend.json").write_text(json.dumps(small_result(quick=True).as_json()), "utf-8")
    assert "of the bill" not in rendered(text, tmp_path)[0].replace("so the bill falls", "")
    (tmp_path / "endtoend.json").write_text(json.dumps(small_result().as_json()), "utf-8")
    assert "30.0% of the bill [25.0%, 35.0%]" in rendered(text, tmp_path)[0]


def test_the_readmes_table_is_written_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    block = "x\n<!-- bench:headline:begin (by hand) -->\nold\n<!-- bench:headline:end -->\ny\n"
    pages = [tmp_path / "R.md", tmp_path / "R.ko.md"]
    for page in pages:
        page.write_text(block, "utf-8")
    result = tmp_path / "endtoend.json"
    arguments = ["--result", str(result), *map(str, pages)]
    assert headline.main(arguments) == 1
    result.write_text(json.dumps(small_result(quick=True).as_json()), "utf-8")
    assert headline.main(arguments) == 1
    assert [page.read_text("utf-8") for page in pages] == [block, block]
    result.write_text(json.dumps(small_result().as_json()), "utf-8")
    assert headline.main([*arguments, "--check"]) == 1
    assert headline.main(arguments) == 0
    assert headline.main([*arguments, "--check"]) == 0
    english, korean = (page.read_text("utf-8") for page in pages)
    row = "| Tenth | **8.1%** [7.3%, 8.9%] | 9.1% [8.1%, 10.1%] | 11.1% | 99.3% [98.1%, 100.3%] | 26% |"
    assert f"| help desk {row}" in english
    assert f"| 고객 상담 위주 {row}" in korean
    assert english.startswith("x\n<!-- bench:headline:begin (by hand) -->\n| mix")
    assert english.endswith("<!-- bench:headline:end -->\ny\n")
    assert "4,000 requests" in english
    pages[0].write_text("no block", "utf-8")
    assert headline.main(arguments) == 1
    assert "no block" in capsys.readouterr().err
