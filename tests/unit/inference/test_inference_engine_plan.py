"""What is chosen for which hardware, and what it cannot serve."""

from __future__ import annotations

import pytest

from services.inference.engine_plan import ModelFacts, kv_bytes_per_token, plan_engine, unsupported
from services.inference.hardware import Hardware, parse_cpuinfo, parse_gpus
from services.inference.model_folder import Scheme

GIB = 1024**3
MIB = 1024**2
SMALL = ModelFacts(Scheme.INT8, 8192, 163_000_000, 23_040)
LLAMA_8B = ModelFacts(Scheme.NONE, 32_768, 16_060_000_000, 131_072)


def gpu(major: int, minor: int, gib: int, free: int | None = None) -> Hardware:
    return Hardware("GPU", frozenset(), (major, minor), gib * GIB, (gib if free is None else free) * GIB)


def cpu(*flags: str) -> Hardware:
    return Hardware("CPU", frozenset(flags))


@pytest.mark.parametrize(
    ("hardware", "scheme", "kv_dtype", "utilization"),
    [
        (cpu("avx512_vnni", "amx_int8"), "int8", "auto", None),
        (cpu("avx512_vnni"), "int8", "auto", None),
        (cpu("asimd", "i8mm"), "int8", "auto", None),
        (cpu("avx2"), "none", "auto", None),
        (gpu(7, 0, 32), "none", "auto", 0.9),  # V100
        (gpu(7, 5, 15), "int8", "auto", 0.85),  # T4
        (gpu(8, 0, 80), "int8", "auto", 0.9),  # A100
        (gpu(8, 9, 24), "fp8", "fp8", 0.9),  # L4
        (gpu(9, 0, 80), "fp8", "fp8", 0.9),  # H100
        (gpu(10, 0, 180), "fp8", "fp8", 0.9),  # B200
        (gpu(12, 0, 32), "fp8", "fp8", 0.9),  # RTX 5090
    ],
)
def test_scheme_kv_cache_and_memory_by_hardware(
    hardware: Hardware, scheme: str, kv_dtype: str, utilization: float | None
) -> None:
    plan = plan_engine(hardware, LLAMA_8B, 512 * MIB)
    assert (plan.scheme.value, plan.kv_cache_dtype.value) == (scheme, kv_dtype)
    found = plan.gpu_memory_utilization
    assert (found and found.value) == utilization
    assert plan.chunked_prefill.value is True
    assert all(len(line.split(": ", 1)[1]) > 20 for line in plan.lines()), "each says why"
    assert len(plan.lines()) == (5 if hardware.gpu else 4)


@pytest.mark.parametrize(
    ("hardware", "model", "kv_cache_bytes", "count"),
    [
        (cpu(), SMALL, 512 * MIB, 32),
        (cpu(), SMALL, 128 * MIB, 11),  # 128 MiB / 23,040 bytes / 512 tokens
        (cpu(), SMALL, MIB, 1),
        (cpu(), ModelFacts(Scheme.NONE, 8192), MIB, 32),  # nothing is known of its tokens
        (gpu(8, 0, 80), ModelFacts(Scheme.NONE, 8192), 0, 256),
        (gpu(8, 0, 80), LLAMA_8B, 0, 55),  # (80 x 0.9 GiB - 16.06e9 - 2 GiB) / (131,072 x 8,192)
        (gpu(9, 0, 80), LLAMA_8B, 0, 110),  # the same in FP8
        (gpu(8, 6, 24), LLAMA_8B, 0, 8),  # hardly any room: the least, the engine queues the rest
        (gpu(9, 0, 140), SMALL, 0, 256),
    ],
)
def test_sequences_by_memory(hardware: Hardware, model: ModelFacts, kv_cache_bytes: int, count: int) -> None:
    assert plan_engine(hardware, model, kv_cache_bytes).max_num_seqs.value == count


def test_memory_that_others_hold_is_left_to_them() -> None:
    plan = plan_engine(gpu(9, 0, 80, free=40), LLAMA_8B, 0)
    assert plan.gpu_memory_utilization is not None
    assert plan.gpu_memory_utilization.value == 0.48


@pytest.mark.parametrize(
    ("hardware", "refused"),
    [
        (cpu("avx512_vnni"), {Scheme.FP8, Scheme.FP4}),
        (gpu(7, 0, 32), {Scheme.INT8, Scheme.INT4, Scheme.FP8, Scheme.FP4}),
        (gpu(7, 5, 16), {Scheme.FP8, Scheme.FP4}),
        (gpu(8, 0, 80), set()),
        (gpu(8, 9, 24), set()),
        (gpu(9, 0, 80), set()),
        (gpu(10, 0, 180), {Scheme.INT8}),
        (gpu(12, 0, 32), {Scheme.INT8}),
    ],
)
def test_what_hardware_cannot_serve_is_said_with_what_to_do(hardware: Hardware, refused: set[Scheme]) -> None:
    said = {scheme: unsupported(hardware, scheme) for scheme in Scheme}
    assert {scheme for scheme, why in said.items() if why} == refused
    for scheme in refused:
        assert scheme.value in said[scheme]
        assert "use " in said[scheme] or "serve the unquantized" in said[scheme]


def test_bytes_of_a_token() -> None:
    smollm = {"num_hidden_layers": 30, "num_key_value_heads": 3, "num_attention_heads": 9, "head_dim": 64}
    assert kv_bytes_per_token(dict[str, object](smollm)) == 23_040
    llama_8b = {"num_hidden_layers": 32, "num_key_value_heads": 8, "num_attention_heads": 32, "hidden_size": 4096}
    assert kv_bytes_per_token(dict[str, object](llama_8b)) == 131_072
    assert kv_bytes_per_token({"model_type": "mamba"}) == 0


def test_reading_what_the_machine_says() -> None:
    x86 = "processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t\t: fpu avx2 avx512_vnni\n\nprocessor\t: 1\n"
    assert parse_cpuinfo(x86) == Hardware("Some CPU @ 2 GHz", frozenset({"fpu", "avx2", "avx512_vnni"}))
    assert parse_cpuinfo("processor : 0\nFeatures : fp asimd i8mm\n").flags == {"fp", "asimd", "i8mm"}
    assert parse_cpuinfo("") == Hardware("CPU")
    gpus = parse_gpus("NVIDIA H100 80GB HBM3, 9.0, 81559, 81000\nNVIDIA, odd, 8.0, 10, 5\nNVIDIA X, [N/A], 1, 1\n\n")
    assert [(item.name, item.capability, item.memory_bytes) for item in gpus] == [
        ("NVIDIA H100 80GB HBM3", (9, 0), 81559 * MIB),
        ("NVIDIA, odd", (8, 0), 10 * MIB),
    ]
