"""In which order a lane's items run, and how they are cut into chunks. Pure.

Prompts that begin alike stand together, so that the engine reads the common beginning once (its prefix cache, and the
sequences that run side by side). Within such a group long prompts go first: at its end short ones fill what is left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

BLOCK_CHARACTERS = 512
"""About the 128 tokens of a block of the engine's prefix cache."""
MOST_CHUNKS = 10_000
"""Of a plan: a workflow that continues as a new one names them all, in one payload of at most 2 MB."""
_DIGEST_BYTES = 6
_MOST_BLOCKS = 48


@dataclass(frozen=True, slots=True)
class Entry:
    """One item as far as its order is concerned."""

    number: int
    """Names it for the one who asks."""
    lane: str
    model: str
    prefix: bytes
    """From ``prefix_key``."""
    length: int
    """Of its prompt, tokens."""
    byte_count: int
    """Of its record."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """Items that run together: one lane, one model."""

    lane: str
    model: str
    numbers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ChunkLimits:
    """The most that one chunk of a lane holds."""

    item_count: int
    byte_count: int


def prefix_key(texts: Iterable[str]) -> bytes:
    """Digests of a prompt's blocks, message by message: keys of prompts that begin alike begin alike."""
    key = bytearray()
    for text in texts:
        for start in range(0, max(len(text), 1), BLOCK_CHARACTERS):
            block = text[start : start + BLOCK_CHARACTERS].encode("utf-8", "surrogatepass")
            key += hashlib.blake2b(block, digest_size=_DIGEST_BYTES).digest()
            if len(key) >= _MOST_BLOCKS * _DIGEST_BYTES:
                return bytes(key)
    return bytes(key)


def shared_length(one: bytes, other: bytes) -> int:
    """Bytes of the common beginning of two keys, in whole blocks."""
    shortest = min(len(one), len(other))
    for start in range(0, shortest, _DIGEST_BYTES):
        if one[start : start + _DIGEST_BYTES] != other[start : start + _DIGEST_BYTES]:
            return start
    return shortest


def ordered(entries: Sequence[Entry]) -> list[Entry]:
    """By lane and model; then prompts that begin alike side by side; with the same beginning, longest first.

    Sorted by whole keys, an item's longest shared beginning is the one with a neighbour; the key is cut there.
    """
    by_key = sorted(entries, key=lambda entry: (entry.lane, entry.model, entry.prefix, entry.number))
    keys: list[bytes] = []
    for place, entry in enumerate(by_key):
        shared = 0
        for beside in (place - 1, place + 1):
            if 0 <= beside < len(by_key):
                other = by_key[beside]
                if (other.lane, other.model) == (entry.lane, entry.model):
                    shared = max(shared, shared_length(entry.prefix, other.prefix))
        keys.append(entry.prefix[:shared])
    order = sorted(
        range(len(by_key)),
        key=lambda place: (
            by_key[place].lane,
            by_key[place].model,
            keys[place],
            -by_key[place].length,
            by_key[place].number,
        ),
    )
    return [by_key[place] for place in order]


def in_input_order(entries: Iterable[Entry]) -> list[Entry]:
    """By lane and model; then as they were given."""
    return sorted(entries, key=lambda entry: (entry.lane, entry.model, entry.number))


def items_of_chunk(wanted: int, item_count: int) -> int:
    """Most items of one chunk: as wanted, but no more chunks than a workflow can hold."""
    return max(wanted, -(-item_count // MOST_CHUNKS))


def chunks(
    entries: Iterable[Entry], limits: Mapping[tuple[str, str], ChunkLimits], default: ChunkLimits
) -> Iterator[Chunk]:
    """Cut ordered items into chunks that never mix lanes or models, each within the limits of its (lane, model)."""
    held: list[int] = []
    held_bytes = 0
    group: tuple[str, str] | None = None
    for entry in entries:
        limit = limits.get((entry.lane, entry.model), default)
        full = len(held) >= limit.item_count or held_bytes + entry.byte_count > limit.byte_count
        if held and group is not None and ((entry.lane, entry.model) != group or full):
            yield Chunk(*group, tuple(held))
            held, held_bytes = [], 0
        group = (entry.lane, entry.model)
        held.append(entry.number)
        held_bytes += entry.byte_count
    if held and group is not None:
        yield Chunk(*group, tuple(held))
