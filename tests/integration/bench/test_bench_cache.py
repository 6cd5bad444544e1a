"""A quick run of the cache bench on a few sentences, with the real embedder, the real store and the real decision."""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import cache

MODELS = Path(os.environ.get("TENTH_MODELS_DIR", ".models")).absolute()
SYSTEMS = ("article", "ours_strict", "ours_faq")
Run = Callable[..., tuple[int, Mapping[str, Any]]]

TOPICS = {
    "opening_hours": "when does the museum open on sundays",
    "lost_umbrella": "I left my umbrella in the reading room",
    "group_tickets": "do you sell tickets for school classes",
    "guided_tour": "is there a guided tour of the old harbour",
}
BEGINNINGS = ("", "", "", "", "hello, ", "please tell me, ", "good day, ", "excuse me, ")
"""Some ask in the very same words, so that every system has something to serve."""


def _write(data: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    (data / "cache").mkdir(parents=True, exist_ok=True)
    with gzip.open(data / "cache" / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    questions = [
        {"id": f"{intent}/{number}", "text": beginning + text, "intent": intent}
        for intent, text in TOPICS.items()
        for number, beginning in enumerate(BEGINNINGS)
    ]
    strange = ["why do cats purr", "name three rivers of Spain", "who invented the zip fastener", "tell me a riddle"]
    _write(
        folder,
        "clinc150",
        [*questions, *({"id": f"o/{number}", "text": text, "intent": "oos"} for number, text in enumerate(strange))],
    )
    _write(
        folder,
        "gptcache_mock",
        [
            {"id": "1", "a": "A kettle heats water.", "b": "A kettle heats water.", "same": 1},
            {"id": "2", "a": "A kettle heats water.", "b": "Bees live in colonies.", "same": 0},
        ],
    )
    _write(
        folder,
        "klue_nli_ko",
        [
            {"id": "1", "a": "가게는 아홉 시에 문을 연다.", "b": "고양이가 창가에서 잔다.", "label": "neutral"},
            {"id": "2", "a": "가게는 아홉 시에 문을 연다.", "b": "가게는 문을 열지 않는다.", "label": "contradiction"},
        ],
    )
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, Mapping[str, Any]]:
        file = tmp_path / "cache.json"
        named = ["--quick", "--json", file, "--models-dir", MODELS, *arguments]
        monkeypatch.setattr(sys, "argv", ["bench.cache", *map(str, named)])
        status = cache.main()
        return status, json.loads(file.read_text("utf-8"))

    return run


def test_a_quick_run(data: Path, run: Run, tmp_path: Path) -> None:
    parts = ("clinc150", "gptcache_mock", "klue_nli_ko", "qqp_pairs")
    status, result = run("--data", data, "--plots", tmp_path / "plots", "--only", *parts)
    assert status == 0
    assert result["quick"] is True
    metrics = result["metrics"]
    for system in SYSTEMS:
        stream = f"clinc150/{system}"
        assert metrics[f"{stream}/hit_rate"]["n"] == 18
        # The questions of a topic differ in their greeting at most, and the topics in everything.
        assert metrics[f"{stream}/precision"]["value"] == 1.0
        assert metrics[f"{stream}/wrong_per_1000"]["value"] == 0
        assert 0 < metrics[f"{stream}/attainable"]["value"] < 1
        assert metrics[f"{stream}/oos_served_per_1000"]["value"] == 0
        low, high = metrics[f"{stream}/hit_rate"]["ci95"]
        assert low < metrics[f"{stream}/hit_rate"]["value"] < high
        assert metrics[f"gptcache_mock/{system}/precision"]["value"] == 1.0
        assert metrics[f"gptcache_mock/{system}/recall"]["value"] == 1.0
        assert metrics[f"klue_nli_ko/{system}/neutral_served_rate"]["value"] == 0.0
    for system in ("ours_strict", "ours_faq"):
        assert metrics[f"clinc150/{system}/exact_hit_rate"]["value"] > 0
    assert metrics["klue_nli_ko/ours_strict/contradiction_served_rate"]["value"] == 0.0
    assert "qqp_pairs: no cache/qqp_pairs.jsonl.gz in the evaluation data" in result["skipped"]
    assert "lookup: not asked for" in result["skipped"]
    picture = tmp_path / "plots" / "cache_clinc150.png"
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_vectors_are_kept_for_the_next_run(data: Path, run: Run, tmp_path: Path) -> None:
    _, first = run("--data", data, "--only", "clinc150")
    kept = {file: file.stat().st_mtime_ns for file in (tmp_path / ".data" / "bench" / "vectors").iterdir()}
    assert kept
    _, second = run("--data", data, "--only", "clinc150")
    assert second["metrics"] == first["metrics"]
    assert {file: file.stat().st_mtime_ns for file in kept} == kept


def test_what_the_gate_keeps_out_is_a_miss(run: Run, tmp_path: Path) -> None:
    text = "what is the weather like today"
    _write(tmp_path, "gptcache_mock", [{"id": "1", "a": text, "b": text, "same": 1}])
    _, result = run("--data", tmp_path, "--only", "gptcache_mock")
    assert result["metrics"]["gptcache_mock/article/recall"]["value"] == 1.0
    assert result["metrics"]["gptcache_mock/ours_strict/recall"]["value"] == 0.0
    assert result["metrics"]["gptcache_mock/ours_strict/bypassed"]["value"] == 1.0


def test_nothing_to_measure_is_a_failure(run: Run) -> None:
    status, result = run("--only", "banking77")
    assert status == 1
    assert result["metrics"] == {}
