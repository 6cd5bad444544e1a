"""The embedded store's index: built beside it, exchanged, damaged, killed; what is served stays right."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import qdrant_edge as edge

from mesh.errors import TenthError
from services.cache.embedding import Vector
from services.cache.qdrant_edge import QdrantEdgeStore
from services.cache.store import Condition, Entry, entry_id, to_payload

DIMENSION = 32
COUNT = 300
SCOPE = (Condition("scope", ("s",)),)


def vector(index: int) -> Vector:
    drawn = np.random.default_rng(index).standard_normal(DIMENSION).astype(np.float32)
    return drawn / np.float32(np.linalg.norm(drawn))


def entry(index: int, scope: str = "s", completion: bytes = b"x", model: str = "m") -> Entry:
    key = f"k{index}"
    return Entry(entry_id(key), key, scope, "acme", "d", "", key, key, completion, 1.0, 9e9, model, 1)


def made(folder: Path, least: int = COUNT) -> QdrantEdgeStore:
    return QdrantEdgeStore(folder / "cache", DIMENSION, 30.0, least)


async def filled(folder: Path, count: int = COUNT) -> QdrantEdgeStore:
    store = made(folder)
    await store.open()
    for index in range(count):
        await store.put(entry(index), vector(index).tolist())
    return store


async def nearest(store: QdrantEdgeStore, query: Vector, limit: int = 10) -> list[str]:
    return [found.entry.exact_key for found in await store.search(query.tolist(), SCOPE, limit)]


def exact(query: Vector, indexes: list[int], limit: int = 10) -> list[str]:
    return [f"k{index}" for index in sorted(indexes, key=lambda index: -float(vector(index) @ query))[:limit]]


async def test_the_index_finds_what_comparing_all_finds(tmp_path: Path) -> None:
    store = await filled(tmp_path)
    await store.settle()
    assert store.indexed_count == COUNT
    for index in range(COUNT, COUNT + 20):
        await store.put(entry(index), vector(index).tolist())
    for number in range(1000, 1050):
        assert await nearest(store, vector(number)) == exact(vector(number), list(range(COUNT + 20)))
    (best,) = await store.search(vector(7).tolist(), SCOPE, 1)
    assert best.entry == entry(7, completion=b"")
    assert best.similarity == pytest.approx(1.0, abs=1e-6)
    await store.close()


async def test_lookups_go_on_while_an_index_is_built(tmp_path: Path) -> None:
    store = await filled(tmp_path)
    assert store._building is not None  # The last put made it due.
    served = 0
    while not store._building.done():
        assert await nearest(store, vector(served % COUNT), 1) == [f"k{served % COUNT}"]
        served += 1
    assert served > 10
    assert store.indexed_count == COUNT
    await store.close()


async def test_the_index_serves_nothing_that_is_gone_replaced_or_of_another_scope(tmp_path: Path) -> None:
    store = made(tmp_path)
    await store.open()
    for index in range(COUNT):
        await store.put(entry(index, scope="t" if index % 10 == 0 else "s"), vector(index).tolist())
    await store.settle()
    gone = [index for index in range(COUNT) if index % 10 and index % 3 == 0]
    assert await store.delete((), [entry_id(f"k{index}") for index in gone]) == len(gone)
    await store.put(entry(1, model="n"), vector(1001).tolist())
    left = [index for index in range(2, COUNT) if index % 10 and index % 3]
    moved = {f"k{index}": vector(index) for index in left} | {"k1": vector(1001)}
    for number in range(2000, 2020):
        query = vector(number)
        expected = sorted(moved, key=lambda key: -float(moved[key] @ query))[:20]
        assert await nearest(store, query, 20) == expected
    (best,) = await store.search(vector(1001).tolist(), SCOPE, 1)
    assert (best.entry.exact_key, best.entry.model) == ("k1", "n")
    assert [found.entry.exact_key for found in await store.search(vector(1).tolist(), SCOPE, 1)] != ["k1"]
    other = await store.search(vector(7).tolist(), (Condition("scope", ("t",)),), COUNT)
    assert sorted(found.entry.exact_key for found in other) == sorted(f"k{index}" for index in range(0, COUNT, 10))
    await store.close()


async def test_an_index_of_what_is_mostly_gone_is_built_anew(tmp_path: Path) -> None:
    store = await filled(tmp_path)
    await store.settle()
    store._index_least_count = 100
    await store.delete((), [entry_id(f"k{index}") for index in range(150)])
    await store.settle()
    assert store.indexed_count == COUNT - 150
    assert len(list((tmp_path / "cache").glob("index-*"))) == 1
    await store.close()


async def test_a_restart_uses_the_index_and_what_came_after_it(tmp_path: Path) -> None:
    store = await filled(tmp_path)
    await store.settle()
    await store.put(entry(COUNT), vector(COUNT).tolist())
    await store.close()
    again = made(tmp_path)
    await again.open()
    assert again.indexed_count == COUNT
    assert await nearest(again, vector(COUNT), 1) == [f"k{COUNT}"]
    assert await nearest(again, vector(5), 1) == ["k5"]
    await again.close()


@pytest.mark.parametrize("damage", ["cut", "flip", "no list", "no folder"])
async def test_a_damaged_index_is_noticed_and_built_anew(tmp_path: Path, damage: str) -> None:
    store = await filled(tmp_path)
    await store.settle()
    await store.close()
    (folder,) = (tmp_path / "cache").glob("index-*")
    quantized = next(folder.rglob("quantized.data"))
    if damage == "cut":
        quantized.write_bytes(quantized.read_bytes()[:100])
    elif damage == "flip":
        quantized.write_bytes(bytes(byte ^ 0x55 for byte in quantized.read_bytes()))
    elif damage == "no list":
        (folder / "files.json").unlink()
    else:
        folder.rename(tmp_path / "elsewhere")
    again = made(tmp_path)
    await again.open()
    assert again.indexed_count == 0
    assert await nearest(again, vector(1005)) == exact(vector(1005), list(range(COUNT)))
    await again.settle()
    assert again.indexed_count == COUNT
    assert await nearest(again, vector(1006)) == exact(vector(1006), list(range(COUNT)))
    await again.close()


async def test_a_damaged_row_is_not_there(tmp_path: Path) -> None:
    store = await filled(tmp_path, 3)
    await store.close()
    with sqlite3.connect(tmp_path / "cache" / "entries.db") as rows:
        rows.execute("UPDATE answers SET completion = x'00' WHERE seq = 1")
        rows.execute("UPDATE entries SET payload = replace(payload, 'acme', 'evil') WHERE seq = 2")
    rows.close()
    again = made(tmp_path)
    await again.open()
    assert await again.get(entry_id("k0")) is None
    assert await again.get(entry_id("k1")) is None
    assert await again.get(entry_id("k2")) == entry(2)
    assert sorted(await nearest(again, vector(1))) == ["k0", "k2"]
    await again.close()


async def test_a_file_that_is_no_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "entries.db").write_bytes(b"garbage" * 10_000)
    store = made(tmp_path)
    with pytest.raises(TenthError) as caught:
        await store.open()
    assert caught.value.reason == "STORE_UNAVAILABLE"
    with pytest.raises(TenthError):
        await store.get(entry_id("k1"))
    await store.close()


async def test_an_index_that_cannot_be_built_costs_no_answer(tmp_path: Path) -> None:
    store = await filled(tmp_path, COUNT - 1)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (used, limits[1]))
    try:
        # No file descriptor is left for a child's pipes.
        await store.put(entry(COUNT), vector(COUNT).tolist())
        assert store._building is not None
        await asyncio.wait([store._building])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert store._building.exception() is None
    assert store.indexed_count == 0
    assert await nearest(store, vector(COUNT), 1) == [f"k{COUNT}"]
    await store.close()


async def test_entries_of_the_first_form_are_taken_over(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    folder.mkdir()
    shard = edge.EdgeShard.create(
        str(folder), edge.EdgeConfig(vectors=edge.EdgeVectorParams(size=DIMENSION, distance=edge.Distance.Cosine))
    )
    points = []
    for index in range(1200):
        payload = to_payload(entry(index, completion=b"\x00\xff"))
        for name in ("owner", "answer_digest", "size", "question_start"):
            del payload[name]
        points.append(edge.Point(entry_id(f"k{index}"), vector(index).tolist(), payload))
    shard.update(edge.UpdateOperation.upsert_points(points))
    shard.close()
    store = made(tmp_path, 5000)
    await store.open()
    assert await store.count(()) == 1200
    assert await store.get(entry_id("k7")) == entry(7, completion=b"\x00\xff")
    assert await nearest(store, vector(1005)) == exact(vector(1005), list(range(1200)))
    assert not (folder / "segments").exists()
    await store.close()
    again = made(tmp_path, 5000)
    await again.open()
    assert await again.count(()) == 1200
    await again.close()


CHILD = """
import asyncio, resource, sys
from pathlib import Path
from tests.integration.cache.test_cache_index import entry, made, vector
from mesh.errors import TenthError

async def main():
    store = made(Path(sys.argv[1]), 40)
    await store.open()
    if sys.argv[2] == "full":
        for index in range(5):
            await store.put(entry(index), vector(index).tolist())
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        refused = ""
        for index in range(5, 100):
            try:
                await store.put(entry(index, completion=bytes(100_000)), vector(index))
            except TenthError as error:
                refused = error.reason
                break
        found = await store.search(vector(2).tolist(), (), 1)
        whole = await store.get(found[0].entry.entry_id)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        print(refused, whole == entry(2), await store.get(entry(index).entry_id), flush=True)
        await store.close()
        return
    index = int(sys.argv[2])
    while True:
        await store.put(entry(index), vector(index).tolist())
        print(index, flush=True)
        index += 1

asyncio.run(main())
"""


def child(folder: Path, argument: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(folder), argument], stdout=subprocess.PIPE)


async def test_what_was_acknowledged_survives_kills_at_any_moment_of_building(tmp_path: Path) -> None:
    written = 0
    for acknowledged in (45, 90, 200, 333):
        writer = child(tmp_path, str(written))
        assert writer.stdout is not None
        for _ in range(acknowledged):
            written = int(writer.stdout.readline()) + 1
        writer.send_signal(signal.SIGKILL)
        written = max([written, *(int(line) + 1 for line in writer.stdout.readlines() if line.endswith(b"\n"))])
        writer.wait()
        writer.stdout.close()
        store = made(tmp_path, 10_000)
        await store.open()
        # One more may have been written and not acknowledged.
        assert await store.count(()) - written in (0, 1)
        for index in range(0, written, 7):
            assert await nearest(store, vector(index), 1) == [f"k{index}"]
            assert await store.get(entry_id(f"k{index}")) == entry(index)
        await store.close()


def test_a_full_disk_refuses_writes_and_still_reads(tmp_path: Path) -> None:
    writer = child(tmp_path, "full")
    words, _ = writer.communicate(timeout=120)
    assert words == b"STORE_UNAVAILABLE True None\n"
