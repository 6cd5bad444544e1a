"""Reading files of outcomes that nobody has seen: by the shape of their fields, marks by the set's scale."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from services.router.datasets import Row, read, set_names

TEXT = "Which of the two is heavier?"


def _read(folder: Path, rows: Sequence[Any]) -> list[Row]:
    (folder / "router").mkdir(exist_ok=True)
    with gzip.open(folder / "router" / "new.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return read(folder, "new")


@pytest.mark.parametrize(
    "fields",
    [
        pytest.param({"weak_correct": 0, "strong_correct": 1, "weak_model": "a", "strong_model": "b"}, id="named pair"),
        pytest.param({"scores": {"org/A": 0, "org/B": 1.0}}, id="scores"),
        pytest.param({"score": {"a": 0, "b": 1}}, id="score"),
        pytest.param({"results": {"a": {"passed": False}, "b": {"passed": True}}}, id="records by model"),
        pytest.param({"results": [{"model": "a", "correct": 0}, {"model": "b", "correct": 1}]}, id="list of records"),
        pytest.param({"models": {"a": {"accuracy": 0.0, "answer": "x"}, "b": {"accuracy": 1.0}}}, id="models"),
        pytest.param({"correct": {"a": False, "b": True}}, id="correct"),
        pytest.param({"a_correct": 0, "b_correct": 1}, id="columns"),
        pytest.param({"a_score": 0.0, "b_score": 1.0, "difficulty_score": 0.5, "judge": "x"}, id="more columns"),
    ],
)
def test_outcomes(tmp_path: Path, fields: Mapping[str, Any]) -> None:
    (row,) = _read(tmp_path, [{"id": "7", "prompt": TEXT, **fields}])
    assert row.text == TEXT
    assert row.row_id == "7"
    assert {model: row.quality[model] for model in ("a", "b")} == {"a": 0.0, "b": 1.0}


@pytest.mark.parametrize(
    "fields",
    [
        {"question": TEXT},
        {"instruction": TEXT},
        {"problem": TEXT},
        {"turns": [TEXT, "And why?"]},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": TEXT}]},
    ],
)
def test_questions(tmp_path: Path, fields: Mapping[str, Any]) -> None:
    (row,) = _read(tmp_path, [{**fields, "scores": {"a": 0, "b": 1}}])
    assert row.text == TEXT


@pytest.mark.parametrize(
    ("marks", "expected"),
    [
        ([0.5, 1.0], [0.5, 1.0]),
        # A mark of 1 is poor where others have 8.
        ([1.0, 8.0], [0.1, 0.8]),
        ([[1, 1], [10, None]], [0.1, 1.0]),
        ([{"1": 4, "2": 6}, {"1": 9, "2": 10}], [0.5, 0.95]),
        ([2.0, 5.0], [0.4, 1.0]),
        ([20, 95], [0.2, 0.95]),
        ([-1.0, 1.0], [0.0, 1.0]),
    ],
)
def test_marks_by_the_sets_scale(tmp_path: Path, marks: Sequence[Any], expected: Sequence[float]) -> None:
    rows = _read(tmp_path, [{"prompt": TEXT, "scores": {"a": mark}} for mark in marks])
    assert [row.quality["a"] for row in rows] == pytest.approx(expected)


@pytest.mark.parametrize(
    "fields",
    [
        {"scores": {"a": 0, "b": 1}, "cost_usd": {"a": 0.1, "b": 0.2}},
        {"scores": {"a": 0, "b": 1}, "costs": {"a": 0.1, "b": 0.2}},
        {"results": {"a": {"passed": 0, "cost_usd": 0.1}, "b": {"passed": 1, "cost": 0.2}}},
        {"a_correct": 0, "b_correct": 1, "a_cost_usd": 0.1, "b_cost_usd": 0.2},
    ],
)
def test_costs(tmp_path: Path, fields: Mapping[str, Any]) -> None:
    (row,) = _read(tmp_path, [{"prompt": TEXT, **fields}])
    assert row.cost_usd == {"a": 0.1, "b": 0.2}


def test_rows_that_say_nothing_are_left_out(tmp_path: Path) -> None:
    right = {"prompt": TEXT, "scores": {"a": 1}}
    rows = [right, {"prompt": TEXT}, {"prompt": TEXT, "scores": {"a": None}}, {**right, "contaminated": 1}, {"id": 1}]
    assert len(_read(tmp_path, rows)) == 1


def test_a_file_without_outcomes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no outcome of any model in 2 rows"):
        _read(tmp_path, [{"prompt": TEXT}, {"prompt": TEXT, "scores": {"a": "good"}}])
    with pytest.raises(ValueError, match="no JSON object"):
        _read(tmp_path, [["prompt", TEXT]])
    assert set_names(tmp_path) == ["new"]
