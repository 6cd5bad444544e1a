"""The router's heads as the bench sees them, and where the shipped ones lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

import services.router
from services.router.features import Features
from services.router.scores import Floats

Vectors = npt.NDArray[np.float32]

WEIGHTS = Path(services.router.__file__).parent / "weights"
_HEADS = "heads.npz"
_TRANSFER = "transfer"


class Prediction(Protocol):
    """What heads say of one question."""

    @property
    def success(self) -> Mapping[str, float]:
        """By arm, 0..1."""

    @property
    def expected_output_tokens(self) -> object:
        """As the heads have it; the bench only has it computed."""

    @property
    def out_of_distribution(self) -> bool:
        """True for questions unlike those of training."""


class Heads(Protocol):
    """Estimators of each arm's success."""

    @property
    def embedder_version(self) -> str:
        """What made the vectors that they were trained on."""

    @property
    def arms(self) -> tuple[str, ...]:
        """Models and classes of models."""

    def predict(self, vector: Vectors, features: Features) -> Prediction:
        """For one question."""

    def predict_many(self, vectors: Vectors, features: Sequence[Features]) -> npt.NDArray[np.floating]:
        """Success by question and arm."""

    def gain_many(
        self, vectors: Vectors, features: Sequence[Features], weak: str, strong: str
    ) -> npt.NDArray[np.floating]:
        """By question, what the strong arm is expected to add. Raises KeyError when they know nothing of an arm."""


@dataclass(frozen=True, slots=True)
class Shipped:
    """The heads in use, and those trained without one set."""

    heads: Heads | None
    transfer: Mapping[str, Heads]

    def system_heads(self, set_name: str) -> dict[str, Heads]:
        """The heads that a set is measured with, by the system's name.

        A set that has no heads of its own was never trained on: the heads in use are its transfer heads.
        """
        if self.heads is None:
            return {}
        without = self.transfer.get(set_name)
        if without is None:
            return {"ours_transfer": self.heads}
        return {"ours_in_domain": self.heads, "ours_transfer": without}


def load(folder: Path = WEIGHTS) -> Shipped:
    """Read the shipped heads. Without a file, or without the code for them, there are none."""
    file = folder / _HEADS
    if not file.is_file() or find_spec("services.router.heads") is None:
        return Shipped(None, {})
    kind = import_module("services.router.heads").Heads
    transfer = {path.stem: kind.load(path) for path in sorted((folder / _TRANSFER).glob("*.npz"))}
    return Shipped(kind.load(file), transfer)


def success_by_model(
    heads: Heads, vectors: Vectors, features: Sequence[Features], arm_of: Mapping[str, str]
) -> dict[str, Floats]:
    """Success by question for each model whose arm, the mapping's value, the heads have."""
    matrix = np.asarray(heads.predict_many(vectors, features), np.float64)
    places = {arm: place for place, arm in enumerate(heads.arms)}
    return {model: matrix[:, places[arm]] for model, arm in arm_of.items() if arm in places}
