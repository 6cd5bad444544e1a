"""The numbers of a model's ``config.json`` that its memory follows from. Pure.

Counted are decoder-only transformers with gated MLPs (Llama's form and its descendants), with experts, sliding windows
and DeepSeek's latent attention. Vision towers of multimodal models are not counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GATED_DECODERS = frozenset(
    {
        "llama",
        "mistral",
        "mistral3",
        "mixtral",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "deepseek_v2",
        "deepseek_v3",
        "gpt_oss",
        "phi3",
        "smollm3",
    }
)
"""``model_type`` of the families whose layers are those counted here."""


@dataclass(frozen=True, slots=True)
class Latent:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): ranks and head parts, numbers each.

    ``query_rank`` 0: the query has no low-rank step.
    """

    kv_rank: int
    query_rank: int
    rope_dim: int
    nope_dim: int
    value_dim: int


@dataclass(frozen=True, slots=True)
class Experts:
    """A mixture of experts: of ``count`` routed ones ``active`` work on a token, and ``shared`` ones always.

    ``width`` is an expert's inner width; the first ``dense_layers`` layers have a plain MLP instead.
    """

    count: int
    active: int
    width: int
    shared: int = 0
    dense_layers: int = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """A model's dimensions, all counts of numbers, layers or heads."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    width: int
    """The plain MLP's inner width; 0 where every layer has experts."""
    vocabulary: int
    tied: bool = False
    """True when the output layer is the embedding, which is then stored once."""
    window: int = 0
    """Tokens that a sliding-window layer sees; 0: no layer slides."""
    sliding_layers: int = 0
    latent: Latent | None = None
    experts: Experts | None = None
    longest_context: int = 0
    """Most positions the model was made for; 0: not told."""

    @property
    def attention_weights(self) -> int:
        """Numbers in the attention's matrices, all layers."""
        if self.latent is None:
            one = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
            return self.layers * one
        part = self.latent
        query_dim = self.heads * (part.nope_dim + part.rope_dim)
        query = (self.hidden + query_dim) * part.query_rank if part.query_rank else self.hidden * query_dim
        down = self.hidden * (part.kv_rank + part.rope_dim)
        up = part.kv_rank * self.heads * (part.nope_dim + part.value_dim)
        return self.layers * (query + down + up + self.heads * part.value_dim * self.hidden)

    @property
    def plain_mlp_weights(self) -> int:
        """Numbers in MLPs that every token goes through: plain ones and shared experts."""
        if self.experts is None:
            return self.layers * 3 * self.hidden * self.width
        shared = (self.layers - self.experts.dense_layers) * self.experts.shared * self.experts.width
        return 3 * self.hidden * (self.experts.dense_layers * self.width + shared)

    @property
    def expert_weights(self) -> int:
        """Numbers in the routed experts, all layers."""
        if self.experts is None:
            return 0
        return (self.layers - self.experts.dense_layers) * self.experts.count * 3 * self.hidden * self.experts.width

    @property
    def embedding_weights(self) -> int:
        """Numbers in the embedding, and in the output layer where it is another matrix."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2)

    @property
    def small_weights(self) -> int:
        """Norms and the experts' routers, which no scheme quantizes; biases (under 0.1%) are left out."""
        routers = 0 if self.experts is None else (self.layers - self.experts.dense_layers) * self.experts.count
        return self.hidden * (2 * self.layers + 1 + routers)

    @property
    def parameters(self) -> int:
        """All numbers of the model."""
        return (
            self.attention_weights
            + self.plain_mlp_weights
            + self.expert_weights
            + self.embedding_weights
            + self.small_weights
        )

    @property
    def kv_numbers_per_layer(self) -> int:
        """Numbers that one layer keeps of one token: keys and values, or the latent and its rotated part."""
        if self.latent is not None:
            return self.latent.kv_rank + self.latent.rope_dim
        return 2 * self.kv_heads * self.head_dim

    def kv_numbers(self, tokens: int) -> int:
        """Numbers kept of a sequence of so many tokens; a sliding layer keeps no more than its window."""
        full = self.layers - self.sliding_layers
        return self.kv_numbers_per_layer * (full * tokens + self.sliding_layers * min(tokens, self.window))


def shape_of(config: Mapping[str, Any], where: str) -> Shape:
    """The shape in a ``config.json``. Raises ValueError naming the key that is missing, wrong or not counted here."""
    inner = config.get("text_config")
    if isinstance(inner, Mapping):
        config = {**config, **inner}
    kind = config.get("model_type")
    if kind not in GATED_DECODERS:
        known = ", ".join(sorted(GATED_DECODERS))
        raise ValueError(f"{where}: model_type {kind!r} is not counted here; known are {known}")
    read = _Config(config, where)
    layers, hidden, heads = (
        read.count("num_hidden_layers"),
        read.count("hidden_size"),
        read.count("num_attention_heads"),
    )
    sliding, window = _sliding(read, layers)
    experts = _experts(read)
    return Shape(
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=read.count("num_key_value_heads", heads),
        head_dim=read.count("head_dim", max(1, hidden // heads)),
        width=0 if experts is not None and not experts.dense_layers else read.count("intermediate_size"),
        vocabulary=read.count("vocab_size"),
        tied=read.flag("tie_word_embeddings", kind in ("gemma2", "gemma3", "gemma3_text")),
        window=window if sliding else 0,
        sliding_layers=sliding,
        latent=_latent(read),
        experts=experts,
        longest_context=read.count("max_position_embeddings", 0),
    )


class _Config:
    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self.config = config
        self.where = where

    def count(self, key: str, default: int | None = None) -> int:
        value = self.config.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{self.where}: {key} is {value!r}, a whole number of at least 1 is needed")
        return value

    def flag(self, key: str, default: bool) -> bool:
        value = self.config.get(key)
        return value if isinstance(value, bool) else default

    def has(self, key: str) -> bool:
        return self.config.get(key) is not None


def _sliding(read: _Config, layers: int) -> tuple[int, int]:
    """How many layers slide, and their window."""
    if not read.has("sliding_window") or not read.flag("use_sliding_window", True):
        return 0, 0
    window = read.count("sliding_window")
    kinds = read.config.get("layer_types")
    if isinstance(kinds, list) and len(kinds) == layers:
        return sum(kind == "sliding_attention" for kind in kinds), window
    every = {"gemma2": 2, "gpt_oss": 2, "gemma3": 6, "gemma3_text": 6}.get(str(read.config.get("model_type")), 0)
    every = read.count("sliding_window_pattern", every) if every else 0
    return (layers - layers // every, window) if every else (layers, window)


def _latent(read: _Config) -> Latent | None:
    if not read.has("kv_lora_rank"):
        return None
    return Latent(
        kv_rank=read.count("kv_lora_rank"),
        query_rank=read.count("q_lora_rank", 0),
        rope_dim=read.count("qk_rope_head_dim"),
        nope_dim=read.count("qk_nope_head_dim"),
        value_dim=read.count("v_head_dim"),
    )


def _experts(read: _Config) -> Experts | None:
    names = ("num_local_experts", "n_routed_experts", "num_experts")
    name = next((each for each in names if read.has(each)), "")
    if not name:
        return None
    width = "moe_intermediate_size" if read.has("moe_intermediate_size") else "intermediate_size"
    return Experts(
        count=read.count(name),
        active=read.count("num_experts_per_tok"),
        width=read.count(width),
        shared=read.count("n_shared_experts", 0),
        dense_layers=read.count("first_k_dense_replace", 0),
    )
