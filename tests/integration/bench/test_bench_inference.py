"""The inference bench's own engine, on the folder that ``make models`` builds: it counts what the engine did."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from bench.inference_engine import Engine, EngineError, EngineOptions, running
from bench.inference_schemes import MODEL, quantized_nothing

FOLDER = Path(os.environ.get("TENTH_MODELS_DIR", ".models")).absolute() / MODEL
OPTIONS = EngineOptions(context_window=1024, threads=2, kv_cache_bytes=64 * 1024 * 1024, max_running=4)
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.skipif(
        find_spec("vllm") is None or not (FOLDER / "config.json").is_file(), reason="no vLLM, or no model folder"
    ),
]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    with running(FOLDER, OPTIONS, tmp_path_factory.mktemp("engine") / "log") as engine:
        yield engine


def test_an_engine_says_how_it_runs(engine: Engine) -> None:
    assert 0 < engine.ready["start_seconds"] < 300
    assert sum(engine.ready["layers"].values()) == 120
    assert quantized_nothing(FOLDER, engine.ready) == ""
    assert engine.ask("resident")["bytes"] > 500e6
    assert engine.cpu_seconds() > 0


def test_every_sequence_is_as_long_as_asked(engine: Engine) -> None:
    made = engine.ask("speed", concurrency=3, output_tokens=6, waves=2)
    assert made["tokens"] == 3 * 6 * 2
    assert made["seconds"] > 0
    assert made["cpu_seconds"] > 0


def test_answers_are_counted_in_tokens_and_chunks(engine: Engine) -> None:
    texts = ["What is the capital of France?", "Tell me a long story."]
    made = engine.ask("answers", texts=texts, output_tokens=5)["answers"]
    assert [each["tokens"] for each in made] == [5, 5]
    assert all(0 < each["chunks"] <= 5 and each["first_seconds"] > 0 for each in made)


def test_a_second_prompt_finds_the_prefix_of_the_first(engine: Engine) -> None:
    ((first, second, cached),) = engine.ask("prefix", prefix_tokens=300, prompts=1, seed=7)["pairs"]
    assert cached == 256, "whole blocks of 128"
    assert first > 0
    assert second > 0


def test_a_repeated_text_is_less_surprising_than_one_backwards(engine: Engine) -> None:
    plain = "The bridge over the river was built by the town's masons. " * 30
    asked = {"tokens": 200, "window": 128, "stride": 64}
    scores = engine.ask("score", text=plain, **asked)["scores"]
    assert sum(tokens for _, tokens in scores) == 199
    odd = plain[::-1]
    strange = engine.ask("score", text=odd, **asked)["scores"]
    mean = [sum(nats for nats, _ in each) / sum(tokens for _, tokens in each) for each in (scores, strange)]
    assert 0 < math.exp(mean[0]) < math.exp(mean[1])


def test_a_folder_that_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(EngineError, match=r"(?i)model"):
        Engine(tmp_path, OPTIONS, tmp_path / "log")
