"""Small heads of made-up questions in two families, chat and code, for tests that need no embedder.

A question is a point of sixteen dimensions: chat lies around the first axis, code around the second. Along the third
axis code gets harder for the small model; chat is easy for all.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import numpy.typing as npt

from services.router.datasets import Row
from services.router.features import Features
from services.router.fit import RECIPES
from services.router.heads import Heads, Matrix, heads_from_bytes
from services.router.train import FEATURE_NAMES, Corpus, Everyday, train

EMBEDDER = "tiny@1-int8"
SIZE = 16
SMALL, MEDIUM, LARGE = "mistral-7b", "mixtral-8x7b", "gpt-4-1106"
_ROWS = 450


def questions(family: str, count: int, seed: int) -> Matrix:
    """Vectors of a family, normalised."""
    drawn = np.random.default_rng(seed)
    around = np.zeros(SIZE)
    around[{"chat": 0, "code": 1, "everyday": 3, "far": 9}[family]] = 1.0 if family != "far" else -1.0
    noise = drawn.normal(scale=0.12, size=(count, SIZE))
    noise[:, 2] = drawn.uniform(-0.5, 0.5, count)
    rows = around + noise
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def features(count: int, seed: int, code: float = 0.0) -> list[Features]:
    """Features that say little, but whether it is code."""
    drawn = np.random.default_rng(seed)
    return [
        Features(
            language="en", words=20.0, length=float(drawn.random()) / 2, code=code, code_task=0.0, maths=0.0,
            reasoning=0.0, multi_step=0.0, choices=0.0, creative=0.0, transform=0.0, explain=0.0, why=0.0, lookup=0.0,
            format_demand=0.0, turns=0.0, context=0.0, tools=0.0, expert=0.0, log_chars=4.0 + float(drawn.random()),
        )
        for _ in range(count)
    ]  # fmt: skip


def small_model_chance(family: str, vectors: Matrix) -> npt.NDArray[np.float64]:
    """How likely the small model answers well."""
    if family == "chat":
        return np.full(len(vectors), 0.95)
    return np.asarray(1.0 / (1.0 + np.exp(8.0 * vectors[:, 2].astype(np.float64))))


def corpus(seed: int = 3) -> Corpus:
    """Recorded rows of both families."""
    drawn = np.random.default_rng(seed)
    rows, vectors, numbers = [], [], []
    for place, family in enumerate(("chat", "code")):
        points = questions(family, _ROWS, seed + place)
        chances = small_model_chance(family, points)
        for number, (point, chance) in enumerate(zip(points, chances, strict=True)):
            quality = {
                SMALL: float(drawn.random() < chance),
                MEDIUM: float(drawn.random() < 0.9),
                LARGE: float(drawn.random() < 0.97),
            }
            tokens = {SMALL: 100.0 if family == "chat" else 400.0}
            rows.append(Row(family, f"{family}-{number}", f"{family} question {number}", "", quality, {}, tokens))
            vectors.append(point)
        found = features(_ROWS, seed + 10 + place, code=float(family == "code"))
        numbers.append(np.array([[getattr(each, name) for name in FEATURE_NAMES] for each in found], np.float32))
    return Corpus(tuple(rows), np.stack(vectors), np.concatenate(numbers), everyday(seed))


def everyday(seed: int) -> Everyday:
    """Questions around the fourth axis, of which nobody recorded an outcome."""
    points, found = questions("everyday", _ROWS // 3, seed + 20), features(_ROWS // 3, seed + 21)
    return Everyday(points, np.array([[getattr(each, name) for name in FEATURE_NAMES] for each in found], np.float32))


@cache
def heads_content() -> bytes:
    """The file."""
    linear = RECIPES[0]
    both = RECIPES[-1]
    return train(corpus(), EMBEDDER, {"chat": linear, "code": both}, 7, folds=2)


@cache
def tiny_heads() -> Heads:
    """The heads."""
    return heads_from_bytes(heads_content(), "tiny.npz")
