"""The sets of recorded outcomes as they are measured: which rows, which two models, what baselines may learn from."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from bench.cache_vectors import batches
from bench.router_heads import Vectors
from services.router import datasets
from services.router.datasets import Row
from services.router.features import Features, Prompt, extract
from services.router.scores import Floats, Indices

QUICK_ROWS = 300
UNREADABLE = (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError, AttributeError)
"""What reading a file of unknown origin raises."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What a run takes of each set."""

    quick: bool
    held_out: bool
    seed: int


class Memory(Protocol):
    """An encoder that keeps the vectors of a set; ``bench.cache_vectors`` has the real one."""

    def encode(self, texts: Sequence[str]) -> Vectors:
        """One L2-normalised row per text."""

    def load(self, name: str) -> None:
        """Know what was kept under this name."""

    def save(self, name: str) -> None:
        """Keep what is known under this name."""


class MeasuredSet:
    """The rows of one set on which both of its models were recorded, and their vectors and features."""

    def __init__(self, name: str, rows: Sequence[Row], choice: Choice, encoder: Memory | None) -> None:
        """``rows`` are all of the set's. Raises ValueError without two models or without a row to measure."""
        self.name = name
        self.weak, self.strong = _pair(name, rows)
        self.rows = [row for row in rows if self.weak in row.quality and self.strong in row.quality]
        self._encoder = encoder
        wanted = [place for place, row in enumerate(self.rows) if not choice.held_out or datasets.held_out(row)]
        if choice.quick and len(wanted) > QUICK_ROWS:
            wanted = sorted(random.Random(choice.seed).sample(wanted, QUICK_ROWS))  # noqa: S311  (a sample of rows)
        if not wanted:
            raise ValueError("no row to measure")
        self.measured: Indices = np.array(wanted, np.intp)
        """Places of the rows that are measured."""
        trained = [place for place, row in enumerate(self.rows) if not datasets.held_out(row)]
        if choice.quick:
            trained = trained[:QUICK_ROWS]
        self.training: Indices = np.array(trained, np.intp)
        """Places of the rows whose questions are not held out: what the shipped heads learned from, if from this."""

    @cached_property
    def vectors(self) -> Vectors | None:
        """One for each row; zeros for rows that are neither measured nor of training; None without an embedder."""
        if self._encoder is None:
            return None
        used = sorted({*self.measured.tolist(), *self.training.tolist()})
        made = embed(self._encoder, f"router_{self.name}", [self.rows[place].text for place in used])
        found = np.zeros((len(self.rows), made.shape[1]), np.float32)
        found[used] = made
        return found

    @cached_property
    def features(self) -> list[Features]:
        """One for each row."""
        return [extract(Prompt(question=row.text)) for row in self.rows]

    @property
    def weak_quality(self) -> Floats:
        """Of each measured row."""
        return self._quality(self.weak)

    @property
    def strong_quality(self) -> Floats:
        """Of each measured row."""
        return self._quality(self.strong)

    @cached_property
    def gain(self) -> Floats:
        """What strong adds to weak, for each row, measured or not."""
        return np.array([row.quality[self.strong] - row.quality[self.weak] for row in self.rows])

    @cached_property
    def digests(self) -> list[str]:
        """Of each row's question."""
        return [row.group for row in self.rows]

    @property
    def tasks(self) -> list[str] | None:
        """The task of each row; None for a set that does not tell tasks apart."""
        found = [row.task for row in self.rows]
        return found if len(set(found)) > 1 else None

    def _quality(self, model: str) -> Floats:
        return np.array([self.rows[place].quality[model] for place in self.measured])


def embed(encoder: Memory, name: str, texts: Sequence[str]) -> Vectors:
    """One row per text; kept in a file under this name, also what was made before an interruption."""
    encoder.load(name)
    try:
        for block in batches(texts, f"embedding {name}"):
            encoder.encode(block)
    finally:
        encoder.save(name)
    return np.asarray(encoder.encode(texts), np.float32)


def read(data: Path, name: str) -> list[Row]:
    """All rows of a set. Raises ValueError, saying what is wrong, when the file cannot be read as one."""
    try:
        rows = datasets.read(data, name)
    except UNREADABLE as error:
        raise ValueError(f"cannot be read: {error or type(error).__name__}") from error
    if not rows:
        raise ValueError("no rows")
    return rows


def _pair(name: str, rows: Sequence[Row]) -> tuple[str, str]:
    """The set's named pair where both are recorded, else its worst and best model."""
    named = datasets.PAIRS.get(name)
    if named is not None and any(named[0] in row.quality and named[1] in row.quality for row in rows):
        return named
    return datasets.weak_and_strong(rows)
