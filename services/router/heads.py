"""Trained heads: from a question's embedding and features to the chance that each arm answers it well.

An arm is a model, or a class of models, whose outcomes were recorded. The heads are a mixture: one *expert* for each
family of questions that there was enough of, and a *general* head for the rest. An expert knows its own arms by ridge
regression on standardised inputs and on Gaussian kernels around landmarks (Nyström; Williams and Seeger, 2001); which
experts speak follows from how near a question is to their training rows. The general head is a single difficulty,
learned within sets, and one line per class of models; what no expert knows falls back to it. A question that is far
from all training rows is *out of distribution*; one that is rather an everyday question (support, small talk, orders)
than of a kind whose outcomes were recorded is *unfamiliar*: nothing here is evidence about it.

What comes out is calibrated by Platt's method per arm. Numbers only: no text of a training row is in a file.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from services.router.features import Features
from services.router.single import NEAR, Single

Matrix = npt.NDArray[np.float32]
FORMAT = 1
"""Version of the file's form."""
CLIP = 4.0
"""Standard deviations beyond which a feature says nothing more."""


class HeadsError(ValueError):
    """A file of heads is of another form, or broken; the text names the file."""


@dataclass(frozen=True, slots=True)
class Scaling:
    """Standardises inputs: embeddings [n, d] and features [n, f] to columns whose squares sum to about 1 and 1."""

    vector_mean: Matrix
    vector_scale: Matrix
    feature_mean: Matrix
    feature_scale: Matrix

    def apply(self, vectors: Matrix, features: Matrix) -> tuple[Matrix, Matrix]:
        """Both parts, standardised; no feature counts beyond four standard deviations."""
        left = (vectors - self.vector_mean) * self.vector_scale
        right = np.clip((features - self.feature_mean) * self.feature_scale, -self.limit, self.limit)
        return left, right

    @property
    def limit(self) -> float:
        """Where features end."""
        return CLIP / float(np.sqrt(len(self.feature_mean)))


@dataclass(frozen=True, slots=True)
class Kernel:
    """Gaussian kernels around landmarks, kept in eight bits: value = code * scale, per landmark."""

    codes: npt.NDArray[np.int8]
    scales: Matrix
    gamma: float
    feature_weight: float
    """How much the features count beside the embedding in a distance."""

    def landmarks(self) -> Matrix:
        """[m, d + f]."""
        return self.codes.astype(np.float32) * self.scales[:, None]


@dataclass(frozen=True, slots=True)
class Expert:
    """One family of questions."""

    name: str
    scaling: Scaling
    kernel: Kernel | None
    arms: tuple[str, ...]
    weights: Matrix
    """[1 + d + f + m, arms]: intercept, linear part, kernel part."""


@dataclass(frozen=True, slots=True)
class Gate:
    """Who speaks: squared distances to centroids in a space of principal components, by the experts' own spread."""

    components: Matrix
    """[d + f, k]."""
    centroids: Matrix
    """[c, k], of all experts."""
    owners: npt.NDArray[np.int32]
    """[c]: the expert whose centroid it is."""
    spreads: Matrix
    """[experts]: median squared distance of the expert's own rows."""
    sharpness: float
    general_at: float
    """Distance, in spreads, at which the general head has an expert's weight."""
    far: float
    """Distance, in spreads, beyond which a question is unlike all training rows."""


@dataclass(frozen=True, slots=True)
class General:
    """Difficulty, and success by class as a line in it."""

    kernel: Kernel
    weights: Matrix
    """[m]."""
    intercepts: Matrix
    slopes: Matrix
    """[classes]."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Training rows as other folds' heads saw them: what quality targets are calibrated on.

    Rows by class of models: predicted and recorded quality (NaN where nobody recorded one), and tokens.
    """

    classes: tuple[str, ...]
    predicted: Matrix
    recorded: Matrix
    prompt_tokens: Matrix
    length_ratio: Matrix
    """Expected output tokens over the training's mean."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """What the heads say of one question."""

    success: Mapping[str, float]
    """By arm, 0..1."""
    length_ratio: float
    """Expected output tokens over those of a mean answer, 0.25..4."""
    distance: float
    """To the nearest expert, in spreads."""
    out_of_distribution: bool
    """Unlike all training rows."""
    familiarity: float
    """Probability, 0..1, that the question is of a kind whose outcomes were recorded, and not an everyday one.

    Where a refit has been, outcomes of such questions were recorded too."""

    @property
    def expected_output_tokens(self) -> float:
        """For a model whose mean answer has 200 tokens."""
        return 200 * self.length_ratio


@dataclass(frozen=True, slots=True)
class Cover:
    """Arms that the same experts know: the gate decides among those, whoever else is near."""

    experts: tuple[int, ...]
    arms: npt.NDArray[np.intp]
    """[k]: places in ``Heads.arms``."""
    columns: tuple[npt.NDArray[np.intp], ...]
    """By expert, [k]: places in its own arms."""


@dataclass(frozen=True, slots=True)
class Heads:
    """All of it, as loaded."""

    version: str
    embedder_version: str
    feature_names: tuple[str, ...]
    arms: tuple[str, ...]
    classes: tuple[str, ...]
    class_of: Mapping[str, str]
    """Of arms that are models."""
    scaling: Scaling
    gate: Gate
    experts: tuple[Expert, ...]
    covers: tuple[Cover, ...]
    general: General
    platt: Matrix
    """[arms, 2]: slope and intercept on the logit."""
    length_weights: Matrix
    """[1 + d + f]: logarithm of length_ratio."""
    familiar_weights: Matrix
    """[1 + d + f]: logit of a question being of a recorded kind."""
    feature_quantiles: Matrix
    """[f, 11]: deciles of the training rows, for drift."""
    sample: Sample
    _single: Single = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Prepare for single questions."""
        object.__setattr__(self, "_single", Single(self))

    @classmethod
    def load(cls, path: Path) -> Heads:
        """Read a file. Raises HeadsError, or OSError when there is none."""
        return heads_from_bytes(path.read_bytes(), str(path))

    def predict(self, vector: Matrix, features: Features) -> Prediction:
        """Of one question. Raises ValueError for another dimension; values that are no numbers are far from all."""
        values = np.asarray(vector, np.float32).reshape(-1)
        if len(values) != len(self.scaling.vector_mean):
            raise ValueError(f"{len(values)} dimensions, {len(self.scaling.vector_mean)} expected")
        success, ratio, distance, familiarity = self._single.predict(values, features)
        # Without success nothing is said: a value was no number.
        said = dict(zip(self.arms, success, strict=False))
        return Prediction(said, ratio, distance, distance > self.gate.far, familiarity)

    def predict_many(self, vectors: Matrix, features: Sequence[Features]) -> Matrix:
        """Success by question and arm, [n, arms]."""
        return calibrated(self.raw_rows(np.asarray(vectors, np.float32), self.matrix(features))[0], self.platt)

    def raw_rows(self, vectors: Matrix, numbers: Matrix) -> tuple[Matrix, Matrix, Matrix]:
        """Success before calibration [n, arms], length ratio [n] and distance [n] of inputs as matrices."""
        parts = [self._predict(vectors[at : at + 512], numbers[at : at + 512]) for at in range(0, len(vectors), 512)]
        success, ratio, distance = (np.concatenate(each) for each in zip(*parts, strict=True))
        return success, ratio, distance

    def familiarity(self, vectors: Matrix, numbers: Matrix) -> Matrix:
        """Probability that a question is of a kind that was recorded for the training, [n]."""
        left, right = self.scaling.apply(vectors, numbers)
        logit = self.familiar_weights[0] + np.concatenate((left, right), 1) @ self.familiar_weights[1:]
        return np.asarray(1.0 / (1.0 + np.exp(-np.clip(logit, -30.0, 30.0))), np.float32)

    def gain_many(self, vectors: Matrix, features: Sequence[Features], weak: str, strong: str) -> Matrix:
        """What the strong arm is expected to add, [n]. A model that is unknown here counts as its class.

        Raises KeyError for an arm that is neither known nor in a known class.
        """
        success = self.predict_many(vectors, features)
        return np.asarray(success[:, self._place(strong)] - success[:, self._place(weak)])

    def matrix(self, features: Iterable[Features]) -> Matrix:
        """Features as numbers, [n, f]."""
        return np.array([[getattr(each, name) for name in self.feature_names] for each in features], np.float32)

    def quantiles(self) -> dict[str, list[float]]:
        """Deciles of each feature at training."""
        return {name: row.tolist() for name, row in zip(self.feature_names, self.feature_quantiles, strict=True)}

    def _place(self, arm: str) -> int:
        if arm in self.arms:
            return self.arms.index(arm)
        if self.class_of.get(arm) in self.arms:
            return self.arms.index(self.class_of[arm])
        raise KeyError(arm)

    def _predict(self, vectors: Matrix, numbers: Matrix) -> tuple[Matrix, Matrix, Matrix]:
        left, right = self.scaling.apply(vectors, numbers)
        logits, distance = gate_logits(self.gate, left, right, len(self.experts))
        raw = self._general(left, right)
        said: dict[int, tuple[npt.NDArray[np.bool_], Matrix]] = {}
        shares = [_shares(logits, cover.experts) for cover in self.covers]
        for place, expert in enumerate(self.experts):
            near = np.zeros(len(vectors), bool)
            for cover, share in zip(self.covers, shares, strict=True):
                if place in cover.experts:
                    near |= share[:, cover.experts.index(place)] > NEAR
            if near.any():
                said[place] = near, expert_rows(expert, vectors[near], numbers[near])
        for cover, share in zip(self.covers, shares, strict=True):
            mixed = share[:, -1:] * raw[:, cover.arms]
            for column, place in enumerate(cover.experts):
                if place in said:
                    near, rows = said[place]
                    mixed[near] += share[near, column : column + 1] * rows[:, cover.columns[column]]
            raw[:, cover.arms] = mixed
        ratio = np.exp(self.length_weights[0] + np.concatenate((left, right), 1) @ self.length_weights[1:])
        return raw, np.clip(ratio, 0.25, 4.0).astype(np.float32), distance

    def _general(self, left: Matrix, right: Matrix) -> Matrix:
        difficulty = kernel_rows(self.general.kernel, left, right) @ self.general.weights
        lines = self.general.intercepts + difficulty[:, None] * self.general.slopes
        columns = [self.classes.index(self.class_of.get(arm, arm)) for arm in self.arms]
        return np.asarray(lines[:, columns], np.float32)


def kernel_rows(kernel: Kernel, left: Matrix, right: Matrix) -> Matrix:
    """Kernel values, [n, m], of standardised inputs."""
    rows = np.concatenate((left, kernel.feature_weight * right), 1)
    landmarks = kernel.landmarks()
    squares = np.einsum("ij,ij->i", rows, rows)[:, None] + np.einsum("ij,ij->i", landmarks, landmarks)
    return np.asarray(np.exp(-kernel.gamma * np.maximum(0.0, squares - 2.0 * (rows @ landmarks.T))), np.float32)


def expert_inputs(expert_scaling: Scaling, kernel: Kernel | None, vectors: Matrix, numbers: Matrix) -> Matrix:
    """[n, 1 + d + f + m]: one, the standardised inputs, the kernel values."""
    left, right = expert_scaling.apply(vectors, numbers)
    parts = [np.ones((len(vectors), 1), np.float32), left, right]
    if kernel is not None:
        parts.append(kernel_rows(kernel, left, right))
    return np.concatenate(parts, 1)


def expert_rows(expert: Expert, vectors: Matrix, numbers: Matrix) -> Matrix:
    """What an expert says, [n, arms], before calibration."""
    return expert_inputs(expert.scaling, expert.kernel, vectors, numbers) @ expert.weights


def gate_logits(gate: Gate, left: Matrix, right: Matrix, expert_count: int) -> tuple[Matrix, Matrix]:
    """Logits of the experts and, last, of the general head, [n, experts + 1]; and the distance to the nearest, [n]."""
    at = np.concatenate((left, right), 1) @ gate.components
    squares = np.einsum("ij,ij->i", at, at)[:, None] + np.einsum("ij,ij->i", gate.centroids, gate.centroids)
    every = np.maximum(0.0, squares - 2.0 * (at @ gate.centroids.T))
    nearest = np.stack(
        [every[:, gate.owners == place].min(axis=1) / gate.spreads[place] for place in range(expert_count)], axis=1
    )
    logits = np.concatenate((nearest, np.full((len(at), 1), gate.general_at)), 1) * -gate.sharpness
    return logits.astype(np.float32), nearest.min(axis=1).astype(np.float32)


def _shares(logits: Matrix, experts: tuple[int, ...]) -> Matrix:
    """Weights of these experts and, last, of the general head, [n, k + 1], summing to 1."""
    chosen = logits[:, (*experts, -1)]
    odds = np.exp(chosen - chosen.max(axis=1, keepdims=True))
    return np.asarray(odds / odds.sum(axis=1, keepdims=True))


def _covers(experts: Sequence[Expert], arms: Sequence[str]) -> tuple[Cover, ...]:
    groups: dict[tuple[int, ...], list[str]] = {}
    for arm in arms:
        known = tuple(place for place, expert in enumerate(experts) if arm in expert.arms)
        if known:
            groups.setdefault(known, []).append(arm)
    return tuple(
        Cover(
            known,
            np.array([list(arms).index(arm) for arm in group], np.intp),
            tuple(np.array([experts[place].arms.index(arm) for arm in group], np.intp) for place in known),
        )
        for known, group in groups.items()
    )


def calibrated(raw: Matrix, platt: Matrix) -> Matrix:
    """Platt's map of each arm's column: a logistic function of a raw value, which may lie beyond 0..1.

    Not of its logit: cutting to 0..1 would make equals of the questions that are surest one way or the other.
    """
    return np.asarray(1.0 / (1.0 + np.exp(-(platt[:, 0] * spread(raw) + platt[:, 1]))), np.float32)


def spread(raw: Matrix) -> Matrix:
    """A raw value on about the scale of a logit, 0 at one half."""
    return np.asarray(4.0 * (raw - 0.5), np.float32)


def heads_to_bytes(parts: Mapping[str, npt.NDArray[Any]], facts: Mapping[str, Any]) -> bytes:
    """The file's content: arrays, and facts as JSON. The same arrays and facts give the same bytes."""
    out = io.BytesIO()
    text = json.dumps({**facts, "format": FORMAT}, sort_keys=True)
    np.savez(out, facts=np.frombuffer(text.encode(), np.uint8), **{key: parts[key] for key in sorted(parts)})  # type: ignore[arg-type]
    return out.getvalue()


def arrays_and_facts(content: bytes) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    """What ``heads_to_bytes`` was given, and the form. Raises whatever numpy raises for a broken file."""
    with np.load(io.BytesIO(content), allow_pickle=False) as stored:
        parts = {key: stored[key] for key in stored.files}
    return parts, json.loads(parts.pop("facts").tobytes())


def heads_from_bytes(content: bytes, name: str) -> Heads:
    """The heads of a file's content. Raises HeadsError."""
    try:
        parts, facts = arrays_and_facts(content)
        if facts["format"] != FORMAT:
            raise HeadsError(f"{name}: form {facts['format']}, this router reads {FORMAT}")
        return _assemble(parts, facts, hashlib.sha256(content).hexdigest()[:16])
    except HeadsError:
        raise
    except Exception as error:  # numpy raises many kinds for a broken file
        raise HeadsError(f"{name}: not a file of heads: {error}") from error


def _assemble(parts: Mapping[str, npt.NDArray[Any]], facts: Mapping[str, Any], version: str) -> Heads:
    experts = tuple(
        Expert(
            name=str(each["name"]),
            scaling=_scaling(parts, f"expert{place}"),
            kernel=_kernel(parts, f"expert{place}", each) if each["kernel"] else None,
            arms=tuple(each["arms"]),
            weights=_array(parts, f"expert{place}.weights"),
        )
        for place, each in enumerate(facts["experts"])
    )
    return Heads(
        version=version,
        embedder_version=str(facts["embedder_version"]),
        feature_names=tuple(facts["feature_names"]),
        arms=tuple(facts["arms"]),
        classes=tuple(facts["classes"]),
        class_of=dict(facts["class_of"]),
        scaling=_scaling(parts, "common"),
        gate=Gate(
            components=_array(parts, "gate.components"),
            centroids=_array(parts, "gate.centroids"),
            owners=parts["gate.owners"].astype(np.int32),
            spreads=_array(parts, "gate.spreads"),
            sharpness=float(facts["gate"]["sharpness"]),
            general_at=float(facts["gate"]["general_at"]),
            far=float(facts["gate"]["far"]),
        ),
        experts=experts,
        covers=_covers(experts, facts["arms"]),
        general=General(
            kernel=_kernel(parts, "general", facts["general"]),
            weights=_array(parts, "general.weights"),
            intercepts=_array(parts, "general.intercepts"),
            slopes=_array(parts, "general.slopes"),
        ),
        platt=_array(parts, "platt"),
        length_weights=_array(parts, "length.weights"),
        familiar_weights=_array(parts, "familiar.weights"),
        feature_quantiles=_array(parts, "feature_quantiles"),
        sample=Sample(
            classes=tuple(facts["classes"]),
            predicted=_array(parts, "sample.predicted"),
            recorded=_array(parts, "sample.recorded"),
            prompt_tokens=_array(parts, "sample.prompt_tokens"),
            length_ratio=_array(parts, "sample.length_ratio"),
        ),
    )


def _array(parts: Mapping[str, npt.NDArray[Any]], key: str) -> Matrix:
    return parts[key].astype(np.float32)


def _scaling(parts: Mapping[str, npt.NDArray[Any]], name: str) -> Scaling:
    keys = ("vector_mean", "vector_scale", "feature_mean", "feature_scale")
    return Scaling(*(_array(parts, f"{name}.{key}") for key in keys))


def _kernel(parts: Mapping[str, npt.NDArray[Any]], name: str, facts: Mapping[str, Any]) -> Kernel:
    return Kernel(
        codes=parts[f"{name}.codes"].astype(np.int8),
        scales=_array(parts, f"{name}.scales"),
        gamma=float(facts["gamma"]),
        feature_weight=float(facts["feature_weight"]),
    )
