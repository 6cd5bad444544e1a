"""The compressor's tables and pictures: what they hold, and when a reach is reached."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench.compressor import history_lines
from bench.compressor_cleanup import protected_kept
from bench.compressor_kept import keep, part_of
from bench.compressor_local import add
from bench.compressor_plots import Line, frontier
from bench.compressor_tables import compressor_tables
from bench.result import Result


def _tables(result: Result) -> list[str]:
    result.assumptions |= {
        "rows": "held out of fitting",
        "seed": 7,
        "embedder": "some-encoder",
        "tokens": "cl100k_base",
    }
    shape: dict[str, Any] = result.as_json()
    return compressor_tables(shape).splitlines()


@pytest.mark.parametrize(
    ("metric", "value", "said"),
    [
        ("nq_gold_passages/ours_at_60/answer_kept", 0.97, "yes"),
        ("nq_gold_passages/ours_at_60/answer_kept", 0.969, "**no**"),
        ("beerqa_1000/ours_at_50/answer_kept", 0.929, "**no**"),
        ("net_dollars/ours/min_nano_usd", 0.0, "yes"),
        ("net_dollars/ours/min_nano_usd", -1.0, "**no**"),
        ("net_dollars/ours/captured", 0.79, "**no**"),
        ("speed/ours/p50_ms_4k", 15.0, "yes"),
        ("speed/ours/p50_ms_4k", 15.1, "**no**"),
        ("speed/ours_history_200k/ms_cold", 1001.0, "**no**"),
        ("speed/ours_chunks_200k/mb_cold", 399.0, "yes"),
        ("mtrag_un_multiturn/ours_safe/answer_kept", 0.989, "**no**"),
    ],
)
def test_what_is_reached(metric: str, value: float, said: str) -> None:
    result = Result("compressor", quick=False)
    result.add(metric, value, "ratio", 100)
    rows = [line for line in _tables(result) if line.endswith(("| yes |", "| **no** |"))]
    assert [row.split(" | ")[-1].removesuffix(" |") for row in rows] == [said]


def test_safe_has_a_reach_on_every_set_but_saves_nothing_of_the_keys() -> None:
    result = Result("compressor", quick=False)
    for name, saved in (("nq_gold_passages", 0.37), ("kv_retrieval_75", 0.0), ("nq_gold_passages_gold_only", 0.0)):
        result.add(f"{name}/ours_safe/tokens_saved", saved, "ratio", 500, (saved, saved + 0.01))
        result.add(f"{name}/ours_safe/answer_kept", 1.0, "ratio", 500, (1.0, 1.0))
    lines = _tables(result)
    assert "| nq_gold_passages, safe: tokens saved |  | 0.370 [0.370, 0.380] | at least 0.35 | yes |" in lines
    assert "| kv_retrieval_75, safe: answers kept |  | 1.000 | at least 0.99 | yes |" in lines
    assert not [
        line for line in lines if line.startswith(("| kv_retrieval_75, safe: tokens", "| nq_gold_passages_gold_only,"))
    ]
    assert "| nq_gold_passages | 500 | Tenth, safe | 0.370 [0.370, 0.380] | 1.000 |" in lines


def test_history_by_share_of_tokens() -> None:
    result = Result("compressor", quick=False)
    for share, kept in ((10, 0.7), (25, 0.8), (50, 0.9), (75, 1.0)):
        result.add(f"locomo10_history/ours_at_{share}/evidence_kept", kept, "ratio", 347)
        result.add(f"locomo10_history_unseen/ours_at_{share}/evidence_kept", kept, "ratio", 347)
    lines = _tables(result)
    assert "| locomo10 | all evidence | 347 | Tenth | 0.700 | 0.800 | 0.900 | 1.000 |" in lines
    assert not [line for line in lines if "unseen" in line]
    line = history_lines(result, "locomo10_history")["ours"]
    assert line.points == [(0.9, 0.7), (0.75, 0.8), (0.5, 0.9), (0.25, 1.0)]
    assert line.operating == {"half": (0.5, 0.9)}


def test_dollars_by_style_and_application() -> None:
    result = Result("compressor", quick=False)
    for system, saved in (("ours", 0.1), ("always", -0.2), ("hindsight", 0.125)):
        result.add(f"net_dollars_gemini_h95/{system}/saved", saved, "ratio", 10)
        result.add(f"net_dollars_near/{system}/saved", saved, "ratio", 10)
    for system, worst in (("ours", 2_000_000.0), ("always", -3_000_000.0)):
        result.add(f"net_dollars_near/{system}/min_nano_usd", worst, "nano_usd", 10)
    lines = _tables(result)
    assert "| gemini |  |  |  |  |  |  | 0.100 of 0.125 |" in lines
    assert "| near | 0.100 | -0.200 | 0.125 | +0.0020 USD | -0.0030 USD |" in lines


def test_tables_of_nothing_are_left_out_and_what_was_skipped_is_said() -> None:
    result = Result("compressor", quick=False, skipped=["speed: not asked for"])
    lines = _tables(result)
    assert not [line for line in lines if line.startswith("|") and "---" not in line and "reached" not in line]
    assert "Not measured: speed: not asked for." in lines


def test_a_picture_names_where_systems_stand() -> None:
    lines = {
        "bm25": Line([(0.9, 0.5), (0.7, 0.87)], {"top 3": (0.7, 0.87)}),
        "ours": Line([(0.4, 1.0)], {"safe": (0.37, 1.0)}),
        "ours_words": Line([(0.1, 1.0)], {"safe": (0.08, 1.0)}),
    }
    picture = frontier("a set", "answers kept", lines)
    curve, dots, named = (layer["data"]["values"] for layer in picture["layer"])
    assert [(each["saved"], each["kept"]) for each in curve] == [(0.4, 1.0), (0.1, 1.0), (0.7, 0.87), (0.9, 0.5)]
    assert len(dots) == 3
    assert [each["text"] for each in named] == ["safe: 1.000 at 37%", "top 3: 0.870 at 70%"]


def test_what_the_local_model_still_answers() -> None:
    result = Result("compressor", quick=False)
    off, safe = [True, True, False, False], [True, False, True, False]
    add(result, [*off, *safe, *off, *off], 4, 7)
    value = {name: metric["value"] for name, metric in result.metrics.items()}
    assert value["local_model/off/answered"] == value["local_model/ours_safe/answered"] == 0.5
    assert value["local_model/ours_safe/answered_of_off"] == 0.5
    assert value["local_model/ours_safe/gained"] == 0.5
    assert value["local_model/ours_balanced/answered_of_off"] == 1.0
    assert "local_model/off/gained" not in value


@pytest.mark.parametrize(
    ("after", "kept"),
    [("See `a_b` at https://example.com/x.", True), ("See `a_b`.", False), ("https://example.com/x `a_b`", False)],
)
def test_protected_spans_stand_in_their_order(after: str, *, kept: bool) -> None:
    assert protected_kept("See  `a_b`  at https://example.com/x.", after) is kept


def test_parts_that_are_not_measured_again_are_kept_with_their_commit(tmp_path: Path) -> None:
    file = tmp_path / "compressor.json"
    known = {"rows": "held out of fitting", "seed": 7}
    earlier = Result("compressor", quick=False, assumptions=dict(known))
    for name in (
        "nq_gold_passages/off/answer_kept",
        "speed/ours/p50_ms_4k",
        "speed/ours/gone",
        "mtrag_un_multiturn_history/x/y",
    ):
        earlier.add(name, 1.0, "ratio", 10)
    earlier.skipped = ["speed: slow", "history, sharegpt_multiturn_ko: no file", "net_dollars: not asked for"]
    file.write_text(json.dumps(earlier.as_json() | {"commit": "abc"}), "utf-8")
    again = Result("compressor", quick=False, assumptions=dict(known))
    again.add("speed/ours/p50_ms_4k", 2.0, "ms", 10)
    again.skipped = ["nq_gold_passages: not asked for", "history: not asked for", "net_dollars: not asked for"]
    assert keep(again, file, ["speed"]) == ""
    assert {name: metric["value"] for name, metric in again.metrics.items()} == {
        "nq_gold_passages/off/answer_kept": 1.0, "speed/ours/p50_ms_4k": 2.0, "mtrag_un_multiturn_history/x/y": 1.0,
    }  # fmt: skip
    assert again.assumptions["kept"] == {"nq_gold_passages": "abc", "history": "abc"}
    assert again.skipped == ["history, sharegpt_multiturn_ko: no file", "net_dollars: not asked for"]
    assert "history: measured on commit abc." in _tables(again)
    # Kept once more: the first commit stays.
    file.write_text(json.dumps(again.as_json() | {"commit": "def"}), "utf-8")
    third = Result("compressor", quick=False, assumptions=dict(known))
    assert keep(third, file, ["history"]) == ""
    assert third.assumptions["kept"] == {"nq_gold_passages": "abc", "speed": "def"}


def test_nothing_is_kept_of_other_rows_or_of_no_file(tmp_path: Path) -> None:
    file = tmp_path / "compressor.json"
    again = Result("compressor", quick=False, assumptions={"rows": "held out of fitting", "seed": 7})
    assert keep(again, file, ["speed"]).startswith("nothing kept")
    other = Result("compressor", quick=True, assumptions={"rows": "held out of fitting", "seed": 7})
    other.add("speed/ours/p50_ms_4k", 1.0, "ms", 10)
    file.write_text(json.dumps(other.as_json()), "utf-8")
    assert "a quick run" in keep(again, file, [])
    assert again.metrics == {}


def test_every_metric_has_its_part() -> None:
    parts = {
        "nq_gold_passages_gold_only/ours_safe/answer_kept": "nq_gold_passages",
        "kv_retrieval_75/off/answer_kept": "kv_retrieval_75",
        "locomo10_history_unseen/ours_at_50/evidence_kept": "history",
        "sharegpt_multiturn_en_history/last_n_at_50/tokens_saved": "history",
        "net_dollars_gemini_h95/ours/saved": "net_dollars",
        "whole/safe/ms_200k_chunks": "speed",
        "own_prompts_ko/ours_safe/changed": "cleanup",
        "local_model/off/answered": "local_model",
    }
    assert {name: part_of(name) for name in parts} == parts
