"""The engine's options: a setting that is given goes before the plan, one left at automatic takes the plan's."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from services.inference.hardware import Hardware
from services.inference.local_engine import engine_options
from services.inference.model_folder import Scheme
from services.inference.models import Model, Provider
from services.inference.policy import Ability
from services.inference.quantization import THRESHOLDS, Threshold
from services.inference.settings import InferenceSettings
from services.inference.vllm import VllmBackend
from services.inference.vllm_async import AsyncEngine
from services.inference.vllm_thread import EngineThread

H100 = Hardware("H100", frozenset(), (9, 0), 80 * 1024**3, 80 * 1024**3)
CPU = Hardware("CPU", frozenset({"avx512_vnni"}))
MODEL = Model("small", Provider("local", "vllm"), "folder", 8192, 2048, Ability())


@pytest.fixture
def models_dir(tmp_path: Path) -> Path:
    (tmp_path / "folder").mkdir()
    config = {"num_hidden_layers": 30, "num_key_value_heads": 3, "num_attention_heads": 9, "head_dim": 64}
    (tmp_path / "folder" / "config.json").write_text(json.dumps(config))
    return tmp_path


def settings(models_dir: Path, **given: Any) -> InferenceSettings:
    return InferenceSettings(models_dir=models_dir, **given)


def test_left_alone_the_plan_decides_and_the_log_says_why(models_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "tenth.inference"):
        options = engine_options(MODEL, settings(models_dir), H100, "")
    assert options.folder == models_dir / "folder"
    assert options.arguments == {"kv_cache_dtype": "fp8", "enable_chunked_prefill": True, "gpu_memory_utilization": 0.9}
    assert options.hardware == H100
    said = [record.getMessage() for record in caplog.records]
    assert said[0] == "engine plan for small (none weights) on H100:"
    assert any(line.startswith("engine plan: kv_cache_dtype fp8: half the bytes") for line in said)
    on_cpu = engine_options(MODEL, settings(models_dir), CPU, "")
    assert on_cpu.max_running == 32
    assert on_cpu.arguments == {"kv_cache_dtype": "auto", "enable_chunked_prefill": True}


def test_settings_go_before_the_plan(models_dir: Path) -> None:
    given = settings(
        models_dir, max_running=5, kv_cache_dtype="bfloat16", gpu_memory_utilization=0.5, chunked_prefill="off",
        quantization="fp8", force_quantized=True, int8_max_perplexity_ratio=1.01, int8_min_agreement=0.99,
    )  # fmt: skip
    options = engine_options(MODEL, given, H100, "collector:4317")
    assert options.max_running == 5
    assert options.arguments == {
        "kv_cache_dtype": "bfloat16",
        "enable_chunked_prefill": False,
        "gpu_memory_utilization": 0.5,
    }
    assert (options.quantization, options.otlp_endpoint, options.recovery.forced) == ("fp8", "collector:4317", True)
    assert options.recovery.thresholds[Scheme.INT8] == Threshold(1.01, 0.99)


@pytest.mark.parametrize(
    ("setting", "hardware", "engine", "reason"),
    [
        ("auto", H100, "async", "on a GPU "),
        ("auto", CPU, "thread", "on a CPU "),
        ("async", CPU, "async", "TENTH_INFERENCE_ENGINE says so"),
        ("thread", H100, "thread", "TENTH_INFERENCE_ENGINE says so"),
    ],
)
def test_the_engine_follows_the_hardware_unless_it_is_set(
    models_dir: Path, caplog: pytest.LogCaptureFixture, setting: str, hardware: Hardware, engine: str, reason: str
) -> None:
    with caplog.at_level(logging.INFO, "tenth.inference"):
        options = engine_options(MODEL, settings(models_dir, engine=setting), hardware, "")
    assert options.engine == engine
    (said,) = (line for line in caplog.messages if line.startswith("engine plan: engine "))
    assert said.startswith(f"engine plan: engine {engine}: {reason}")
    backend = VllmBackend("m", "local", "f", options)
    assert isinstance(backend.engine, AsyncEngine if engine == "async" else EngineThread)


def test_the_settings_defaults_are_the_gates(models_dir: Path) -> None:
    options = engine_options(MODEL, settings(models_dir), CPU, "")
    assert options.recovery.thresholds == THRESHOLDS
    assert not options.recovery.forced


def test_an_absent_folder_is_left_to_the_engine_to_refuse(tmp_path: Path) -> None:
    assert engine_options(MODEL, settings(tmp_path), CPU, "").max_running == 32
