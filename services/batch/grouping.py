"""Questions that mean nearly the same wait for the first of them. Pure; numpy alone.

Only a guess: whether the first one's answer fits is decided by the cache, which is asked again when that answer is in
it. What it refuses runs then.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.int8]
_BLOCK = 128


def to_int8(values: Sequence[float]) -> Vectors:
    """A unit vector in a byte a dimension, scaled so that its largest component is 127; zeros stay zeros."""
    vector = np.asarray(values, dtype=np.float32)
    largest = float(np.abs(vector).max(initial=0.0))
    if largest == 0 or not np.isfinite(largest):
        return np.zeros(vector.shape, dtype=np.int8)
    return np.asarray(np.rint(vector * (127.0 / largest)), dtype=np.int8)


def leaders(vectors: Vectors, threshold: float) -> NDArray[np.int32]:
    """For each row the first leader whose cosine is at least ``threshold``; its own place when it leads.

    A row is compared with leaders only, in order: nothing is chained (a follower of a follower), and every follower is
    within the threshold of its leader. At most n * leaders * dimensions multiplications, in float32 blocks.
    """
    count = len(vectors)
    result = np.arange(count, dtype=np.int32)
    led = np.empty(count, dtype=np.int32)
    units = np.empty((count, vectors.shape[1] if count else 0), dtype=np.float32)
    led_count = 0
    for start in range(0, count, _BLOCK):
        block = _units(vectors[start : start + _BLOCK])
        if led_count:
            found = block @ units[:led_count].T >= threshold
            first = found.argmax(axis=1)
            matched = found[np.arange(len(block)), first]
        else:
            first = np.zeros(len(block), dtype=np.intp)
            matched = np.zeros(len(block), dtype=np.bool_)
        new = led_count
        for row in range(len(block)):
            place = start + row
            if matched[row]:
                result[place] = led[first[row]]
                continue
            if led_count > new:
                near = units[new:led_count] @ block[row] >= threshold
                if near.any():
                    result[place] = led[new + int(near.argmax())]
                    continue
            if not block[row].any():
                continue  # No vector: it stands for itself and leads nobody.
            led[led_count], units[led_count] = place, block[row]
            led_count += 1
    return result


def _units(vectors: Vectors) -> NDArray[np.float32]:
    wide = vectors.astype(np.float32)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    return np.asarray(wide / np.where(lengths == 0, 1, lengths), dtype=np.float32)
