"""Perplexity over windows, agreement, the task, and the file that keeps them."""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models import evaluate, evaluation
from models.evaluation import Reading, agreement, compared, windows
from models.folders import STAMP, folder_of, stamp_of
from models.texts import PROMPTS, held_out, questions
from services.inference.model_folder import EVALUATION, FolderError, read_evaluation


@given(st.integers(1, 300), st.integers(1, 60), st.integers(1, 60))
def test_windows_score_each_token_once_and_with_what_stands_before_it(count: int, length: int, stride: int) -> None:
    length, stride = max(length, stride), min(length, stride)
    ids = list(range(1000, 1000 + count))
    scored: list[int] = []
    for window, start in windows(ids, length, stride, first=7):
        assert window[0] == 7
        assert len(window) <= length + 1
        at = window[1] - 1000
        assert window[1:] == ids[at : at + len(window) - 1], "an unbroken piece of the text"
        scored += window[start:]
    assert scored == ids


def test_a_window_gives_later_tokens_at_least_the_overlap_before_them() -> None:
    parts = windows(list(range(100)), length=40, stride=10, first=-1)
    assert [start for _, start in parts] == [1, *[31] * (len(parts) - 1)]
    with pytest.raises(ValueError, match="does not fit"):
        windows([1, 2], length=4, stride=5, first=0)


def test_perplexity_and_agreement() -> None:
    reference = Reading([math.log(0.5)] * 4, [1, 2, 3, 4])
    other = Reading([math.log(0.25)] * 4, [1, 2, 3, 9])
    assert reference.perplexity == pytest.approx(2.0)
    assert agreement(other, reference) == 0.75
    found = compared(other, reference)
    assert found == {"perplexity": 4.0, "reference_perplexity": 2.0, "perplexity_ratio": 2.0, "agreement": 0.75}
    with pytest.raises(ValueError, match="longer"):
        agreement(Reading([0.0], [1]), reference)


def test_the_file_is_what_the_gate_reads(tmp_path: Path) -> None:
    evaluation.write(tmp_path, {"perplexity_ratio": 1.02, "agreement": 0.95, "weights_sha256": "d"})
    found = read_evaluation(tmp_path)
    assert found is not None
    assert (found.perplexity_ratio, found.agreement, found.weights_sha256) == (1.02, 0.95, "d")
    assert [path.name for path in tmp_path.iterdir()] == [EVALUATION]


def test_the_shipped_texts() -> None:
    prompts: list[str] = json.loads(PROMPTS.read_text("utf-8"))
    korean = [any("가" <= letter <= "힣" for letter in prompt) for prompt in prompts]
    assert korean == [False, True] * (len(prompts) // 2)
    assert len(set(prompts)) == len(prompts)
    for prompt in prompts:
        assert prompt not in held_out(), "what calibrates does not measure"
        assert prompt not in dict(questions())
    assert len({question for question, _ in questions()}) == len(questions())
    assert evaluate.right(["Paris, of course"] + ["I do not know"] * (len(questions()) - 1)).count(True) == 1
    assert all(word == word.lower() for _, accept in questions() for word in accept)


def folder(path: Path, config: dict[str, Any] | None = None) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config or {}))
    return path


def test_folders_are_found_by_name_and_by_path(tmp_path: Path) -> None:
    made = folder(tmp_path / "small")
    assert folder_of("small", tmp_path) == made
    assert folder_of(str(made), tmp_path / "elsewhere") == made
    with pytest.raises(FolderError, match=r"no model 'big'; .* holds small"):
        folder_of("big", tmp_path)
    with pytest.raises(FolderError, match="make models"):
        folder_of("big", tmp_path / "elsewhere")
    assert stamp_of(made) == {}
    (made / STAMP).write_text('{"source_folder": "plain"}')
    assert stamp_of(made) == {"source_folder": "plain"}


def measured(quantized: int, likeliest: list[int], answers: str) -> dict[str, Any]:
    return {
        "engine": "vllm 1", "device": "cpu", "quantized_layer_count": quantized, "layer_count": 4,
        "logprobs": [math.log(0.5)] * 4, "likeliest": likeliest, "answers": [answers] * len(questions()),
        "resident_bytes": 10_000_000, "tokens_per_second": {"1": 5.0},
    }  # fmt: skip


CLAIM = {"quantization_config": {"quant_method": "gptq", "bits": 8}}


def test_an_evaluation_compares_both_and_is_kept_beside_the_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small, plain = folder(tmp_path / "small", CLAIM), folder(tmp_path / "plain")
    (small / STAMP).write_text('{"source_folder": "plain", "recipe": "gptq"}')
    found = {small: measured(4, [1, 2, 3, 9], "Paris"), plain: measured(0, [1, 2, 3, 4], "Paris and Rome")}

    def measure(folder: Path, text: Path, options: argparse.Namespace, scratch: Path) -> dict[str, Any]:
        assert text.read_text("utf-8") == held_out()
        return found[folder]

    monkeypatch.setattr(evaluate, "measure", measure)
    assert evaluate.main(["small", "--models-dir", str(tmp_path), "--json", str(tmp_path / "out.json")]) == 0
    result = json.loads((small / EVALUATION).read_text())
    assert (result["perplexity_ratio"], result["agreement"], result["recipe"]) == (1.0, 0.75, "gptq")
    assert result["task"] == {"count": 24, "right": 1, "reference_right": 2, "same_answer": 0}
    assert json.loads((tmp_path / "out.json").read_text())["reference"] == "plain"
    assert "75.00%" in capsys.readouterr().out

    found[small] = measured(0, [1, 2, 3, 4], "Paris")
    (small / EVALUATION).unlink()
    assert evaluate.main(["small", "--models-dir", str(tmp_path)]) == 1
    assert "quantized none of its layers" in capsys.readouterr().err
    assert not (small / EVALUATION).exists()


def test_arguments_that_do_not_fit_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate.main(["small", "--models-dir", str(tmp_path), "--stride", "9", "--window", "4"]) == 1
    assert "--stride 9 does not fit --window 4" in capsys.readouterr().err
    assert evaluate.main(["small", "--models-dir", str(tmp_path)]) == 1
    assert "there is no model 'small'" in capsys.readouterr().err
