"""Fits the weights and the thresholds of the retrieval strategies: ``python -m services.compressor.fit --data DIR``.

    python -m services.compressor.fit --data DIR [--vectors DIR] [--out services/compressor/weights/ranking.json]

Logistic functions by Newton's method with a small ridge: the same data and seed give the same file. Weights see only the
training tenths of the groups (``datasets.Case.training``); what is printed is of training and of held-out rows, by set.
``--vectors`` is a folder of vectors by text (``python -m bench.compressor_vectors`` writes it); without it only the
weights for words alone are fitted, and the others are kept as they are in the file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from services.compressor.datasets import Case, holds
from services.compressor.documents import Document
from services.compressor.ranking import (
    CHUNK_FEATURES,
    HOP_FEATURES,
    UNIT_FEATURES,
    Features,
    Floats,
    Weights,
    columns,
    hop_features,
    unit_features,
)

_RIDGE = 1.0
_ROUNDS = 30


@dataclass(frozen=True, slots=True)
class Example:
    """A case with what was measured of it and what should come out."""

    case: Case
    documents: tuple[Document, ...]
    features: Features
    chunk_labels: Floats
    unit_labels: Floats


def labels(case: Case, documents: Sequence[Document]) -> tuple[Floats, Floats]:
    """1 for each chunk and each unit that is needed, else 0."""
    chunks = np.zeros(len(documents))
    chunks[list(case.gold)] = 1.0
    units: list[float] = []
    gold_titles = [documents[at].heading.lower() for at in case.gold]
    for at, document in enumerate(documents):
        texts = [document.text[unit.start : unit.end] for unit in document.units]
        if at not in case.gold:
            units += [0.0] * len(texts)
            continue
        if case.evidence:
            support = case.evidence[case.gold.index(at)]
            units += [float(text.strip() in support) for text in texts]
            continue
        # The title alone answers nothing, though the answer may stand in it.
        body = [place for place, unit in enumerate(document.units) if place or not document.heading]
        found = [float(place in body and holds(text, case.answers)) for place, text in enumerate(texts)]
        if not any(found):
            # A step on the way to the answer: where another gold chunk is named, else where the text begins.
            others = [title for title in gold_titles if title and title != document.heading.lower()]
            bridges = [place for place in body if any(other in texts[place].lower() for other in others)]
            found[(bridges or body or [0])[0]] = 1.0
        units += found
    return chunks, np.array(units)


def logistic(rows: Floats, labels_: Floats, weights: Floats | None = None) -> Floats:
    """Weights of a logistic function by Newton's method with a ridge; columns that are all 0 get 0."""
    used = np.flatnonzero(np.abs(rows).max(axis=0) > 0)
    x = rows[:, used]
    w = np.zeros(len(used))
    importance = np.ones(len(x)) if weights is None else weights
    ridge = np.full(len(used), _RIDGE)
    for _ in range(_ROUNDS):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        gradient = x.T @ (importance * (labels_ - p)) - ridge * w
        hessian = (x * (importance * p * (1 - p))[:, None]).T @ x + np.diag(ridge)
        step = np.linalg.solve(hessian, gradient)
        w = w + step
        if float(np.abs(step).max()) < 1e-8:
            break
    found = np.zeros(rows.shape[1])
    found[used] = w
    return found


def fit_weights(examples: Sequence[Example]) -> Weights:
    """The three functions, one after the other."""
    chunk = logistic(np.vstack([each.features.chunk for each in examples]), np.concatenate([each.chunk_labels for each in examples]))
    firsts = [each.features.chunk @ chunk for each in examples]
    hops = [hop_features(first, each.features) for first, each in zip(firsts, examples, strict=True)]
    hop = logistic(np.vstack(hops), np.concatenate([each.chunk_labels for each in examples]))
    seconds = [each @ hop for each in hops]
    rows = np.vstack([unit_features(second, each.features) for second, each in zip(seconds, examples, strict=True)])
    unit = logistic(rows, np.concatenate([each.unit_labels for each in examples]))
    return Weights(_named(chunk, CHUNK_FEATURES), _named(hop, HOP_FEATURES), _named(unit, UNIT_FEATURES))


def _named(values: Floats, names: Sequence[str]) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in zip(names, values, strict=True)}
