"""Stored answers: found exactly in memory or by id, found by meaning in the vector store, checked by policy.

Knows no wire messages. An answer found exactly costs no embedding. Hits are counted in memory and written behind.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from mesh.errors import TenthError
from services.cache.embedding import Embedded, Embedder, Vector
from services.cache.keys import Question, embedded_text, exact_key, semantic_scope
from services.cache.policy import CachePolicy, ExactOnly, Verdict, exact_only, fresh, judge, least_similarity
from services.cache.store import Condition, Conditions, Entry, Found, VectorStore, entry_id

log = logging.getLogger("tenth.cache")

CANDIDATES = 16
"""Neighbours that are judged per lookup: guards refuse the nearest often enough to look at the next."""
_EVICT_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its key and the text that is embedded for it."""

    question: Question
    key: str
    text: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a lookup found. ``found`` is None on a miss; ``reason`` says why in words."""

    found: Found | None
    exact: bool
    reason: str
    vector: Vector | None = None
    compute_micros: int = 0


class AnswerCache:
    """The store with memory in front. One per process."""

    def __init__(
        self,
        store: VectorStore,
        embedder: Embedder,
        policy: CachePolicy,
        now: Callable[[], float],
        *,
        max_entry_count: int,
        memory_entry_count: int,
        memory_bytes: int,
        memory_seconds: float,
    ) -> None:
        """``memory_seconds``: how long an entry in memory is trusted without asking the store; 0: for ever."""
        self._store = store
        self._embedder = embedder
        self._policy = policy
        self._now = now
        self._max_entry_count = max_entry_count
        self._memory_entry_count = memory_entry_count
        self._memory_bytes_most = memory_bytes
        self._memory_seconds = memory_seconds
        self._memory: OrderedDict[str, tuple[Entry, float]] = OrderedDict()
        self._memory_bytes = 0
        self._used: dict[str, tuple[int, float]] = {}
        self._deletions = 0
        """Counts the beginnings and ends of deletions: what was read or written across one is not remembered."""

    @property
    def embedder(self) -> Embedder:
        """The embedder in use."""
        return self._embedder

    def ask(self, question: Question) -> Asked:
        """Key and text of a question."""
        return Asked(question, exact_key(question), embedded_text(question))

    async def find(self, asked: Asked, count_hit: bool, skip_semantic: Callable[[], bool] = lambda: False) -> Outcome:
        """Exact, then semantic unless that is to be skipped. Raises UNAVAILABLE when the store is."""
        now = self._now()
        entry = await self.find_exact(asked.key, asked.question.tenant_id)
        too_old = fresh(entry, asked.question, now) if entry is not None else ""
        if entry is not None and not too_old:
            if count_hit:
                self._count_hit(entry, now)
            return Outcome(Found(entry, 1.0), True, "same canonical request")
        why_exact = self.why_exact_only(asked)
        if why_exact is not None:
            return Outcome(None, False, f"no exact match{f' ({too_old})' if too_old else ''}; {why_exact.value}")
        if skip_semantic():
            return Outcome(None, False, "no exact match; an identical request is in flight")
        embedded = await self._embedder.embed([asked.text])
        vector = embedded.vectors[0]
        found, reason = None, "nothing similar enough is stored"
        for candidate in await self._near(asked, vector, CANDIDATES, now, self._least(asked)):
            verdict = self.judge(asked, candidate)
            if verdict.serve:
                found, reason = candidate, f"similarity {candidate.similarity:.4f}"
                break
            if found is None and reason.startswith("nothing"):
                reason = next(line for line in verdict.reasons if line.startswith("refused"))
        if found is not None:
            # Candidates come without completions, and this one may have gone since.
            whole = await self._store.get(found.entry.entry_id)
            if whole is None or whole.tenant != asked.question.tenant_id or now >= whole.expires:
                found, reason = None, "just deleted"
            else:
                found = Found(whole, found.similarity)
        stored = self._memory.get(asked.key)
        if found is None and stored is not None and not fresh(stored[0], asked.question, now):
            # An identical request was answered and stored while this one was embedded.
            return Outcome(Found(stored[0], 1.0), True, "same canonical request", vector, embedded.compute_micros)
        if found is not None and count_hit:
            self._count_hit(found.entry, now)
        return Outcome(found, False, reason, vector, embedded.compute_micros)

    async def inspect(self, asked: Asked, count: int) -> list[tuple[Found, Verdict]]:
        """The nearest entries with their verdicts; changes nothing."""
        if self.why_exact_only(asked) is not None:
            return []
        embedded = await self._embedder.embed([asked.text])
        found = await self._near(asked, embedded.vectors[0], count, self._now(), -1.0)
        return [(candidate, self.judge(asked, candidate)) for candidate in found]

    def judge(self, asked: Asked, candidate: Found) -> Verdict:
        """The policy's verdict on one neighbour."""
        return judge(asked.question, candidate, self._policy, self._embedder.reads_korean, self._now())

    def why_exact_only(self, asked: Asked) -> ExactOnly | None:
        """Why this question has no semantic stage; None when it has."""
        why = exact_only(asked.question, self._embedder.reads_korean)
        if why is None and not self._embedder.fits(asked.text):
            # What the model does not read cannot be compared: two long texts with one beginning would be the same.
            return ExactOnly.TOO_LONG
        return why

    async def find_exact(self, key: str, tenant_id: str) -> Entry | None:
        """The entry of an exact key, from memory or by id, if it is this tenant's and has not expired."""
        now = self._now()
        known = self._memory.get(key)
        entry: Entry | None
        if known is not None and known[1] > now:
            entry = known[0]
            self._memory.move_to_end(key)
        else:
            deletions = self._deletions
            entry = await self._store.get(entry_id(key))
            if entry is not None and deletions == self._deletions:
                self._remember(entry)
        # The key already holds the tenant; asked again all the same, so that no defect of a key can cross tenants.
        if entry is None or entry.exact_key != key or entry.tenant != tenant_id or now >= entry.expires:
            return None
        return entry

    async def keep(self, asked: Asked, completion: bytes, model: str, tier: int, tags: tuple[str, ...],
                   vector: Sequence[float] | None) -> Entry:  # fmt: skip
        """Store an answer; ``vector`` is the question's embedding if the caller has it."""
        question, now = asked.question, self._now()
        semantic = self.why_exact_only(asked) is None
        if not semantic:
            # The store wants a vector; no scope ever finds this one.
            vector = [1.0] + [0.0] * (self._embedder.dimension - 1)
        elif vector is None or self._embedder.remembered(asked.text):
            vector = (await self._embedder.embed([asked.text])).vectors[0].tolist()
        entry = Entry(
            entry_id=entry_id(asked.key),
            exact_key=asked.key,
            scope=semantic_scope(question, self._embedder.version) if semantic else "",
            tenant=question.tenant_id,
            namespace=question.namespace,
            user_id=question.user_id,
            question=asked.text,
            turn=question.last_turn,
            completion=completion,
            created=now,
            expires=now + self._policy.ttl_seconds,
            model=model,
            tier=tier,
            document_ids=tuple(sorted({document for _, document, _ in question.chunks if document})),
            tags=tags,
            used=now,
        )
        deletions = self._deletions
        await self._store.put(entry, vector)
        self._used.pop(entry.entry_id, None)
        if deletions == self._deletions:
            self._remember(entry)
        else:
            self._forget(entry.exact_key)
        return entry

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """Embed texts in the one fixed form."""
        return await self._embedder.embed(texts)

    async def delete(self, conditions: Conditions, entry_ids: Sequence[str], dry_run: bool) -> int:
        """Delete entries, or only count them."""
        if dry_run:
            return await self._store.count(conditions, entry_ids)
        # Memory first: whatever the store answers, nothing of this is served from here any more.
        self._forget_all()
        try:
            return await self._store.delete(conditions, entry_ids)
        finally:
            # Again: a lookup may have read from the store what was about to go.
            self._forget_all()

    async def count(self, conditions: Conditions) -> int:
        """How many entries meet all conditions."""
        return await self._store.count(conditions)

    async def sweep(self) -> None:
        """Write hits behind, delete what expired, evict the least recently used beyond the bound, flush."""
        used, self._used = self._used, {}
        if used:
            await self._store.touch(used)
        now = self._now()
        expired = await self._store.delete((Condition("expires", at_most=now),))
        over = await self._store.count(()) - self._max_entry_count
        if over > 0:
            # A little more than is over, so that a full store is not sorted again for every new entry.
            chosen = await self._store.least_recently_used(over + int(self._max_entry_count * _EVICT_SHARE))
            await self._store.delete((), chosen)
            gone = set(chosen)
            for key in [key for key, (entry, _) in self._memory.items() if entry.entry_id in gone]:
                self._forget(key)
            log.info("evicted %d entries beyond %d", len(chosen), self._max_entry_count)
        for key in [key for key, (entry, _) in self._memory.items() if entry.expires <= now]:
            self._forget(key)
        if expired:
            log.info("%d entries expired", expired)
        await self._store.flush()

    async def sweep_for_ever(self, seconds: float) -> None:
        """Sweep until cancelled; a store that is down is swept when it is back."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.sweep()
            except TenthError as error:
                log.warning("sweep put off: %s", error)

    def _least(self, asked: Asked) -> float:
        return least_similarity(asked.question, self._policy, self._embedder.reads_korean)

    async def _near(self, asked: Asked, vector: Vector, count: int, now: float, least: float) -> list[Found]:
        question = asked.question
        # The scope begins with the tenant, and both tenant and age are checked below and by policy: every further
        # condition of the search costs as much again as comparing the vectors.
        conditions: tuple[Condition, ...] = (Condition("scope", (semantic_scope(question, self._embedder.version),)),)
        if question.tier_floor:
            conditions += (Condition("tier", at_least=float(question.tier_floor)),)
        if question.max_age_seconds is not None:
            conditions += (Condition("created", at_least=now - question.max_age_seconds),)
        found = await self._store.search(vector.tolist(), conditions, count, least)
        return [candidate for candidate in found if candidate.entry.tenant == question.tenant_id]

    def _count_hit(self, entry: Entry, now: float) -> None:
        hits, _ = self._used.get(entry.entry_id, (entry.hits, 0.0))
        self._used[entry.entry_id] = (hits + 1, now)

    def _remember(self, entry: Entry) -> None:
        self._forget(entry.exact_key)
        if self._memory_entry_count == 0:
            return
        until = self._now() + self._memory_seconds if self._memory_seconds else float("inf")
        self._memory[entry.exact_key] = (entry, until)
        self._memory_bytes += _size(entry)
        while self._memory and (
            len(self._memory) > self._memory_entry_count or self._memory_bytes > self._memory_bytes_most
        ):
            self._forget(next(iter(self._memory)))

    def _forget_all(self) -> None:
        self._deletions += 1
        self._memory.clear()
        self._memory_bytes = 0

    def _forget(self, key: str) -> None:
        known = self._memory.pop(key, None)
        if known is not None:
            self._memory_bytes -= _size(known[0])


def _size(entry: Entry) -> int:
    return len(entry.completion) + 2 * len(entry.question) + 1500
