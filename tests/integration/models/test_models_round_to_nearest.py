"""Rounding a tiny model with the real `compressed-tensors`: the same bytes twice, weights close to the nearest."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from models.quantize import Job, quantize
from models.transformers_reading import evaluate
from services.inference.model_folder import Scheme, declared_scheme, read_config, stored_types, weights_sha256

# torch and transformers warn of their own deprecations while they are imported.
pytestmark = pytest.mark.filterwarnings("ignore")

SMOLLM = Path(os.environ.get("TENTH_MODELS_DIR", ".models")) / "smollm2-135m-instruct"


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of random weights, with SmolLM2's tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49_152, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, tie_word_embeddings=True, dtype=torch.bfloat16,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "tiny"
    model_class: Any = LlamaForCausalLM  # The library leaves it without types.
    model_class(config).bfloat16().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(SMOLLM / name, folder)
    return folder


@pytest.mark.parametrize(
    ("scheme", "recipe", "stored", "largest_loss"),
    [
        ("int8", "round-to-nearest", "I8", 1.02),
        ("int4", "round-to-nearest", "I32", 1.2),
        ("fp8", "dynamic", "F8_E4M3", 1.05),
    ],
)
def test_a_folder_is_rounded_the_same_way_each_time(
    tiny: Path, tmp_path: Path, scheme: str, recipe: str, stored: str, largest_loss: float
) -> None:
    said: list[str] = []
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        quantize(Job(tiny, folder, scheme, recipe), said.append, tmp_path)
    one, two = folders
    assert weights_sha256(one) == weights_sha256(two)
    assert (one / "config.json").read_bytes() == (two / "config.json").read_bytes()
    assert declared_scheme(read_config(one)) is Scheme(scheme)
    types = stored_types(one)
    assert sum(kind == stored for kind in types.values()) == 2 * 7, "the linear layers of both"
    assert types["model.embed_tokens.weight"] == "BF16"
    stamp = json.loads((one / "tenth-model.json").read_text("utf-8"))
    assert (stamp["scheme"], stamp["recipe"], stamp.get("group")) == (scheme, recipe, 32 if scheme == "int4" else None)
    result = evaluate(one, tiny)
    assert 1 / largest_loss < result["perplexity_ratio"] < largest_loss
    assert result["agreement"] > 0.3, "random weights have no favourites to agree on"
    assert result["weights_sha256"] == weights_sha256(one)


def test_int8_weights_are_close_to_the_nearest_of_their_channels_scale(tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    quantize(Job(tiny, tmp_path / "made", "int8", "round-to-nearest"), lambda line: None, tmp_path)
    made = load_file(tmp_path / "made" / "model.safetensors")
    original = load_file(tiny / "model.safetensors")
    name = "model.layers.0.mlp.down_proj.weight"
    scale = made[f"{name}_scale"].float()
    assert scale.shape == (64, 1)
    error = (made[name].float() * scale - original[name].float()).abs()
    # The quotient is computed in the model's own bfloat16, as llm-compressor does: up to a quarter more than rounding.
    assert (error <= 0.76 * scale).all()
    assert made[name].float().abs().amax(dim=1).min() >= 126, "each channel uses its whole range"
