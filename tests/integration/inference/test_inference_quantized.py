"""The real engine and quantized folders: the shipped int8 one runs quantized; what only claims to is refused."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from mesh.errors import TenthError
from services.inference.hardware import Hardware, detect
from services.inference.model_folder import EVALUATION, read_evaluation, weights_sha256
from services.inference.policy import Generation, Message, Meter, Sampling
from services.inference.quantization import Recovery, layers_of
from services.inference.vllm import VllmBackend
from services.inference.vllm_load import EngineOptions

# vLLM and torch warn of their own deprecations while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")

MODELS = Path(os.environ.get("TENTH_MODELS_DIR", ".models"))
INT8, PLAIN = MODELS / "smollm2-135m-instruct-int8", MODELS / "smollm2-135m-instruct"
OPTIONS = EngineOptions(INT8, 1024, threads=2, kv_cache_bytes=64 * 1024 * 1024, max_running=4, hardware=detect())


def question(text: str) -> Generation:
    sampling = Sampling(temperature=0.0, max_output_tokens=12)
    return Generation("r1", 1, "small", (Message("user", (text,)),), sampling=sampling, tenant_id="acme")


async def settled(options: EngineOptions) -> VllmBackend:
    """A backend that has started, or said why not."""
    backend = VllmBackend("small", "local", "folder", options)
    backend.start()
    for _ in range(900):
        if backend.unavailable_reason() != "the engine is starting":
            return backend
        await asyncio.sleep(0.2)
    raise AssertionError("the engine neither started nor failed")


async def refused(options: EngineOptions) -> TenthError:
    """How a request fails on an engine that refuses its model.

    A model that is only not proven leaves the service ready for its others; one that is broken does not, so that no
    rollout replaces replicas that work by ones that cannot.
    """
    backend = await settled(options)
    ready = True
    try:
        await backend.ping()
    except TenthError:
        ready = False
    with pytest.raises(TenthError) as caught:
        await backend.generate(question("x"), Meter(1, len))
    await backend.close()
    assert ready == caught.value.reason.startswith("QUANTIZATION_")
    return caught.value


async def test_the_shipped_folder_is_proven_and_runs_in_int8() -> None:
    evaluation = read_evaluation(INT8)
    assert evaluation is not None
    assert evaluation.weights_sha256 == weights_sha256(INT8)
    backend = await settled(OPTIONS)
    assert backend.unavailable_reason() == ""
    assert backend.quantized
    assert backend.engine.loaded is not None
    layers = backend.engine.loaded.engine.apply_model(layers_of)[0]
    assert (layers.quantized_count, layers.count) == (120, 120)
    answer = await backend.generate(question("What is the capital of France?"), Meter(1, len))
    assert "Paris" in answer.delta.text
    await backend.close()


async def test_online_quantization_that_does_nothing_is_refused() -> None:
    # vLLM 0.32 on CPU accepts this scheme, answers sanely, and quantizes no layer.
    options = replace(
        OPTIONS, folder=PLAIN, quantization="int8_per_channel_weight_only", recovery=Recovery(forced=True)
    )
    error = await refused(options)
    assert (error.reason, "quantized none of its 120 layers" in error.message) == ("QUANTIZATION_INEFFECTIVE", True)


async def test_folders_are_refused_before_an_engine_is_loaded(tmp_path: Path) -> None:
    liar, unproven = tmp_path / "liar", tmp_path / "unproven"
    shutil.copytree(PLAIN, liar)
    config = json.loads((liar / "config.json").read_text("utf-8"))
    claim = json.loads((INT8 / "config.json").read_text("utf-8"))["quantization_config"]
    (liar / "config.json").write_text(json.dumps({**config, "quantization_config": claim}))
    error = await refused(replace(OPTIONS, folder=liar))
    assert (error.reason, "claims to be int8" in error.message) == ("MODEL_CORRUPT", True)

    shutil.copytree(INT8, unproven)
    (unproven / EVALUATION).unlink()
    error = await refused(replace(OPTIONS, folder=unproven))
    assert (error.reason, "tenth model evaluate" in error.message) == ("QUANTIZATION_UNPROVEN", True)

    blackwell = Hardware("RTX 5090", capability=(12, 0))
    error = await refused(replace(OPTIONS, hardware=blackwell))
    assert (error.reason, "use fp8" in error.message) == ("SCHEME_UNSUPPORTED", True)
