"""What the baselines score, counted by hand; and that no row is scored by what was learned from it."""

from __future__ import annotations

import numpy as np
import pytest

from bench.router_baselines import by_chance, by_length, by_neighbours, by_task, cross_fitted
from services.router.datasets import Row
from services.router.scores import Floats, Indices


def _places(*values: int) -> Indices:
    return np.array(values, np.intp)


def _row(text: str) -> Row:
    return Row("set", "1", text, "", {}, {}, {})


def test_length_counts_characters() -> None:
    assert by_length([_row("abc"), _row("가나다라마")]).tolist() == [3, 5]


def test_chance_ties_all() -> None:
    assert len(set(by_chance(5).tolist())) == 1


def test_task_means_are_shrunk_to_the_mean_of_all() -> None:
    score = by_task(["a", "a", "b", "b", "c"], np.array([1.0, 1.0, 0.0, 9.0, 9.0]))
    # Learned from the first three rows, whose mean is 2/3; the other two rows' gains are not looked at.
    found = score(_places(0, 1, 2), _places(0, 3, 4))
    assert found == pytest.approx([(2 + 5 * 2 / 3) / 7, (0 + 5 * 2 / 3) / 6, 2 / 3])


def test_neighbours_are_the_nearest_by_cosine() -> None:
    angles = np.radians([0, 10, 20, 80, 90, 5])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    score = by_neighbours(vectors, np.array([1.0, 2.0, 3.0, 10.0, 20.0, 99.0]), k=2)
    assert score(_places(0, 1, 2, 3, 4), _places(5)) == pytest.approx([1.5])
    assert score(_places(0, 3, 4), _places(2)) == pytest.approx([5.5])


def test_fewer_rows_than_neighbours_are_all_neighbours() -> None:
    vectors = np.eye(3, dtype=np.float32)
    assert by_neighbours(vectors, np.array([1.0, 2.0, 6.0]), k=20)(_places(0, 1), _places(2)) == pytest.approx([1.5])


def test_no_row_is_scored_by_what_was_learned_from_it_or_its_copy() -> None:
    digests = [f"question {place // 2}" for place in range(40)]
    asked_in_all: list[int] = []

    def score(learned: Indices, asked: Indices) -> Floats:
        assert not {digests[place] for place in learned} & {digests[place] for place in asked}
        assert sorted([*learned.tolist(), *asked.tolist()]) == list(range(4, 40))
        asked_in_all.extend(asked.tolist())
        return asked.astype(np.float64)

    cross_fitted(score, digests, np.arange(4, 40), seed=7)
    assert sorted(asked_in_all) == list(range(4, 40))


def test_rows_are_ranked_within_their_fold() -> None:
    digests = [f"question {place}" for place in range(10)]

    def score(learned: Indices, asked: Indices) -> Floats:
        # A fold's level says nothing of its rows; their order does.
        return np.asarray(asked + 1000.0 * float(learned.sum()), np.float64)

    found = cross_fitted(score, digests, np.arange(10), seed=7)
    # Five folds of two rows: the lower has the rank 1/4, the higher 3/4.
    assert sorted(found.tolist()) == [0.25] * 5 + [0.75] * 5
    tied = cross_fitted(lambda _, asked: np.zeros(len(asked)), digests, np.arange(10), seed=7)
    assert tied.tolist() == [0.5] * 10


def test_a_baseline_that_knows_nothing_is_no_worse_than_chance() -> None:
    # One task: learned means lean away from their own fold. Compared over folds they would order rows the wrong way.
    gain = np.random.default_rng(1).integers(0, 2, 200).astype(np.float64)
    found = cross_fitted(by_task(["only"] * 200, gain), [str(place) for place in range(200)], np.arange(200), seed=7)
    assert set(found.tolist()) == {0.5}


def test_one_question_cannot_be_split() -> None:
    with pytest.raises(ValueError, match="two different questions"):
        cross_fitted(lambda _, asked: np.zeros(len(asked)), ["same", "same"], np.arange(2), seed=7)
