"""Perplexity over windows of a text: which tokens each window scores, and how far two models differ.

Every token is scored once, and behind at least ``window - stride`` tokens of context (but for the first window's):
the strided evaluation of https://huggingface.co/docs/transformers/perplexity.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class Window:
    """Tokens ``start`` to ``end`` of a text are read, and those from ``scored`` on count."""

    start: int
    end: int
    scored: int


@dataclass(frozen=True, slots=True)
class Score:
    """What a model made of one window: the sum of its negative log-likelihoods, in nats, over so many tokens."""

    nats: float
    tokens: int


def windows(count: int, window: int, stride: int) -> list[Window]:
    """The windows of a text of ``count`` tokens, in order. A text's first token is not scored: nothing precedes it.

    ValueError: a stride as long as its window, whose first token would have nothing before it.
    """
    if not 0 < stride < window:
        raise ValueError(f"a stride of {stride} does not fit a window of {window}")
    made: list[Window] = []
    scored = 1
    while scored < count:
        end = min(count, made[-1].end + stride if made else window)
        made.append(Window(max(0, end - window), end, scored))
        scored = end
    return made


def perplexity(scores: Sequence[Score]) -> float:
    """exp of the mean negative log-likelihood of a token."""
    return math.exp(sum(score.nats for score in scores) / sum(score.tokens for score in scores))


def ratio(model: Sequence[Score], base: Sequence[Score], seed: int) -> tuple[float, tuple[float, float]]:
    """A model's perplexity over the base's on the same windows, with the 95% interval of resampled windows."""
    pairs = list(zip(model, base, strict=True))
    if any(own.tokens != other.tokens for own, other in pairs):
        raise ValueError("the two models did not score the same tokens")
    source = random.Random(seed)  # noqa: S311  (it resamples, nothing is secret)
    found = sorted(_ratio(source.choices(pairs, k=len(pairs))) for _ in range(_RESAMPLES))
    return _ratio(pairs), (found[int(0.025 * _RESAMPLES)], found[int(0.975 * _RESAMPLES)])


def _ratio(pairs: Sequence[tuple[Score, Score]]) -> float:
    tokens = sum(own.tokens for own, _ in pairs)
    return math.exp(sum(own.nats - base.nats for own, base in pairs) / tokens)
