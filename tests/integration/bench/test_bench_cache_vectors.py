"""Vectors are made once, kept in a file, and never taken for those of another model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from bench.cache_vectors import BATCH, KeptEncoder, batches
from services.cache.embedding import Vector


class LetterCounts:
    """An encoder that notes what it was asked."""

    dimension = 2
    precision = "fp32"

    def __init__(self) -> None:
        self.asked: list[str] = []

    def encode(self, texts: Sequence[str]) -> Vector:
        self.asked += texts
        return np.array([[len(text), text.count("a")] for text in texts], np.float32)

    def fits(self, text: str) -> bool:
        return len(text) < 100

    def reads_korean(self) -> bool:
        return True


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "weights").write_bytes(b"1")
    return folder


def test_each_text_is_embedded_once(tmp_path: Path, model: Path) -> None:
    encoder = LetterCounts()
    kept = KeptEncoder(encoder, model, tmp_path)
    first = kept.encode(["banana", "tea", "banana"])
    assert first.tolist() == [[6, 3], [3, 1], [6, 3]]
    assert kept.encode(["tea", "papaya"]).tolist() == [[3, 1], [6, 3]]
    assert encoder.asked == ["banana", "tea", "papaya"]


def test_a_later_run_embeds_only_what_is_new(tmp_path: Path, model: Path) -> None:
    kept = KeptEncoder(LetterCounts(), model, tmp_path)
    kept.load("made")
    kept.encode(["banana", "차 한 잔"])
    kept.save("made")
    encoder = LetterCounts()
    again = KeptEncoder(encoder, model, tmp_path)
    again.load("made")
    assert again.encode(["차 한 잔", "tea", "banana"]).tolist() == [[5, 0], [3, 1], [6, 3]]
    assert encoder.asked == ["tea"]
    again.load("other")
    again.encode(["banana"])
    assert encoder.asked == ["tea", "banana"]


def test_no_text_stands_in_the_file(tmp_path: Path, model: Path) -> None:
    kept = KeptEncoder(LetterCounts(), model, tmp_path)
    kept.encode(["pineapple upside-down cake"])
    kept.save("made")
    (file,) = tmp_path.glob("made-*.npz")
    assert b"pineapple" not in file.read_bytes()


def test_other_weights_or_another_precision_are_another_file(tmp_path: Path, model: Path) -> None:
    def save() -> None:
        kept = KeptEncoder(encoder, model, tmp_path)
        kept.encode(["tea"])
        kept.save("made")

    encoder = LetterCounts()
    save()
    save()
    assert len(list(tmp_path.glob("made-*.npz"))) == 1
    encoder.precision = "int8"
    save()
    assert len(list(tmp_path.glob("made-*.npz"))) == 2
    (model / "weights").write_bytes(b"2")
    save()
    assert len(list(tmp_path.glob("made-*.npz"))) == 3


def test_batches_are_of_about_one_length_and_without_repeats() -> None:
    texts = ["x" * (number % 150) for number in range(400)]
    made = list(batches(texts, "texts"))
    assert [len(batch) for batch in made] == [BATCH, BATCH, 150 - 2 * BATCH]
    joined = [text for batch in made for text in batch]
    assert joined == sorted(set(texts), key=len)
