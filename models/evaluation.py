"""What a quantized model lost: comparing what two models said of one text, and the file that keeps it.

`services.inference.model_folder` reads the file when the model is served; its recovery gate decides by it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from services.inference.model_folder import EVALUATION

FORMAT = 1


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model said of a text, position by position: the natural logarithm of the probability of the token that
    stands there, and the token it thought likeliest (teacher-forced: each position sees the true text before it)."""

    logprobs: Sequence[float]
    likeliest: Sequence[int]

    @property
    def perplexity(self) -> float:
        """exp of the mean negative log-probability."""
        return math.exp(-math.fsum(self.logprobs) / len(self.logprobs))


def agreement(reading: Reading, reference: Reading) -> float:
    """Share of positions (0..1) at which both think the same token the likeliest. Raises ValueError when the texts
    differ in length."""
    pairs = list(zip(reading.likeliest, reference.likeliest, strict=True))
    return sum(one == other for one, other in pairs) / len(pairs)


def windows(ids: Sequence[int], length: int, stride: int, first: int) -> list[tuple[list[int], int]]:
    """Windows over a text, and from which position of each on its tokens count, so that each token counts once.

    ``first`` is put before each window (a begin-of-text token). A token is scored with at least ``length - stride``
    tokens before it, but for those of the first window. Source: "Perplexity of fixed-length models" in the
    documentation of transformers.
    """
    if not 0 < stride <= length:
        raise ValueError(f"a stride of {stride} tokens does not fit windows of {length}")
    found, scored = [], 0
    for start in range(0, len(ids), stride):
        end = min(start + length, len(ids))
        found.append(([first, *ids[start:end]], scored - start + 1))
        scored = end
        if end == len(ids):
            break
    return found


def compared(reading: Reading, reference: Reading) -> dict[str, float]:
    """The figures of a model against its reference."""
    return {
        "perplexity": round(reading.perplexity, 4),
        "reference_perplexity": round(reference.perplexity, 4),
        "perplexity_ratio": round(reading.perplexity / reference.perplexity, 5),
        "agreement": round(agreement(reading, reference), 5),
    }


def write(folder: Path, result: Mapping[str, Any]) -> Path:
    """Put the result beside the weights, in one step. Raises OSError."""
    path = folder / EVALUATION
    temporary = path.with_suffix(".new")
    temporary.write_text(json.dumps({"format": FORMAT, **result}, indent=2) + "\n", "utf-8")
    temporary.replace(path)
    return path
