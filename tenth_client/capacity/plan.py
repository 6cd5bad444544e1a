"""The arithmetic of a capacity plan. Pure.

Memory of a GPU times its share, less working memory, less its part of the weights, is what keys and values have. Both
defaults are vLLM's way of counting: 0.9 of the memory, and 2 GiB for activations, CUDA's own and the graphs, which a
70B model was seen to take; they are flags because a deployment knows better.

Throughput is never invented: it is given as measured, or a roofline's upper bound (Williams, Waterman and Patterson,
2009): a step of decoding can take no less time than reading the weights and the sequences' keys and values once.
"""

from __future__ import annotations

from dataclasses import dataclass

from tenth_client.capacity.hardware import GIB, Gpu
from tenth_client.capacity.schemes import KV_BITS, Scheme, expert_bytes, other_bytes, weight_bytes
from tenth_client.capacity.shapes import Shape

MEMORY_SHARE = 0.9
WORKING_GIB = 2.0
MAX_SEQUENCES = 256
_MOST_GPUS = 64
_BLOCK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Wanted:
    """What shall run: tokens, shares from 0 to 1, GiB and counts as the names say."""

    shape: Shape
    gpu: Gpu
    scheme: Scheme
    context_tokens: int
    kv_dtype: str = "bf16"
    memory_share: float = MEMORY_SHARE
    working_gib: float = WORKING_GIB
    max_sequences: int = MAX_SEQUENCES
    weight_bytes: int = 0
    """The weights as they lie on disk; 0: by shape and scheme."""

    @property
    def weights(self) -> int:
        """Bytes of the weights."""
        return self.weight_bytes or weight_bytes(self.shape, self.scheme)

    def kv_bytes(self, tokens: int) -> int:
        """Bytes that a sequence of so many tokens keeps, over all GPUs, each number once."""
        return self.shape.kv_numbers(tokens) * KV_BITS[self.kv_dtype] // 8

    @property
    def sequence_bytes(self) -> int:
        """Bytes of a sequence of the whole context, which is kept in blocks."""
        blocks = -(-self.context_tokens // _BLOCK_TOKENS)
        return self.kv_bytes(blocks * _BLOCK_TOKENS)


@dataclass(frozen=True, slots=True)
class Fit:
    """What a model has on ``gpus`` GPUs that share it by tensor parallelism."""

    gpus: int
    kv_bytes: int
    """Memory for keys and values on each GPU; below 0: the weights do not fit."""
    sequence_bytes: int
    """Of it, one sequence of the whole context takes so much."""
    kv_tokens: int
    """Tokens that fit in sequences of the whole context."""

    @property
    def sequences(self) -> int:
        """Sequences of the whole context at once."""
        return max(0, self.kv_bytes // self.sequence_bytes)

    @property
    def fits(self) -> bool:
        """True when the weights and at least one whole sequence have room."""
        return self.sequences > 0


@dataclass(frozen=True, slots=True)
class Cost:
    """USD for a million output tokens."""

    tokens_per_second: float
    measured: bool
    """False: the throughput is a roofline's upper bound, and the cost a lower one."""
    usd_per_million: float


def parallel_degrees(shape: Shape) -> tuple[int, ...]:
    """The tensor-parallel degrees a model can have: they divide its heads, and its key-value heads or are divided by
    them (each GPU then keeps a copy)."""

    def divides(degree: int) -> bool:
        if shape.heads % degree:
            return False
        return bool(shape.latent) or shape.kv_heads % degree == 0 or degree % shape.kv_heads == 0

    return tuple(degree for degree in range(1, _MOST_GPUS + 1) if divides(degree))


def fit(wanted: Wanted, gpus: int) -> Fit:
    """The plan on so many GPUs."""
    shape = wanted.shape
    free = wanted.gpu.memory_bytes * wanted.memory_share - wanted.working_gib * GIB
    kv_bytes = int(free - wanted.weights / gpus)
    # A latent is kept whole on each GPU; heads are split, and copied where there are fewer of them than GPUs.
    parts = 1 if shape.latent else min(gpus, shape.kv_heads)
    sequence = -(-wanted.sequence_bytes // parts)
    return Fit(gpus, kv_bytes, sequence, max(0, kv_bytes) * wanted.context_tokens // sequence)


def smallest(wanted: Wanted, most: int) -> Fit | None:
    """The smallest degree on which it fits, at most ``most`` GPUs; None: on none of them."""
    return next(
        (found for degree in parallel_degrees(wanted.shape) if degree <= most and (found := fit(wanted, degree)).fits),
        None,
    )


def roofline(wanted: Wanted, found: Fit) -> float:
    """Output tokens per second that the memory's bandwidth allows at most, of all GPUs of the fit together, with as
    many whole sequences as have room, or as the engine works on at once."""
    together = min(found.sequences, wanted.max_sequences)
    experts = expert_bytes(wanted.shape, wanted.scheme)
    plain = wanted.weights - experts if wanted.weight_bytes else other_bytes(wanted.shape, wanted.scheme)
    if not wanted.shape.tied:
        # One row of the embedding is read for a token; where it is tied, the output layer reads all of it.
        plain -= wanted.shape.embedding_weights
    if wanted.shape.experts is not None:
        # The experts that a step reads: those that any of its tokens is sent to, taken as independent and even.
        spared = (1 - wanted.shape.experts.active / wanted.shape.experts.count) ** together
        experts = round(experts * (1 - spared))
    read = (max(0, plain) + experts) / found.gpus + together * found.sequence_bytes
    return together * wanted.gpu.gigabytes_per_second * 1e9 / read


def cost(found: Fit, hour_usd: float, tokens_per_second: float, utilization: float, *, measured: bool) -> Cost:
    """What a million output tokens cost: the GPUs' hours, paid for whether they work or not."""
    made_per_hour = tokens_per_second * 3600 * utilization
    return Cost(tokens_per_second, measured, found.gpus * hour_usd / made_per_hour * 1e6)
