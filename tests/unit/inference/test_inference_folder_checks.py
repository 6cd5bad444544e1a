"""Model folders that cannot be served: what is wrong is named before an engine starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import TenthError
from services.inference.folder_checks import (
    available_bytes,
    check_memory,
    check_scheme,
    read_folder,
    scheme_of,
)


def safetensors(path: Path, data: int = 64, *, cut: int = 0) -> None:
    header = json.dumps({"__metadata__": {}, "w": {"dtype": "F32", "shape": [16], "data_offsets": [0, data]}}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(data)
    path.write_bytes(content[: len(content) - cut])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").write_text("{}")
    safetensors(tmp_path / "model.safetensors")
    return tmp_path


def refusal(folder: Path) -> tuple[str, str]:
    with pytest.raises(TenthError) as caught:
        read_folder(folder)
    assert caught.value.code.name == "UNAVAILABLE"
    return caught.value.reason, caught.value.message


def test_a_whole_folder(folder: Path) -> None:
    read = read_folder(folder)
    assert read.weight_bytes == (folder / "model.safetensors").stat().st_size
    check_scheme(read, on_cpu=True)


@pytest.mark.parametrize("cut", [1, 63, 100, 150])
def test_truncated_weights(folder: Path, cut: int) -> None:
    safetensors(folder / "model.safetensors", cut=cut)
    reason, message = refusal(folder)
    assert reason == "MODEL_CORRUPT"
    assert "model.safetensors" in message
    assert "make models" in message


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 200, (5).to_bytes(8, "little") + b"[1,2]", bytes(50)])
def test_a_weight_file_of_something_else(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)
    assert refusal(folder)[0] == "MODEL_CORRUPT"


def test_missing_parts_are_named(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert refusal(folder)[0] == "MODEL_INCOMPLETE"
    assert "model-00002.safetensors" in refusal(folder)[1]
    (folder / "model.safetensors.index.json").unlink()
    (folder / "tokenizer.json").unlink()
    assert refusal(folder)[0] == "MODEL_INCOMPLETE"
    assert "tokenizer" in refusal(folder)[1]
    (folder / "model.safetensors").unlink()
    assert "no weight file" in refusal(folder)[1]
    (folder / "config.json").write_text("[")
    assert refusal(folder)[0] == "MODEL_CORRUPT"


FP8 = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8, "type": "float"}}}}
INT8 = {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 8, "type": "int"}}}}


@pytest.mark.parametrize(
    ("quantization", "scheme", "on_cpu"),
    [
        (None, "", True),
        ({"quant_method": "awq"}, "awq", True),
        (INT8, "compressed-tensors int8", True),
        (FP8, "compressed-tensors float8", False),
        ({"quant_method": "bitsandbytes"}, "bitsandbytes", False),
        ({}, "unknown", True),
    ],
)
def test_schemes_that_need_a_gpu(folder: Path, quantization: dict[str, Any] | None, scheme: str, on_cpu: bool) -> None:
    (folder / "config.json").write_text(json.dumps({"quantization_config": quantization} if quantization != {} else {}))
    if quantization == {}:
        (folder / "config.json").write_text(json.dumps({"quantization_config": {"bits": 4}}))
    read = read_folder(folder)
    assert scheme_of(read.config) == scheme
    check_scheme(read, on_cpu=False)
    if on_cpu:
        check_scheme(read, on_cpu=True)
        return
    with pytest.raises(TenthError, match="needs a GPU") as caught:
        check_scheme(read, on_cpu=True)
    assert caught.value.reason == "SCHEME_UNSUPPORTED"


def test_a_model_that_does_not_fit_is_refused_with_the_figures(folder: Path) -> None:
    safetensors(folder / "model.safetensors", 3 * 2**20)
    read = read_folder(folder)
    check_memory(read, 2**20, 2**20, 1.0, None)
    check_memory(read, 2**20, 2**20, 1.0, 6 * 2**20)
    with pytest.raises(TenthError, match=r"about 8 MiB.*6 MiB of weights, 1 MiB of KV.*6 MiB are") as caught:
        check_memory(read, 2**20, 2**20, 2.0, 6 * 2**20)
    assert caught.value.reason == "MODEL_TOO_LARGE"


def test_available_memory_is_the_machines_or_the_containers(tmp_path: Path) -> None:
    proc, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    assert available_bytes(proc, cgroup) is None
    proc.write_text("MemTotal: 900 kB\nMemAvailable:     500 kB\n")
    assert available_bytes(proc, cgroup) == 500 * 1024
    cgroup.mkdir()
    (cgroup / "memory.max").write_text("max\n")
    assert available_bytes(proc, cgroup) == 500 * 1024
    (cgroup / "memory.max").write_text("100000\n")
    (cgroup / "memory.current").write_text("60000\n")
    (cgroup / "memory.stat").write_text("anon 5\ninactive_file 1000\n")
    assert available_bytes(proc, cgroup) == 41_000
    (cgroup / "memory.current").write_text("200000\n")
    assert available_bytes(proc, cgroup) == 0
