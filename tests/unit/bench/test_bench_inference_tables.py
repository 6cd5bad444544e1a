"""The inference bench's tables and pictures: what they hold, and when a reach is reached."""

from __future__ import annotations

import pytest

from bench.inference_plots import pictures
from bench.inference_tables import inference_tables
from bench.result import Result
from bench.tables import TABLES


def tables(result: Result) -> list[str]:
    result.assumptions |= {"seed": 7, "hardware": {"cpu": "Some CPU", "flags": ["avx512_vnni"]}, "load_before": 0.1}
    return inference_tables(result.as_json()).splitlines()


@pytest.mark.parametrize(
    ("metric", "value", "said"),
    [
        ("int8/vllm/weights_ratio", 0.62, "yes"),
        ("int8/vllm/weights_ratio", 0.621, "**no**"),
        ("int8/vllm/perplexity_ratio", 1.031, "**no**"),
        ("int8/vllm/tokens_ratio_c32", 1.1, "yes"),
        ("int8/vllm/tokens_ratio_c64", 1.149, "**no**"),
        ("int4/vllm/perplexity_ratio", 1.116, "**no**"),
        ("int4/vllm/weights_ratio", 0.44, "yes"),
        ("batching/vllm/speedup_c32", 8.9, "**no**"),
        ("prefix_cache/vllm/ttft_ratio", 0.09, "yes"),
        ("stream/ours/ttft_overhead_ms", 5.01, "**no**"),
        ("stream/ours/cpu_ms_per_chunk", 0.19, "yes"),
        ("bf16/vllm/start_seconds", 15.1, "**no**"),
        ("start/ours/first_token_s", 14.0, "yes"),
    ],
)
def test_what_is_reached(metric: str, value: float, said: str) -> None:
    result = Result("inference", quick=False)
    result.add(metric, value, "ratio", 3)
    rows = [line for line in tables(result) if line.endswith(("| yes |", "| **no** |"))]
    assert [row.split(" | ")[-1].removesuffix(" |") for row in rows] == [said]


def test_schemes_stand_in_a_row_each_and_absent_ones_say_so() -> None:
    result = Result("inference", quick=False)
    for key, size in (("bf16", 269.0), ("int8", 163.0)):
        result.add(f"{key}/vllm/weights_mb", size, "MB", 1)
        result.add(f"{key}/vllm/resident_mb", 1400.0, "MB", 3)
        result.add(f"{key}/vllm/start_seconds", 8.0, "s", 3)
        for count in (1, 8, 32, 64):
            result.add(f"{key}/vllm/tokens_per_s_c{count}", count * 10.0, "tokens/s", 3)
    result.add("int8/vllm/weights_ratio", 0.606, "ratio", 1)
    result.add("int8/vllm/perplexity", 15.11, "perplexity", 32767)
    result.add("int8/vllm/perplexity_ratio", 1.028, "ratio", 32767, (1.02, 1.035))
    for end, value in (("", 1.1), ("_low", 1.05), ("_high", 1.2)):
        result.add(f"int8/vllm/tokens_ratio_c32{end}", value, "ratio", 3)
    result.skipped = ["int4: no folder m-int4-awq-gptq; `tenth model quantize` makes it"]
    lines = tables(result)
    said = "int8 W8A8, round to nearest, no data"
    assert f"| {said} | 163 | 0.606 | 1400 | 15.11 | 1.028 [1.020, 1.035] |  |  | 8.0 |" in lines
    assert f"| {said} | 10 | 80 | 320 | 640 | 3 |" in lines
    assert f"| {said} |  |  | 1.10x (1.05 to 1.20) |  |  |  |  |" in lines
    assert "| int4 W4A16, AWQ and GPTQ | absent |  |  |  |  |  |  |  |" in lines
    assert not [line for line in lines if line.startswith("| int4 W4A16, GPTQ")]
    assert "Not measured: int4: no folder m-int4-awq-gptq; `tenth model quantize` makes it." in lines


def test_streams_and_cancelling() -> None:
    result = Result("inference", quick=False)
    result.add("stream/ours/ttft_p50_ms", 23.04, "ms", 100)
    result.add("stream/ours/ttft_overhead_ms", 2.5, "ms", 100, (2.4, 2.62))
    result.add("stream/ours/cpu_ms_per_chunk", 0.15, "ms", 16384, (0.1, 0.2))
    result.add("stream/engine/ttft_p50_ms", 20.0, "ms", 100)
    result.add("cancel/ours/slot_free_p50_ms", 2.2, "ms", 40)
    result.add("cancel/ours/slot_free_p95_ms", 3.1, "ms", 40)
    lines = tables(result)
    assert "| Tenth, gRPC | 23.0 | 2.50 [2.40, 2.62] | 100 | 0.150 [0.100, 0.200] |  | 16384 |" in lines
    assert "| the engine alone | 20.0 |  | 100 |  |  |  |" in lines
    assert "| left by its caller: until nothing runs | 2.2 | 3.1 | 40 |" in lines


def test_tables_of_nothing_are_left_out_and_the_hardware_is_said() -> None:
    lines = tables(Result("inference", quick=False, skipped=["stream: not asked for"]))
    assert not [line for line in lines if line.startswith("|")]
    assert "Not measured: stream: not asked for." in lines
    assert any("Some CPU (avx512_vnni, no AMX)" in line for line in lines)
    on_gpu = Result("inference", quick=False, assumptions={"hardware": {"gpu": "Some GPU"}})
    assert "Some GPU" in inference_tables(on_gpu.as_json())
    assert TABLES["inference"] is inference_tables


def test_pictures_of_speed_and_of_quality() -> None:
    result = Result("inference", quick=False)
    assert pictures(result.metrics) == {}
    for key in ("bf16", "int8", "int4_gptq"):
        for count in (8, 1):
            result.add(f"{key}/vllm/tokens_per_s_c{count}", count * 10.0, "tokens/s", 3)
    assert set(pictures(result.metrics)) == {"speed"}
    result.add("bf16/vllm/weights_ratio", 1.0, "ratio", 1)
    result.add("int8/vllm/weights_ratio", 0.606, "ratio", 1)
    result.add("int8/vllm/perplexity_ratio", 1.028, "ratio", 100, (1.02, 1.04))
    made = pictures(result.metrics)
    points = made["quality"]["layer"][1]["data"]["values"]
    assert [(each["size"], each["ratio"], each["high"]) for each in points] == [(1.0, 1.0, 1.0), (0.606, 1.028, 1.04)]
    speeds = made["speed"]["layer"][0]
    assert len(speeds["data"]["values"]) == 6
    assert speeds["encoding"]["x"]["axis"]["values"] == [1, 8]
    assert len(speeds["encoding"]["color"]["scale"]["range"]) == 3
