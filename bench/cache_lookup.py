"""What a lookup costs by the number of entries: ``python -m bench.cache_lookup [--json F] [--quick]``.

Vectors of 384 dimensions are given, so that embedding costs nothing, and judged with the shipped weights: each topic
has a direction of its own, and each wording of it one nearby. All entries lie in one namespace of one tenant and so in
one scope: the worst case of the search. Asked are wordings that are stored (exact), others of stored topics (hit),
topics that are not stored (miss), and ``lookup_N`` itself: hits and misses by turns, the semantic stage.

``ours`` asks the answer cache in this process; ``ours_rpc`` a cache process over gRPC on the loopback, its CPU time
that of the process asked; ``gptcache`` is GPTCache over SQLite and FAISS in this process, where it can be imported.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import socket
import sys
import tempfile
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from tenth.cache.v1 import cache_pb2, cache_pb2_grpc
from tenth.type.v1 import chat_pb2

from bench.result import Result, arguments, median, percentile
from mesh.testing import KEY, TEST_IDENTITY, dial, write_callers
from services.cache.answers import AnswerCache
from services.cache.embedding import Embedder, Vector
from services.cache.messages import question_from_proto
from services.cache.namespaces import NamespacePolicy, Namespaces
from services.cache.policy import CachePolicy
from services.cache.qdrant_edge import QdrantEdgeStore
from services.cache.store import Entry, entry_id
from services.cache.verifier import WEIGHTS, Verifier, from_json

DIMENSION = 384
EMBEDDER = "given"
WEIGHTS_FILE = "multilingual-e5-small-int8.json"
SIZES = {"1k": 1_000, "10k": 10_000, "100k": 100_000}
QUICK_SIZES = {"1k": 1_000, "10k": 10_000}
KINDS = ("exact", "hit", "miss")
_KNOWN_COUNT = 200
"""Topics that are asked for; the rest only fills the store."""
_FILL_ROWS = 2_000
_WORDING_NOISE = 0.008
"""Per dimension: two wordings of a topic have a cosine of about 0.975, two topics about 0."""
_ANSWER = "Hold the button for ten seconds until the light turns green, then let go. " * 20

Ask = Callable[[str], Awaitable[bool]]


class GivenEncoder:
    """The vector of a text from its words alone, in microseconds."""

    dimension = DIMENSION
    precision = "fp32"

    def encode(self, texts: Sequence[str]) -> Vector:
        """One unit vector per text."""
        return np.stack([given(text) for text in texts])

    def fits(self, text: str) -> bool:
        """All are read."""
        return True

    def reads_korean(self) -> bool:
        """It reads everything alike."""
        return True


def given(text: str) -> Vector:
    """The topic's direction, and a little of the wording's."""
    topic = text.partition(" the ")[2].partition(" lamp")[0]
    vector = _direction(topic) + _WORDING_NOISE * np.sqrt(DIMENSION) * _direction(text)
    return np.asarray(vector / np.linalg.norm(vector), np.float32)


def _direction(text: str) -> Vector:
    drawn = np.random.default_rng(zlib.crc32(text.encode())).standard_normal(DIMENSION, np.float32)
    return np.asarray(drawn / np.linalg.norm(drawn), np.float32)


def stored_wording(number: int) -> str:
    """The wording under which a topic is stored."""
    return f"How do I reset the {_name(number)} lamp?"


def other_wording(number: int) -> str:
    """Another of the same topic."""
    # No nearer: what is served must be served for certain, or the hit would be measured as a miss.
    return f"how do i reset the {_name(number)} lamp"


def _name(number: int) -> str:
    # Words without digits or capitals: numbers and names are what guards look at.
    syllables = [a + b for a in "bdfgklmnprstvz" for b in "aeiou"]
    letters: list[str] = []
    for _ in range(4):
        number, rest = divmod(number, len(syllables))
        letters.append(syllables[rest])
    return "".join(letters)


def measure(result: Result, quick: bool, seed: int) -> None:
    """Add the figures of all sizes and systems to a result."""
    asyncio.run(_measure(result, quick, seed))


async def _measure(result: Result, quick: bool, seed: int) -> None:
    sizes = QUICK_SIZES if quick else SIZES
    count = 200 if quick else 2_000
    result.assumptions["lookup"] = f"{DIMENSION} dimensions given, one scope, answers of {len(_ANSWER)} characters"
    with tempfile.TemporaryDirectory(prefix="tenth-bench-") as name:
        folder = Path(name)
        async with _process(folder) as (_, stub):
            for number in range(_KNOWN_COUNT):
                await _keep(stub, stored_wording(number))
        filled = _KNOWN_COUNT
        for label, size in sizes.items():
            store = QdrantEdgeStore(folder / "data" / "cache", DIMENSION, 60.0)
            await store.open()
            await _fill(store, filled, size)
            filled = size
            await store.settle()
            await store.settle()
            embedder = Embedder(GivenEncoder(), EMBEDDER, memory_count=100_000)
            cache = AnswerCache(
                store, embedder, CachePolicy(), time.time,
                namespaces=Namespaces(NamespacePolicy()), verifier=_verifier(), error_factor=lambda *_: 1.0,
                max_entry_count=10**6, memory_entry_count=10_000, memory_bytes=10**8, memory_seconds=0.0,
            )  # fmt: skip
            try:
                await _asked(result, label, "ours", _in_process(cache), _own_cpu, count, seed, embedder)
            finally:
                await embedder.close()
                await store.close()
            async with _process(folder) as (pid, stub):
                await _asked(result, label, "ours_rpc", _over_rpc(stub), partial(_cpu_of, pid), count, seed)
        if find_spec("gptcache") is None:
            result.skipped.append("gptcache: not installed")
            return
        for label, size in sizes.items():
            await _asked(
                result, label, "gptcache", _gptcache(folder / f"gptcache-{label}", size), _own_cpu, count, seed
            )


async def _asked(
    result: Result,
    label: str,
    system: str,
    ask: Ask,
    cpu: Callable[[], float],
    count: int,
    seed: int,
    embedder: Embedder | None = None,
) -> None:
    rng = np.random.default_rng(seed)
    for kind in (*KINDS, ""):
        kinds = itertools.cycle([kind] if kind else ["hit", "miss"])
        texts = [(one, _question(one, rng)) for one, _ in zip(kinds, range(count), strict=False)]
        for begin in range(0, count if embedder is not None else 0, 500):
            # Remembered from here on: given, that is.
            assert embedder is not None
            await embedder.embed([text for _, text in texts[begin : begin + 500]])
        for _, text in texts[:20]:
            await ask(text)
        seconds, right = [], 0
        before = cpu()
        for one, text in texts:
            started = time.perf_counter()
            served = await ask(text)
            seconds.append(time.perf_counter() - started)
            right += served == (one != "miss")
        spent = cpu() - before
        name = f"lookup_{label}{'_' if kind else ''}{kind}/{system}"
        result.add(f"{name}/p50_ms", 1e3 * median(seconds), "ms", count)
        result.add(f"{name}/p95_ms", 1e3 * percentile(seconds, 0.95), "ms", count)
        result.add(f"{name}/cpu_ms", 1e3 * spent / count, "ms", count)
        result.add(f"{name}/as_expected", right / count, "share", count)


def _question(kind: str, rng: np.random.Generator) -> str:
    number = int(rng.integers(_KNOWN_COUNT))
    if kind == "miss":
        # Beyond what any size stores.
        return other_wording(10_000_000 + int(rng.integers(1_000_000)))
    return stored_wording(number) if kind == "exact" else other_wording(number)


async def _fill(store: QdrantEdgeStore, begin: int, end: int) -> None:
    """Copies of a real entry under other names: they have its scope and everything else."""
    page, _ = await store.scroll((), 1)
    pattern = page[0][0]
    for first in range(begin, end, _FILL_ROWS):
        numbers = range(first, min(end, first + _FILL_ROWS))
        await store.put_all([(_copy(pattern, text), given(text).tolist()) for text in map(stored_wording, numbers)])


def _copy(pattern: Entry, text: str) -> Entry:
    key = f"{zlib.crc32(text.encode()):064x}"
    # An answer of its own each: equal ones would vote.
    return replace(
        pattern, entry_id=entry_id(key + text), exact_key=key + text, question=text, turn=text, answer_digest=key
    )


def _in_process(cache: AnswerCache) -> Ask:
    async def ask(text: str) -> bool:
        outcome = await cache.find(cache.ask(question_from_proto(_request(text), TEST_IDENTITY.tenant_id)), False)
        return outcome.found is not None

    return ask


def _request(text: str) -> chat_pb2.CompletionRequest:
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=text)])
    return chat_pb2.CompletionRequest(messages=[message])


def _over_rpc(stub: Any) -> Ask:
    async def ask(text: str) -> bool:
        looked = await stub.LookupCompletion(cache_pb2.LookupCompletionRequest(request=_request(text), dry_run=True))
        return bool(looked.WhichOneof("outcome") == "hit")

    return ask


async def _keep(stub: Any, text: str) -> None:
    looked = await stub.LookupCompletion(cache_pb2.LookupCompletionRequest(request=_request(text)))
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT, parts=[chat_pb2.ContentPart(text=f"{text} {_ANSWER}")])
    completion = chat_pb2.Completion(
        message=message, finish_reason=chat_pb2.FINISH_REASON_STOP, model="m", tier=chat_pb2.TIER_MEDIUM
    )
    completion.usage.output_token_count = 300
    await stub.StoreCompletion(
        cache_pb2.StoreCompletionRequest(
            lease_id=looked.lease.lease_id, request=_request(text), completion=completion, embedding=looked.embedding
        )
    )


@asynccontextmanager
async def _process(folder: Path) -> AsyncIterator[tuple[int, Any]]:
    """A cache process over the folder, with the given vectors for an embedder; its id and a stub."""
    key = folder / "key"
    key.write_bytes(KEY)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = {
        **os.environ,
        "TENTH_LISTEN": address,
        "TENTH_DATA_DIR": str(folder / "data"),
        "TENTH_CALLERS_FILE": str(write_callers(folder / "callers.yaml")),
        "TENTH_IDENTITY_KEY_FILE": str(key),
        "TENTH_UNREADY_SECONDS": "0",
        "TENTH_LOG_LEVEL": "WARNING",
        "TENTH_CACHE_EMBEDDER": EMBEDDER,
        "TENTH_CACHE_STORE_TIMEOUT_SECONDS": "60",
        "TENTH_CACHE_EMBED_MEMORY_COUNT": "100000",
        "TENTH_CACHE_TTL_SECONDS": "86400",
        # Longer than a run: sweeps would be measured with whatever lookups they meet.
        "TENTH_CACHE_SWEEP_SECONDS": "3600",
        "TENTH_CACHE_MAX_ENTRY_COUNT": "1000000",
    }
    child = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.cache_lookup", "--serve", env=environment)
    channel = dial(address)
    stub: Any = cache_pb2_grpc.CacheServiceStub(channel)
    try:
        for _ in range(600):
            try:
                await stub.Embed(cache_pb2.EmbedRequest(texts=["ready?"]))
                break
            except Exception:
                if child.returncode is not None:
                    raise
                await asyncio.sleep(0.1)
        yield child.pid, stub
    finally:
        await channel.close()
        if child.returncode is None:
            child.terminate()
        await child.wait()


def _verifier() -> Verifier:
    """The shipped weights, whatever made the vectors: judging costs the same."""
    return from_json(json.loads((WEIGHTS / WEIGHTS_FILE).read_text("utf-8")))


def _serve() -> None:
    """The cache service as it always is, but for its embedder."""
    from mesh.process import run
    from mesh.settings import MeshSettings, load
    from services.cache import __main__ as cache
    from services.cache.settings import CacheSettings

    vars(cache)["load_encoder"] = lambda *_: GivenEncoder()
    vars(cache)["weights"] = lambda *_: _verifier()
    run(cache.serve(load(MeshSettings), load(CacheSettings)))


def _gptcache(folder: Path, size: int) -> Ask:
    """GPTCache with the same entries and vectors, its default SQLite and FAISS, and a bound like the article's."""
    gptcache, api, managers, before, similarity = (
        import_module(f"gptcache{name}")
        for name in ("", ".adapter.api", ".manager", ".processor.pre", ".similarity_evaluation.distance")
    )
    folder.mkdir()
    manager = managers.manager_factory(
        "sqlite,faiss",
        str(folder),
        vector_params={"dimension": DIMENSION},
        # It evicts beyond a thousand otherwise.
        eviction_params={"max_size": 2 * size, "clean_size": 1},
    )
    for first in range(0, size, _FILL_ROWS):
        texts = [stored_wording(number) for number in range(first, min(size, first + _FILL_ROWS))]
        manager.import_data(texts, [_ANSWER] * len(texts), [given(text) for text in texts], [None] * len(texts))
    known: dict[str, Vector] = {}

    def vector(text: str, **_: object) -> Vector:
        found = known.get(text)
        if found is None:
            found = known[text] = given(text)
        return found

    cache = gptcache.Cache()
    cache.init(
        pre_embedding_func=before.get_prompt,
        embedding_func=vector,
        data_manager=manager,
        similarity_evaluation=similarity.SearchDistanceEvaluation(),
        config=gptcache.Config(similarity_threshold=0.9),
    )

    async def ask(text: str) -> bool:
        return api.get(text, cache_obj=cache) is not None

    return ask


def _own_cpu() -> float:
    return time.process_time()


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> int:
    """Measure and print, or serve."""
    if sys.argv[1:] == ["--serve"]:
        _serve()
        return 0
    options: argparse.Namespace = arguments("cache_lookup", __doc__ or "").parse_args()
    result = Result("cache_lookup", options.quick)
    measure(result, options.quick, options.seed)
    result.write(options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
