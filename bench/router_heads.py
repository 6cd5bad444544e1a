"""The router's trained heads as the bench loads them: those in use, those for honest figures, those of transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

import services.router
from services.router.datasets import TRAINING_SETS, class_of
from services.router.features import Features
from services.router.heads import Heads
from services.router.scores import Floats

Vectors = npt.NDArray[np.float32]

WEIGHTS = Path(services.router.__file__).parent / "weights"
_IN_USE, _HELD_OUT = "heads.npz", "held_out.npz"
_TRANSFER = "transfer"


class Judging(Protocol):
    """What orders and picks are made from: ``Heads``, or a test's fake of them."""

    @property
    def arms(self) -> tuple[str, ...]:
        """Models and classes of models."""

    def predict_many(self, vectors: Vectors, features: Sequence[Features]) -> npt.NDArray[np.floating]:
        """Success by question and arm."""

    def gain_many(
        self, vectors: Vectors, features: Sequence[Features], weak: str, strong: str
    ) -> npt.NDArray[np.floating]:
        """By question, what the strong arm is expected to add. Raises KeyError when they know nothing of an arm."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """The heads that stand for those in use, and those trained without one set."""

    heads: Heads | None
    file: str = ""
    """Name of the file that they are from."""
    transfer: Mapping[str, Heads] = field(default_factory=dict)

    def by_system(self, set_name: str) -> dict[str, Heads]:
        """The heads that a set is measured with, by the system's name.

        Training never saw a set that it does not name: there the heads in use are the transfer heads.
        """
        if self.heads is None:
            return {}
        if set_name not in TRAINING_SETS:
            return {"ours_transfer": self.heads}
        without = self.transfer.get(set_name)
        return {"ours_in_domain": self.heads} | ({} if without is None else {"ours_transfer": without})


def load(*, held_out: bool, folder: Path = WEIGHTS) -> Loaded:
    """Read the heads; ``held_out`` takes those that never saw the held-out rows. Without a file there are none.

    Raises HeadsError for a broken file.
    """
    file = folder / (_HELD_OUT if held_out else _IN_USE)
    if not file.is_file():
        return Loaded(None)
    transfer = {path.stem: Heads.load(path) for path in sorted((folder / _TRANSFER).glob("*.npz"))}
    return Loaded(Heads.load(file), file.name, transfer)


def arm_of(heads: Judging, model: str) -> str:
    """The arm that stands for a model: its own, or else that of its class; the model itself when it is in no class."""
    return model if model in heads.arms else class_of(model) or model


def success_by_model(
    heads: Judging, vectors: Vectors, features: Sequence[Features], arm_of: Mapping[str, str]
) -> dict[str, Floats]:
    """Success by question for each model whose arm, the mapping's value, the heads have."""
    matrix = np.asarray(heads.predict_many(vectors, features), np.float64)
    places = {arm: place for place, arm in enumerate(heads.arms)}
    return {model: matrix[:, places[arm]] for model, arm in arm_of.items() if arm in places}
