"""The arithmetic of the inference bench: rounds, ratios, streams, cancelling, and what is said to be absent."""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path

import pytest

from bench import inference, inference_schemes
from bench.inference_engine import EngineOptions
from bench.inference_life import add_cancel, add_prefix
from bench.inference_schemes import Measured, add, quantized_nothing, weight_bytes
from bench.inference_stream import Batch, Turns, added_ms, middle, own_seconds
from bench.inference_stream import add as add_stream
from bench.inference_texts import TEXTS, read_text
from bench.inference_windows import Score
from bench.kept import keep
from bench.result import Result

OPTIONS = EngineOptions(context_window=2048, threads=2, kv_cache_bytes=1, max_running=8)


def values(result: Result) -> dict[str, float]:
    return {name: metric["value"] for name, metric in result.metrics.items()}


def test_ratios_are_taken_within_a_round() -> None:
    """The machine was twice as slow in the second round: the ratio is the same in both."""
    bf16 = Measured({1: [80.0, 40.0], 32: [800.0, 400.0]}, [1.4e9, 1.6e9], [8.0, 12.0])
    int8 = Measured({1: [80.0, 40.0], 32: [960.0, 480.0]}, [1.3e9, 1.3e9], [9.0, 9.0])
    for scores, nats in ((bf16.scores, 2.0), (int8.scores, 2.5)):
        scores[""] = [Score(nats * 100, 100)]
    result = Result("inference", quick=False)
    add(result, {"bf16": bf16, "int8": int8}, {"bf16": 269_000_000, "int8": 163_000_000}, seed=7)
    found = values(result)
    assert found["int8/vllm/tokens_per_s_c32"] == 720.0
    for end in ("", "_low", "_high"):
        assert found[f"int8/vllm/tokens_ratio_c32{end}"] == pytest.approx(1.2)
        assert found[f"batching/vllm/speedup_c32{end}"] == 10.0
        assert found[f"int8/vllm/speedup_c32{end}"] == 12.0
    assert found["int8/vllm/weights_mb"] == 163.0
    assert found["int8/vllm/weights_ratio"] == pytest.approx(163 / 269)
    assert found["bf16/vllm/resident_mb"] == 1500.0
    assert found["bf16/vllm/perplexity"] == pytest.approx(2.718281828**2)
    assert found["int8/vllm/perplexity_ratio"] == pytest.approx(2.718281828**0.5)
    assert "bf16/vllm/tokens_ratio_c32" not in found


def test_without_bf16_there_are_no_ratios() -> None:
    result = Result("inference", quick=False)
    add(result, {"int8": Measured({1: [80.0]}, [1.3e9], [9.0])}, {"int8": 163_000_000}, seed=7)
    assert set(values(result)) == {
        "int8/vllm/weights_mb", "int8/vllm/resident_mb", "int8/vllm/start_seconds", "int8/vllm/tokens_per_s_c1",
    }  # fmt: skip


def test_absent_folders_are_named_with_what_makes_them(tmp_path: Path) -> None:
    result = Result("inference", quick=True)
    inference_schemes.measure(result, tmp_path, OPTIONS, tmp_path, 7)
    assert result.metrics == {}
    said = {item.partition(":")[0]: item for item in result.skipped}
    assert {scheme.key for scheme in inference_schemes.SCHEMES} <= set(said)
    assert "`make models` makes it" in said["bf16"]
    assert "`tenth model quantize" in said["int4_gptq"]


@pytest.mark.parametrize(
    ("configuration", "layers", "refused"),
    [
        ({}, {"UnquantizedLinearMethod": 120}, False),
        ({"quantization_config": {}}, {"CompressedTensorsW8A8Int8": 120}, False),
        ({"quantization_config": {}}, {"UnquantizedLinearMethod": 1, "CompressedTensorsWNA16": 119}, False),
        ({"quantization_config": {}}, {"UnquantizedLinearMethod": 120}, True),
        ({"quantization_config": {}}, {}, True),
    ],
)
def test_an_engine_that_quantized_nothing_gives_no_figures(
    tmp_path: Path, configuration: dict[str, object], layers: dict[str, int], *, refused: bool
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(configuration))
    assert bool(quantized_nothing(tmp_path, {"layers": layers})) is refused


def test_weights_are_the_weight_files_alone(tmp_path: Path) -> None:
    for name, size in (("a.safetensors", 1000), ("b.safetensors", 500), ("tokenizer.json", 9999)):
        (tmp_path / name).write_bytes(b"x" * size)
    assert weight_bytes(tmp_path) == 1500


def test_cpu_per_chunk_is_what_the_engine_alone_did_not_take() -> None:
    # 2,000 tokens in 1,900 chunks; the engine alone takes 2 ms a token.
    alone = Batch(cpu_seconds=2.0, tokens=1000, chunks=990)
    assert added_ms(Batch(4.19, 2000, 1900), alone) == pytest.approx(0.1)
    assert added_ms(Batch(3.81, 2000, 1900), alone) == pytest.approx(-0.1), "noise is not hidden"


def test_first_tokens_are_compared_within_a_turn() -> None:
    turns = Turns({"engine": [0.02, 0.2, 0.03], "ours": [0.023, 0.202, 0.034], "vllm_http": [0.03, 0.21, 0.04]})
    turns.batches = {"engine": [Batch(2.0, 1000, 990)], "ours": [Batch(2.2, 1000, 1000, 0.15)]}
    result = Result("inference", quick=False)
    add_stream(result, turns, seed=7)
    found = values(result)
    assert found["stream/ours/ttft_overhead_ms"] == pytest.approx(3.0)
    assert found["stream/vllm_http/ttft_overhead_ms"] == pytest.approx(10.0)
    assert found["stream/ours/ttft_p50_ms"] == pytest.approx(34.0)
    assert found["stream/ours/cpu_ms_per_chunk"] == pytest.approx(0.2)
    assert found["stream/ours/cpu_ms_per_chunk_by_thread"] == pytest.approx(0.15)
    assert found["stream/engine/cpu_ms_per_token"] == 2.0
    assert "stream/engine/ttft_overhead_ms" not in found


def test_a_median_lies_in_its_interval() -> None:
    value, (low, high) = middle([1.0, 2.0, 3.0, 4.0, 100.0], seed=7)
    assert value == 3.0
    assert 1.0 <= low <= 3.0 <= high <= 100.0


def test_the_services_own_threads_are_all_but_the_engines() -> None:
    before = {"10 python": 1.0, "11 python": 5.0, "12 python": 2.0, "13 event_engine": 0.5, "14 python": 0.0}
    after = {
        "10 python": 1.3,  # The event loop: the process's first thread.
        "11 python": 9.0,  # The engine.
        "12 python": 4.0,  # Its OpenMP thread.
        "13 event_engine": 0.6,
        "14 python": 0.05,
        "15 gloo_tcp_loop": 7.0,
    }
    assert own_seconds(before, after, 10, 2) == pytest.approx(0.3 + 0.1 + 0.05)
    assert own_seconds({}, {}, 10, 2) == 0.0


def test_cancelling_and_the_prefix_cache() -> None:
    result = Result("inference", quick=False)
    add_cancel(result, [0.002, 0.003, 0.010], [0.03, 0.04, 0.05], [0.02, 0.02, 0.02])
    add_prefix(result, [(1.0, 0.09, 1920), (2.0, 0.16, 1920), (1.0, 0.10, 1920)])
    found = values(result)
    assert found["cancel/ours/slot_free_p50_ms"] == 3.0
    assert found["cancel/ours/slot_free_p95_ms"] == 10.0
    assert found["cancel/ours/next_first_token_p50_ms"] == 40.0
    assert found["prefix_cache/vllm/ttft_ratio"] == 0.09
    assert found["prefix_cache/vllm/second_ttft_ms"] == 100.0


def test_texts_are_read_once_each(tmp_path: Path) -> None:
    rows: dict[str, list[dict[str, object]]] = {
        "": [{"gold_text": "One."}, {"gold_text": "One."}, {"gold_text": "Two."}],
        "held_out": [{"answers": {"gpt-4-0613": {"text": "Three."}, "other": {"text": "no"}}}, {"answers": {}}],
    }
    for name, lines in rows.items():
        file = tmp_path / f"{TEXTS[name].file}.jsonl.gz"
        file.parent.mkdir(exist_ok=True)
        with gzip.open(file, "wt", encoding="utf-8") as output:
            output.writelines(json.dumps(line) + "\n" for line in lines)
    assert read_text(tmp_path, TEXTS[""]) == "One.\n\nTwo."
    assert read_text(tmp_path, TEXTS["held_out"]) == "Three."


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("int4_gptq/vllm/weights_mb", "schemes"),
        ("batching/vllm/speedup_c32", "schemes"),
        ("prefix_cache/vllm/ttft_ratio", "prefix"),
        ("stream/ours/ttft_overhead_ms", "stream"),
        ("cancel/ours/slot_free_p50_ms", "cancel"),
        ("start/ours/first_token_s", "start"),
        ("int4", "schemes"),
    ],
)
def test_every_metric_has_its_part(name: str, part: str) -> None:
    assert inference.part_of(name) == part


def test_parts_that_are_not_measured_again_keep_their_commit(tmp_path: Path) -> None:
    file = tmp_path / "inference.json"
    known = {"seed": 7, "hardware": {"cpu": "a"}}
    earlier = Result("inference", quick=False, assumptions={**known, "schemes": {"rounds": 3}})
    earlier.add("bf16/vllm/weights_mb", 269, "MB", 1)
    earlier.add("stream/ours/ttft_p50_ms", 20, "ms", 100)
    earlier.skipped = ["int4: no folder", "start: not asked for"]
    file.write_text(json.dumps(earlier.as_json() | {"commit": "abc"}), "utf-8")
    again = Result("inference", quick=False, assumptions=dict(known))
    again.add("stream/ours/ttft_p50_ms", 30, "ms", 100)
    again.skipped = ["schemes: not asked for", "start: not asked for"]
    assert keep(again, file, ["stream"], inference.part_of, ("seed", "hardware")) == ""
    assert values(again) == {"bf16/vllm/weights_mb": 269, "stream/ours/ttft_p50_ms": 30}
    assert again.assumptions["kept"] == {"schemes": "abc"}
    assert again.assumptions["schemes"] == {"rounds": 3}
    assert again.skipped == ["int4: no folder", "start: not asked for"]
    other = Result("inference", quick=False, assumptions={"seed": 7, "hardware": {"gpu": "b"}})
    assert "nothing kept" in keep(other, file, ["stream"], inference.part_of, ("seed", "hardware"))


@pytest.mark.parametrize("part", ["start", "prefix", "stream", "cancel"])
def test_without_the_served_models_folder_a_part_says_what_makes_it(tmp_path: Path, part: str) -> None:
    result = Result("inference", quick=True)
    inference.Bench(result, None, tmp_path, "small", "small-int8", OPTIONS, tmp_path, 7).run(part)
    assert result.metrics == {}
    assert result.skipped == [f"{part}: no folder small-int8; `make models` makes it"]


def test_parts_are_given_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    assert inference.parts("stream,cancel") == ("stream", "cancel")
    for text in ("stream,unknown", ""):
        with pytest.raises(argparse.ArgumentTypeError, match="schemes"):
            inference.parts(text)
