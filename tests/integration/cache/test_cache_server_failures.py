"""A Qdrant server that is hanging, babbling, busy, gone, of another dimension, or being set up by someone else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from qdrant_client import AsyncQdrantClient

from mesh.errors import TenthError
from services.cache.qdrant_server import QdrantServerStore, ServerOptions
from services.cache.store import Condition, Entry, entry_id

Answer = Callable[[str, str, Any], Awaitable[tuple[int, Any]]]
TIMEOUT = 1.0
ENTRY = Entry(entry_id("k"), "k", "s", "acme", "d", "", "k", "k", b"x", 1.0, 9e9, "m", 1)


@asynccontextmanager
async def listening(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    open_ones: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.add(writer)
        try:
            await talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in open_ones:
            writer.close()
        await asyncio.sleep(0)


def http(answer: Answer) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]:
    """One connection of a server that answers as it is told."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await reader.readuntil(b"\r\n\r\n"):
            method, path, _ = head.decode().split(" ", 2)
            length = next(
                (int(line.partition(":")[2]) for line in head.decode().lower().split("\r\n") if
                 line.startswith("content-length")), 0,
            )  # fmt: skip
            body = await reader.readexactly(length)
            status, said = await answer(method, path, json.loads(body) if body else None)
            text = json.dumps(said).encode()
            writer.write(
                f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n".encode()
                + text
            )
            await writer.drain()

    return talk


def result(value: Any) -> tuple[int, Any]:
    return 200, {"result": value, "status": "ok", "time": 0.0}


def store_at(url: str, options: ServerOptions | None = None) -> QdrantServerStore:
    client = AsyncQdrantClient(url=url, timeout=5, check_compatibility=False)
    return QdrantServerStore(client, "c", 4, TIMEOUT, options or ServerOptions())


async def everything_is_unavailable(store: QdrantServerStore) -> None:
    await store.open()  # It may come later.
    calls: list[Callable[[], Awaitable[object]]] = [
        store.ping,
        lambda: store.put(ENTRY, [1, 0, 0, 0]),
        lambda: store.get(ENTRY.entry_id),
        lambda: store.search([1, 0, 0, 0], (), 1),
        lambda: store.count(()),
        lambda: store.delete(()),
        lambda: store.touch({ENTRY.entry_id: (1, 1.0)}),
        lambda: store.scroll((), 10),
        lambda: store.total_bytes(()),
        lambda: store.least_recently_used(1),
    ]
    for call in calls:
        # Far beyond the store's own bound: what is asked is that there is one.
        async with asyncio.timeout(30 * TIMEOUT):
            with pytest.raises(TenthError) as caught:
                await call()
        assert caught.value.reason == "STORE_UNAVAILABLE"
    await store.close()


async def test_a_hanging_server_is_unavailable_in_time() -> None:
    async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()

    async with listening(hang) as url:
        await everything_is_unavailable(store_at(url))


@pytest.mark.parametrize("words", [b"", b"\x00\xff" * 500, b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nnot json!"])
async def test_a_babbling_server_is_unavailable(words: bytes) -> None:
    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(words)
        await writer.drain()

    async with listening(babble) as url:
        await everything_is_unavailable(store_at(url))


async def test_answers_of_another_shape_are_unavailable() -> None:
    async def answer(method: str, path: str, body: Any) -> tuple[int, Any]:
        return result({"exists": "perhaps", "points": 7})

    async with listening(http(answer)) as url:
        await everything_is_unavailable(store_at(url))


async def test_a_busy_server_is_asked_again_and_a_refusing_one_is_not() -> None:
    said: list[int] = []
    answers = [503, 429, 200]

    async def answer(method: str, path: str, body: Any) -> tuple[int, Any]:
        said.append(answers[len(said)])
        return result({"count": 7}) if said[-1] == 200 else (said[-1], {"status": {"error": "busy"}})

    async with listening(http(answer)) as url:
        store = store_at(url)
        assert await store.count(()) == 7
        assert said == answers
        said.clear()
        answers[:] = [400, 200]
        with pytest.raises(TenthError):
            await store.count(())
        assert said == [400]
        said.clear()
        answers[:] = [503] * 10
        with pytest.raises(TenthError):
            await store.count(())
        assert len(said) == 3
        await store.close()


async def test_points_that_are_none_of_ours_are_left_out() -> None:
    async def answer(method: str, path: str, body: Any) -> tuple[int, Any]:
        return result({"points": [{"id": ENTRY.entry_id, "version": 1, "score": 0.99, "payload": {"scope": "s"}}]})

    async with listening(http(answer)) as url:
        store = store_at(url)
        assert await store.search([1, 0, 0, 0], (Condition("scope", ("s",)),), 5) == []
        await store.close()


class Server:
    """Collections and indexes of a server, as far as setting up asks for them."""

    def __init__(self, size: int = 4, others_first: bool = False) -> None:
        self.size = size
        self.created: list[Any] = []
        self.indexes: dict[str, Any] = {}
        self.others_first = others_first

    async def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        if path.startswith("/collections/c/exists"):
            return result({"exists": bool(self.created)})
        if path.startswith("/collections/c/index"):
            self.indexes[body["field_name"]] = body["field_schema"]
            return result({"operation_id": 1, "status": "completed"})
        if method == "PUT":
            if self.others_first or self.created:
                # Another replica was here between the question and this.
                self.created.append("another's")
                return 409, {"status": {"error": "already exists"}, "time": 0.0}
            self.created.append(body)
            return result(True)
        return result(
            {
                "status": "green", "optimizer_status": "ok", "segments_count": 1, "payload_schema": {},
                "config": {
                    "params": {"vectors": {"size": self.size, "distance": "Cosine"}},
                    "hnsw_config": {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000},
                    "optimizer_config": {
                        "deleted_threshold": 0.2, "vacuum_min_vector_number": 1000, "default_segment_number": 0,
                        "flush_interval_sec": 5,
                    },
                },
            }
        )  # fmt: skip


async def test_a_collection_is_made_as_the_options_say() -> None:
    server = Server()
    async with listening(http(server.answer)) as url:
        store = store_at(url, ServerOptions(3, 2))
        await store.open()
        await store.ping()
        await store.close()
    (made,) = server.created
    assert made["vectors"] == {"size": 4, "distance": "Cosine"}
    assert (made["replication_factor"], made["write_consistency_factor"]) == (3, 2)
    assert made["quantization_config"] == {"scalar": {"type": "int8", "quantile": 0.99, "always_ram": True}}
    assert server.indexes["tenant"] == {"type": "keyword", "is_tenant": True}
    assert server.indexes["namespace"] == {"type": "keyword", "prefix": True}
    assert server.indexes["scope"] == {"type": "keyword"}
    assert server.indexes["used"] == "float"


async def test_two_replicas_may_set_up_at_once() -> None:
    server = Server()
    async with listening(http(server.answer)) as url:
        stores = [store_at(url), store_at(url)]
        await asyncio.gather(*(store.open() for store in stores))
        for store in stores:
            await store.ping()
            await store.close()
    late = Server(others_first=True)
    async with listening(http(late.answer)) as url:
        store = store_at(url)
        await store.open()
        await store.ping()
        await store.close()
    assert late.created == ["another's"]


async def test_a_collection_of_another_dimension_is_refused() -> None:
    server = Server(size=8)
    async with listening(http(server.answer)) as url:
        store = store_at(url)
        with pytest.raises(TenthError) as caught:
            await store.open()
        assert caught.value.reason == "STORE_DIMENSION_MISMATCH"
        await store.close()
