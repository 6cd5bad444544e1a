"""Stored answers: found exactly in memory or by id, found by meaning in the vector store, checked by policy.

Of wire messages it knows only what ``messages.said`` reads off a stored answer. An answer found exactly costs no
embedding. Hits are counted in memory and written behind.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from mesh.errors import TenthError
from services.cache.choice import NEIGHBOURS_READ, Verdict, explain, judge
from services.cache.embedding import Embedded, Embedder, Vector, has_direction
from services.cache.keys import Question, embedded_text, exact_key, language, own_scope, scopes_of, semantic_scope
from services.cache.messages import said
from services.cache.namespaces import Mode, NamespacePolicy, Namespaces
from services.cache.policy import CachePolicy, ExactOnly, exact_only, fresh
from services.cache.sharing import Agreement
from services.cache.store import (
    Condition,
    Conditions,
    Entry,
    Found,
    VectorStore,
    entry_bytes,
    entry_id,
)
from services.cache.verifier import Verifier

log = logging.getLogger("tenth.cache")

MOST_CHARACTERS_COMPARED = 1000
"""Longer questions hit exactly only: guards and features read every letter of both, on the thread that serves all."""
_EVICT_SHARE = 0.02
_SAME_KEY_COSINE = 0.99
"""The same request has the same vector."""
_MEASURE_SECONDS = 300.0
"""A size is measured again after this long, for who else may write to the store."""

ErrorFactor = Callable[[str, str, str], float]
"""By tenant, namespace and entry id."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A question with its key and the text that is embedded for it."""

    question: Question
    key: str
    text: str
    request_id: str = ""
    """The caller's name for the request; empty for none."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a lookup found. ``found`` is None on a miss; ``reason`` says why in words."""

    found: Found | None
    exact: bool
    reason: str
    vector: Vector | None = None
    compute_micros: int = 0
    verdict: Verdict | None = None
    """The verdict on the best candidate, served or not; None where none was judged."""


class AnswerCache:
    """The store with memory in front. One per process."""

    def __init__(
        self,
        store: VectorStore,
        embedder: Embedder,
        policy: CachePolicy,
        now: Callable[[], float],
        *,
        namespaces: Namespaces,
        verifier: Verifier | None,
        error_factor: ErrorFactor,
        max_entry_count: int,
        memory_entry_count: int,
        memory_bytes: int,
        memory_seconds: float,
        max_entry_bytes: int | None = None,
        agreement_threshold: float = 0.9,
    ) -> None:
        """Without a verifier nothing is served by meaning.

        ``error_factor`` says what the probability that an entry is wrong is multiplied by, from reports on it.
        ``memory_seconds``: how long an entry in memory is trusted without asking the store; 0: for ever.
        ``max_entry_bytes``: None for no bound.
        """
        self.namespaces = namespaces
        self._verifier = verifier
        self._error_factor = error_factor
        self._store = store
        self._embedder = embedder
        self._policy = policy
        self._now = now
        self._max_entry_count = max_entry_count
        self._max_entry_bytes = max_entry_bytes
        self._measured: tuple[int, float] | None = None
        """Bytes of all entries and when they were measured."""
        self._put_bytes = 0
        """What was put since."""
        self._agreement = Agreement(store, embedder, said, agreement_threshold)
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

    def ask(self, question: Question, request_id: str = "") -> Asked:
        """Key and text of a question."""
        return Asked(question, exact_key(question), embedded_text(question), request_id)

    async def find(self, asked: Asked, count_hit: bool, skip_semantic: Callable[[], bool] = lambda: False) -> Outcome:
        """Exact, then semantic unless that is to be skipped. Raises UNAVAILABLE when the store is."""
        now = self._now()
        entry = await self.find_exact(asked.key, asked.question.tenant_id, asked.question.user_id)
        too_old = fresh(entry, asked.question, now) if entry is not None else ""
        if entry is not None and not too_old:
            if count_hit:
                self._count_hit(entry, now)
            return Outcome(Found(entry, 1.0), True, "same canonical request")
        why_exact = self.why_exact_only(asked)
        if why_exact:
            return Outcome(None, False, f"no exact match{f' ({too_old})' if too_old else ''}; {why_exact}")
        if skip_semantic():
            return Outcome(None, False, "no exact match; an identical request is in flight")
        embedded = await self._embedder.embed([asked.text])
        vector = embedded.vectors[0]
        verdicts = self._judge(asked, await self._near(asked, vector, NEIGHBOURS_READ, now, self.floor(asked)))
        best = verdicts[0] if verdicts else None
        found, reason = await self._serve(best)
        stored = self._remembered(asked.key, asked.question.tenant_id, asked.question.user_id)
        if found is None and stored is not None and not fresh(stored, asked.question, now):
            # An identical request was answered and stored while this one was embedded.
            return Outcome(Found(stored, 1.0), True, "same canonical request", vector, embedded.compute_micros)
        if found is not None and count_hit:
            self._count_hit(found.entry, now)
        return Outcome(found, False, reason, vector, embedded.compute_micros, best)

    async def inspect(self, asked: Asked, count: int) -> list[Verdict]:
        """The nearest entries with their verdicts; changes nothing."""
        if not self.has_meaning(asked) or self._verifier is None:
            return []
        embedded = await self._embedder.embed([asked.text])
        found = await self._near(asked, embedded.vectors[0], max(count, NEIGHBOURS_READ), self._now(), -1.0)
        question = asked.question
        return explain(question, found, self.rules(question), self._verifier, self._factor(question), self._now())[
            :count
        ]

    def rules(self, question: Question) -> NamespacePolicy:
        """The rules that hold for a question."""
        return self.namespaces.of(question.tenant_id, question.namespace)

    def has_meaning(self, asked: Asked) -> bool:
        """True if the question can be compared by meaning at all, whatever its namespace's rules say now."""
        return exact_only(asked.question, self._embedder.reads_korean) is None and self.reads(asked.text)

    def reads(self, text: str) -> bool:
        """True if a text is compared to its end, by the model and by the guards."""
        return len(text) <= MOST_CHARACTERS_COMPARED and self._embedder.fits(text)

    def why_exact_only(self, asked: Asked) -> str:
        """Why this question has no semantic stage now; empty when it has."""
        question = asked.question
        why = exact_only(question, self._embedder.reads_korean)
        if why is not None:
            return why.value
        if self.rules(question).mode is Mode.OFF:
            return ExactOnly.MODE_OFF.value
        if self.floor(asked) is None:
            return ExactOnly.NOT_CALIBRATED.value
        if not self.reads(asked.text):
            # What the model does not read cannot be compared: two long texts with one beginning would be the same.
            return ExactOnly.TOO_LONG.value
        return ""

    def floor(self, asked: Asked) -> float | None:
        """The cosine below which no neighbour is worth judging; None: no threshold was calibrated."""
        if self._verifier is None:
            return None
        mode = self.rules(asked.question).mode
        return self._verifier.floor(mode.value, language(asked.question.last_turn).value)

    async def find_exact(self, key: str, tenant_id: str, user_id: str = "") -> Entry | None:
        """The entry of an exact key, from memory or by id, that this user of this tenant may get and that still holds.

        Of a user's own entry and the tenant's, the newer one.
        """
        remembered = self._remembered(key, tenant_id, user_id)
        if remembered is not None:
            return remembered
        deletions = self._deletions
        found = await asyncio.gather(*(self._store.get(one) for one in _ids(key, user_id)))
        known = [entry for entry in found if entry is not None]
        if deletions == self._deletions:
            for entry in known:
                self._remember(entry)
        return self._servable(known, key, tenant_id, user_id)

    async def keep(self, asked: Asked, completion: bytes, model: str, tier: int, tags: tuple[str, ...],
                   vector: Sequence[float] | None, price_book_version: int = 0) -> Entry:  # fmt: skip
        """Store an answer; ``vector`` is the question's embedding if the caller has it.

        An answer made for a user stays that user's own until enough others have got one that agrees with it.
        """
        question, now = asked.question, self._now()
        # Also where nothing is served by meaning now: rules change, and a suspension ends.
        semantic = self.has_meaning(asked)
        rules = self.rules(question)
        if not semantic:
            # The store wants a vector; no scope ever finds this one.
            vector = [1.0] + [0.0] * (self._embedder.dimension - 1)
        elif vector is None or self._embedder.remembered(asked.text) or not has_direction(vector):
            vector = (await self._embedder.embed([asked.text])).vectors[0].tolist()
        shared = Entry(
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
            expires=now + rules.ttl_seconds,
            model=model,
            tier=tier,
            document_ids=tuple(sorted({document for _, document, _ in question.chunks if document})),
            tags=tags,
            used=now,
            answer_digest=said(completion).digest,
            price_book_version=price_book_version,
        )
        if not question.user_id or rules.sharing_user_count <= 1:
            await self.put(shared, vector)
            return shared
        own = replace(
            shared,
            entry_id=entry_id(asked.key, question.user_id),
            scope=own_scope(shared.scope, question.user_id) if semantic else "",
            owner=question.user_id,
            pool=shared.scope or asked.key,
        )
        async with self._agreement.lock(own.pool):
            return await self._keep_for_user(asked, shared, own, vector, rules.sharing_user_count)

    async def _keep_for_user(
        self, asked: Asked, shared: Entry, own: Entry, vector: Sequence[float], user_count: int
    ) -> Entry:
        known = self._servable([await self._store.get(shared.entry_id)], asked.key, shared.tenant, "")
        if known is not None and known.answer_digest and known.answer_digest == shared.answer_digest:
            # The same answer anew. A different one must not take the shared one's place on one user's word.
            again = replace(shared, hits=known.hits, right_count=known.right_count, wrong_count=known.wrong_count)
            return await self._share(again, [own], vector)
        agreeing = await self._agreement.others(
            own,
            vector,
            lambda found: any(verdict.serve for verdict in self._judge(asked, [found])),
            user_count - 1,
            own.created,
            _SAME_KEY_COSINE if (floor := self.floor(asked)) is None else floor,
        )
        if len({own.owner, *(entry.owner for entry in agreeing)}) < user_count:
            await self.put(own, vector)
            return own
        # Who asked in other words keeps the entry: it answers that very question, which the shared one may not.
        return await self._share(shared, [own, *(one for one in agreeing if one.exact_key == asked.key)], vector)

    async def _share(self, entry: Entry, instead_of: Sequence[Entry], vector: Sequence[float]) -> Entry:
        # First the new one, so that a crash in between loses nothing.
        await self.put(entry, vector)
        ids = [one.entry_id for one in instead_of]
        await self._store.delete((Condition("tenant", (entry.tenant,)),), ids)
        for identifier in ids:
            self._forget(identifier)
        return entry

    async def put(self, entry: Entry, vector: Sequence[float]) -> None:
        """Store an entry as it is, and remember it."""
        deletions = self._deletions
        await self._store.put(entry, vector)
        self._put_bytes += entry_bytes(entry)
        self._used.pop(entry.entry_id, None)
        if deletions == self._deletions:
            self._remember(entry)
        else:
            self._forget(entry.entry_id)

    async def stored(self, entry_id: str) -> Entry | None:
        """The entry of an id as the store has it, whosever it is, expired or not."""
        return await self._store.get(entry_id)

    async def page(
        self, conditions: Conditions, limit: int, after: str = ""
    ) -> tuple[list[tuple[Entry, list[float]]], str]:
        """A page of entries with their vectors, and the token of the next one or ""."""
        return await self._store.scroll(conditions, limit, after)

    def now(self) -> float:
        """The clock that entries expire by, Unix seconds."""
        return self._now()

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """Embed texts in the one fixed form, after the questions that are looked up."""
        return await self._embedder.embed(texts, patient=True)

    async def delete(
        self,
        conditions: Conditions,
        entry_ids: Sequence[str],
        dry_run: bool,
    ) -> int:
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

    async def entry(self, identifier: str, tenant_id: str) -> Entry | None:
        """The tenant's entry of an id, expired or not."""
        entry = await self._store.get(identifier)
        return entry if entry is not None and entry.tenant == tenant_id else None

    async def set_counts(self, entry: Entry, right_count: int, wrong_count: int) -> None:
        """Put the reports of an entry on it."""
        await self._store.set_counts(entry.entry_id, right_count, wrong_count)
        known = self._memory.get(entry.entry_id)
        if known is not None:
            counted = replace(known[0], right_count=right_count, wrong_count=wrong_count)
            self._memory[entry.entry_id] = (counted, known[1])

    async def size_bytes(self, conditions: Conditions) -> int:
        """What the entries that meet all conditions take, bytes."""
        return await self._store.total_bytes(conditions)

    def hit_count(self, entry: Entry) -> int:
        """How often an entry was served, with what is not yet written behind."""
        return max(entry.hits, self._used.get(entry.entry_id, (0, 0.0))[0])

    async def sweep(self) -> None:
        """Write hits behind, delete what expired, evict the least recently used beyond the bounds, flush."""
        await self._write_behind()
        now = self._now()
        expired = await self._store.delete((Condition("expires", at_most=now),))
        evicted = 0
        over, over_bytes = await self._over()
        if over or over_bytes:
            chosen = await self._store.least_recently_used(over, over_bytes)
            evicted = await self._store.delete((), chosen)
            for identifier in chosen:
                self._forget(identifier)
            self._measured = None
        if evicted:
            log.info("evicted %d entries beyond the bounds", evicted)
        for identifier in [identifier for identifier, (entry, _) in self._memory.items() if entry.expires <= now]:
            self._forget(identifier)
        if expired:
            log.info("%d entries expired", expired)
        await self._store.flush()

    async def _write_behind(self) -> None:
        used, self._used = self._used, {}
        if not used:
            return
        try:
            await self._store.touch(used)
        except TenthError:
            self._used = {**used, **self._used}
            raise
        for identifier, (hits, at) in used.items():
            known = self._memory.get(identifier)
            if known is not None:
                # Counting goes on from here.
                self._memory[identifier] = (replace(known[0], hits=hits, used=at), known[1])

    async def _size_at_most(self, bound: int) -> int:
        """What all entries take, or a number from there up to the bound: a large store is not measured for nothing."""
        now = self._now()
        if self._measured is not None:
            size, at = self._measured
            if size + self._put_bytes <= bound and now - at < _MEASURE_SECONDS:
                return size + self._put_bytes
        self._put_bytes = 0
        size = await self.size_bytes(())
        self._measured = (size, now)
        return size

    async def _over(self) -> tuple[int, int]:
        """How many entries and bytes have to go: a little more than is over, not to sort for each new one."""
        over = await self._store.count(()) - self._max_entry_count
        over = over + int(self._max_entry_count * _EVICT_SHARE) if over > 0 else 0
        excess = 0
        if self._max_entry_bytes is not None:
            excess = await self._size_at_most(self._max_entry_bytes) - self._max_entry_bytes
            excess = excess + int(self._max_entry_bytes * _EVICT_SHARE) if excess > 0 else 0
        return over, excess

    async def sweep_for_ever(self, seconds: float) -> None:
        """Sweep until cancelled; a store that is down is swept when it is back."""
        while True:
            await asyncio.sleep(seconds)
            try:
                await self.sweep()
            except TenthError as error:
                log.warning("sweep put off: %s", error)

    def _judge(self, asked: Asked, neighbours: Sequence[Found]) -> list[Verdict]:
        if self._verifier is None:
            return []
        question = asked.question
        return judge(question, neighbours, self.rules(question), self._verifier, self._factor(question), self._now())

    def _factor(self, question: Question) -> Callable[[Entry], float]:
        return lambda entry: self._error_factor(question.tenant_id, question.namespace, entry.entry_id)

    async def _serve(self, best: Verdict | None) -> tuple[Found | None, str]:
        if best is None:
            return None, "nothing similar enough is stored"
        if not best.serve:
            return None, next(line for line in best.reasons if line.startswith("refused"))
        # Searching brings no answers along; this one may have been deleted since.
        entry = await self._store.get(best.found.entry.entry_id)
        if entry is None:
            return None, "the nearest entry was deleted in this moment"
        return Found(entry, best.found.similarity), f"probability {best.probability:.4f}, needs {best.needed:.4f}"

    async def _near(self, asked: Asked, vector: Vector, count: int, now: float, least: float | None) -> list[Found]:
        question = asked.question
        # The scope begins with the tenant, and both tenant and age are checked below and by policy: every further
        # condition of the search costs as much again as comparing the vectors.
        scopes = scopes_of(question, self._embedder.version)
        conditions: tuple[Condition, ...] = (Condition("scope", scopes),)
        if question.tier_floor:
            conditions += (Condition("tier", at_least=float(question.tier_floor)),)
        if question.max_age_seconds is not None:
            conditions += (Condition("created", at_least=now - question.max_age_seconds),)
        found = await self._store.search(vector.tolist(), conditions, count, -1.0 if least is None else least)
        whose = ("", question.user_id)
        return [
            one
            for one in found
            if one.entry.tenant == question.tenant_id
            and one.entry.namespace == question.namespace
            and one.entry.owner in whose
        ]

    def _count_hit(self, entry: Entry, now: float) -> None:
        hits, _ = self._used.get(entry.entry_id, (entry.hits, 0.0))
        self._used[entry.entry_id] = (hits + 1, now)

    def _remembered(self, key: str, tenant_id: str, user_id: str) -> Entry | None:
        now = self._now()
        known = [self._memory[one] for one in _ids(key, user_id) if one in self._memory]
        entry = self._servable([entry for entry, until in known if until > now], key, tenant_id, user_id)
        if entry is not None:
            self._memory.move_to_end(entry.entry_id)
        return entry

    def _servable(self, found: Sequence[Entry | None], key: str, tenant_id: str, user_id: str) -> Entry | None:
        # The key already holds the tenant; asked again all the same, so that no defect of a key can cross tenants.
        now, whose = self._now(), ("", user_id)
        held = [
            entry
            for entry in found
            if entry is not None
            and entry.exact_key == key
            and entry.tenant == tenant_id
            and entry.owner in whose
            and now < entry.expires
        ]
        return max(held, key=lambda entry: entry.created, default=None)

    def _remember(self, entry: Entry) -> None:
        self._forget(entry.entry_id)
        if self._memory_entry_count == 0:
            return
        until = self._now() + self._memory_seconds if self._memory_seconds else float("inf")
        self._memory[entry.entry_id] = (entry, until)
        self._memory_bytes += entry_bytes(entry)
        while self._memory and (
            len(self._memory) > self._memory_entry_count or self._memory_bytes > self._memory_bytes_most
        ):
            self._forget(next(iter(self._memory)))

    def _forget_all(self) -> None:
        self._deletions += 1
        self._memory.clear()
        self._memory_bytes = 0

    def _forget(self, identifier: str) -> None:
        known = self._memory.pop(identifier, None)
        if known is not None:
            self._memory_bytes -= entry_bytes(known[0])


def _ids(key: str, user_id: str) -> tuple[str, ...]:
    return (entry_id(key), entry_id(key, user_id)) if user_id else (entry_id(key),)
