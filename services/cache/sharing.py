"""When an answer made for one user is served to the others of its tenant: when enough of them got the same one.

One wrong or poisoned answer then stays with the user that it was made for. Entries that wait for a second user lie in
scopes of their own, which no lookup of another user searches; they are compared here, inside a store, and nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from weakref import WeakValueDictionary

from services.cache.embedding import Embedder
from services.cache.features import letter_overlap
from services.cache.guards import differences
from services.cache.keys import Language, language
from services.cache.store import Condition, Conditions, Entry, Found, VectorStore

_COMPARED = 24
"""Entries of other users that are looked at per store, nearest first."""
_LEAST_CHARACTERS = 20
"""Shorter answers agree when they are equal: "yes" and "no" are near, and no guard reads a single letter."""
_LEAST_OVERLAP = 0.4
"""Least overlap of character 2-4-grams of two answers that agree without being equal."""


@dataclass(frozen=True, slots=True)
class Said:
    """What an answer says."""

    digest: str
    """Equal digests: the same answer. Empty: it agrees with none."""
    text: str
    """Its text where that is all of it; empty: only an equal digest agrees."""


class Agreement:
    """Finds the answers of other users that agree with a new one."""

    def __init__(self, store: VectorStore, embedder: Embedder, said: Callable[[bytes], Said], threshold: float) -> None:
        """``threshold`` is the least cosine at which two answers in free text agree."""
        self._store = store
        self._embedder = embedder
        self._said = said
        self._threshold = threshold
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def lock(self, pool: str) -> asyncio.Lock:
        """Held while a pool is searched and written to: of two stores at once the later must see the earlier."""
        lock = self._locks.get(pool)
        if lock is None:
            lock = self._locks[pool] = asyncio.Lock()
        return lock

    async def others(
        self,
        entry: Entry,
        vector: Sequence[float],
        same_question: Callable[[Found], bool],
        needed: int,
        now: float,
        least: float = -1.0,
    ) -> list[Entry]:
        """The waiting entries of other users that agree, of at most ``needed`` users.

        ``entry`` is the new one; ``same_question`` says whether its question may be answered by another entry, and
        ``least`` is the cosine below which it never does: the pools of all tenants lie in one space, and without a
        bound a search looks at thousands of rows of others.
        """
        conditions = (Condition("pool", (entry.pool,)), Condition("expires", above=now))
        agreeing: list[Entry] = []
        users: set[str] = set()
        for found in await self._waiting(entry, vector, conditions, least):
            other = found.entry
            if len(users) >= needed:
                break
            # The pool holds the tenant; asked again, as everywhere.
            if other.tenant != entry.tenant or other.owner in ("", entry.owner) or other.expires <= now:
                continue
            if other.exact_key != entry.exact_key and not same_question(found):
                continue
            if await self._agree(entry, other):
                agreeing.append(other)
                users.add(other.owner)
        return agreeing

    async def _waiting(
        self, entry: Entry, vector: Sequence[float], conditions: Conditions, least: float
    ) -> list[Found]:
        if entry.scope:
            return await self._store.search(vector, conditions, _COMPARED, least)
        # What is found by its key alone has a pool of its own, and no vector to be searched by.
        page, _ = await self._store.scroll(conditions, _COMPARED)
        return [Found(other, 1.0) for other, _ in page]

    async def _agree(self, new: Entry, stored: Entry) -> bool:
        if new.answer_digest and new.answer_digest == stored.answer_digest:
            return True
        # What a search finds comes without its answer.
        whole = await self._store.get(stored.entry_id)
        if whole is None:
            return False
        one, other = self._said(new.completion), self._said(whole.completion)
        if not (self._comparable(one.text) and self._comparable(other.text)):
            return False
        # Similar is not the same: a number or a "not" more is another answer, and "Paris" is near "London".
        if letter_overlap(one.text, other.text) < _LEAST_OVERLAP or differences(one.text, other.text):
            return False
        first, second = (await self._embedder.embed([one.text, other.text])).vectors
        return float(first @ second) >= self._threshold

    def _comparable(self, text: str) -> bool:
        readable = self._embedder.reads_korean or language(text) is Language.ENGLISH
        return len(text.strip()) >= _LEAST_CHARACTERS and readable and self._embedder.fits(text)
