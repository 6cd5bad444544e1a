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
from services.cache.store import (
    Condition,
    Entry,
    VectorStore,
    entry_bytes,
    entry_id,
    from_payload,
    question_begins,
    tag,
    to_payload,
)

NOW = 1_000_000.0
NO_SERVER = pytest.mark.skipif("QDRANT_URL" not in os.environ, reason="no QDRANT_URL")
# The server's search parameters mean nothing to the client's own store, which says so each time.
pytestmark = pytest.mark.filterwarnings("ignore:Local mode performs exact")
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


async def test_candidates_come_without_completions(store: VectorStore) -> None:
    await store.put(entry("k", completion=b"x" * 100_000), [1, 0, 0, 0])
    (found,) = await store.search([1, 0, 0, 0], (Condition("scope", ("scope",)),), 1)
    assert found.entry == entry("k", completion=b"")
    whole = await store.get(found.entry.entry_id)
    assert whole is not None
    assert len(whole.completion) == 100_000


async def test_what_has_no_scope_is_found_by_id_alone(store: VectorStore) -> None:
    await store.put(entry("k", scope=""), [1, 0, 0, 0])
    assert await store.search([1, 0, 0, 0], (), 5) == []
    assert await store.get(entry_id("k")) == entry("k", scope="")


async def test_scrolling_shows_each_entry_once_with_its_vector(store: VectorStore) -> None:
    for index in range(7):
        await store.put(entry(f"k{index}"), [3, 4 * (index % 2), 0, 0])
    await store.put(entry("evil", tenant="evil"), [1, 0, 0, 0])
    seen: dict[str, list[float]] = {}
    after, pages = "", 0
    while True:
        page, after = await store.scroll((Condition("tenant", ("acme",)),), 3, after)
        assert len(page) <= 3
        pages += 1
        for one, vector in page:
            assert one == entry(one.exact_key)
            assert one.exact_key not in seen
            seen[one.exact_key] = vector
        if not after:
            break
    assert pages == 3
    assert sorted(seen) == [f"k{index}" for index in range(7)]
    assert seen["k0"] == pytest.approx([1, 0, 0, 0])
    assert seen["k1"] == pytest.approx([0.6, 0.8, 0, 0])


async def test_sizes_add_up_and_bound_what_is_evicted(store: VectorStore) -> None:
    entries = [entry(key, used=NOW + index, completion=b"x" * 1000 * index) for index, key in enumerate("abcd")]
    for one in entries:
        await store.put(one, [1, 0, 0, 0])
    await store.put(entry("evil", tenant="evil", used=NOW + 9), [1, 0, 0, 0])
    assert await store.total_bytes((Condition("tenant", ("acme",)),)) == sum(map(entry_bytes, entries))
    assert await store.total_bytes((Condition("tenant", ("nobody",)),)) == 0
    assert await store.least_recently_used(1) == [entry_id("a")]
    first_two = entry_bytes(entries[0]) + entry_bytes(entries[1])
    assert await store.least_recently_used(0, first_two) == [entry_id("a"), entry_id("b")]
    assert await store.least_recently_used(0, first_two + 1) == [entry_id("a"), entry_id("b"), entry_id("c")]
    assert await store.least_recently_used(4, first_two) == [entry_id(key) for key in "abcd"]
    assert len(await store.least_recently_used(0, 10**9)) == 5
    assert await store.least_recently_used(0) == []


async def test_beginnings_of_namespaces_and_questions(store: VectorStore) -> None:
    await store.put(entry("a", namespace="docs/ko", turn="환불은  어떻게 하나요?"), [1, 0, 0, 0])
    await store.put(entry("b", namespace="docs/en", turn="How do I get a REFUND?"), [1, 0, 0, 0])
    await store.put(entry("c", namespace="shop", turn="", question="how do i get there"), [1, 0, 0, 0])
    await store.put(entry("d", namespace="docs%", turn="100% of what"), [1, 0, 0, 0])
    assert await store.count((Condition("namespace", prefix="docs/"),)) == 2
    assert await store.count((Condition("namespace", prefix="docs"),)) == 3
    assert await store.count((Condition("namespace", prefix="Docs"),)) == 0
    assert await store.count((question_begins("  HOW do I\n get"),)) == 2
    assert await store.count((question_begins("환불은 어떻게"),)) == 1
    assert await store.count((question_begins("100%"),)) == 1
    assert await store.count((question_begins("get"),)) == 0
    chosen = (Condition("tenant", ("acme",)), Condition("namespace", prefix="docs/"), question_begins("how do"))
    assert await store.delete(chosen) == 1
    assert await store.get(entry_id("b")) is None
    with pytest.raises(ValueError, match="no letter"):
        question_begins(" \n")


async def test_conditions_on_fields_without_an_index(store: VectorStore) -> None:
    await store.put(entry("a", owner="u1", model="m1"), [1, 0, 0, 0])
    await store.put(entry("b", owner="u2", model="m1"), [1, 0, 0, 0])
    assert await store.count((Condition("owner", ("u1",)),)) == 1
    assert await store.count((Condition("model", ("m1",)), Condition("owner", ("u1", "u2")))) == 2


def test_entries_of_earlier_revisions_are_read() -> None:
    payload = to_payload(entry("k"))
    for name in ("owner", "answer_digest", "price_book_version", "right_count", "wrong_count", "size",
                 "question_start"):  # fmt: skip
        del payload[name]
    assert from_payload(entry_id("k"), payload) == entry("k")


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
