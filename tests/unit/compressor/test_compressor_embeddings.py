"""How many new texts are embedded for a request: as many as the cache was fast enough for lately."""

from __future__ import annotations

from typing import Any, cast

from tenth.cache.v1 import cache_pb2
from tenth.type.v1 import chat_pb2

from mesh.errors import Code, TenthError
from services.compressor.embeddings import Embeddings

TEXTS = ["a" * 500 for _ in range(20)]


class FakeCache:
    """Embeds at a speed; late when that takes longer than the timeout."""

    def __init__(self) -> None:
        self.seconds_per_byte = 1e-4
        self.now = 0.0
        self.remembers = False

    async def Embed(self, request: cache_pb2.EmbedRequest, timeout: float) -> cache_pb2.EmbedResponse:  # noqa: ASYNC109  (as stubs have it)
        taken = 0.0 if self.remembers else self.seconds_per_byte * sum(map(len, request.texts))
        self.now += min(taken, timeout)
        if taken > timeout:
            raise TenthError(Code.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", "late")
        vectors = [chat_pb2.Embedding(values=[1.0], embedder="e") for _ in request.texts]
        return cache_pb2.EmbedResponse(embeddings=vectors, compute_micros=int(taken * 1e6))


def made(cache: FakeCache) -> Embeddings:
    return Embeddings(cast(Any, cache), 0.25, 2.0, 100, lambda: cache.now)


async def ask(embeddings: Embeddings, name: str, count: int) -> bool:
    return not (await embeddings.embed([f"{name}{at}".ljust(500, ".") for at in range(count)])).failure


async def test_what_fits_the_time_follows_the_caches_speed() -> None:
    cache = FakeCache()
    embeddings = made(cache)
    assert embeddings.affordable(TEXTS) == 4, "0.8 of 0.25 s, at 0.05 s a text"
    cache.seconds_per_byte = 2e-5
    for name in "abcdefghijkl":
        assert await ask(embeddings, name, 4)
    assert 18 <= embeddings.affordable(TEXTS) <= 20


async def test_a_late_cache_is_asked_for_less_and_never_for_nothing() -> None:
    cache = FakeCache()
    embeddings = made(cache)
    cache.seconds_per_byte = 5e-4
    assert not await ask(embeddings, "a", 4)
    assert embeddings.affordable(TEXTS) == 2
    for name in "bcd":
        cache.now += 3.0
        await ask(embeddings, name, 4)
    assert embeddings.affordable(TEXTS) == 1
    cache.seconds_per_byte = 1e-4
    for name in "efghijkl":
        cache.now += 3.0
        assert await ask(embeddings, name, embeddings.affordable(TEXTS))
    assert embeddings.affordable(TEXTS) >= 3, "it is as fast as before again"


async def test_what_the_cache_remembers_teaches_nothing() -> None:
    cache = FakeCache()
    embeddings = made(cache)
    cache.remembers = True
    assert await ask(embeddings, "a", 20)
    assert embeddings.affordable(TEXTS) == 4
    assert embeddings.affordable([]) == 0
