"""Trained heads: who speaks where, what is far, and what a broken file says."""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from services.router.heads import Heads, HeadsError, arrays_and_facts, heads_from_bytes, heads_to_bytes
from tests.unit.router.router_tiny_heads import (
    LARGE,
    MEDIUM,
    SIZE,
    SMALL,
    features,
    heads_content,
    questions,
    small_model_chance,
    tiny_heads,
)


@pytest.fixture(scope="module")
def heads() -> Heads:
    return tiny_heads()


@pytest.mark.parametrize("family", ["chat", "code", "everyday", "far"])
def test_one_question_alone_is_predicted_as_among_many(heads: Heads, family: str) -> None:
    vectors, found = questions(family, 40, 5), features(40, 6, float(family == "code"))
    many = heads.predict_many(vectors, found)
    _, ratios, distances = heads.raw_rows(vectors, heads.matrix(found))
    familiar = heads.familiarity(vectors, heads.matrix(found))
    for place, (vector, seen) in enumerate(zip(vectors, found, strict=True)):
        alone = heads.predict(vector, seen)
        assert tuple(alone.success) == heads.arms
        assert list(alone.success.values()) == pytest.approx(many[place].tolist(), abs=1e-4)
        assert alone.length_ratio == pytest.approx(float(ratios[place]), rel=1e-4)
        assert alone.distance == pytest.approx(float(distances[place]), rel=1e-3, abs=1e-3)
        assert alone.familiarity == pytest.approx(float(familiar[place]), abs=1e-4)


def test_each_expert_speaks_where_its_questions_are(heads: Heads) -> None:
    for family in ("chat", "code"):
        vectors, found = questions(family, 200, 41), features(200, 42, float(family == "code"))
        said = heads.predict_many(vectors, found)[:, heads.arms.index(SMALL)]
        truth = small_model_chance(family, vectors)
        assert np.abs(said - truth).mean() < 0.2, family
    assert np.corrcoef(said, truth)[0, 1] > 0.9, "it knows which code is hard"


def test_elsewhere_the_general_head_does(heads: Heads) -> None:
    vectors, found = questions("far", 100, 41), features(100, 42)
    distances = heads.raw_rows(vectors, heads.matrix(found))[2]
    beyond = distances > 2 * heads.gate.general_at - 5.0
    assert beyond.sum() > 10
    said = heads.predict_many(vectors, found)[beyond, heads.arms.index(SMALL)]
    assert said.std() < 0.02, "nothing that an expert knows is left"
    assert 0.5 < said.mean() < 0.95


def test_answers_to_code_are_longer(heads: Heads) -> None:
    chat = heads.predict(questions("chat", 1, 3)[0], features(1, 3)[0])
    code = heads.predict(questions("code", 1, 3)[0], features(1, 3, 1.0)[0])
    assert 0.25 <= chat.length_ratio < 1.0 < code.length_ratio <= 4.0
    assert code.expected_output_tokens == pytest.approx(200 * code.length_ratio)


def test_what_is_far_is_out_of_distribution(heads: Heads) -> None:
    inside = [heads.predict(vector, features(1, 1)[0]) for vector in questions("chat", 50, 12)]
    outside = [heads.predict(vector, features(1, 1)[0]) for vector in questions("far", 50, 12)]
    assert sum(each.out_of_distribution for each in inside) <= 2
    assert all(each.out_of_distribution for each in outside)


def test_everyday_questions_are_unfamiliar(heads: Heads) -> None:
    everyday = [heads.predict(vector, features(1, 1)[0]).familiarity for vector in questions("everyday", 50, 12)]
    chat = [heads.predict(vector, features(1, 1)[0]).familiarity for vector in questions("chat", 50, 12)]
    assert np.median(everyday) < 0.2 < 0.8 < np.median(chat)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
def test_values_that_are_no_numbers_are_far_from_all(heads: Heads, value: float) -> None:
    vector = questions("chat", 1, 1)[0].copy()
    vector[4] = value
    said = heads.predict(vector, features(1, 1)[0])
    assert said.out_of_distribution
    assert said.distance == float("inf")
    assert (said.success, said.length_ratio, said.familiarity) == ({}, 1.0, 0.0)


def test_features_that_are_no_numbers_are_far_from_all(heads: Heads) -> None:
    strange = dataclasses.replace(features(1, 1)[0], length=float("nan"))
    assert heads.predict(questions("chat", 1, 1)[0], strange).out_of_distribution


@pytest.mark.parametrize("size", [0, 1, SIZE - 1, SIZE + 1])
def test_another_dimension_is_refused(heads: Heads, size: int) -> None:
    with pytest.raises(ValueError, match=f"{size} dimensions, {SIZE} expected"):
        heads.predict(np.zeros(size, np.float32), features(1, 1)[0])


def test_a_model_that_is_unknown_counts_as_its_class(heads: Heads) -> None:
    vectors, found = questions("code", 30, 2), features(30, 2, 1.0)
    other = dataclasses.replace(heads, class_of={**heads.class_of, "newcomer": "class:small"})
    same = other.gain_many(vectors, found, "newcomer", LARGE)
    assert np.array_equal(same, heads.gain_many(vectors, found, "class:small", LARGE))
    assert heads.class_of[MEDIUM] == "class:medium"
    with pytest.raises(KeyError, match="nobody"):
        heads.gain_many(vectors, found, "nobody", LARGE)


def test_the_same_content_gives_the_same_bytes() -> None:
    content = heads_content()
    parts, facts = arrays_and_facts(content)
    shuffled = dict(reversed(list(parts.items())))
    assert heads_to_bytes(shuffled, facts) == content
    assert heads_from_bytes(content, "a").version == heads_from_bytes(content, "b").version


def _other_form(content: bytes) -> bytes:
    parts, facts = arrays_and_facts(content)
    text = json.dumps({**facts, "format": 99}).encode()
    out = io.BytesIO()
    np.savez(out, facts=np.frombuffer(text, np.uint8), **parts)  # type: ignore[arg-type]
    return bytes(out.getvalue())


def _without(content: bytes, key: str) -> bytes:
    parts, facts = arrays_and_facts(content)
    del parts[key]
    return heads_to_bytes(parts, facts)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: b"", "not a file of heads"),
        (lambda content: b"hello", "not a file of heads"),
        (lambda content: content[: len(content) // 2], "not a file of heads"),
        (lambda content: _without(content, "platt"), "not a file of heads: .*platt"),
        (_other_form, "form 99, this router reads 1"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, change: Callable[[bytes], bytes], words: str) -> None:
    path = tmp_path / "mine.npz"
    path.write_bytes(change(heads_content()))
    with pytest.raises(HeadsError, match=f"mine.npz: {words}"):
        Heads.load(path)


def test_a_missing_file_is_an_error_of_the_system(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Heads.load(tmp_path / "none.npz")


def test_deciles_rise(heads: Heads) -> None:
    deciles = heads.quantiles()
    assert set(deciles) == set(heads.feature_names)
    assert all(len(row) == 11 and row == sorted(row) for row in deciles.values())
