"""Entries out of the cache and into it: page by page, whole, and of one tenant alone.

An exported entry carries keys that hold its tenant (``keys.tenant_mark``): they are refused under any other. Its
question is not its whole request, so its scope cannot be made anew for another embedder unless the request was
nothing but that question; the others are then found by their exact key alone. An entry that one user alone is served
travels with the scope that it would have for all.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from google.protobuf.timestamp_pb2 import Timestamp
from tenth.cache.v1 import cache_pb2
from tenth.type.v1 import chat_pb2

from mesh.errors import Code, TenthError, invalid_argument, required
from services.cache.answers import AnswerCache, Asked
from services.cache.keys import (
    MARK_CHARACTERS,
    ROLE_USER,
    Message,
    Question,
    exact_key,
    own_scope,
    semantic_scope,
    tenant_mark,
)
from services.cache.messages import answer_from_proto, provenance, question_from_proto, said
from services.cache.policy import CachePolicy, bypass_reason, not_stored_reason
from services.cache.store import Condition, Entry, entry_id

PAGE_COUNT = 64
"""Entries read from the store at once."""
CHUNK_COUNT = 32
CHUNK_BYTES = 8 * 1024 * 1024
"""Items that are taken in together, so that their texts are embedded together; fewer where they are large."""
_MAX_NAMESPACE_CHARACTERS = 128
_HEX = re.compile(r"[0-9a-f]{64}")
_UNIT = 0.01
"""How far a vector's length may be from 1; stores keep float32."""

Keep = Callable[[Asked, cache_pb2.StoreCompletionRequest], Awaitable[cache_pb2.StoreCompletionResponse]]
"""Stores an answer under the rules of StoreCompletion, or says why not."""


class ImportRefusal(StrEnum):
    """Why an exported entry is not taken in, beside the reasons of bypasses and of answers not stored."""

    OTHER_TENANT = "other_tenant"
    """Its keys hold another tenant: no request of this one could ever find it."""
    EXPIRED = "expired"
    """Its time is up."""
    ALREADY_STORED = "already_stored"
    """The same entry is there, from the same time or newer."""


async def export(answers: AnswerCache, tenant: str, namespace: str) -> AsyncIterator[cache_pb2.CacheEntry]:
    """The tenant's entries that have not expired, with vectors and answers; one page of them in memory at a time.

    Entries stored behind the page that is being read are left out.
    """
    conditions: tuple[Condition, ...] = (Condition("tenant", (tenant,)), Condition("expires", above=answers.now()))
    if namespace:
        conditions += (Condition("namespace", (namespace,)),)
    after = ""
    while True:
        page, after = await answers.page(conditions, PAGE_COUNT, after)
        for entry, vector in page:
            if entry.tenant == tenant:
                yield entry_to_proto(entry, vector, answers.embedder.version, answers.hit_count(entry))
        if not after:
            return


def entry_to_proto(entry: Entry, vector: Sequence[float], embedder: str, hit_count: int) -> cache_pb2.CacheEntry:
    """An entry as it travels. One that is found by its exact key alone has no embedding worth carrying."""
    message = cache_pb2.CacheEntry(
        entry_id=entry.entry_id,
        exact_key=entry.exact_key,
        scope=entry.pool if entry.owner and entry.scope else entry.scope,
        namespace=entry.namespace,
        user_id=entry.user_id,
        question=entry.question,
        turn=entry.turn,
        completion=chat_pb2.Completion.FromString(entry.completion),
        create_time=_timestamp(entry.created),
        provenance=provenance(entry, hit_count),
        document_ids=entry.document_ids,
        tags=entry.tags,
    )
    if entry.scope:
        message.embedding.CopyFrom(chat_pb2.Embedding(values=vector, embedder=embedder))
    return message


@dataclass(frozen=True, slots=True)
class _Item:
    """One thing to take in. Items of one key are taken in their order."""

    key: str
    work: Callable[[], Awaitable[str]]
    """Returns why it was not stored; empty when it was."""


class Importer:
    """Takes items in for one tenant, within one call. Counts what was not stored by reason."""

    def __init__(self, answers: AnswerCache, policy: CachePolicy, ttl_seconds: Callable[[str], float], tenant: str,
                 keep: Keep) -> None:  # fmt: skip
        """``ttl_seconds``: how long the answers of a namespace live at most."""
        self._answers = answers
        self._policy = policy
        self._ttl_seconds = ttl_seconds
        self._tenant = tenant
        self._keep = keep
        self._mark = tenant_mark(tenant)
        self._stored = 0
        self._not_stored: Counter[str] = Counter()

    async def run(self, requests: AsyncIterator[cache_pb2.ImportEntriesRequest]) -> cache_pb2.ImportEntriesResponse:
        """Take in all of a stream.

        Raises INVALID_ARGUMENT naming ``items[index].field`` for a malformed item; those before it are stored, and
        sending all of them again is harmless.
        """
        waiting: list[_Item] = []
        size = index = 0
        async for request in requests:
            try:
                waiting.append(self._read(request, f"items[{index}]"))
            except TenthError:
                await self._take(waiting)
                raise
            size += request.ByteSize()
            index += 1
            if len(waiting) >= CHUNK_COUNT or size >= CHUNK_BYTES:
                await self._take(waiting)
                waiting, size = [], 0
        await self._take(waiting)
        return cache_pb2.ImportEntriesResponse(stored_count=self._stored, not_stored_counts=self._not_stored)

    async def _take(self, items: Sequence[_Item]) -> None:
        by_key: dict[str, list[_Item]] = {}
        for item in items:
            by_key.setdefault(item.key, []).append(item)

        async def in_order(same: Sequence[_Item]) -> None:
            for item in same:
                reason = await item.work()
                if reason:
                    self._not_stored[reason] += 1
                else:
                    self._stored += 1

        # All end before any error is raised: nothing is written behind the back of a caller who was told of one.
        done = await asyncio.gather(*(in_order(same) for same in by_key.values()), return_exceptions=True)
        for outcome in done:
            if outcome is not None:
                raise outcome

    def _read(self, request: cache_pb2.ImportEntriesRequest, where: str) -> _Item:
        kind = request.WhichOneof("item")
        if kind == "entry":
            return self._read_entry(request.entry, f"{where}.entry")
        if kind == "pair":
            return self._read_pair(request.pair, f"{where}.pair")
        raise required(f"{where}.item")

    def _read_pair(self, pair: cache_pb2.Pair, where: str) -> _Item:
        if not pair.HasField("completion"):
            raise required(f"{where}.completion")
        try:
            asked = self._answers.ask(question_from_proto(pair.request, self._tenant))
        except TenthError as error:
            if error.code is Code.INVALID_ARGUMENT:
                raise TenthError(error.code, error.reason, error.message, f"{where}.{error.field}") from error
            raise
        request = cache_pb2.StoreCompletionRequest(request=pair.request, completion=pair.completion)

        async def work() -> str:
            return str((await self._keep(asked, request)).not_stored_reason)

        return _Item(asked.key, work)

    def _read_entry(self, message: cache_pb2.CacheEntry, where: str) -> _Item:
        _check_entry(message, where)
        entry = _entry_from_proto(message, self._tenant)
        vector = list(message.embedding.values)
        embedder = self._answers.embedder
        own_vector = message.embedding.embedder == embedder.version
        if entry.scope and own_vector:
            _check_vector(vector, embedder.dimension, f"{where}.embedding.values")

        async def work() -> str:
            return await self._take_entry(entry, vector if own_vector else [], message.completion)

        return _Item(entry.exact_key, work)

    async def _take_entry(self, entry: Entry, vector: list[float], completion: chat_pb2.Completion) -> str:
        """Why an entry is not stored; empty when it was. ``vector`` is empty when it must be made anew."""
        if any(key and key[:MARK_CHARACTERS] != self._mark for key in (entry.exact_key, entry.scope)):
            return ImportRefusal.OTHER_TENANT
        # It passed the gate when it was stored, but perhaps not this one.
        asked = _asked_of(entry)
        # Whether its request named the limit that it ends at is not known here; where it was stored, it was.
        answer = replace(answer_from_proto(completion), reached_limit=True)
        refused = bypass_reason(asked, self._policy) or not_stored_reason(asked, answer, False)
        if refused is not None:
            return refused.value
        now = self._answers.now()
        last = now + self._ttl_seconds(entry.namespace)
        entry = replace(
            entry, created=min(entry.created or now, now), expires=min(entry.expires or last, last), used=now
        )
        if entry.expires <= now:
            return ImportRefusal.EXPIRED
        if entry.scope and not (self._answers.reads(entry.question) and self._answers.reads(entry.turn)):
            # As when it is asked: what is not read to its end is found by its exact key alone.
            entry, vector = replace(entry, scope=""), []
        known = await self._answers.stored(entry.entry_id)
        if known is not None and known.tenant != entry.tenant:
            return ImportRefusal.OTHER_TENANT
        if known is not None and known.expires > now and known.created >= entry.created:
            return ImportRefusal.ALREADY_STORED
        if entry.scope and not vector:
            entry, vector = await self._embed_anew(entry)
        if entry.owner:
            pool = entry.scope or entry.exact_key
            entry = replace(entry, scope=own_scope(entry.scope, entry.owner) if entry.scope else "", pool=pool)
        # The store wants a vector also for what is found by its exact key alone.
        await self._answers.put(entry, vector or [1.0] + [0.0] * (self._answers.embedder.dimension - 1))
        return ""

    async def _embed_anew(self, entry: Entry) -> tuple[Entry, list[float]]:
        for floor in (0, *chat_pb2.Tier.values()):
            question = _only(entry, floor)
            if exact_key(question) != entry.exact_key:
                continue
            # The request was this question and nothing else: all of its scope is known.
            asked = self._answers.ask(question)
            if not self._answers.has_meaning(asked):
                break
            embedder = self._answers.embedder
            (vector,) = (await self._answers.embed([asked.text])).vectors
            return replace(entry, scope=semantic_scope(question, embedder.version)), vector.tolist()
        return replace(entry, scope=""), []


def _check_entry(message: cache_pb2.CacheEntry, where: str) -> None:
    """Raises INVALID_ARGUMENT for an entry that the store or a later lookup could not read."""
    if not _HEX.fullmatch(message.exact_key):
        raise invalid_argument("64 lower-case hex characters", field=f"{where}.exact_key")
    if message.scope and not _HEX.fullmatch(message.scope):
        raise invalid_argument("64 lower-case hex characters, or empty", field=f"{where}.scope")
    owners = ("", message.user_id)
    if message.entry_id and message.entry_id not in (entry_id(message.exact_key, owner) for owner in owners):
        raise invalid_argument("not the id of its exact key", field=f"{where}.entry_id")
    if not message.namespace:
        raise required(f"{where}.namespace")
    if len(message.namespace) > _MAX_NAMESPACE_CHARACTERS:
        raise invalid_argument(f"at most {_MAX_NAMESPACE_CHARACTERS} characters", field=f"{where}.namespace")
    if not message.HasField("completion"):
        raise required(f"{where}.completion")
    for name in ("question", "turn"):
        # Without its words an entry with a scope would be served past every guard.
        if message.scope and not getattr(message, name).strip():
            raise required(f"{where}.{name}")
    origin = message.provenance
    if origin.tier not in chat_pb2.Tier.values():
        raise invalid_argument("no known tier", field=f"{where}.provenance.tier")
    for name in ("price_book_version", "hit_count", "right_count", "wrong_count"):
        if getattr(origin, name) < 0:
            raise invalid_argument("cannot be negative", field=f"{where}.provenance.{name}")


def _check_vector(vector: Sequence[float], dimension: int, field: str) -> None:
    if len(vector) != dimension:
        raise invalid_argument(f"{len(vector)} values, the embedder makes {dimension}", field=field)
    length = math.sqrt(sum(value * value for value in vector))
    if not abs(length - 1) <= _UNIT:  # Also for a value that is no number.
        raise invalid_argument(f"not of length 1 but {length:.3g}", field=field)


def _entry_from_proto(message: cache_pb2.CacheEntry, tenant: str) -> Entry:
    origin = message.provenance
    owner = "" if origin.shared else message.user_id
    completion = message.completion.SerializeToString()
    return Entry(
        entry_id=entry_id(message.exact_key, owner),
        exact_key=message.exact_key,
        scope=message.scope,
        tenant=tenant,
        namespace=message.namespace,
        user_id=message.user_id,
        question=message.question,
        turn=message.turn,
        completion=completion,
        created=_seconds(message.create_time),
        expires=_seconds(origin.expire_time),
        model=origin.model or message.completion.model,
        tier=origin.tier or int(message.completion.tier),
        document_ids=tuple(sorted(set(message.document_ids))),
        tags=tuple(sorted(set(message.tags))),
        hits=origin.hit_count,
        owner=owner,
        answer_digest=said(completion).digest,
        price_book_version=origin.price_book_version,
        right_count=origin.right_count,
        wrong_count=origin.wrong_count,
    )


def _only(entry: Entry, tier_floor: int) -> Question:
    """The request that is an entry's last turn and nothing else."""
    message = Message(ROLE_USER, (("text", entry.turn),))
    return Question(entry.tenant, entry.namespace, (message,), tier_floor=tier_floor)


def _asked_of(entry: Entry) -> Question:
    """What of an entry's request is known, for the gate alone."""
    messages = tuple(Message(ROLE_USER, (("text", text),)) for text in (entry.question, entry.turn))
    return Question(entry.tenant, entry.namespace, messages)


def _timestamp(seconds: float) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(int(seconds * 1e9))
    return stamp


def _seconds(stamp: Timestamp) -> float:
    return stamp.ToNanoseconds() / 1e9
