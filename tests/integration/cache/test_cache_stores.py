"""One contract for every vector store: embedded, client in memory, and a real server where QDRANT_URL is set."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from qdrant_client import AsyncQdrantClient

from mesh.errors import TenthError
from services.cache.qdrant_edge import QdrantEdgeStore
from services.cache.qdrant_server import QdrantServerStore
from services.cache.store import Condition, Entry, VectorStore, entry_id, tag

NOW = 1_000_000.0
NO_SERVER = pytest.mark.skipif("QDRANT_URL" not in os.environ, reason="no QDRANT_URL")
KINDS = ["edge", "memory", pytest.param("server", marks=NO_SERVER)]


def entry(key: str, **changes: object) -> Entry:
    base = Entry(
        entry_id=entry_id(key),
        exact_key=key,
        scope="scope",
        tenant="acme",
        namespace="default",
        user_id="u1",
        question=key,
        turn=key,
        completion=b"\x00\xffanswer",
        created=NOW,
        expires=NOW + 100,
        model="m",
        tier=2,
        document_ids=("d1", "d2"),
        tags=(tag("team", "a"),),
        used=NOW,
    )
    return replace(base, **changes)  # type: ignore[arg-type]  # Fields by name.


@pytest.fixture(params=KINDS)
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[VectorStore]:
    made: VectorStore
    if request.param == "edge":
        made = QdrantEdgeStore(tmp_path / "cache", 4, 5.0)
    else:
        where = {"location": ":memory:"} if request.param == "memory" else {"url": os.environ["QDRANT_URL"]}
        made = QdrantServerStore(AsyncQdrantClient(**where), f"test_{uuid.uuid4().hex}", 4, 10.0)  # type: ignore[arg-type]  # Both are str.
    await made.open()
    await made.ping()
    yield made
    await made.close()


async def test_the_reports_of_an_entry_are_set_and_one_that_is_gone_is_ignored(store: VectorStore) -> None:
    one, other = entry("one", hits=3), entry("other")
    for each in (one, other):
        await store.put(each, [1.0, 0.0, 0.0, 0.0])
    await store.set_counts(one.entry_id, 2, 1)
    await store.set_counts(entry_id("gone"), 2, 1)
    assert await store.get(one.entry_id) == replace(one, right_count=2, wrong_count=1)
    assert await store.get(other.entry_id) == other
    assert await store.get(entry_id("gone")) is None


async def test_what_is_put_is_got_back_whole(store: VectorStore) -> None:
    await store.put(entry("k"), [1, 0, 0, 0])
    assert await store.get(entry_id("k")) == entry("k")
    assert await store.get(entry_id("other")) is None


async def test_the_same_key_replaces(store: VectorStore) -> None:
    await store.put(entry("k"), [1, 0, 0, 0])
    await store.put(entry("k", model="n"), [0, 1, 0, 0])
    assert await store.count(()) == 1
    assert (await store.get(entry_id("k"))).model == "n"  # type: ignore[union-attr]  # It is there.


async def test_search_is_nearest_first_within_all_conditions(store: VectorStore) -> None:
    await store.put(entry("near"), [1, 0.1, 0, 0])
    await store.put(entry("far"), [0, 1, 0, 0])
    await store.put(entry("evil", tenant="evil"), [1, 0, 0, 0])
    await store.put(entry("scope", scope="other"), [1, 0, 0, 0])
    await store.put(entry("weak", tier=1), [1, 0, 0, 0])
    await store.put(entry("old", expires=NOW), [1, 0, 0, 0])
    conditions = (
        Condition("scope", ("scope",)),
        Condition("tenant", ("acme",)),
        Condition("tier", at_least=2),
        Condition("expires", above=NOW),
    )
    found = await store.search([1, 0, 0, 0], conditions, 5)
    assert [item.entry.exact_key for item in found] == ["near", "far"]
    assert found[0].similarity == pytest.approx(0.995, abs=0.001)
    assert found[1].similarity == pytest.approx(0, abs=0.001)
    assert len(await store.search([1, 0, 0, 0], conditions, 1)) == 1
    assert len(await store.search([1, 0, 0, 0], conditions, 5, 0.9)) == 1


async def test_count_and_delete_by_every_filter(store: VectorStore) -> None:
    await store.put(entry("a"), [1, 0, 0, 0])
    await store.put(entry("b", user_id="u2", document_ids=("d3",), namespace="n2"), [1, 0, 0, 0])
    await store.put(entry("c", tenant="evil", tags=(tag("team", "a"), tag("x", "y"))), [1, 0, 0, 0])
    own = Condition("tenant", ("acme",))
    assert await store.count((own,)) == 2
    assert await store.count((own, Condition("document_ids", ("d2",)))) == 1
    assert await store.count((Condition("tags", (tag("team", "a"),)), Condition("tags", (tag("x", "y"),)))) == 1
    assert await store.count((own,), [entry_id("a"), entry_id("c")]) == 1
    assert await store.delete((own, Condition("user_id", ("u2",)))) == 1
    assert await store.delete((own,), [entry_id("c")]) == 0
    assert await store.delete((own,), [entry_id("a"), entry_id("gone")]) == 1
    assert await store.delete((own,)) == 0
    assert await store.count(()) == 1


async def test_expired_entries_are_found_by_time(store: VectorStore) -> None:
    await store.put(entry("a", expires=NOW - 1), [1, 0, 0, 0])
    await store.put(entry("b"), [1, 0, 0, 0])
    assert await store.delete((Condition("expires", at_most=NOW),)) == 1
    assert await store.get(entry_id("b")) is not None


async def test_touch_orders_by_last_use_and_ignores_what_is_gone(store: VectorStore) -> None:
    for index, key in enumerate("abc"):
        await store.put(entry(key, used=NOW + index), [1, 0, 0, 0])
    await store.touch({entry_id("a"): (3, NOW + 10), entry_id("gone"): (1, NOW)})
    assert await store.least_recently_used(2) == [entry_id("b"), entry_id("c")]
    touched = await store.get(entry_id("a"))
    assert touched is not None
    assert (touched.hits, touched.used) == (3, NOW + 10)
    await store.flush()


async def test_a_closed_store_is_unavailable(store: VectorStore, request: pytest.FixtureRequest) -> None:
    if store.name == "qdrant_edge":
        await store.close()
        with pytest.raises(TenthError) as caught:
            await store.get(entry_id("a"))
        assert caught.value.reason == "STORE_UNAVAILABLE"
        with pytest.raises(TenthError):
            await store.ping()


async def test_another_dimension_is_refused(tmp_path: Path) -> None:
    first = QdrantEdgeStore(tmp_path / "cache", 4, 5.0)
    await first.open()
    await first.close()
    other = QdrantEdgeStore(tmp_path / "cache", 8, 5.0)
    with pytest.raises(TenthError) as caught:
        await other.open()
    assert caught.value.reason == "STORE_DIMENSION_MISMATCH"
    await other.close()
    client = AsyncQdrantClient(":memory:")
    await QdrantServerStore(client, "c", 4, 5.0).open()
    with pytest.raises(TenthError) as caught:
        await QdrantServerStore(client, "c", 8, 5.0).open()
    assert caught.value.reason == "STORE_DIMENSION_MISMATCH"
    await client.close()


async def test_a_directory_has_one_owner_and_opens_again(tmp_path: Path) -> None:
    first = QdrantEdgeStore(tmp_path / "cache", 4, 5.0)
    await first.open()
    await first.put(entry("k"), [1, 0, 0, 0])
    second = QdrantEdgeStore(tmp_path / "cache", 4, 5.0)
    with pytest.raises(TenthError) as caught:
        await second.open()
    assert caught.value.reason == "STORE_IN_USE"
    await second.close()
    await first.close()
    third = QdrantEdgeStore(tmp_path / "cache", 4, 5.0)
    await third.open()
    assert await third.get(entry_id("k")) == entry("k")
    await third.close()


async def test_a_server_that_is_down_is_unavailable_and_not_ready() -> None:
    client = AsyncQdrantClient(url="http://127.0.0.1:1", timeout=1, check_compatibility=False)
    store = QdrantServerStore(client, "c", 4, 2.0)
    await store.open()  # It may come later.
    for call in (store.ping(), store.get(entry_id("k")), store.search([1, 0, 0, 0], (), 1), store.count(())):
        with pytest.raises(TenthError) as caught:
            await call
        assert caught.value.reason == "STORE_UNAVAILABLE"
    await store.close()


CHILD = """
import asyncio, sys
from pathlib import Path
from services.cache.qdrant_edge import QdrantEdgeStore
from services.cache.store import Entry, entry_id

async def main():
    store = QdrantEdgeStore(Path(sys.argv[1]), 4, 5.0)
    await store.open()
    for index in range(50):
        key = f"k{index}"
        await store.put(Entry(entry_id(key), key, "s", "acme", "d", "", key, key, b"x", 1.0, 9e9, "m", 1), [1, 0, 0, 0])
    print("ready", flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


async def test_acknowledged_entries_survive_kill_minus_nine(tmp_path: Path) -> None:
    child = subprocess.Popen(  # noqa: ASYNC220  (A test's own child; it must die unprepared.)
        [sys.executable, "-c", CHILD, str(tmp_path / "cache")], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    store = QdrantEdgeStore(tmp_path / "cache", 4, 5.0)
    await store.open()
    assert await store.count(()) == 50
    assert len(await store.search([1, 0, 0, 0], (Condition("scope", ("s",)),), 50)) == 50
    await store.close()
