"""Vectors of questions and chunks from the cache service, kept by text, never waited for long."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tenth.cache.v1 import cache_pb2, cache_pb2_grpc

from mesh.errors import Code, TenthError

log = logging.getLogger("tenth.compressor.embeddings")

_MAX_TEXTS = 512
_MAX_CHARS = 32_768
_SECONDS_PER_BYTE = 1e-4
"""Until the cache has answered once: multilingual-e5-small in int8 on one thread, English and Korean alike."""
_LEAST_SECONDS_PER_BYTE = 1e-9
_USED_SHARE = 0.8
"""Of the timeout, that texts are expected to take at most."""
_LEARNED_SHARE = 0.3
"""Of what is expected, that comes from the newest answer."""
_LATE_FACTOR = 1.25
"""A late answer takes longer than the timeout, by nobody knows how much."""

Vector = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors in the order of the texts; ``failure`` says why there are none."""

    vectors: tuple[Vector, ...]
    embedder: str
    compute_micros: int
    failure: str = ""


class Embeddings:
    """Asks ``cache.Embed`` for what is not kept; after a failure it does not ask for a while."""

    def __init__(
        self,
        stub: cache_pb2_grpc.CacheServiceAsyncStub,
        timeout_seconds: float,
        pause_seconds: float,
        capacity: int,
        now: Callable[[], float],
    ) -> None:
        """``now`` is a monotonic clock in seconds; ``capacity`` is the number of vectors kept."""
        self._stub = stub
        self._timeout_seconds = timeout_seconds
        self._pause_seconds = pause_seconds
        self._capacity = capacity
        self._now = now
        self._kept: OrderedDict[bytes, Vector] = OrderedDict()
        self._embedder = ""
        self._paused_until = 0.0
        self._seconds_per_byte = _SECONDS_PER_BYTE

    def affordable(self, texts: Sequence[str]) -> int:
        """How many of these texts, from the first, the cache will probably embed in time: one at least.

        Judged by bytes and by how long the cache took lately: whoever asks for more waits for nothing.
        """
        left = self._timeout_seconds * _USED_SHARE / self._seconds_per_byte
        for count, text in enumerate(texts):
            left -= _size(text)
            if left < 0:
                return max(1, count)
        return len(texts)

    def missing(self, texts: Sequence[str]) -> list[str]:
        """Those of these texts that have no vector here, each once."""
        return [text for text in dict.fromkeys(texts) if _key(text) not in self._kept]

    async def embed(self, texts: Sequence[str]) -> Embedded:
        """The vectors of these texts, all by one embedder, or none of them."""
        keys = [_key(text) for text in texts]
        by_key = {key: text[:_MAX_CHARS] for key, text in zip(keys, texts, strict=True)}
        # Taken now: while this call waits another one may push them out.
        known = {key: self._kept[key] for key in by_key if key in self._kept}
        embedder, micros = self._embedder, 0
        known_by = self._embedder
        missing = [key for key in by_key if key not in known]
        if missing:
            fresh, embedder, micros, failure = await self._ask([by_key[key] for key in missing])
            if not failure and known and embedder != known_by:
                # Vectors of two embedders never meet: what the former one made is of no use.
                missing = list(by_key)
                fresh, embedder, more, failure = await self._ask(list(by_key.values()))
                known, micros = {}, micros + more
            if failure:
                return Embedded((), "", micros, failure)
            if embedder != self._embedder:
                self._kept.clear()
                self._embedder = embedder
            known.update(zip(missing, fresh, strict=True))
        self._kept.update(known)
        for key in by_key:
            self._kept.move_to_end(key)
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)
        return Embedded(tuple(known[key] for key in keys), embedder, micros)

    async def _ask(self, texts: Sequence[str]) -> tuple[list[Vector], str, int, str]:
        """Vectors, embedder, CPU microseconds, and why there are none."""
        if len(texts) > _MAX_TEXTS:
            return [], "", 0, f"{len(texts)} chunks are more than are embedded at once"
        if self._now() < self._paused_until:
            return [], "", 0, "the cache failed a moment ago"
        request, size = cache_pb2.EmbedRequest(texts=texts), sum(map(_size, texts))
        began = self._now()
        try:
            response = await self._stub.Embed(request, timeout=self._timeout_seconds)
        except TenthError as error:
            self._paused_until = self._now() + self._pause_seconds
            late = error.code is Code.DEADLINE_EXCEEDED
            if late and size:
                self._seconds_per_byte = max(self._seconds_per_byte, self._timeout_seconds / size) * _LATE_FACTOR
            return [], "", 0, f"the cache is {'late' if late else 'down'} ({error.reason})"
        # Texts that the cache remembers cost nothing, and teach nothing.
        if size and response.compute_micros:
            taken = max((self._now() - began) / size, _LEAST_SECONDS_PER_BYTE)
            self._seconds_per_byte += _LEARNED_SHARE * (taken - self._seconds_per_byte)
        found, micros = response.embeddings, response.compute_micros
        if len(found) != len(texts) or len({item.embedder for item in found}) != 1:
            return [], "", micros, "the cache gave another number of vectors"
        return [tuple(item.values) for item in found], found[0].embedder, micros, ""


def _size(text: str) -> int:
    return len(text[:_MAX_CHARS].encode("utf-8", "surrogatepass"))


def _key(text: str) -> bytes:
    return hashlib.sha256(text[:_MAX_CHARS].encode("utf-8", "surrogatepass")).digest()
