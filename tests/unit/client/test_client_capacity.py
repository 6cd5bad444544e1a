"""The capacity plan against published figures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tenth_client.capacity.hardware import GPUS, gpu_of
from tenth_client.capacity.known import ALIASES, PUBLISHED, SHAPES, find
from tenth_client.capacity.plan import Wanted, cost, fit, parallel_degrees, roofline, smallest
from tenth_client.capacity.schemes import SCHEMES, scheme_of, weight_bytes
from tenth_client.capacity.shapes import Shape, shape_of

SEVENTY = SHAPES["meta-llama/Llama-3.1-70B-Instruct"]

PUBLISHED_PARAMETERS = {
    "meta-llama/Llama-3.1-8B-Instruct": 8.03e9,
    "meta-llama/Llama-3.1-70B-Instruct": 70.55e9,
    "meta-llama/Llama-3.1-405B-Instruct": 405.85e9,
    "meta-llama/Llama-3.2-1B-Instruct": 1.236e9,
    "meta-llama/Llama-3.2-3B-Instruct": 3.213e9,
    "Qwen/Qwen2.5-7B-Instruct": 7.616e9,
    "Qwen/Qwen2.5-32B-Instruct": 32.76e9,
    "Qwen/Qwen2.5-72B-Instruct": 72.71e9,
    "Qwen/Qwen3-8B": 8.19e9,
    "Qwen/Qwen3-32B": 32.76e9,
    "mistralai/Mistral-7B-Instruct-v0.3": 7.248e9,
    "mistralai/Mistral-Small-24B-Instruct-2501": 23.57e9,
    "mistralai/Mixtral-8x7B-Instruct-v0.1": 46.70e9,
    "google/gemma-2-9b-it": 9.24e9,
    "google/gemma-2-27b-it": 27.23e9,
    "google/gemma-3-4b-it": 3.88e9,
    "google/gemma-3-12b-it": 11.77e9,
    "google/gemma-3-27b-it": 27.01e9,
    "deepseek-ai/DeepSeek-V3": 671.0e9,
    "openai/gpt-oss-20b": 20.91e9,
    "openai/gpt-oss-120b": 116.8e9,
    "HuggingFaceTB/SmolLM2-135M-Instruct": 134.5e6,
    "HuggingFaceTB/SmolLM2-360M-Instruct": 361.8e6,
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": 1.711e9,
}
"""Of the model cards (Gemma 3's without the vision tower)."""


def wanted(gpu: str = "a100-80gb", scheme: str = "awq", context: int = 8192, shape: Shape = SEVENTY) -> Wanted:
    return Wanted(shape, GPUS[gpu], SCHEMES[scheme], context)


def test_every_kept_shape_has_the_published_number_of_parameters() -> None:
    assert PUBLISHED_PARAMETERS.keys() == SHAPES.keys()
    for name, published in PUBLISHED_PARAMETERS.items():
        assert SHAPES[name].parameters == pytest.approx(published, rel=0.006), name


def test_a_70b_model_in_16_bits_is_141_gb_and_does_not_fit_80_gb() -> None:
    plan = wanted(scheme="bf16")
    assert plan.weights == pytest.approx(141e9, rel=0.003)
    assert not fit(plan, 1).fits
    found = smallest(plan, 8)
    assert found is not None
    assert (found.gpus, found.sequences) == (2, 2)


def test_a_70b_model_in_4_bits_is_40_gb_and_leaves_105_thousand_tokens_or_twice_that() -> None:
    plan = wanted()
    assert plan.weights == pytest.approx(39.8e9, rel=0.005)
    assert plan.kv_bytes(1) == 327_680
    assert fit(plan, 1).kv_tokens == pytest.approx(105_000, rel=0.01)
    assert fit(replace(plan, kv_dtype="fp8"), 1).kv_tokens == pytest.approx(210_000, rel=0.01)
    assert fit(plan, 1).sequences == 12


@pytest.mark.parametrize(
    ("name", "scheme", "gibibytes"),
    [
        ("openai/gpt-oss-20b", "mxfp4", 12.8),  # The model card: 12.8 and 60.8 GiB.
        ("openai/gpt-oss-120b", "mxfp4", 60.8),
        ("meta-llama/Llama-3.1-8B-Instruct", "fp8", 8.46),
    ],
)
def test_published_sizes_of_checkpoints(name: str, scheme: str, gibibytes: float) -> None:
    assert weight_bytes(SHAPES[name], SCHEMES[scheme]) / 2**30 == pytest.approx(gibibytes, rel=0.02)


def test_latent_attention_keeps_576_numbers_a_layer_and_a_copy_on_each_gpu() -> None:
    plan = wanted("h200", "fp8", 32_768, SHAPES["deepseek-ai/DeepSeek-V3"])
    assert plan.kv_bytes(1) == 70_272  # DeepSeek's own figure: 70.27 KB a token in BF16.
    found = smallest(plan, 8)
    assert found is not None
    assert found.gpus == 8
    assert found.sequence_bytes == plan.sequence_bytes


def test_a_sliding_layer_keeps_its_window_alone() -> None:
    gemma = SHAPES["google/gemma-3-27b-it"]
    assert gemma.sliding_layers == 52
    grown = gemma.kv_numbers(100_000) - gemma.kv_numbers(50_000)
    assert grown == 10 * gemma.kv_numbers_per_layer * 50_000
    short = replace(gemma, window=0, sliding_layers=0)
    assert gemma.kv_numbers(1024) == short.kv_numbers(1024)


def test_degrees_divide_the_heads() -> None:
    assert parallel_degrees(SHAPES["Qwen/Qwen2.5-7B-Instruct"]) == (1, 2, 4, 28)
    assert parallel_degrees(SHAPES["HuggingFaceTB/SmolLM2-135M-Instruct"]) == (1, 3, 9)
    assert 8 in parallel_degrees(SEVENTY)
    sixteen, eight = fit(wanted(), 16), fit(wanted(), 8)
    assert sixteen.sequence_bytes == eight.sequence_bytes, "eight key-value heads cannot be split over sixteen"


def test_the_roofline_of_one_sequence_is_the_weights_read_once() -> None:
    plan = replace(wanted("h100-80gb", "fp8", 16, SHAPES["meta-llama/Llama-3.1-8B-Instruct"]), max_sequences=1)
    read = weight_bytes(plan.shape, plan.scheme) - plan.shape.embedding_weights
    assert roofline(plan, fit(plan, 1)) == pytest.approx(3350e9 / read, rel=0.001)


def test_experts_are_read_as_far_as_the_batch_reaches_them() -> None:
    mixtral = wanted("h200", "bf16", 1024, SHAPES["mistralai/Mixtral-8x7B-Instruct-v0.1"])
    alone = roofline(replace(mixtral, max_sequences=1), fit(mixtral, 1))
    # Two of eight experts: about 12.9 of 46.7 billion weights are read.
    assert alone == pytest.approx(4800e9 / (12.9e9 * 2), rel=0.03)
    many = roofline(mixtral, fit(mixtral, 1))
    assert alone < many < alone * mixtral.max_sequences


def test_the_cost_of_a_million_tokens() -> None:
    found = fit(wanted(), 1)
    assert cost(found, 3.6, 1000, 0.5, measured=True).usd_per_million == pytest.approx(2.0)


def test_known_models_are_found_by_short_names_and_other_names() -> None:
    for name in ("meta-llama/Llama-3.1-70B-Instruct", "llama-3.1-70b", "Llama-3.1-70B-Instruct"):
        found = find(name)
        assert found == ("meta-llama/Llama-3.1-70B-Instruct", SEVENTY)
    assert find("nobody/none") is None
    assert set(ALIASES.values()) <= SHAPES.keys()
    assert PUBLISHED.keys() <= SHAPES.keys() | ALIASES.keys()
    assert set(PUBLISHED.values()) <= SCHEMES.keys()


def test_what_is_not_known_names_the_flag() -> None:
    with pytest.raises(ValueError, match="--gpu a200: not known; choose one of t4"):
        gpu_of("a200")
    with pytest.raises(ValueError, match="--scheme q5: not known; choose one of bf16"):
        scheme_of("q5")
    assert gpu_of("gpu:A100-80GB")[0] == "a100-80gb"
    assert scheme_of("W4A16")[0] == "int4"


LLAMA_CONFIG = {
    "model_type": "llama", "num_hidden_layers": 80, "hidden_size": 8192, "num_attention_heads": 64,
    "num_key_value_heads": 8, "intermediate_size": 28_672, "vocab_size": 128_256, "tie_word_embeddings": False,
    "max_position_embeddings": 131_072,
}  # fmt: skip


def test_a_config_file_gives_the_same_shape() -> None:
    assert shape_of(LLAMA_CONFIG, "config.json") == SEVENTY
    gemma = {
        "model_type": "gemma3", "vision_config": {}, "text_config": {
            "model_type": "gemma3_text", "num_hidden_layers": 62, "hidden_size": 5376, "num_attention_heads": 32,
            "num_key_value_heads": 16, "head_dim": 128, "intermediate_size": 21_504, "vocab_size": 262_208,
            "sliding_window": 1024, "sliding_window_pattern": 6, "max_position_embeddings": 131_072,
        },
    }  # fmt: skip
    assert shape_of(gemma, "config.json") == SHAPES["google/gemma-3-27b-it"]
    deepseek = {
        "model_type": "deepseek_v3", "num_hidden_layers": 61, "hidden_size": 7168, "num_attention_heads": 128,
        "num_key_value_heads": 128, "head_dim": 192, "intermediate_size": 18_432, "moe_intermediate_size": 2048,
        "n_routed_experts": 256, "num_experts_per_tok": 8, "n_shared_experts": 1, "first_k_dense_replace": 3,
        "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "qk_nope_head_dim": 128, "v_head_dim": 128,
        "vocab_size": 129_280, "max_position_embeddings": 163_840,
    }  # fmt: skip
    assert shape_of(deepseek, "config.json") == SHAPES["deepseek-ai/DeepSeek-V3"]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_type": "bert"}, "model_type 'bert' is not counted here"),
        ({"hidden_size": None}, "hidden_size is None"),
        ({"vocab_size": "many"}, "vocab_size is 'many'"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ],
)
def test_a_config_that_cannot_be_counted_says_why(changes: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        shape_of({**LLAMA_CONFIG, **changes}, "config.json")


def test_the_local_model_of_this_repository_is_counted() -> None:
    folder = Path(__file__).parents[3] / ".models" / "smollm2-135m-instruct"
    if not (folder / "config.json").is_file():
        pytest.skip("make models has not run")
    found = shape_of(json.loads((folder / "config.json").read_text("utf-8")), "config.json")
    assert found == SHAPES["HuggingFaceTB/SmolLM2-135M-Instruct"]


@given(st.sampled_from(sorted(SHAPES)), st.sampled_from(sorted(GPUS)), st.integers(1, 100_000))
def test_more_gpus_never_hold_less_and_fewer_bits_never_more(name: str, gpu: str, context: int) -> None:
    plan = wanted(gpu, "bf16", context, SHAPES[name])
    fits = [fit(plan, degree) for degree in parallel_degrees(plan.shape)]
    assert [each.kv_tokens for each in fits] == sorted(each.kv_tokens for each in fits)
    assert wanted(gpu, "awq", context, SHAPES[name]).weights < plan.weights
    assert fit(replace(plan, kv_dtype="fp8"), 1).kv_tokens >= fits[0].kv_tokens
