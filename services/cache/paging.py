"""Entries that meet some conditions whatever their scope, from a store that can only count and search.

A store that can scroll needs nothing of this.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from services.cache.store import Condition, Conditions, Entry, Found, VectorStore

_SHORTEST_SECONDS = 1e-4
_LATEST = 2.0**36
_EVERY = -2.0
"""Below every cosine."""


async def entries(store: VectorStore, dimension: int, conditions: Conditions, page: int = 512) -> AsyncIterator[Entry]:
    """The entries, oldest first. Raises UNAVAILABLE when the store is down.

    Time is halved until a part of it holds no more than a page.
    """
    point = [1.0] + [0.0] * (dimension - 1)
    parts = [(-1.0, _LATEST)]
    while parts:
        begin, end = parts.pop()
        part = (*conditions, Condition("created", above=begin, at_most=end))
        count = await store.count(part)
        middle = (begin + end) / 2
        if count > page and end - begin > _SHORTEST_SECONDS:
            parts += [(middle, end), (begin, middle)]
        elif count:
            found = await store.search(point, part, count, _EVERY)
            for one in sorted((one.entry for one in found), key=lambda entry: entry.created):
                yield one


async def nearest(store: VectorStore, conditions: Conditions, vector: Sequence[float], limit: int) -> list[Found]:
    """The entries nearest to a vector, best first. Raises UNAVAILABLE when the store is down."""
    return await store.search(vector, conditions, limit, _EVERY)
