"""Quantizing a folder: what is refused, that nothing half-done stays, and what the result says of itself."""

from __future__ import annotations

import errno
import json
import shutil
import struct
from collections import namedtuple
from collections.abc import Sequence
from pathlib import Path

import pytest

from models import quantize, quantize_env
from models.folders import STAMP, stamp_of
from models.quantize import Job, QuantizeError, group_of, main, recipe_of
from models.quantize_runner import calibration
from services.inference.model_folder import FolderError, weights_sha256

Usage = namedtuple("Usage", "total used free")


def weights(folder: Path, *columns: int) -> None:
    held = {
        f"l{at}.q_proj.weight": {"dtype": "BF16", "shape": [8, width], "data_offsets": [0, 0]}
        for at, width in enumerate(columns)
    }
    held["model.embed_tokens.weight"] = {"dtype": "BF16", "shape": [8, 7], "data_offsets": [0, 0]}
    text = json.dumps(held).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    weights(folder, 576, 1536)
    return folder


def fake_rounding(source: Path, target: Path, scheme: str, group: int) -> dict[str, str]:
    target.mkdir()
    (target / "config.json").write_text("{}")
    shutil.copy(source / "model.safetensors", target)
    return {"compressed-tensors": "1"}


def job(source: Path, **changes: object) -> Job:
    given = {
        "source": source,
        "target": source.with_name("made"),
        "scheme": "int8",
        "recipe": "round-to-nearest",
        **changes,
    }
    return Job(**given)  # type: ignore[arg-type]  # the changes differ in type by field


@pytest.mark.parametrize(("columns", "group"), [((4096, 14336), 128), ((576, 1536), 32), ((128, 96), 32)])
def test_the_group_divides_every_layer(source: Path, columns: tuple[int, ...], group: int) -> None:
    weights(source, *columns)
    assert group_of(source) == group


def test_a_model_that_no_group_divides_is_told_to_use_int8(source: Path) -> None:
    weights(source, 100)
    with pytest.raises(QuantizeError, match="use int8"):
        group_of(source)


def test_recipes_belong_to_schemes() -> None:
    assert [recipe_of(scheme, "") for scheme in ("int8", "int4", "fp8")] == ["smoothquant-gptq", "awq-gptq", "dynamic"]
    with pytest.raises(QuantizeError, match="no recipe 'awq' for fp8; there are: dynamic"):
        recipe_of("fp8", "awq")


def test_a_finished_folder_says_what_made_it_from_what(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(quantize, "round_to_nearest", fake_rounding)
    arguments = ["small", "--scheme", "int4", "--recipe", "round-to-nearest", "--models-dir", str(source.parent)]
    assert main(arguments) == 0
    made = source.with_name("small-int4-round-to-nearest")
    assert stamp_of(made) == {
        "source_folder": "small",
        "source_weights_sha256": weights_sha256(source),
        "scheme": "int4",
        "recipe": "round-to-nearest",
        "group": 32,
        "versions": {"compressed-tensors": "1"},
    }
    assert "tenth model evaluate" in capsys.readouterr().out
    assert sorted(path.name for path in source.parent.iterdir()) == ["small", made.name]
    assert main(arguments) == 1
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "is full: make room"),
        (OSError(errno.EIO, "broken"), "broken"),
    ],
)
def test_a_failure_leaves_nothing(
    source: Path, monkeypatch: pytest.MonkeyPatch, error: OSError, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(source: Path, target: Path, scheme: str, group: int) -> dict[str, str]:
        target.mkdir()
        (target / "half").write_text("x")
        raise error

    monkeypatch.setattr(quantize, "round_to_nearest", fail)
    assert main(["small", "--scheme", "fp8", "--models-dir", str(source.parent)]) == 1
    assert message in capsys.readouterr().err
    assert [path.name for path in source.parent.iterdir()] == ["small"]


def test_a_disk_without_room_is_told_before_anything_is_done(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 1000))
    with pytest.raises(QuantizeError, match="make room"):
        quantize.quantize(job(source), print, source)


def test_a_quantized_model_is_no_source(source: Path) -> None:
    (source / "config.json").write_text('{"quantization_config": {"quant_method": "gptq", "bits": 4}}')
    with pytest.raises(QuantizeError, match=r"quantized already \(int4\)"):
        quantize.quantize(job(source), print, source)


def test_damaged_weights_are_named(source: Path) -> None:
    (source / "model.safetensors").write_bytes(b"short")
    with pytest.raises(FolderError, match=r"model\.safetensors are damaged"):
        quantize.quantize(job(source, scheme="int4"), print, source)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope", "--scheme", "int8"], "there is no model 'nope'"),
        (["small", "--scheme", "int8", "--recipe", "awq"], "no recipe 'awq' for int8"),
        (["small", "--scheme", "int8", "--calibration", "absent.jsonl"], "no calibration file absent.jsonl"),
    ],
)
def test_wrong_arguments_are_named(
    source: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--models-dir", str(source.parent)]) == 1
    assert message in capsys.readouterr().err


def fake_compressor(source: Path, script: str) -> Path:
    """An environment whose interpreter is a shell script, so that it counts as made."""
    python = source.parent / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f"#!/bin/sh\n{script}\n")
    python.chmod(0o755)
    (source.parent / "venv" / ".tenth-quantize").write_text(quantize_env.fingerprint())
    return source.parent / "venv"


@pytest.mark.parametrize(
    ("given", "says", "texts"),
    [(Path("mine.jsonl"), "mine.jsonl", "mine.jsonl"), (None, "self", "")],
)
def test_the_calibrated_recipes_run_in_the_other_environment(
    source: Path, monkeypatch: pytest.MonkeyPatch, given: Path | None, says: str, texts: str
) -> None:
    script = """
    cp "$3" job-seen.json; mkdir made; cp {source}/config.json {source}/model.safetensors made/
    cp "$3" {keep}; echo "calibration: 2 texts"; echo "12:00 | INFO | noise"
    echo '{{"versions": {{"llmcompressor": "9"}}, "calibration_texts": 2}}'
    """.format(source=source, keep=source.parent / "seen.json")
    said: list[str] = []
    fake_compressor(source, script)
    monkeypatch.chdir(source.parent)
    venv = Path("venv")  # As the default: relative to where the command was called.
    quantize.quantize(job(source, scheme="int4", recipe="awq", calibration=given, seed=7), said.append, venv)
    made = source.with_name("made")
    stamp = json.loads((made / STAMP).read_text())
    assert (stamp["versions"], stamp["group"]) == ({"llmcompressor": "9"}, 32)
    assert (stamp["calibration"], stamp["seed"], stamp["calibration_texts"]) == (says, 7, 2)
    assert said[0] == "calibration: 2 texts"
    assert not any("noise" in line for line in said)
    seen = json.loads((source.parent / "seen.json").read_text())
    assert (seen["scheme"], seen["recipe"], seen["group"], seen["texts"]) == (
        "int4",
        "awq",
        32,
        str(Path(texts).absolute()) if texts else "",
    )
    assert seen["seed"] == 7
    assert json.loads(Path(seen["prompts"]).read_text("utf-8"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("torch.OutOfMemory: too large", "did not finish awq of small: torch.OutOfMemory"),
        ("x: No space left on device", "full"),
    ],
)
def test_a_failure_there_is_told_in_its_last_words(source: Path, words: str, message: str) -> None:
    venv = fake_compressor(source, f"echo '{words}' >&2; exit 1")
    with pytest.raises(QuantizeError, match=message):
        quantize.quantize(job(source, scheme="int4", recipe="awq"), print, venv)
    assert not source.with_name("made").exists()


def test_the_environment_is_made_once_and_anew_when_its_versions_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Sequence[str]] = []

    def run(command: Sequence[str]) -> str:
        ran.append(command)
        (tmp_path / "venv" / "bin").mkdir(parents=True, exist_ok=True)
        (tmp_path / "venv" / "bin" / "python").touch()
        return ""

    monkeypatch.delenv("TORCH_INDEX_URL", raising=False)
    python = quantize_env.interpreter(tmp_path / "venv", print, run)
    assert python == tmp_path / "venv" / "bin" / "python"
    assert [command[-1] for command in ran] == [str(tmp_path / "venv"), "llmcompressor"]
    assert str(quantize_env.CONSTRAINTS) in ran[1]
    quantize_env.interpreter(tmp_path / "venv", print, run)
    assert len(ran) == 2
    monkeypatch.setattr(quantize_env, "PACKAGES", ("torch", "llmcompressor", "more"))
    quantize_env.interpreter(tmp_path / "venv", print, run)
    assert len(ran) == 4


def test_an_environment_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(command: Sequence[str]) -> str:
        (tmp_path / "venv").mkdir(exist_ok=True)
        return "no matching distribution" if "pip" in command else ""

    with pytest.raises(quantize_env.EnvironmentFailed, match="could not be made: no matching distribution"):
        quantize_env.interpreter(tmp_path / "venv", print, run)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 10**9, 1000))
    with pytest.raises(quantize_env.EnvironmentFailed, match="TENTH_QUANTIZE_VENV"):
        quantize_env.interpreter(tmp_path / "venv", print, run)


class Words:
    """A tokenizer that knows words by their length."""

    def __call__(self, text: str, truncation: bool, max_length: int) -> dict[str, list[int]]:
        return {"input_ids": [len(word) for word in text.split()][:max_length]}

    def apply_chat_template(self, messages: list[dict[str, str]], tokenize: bool) -> str:
        return " ".join(f"<{item['role']}> {item['content']}" for item in messages)


def test_calibration_texts_in_three_forms(tmp_path: Path) -> None:
    file = tmp_path / "c.jsonl"
    file.write_text('"a bb ccc"\n\n{"text": "dddd"}\n{"messages": [{"role": "user", "content": "a b"}]}\n"unused"\n')
    rows = calibration(file, Words(), most_texts=3, most_tokens=2)
    assert [row["input_ids"] for row in rows] == [[1, 2], [4], [6, 1]]
    assert rows[1]["attention_mask"] == [1]


@pytest.mark.parametrize("line", ["not json", "[]", '{"content": "x"}', "5", '{"messages": "x"}'])
def test_a_line_that_is_no_text_is_named(tmp_path: Path, line: str) -> None:
    file = tmp_path / "c.jsonl"
    file.write_text(f'"fine"\n{line}\n')
    with pytest.raises(ValueError, match="line 2 is no text"):
        calibration(file, Words(), most_texts=9, most_tokens=9)
    file.write_text("\n")
    with pytest.raises(ValueError, match="no text in it"):
        calibration(file, Words(), most_texts=9, most_tokens=9)
