"""The recovery gate: which quantized folders are served, and which engines."""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import TenthError
from services.inference.hardware import Hardware
from services.inference.model_folder import (
    EVALUATION,
    Evaluation,
    FolderError,
    Scheme,
    declared_scheme,
    read_evaluation,
    stored_types,
    weights_sha256,
)
from services.inference.quantization import Layers, Recovery, Threshold, admit, check_engine, layers_of, shortfall

CPU = Hardware("CPU", frozenset({"avx512_vnni"}))


def compressed(*weights: tuple[int, str]) -> dict[str, Any]:
    """A configuration as compressed-tensors writes it: bits and kind of each group of layers."""
    groups = {f"group_{at}": {"weights": {"num_bits": bits, "type": kind}} for at, (bits, kind) in enumerate(weights)}
    return {"quant_method": "compressed-tensors", "config_groups": groups}


INT8 = compressed((8, "int"))
FP8 = compressed((8, "float"))
GOOD = Evaluation(perplexity_ratio=1.03, agreement=0.93, weights_sha256="d")


def tensors(path: Path, **types: str) -> None:
    """A safetensors file of one byte a tensor."""
    held = {
        name: {"dtype": kind, "shape": [1], "data_offsets": [at, at + 1]}
        for at, (name, kind) in enumerate(types.items())
    }
    text = json.dumps({"__metadata__": {"format": "pt"}, **held}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(len(types)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"quantization_config": INT8}))
    tensors(
        tmp_path / "model.safetensors", **{"embed.weight": "BF16", "q_proj.weight": "I8", "q_proj.weight_scale": "BF16"}
    )
    return tmp_path


def evaluated(folder: Path, **changes: Any) -> None:
    result = {"perplexity_ratio": 1.03, "agreement": 0.93, "weights_sha256": weights_sha256(folder), **changes}
    (folder / EVALUATION).write_text(json.dumps(result))


@pytest.mark.parametrize(
    ("said", "scheme"),
    [
        (None, Scheme.NONE),
        (INT8, Scheme.INT8),
        (FP8, Scheme.FP8),
        (compressed((8, "int"), (4, "int")), Scheme.OTHER),
        (compressed((4, "float")), Scheme.FP4),
        ({"quant_method": "compressed-tensors"}, Scheme.OTHER),
        ({"quant_method": "awq", "bits": 4}, Scheme.INT4),
        ({"quant_method": "awq", "w_bit": 4}, Scheme.INT4),
        ({"quant_method": "gptq", "bits": 8}, Scheme.INT8),
        ({"quant_method": "fp8"}, Scheme.FP8),
        ({"quant_method": "mxfp4"}, Scheme.FP4),
        ({"quant_method": "something"}, Scheme.OTHER),
    ],
)
def test_the_scheme_that_a_configuration_claims(said: dict[str, Any] | None, scheme: Scheme) -> None:
    assert declared_scheme({} if said is None else {"quantization_config": said}) is scheme


@pytest.mark.parametrize(
    ("scheme", "evaluation", "lack"),
    [
        (Scheme.INT8, GOOD, ""),
        (Scheme.INT8, None, "has not been evaluated"),
        (Scheme.INT8, Evaluation(1.03, 0.93, "other"), "not those that were evaluated"),
        (Scheme.INT8, Evaluation(1.2, 0.93, "d"), r"1\.200 times the unquantized model's, 1\.1 is allowed for int8"),
        (Scheme.INT8, Evaluation(float("nan"), 0.93, "d"), "times the unquantized"),
        (Scheme.INT8, Evaluation(1.03, 0.5, "d"), r"agrees with the unquantized model on 50\.0%.*90%"),
        (Scheme.INT8, Evaluation(1.03, float("nan"), "d"), "agrees"),
        (Scheme.INT4, Evaluation(1.2, 0.8, "d"), ""),
        (Scheme.INT4, Evaluation(1.4, 0.8, "d"), "is allowed for int4"),
        (Scheme.FP4, Evaluation(1.4, 0.8, "d"), "is allowed for fp4"),
    ],
)
def test_what_a_quantized_model_lacks(scheme: Scheme, evaluation: Evaluation | None, lack: str) -> None:
    recovery = Recovery({Scheme.INT8: Threshold(1.1, 0.9), Scheme.INT4: Threshold(1.3, 0.7)})
    found = shortfall(scheme, evaluation, "d", recovery)
    assert re.search(lack, found) if lack else found == "", found


def test_an_evaluated_folder_is_admitted_and_an_unquantized_one_needs_nothing(folder: Path, tmp_path: Path) -> None:
    evaluated(folder)
    assert admit(folder, Recovery(), CPU) is Scheme.INT8
    (folder / EVALUATION).unlink()
    (folder / "config.json").write_text("{}")
    tensors(folder / "model.safetensors", **{"embed.weight": "BF16", "q_proj.weight": "BF16"})
    assert admit(folder, Recovery(), CPU) is Scheme.NONE


def test_rounded_weights_that_no_configuration_names_are_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    error = refusal(folder, Recovery(forced=True))
    assert (error.reason, "names no quantization" in error.message) == ("MODEL_CORRUPT", True)


@pytest.mark.parametrize(
    "config",
    [{"compression_config": INT8}, {"text_config": {"quantization_config": INT8}, "quantization_config": None}],
)
def test_a_quantization_is_found_wherever_the_engine_looks_for_it(config: dict[str, Any]) -> None:
    assert declared_scheme(config) is Scheme.INT8


def test_a_quantization_in_a_file_of_its_own_is_gated(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "hf_quant_config.json").write_text("{}")
    assert refusal(folder).reason == "QUANTIZATION_UNPROVEN"


def refusal(folder: Path, recovery: Recovery | None = None, hardware: Hardware | None = CPU) -> TenthError:
    with pytest.raises(TenthError) as caught:
        admit(folder, recovery or Recovery(), hardware)
    return caught.value


def test_an_unproven_folder_is_refused_unless_forced(folder: Path) -> None:
    error = refusal(folder)
    assert error.reason == "QUANTIZATION_UNPROVEN"
    assert "tenth model evaluate" in error.message
    assert "TENTH_INFERENCE_FORCE_QUANTIZED=true" in error.message
    assert admit(folder, Recovery(forced=True), CPU) is Scheme.INT8
    evaluated(folder, perplexity_ratio=1.5)
    assert refusal(folder).reason == "QUANTIZATION_UNPROVEN"


def test_changed_weights_void_the_evaluation(folder: Path) -> None:
    evaluated(folder)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert "not those that were evaluated" in refusal(folder).message


def test_weights_that_are_not_what_the_configuration_claims_are_refused_even_by_force(folder: Path) -> None:
    tensors(folder / "model.safetensors", **{"embed.weight": "BF16", "q_proj.weight": "BF16"})
    evaluated(folder)
    error = refusal(folder, Recovery(forced=True))
    assert (error.reason, "stores its weights as BF16" in error.message) == ("MODEL_CORRUPT", True)


def test_a_scheme_that_the_hardware_lacks_is_refused_even_by_force(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"quantization_config": FP8}))
    tensors(folder / "model.safetensors", **{"q_proj.weight": "F8_E4M3"})
    evaluated(folder)
    error = refusal(folder, Recovery(forced=True))
    assert (error.reason, "use int8" in error.message) == ("SCHEME_UNSUPPORTED", True)
    assert admit(folder, Recovery(), Hardware("H100", capability=(9, 0))) is Scheme.FP8


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "long header", "config"])
def test_damaged_folders_are_named(folder: Path, damage: str) -> None:
    path = folder / "model.safetensors"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "text":
        path.write_text("<html>404 not found, and more text than eight bytes</html>")
    elif damage == "long header":
        path.write_bytes(struct.pack("<Q", 1 << 40) + b"{}")
    else:
        path = folder / "config.json"
        path.write_text("{")
    error = refusal(folder)
    assert error.reason == "MODEL_CORRUPT"
    assert str(path) in error.message
    assert "again" in error.message


def test_a_damaged_evaluation_is_told_from_an_absent_one(folder: Path) -> None:
    assert read_evaluation(folder) is None
    (folder / EVALUATION).write_text('{"perplexity_ratio": "much"}')
    with pytest.raises(FolderError, match="evaluate the model again"):
        read_evaluation(folder)
    assert stored_types(folder)["q_proj.weight"] == "I8"


class LinearBase:
    def __init__(self, method: object) -> None:
        self.quant_method = method


class QKVParallelLinear(LinearBase):
    pass


class Attention:
    def __init__(self, method: object) -> None:
        self.quant_method = method


class UnquantizedLinearMethod:
    pass


class CompressedTensorsLinearMethod:
    pass


class Engine:
    """As much of vLLM's LLMEngine as the check touches."""

    def __init__(self, *modules: object) -> None:
        self._modules = modules
        self.engine_core = self
        self.stopped = False

    def modules(self) -> tuple[object, ...]:
        return self._modules

    def apply_model(self, look: Any) -> list[Any]:
        return [look(self)]

    def shutdown(self) -> None:
        self.stopped = True


def test_layers_are_counted_by_what_multiplies_them() -> None:
    plain, rounded = UnquantizedLinearMethod(), CompressedTensorsLinearMethod()
    engine = Engine(
        QKVParallelLinear(rounded), QKVParallelLinear(plain), LinearBase(None), Attention(rounded), object()
    )
    assert layers_of(engine) == Layers(quantized_count=1, count=3)


def test_an_engine_that_quantized_nothing_is_refused_and_stopped() -> None:
    engine = Engine(QKVParallelLinear(UnquantizedLinearMethod()), Attention(CompressedTensorsLinearMethod()))
    with pytest.raises(TenthError, match="quantized none of its 1 layers") as caught:
        check_engine("small", "int8", engine)
    assert (caught.value.reason, engine.stopped) == ("QUANTIZATION_INEFFECTIVE", True)
    check_engine("small", "none", engine)
    check_engine("small", "", engine)
    check_engine("small", "int8", Engine(QKVParallelLinear(CompressedTensorsLinearMethod())))
