"""Vectors that the index does not hold yet, compared one by one: scope by scope, in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from services.cache.embedding import Vector


@dataclass(slots=True)
class _Group:
    """The vectors of a scope; the first ``count`` rows are in use."""

    seqs: npt.NDArray[np.int64]
    vectors: Vector
    count: int = 0


class RecentVectors:
    """Rows of unit length by sequence number. One thread adds and drops while another searches.

    Rows are written before they are counted, and arrays are replaced, never resized, so a search needs no lock.
    """

    def __init__(self, dimension: int) -> None:
        self._dimension = dimension
        self._groups: dict[str, _Group] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, seq: int, scope: str, vector: Vector) -> None:
        """Add a row; sequence numbers only grow."""
        group = self._groups.get(scope)
        if group is None:
            group = _Group(np.empty(1, np.int64), np.empty((1, self._dimension), np.float32))
        elif group.count == len(group.seqs):
            group = _grown(group)
        group.seqs[group.count] = seq
        group.vectors[group.count] = vector
        group.count += 1
        self._groups[scope] = group
        self._count += 1

    def drop_through(self, seq: int) -> None:
        """Drop the rows up to a sequence number."""
        kept: dict[str, _Group] = {}
        for scope, group in self._groups.items():
            begin = int(np.searchsorted(group.seqs[: group.count], seq, "right"))
            if begin < group.count:
                left = slice(begin, group.count)
                kept[scope] = _Group(group.seqs[left].copy(), group.vectors[left].copy(), group.count - begin)
        self._groups = kept
        self._count = sum(group.count for group in kept.values())

    def search(self, vector: Vector, scopes: Sequence[str] | None, limit: int) -> list[tuple[int, float]]:
        """The nearest rows of the scopes (None: of all) with their cosines, best first."""
        groups: Iterable[_Group | None]
        groups = list(self._groups.values()) if scopes is None else map(self._groups.get, scopes)
        found: list[tuple[int, float]] = []
        for group in groups:
            if group is None:
                continue
            # The arrays before the count: another row may come in between, and only into rows not counted here.
            count = group.count
            scores = group.vectors[:count] @ vector
            nearest = np.argpartition(-scores, limit)[:limit] if count > limit else np.arange(count)
            found += zip(group.seqs[nearest].tolist(), scores[nearest].tolist(), strict=True)
        found.sort(key=lambda pair: -pair[1])
        return found[:limit]


def _grown(group: _Group) -> _Group:
    more = max(4, group.count)
    seqs = np.concatenate([group.seqs, np.empty(more, np.int64)])
    vectors = np.concatenate([group.vectors, np.empty((more, group.vectors.shape[1]), np.float32)])
    return _Group(seqs, vectors, group.count)
