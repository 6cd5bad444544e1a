"""Arms of a deployment's own models, fitted on its own outcomes: what ``refit.py`` puts into a file of heads.

A model that is refitted gets an arm of its own name and an expert of its own, ``traffic:NAME``, which speaks where the
log has been. Elsewhere the new arm says what its prior says, the arm that stood for the model before; and all other
arms say what they said. Where the log has been, it is the prior plus a correction on the scale of the logit, by ridge
regression that cross-validation makes stiff when the log teaches little: without evidence the prior stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from services.router import fit, refit
from services.router.decision import Embedding
from services.router.features import Features
from services.router.fit import Floats
from services.router.heads import (
    Expert,
    Heads,
    Kernel,
    Matrix,
    arrays_and_facts,
    calibrated,
    expert_inputs,
    heads_from_bytes,
    heads_to_bytes,
    kernel_rows,
    spread,
)
from services.router.single import TRAFFIC

_RIDGES = (3.0, 10.0, 30.0, 100.0, 300.0, 1000.0)
"""Strengths of the correction's ridge; cross-validation chooses."""
_FOLDS = 5
_STEPS = 12
_ROWS_A_LANDMARK = 6
_BLENDS = 3000
"""Made-up questions between those of the log, on which the expert learns what the prior says."""
_BLEND_RIDGE = 0.01
_LEAST_SPREAD = 0.02
"""A log that repeats itself still speaks for what is near it."""
_SEED = 7


@dataclass(frozen=True, slots=True)
class PriorArm:
    """An arm as a file has it."""

    file: TrafficHeads
    name: str

    def predict(self, inputs: Floats) -> Floats:
        """See refit.Arm."""
        heads = self.file.heads
        column = heads.arms.index(self.name)
        return calibrated(self.raw(inputs), heads.platt[[column]])[:, 0].astype(np.float64)

    def raw(self, inputs: Floats) -> Matrix:
        """Before calibration, [n, 1]."""
        heads = self.file.heads
        column = heads.arms.index(self.name)
        return heads.raw_rows(*self.file.split(inputs))[0][:, [column]]


@dataclass(frozen=True, slots=True)
class TrafficArm:
    """An arm that was fitted: the prior's, and an expert for where the log has been."""

    prior: PriorArm
    expert: Expert
    centroids: Matrix
    spread: float

    def predict(self, inputs: Floats) -> Floats:
        """See refit.Arm. What the whole heads say once the arm is among them, the gate included."""
        file, name = self.prior.file, self.prior.name
        # An earlier refit's arm is replaced; every other prior stays beside the new arm.
        replaced = any(expert.name == TRAFFIC + name for expert in file.heads.experts)
        own = name if replaced else "the model"
        return PriorArm(file.with_arms({own: self}), own).predict(inputs)


@dataclass(frozen=True, slots=True)
class TrafficHeads:
    """A file of heads that arms can be put into."""

    heads: Heads
    content: bytes

    @classmethod
    def of(cls, content: bytes, name: str) -> TrafficHeads:
        """From a file's content. Raises HeadsError."""
        return cls(heads_from_bytes(content, name), content)

    def inputs(
        self, features: Mapping[str, float], language: str, embedding: Embedding | None
    ) -> npt.NDArray[np.floating] | None:
        """See refit.Heads: the embedding and the features, [d + f]."""
        if embedding is None or embedding.version != self.heads.embedder_version:
            return None
        if embedding.vector.shape != self.heads.scaling.vector_mean.shape:
            return None
        known = {name: features.get(name, 0.0) for name in Features.__dataclass_fields__ if name != "language"}
        row = Features(language=language, **known)
        values = np.concatenate((embedding.vector, self.heads.matrix((row,))[0]))
        return values if np.isfinite(values).all() else None

    def arm(self, model: str) -> PriorArm | None:
        """The arm of that name, or of its class where the heads know that; None where they know neither."""
        name = model if model in self.heads.arms else self.heads.class_of.get(model, "")
        return PriorArm(self, name) if name in self.heads.arms else None

    def with_arms(self, arms: Mapping[str, refit.Arm]) -> TrafficHeads:
        """These heads with some models' arms put in their place. Raises TypeError for an arm of another kind."""
        parts, facts = arrays_and_facts(self.content)
        for model, arm in sorted(arms.items()):
            if not isinstance(arm, TrafficArm):
                raise TypeError(f"{model}: not an arm that was fitted here")
            _put(parts, facts, model, arm)
        return TrafficHeads.of(heads_to_bytes(parts, facts), "refitted heads")

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        half = path.with_name(f"{path.name}.half")
        half.write_bytes(self.content)
        half.replace(path)

    def split(self, inputs: Floats) -> tuple[Matrix, Matrix]:
        """Vectors and features of rows of inputs."""
        size = len(self.heads.scaling.vector_mean)
        return inputs[:, :size].astype(np.float32), inputs[:, size:].astype(np.float32)


def load_heads(path: Path) -> TrafficHeads:
    """Read a file of heads. Raises HeadsError, or OSError when there is none."""
    return TrafficHeads.of(path.read_bytes(), str(path))


def fit_arm(inputs: Floats, targets: Floats, weights: Floats, prior: refit.Arm | None) -> TrafficArm:
    """See refit.Fitter. Raises ValueError without an arm of a file as the prior."""
    if not isinstance(prior, PriorArm):
        raise ValueError("no arm of the heads stands for the model")
    heads = prior.file.heads
    vectors, numbers = prior.file.split(inputs)
    left, right = heads.scaling.apply(vectors, numbers)
    count = max(2, min(fit.LANDMARKS, len(inputs) // _ROWS_A_LANDMARK))
    landmarks = fit.kernel(left, right, count, fit.GAMMA, fit.FEATURE_WEIGHT, _SEED)
    whitened = fit.whitening(landmarks)
    components = heads.gate.components.astype(np.float64)
    at = np.concatenate((left, right), 1) @ heads.gate.components
    design = np.concatenate((at, kernel_rows(landmarks, left, right) @ whitened), 1).astype(np.float64)
    raw = prior.raw(inputs)
    slope, intercept = heads.platt[heads.arms.index(prior.name)].astype(np.float64)
    offsets = slope * spread(raw)[:, 0].astype(np.float64) + intercept
    # Many rows of little weight say no more than the few that they are worth (Kish's effective sample size).
    weights = weights * (weights.sum() / (weights**2).sum())
    shift, found = _correction(design, targets, weights, offsets)
    size, linear = components.shape[1], components.shape[0]
    correction = np.concatenate(([shift], components @ found[:size], whitened @ found[size:]))
    # From the scale of the logit to that of raw values, as Platt's map and ``spread`` will bring it back.
    own = _prior_weights(prior, landmarks, inputs) + correction / (4.0 * slope)
    expert = Expert("", heads.scaling, landmarks, ("",), own[:, None].astype(np.float32))
    assert len(own) == 1 + linear + count
    centroids, spread_of = fit.centroids_of(at, _SEED)
    return TrafficArm(prior, expert, centroids, max(spread_of, _LEAST_SPREAD))


def _correction(design: Floats, targets: Floats, weights: Floats, offsets: Floats) -> tuple[float, Floats]:
    """Shift and coefficients to add to the offsets' logits, at the strength of ridge that does best on other folds."""
    fold = np.random.default_rng(_SEED).permutation(len(targets)) % _FOLDS
    losses = []
    for strength in _RIDGES:
        loss = 0.0
        for each in range(_FOLDS):
            learn, asked = fold != each, fold == each
            shift, found = _logistic(design[learn], targets[learn], weights[learn], offsets[learn], strength)
            logits = offsets[asked] + shift + design[asked] @ found
            loss += float((weights[asked] * (np.logaddexp(0.0, logits) - targets[asked] * logits)).sum())
        losses.append(loss)
    return _logistic(design, targets, weights, offsets, _RIDGES[int(np.argmin(losses))])


def _logistic(
    design: Floats, targets: Floats, weights: Floats, offsets: Floats, strength: float
) -> tuple[float, Floats]:
    """Ridge logistic regression with offsets, by Newton's method. The shift is held as if by ten rows."""
    inputs = np.concatenate((np.ones((len(design), 1)), design), 1)
    penalty = np.full(inputs.shape[1], strength)
    penalty[0] = 2.5
    found = np.zeros(inputs.shape[1])
    for _ in range(_STEPS):
        chance = 1.0 / (1.0 + np.exp(-np.clip(offsets + inputs @ found, -30.0, 30.0)))
        slope = inputs.T @ (weights * (targets - chance)) - penalty * found
        # A floor under the curvature: where all is sure, Newton's steps would fly off.
        curvature = (inputs * (weights * np.maximum(chance * (1 - chance), 0.02))[:, None]).T @ inputs
        step = np.linalg.solve(curvature + np.diag(penalty), slope)
        found += step
        if np.abs(step).max() < 1e-5:
            break
    return float(found[0]), found[1:]


def _prior_weights(prior: PriorArm, landmarks: Kernel, inputs: Floats) -> Floats:
    """Weights of an expert that says what the prior says, near the log: [1 + d + f + m].

    The prior is a mixture and no one expert has its weights; but it can be asked anything, so that the log's questions
    and blends of two of them teach it.
    """
    heads = prior.file.heads
    drawn = np.random.default_rng(_SEED)
    pairs, share = drawn.integers(len(inputs), size=(2, _BLENDS)), drawn.random((_BLENDS, 1))
    blends = share * inputs[pairs[0]] + (1.0 - share) * inputs[pairs[1]]
    size = len(heads.scaling.vector_mean)
    blends[:, :size] /= np.maximum(np.linalg.norm(blends[:, :size], axis=1, keepdims=True), 1e-6)
    rows = np.concatenate((inputs, blends))
    said = prior.raw(rows)[:, 0].astype(np.float64)
    values = expert_inputs(heads.scaling, landmarks, *prior.file.split(rows)).astype(np.float64)
    mean = said.mean()
    found = fit.ridge(values[:, 1:], said - mean, _BLEND_RIDGE)
    return np.concatenate(([mean], found))


def _put(parts: dict[str, npt.NDArray[Any]], facts: dict[str, Any], model: str, arm: TrafficArm) -> None:
    """Into a file's arrays and facts: the arm's name, its prior's columns in all experts, and its own expert."""
    prior, experts = arm.prior.name, facts["experts"]
    own = next((place for place, each in enumerate(experts) if each["name"] == TRAFFIC + model), len(experts))
    if model not in facts["arms"]:
        parts["platt"] = np.concatenate((parts["platt"], parts["platt"][[facts["arms"].index(prior)]]))
        facts["arms"].append(model)
        facts["class_of"][model] = facts["class_of"].get(prior, prior)
        for place, each in enumerate(experts):
            if prior in each["arms"]:
                weights = parts[f"expert{place}.weights"]
                column = weights[:, [each["arms"].index(prior)]]
                parts[f"expert{place}.weights"] = np.concatenate((weights, column), 1)
                each["arms"].append(model)
    kernel = arm.expert.kernel
    assert kernel is not None  # fit_arm's experts have one
    for key in ("vector_mean", "vector_scale", "feature_mean", "feature_scale"):
        parts[f"expert{own}.{key}"] = parts[f"common.{key}"]
    parts |= {
        f"expert{own}.weights": arm.expert.weights,
        f"expert{own}.codes": kernel.codes,
        f"expert{own}.scales": kernel.scales,
    }
    described = {
        "name": TRAFFIC + model,
        "arms": [model],
        "kernel": True,
        "recipe": "traffic",
        "gamma": kernel.gamma,
        "feature_weight": kernel.feature_weight,
    }
    kept = parts["gate.owners"] != own
    owners = np.full(len(arm.centroids), own, np.int32)
    parts["gate.owners"] = np.concatenate((parts["gate.owners"][kept], owners))
    parts["gate.centroids"] = np.concatenate((parts["gate.centroids"][kept], arm.centroids.astype(np.float16)))
    spreads = parts["gate.spreads"].copy() if own < len(experts) else np.append(parts["gate.spreads"], 0.0)
    spreads[own] = arm.spread
    parts["gate.spreads"] = spreads.astype(np.float32)
    facts["experts"] = [*experts[:own], described, *experts[own + 1 :]]
