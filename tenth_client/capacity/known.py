"""Facts of common models: the numbers of their published ``config.json``, by hub id.

Other names for the same shape (base and instruct models, releases with equal dimensions) stand in ``ALIASES``.
"""

from __future__ import annotations

from collections.abc import Mapping

from tenth_client.capacity.shapes import Experts, Latent, Shape

_K128 = 131_072


def _llama(layers: int, hidden: int, heads: int, width: int, *, head_dim: int = 128, tied: bool = False) -> Shape:
    return Shape(layers, hidden, heads, 8, head_dim, width, 128_256, tied, longest_context=_K128)


def _qwen25(layers: int, hidden: int, heads: int, kv_heads: int, width: int) -> Shape:
    return Shape(layers, hidden, heads, kv_heads, 128, width, 152_064, longest_context=32_768)


def _qwen3(layers: int, hidden: int, heads: int, width: int) -> Shape:
    return Shape(layers, hidden, heads, 8, 128, width, 151_936, longest_context=40_960)


def _gemma2(layers: int, hidden: int, heads: int, kv_heads: int, head_dim: int, width: int) -> Shape:
    # Every second layer sees the whole context.
    return Shape(layers, hidden, heads, kv_heads, head_dim, width, 256_000, True, 4096, layers - layers // 2,
                 longest_context=8192)  # fmt: skip


def _gemma3(layers: int, hidden: int, heads: int, kv_heads: int, head_dim: int, width: int) -> Shape:
    # Every sixth layer sees the whole context.
    return Shape(layers, hidden, heads, kv_heads, head_dim, width, 262_208, True, 1024, layers - layers // 6,
                 longest_context=_K128)  # fmt: skip


def _gpt_oss(layers: int, experts: int) -> Shape:
    # Every second layer sees the whole context.
    return Shape(layers, 2880, 64, 8, 64, 0, 201_088, False, 128, layers // 2,
                 experts=Experts(experts, 4, 2880), longest_context=_K128)  # fmt: skip


def _smollm2(layers: int, hidden: int, heads: int, kv_heads: int, width: int) -> Shape:
    return Shape(layers, hidden, heads, kv_heads, 64, width, 49_152, True, longest_context=8192)


SHAPES: Mapping[str, Shape] = {
    "meta-llama/Llama-3.1-8B-Instruct": _llama(32, 4096, 32, 14_336),
    "meta-llama/Llama-3.1-70B-Instruct": _llama(80, 8192, 64, 28_672),
    "meta-llama/Llama-3.1-405B-Instruct": _llama(126, 16_384, 128, 53_248),
    "meta-llama/Llama-3.2-1B-Instruct": _llama(16, 2048, 32, 8192, head_dim=64, tied=True),
    "meta-llama/Llama-3.2-3B-Instruct": _llama(28, 3072, 24, 8192, tied=True),
    "Qwen/Qwen2.5-7B-Instruct": _qwen25(28, 3584, 28, 4, 18_944),
    "Qwen/Qwen2.5-32B-Instruct": _qwen25(64, 5120, 40, 8, 27_648),
    "Qwen/Qwen2.5-72B-Instruct": _qwen25(80, 8192, 64, 8, 29_568),
    "Qwen/Qwen3-8B": _qwen3(36, 4096, 32, 12_288),
    "Qwen/Qwen3-32B": _qwen3(64, 5120, 64, 25_600),
    "mistralai/Mistral-7B-Instruct-v0.3": Shape(32, 4096, 32, 8, 128, 14_336, 32_768, longest_context=32_768),
    "mistralai/Mistral-Small-24B-Instruct-2501": Shape(
        40, 5120, 32, 8, 128, 32_768, 131_072, longest_context=32_768
    ),
    "mistralai/Mixtral-8x7B-Instruct-v0.1": Shape(
        32, 4096, 32, 8, 128, 0, 32_000, experts=Experts(8, 2, 14_336), longest_context=32_768
    ),
    "google/gemma-2-9b-it": _gemma2(42, 3584, 16, 8, 256, 14_336),
    "google/gemma-2-27b-it": _gemma2(46, 4608, 32, 16, 128, 36_864),
    "google/gemma-3-4b-it": _gemma3(34, 2560, 8, 4, 256, 10_240),
    "google/gemma-3-12b-it": _gemma3(48, 3840, 16, 8, 256, 15_360),
    "google/gemma-3-27b-it": _gemma3(62, 5376, 32, 16, 128, 21_504),
    "deepseek-ai/DeepSeek-V3": Shape(
        61, 7168, 128, 128, 192, 18_432, 129_280,
        latent=Latent(kv_rank=512, query_rank=1536, rope_dim=64, nope_dim=128, value_dim=128),
        experts=Experts(256, 8, 2048, shared=1, dense_layers=3), longest_context=163_840,
    ),
    "openai/gpt-oss-20b": _gpt_oss(24, 32),
    "openai/gpt-oss-120b": _gpt_oss(36, 128),
    "HuggingFaceTB/SmolLM2-135M-Instruct": _smollm2(30, 576, 9, 3, 1536),
    "HuggingFaceTB/SmolLM2-360M-Instruct": _smollm2(32, 960, 15, 5, 2560),
    "HuggingFaceTB/SmolLM2-1.7B-Instruct": _smollm2(24, 2048, 32, 32, 8192),
}  # fmt: skip

ALIASES: Mapping[str, str] = {
    "meta-llama/Llama-3.3-70B-Instruct": "meta-llama/Llama-3.1-70B-Instruct",
    "deepseek-ai/DeepSeek-R1": "deepseek-ai/DeepSeek-V3",
}

PUBLISHED: Mapping[str, str] = {
    "deepseek-ai/DeepSeek-V3": "fp8",
    "deepseek-ai/DeepSeek-R1": "fp8",
    "openai/gpt-oss-20b": "mxfp4",
    "openai/gpt-oss-120b": "mxfp4",
}
"""The scheme in which a model is published, where that is not 16 bits."""


def find(name: str) -> tuple[str, Shape] | None:
    """The full id and shape of a known model, by its id or the id's last part, in any case; None: not known."""
    wanted = name.lower()
    names = {**{each: each for each in SHAPES}, **ALIASES}
    for full, kept in names.items():
        base = full.lower().removesuffix("-instruct")
        if wanted in (full.lower(), full.lower().partition("/")[2], base, base.partition("/")[2]):
            return full, SHAPES[kept]
    return None
