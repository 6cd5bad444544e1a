"""What an order of rows costs nothing, or little, to make: by length, by the task's mean, by the nearest rows. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from services.router.datasets import Row
from services.router.scores import Floats, Indices

FOLDS = 5
NEIGHBOURS = 20
SHRINKAGE_ROWS = 5.0
"""A task's mean gain is pulled to the set's as if this many rows more had the set's."""
_BLOCK = 512

Scorer = Callable[[Indices, Indices], Floats]
"""Scores of the asked rows, the second argument, learned from the rows of the first; both are places in a set."""


def by_length(rows: Sequence[Row]) -> Floats:
    """Characters of the question: the longer, the sooner strong."""
    return np.array([len(row.text) for row in rows], np.float64)


def by_chance(n: int) -> Floats:
    """All rows alike: with ties averaged that is the mean over every random order."""
    return np.zeros(n)


def by_task(tasks: Sequence[str], gain: Floats) -> Scorer:
    """The mean gain of the row's task, shrunk to the mean of all; rows of an unknown task get that mean."""
    _, numbers = np.unique(np.array(tasks), return_inverse=True)

    def score(learned: Indices, asked: Indices) -> Floats:
        whole = float(gain[learned].mean())
        size = int(numbers.max()) + 1
        sums = np.bincount(numbers[learned], gain[learned], minlength=size)
        counts = np.bincount(numbers[learned], minlength=size)
        means: Floats = (sums + SHRINKAGE_ROWS * whole) / (counts + SHRINKAGE_ROWS)
        return means[numbers[asked]]

    return score


def by_neighbours(vectors: npt.NDArray[np.float32], gain: Floats, k: int = NEIGHBOURS) -> Scorer:
    """The mean gain of the ``k`` nearest rows by cosine; ``vectors`` are L2-normalised."""

    def score(learned: Indices, asked: Indices) -> Floats:
        near = min(k, len(learned))
        known, gains = vectors[learned], gain[learned]
        found = np.empty(len(asked))
        for start in range(0, len(asked), _BLOCK):
            cosines = vectors[asked[start : start + _BLOCK]] @ known.T
            places = np.argpartition(-cosines, near - 1, axis=1)[:, :near]
            found[start : start + _BLOCK] = gains[places].mean(axis=1)
        return found

    return score


def cross_fitted(score: Scorer, digests: Sequence[str], places: Indices, seed: int) -> Floats:
    """Scores of these rows, each learned from the folds that it is not in. Copies of a question share a fold.

    A fold's rows are compared with each other only: the scores are ranks within the fold, 0..1. What is learned for a
    fold leans away from the fold's own outcomes, which would make the order of rows of several folds worse than chance.
    Raises ValueError with fewer than two different questions.
    """
    questions, numbers = np.unique(np.array([digests[place] for place in places]), return_inverse=True)
    if len(questions) < 2:
        raise ValueError("fewer than two different questions")
    folds = np.random.default_rng(seed).permutation(len(questions)) % FOLDS
    of_row = folds[numbers]
    found = np.empty(len(places))
    for fold in np.unique(of_row):
        asked = of_row == fold
        found[asked] = _ranks(score(places[~asked], places[asked]))
    return found


def _ranks(score: Floats) -> Floats:
    """Ranks as shares of the rows, 0..1; equal scores share the middle of theirs."""
    _, places, counts = np.unique(score, return_inverse=True, return_counts=True)
    middles: Floats = (np.cumsum(counts) - counts / 2) / len(score)
    return middles[places]
