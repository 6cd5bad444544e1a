"""Heads for one question at a time, as a live request asks them: the sums of ``heads.py`` with all that does not depend
on the question done once, at load. What comes out differs from theirs by rounding only.

Everything that is linear in a scaling's inputs (principal components, landmarks, linear parts) stands in one matrix per
scaling, so that a question costs one product for what all share and one for each expert that is near it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from services.router.features import Features

if TYPE_CHECKING:
    from services.router.heads import Expert, Heads, Kernel, Matrix, Scaling

TRAFFIC = "traffic:"
"""Before a model's name: the expert of a refit, see ``traffic.py``."""
_MOST = 1e6
"""No input is as large: embeddings have length 1 and features are counts or logarithms."""
NEAR = 1e-3
"""Experts with less weight than this are not asked."""


@dataclass(frozen=True, slots=True)
class _Inputs:
    """A scaling and the products of its inputs, the features' part weighted as in the kernel that shares them."""

    mean: Matrix
    """[d + f], as the next one."""
    scale: Matrix
    limit: np.float32
    """Of the features' part."""
    vector_size: int
    products: Matrix
    """[p, d + f]."""

    def of(self, values: Matrix) -> tuple[Matrix, Matrix]:
        """The standardised inputs, [d + f], and their products, [p]."""
        row = (values - self.mean) * self.scale
        right = row[self.vector_size :]
        np.maximum(right, -self.limit, out=right)
        np.minimum(right, self.limit, out=right)
        return row, self.products @ row


@dataclass(frozen=True, slots=True)
class _Landmarks:
    """What is left of a kernel: its products are those with the landmarks times twice gamma."""

    squares: Matrix
    """[m], times gamma."""
    gamma: float

    def values(self, row: Matrix, products: Matrix) -> Matrix:
        """Kernel values, [m]."""
        exponents = products - self.squares
        exponents -= np.float32(self.gamma * float(row @ row))
        np.minimum(exponents, np.float32(0.0), out=exponents)
        return np.asarray(np.exp(exponents, out=exponents))


@dataclass(frozen=True, slots=True)
class _Voice:
    """One expert."""

    inputs: _Inputs
    intercepts: Matrix
    landmarks: _Landmarks | None
    kernel_weights: Matrix
    """[arms, m]."""
    places: npt.NDArray[np.intp]
    """Of its arms among all arms."""
    covers: npt.NDArray[np.intp]
    """Of its arms: which row of the shares is theirs."""

    def speak(self, values: Matrix) -> Matrix:
        """[arms], before calibration."""
        row, products = self.inputs.of(values)
        count = len(self.intercepts)
        said = self.intercepts + products[:count]
        if self.landmarks is not None:
            said += self.kernel_weights @ self.landmarks.values(row, products[count:])
        return np.asarray(said)


class Single:
    """The heads, ready for one question."""

    def __init__(self, heads: Heads) -> None:
        """From heads as they were read."""
        gate, general = heads.gate, heads.general
        self._size = len(heads.scaling.vector_mean)
        self._numbers = attrgetter(*heads.feature_names)
        self._components = gate.components.shape[1]
        linear = np.stack((*gate.components.T, heads.length_weights[1:], heads.familiar_weights[1:]))
        self._common = _inputs(heads.scaling, linear, general.kernel)
        self._length_intercept = float(heads.length_weights[0])
        self._familiar_intercept = float(heads.familiar_weights[0])
        self._traffic = [place for place, expert in enumerate(heads.experts) if expert.name.startswith(TRAFFIC)]
        order = np.argsort(gate.owners, kind="stable")
        self._centroids = np.ascontiguousarray(gate.centroids[order])
        self._centroid_squares = np.einsum("ij,ij->i", self._centroids, self._centroids)
        # The first centroid of each expert; every expert has some.
        self._starts = np.searchsorted(gate.owners[order], np.arange(len(heads.experts)))
        self._spreads = gate.spreads
        self._sharpness, self._general_at, self._far = gate.sharpness, gate.general_at, gate.far
        self._general = _landmarks(general.kernel)
        self._difficulty = general.weights
        columns = [heads.classes.index(heads.class_of.get(arm, arm)) for arm in heads.arms]
        self._intercepts, self._slopes = general.intercepts[columns], general.slopes[columns]
        # Row of shares by arm: its cover's, or the last one, of arms that no expert knows.
        cover_of = np.full(len(heads.arms), len(heads.covers), np.intp)
        self._known = np.zeros((len(heads.covers) + 1, len(heads.experts) + 1))
        self._known[:, -1] = 1.0
        for place, cover in enumerate(heads.covers):
            cover_of[cover.arms] = place
            self._known[place, list(cover.experts)] = 1.0
        self._cover_of = cover_of
        self._voices = [_voice(expert, heads.arms, cover_of) for expert in heads.experts]
        self._slope, self._intercept = 4.0 * heads.platt[:, 0], heads.platt[:, 1] - 2.0 * heads.platt[:, 0]

    def predict(self, vector: Matrix, features: Features) -> tuple[list[float], float, float, float]:
        """Success by arm, length ratio, distance in spreads, familiarity; infinitely far where a value is no number."""
        values = np.empty(len(self._common.mean), np.float32)
        values[: self._size] = vector
        values[self._size :] = self._numbers(features)
        # False for NaN too.
        if not (values.max() < _MOST and values.min() > -_MOST):
            return [], 1.0, math.inf, 0.0
        row, products = self._common.of(values)
        at = products[: self._components]
        distances = (self._centroid_squares - 2.0 * (self._centroids @ at)) + at @ at
        nearest = np.maximum(np.minimum.reduceat(distances, self._starts), 0.0) / self._spreads
        odds = np.empty(len(self._voices) + 1)
        # Against the general head's logit, which is part of every sum. Its own odds are 1; others have a bound.
        np.exp((self._general_at - nearest) * self._sharpness, out=odds[:-1])
        odds[-1] = 1.0
        shares = self._known * odds
        shares /= shares.sum(axis=1, keepdims=True)
        kernel = self._general.values(row, products[self._components + 2 :])
        difficulty = kernel @ self._difficulty
        raw = (self._intercepts + difficulty * self._slopes) * shares[self._cover_of, -1]
        most_of = shares.max(axis=0)[:-1].tolist()
        for place, most in enumerate(most_of):
            if most > NEAR:
                voice = self._voices[place]
                raw[voice.places] += shares[voice.covers, place] * voice.speak(values)
        success = 1.0 / (1.0 + np.exp(-(self._slope * raw + self._intercept)))
        length, familiar = products[self._components : self._components + 2].tolist()
        ratio = math.exp(min(4.0, max(-4.0, self._length_intercept + length)))
        known = 1.0 / (1.0 + math.exp(-min(30.0, max(-30.0, self._familiar_intercept + familiar))))
        known = max([known, *(most_of[place] for place in self._traffic)])
        return success.tolist(), min(4.0, max(0.25, ratio)), float(nearest.min()), known


def _inputs(scaling: Scaling, linear: Matrix, kernel: Kernel | None) -> _Inputs:
    """For linear parts, [p, d + f], and a kernel's landmarks after them."""
    size = len(scaling.vector_mean)
    weight = 1.0 if kernel is None else kernel.feature_weight
    products = linear.astype(np.float32)
    products[:, size:] /= weight
    if kernel is not None:
        products = np.concatenate((products, 2.0 * kernel.gamma * kernel.landmarks()))
    return _Inputs(
        np.concatenate((scaling.vector_mean, scaling.feature_mean)),
        np.concatenate((scaling.vector_scale, weight * scaling.feature_scale)).astype(np.float32),
        np.float32(weight * scaling.limit),
        size,
        np.ascontiguousarray(products, np.float32),
    )


def _landmarks(kernel: Kernel) -> _Landmarks:
    rows = kernel.landmarks()
    return _Landmarks((kernel.gamma * np.einsum("ij,ij->i", rows, rows)).astype(np.float32), kernel.gamma)


def _voice(expert: Expert, arms: tuple[str, ...], cover_of: npt.NDArray[np.intp]) -> _Voice:
    linear = len(expert.scaling.vector_mean) + len(expert.scaling.feature_mean)
    places = np.array([arms.index(arm) for arm in expert.arms], np.intp)
    return _Voice(
        _inputs(expert.scaling, expert.weights[1 : 1 + linear].T, expert.kernel),
        expert.weights[0],
        None if expert.kernel is None else _landmarks(expert.kernel),
        np.ascontiguousarray(expert.weights[1 + linear :].T),
        places,
        cover_of[places],
    )
