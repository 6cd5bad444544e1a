"""Whether today's questions are like the training's: the population stability index by feature. Pure.

The index sums (seen - trained) * ln(seen / trained) over the tenths of the training's values; above 0.2 is commonly
taken for drift (Siddiqi, Credit Risk Scorecards, 2006). With n rows and no drift it is about 9 / n.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

DRIFT = 0.2
LEAST_ROWS = 200
"""Below these the index is mostly noise: at 200 rows it passes 0.2 about once in a hundred thousand times."""
_DECILES = 11
_LUMP_SHARE = 0.02
"""Share of rows with exactly one value from which that value is a lump and no point of a smooth curve."""


def stability_index(values: Iterable[float], deciles: Sequence[float]) -> float:
    """The index of ``values`` against the training's deciles, its least value first, its largest last: 11 of them.

    Where many training values are the same, the deciles tell their share only to a tenth; within that tenth whatever is
    seen counts as no drift. Raises ValueError for other than 11 ascending deciles; 0 of no values.
    """
    if len(deciles) != _DECILES or any(low > high for low, high in pairwise(deciles)):
        raise ValueError(f"a feature has {_DECILES} ascending deciles, not {list(deciles)}")
    seen = sorted(values)
    count = len(seen)
    if not count:
        return 0.0
    index = 0.0
    shares: list[tuple[float, float]] = []
    trained_below = seen_below = 0.0
    for edge in sorted({value for value in deciles if value < deciles[-1]}):
        last = bisect_right(deciles, edge) - 1
        up_to = bisect_right(seen, edge)
        seen_up_to, trained_up_to = up_to / count, last / (_DECILES - 1)
        lump = last > bisect_left(deciles, edge) or (up_to - bisect_left(seen, edge)) / count >= _LUMP_SHARE
        if lump:
            trained_up_to = min(max(seen_up_to, trained_up_to), trained_up_to + 0.1)
        shares.append((seen_up_to - seen_below, max(0.0, trained_up_to - trained_below)))
        seen_below, trained_below = seen_up_to, max(trained_below, trained_up_to)
    shares.append((1.0 - seen_below, 1.0 - trained_below))
    bins = len(shares)
    # Half a row in each bin: an empty one would make the index infinite.
    half = 0.5 / count
    for seen_share, trained_share in shares:
        actual = (seen_share + half) / (1.0 + half * bins)
        expected = (trained_share + half) / (1.0 + half * bins)
        index += (actual - expected) * math.log(actual / expected)
    return index


def drift(
    rows: Sequence[Mapping[str, float]], trained: Mapping[str, Sequence[float]], least_rows: int = LEAST_ROWS
) -> dict[str, float]:
    """The index of each feature that both have, by name; none below ``least_rows`` rows."""
    found = {}
    for name, deciles in trained.items():
        values = [row[name] for row in rows if name in row]
        if len(values) >= least_rows:
            found[name] = stability_index(values, deciles)
    return found
