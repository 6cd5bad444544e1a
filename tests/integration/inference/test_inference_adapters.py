"""LoRA adapters on the real engine: an adapter that was made here changes what the model says, and only there."""

from __future__ import annotations

import asyncio
import json
import math
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mesh.errors import TenthError
from services.inference.adapters import AdaptedBackend, engine_rank, read_adapter
from services.inference.policy import Generation, Message, Meter, Sampling
from services.inference.vllm import VllmBackend
from services.inference.vllm_load import EngineOptions

# vLLM and torch warn of their own deprecations while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")

FOLDER = Path(os.environ.get("TENTH_MODELS_DIR", ".models")) / "smollm2-135m-instruct"
HIDDEN, LAYERS, RANK = 576, 30, 4
CONFIG = {
    "peft_type": "LORA",
    "r": RANK,
    "lora_alpha": 64,
    "target_modules": ["q_proj"],
    "bias": "none",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "smollm2-135m-instruct",
}


def write_adapter(folder: Path, **changes: Any) -> Path:
    """An adapter of the shipped model whose queries are another model's: fixed numbers, no training."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **changes}))
    import torch
    from safetensors.torch import save_file

    def wave(rows: int, columns: int, phase: float) -> Any:
        numbers = torch.arange(rows * columns, dtype=torch.float32).reshape(rows, columns)
        return torch.sin(numbers * 0.37 + phase) / math.sqrt(columns)

    tensors = {}
    for layer in range(LAYERS):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = wave(RANK, HIDDEN, layer)
        tensors[f"{name}.lora_B.weight"] = wave(HIDDEN, RANK, layer + 0.5)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest_asyncio.fixture
async def engine(tmp_path: Path) -> AsyncIterator[VllmBackend]:
    adapter = read_adapter("waves", write_adapter(tmp_path / "waves"), 1)
    options = EngineOptions(
        FOLDER, 512, threads=1, kv_cache_bytes=128 * 1024 * 1024, max_running=4, adapters=(adapter,)
    )
    backend = VllmBackend("smollm2", "local", "folder", options)
    backend.start()
    for _ in range(300):
        if not backend.unavailable_reason() or not backend.runs():
            break
        await asyncio.sleep(0.2)
    assert not backend.unavailable_reason()
    yield backend
    await backend.close()


async def test_an_adapter_answers_beside_the_plain_model(engine: VllmBackend) -> None:
    asked = Generation(
        "r", 1, "m", (Message("user", ("Name three colours.",)),),
        sampling=Sampling(temperature=0.0, max_output_tokens=12),
    )  # fmt: skip

    async def ask(backend: VllmBackend | AdaptedBackend) -> tuple[str, int]:
        answer = await backend.generate(asked, Meter(0, len))
        return answer.delta.text, answer.finished.usage.input

    adapted = AdaptedBackend(engine, "waves")
    (plain, plain_in), (other, other_in) = await asyncio.gather(ask(engine), ask(adapted))
    assert plain
    assert other != plain, "the adapter was put on"
    assert plain_in == other_in
    assert await ask(adapted) == (other, other_in)
    assert await ask(engine) == (plain, plain_in), "and off again: neither sees the other's cached prefix"


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "there is no .*adapter_config.json; save the adapter there"),
        ({"adapter_config.json": "{"}, "is not JSON"),
        ({"adapter_config.json": '{"peft_type": "IA3"}'}, "is of no LoRA adapter"),
        ({"adapter_config.json": '{"peft_type": "LORA", "r": 5000}'}, "its rank is 5000"),
        ({"adapter_config.json": '{"peft_type": "LORA", "r": 8}'}, "has no adapter_model.safetensors"),
    ],
)
def test_an_adapter_that_cannot_be_used_says_what_to_do(tmp_path: Path, files: dict[str, str], said: str) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(TenthError, match=said) as caught:
        read_adapter("a", tmp_path, 1)
    assert caught.value.reason == "ADAPTER_UNAVAILABLE"


def test_the_engine_is_set_up_for_the_largest_rank(tmp_path: Path) -> None:
    small = read_adapter("a", write_adapter(tmp_path / "a"), 1)
    large = read_adapter("b", write_adapter(tmp_path / "b", r=20), 2)
    assert (engine_rank((small,)), engine_rank((small, large))) == (8, 32)


async def test_a_model_whose_adapter_is_missing_is_refused_and_the_others_served(tmp_path: Path) -> None:
    from contextlib import AsyncExitStack

    from services.inference.models import parse_catalog
    from services.inference.serving import open_models
    from services.inference.settings import InferenceSettings

    text = (
        "providers: {local: {backend: vllm}}\nmodels:\n"
        "  plain: &m {provider: local, provider_model: none-here, context_window_tokens: 9, max_output_tokens: 9}\n"
        "  tuned: {<<: *m, adapter: support}\n"
    )
    catalog = parse_catalog(text, "c.yaml")
    async with AsyncExitStack() as stack:
        settings = InferenceSettings(models_dir=tmp_path)
        served, _ = await open_models(catalog, catalog["plain"], settings, "", stack)
        error = served["tuned"].backend.unavailable_error()
        assert isinstance(error, TenthError)
        assert error.reason == "ADAPTER_UNAVAILABLE"
        assert "save the adapter there" in error.message
        assert isinstance(served["plain"].backend, VllmBackend)
