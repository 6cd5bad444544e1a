"""The router bench over small files: with the real embedder and the shipped heads, and without either."""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bench import router
from bench.router_heads import Loaded, load
from services.router.datasets import held_out, read
from services.router.heads import Heads

MODELS = Path(os.environ.get("TENTH_MODELS_DIR", ".models")).absolute()
CATALOG = Path("deploy/catalog.yaml").absolute()
EMBEDDER_VERSION = "multilingual-e5-small@2-int8"
Run = Callable[..., tuple[int, Mapping[str, Any]]]


def _write(data: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    (data / "router").mkdir(parents=True, exist_ok=True)
    with gzip.open(data / "router" / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _questions(count: int) -> list[tuple[str, bool]]:
    """Every third is a calculation."""
    return [
        (f"What is {place} + {place * 7} * 3, minus 12%?", True)
        if place % 3 == 0
        else (f"Who wrote book {place}?", False)
        for place in range(count)
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    questions = _questions(60)
    _write(
        folder,
        "routellm_mmlu",
        [
            {
                "id": place, "prompt": text, "subject": "sums" if hard else "books",
                "weak_correct": int(not hard), "strong_correct": 1, "contaminated": 0,
            }
            for place, (text, hard) in enumerate(questions)
        ],
    )  # fmt: skip
    _write(
        folder,
        "brand_new",
        [
            {
                "question": text,
                "results": {
                    "mistralai/Mixtral-8x7B-Instruct-v0.1": {"correct": not hard, "cost_usd": 0.0001},
                    "openai/gpt-4-1106-preview": {"correct": True, "cost_usd": 0.004},
                },
            }
            for text, hard in questions
        ],
    )
    _write(folder, "odd", [{"question": "what", "answer": "that"}])
    (folder / "router" / "torn.jsonl.gz").write_bytes(b"not gzip")
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TENTH_ROUTER_CATALOG_FILE", str(CATALOG))

    def run(*arguments: object, loaded: Loaded | None = None, models: Path = MODELS) -> tuple[int, Mapping[str, Any]]:
        file = tmp_path / "router.json"
        named = ["--quick", "--json", file, "--models-dir", models, *arguments]
        monkeypatch.setattr(sys, "argv", ["bench.router", *map(str, named)])
        if loaded is not None:
            monkeypatch.setattr(router, "load", lambda *, held_out: loaded)
        status = router.main()
        return status, json.loads(file.read_text("utf-8"))

    return run


def test_a_quick_run(data: Path, run: Run, tmp_path: Path) -> None:
    status, result = run("--data", data, "--plots", tmp_path / "plots")
    assert status == 0
    assert result["quick"] is True
    metrics, skipped = result["metrics"], result["skipped"]
    for system in ("ours_in_domain", "ours_transfer", "task_prior", "knn"):
        assert metrics[f"routellm_mmlu/{system}/apgr"]["n"] == 60
        low, high = metrics[f"routellm_mmlu/{system}/apgr"]["ci95"]
        assert low <= metrics[f"routellm_mmlu/{system}/apgr"]["value"] <= high
    assert metrics["routellm_mmlu/random/apgr"]["value"] == pytest.approx(0.5)
    assert "brand_new/ours_in_domain/apgr" not in metrics
    # In the toy set the small model fails on sums and on nothing else: whoever learns from its rows sees that.
    assert metrics["routellm_mmlu/task_prior/apgr"]["value"] > 0.75
    assert 0.0 <= metrics["brand_new/ours_transfer/apgr"]["value"] <= 1.0
    assert 0.0 < metrics["brand_new/ours_transfer/cost_ratio"]["value"] <= 1.0
    assert metrics["decision/ours/p50_us"]["n"] == 60
    assert metrics["decision/ours/p50_us"]["value"] > metrics["decision/features/p50_us"]["value"] > 0
    assert any(text.startswith("brand_new/ours_in_domain: the heads were not trained on this set") for text in skipped)
    assert any(text.startswith("odd: cannot be read: odd: no outcome of any model") for text in skipped)
    assert any(text.startswith("torn: cannot be read") for text in skipped)
    assert "routellm_gsm8k: no router/routellm_gsm8k.jsonl.gz in the evaluation data" in skipped
    assert metrics["quality_target/routellm_mmlu/ratio_95"]["n"] > 0
    for picture in ("router_routellm_mmlu", "router_brand_new", "router_brand_new_costs"):
        assert (tmp_path / "plots" / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
    assert list((tmp_path / ".data" / "bench" / "vectors").glob("router_routellm_mmlu-*.npz"))


def test_held_out_rows_only(data: Path, run: Run) -> None:
    expected = sum(map(held_out, read(data, "routellm_mmlu")))
    assert 0 < expected < 60
    status, result = run("--data", data, "--held-out", "--only", "routellm_mmlu")
    assert status == 0
    assert result["assumptions"]["rows"] == "held out of training"
    assert result["metrics"]["routellm_mmlu/ours_transfer/apgr"]["n"] == expected
    assert result["metrics"]["routellm_mmlu/knn_in_domain/apgr"]["n"] == expected
    assert {"brand_new: not asked for", "decision: not asked for"} <= set(result["skipped"])
    assert not [name for name in result["metrics"] if name.startswith("decision/")]


def test_heads_of_other_vectors_are_not_measured(data: Path, run: Run) -> None:
    heads = load(held_out=False).heads
    assert isinstance(heads, Heads)
    other = Loaded(replace(heads, embedder_version="other@1"), "other.npz", {})
    _, result = run("--data", data, "--only", "routellm_mmlu", loaded=other)
    assert "routellm_mmlu/ours_transfer/apgr" not in result["metrics"]
    assert "routellm_mmlu/knn/apgr" in result["metrics"]
    assert (
        f"ours: the heads were trained on vectors of other@1, the embedder is {EMBEDDER_VERSION}" in result["skipped"]
    )


def test_without_heads_and_embedder_the_rest_is_measured(data: Path, run: Run, tmp_path: Path) -> None:
    status, result = run("--data", data, models=tmp_path / "nowhere", loaded=Loaded(None))
    assert status == 0
    assert "routellm_mmlu/length/apgr" in result["metrics"]
    assert "routellm_mmlu/knn/apgr" not in result["metrics"]
    assert "decision/features/p50_us" in result["metrics"]
    assert "decision/ours/p50_us" not in result["metrics"]
    assert "ours: no trained heads" in result["skipped"]


def test_nothing_to_measure_is_a_failure(run: Run, tmp_path: Path) -> None:
    assert run()[0] == 1
    status, result = run("--data", tmp_path / "empty", models=tmp_path / "nowhere")
    assert status == 1
    assert result["metrics"] == {}
    assert "omnisbench: no router/omnisbench.jsonl.gz in the evaluation data" in result["skipped"]


def test_a_folder_without_heads_has_none(tmp_path: Path) -> None:
    assert load(held_out=False, folder=tmp_path) == Loaded(None)
