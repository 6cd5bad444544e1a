"""How many bits a weight has under each quantization scheme, and which weights a scheme leaves alone. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from tenth_client.capacity.shapes import Shape

_KEPT_BITS = 16
"""Embedding, output layer, norms and routers stay in 16 bits under every scheme here."""


@dataclass(frozen=True, slots=True)
class Scheme:
    """Bits of a weight, its share of scales and zero points included.

    ``least_capability``: the compute capability (times ten) from which vLLM runs it. ``experts_only``: attention and
    shared weights stay in 16 bits.
    """

    bits: float
    least_capability: int = 70
    experts_only: bool = False
    below_capability: int = 1000
    """The compute capability (times ten) from which vLLM runs it no more."""


SCHEMES: Mapping[str, Scheme] = {
    "bf16": Scheme(16.0),
    "fp8": Scheme(8.0, 80),  # One scale per output channel: nothing. On Ampere the weights alone, by Marlin.
    "int8": Scheme(8.0, 75, below_capability=100),  # vLLM has no INT8 kernels for Blackwell.
    "awq": Scheme(4 + (16 + 4) / 128, 75),  # Per group of 128 a 16-bit scale and a 4-bit zero point.
    "gptq": Scheme(4 + 16 / 128, 75),  # Symmetric: a scale alone.
    "int4": Scheme(4 + 16 / 128, 75),
    "nvfp4": Scheme(4 + 8 / 16, 80),  # An 8-bit scale per 16; below Blackwell the weights alone, by Marlin.
    "mxfp4": Scheme(4 + 8 / 32, 80, experts_only=True),  # gpt-oss as published: an 8-bit scale per 32.
}
ALSO: Mapping[str, str] = {"fp16": "bf16", "w8a8": "int8", "w4a16": "int4"}

KV_BITS: Mapping[str, int] = {"bf16": 16, "fp8": 8}


def scheme_of(name: str) -> tuple[str, Scheme]:
    """A scheme by its name. Raises ValueError naming the flag and what is known."""
    key = ALSO.get(name.lower(), name.lower())
    if key not in SCHEMES:
        raise ValueError(f"--scheme {name}: not known; choose one of {', '.join((*SCHEMES, *ALSO))}")
    return key, SCHEMES[key]


def expert_bytes(shape: Shape, scheme: Scheme) -> int:
    """Bytes of the routed experts' weights."""
    return round(shape.expert_weights * scheme.bits / 8)


def other_bytes(shape: Shape, scheme: Scheme) -> int:
    """Bytes of all other weights."""
    linear = shape.attention_weights + shape.plain_mlp_weights
    kept = shape.embedding_weights + shape.small_weights
    bits = _KEPT_BITS if scheme.experts_only else scheme.bits
    return round((linear * bits + kept * _KEPT_BITS) / 8)


def weight_bytes(shape: Shape, scheme: Scheme) -> int:
    """Bytes of all weights."""
    return expert_bytes(shape, scheme) + other_bytes(shape, scheme)
