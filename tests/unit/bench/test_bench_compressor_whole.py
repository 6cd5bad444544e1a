"""The bench of the whole: skipped without data, figures with it."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from bench.compressor_whole import SET, measure
from bench.result import Result
from services.compressor.weights import load


def test_without_the_set_it_is_skipped(tmp_path: Path) -> None:
    result = Result("compressor", quick=True)
    measure(result, tmp_path, 7, load())
    assert result.metrics == {}
    assert result.skipped == [f"whole: no {SET}"]


def test_every_figure_is_there(tmp_path: Path) -> None:
    folder = tmp_path / "compressor"
    folder.mkdir()
    with gzip.open(folder / f"{SET}.jsonl.gz", "wt", encoding="utf-8") as lines:
        for number in range(40):
            text = f"The tower of town {number} was built in {1800 + number} by the guild of masons. " * 12
            row = {
                "id": str(number),
                "question": f"when was the tower of town {number} built",
                "answers": [str(1800 + number)],
                "gold_title": f"Town {number}",
                "gold_text": text,
                "long_answer": text,
            }
            lines.write(json.dumps(row) + "\n")
    result = Result("compressor", quick=True)
    measure(result, tmp_path, 7, load())
    assert {"whole/safe/p50_ms_4k", "whole/safe/ms_200k_chunks", "whole/aggressive/mb_200k_history"} <= set(
        result.metrics
    )
    assert len(result.metrics) == 2 + 12
    assert all(metric["value"] >= 0 for metric in result.metrics.values())
