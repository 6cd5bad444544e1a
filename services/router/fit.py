"""Fitting heads: ridge regression, landmarks, the gate, Platt's calibration. Deterministic by seed; scikit-learn finds
the clusters. ``train.py`` runs it on recorded sets, ``refit.py`` on a deployment's own outcomes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from sklearn.cluster import KMeans, MiniBatchKMeans
from sklearn.linear_model import LogisticRegression

from services.router.heads import (
    Expert,
    Gate,
    General,
    Kernel,
    Matrix,
    Scaling,
    expert_inputs,
    gate_logits,
    kernel_rows,
    spread,
)

Floats = npt.NDArray[np.float64]
Places = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How an expert's ridge is built: a linear part, a kernel part, or the mean of both."""

    name: str
    linear_ridge: float | None
    kernel_ridge: float | None


RECIPES = (
    Recipe("linear", 10.0, None),
    Recipe("linear, stiff", 30.0, None),
    Recipe("kernel", None, 3.0),
    Recipe("kernel, stiff", None, 10.0),
    Recipe("both", 30.0, 3.0),
)
"""Cross-validation chooses among these for each family of questions."""

LANDMARKS = 256
GAMMA = 2.0
FEATURE_WEIGHT = 0.3
_GENERAL_LANDMARKS = 320
_GENERAL_FEATURE_WEIGHT = 0.6
_GENERAL_RIDGE = 3.0
_ROWS_A_LANDMARK = 6
_GATE_COMPONENTS = 48
_GATE_CENTROIDS = 96
_GATE_SHARPNESS = 10.0
_GENERAL_AT = 6.0
_FAR_QUANTILE = 0.998
_SLOPES = (0.3, 3.0)
"""Bounds of Platt's slope: an arm with few rows is not trusted with more."""
_SET_ROWS = 1500
"""A set counts as this many rows at most where sets are pooled."""


def scaling(vectors: Matrix, numbers: Matrix) -> Scaling:
    """Mean and scale of the columns; see Scaling for what the squares sum to."""
    return Scaling(
        _rounded(vectors.mean(0)),
        _rounded(1.0 / ((vectors.std(0) + 1e-6) * np.sqrt(vectors.shape[1]))),
        _rounded(numbers.mean(0)),
        _rounded(1.0 / (np.maximum(numbers.std(0), 2e-3) * np.sqrt(numbers.shape[1]))),
    )


def kernel(left: Matrix, right: Matrix, count: int, gamma: float, feature_weight: float, seed: int) -> Kernel:
    """Landmarks at cluster centres, in eight bits; the fit uses them as they are stored."""
    rows = np.concatenate((left, feature_weight * right), 1)
    clusters = MiniBatchKMeans(
        count, random_state=seed, n_init=1, batch_size=2048, max_iter=12, max_no_improvement=4
    ).fit(rows)
    centres = clusters.cluster_centers_.astype(np.float32)
    scales = np.maximum(np.abs(centres).max(1), 1e-6) / 127.0
    scales = _rounded(scales)
    codes = np.clip(np.rint(centres / scales[:, None]), -127, 127).astype(np.int8)
    return Kernel(codes, scales, gamma, feature_weight)


def ridge(inputs: Floats, targets: Floats, strength: float, weights: Floats | None = None) -> Floats:
    """Coefficients, [d] or [d, arms], for targets less their mean."""
    weighted = inputs if weights is None else inputs * weights[:, None]
    gram = weighted.T @ inputs + strength * np.eye(inputs.shape[1])
    return np.asarray(np.linalg.solve(gram, weighted.T @ targets))


def expert(
    name: str, recipe: Recipe, vectors: Matrix, numbers: Matrix, quality: Mapping[str, Floats], seed: int
) -> Expert:  # fmt: skip
    """One family's head. ``quality`` is by arm, NaN where nobody recorded it; every arm needs some rows."""
    own = scaling(vectors, numbers)
    left, right = own.apply(vectors, numbers)
    landmarks = None
    if recipe.kernel_ridge is not None:
        count = max(2, min(LANDMARKS, len(vectors) // _ROWS_A_LANDMARK))
        landmarks = kernel(left, right, count, GAMMA, FEATURE_WEIGHT, seed)
    inputs = expert_inputs(own, landmarks, vectors, numbers).astype(np.float64)
    linear = left.shape[1] + right.shape[1]
    whitened = None if landmarks is None else whitening(landmarks)
    arms = tuple(sorted(quality))
    weights = np.zeros((inputs.shape[1], len(arms)))
    for column, arm in enumerate(arms):
        known = ~np.isnan(quality[arm])
        target = quality[arm][known]
        mean = target.mean()
        share = 0.5 if recipe.linear_ridge is not None and recipe.kernel_ridge is not None else 1.0
        weights[0, column] = mean
        if recipe.linear_ridge is not None:
            part = slice(1, 1 + linear)
            weights[part, column] = share * ridge(inputs[known, part], target - mean, recipe.linear_ridge)
        if recipe.kernel_ridge is not None and whitened is not None:
            part = slice(1 + linear, None)
            found = ridge(inputs[known, part] @ whitened, target - mean, recipe.kernel_ridge)
            weights[part, column] = share * (whitened @ found)
    return Expert(name, own, landmarks, arms, weights.astype(np.float32))


def general(
    common: Scaling,
    vectors: Matrix,
    numbers: Matrix,
    sets: Sequence[str],
    classes: Mapping[str, Floats],
    seed: int,
) -> General:
    """Difficulty, from what the weakest class of models gets wrong within each set, and a line in it per class.

    Sets differ in how models are marked and prompted; within a set the same models were asked the same way. So set
    means are taken out before the difficulty is learned, and slopes are those within sets.
    """
    left, right = common.apply(vectors, numbers)
    landmarks = kernel(left, right, _GENERAL_LANDMARKS, GAMMA, _GENERAL_FEATURE_WEIGHT, seed)
    values = kernel_rows(landmarks, left, right).astype(np.float64)
    whitened = whitening(landmarks)
    names = np.array(sets)
    counts = {name: int((names == name).sum()) for name in sorted(set(sets))}
    row_weights = np.array([min(1.0, _SET_ROWS / counts[name]) for name in sets])
    recorded = [quality for quality in classes.values() if not np.isnan(quality).all()]
    if not recorded:
        raise ValueError("no row has an outcome of any class of models: there is nothing to learn difficulty from")
    weakest = recorded[0]
    known = ~np.isnan(weakest)
    target = -_within(weakest, names, known)
    inputs = values @ whitened
    found = ridge(inputs[known], target[known], _GENERAL_RIDGE, row_weights[known])
    weights = whitened @ found
    difficulty = values @ weights
    difficulty_mean = float(np.average(difficulty, weights=row_weights))
    intercepts: list[float] = []
    slopes: list[float] = []
    below: Floats | None = None
    for quality in classes.values():
        given = ~np.isnan(quality)
        inside = _within(quality, names, given)
        steps = _within(difficulty, names, given)
        slope = float((row_weights * inside * steps)[given].sum() / max(1e-9, (row_weights * steps**2)[given].sum()))
        # The stronger a class, the less it loses where questions are hard: never the other way round.
        slope = min(0.0, slope) if not slopes else min(0.0, max(slope, 0.9 * slopes[-1]))
        if below is None:
            # A class that nobody recorded is taken for the weakest one that somebody did.
            first = quality if given.any() else weakest
            rows = ~np.isnan(first)
            level = float(np.average(first[rows], weights=row_weights[rows])) - slope * difficulty_mean
        else:
            # Classes were recorded on different sets, some of them harder: what one class is above the one below it is
            # read off rows that have both.
            both = given & ~np.isnan(below)
            gap = float(np.average((quality - below)[both], weights=row_weights[both])) if both.any() else 0.0
            level = intercepts[-1] + max(0.0, gap) + (slopes[-1] - slope) * difficulty_mean
        intercepts.append(level)
        slopes.append(slope)
        below = quality
    return General(
        landmarks,
        weights.astype(np.float32),
        np.array(intercepts, np.float32),
        np.array(slopes, np.float32),
    )


def gate(common: Scaling, vectors: Matrix, numbers: Matrix, owners: Sequence[int], seed: int) -> Gate:
    """Centroids of each expert's rows. ``owners`` names each row's expert; -1: a row that has none counts for none."""
    left, right = common.apply(vectors, numbers)
    rows = np.concatenate((left, right), 1).astype(np.float64)
    centred = rows - rows.mean(0)
    _, vectors_of = np.linalg.eigh(centred.T @ centred)
    components = vectors_of[:, ::-1][:, :_GATE_COMPONENTS]
    # An eigenvector's sign is arbitrary: the largest entry is made positive.
    components = components * np.sign(components[np.abs(components).argmax(0), np.arange(components.shape[1])])
    components = _rounded(components)
    at = (np.concatenate((left, right), 1) @ components).astype(np.float32)
    whose = np.array(owners)
    centroids, of, spreads = [], [], []
    for place in range(int(whose.max()) + 1):
        own = at[whose == place]
        centres, spread_of = centroids_of(own, seed)
        centroids.append(centres)
        of.extend([place] * len(centres))
        spreads.append(spread_of)
    draft = Gate(
        components,
        np.concatenate(centroids),
        np.array(of, np.int32),
        _rounded(np.array(spreads)),
        _GATE_SHARPNESS,
        _GENERAL_AT,
        float("inf"),
    )
    _, distance = gate_logits(draft, left, right, len(spreads))
    far = float(np.quantile(distance, _FAR_QUANTILE))
    return Gate(draft.components, draft.centroids, draft.owners, draft.spreads, _GATE_SHARPNESS, _GENERAL_AT, far)


def centroids_of(at: Matrix, seed: int) -> tuple[Matrix, float]:
    """Centroids, [c, k], of an expert's rows in the gate's space; and their spread, see Gate."""
    count = max(1, min(_GATE_CENTROIDS, len(at) // 20))
    centres = KMeans(count, random_state=seed, n_init=1, max_iter=30).fit(at).cluster_centers_.astype(np.float32)
    squares = ((at[:, None, :] - centres[None]) ** 2).sum(2).min(1)
    return _rounded(centres), float(np.median(squares))


def platt(raw: Floats, quality: Floats) -> tuple[float, float]:
    """Slope and intercept on ``spread(raw)`` (both [n]; quality 0..1 counts as a share of successes).

    Fewer than 50 rows, or rows all alike, leave the arm as it is.
    """
    values = spread(raw.astype(np.float32)).astype(np.float64)
    if len(raw) < 50 or quality.min() == quality.max():
        return 1.0, 0.0
    both = np.concatenate((values, values))[:, None]
    labels = np.concatenate((np.ones(len(raw)), np.zeros(len(raw))))
    weights = np.concatenate((quality, 1 - quality))
    # A faint prior towards the identity: as if 20 rows had come out as predicted.
    fitted = LogisticRegression(C=10.0, max_iter=200).fit(both, labels, sample_weight=weights)
    slope, intercept = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    bounded = float(np.clip(slope, *_SLOPES))
    if bounded != slope:
        # The intercept belongs to its slope: Newton's steps to where the mean comes out right.
        for _ in range(20):
            said = 1.0 / (1.0 + np.exp(-np.clip(bounded * values + intercept, -30.0, 30.0)))
            intercept += float((quality - said).mean() / max(1e-4, (said * (1.0 - said)).mean()))
            intercept = float(np.clip(intercept, -10.0, 10.0))
    return round(bounded, 4), round(intercept, 4)


def familiar_weights(common: Scaling, recorded: tuple[Matrix, Matrix], everyday: tuple[Matrix, Matrix]) -> Floats:
    """Weights of the logit that a question is of the kind whose outcomes were recorded, [1 + d + f].

    Both are (vectors, features). The ratio of two densities by telling their samples apart (Bickel, Brueckner and
    Scheffer, 2009); both sides count alike. Without everyday questions all are familiar.
    """
    width = recorded[0].shape[1] + recorded[1].shape[1]
    if not len(everyday[0]):
        return np.concatenate(([20.0], np.zeros(width)))
    parts = [np.concatenate(common.apply(*side), 1) for side in (recorded, everyday)]
    labels = np.concatenate((np.ones(len(parts[0])), np.zeros(len(parts[1]))))
    weights = np.concatenate([np.full(len(part), 0.5 / len(part)) for part in parts]) * len(labels)
    fitted = LogisticRegression(C=1.0, max_iter=300, tol=1e-3).fit(np.concatenate(parts), labels, sample_weight=weights)
    return np.concatenate((fitted.intercept_, fitted.coef_[0]))


def length_weights(common: Scaling, vectors: Matrix, numbers: Matrix, tokens: Floats, sets: Sequence[str]) -> Floats:
    """Weights of the logarithm of output tokens over a mean answer's, [1 + d + f]. Small sets count less."""
    left, right = common.apply(vectors, numbers)
    inputs = np.concatenate((left, right), 1).astype(np.float64)
    counts = {name: list(sets).count(name) for name in set(sets)}
    weights = np.array([min(1.0, 400 / counts[name]) for name in sets])
    logs = np.log(np.maximum(tokens, 1.0))
    mean = float(np.average(logs, weights=weights))
    found = ridge(inputs, logs - mean, 10.0, weights)
    return np.concatenate(([0.0], found))


def whitening(landmarks: Kernel) -> Floats:
    """[m, m]: makes the kernel values of landmarks independent of each other, so that a ridge treats them alike."""
    rows = landmarks.landmarks().astype(np.float64)
    squares = (rows**2).sum(1)
    gram = np.exp(-landmarks.gamma * np.maximum(0.0, squares[:, None] + squares - 2 * rows @ rows.T))
    values, vectors = np.linalg.eigh(gram)
    return np.asarray(vectors / np.sqrt(np.maximum(values, 1e-6)))


def _within(values: Floats, names: npt.NDArray[np.str_], known: npt.NDArray[np.bool_]) -> Floats:
    """Values less their set's mean; 0 where unknown."""
    out = np.zeros(len(values))
    for name in sorted(set(names[known].tolist())):
        rows = known & (names == name)
        out[rows] = values[rows] - values[rows].mean()
    return out


def _rounded(values: npt.NDArray[np.floating]) -> Matrix:
    """As it is stored: in half precision."""
    return values.astype(np.float16).astype(np.float32)
