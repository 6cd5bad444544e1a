"""MinHash signatures (Broder, 1997) of token sequences, and banded look-up of likely near-duplicates. Pure.

Deterministic: the hashes are made of fixed digests, never of Python's own, which change from process to process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Hashes = npt.NDArray[np.uint64]
BANDS, ROWS = 16, 4
"""Two texts that share eight in ten shingles meet in a band with probability 0.9998; with half, 0.64."""
_SHINGLE = 3
_BLOCK = 1024
_MULTIPLIERS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)


class MinHasher:
    """Makes signatures, with a memory for tokens."""

    __slots__ = ("_memory", "_odd", "_shift")

    def __init__(self) -> None:
        self._memory: dict[str, int] = {}
        count = BANDS * ROWS
        self._odd = np.array([_fixed(f"multiply {number}") | 1 for number in range(count)], np.uint64)
        self._shift = np.array([_fixed(f"add {number}") for number in range(count)], np.uint64)

    def shingles(self, tokens: Sequence[str]) -> Hashes:
        """The distinct hashes of three tokens in a row, sorted; of fewer than three tokens, of what there is."""
        memory = self._memory
        for token in tokens:
            if token not in memory:
                memory[token] = _fixed(token)
        values = np.array([memory[token] for token in tokens], np.uint64)
        width = min(_SHINGLE, len(values))
        if not width:
            return values
        count = len(values) - width + 1
        combined = np.zeros(count, np.uint64)
        for at in range(width):  # Unsigned arithmetic wraps around, as it should here.
            combined += values[at : at + count] * np.uint64(_MULTIPLIERS[at])
        combined ^= combined >> np.uint64(29)
        return np.unique(combined)

    def bands(self, shingles: Hashes) -> list[bytes]:
        """Keys: texts that share one of them may be near-duplicates. None of nothing."""
        if not len(shingles):
            return []
        # Some at a time: the whole table of a long text would be large.
        signature = np.full(len(self._odd), np.iinfo(np.uint64).max, np.uint64)
        for at in range(0, len(shingles), _BLOCK):
            hashes = shingles[at : at + _BLOCK, np.newaxis] * self._odd + self._shift
            signature = np.minimum(signature, hashes.min(axis=0))
        return [bytes([band]) + signature[band * ROWS : (band + 1) * ROWS].tobytes() for band in range(BANDS)]


def jaccard(left: Hashes, right: Hashes) -> float:
    """Shared shingles as a share of all, 0 to 1; 0 of nothing."""
    shared = len(np.intersect1d(left, right, assume_unique=True))
    every = len(left) + len(right) - shared
    return shared / every if every else 0.0


def _fixed(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big")
