"""What an entry is, and what a vector store must be able to do. Pure; the adapters stand beside.

Filters are a small language of their own (``Condition``), so that both adapters run the same queries.
"""

from __future__ import annotations

import base64
import unicodedata
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

_ENTRY_NAMESPACE = uuid.UUID("6ba9cf06-7d24-4c0c-9a0d-4b2f4d0a6c51")

KEYWORD_FIELDS = (
    "scope", "tenant", "namespace", "user_id", "document_ids", "tags", "question_head", "size_bits",
)  # fmt: skip
"""Payload fields with a keyword index; ``tenant`` is the tenant index on a Qdrant server."""
NUMBER_FIELDS = ("tier", "created", "expires", "used")
"""Payload fields with a float index; times are Unix seconds."""
HEAD_LETTERS = 32
"""How much of a question is in its keyword ``question_head``."""
SIZE_STEP_BYTES = 256
SIZE_BITS = 20
"""Sizes are kept in steps of 256 bytes, and an entry counts for at most 256 MiB."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One stored answer with what it takes to find, check and delete it."""

    entry_id: str
    exact_key: str
    scope: str
    """Empty: found by its exact key alone."""
    tenant: str
    namespace: str
    user_id: str
    question: str
    """The text that was embedded."""
    turn: str
    """The last user turn alone, which the guards read."""
    completion: bytes
    """The serialised tenth.type.v1.Completion."""
    created: float
    expires: float
    model: str
    tier: int
    document_ids: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    hits: int = 0
    used: float = 0.0
    owner: str = ""
    """The only user it is served to; empty: every user of the tenant."""
    pool: str = ""
    """Of an owned entry: where answers of other users to compare with are looked for. Never served from."""
    answer_digest: str = ""
    """Hex SHA-256 of what the answer says: entries with one digest agree."""
    price_book_version: int = 0
    right_count: int = 0
    wrong_count: int = 0


@dataclass(frozen=True, slots=True)
class Found:
    """An entry near a vector; cosine similarity, -1..1."""

    entry: Entry
    similarity: float


@dataclass(frozen=True, slots=True)
class Condition:
    """One test of a payload field: equal to any of ``values``, or within the bounds given."""

    field: str
    values: tuple[str, ...] = ()
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None


Conditions = tuple[Condition, ...]
"""All must hold."""


class VectorStore(Protocol):
    """A store of entries by vector. Every method raises TenthError UNAVAILABLE when the store is down or slow."""

    @property
    def name(self) -> str:
        """ "qdrant_edge" or "qdrant_server"."""

    async def open(self) -> None:
        """Connect and create what is absent. Raises STORE_DIMENSION_MISMATCH, STORE_IN_USE."""

    async def close(self) -> None:
        """Write what is pending and let go."""

    async def ping(self) -> None:
        """Raise when the store cannot work."""

    async def put(self, entry: Entry, vector: Sequence[float]) -> None:
        """Insert, or replace the entry of the same id. Durable when it returns."""

    async def get(self, entry_id: str) -> Entry | None:
        """The entry of an id, expired or not."""

    async def search(
        self, vector: Sequence[float], conditions: Conditions, limit: int, least: float = -1.0
    ) -> list[Found]:
        """The nearest entries of at least a similarity that meet all conditions, best first."""

    async def count(self, conditions: Conditions, entry_ids: Sequence[str] = ()) -> int:
        """How many meet all conditions (and are among the ids, when any are given)."""

    async def delete(self, conditions: Conditions, entry_ids: Sequence[str] = ()) -> int:
        """Delete those that ``count`` counts. Returns how many."""

    async def touch(self, used: Mapping[str, tuple[int, float]]) -> None:
        """Set hits and time of last use by entry id; ids that are gone are ignored."""

    async def least_recently_used(self, limit: int) -> list[str]:
        """The ids of the entries whose last use is longest ago."""

    async def flush(self) -> None:
        """Move what the write-ahead log holds into segments, where the store has the two."""


def entry_id(exact_key: str, owner: str = "") -> str:
    """The id of a request's entry: the same request has one shared entry, and one for each user that it waits for.

    Finding an entry by key is finding it by id. Keys hold no colon, so that no owner can pretend to be part of one.
    """
    return str(uuid.uuid5(_ENTRY_NAMESPACE, f"{exact_key}:{owner}" if owner else exact_key))


WAITING = "waiting"
"""Stored tag of the entries that only their owner is served. Callers' tags begin with a digit."""


def waiting_tag(pool: str) -> str:
    """Stored tag of the entries that wait in a pool for an agreeing one. Used when storing, never in a lookup."""
    return f"{WAITING}:{pool}"


def stored_tags(entry: Entry) -> list[str]:
    """An entry's tags, and those by which it is found while it waits."""
    return [*entry.tags, WAITING, waiting_tag(entry.pool)] if entry.owner else list(entry.tags)


def entry_bytes(entry: Entry) -> int:
    """What an entry takes, roughly: its texts twice (payload and index), its answer as base64, vector and fields."""
    return len(entry.completion) * 4 // 3 + 2 * len(entry.question.encode()) + len(entry.turn.encode()) + 1500


def size_bits(size_bytes: int) -> list[str]:
    """A size as the numbers of the bits that are set in it, in steps and rounded up.

    Stores count entries by keyword and add nothing up; with one count per bit the sum of all sizes follows exactly
    (bit-sliced index: O'Neil and Quass, "Improved Query Performance with Variant Indexes", SIGMOD 1997).
    """
    steps = min(-(-size_bytes // SIZE_STEP_BYTES), 2**SIZE_BITS - 1)
    return [str(bit) for bit in range(SIZE_BITS) if steps >> bit & 1]


def folded(text: str) -> str:
    """A text for comparing beginnings: without case and white space, composed."""
    return "".join(unicodedata.normalize("NFC", text).casefold().split())


def question_of(entry: Entry) -> str:
    """What its user asked last, folded; where that is not known, the text that stands for the question."""
    return folded(entry.turn or entry.question)


def to_payload(entry: Entry) -> dict[str, Any]:
    """The stored form; JSON types only."""
    return {
        "exact_key": entry.exact_key,
        "scope": entry.scope,
        "tenant": entry.tenant,
        "namespace": entry.namespace,
        "user_id": entry.user_id,
        "question": entry.question,
        "turn": entry.turn,
        "completion": base64.b64encode(entry.completion).decode("ascii"),
        "created": float(entry.created),
        "expires": float(entry.expires),
        "model": entry.model,
        "tier": float(entry.tier),
        "document_ids": list(entry.document_ids),
        "tags": stored_tags(entry),
        "hits": entry.hits,
        "used": float(entry.used),
        "owner": entry.owner,
        "pool": entry.pool,
        "question_head": question_of(entry)[:HEAD_LETTERS],
        "size_bits": size_bits(entry_bytes(entry)),
        "answer_digest": entry.answer_digest,
        "price_book_version": entry.price_book_version,
        "right_count": entry.right_count,
        "wrong_count": entry.wrong_count,
    }


def from_payload(identifier: str, payload: Mapping[str, Any]) -> Entry:
    """The entry of a stored form. Raises KeyError or ValueError when it is not one of ours."""
    return Entry(
        entry_id=identifier,
        exact_key=payload["exact_key"],
        scope=payload["scope"],
        tenant=payload["tenant"],
        namespace=payload["namespace"],
        user_id=payload["user_id"],
        question=payload["question"],
        turn=payload["turn"],
        completion=base64.b64decode(payload["completion"]),
        created=float(payload["created"]),
        expires=float(payload["expires"]),
        model=payload["model"],
        tier=int(payload["tier"]),
        document_ids=tuple(payload["document_ids"]),
        tags=tuple(tag for tag in payload["tags"] if not tag.startswith(WAITING)),
        hits=int(payload["hits"]),
        used=float(payload["used"]),
        # Entries of earlier revisions lack these.
        owner=payload.get("owner", ""),
        pool=payload.get("pool", ""),
        answer_digest=payload.get("answer_digest", ""),
        price_book_version=int(payload.get("price_book_version", 0)),
        right_count=int(payload.get("right_count", 0)),
        wrong_count=int(payload.get("wrong_count", 0)),
    )


def tag(key: str, value: str) -> str:
    """A tag as one keyword; the length keeps "a=b": "c" and "a": "b=c" apart."""
    return f"{len(key)}:{key}={value}"
