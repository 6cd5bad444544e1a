"""The embedder's thread, batches, memory and failures, over a fake encoder."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mesh.errors import TenthError
from services.cache.embedding import Embedder, Vector, load_encoder


class FakeEncoder:
    """Counts batches; a text's vector is its length on the first axis."""

    dimension = 4

    def __init__(self, precision: str = "fp32", korean: bool = True) -> None:
        self.precision = precision
        self.korean = korean
        self.batches: list[list[str]] = []
        self.running = 0
        self.gate = threading.Event()
        self.gate.set()

    def encode(self, texts: Sequence[str]) -> Vector:
        self.running += 1
        self.gate.wait(5)
        self.running -= 1
        self.batches.append(list(texts))
        if "bad" in texts:
            raise ValueError("bad")
        return np.array([[len(text), 0, 0, 0] for text in texts], np.float32)

    def fits(self, text: str) -> bool:
        return len(text) < 100

    def reads_korean(self) -> bool:
        return self.korean


@pytest.fixture
def encoder() -> FakeEncoder:
    return FakeEncoder()


async def test_concurrent_texts_make_one_batch_and_equal_ones_are_embedded_once(encoder: FakeEncoder) -> None:
    embedder = Embedder(encoder, "fake", batch_count=8)
    encoder.gate.clear()
    first = asyncio.create_task(embedder.embed(["a"]))
    await asyncio.sleep(0.02)
    rest = [asyncio.create_task(embedder.embed([f"{'b' * (index % 5 + 2)}"])) for index in range(50)]
    await asyncio.sleep(0.02)
    encoder.gate.set()
    assert (await first).vectors[0][0] == 1
    for index, task in enumerate(rest):
        assert (await task).vectors[0][0] == index % 5 + 2
    assert [len(batch) for batch in encoder.batches] == [1, 5]
    await embedder.close()


async def test_order_duplicates_and_memory(encoder: FakeEncoder) -> None:
    embedder = Embedder(encoder, "fake", batch_count=4, memory_count=2)
    result = await embedder.embed(["aaa", "b", "aaa", "cc"])
    assert [vector[0] for vector in result.vectors] == [3, 1, 3, 2]
    assert embedder.remembered("cc")
    assert not embedder.remembered("aaa")
    again = await embedder.embed(["cc"])
    assert again.compute_micros == 0
    assert len(encoder.batches) == 1
    assert (await embedder.embed([])).vectors == ()
    await embedder.close()


async def test_a_failed_batch_fails_its_callers_and_no_one_else(encoder: FakeEncoder) -> None:
    embedder = Embedder(encoder, "fake", batch_count=1)
    results = await asyncio.gather(embedder.embed(["bad"]), embedder.embed(["good"]), return_exceptions=True)
    assert isinstance(results[0], ValueError)
    assert not isinstance(results[1], BaseException)
    await embedder.close()


async def test_a_caller_that_leaves_does_not_take_the_text_from_others(encoder: FakeEncoder) -> None:
    embedder = Embedder(encoder, "fake")
    encoder.gate.clear()
    leaver = asyncio.create_task(embedder.embed(["text"]))
    stayer = asyncio.create_task(embedder.embed(["text"]))
    await asyncio.sleep(0.02)
    leaver.cancel()
    await asyncio.gather(leaver, return_exceptions=True)
    encoder.gate.set()
    assert (await stayer).vectors[0][0] == 4
    await embedder.close()


async def test_questions_go_before_passages(encoder: FakeEncoder) -> None:
    embedder = Embedder(encoder, "fake")
    encoder.gate.clear()
    tasks = [asyncio.create_task(embedder.embed(["first"]))]
    await asyncio.sleep(0.02)
    tasks.append(asyncio.create_task(embedder.embed(["passage one", "passage two", "asked as well"], patient=True)))
    await asyncio.sleep(0.02)
    tasks.append(asyncio.create_task(embedder.embed(["question"])))
    tasks.append(asyncio.create_task(embedder.embed(["asked as well"])))
    await asyncio.sleep(0.02)
    encoder.gate.set()
    await asyncio.gather(*tasks)
    order = [text for batch in encoder.batches for text in batch]
    assert order == ["first", "question", "asked as well", "passage one", "passage two"]
    await embedder.close()


async def test_threads_take_a_text_each_and_none_is_forgotten(encoder: FakeEncoder) -> None:
    embedder = Embedder(encoder, "fake", thread_count=2)
    encoder.gate.clear()
    tasks = [asyncio.create_task(embedder.embed([f"{'a' * (index + 1)}"])) for index in range(3)]
    await asyncio.sleep(0.02)
    assert encoder.running == 2
    encoder.gate.set()
    assert [int((await task).vectors[0][0]) for task in tasks] == [1, 2, 3]
    for index in range(50):
        # Asked in the very moment in which the threads' workers have run out of texts.
        assert (await asyncio.wait_for(embedder.embed([f"again {index}"]), 5)).vectors
    await embedder.close()


async def test_a_full_queue_is_a_typed_error(encoder: FakeEncoder) -> None:
    embedder = Embedder(encoder, "fake", batch_count=1, queue_count=2)
    encoder.gate.clear()
    tasks = [asyncio.create_task(embedder.embed([str(index)])) for index in range(2)]
    await asyncio.sleep(0.02)
    with pytest.raises(TenthError) as caught:
        await embedder.embed(["x", "y", "z", "w"])
    assert caught.value.reason == "EMBED_QUEUE_FULL"
    encoder.gate.set()
    await asyncio.gather(*tasks)
    await embedder.close()


async def test_vectors_of_one_precision_never_meet_those_of_another() -> None:
    versions = []
    for precision in ("fp32", "int8"):
        embedder = Embedder(FakeEncoder(precision), "fake")
        versions.append(embedder.version)
        await embedder.close()
    assert versions == ["fake@2-fp32", "fake@2-int8"]


@pytest.mark.parametrize("korean", [True, False])
async def test_an_embedder_that_loses_hangul_is_warned_of_at_start(
    korean: bool, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = Embedder(FakeEncoder(korean=korean), "fake")
    await embedder.close()
    assert embedder.reads_korean is korean
    assert ("fake cannot read Hangul" in caplog.text) is not korean


def test_a_missing_folder_names_itself_and_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(TenthError) as caught:
        load_encoder(tmp_path, "all-MiniLM-L6-v2")
    assert caught.value.reason == "EMBEDDER_MISSING"
    assert str(tmp_path / "all-MiniLM-L6-v2") in caught.value.message
    assert "make models" in caught.value.message


def test_a_model_of_another_kind_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "other"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "mpnet"}')
    (folder / "tokenizer.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(TenthError) as caught:
        load_encoder(tmp_path, "other")
    assert caught.value.reason == "EMBEDDER_UNSUPPORTED"
