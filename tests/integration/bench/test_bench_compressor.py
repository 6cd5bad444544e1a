"""A quick run of the compressor bench on a few made-up rows, with the real embedder and the real compressor."""

from __future__ import annotations

import gzip
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench import compressor

MODELS = Path(os.environ.get("TENTH_MODELS_DIR", ".models")).absolute()
ANIMALS = ("otter", "heron", "badger", "lynx", "marten", "adder", "toad", "newt", "shrew", "vole", "stoat", "hare")
Run = Callable[..., tuple[int, Mapping[str, Any]]]


def _write(data: Path, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    (data / "compressor").mkdir(parents=True, exist_ok=True)
    with gzip.open(data / "compressor" / f"{name}.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    _write(
        folder,
        "nq_gold_passages",
        [
            {
                "id": f"nq/{number}",
                "question": f"where does the {animal} sleep in winter",
                "answers": [f"hollow {number}"],
                "gold_title": animal.title(),
                "gold_text": f"The {animal} lives up north. In winter the {animal} sleeps in hollow {number}. It eats.",
            }
            for number, animal in enumerate(ANIMALS)
        ],
    )
    records = [[f"key-{number:04d}-a", f"value-{number}"] for number in range(30)]
    _write(
        folder, "kv_retrieval_75", [{"id": "1", "ordered_kv_records": records, "key": "key-0007-a", "value": "value-7"}]
    )
    _write(folder, "awesome_prompts", [{"id": "1", "prompt": "Be brief.\n\n\n\nAnswer in French.   \n"}])
    turns = [
        {"id": f"D1:{at}", "speaker": ("Ann", "Bob")[at % 2], "text": f"We met at place {at}.", "image_caption": None}
        for at in range(1, 31)
    ]
    asked = {"question": "Who met at place 3?", "answer": "Bob", "evidence": ["D1:3"], "category": 4}
    session = {"session": 1, "date": "1:56 pm on 8 May, 2023", "turns": turns}
    _write(
        folder,
        "locomo10_history",
        [{"id": "made/up", "speakers": ["Bob", "Ann"], "sessions": [session], "qa": [asked]}],
    )
    (folder / "compressor" / "beerqa_1000.jsonl.gz").write_bytes(b"not gzip")
    return folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object, models: Path = MODELS) -> tuple[int, Mapping[str, Any]]:
        file = tmp_path / "compressor.json"
        named = ["--quick", "--json", file, "--models-dir", models, *arguments]
        monkeypatch.setattr(sys, "argv", ["bench.compressor", *map(str, named)])
        status = compressor.main()
        return status, json.loads(file.read_text("utf-8"))

    return run


def test_all_that_is_there_is_measured_and_the_rest_is_named(run: Run, data: Path, tmp_path: Path) -> None:
    parts = [part for part in compressor.PARTS if part not in ("speed", "local_model", "tokenwise")]
    status, result = run("--data", data, "--plots", tmp_path / "plots", "--only", *parts)
    assert status == 0
    assert result["bench"] == "compressor"
    assert result["quick"] is True
    value = {name: metric["value"] for name, metric in result["metrics"].items()}
    for system in ("off", "bm25_top3", "ours_safe", "ours_balanced", "ours_aggressive", "ours_at_60", "ours_at_50"):
        for measure in ("tokens_saved", "answer_kept"):
            assert 0 <= value[f"nq_gold_passages/{system}/{measure}"] <= 1
    assert value["nq_gold_passages/ours_safe/answer_kept"] == 1
    assert value["kv_retrieval_75/ours_safe/answer_kept"] == 1
    for share in (25, 50, 75):
        assert value[f"locomo10_history/ours_at_{share}/evidence_kept"] == 1
        assert value[f"locomo10_history/last_n_at_{share}/evidence_kept"] == 0
    assert value["awesome_prompts/ours_safe/tokens_saved"] > 0
    assert value["own_prompts_ko/ours_safe/protected_kept"] == 1
    skipped = "\n".join(result["skipped"])
    for said in (
        "speed: not asked for",
        "beerqa_1000: cannot be read",
        "korquad1_dev_ko: no file",
        "history, mtrag_un_multiturn: no file",
        "net_dollars: no sharegpt_multiturn_en, mtrag_un_multiturn",
    ):
        assert said in skipped
    drawn = {file.name for file in (tmp_path / "plots").iterdir()}
    assert drawn == {"compressor_nq_gold_passages.png", "compressor_locomo10_history.png"}
    assert (tmp_path / "plots" / "compressor_nq_gold_passages.png").read_bytes().startswith(b"\x89PNG")


def test_without_models_words_choose_and_what_needs_vectors_is_named(run: Run, data: Path, tmp_path: Path) -> None:
    status, result = run("--data", data, "--held-out", "--only", "nq_gold_passages", models=tmp_path)
    assert status == 0
    assert result["assumptions"]["rows"] == "held out of fitting"
    assert 0 < result["metrics"]["nq_gold_passages/off/answer_kept"]["n"] < len(ANIMALS)
    assert "nq_gold_passages/ours_words_safe/answer_kept" in result["metrics"]
    assert "nq_gold_passages/ours_safe/answer_kept" not in result["metrics"]
    assert any(item.startswith("what needs multilingual-e5-small") for item in result["skipped"])


def test_nothing_to_measure_is_exit_code_1(run: Run, tmp_path: Path) -> None:
    status, result = run("--only", "nq_gold_passages", models=tmp_path)
    assert status == 1
    assert result["metrics"] == {}
    assert "everything else: no --data" in result["skipped"]
    parts = ("speed", "net_dollars", "local_model", "tokenwise")
    status, result = run("--data", tmp_path, "--only", *parts, models=tmp_path)
    assert status == 1
    assert {f"{part}: no nq_gold_passages" for part in ("speed", "local_model", "tokenwise")} <= {*result["skipped"]}


def test_an_unknown_part_is_refused(run: Run) -> None:
    with pytest.raises(SystemExit) as refused:
        run("--only", "everything")
    assert refused.value.code == 2
