"""Training on a small folder of recorded sets, with an embedder that hashes words."""

from __future__ import annotations

import gzip
import hashlib
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from services.router import train
from services.router.datasets import LARGE, SMALL, held_out, read
from services.router.features import Prompt, extract
from services.router.fit import RECIPES
from services.router.heads import Matrix, heads_from_bytes
from services.router.train import FEATURE_NAMES, Corpus, Everyday, folds_of, without

WORDS = ("river", "stone", "window", "cloud", "garden", "paper", "mirror", "bridge", "candle", "forest", "lamp", "boat")
SETS = ("routellm_mmlu", "routellm_gsm8k")


class HashEncoder:
    """A vector of 24 dimensions from each word's digest."""

    def encode(self, texts: Sequence[str]) -> Matrix:
        rows = np.zeros((len(texts), 24), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in text.lower().split():
                digest = hashlib.sha256(word.encode()).digest()[:24]
                row += np.frombuffer(digest, np.uint8).astype(np.float32) / 128 - 1
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(rows / np.maximum(norms, 1e-6), np.float32)


def sentence(name: str, number: int) -> str:
    drawn = np.random.default_rng(number + 100_000 * SETS.index(name))
    return f"Question {number} about " + " ".join(drawn.choice(WORDS, 7)) + f" number {drawn.integers(10_000)}?"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets whose strong model is right and whose weak one fails on stones; they share thirty questions."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "router").mkdir()
    for name in SETS:
        texts = [sentence(name, number) for number in range(380)]
        if name == SETS[1]:
            texts[:30] = [sentence(SETS[0], number) for number in range(30)]
        with gzip.open(folder / "router" / f"{name}.jsonl.gz", "wt", encoding="utf-8") as lines:
            for number, text in enumerate(texts):
                weak = float("stone" not in text)
                row = {"id": number, "prompt": text, "weak_correct": weak, "strong_correct": float(number % 20 > 0)}
                lines.write(json.dumps(row | {"weak_response": "word " * 20, "strong_response": "word " * 40}) + "\n")
    return folder


@pytest.fixture(scope="module")
def corpus(data: Path) -> Corpus:
    rows = [row for name in SETS for row in read(data, name)]
    plain = [f"please send my {word} to the other {place}" for word in WORDS for place in ("house", "office", "shop")]
    vectors = HashEncoder().encode([*(row.text for row in rows), *plain])
    found = [extract(Prompt(question=text)) for text in (*(row.text for row in rows), *plain)]
    numbers = np.array([[getattr(each, name) for name in FEATURE_NAMES] for each in found], np.float32)
    count = len(rows)
    return Corpus(tuple(rows), vectors[:count], numbers[:count], Everyday(vectors[count:], numbers[count:]))


RECIPE_OF = dict.fromkeys(SETS, RECIPES[0])


@pytest.fixture(scope="module")
def content(corpus: Corpus) -> bytes:
    return train.train(corpus, "hash@1", RECIPE_OF, 7, folds=2)


def test_twice_the_same_bytes(corpus: Corpus, content: bytes) -> None:
    assert train.train(corpus, "hash@1", RECIPE_OF, 7, folds=2) == content


def test_another_seed_gives_other_heads(corpus: Corpus, content: bytes) -> None:
    assert train.train(corpus, "hash@1", RECIPE_OF, 8, folds=2) != content


def test_the_heads_learn_what_the_weak_model_fails_on(corpus: Corpus, content: bytes) -> None:
    heads = heads_from_bytes(content, "trained")
    said = heads.raw_rows(corpus.vectors, corpus.numbers)[0]
    stones = np.array(["stone" in row.text for row in corpus.rows])
    weak = said[:, heads.arms.index("mixtral-8x7b")]
    assert weak[stones].mean() < 0.3 < 0.7 < weak[~stones].mean()
    assert {"class:medium", LARGE, SMALL, "gpt-4-1106"} <= set(heads.arms)
    assert heads.embedder_version == "hash@1"
    assert len(heads.sample.predicted) > 0


def test_a_file_has_no_text_of_its_rows(corpus: Corpus, content: bytes) -> None:
    assert not any(row.text.encode() in content or row.group.encode() in content for row in corpus.rows)
    assert b"stone" not in content


def test_held_out_rows_are_about_three_of_twenty_by_group(corpus: Corpus) -> None:
    held = np.array([held_out(row) for row in corpus.rows])
    assert 0.09 < held.mean() < 0.22
    groups = {row.group for row in corpus.rows if held_out(row)}
    assert groups.isdisjoint(row.group for row in corpus.where(~held).rows)


def test_transfer_leaves_out_a_set_and_what_overlaps_it(corpus: Corpus) -> None:
    rest = without(corpus, SETS[1])
    assert set(rest.sets) == {SETS[0]}
    assert len(rest.rows) == 350, "thirty questions stand in both"
    left_out = {row.group for row in corpus.rows if row.set_name == SETS[1]}
    assert left_out.isdisjoint(row.group for row in rest.rows)


def test_a_group_is_in_one_fold(corpus: Corpus) -> None:
    fold = folds_of(corpus.rows, 5, 7)
    of: dict[str, set[int]] = {}
    for row, place in zip(corpus.rows, fold.tolist(), strict=True):
        of.setdefault(row.group, set()).add(place)
    assert all(len(places) == 1 for places in of.values())
    assert set(fold.tolist()) == {0, 1, 2, 3, 4}


def test_a_curve_is_printed_and_nothing_is_written(
    corpus: Corpus, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "RECIPES", (RECIPES[0],))
    train.print_curve(corpus, "hash@1", SETS[0], 7)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == [
        f"{SETS[0]}/learning_curve/apgr_{share}" for share in (10, 20, 40, 60, 80, 100)
    ]
    figures = [float(line.split(": ")[1].split(" ")[0]) for line in lines]
    assert all(0.0 <= figure <= 1.0 for figure in figures)
    assert figures[-1] > 0.7


def test_the_command_writes_all_files(
    data: Path, corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, int]] = []

    def remembered(corpus: Corpus, version: str, recipes: object, seed: int, **more: object) -> bytes:
        asked.append((version, len(corpus.rows)))
        return b"heads"

    monkeypatch.setattr(train, "read_corpus", lambda *_: (corpus, "hash@1"))
    monkeypatch.setattr(train, "choose_recipes", lambda *_: RECIPE_OF)
    monkeypatch.setattr(train, "train", remembered)
    monkeypatch.setattr("sys.argv", ["train", f"--data={data}", f"--out={tmp_path}"])
    train.main()
    files = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.npz"))
    assert files == ["heads.npz", "held_out.npz", *(f"transfer/{name}.npz" for name in sorted(SETS))]
    held = sum(map(held_out, corpus.rows))
    assert asked[0][1] == len(corpus.rows)
    assert asked[1][1] == len(corpus.rows) - held
    assert "heads.npz: " in capsys.readouterr().out


def test_vectors_are_kept_between_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first = train._embedded(HashEncoder(), "hash@1", ["one", "two", "one"])
    assert np.array_equal(first[0], first[2])

    class Silent:
        def encode(self, texts: Sequence[str]) -> Matrix:
            raise AssertionError(f"asked again for {texts}")

    assert np.array_equal(train._embedded(Silent(), "hash@1", ["two", "one"]), first[[1, 0]])
