"""The retrieval bench measures what it says, on sets made up here."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

from bench.compressor_product import Product, shipped_plans
from bench.compressor_rag import KEYS, Choice, Tools, measure
from bench.result import Result
from services.compressor import weights
from tests.unit.bench.bench_words import Words


def write(folder: Path, name: str, rows: list[dict[str, Any]]) -> None:
    (folder / "compressor").mkdir(exist_ok=True)
    with gzip.open(folder / "compressor" / f"{name}.jsonl.gz", "wt", encoding="utf-8") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)


def tools() -> Tools:
    return Tools(Product(Words(), shipped_plans(), weights.load()), None, None)


def test_every_system_is_measured_and_what_is_absent_is_named(tmp_path: Path) -> None:
    animals = [
        "otter",
        "heron",
        "badger",
        "lynx",
        "marten",
        "adder",
        "toad",
        "newt",
        "shrew",
        "vole",
        "stoat",
        "hare",
        "kestrel",
        "plover",
        "curlew",
    ]
    passages: list[dict[str, Any]] = [
        {
            "id": f"nq/{number}",
            "question": f"where does the {animal} sleep in winter",
            "answers": [f"hollow {number}"],
            "gold_title": animal.title(),
            "gold_text": f"The {animal} lives up north. In winter the {animal} sleeps in hollow {number}. It eats.",
        }
        for number, animal in enumerate(animals)
    ]
    write(tmp_path, "nq_gold_passages", passages)
    records = [[f"key-{number:04d}-a", f"value-{number}"] for number in range(30)]
    write(tmp_path, KEYS, [{"id": "1", "ordered_kv_records": records, "key": "key-0007-a", "value": "value-7"}])
    result = Result("compressor", quick=False)
    lines = measure(result, tmp_path, Choice(False, False, 7), tools())
    value = {name: metric["value"] for name, metric in result.metrics.items()}
    assert value["nq_gold_passages/off/tokens_saved"] == 0
    assert value["nq_gold_passages/off/answer_kept"] == 1
    assert 0.6 < value["nq_gold_passages/bm25_top3/tokens_saved"] < 0.8
    assert value["nq_gold_passages/ours_words_safe/answer_kept"] == 1
    assert value["nq_gold_passages/ours_words_aggressive/tokens_saved"] > 0.3
    assert value[f"{KEYS}/ours_safe/answer_kept"] == 1
    assert value[f"{KEYS}/ours_safe/tokens_saved"] == 0
    assert value[f"{KEYS}/ours_balanced/answer_kept"] == 1
    assert value[f"{KEYS}/ours_balanced/tokens_saved"] > 0.9
    assert value["nq_gold_passages/ours_words_at_60/tokens_saved"] >= 0.6
    drawn = lines["nq_gold_passages"]
    assert set(drawn) == {"bm25", "ours_words"}
    assert drawn["bm25"].points[-1] == (0.0, 1.0)  # All ten chunks.
    assert drawn["ours_words"].operating["safe"] == (
        value["nq_gold_passages/ours_words_safe/tokens_saved"],
        value["nq_gold_passages/ours_words_safe/answer_kept"],
    )
    assert "beerqa_1000: no file" in result.skipped
    assert "nq_gold_passages/ours: no embedder" in result.skipped


def test_a_broken_file_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "compressor").mkdir()
    (tmp_path / "compressor" / "nq_gold_passages.jsonl.gz").write_bytes(b"no gzip")
    result = Result("compressor", quick=True)
    measure(result, tmp_path, Choice(True, False, 7), tools())
    assert any(item.startswith("nq_gold_passages: cannot be read") for item in result.skipped)


def test_only_what_is_asked_for_and_was_not_fitted_on_is_measured(tmp_path: Path) -> None:
    rows = [
        {
            "id": f"nq/{number}",
            "question": f"what is the height of tower {number}",
            "answers": [f"{number + 100} metres"],
            "gold_title": f"Tower {number}",
            "gold_text": f"Tower {number} stands by the sea. Its height is {number + 100} metres.",
        }
        for number in range(30)
    ]
    write(tmp_path, "nq_gold_passages", rows)
    result = Result("compressor", quick=False)
    measure(result, tmp_path, Choice(False, True, 7), tools(), ["nq_gold_passages"])
    unseen = result.metrics["nq_gold_passages/off/answer_kept"]["n"]
    assert 0 < unseen < 30
    assert not any(name.startswith(KEYS) for name in result.metrics)
    assert result.skipped == ["nq_gold_passages/article: no model", "nq_gold_passages/ours: no embedder"]
