"""The engine's settings that follow from the hardware, each with its reason.

Pure: facts in, choices out; `hardware.py` and `model_folder.py` bring the facts. What a setting says goes before.
Sources: vLLM's table of supported quantization kernels (docs, "Quantization: supported hardware"); the figures of this
project's own CPU runs, in `README.md`.
"""

from __future__ import annotations

from dataclasses import dataclass

from services.inference.hardware import Hardware
from services.inference.model_folder import Scheme

_GIB = 1024**3
_TURING, _AMPERE, _ADA, _BLACKWELL = (7, 5), (8, 0), (8, 9), (10, 0)
_CPU_SEQUENCES = 32
_GPU_SEQUENCES = (8, 256)
_SEQUENCE_TOKENS = 512
"""Tokens that each running sequence should find room for on a CPU."""
_WORK_BYTES = 2 * _GIB
"""GPU memory kept for activations and graphs beside weights and KV cache: an estimate, vLLM measures it at start."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the plan needs of a model. Bytes; zeros where the folder does not say. ``kv_bytes_per_token`` at 16 bits."""

    scheme: Scheme
    context_window: int
    weight_bytes: int = 0
    kv_bytes_per_token: int = 0


@dataclass(frozen=True, slots=True)
class Choice:
    """One setting, and why."""

    value: str | int | float | bool
    reason: str


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """What is chosen. ``scheme`` is a recommendation (a folder is as it is); the rest is used where a setting is left
    at automatic. ``gpu_memory_utilization`` None: a CPU, whose KV cache has a setting in bytes."""

    scheme: Choice
    kv_cache_dtype: Choice
    max_num_seqs: Choice
    chunked_prefill: Choice
    gpu_memory_utilization: Choice | None = None

    def lines(self) -> list[str]:
        """For the log: a line for each choice."""
        named = (
            ("recommended scheme", self.scheme),
            ("kv_cache_dtype", self.kv_cache_dtype),
            ("max_num_seqs", self.max_num_seqs),
            ("gpu_memory_utilization", self.gpu_memory_utilization),
            ("chunked_prefill", self.chunked_prefill),
        )
        return [f"{name} {choice.value}: {choice.reason}" for name, choice in named if choice is not None]


def plan_engine(hardware: Hardware, model: ModelFacts, kv_cache_bytes: int) -> EnginePlan:
    """The plan for one model. ``kv_cache_bytes`` is the CPU engine's KV memory."""
    chunked = Choice(True, "a long prompt is read in pieces between the steps of running answers, which do not stall")
    if not hardware.gpu:
        return EnginePlan(
            scheme=_cpu_scheme(hardware.flags),
            kv_cache_dtype=Choice("auto", "the CPU attention reads 16-bit keys and values"),
            max_num_seqs=_cpu_sequences(model, kv_cache_bytes),
            chunked_prefill=chunked,
        )
    utilization = _utilization(hardware)
    kv = _gpu_kv(hardware)
    return EnginePlan(
        scheme=_gpu_scheme(hardware),
        kv_cache_dtype=kv,
        max_num_seqs=_gpu_sequences(hardware, model, float(utilization.value), halved=kv.value == "fp8"),
        chunked_prefill=chunked,
        gpu_memory_utilization=utilization,
    )


def unsupported(hardware: Hardware, scheme: Scheme) -> str:
    """Why this hardware cannot serve weights of a scheme, and what to do; empty when it can."""
    capability = hardware.capability
    instead = ""
    if capability is None:
        if scheme in (Scheme.FP8, Scheme.FP4):
            instead = "CPUs have no kernels for it (FP8 was seen to run at 1.6 tokens/s): use int8"
    elif scheme is Scheme.INT8 and capability >= _BLACKWELL:
        instead = "vLLM has no INT8 kernels from compute capability 10.0 on: use fp8"
    elif scheme is Scheme.FP8 and capability < _AMPERE:
        instead = "FP8 weights need compute capability 8.0, FP8 arithmetic 8.9: use int8 or int4"
    elif scheme is Scheme.FP4 and capability < _AMPERE:
        instead = "FP4 weights need compute capability 8.0, FP4 arithmetic 10.0: use int8 or int4"
    elif scheme in (Scheme.INT8, Scheme.INT4) and capability < _TURING:
        instead = "its kernels need compute capability 7.5: serve the unquantized model"
    if not instead:
        return ""
    return f"{hardware.name}{_of(capability)} cannot serve {scheme} weights: {instead} (`tenth model quantize`)"


def kv_bytes_per_token(config: dict[str, object]) -> int:
    """Bytes of keys and values that a token takes at 16 bits: 2 (K and V) x layers x KV heads x head size x 2 bytes.

    From a folder's config.json; 0 where it does not say (other attention than multi-head or grouped-query).
    """

    def number(name: str) -> int:
        value = config.get(name)
        return value if isinstance(value, int) and not isinstance(value, bool) else 0

    heads = number("num_attention_heads")
    head_size = number("head_dim") or (number("hidden_size") // heads if heads else 0)
    return 2 * number("num_hidden_layers") * (number("num_key_value_heads") or heads) * head_size * 2


def _cpu_scheme(flags: frozenset[str]) -> Choice:
    if "amx_int8" in flags:
        return Choice("int8", "AMX multiplies 8-bit tiles")
    if "avx512_vnni" in flags or "avx_vnni" in flags:
        return Choice("int8", "AVX-512 VNNI multiplies 8-bit integers: 1.1 to 1.2 times bfloat16's tokens/s here")
    if "i8mm" in flags or "asimddp" in flags:
        return Choice("int8", "the processor has 8-bit dot products")
    return Choice("none", "no 8-bit dot products (AMX, VNNI, i8mm): int8 saves memory here, not time")


def _cpu_sequences(model: ModelFacts, kv_cache_bytes: int) -> Choice:
    if model.kv_bytes_per_token:
        room = max(1, kv_cache_bytes // model.kv_bytes_per_token // _SEQUENCE_TOKENS)
        if room < _CPU_SEQUENCES:
            return Choice(room, f"the KV cache holds {_SEQUENCE_TOKENS} tokens for each of so many")
    return Choice(_CPU_SEQUENCES, "11 times the tokens/s of one sequence; twice as many add a quarter and wait longer")


def _gpu_scheme(hardware: Hardware) -> Choice:
    capability = hardware.capability or (0, 0)
    if capability >= _BLACKWELL:
        return Choice(
            "fp8", "Blackwell multiplies FP8, vLLM has no INT8 kernels for it; NVFP4 pays from 30B parameters"
        )
    if capability >= _ADA:
        return Choice("fp8", "Ada and Hopper multiply FP8, which loses next to nothing")
    if capability >= _AMPERE:
        return Choice("int8", "Ampere multiplies INT8 and not FP8; int4 where a model would not fit otherwise")
    if capability >= _TURING:
        return Choice("int8", "Turing multiplies INT8")
    return Choice("none", "before compute capability 7.5 vLLM has no quantized kernels")


def _gpu_kv(hardware: Hardware) -> Choice:
    if (hardware.capability or (0, 0)) >= _ADA:
        return Choice("fp8", "half the bytes, so twice the tokens; the GPU converts FP8 itself")
    return Choice("auto", "no FP8 arithmetic before Ada: keys and values stay 16-bit")


def _utilization(hardware: Hardware) -> Choice:
    if hardware.memory_bytes and hardware.free_bytes < 0.9 * hardware.memory_bytes:
        share = max(0.1, int(100 * hardware.free_bytes / hardware.memory_bytes - 2) / 100)
        return Choice(share, "others hold the rest of the GPU's memory now")
    if 0 < hardware.memory_bytes < 16 * _GIB:
        return Choice(0.85, "a small GPU needs the margin for activations")
    return Choice(0.9, "vLLM's own default; the rest is for the driver and fragments")


def _gpu_sequences(hardware: Hardware, model: ModelFacts, utilization: float, *, halved: bool) -> Choice:
    least, most = _GPU_SEQUENCES
    if not (model.kv_bytes_per_token and model.weight_bytes):
        return Choice(most, "vLLM's own default; the folder does not say what a token takes")
    space = hardware.memory_bytes * utilization - model.weight_bytes - _WORK_BYTES
    each = model.kv_bytes_per_token / (2 if halved else 1) * model.context_window / 4
    count = max(least, min(most, int(space // each)))
    if count == most:
        return Choice(most, "vLLM's own default; the KV cache holds more")
    return Choice(count, "so many sequences find KV memory for a quarter of the context window each")


def _of(capability: tuple[int, int] | None) -> str:
    return "" if capability is None else f" (compute capability {capability[0]}.{capability[1]})"
