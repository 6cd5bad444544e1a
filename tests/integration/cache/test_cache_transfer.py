"""Entries out of one cache and into another, over a real socket, on the embedded store."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import AsyncQdrantClient
from tenth.cache.v1 import cache_pb2
from tenth.type.v1 import chat_pb2

from mesh.auth import set_identity
from mesh.errors import Code, TenthError
from mesh.testing import TEST_IDENTITY
from services.cache import transfer
from services.cache.keys import exact_key, semantic_scope, tenant_mark
from services.cache.messages import question_from_proto
from services.cache.namespaces import NamespacePolicy, Namespaces
from services.cache.qdrant_edge import QdrantEdgeStore
from services.cache.qdrant_server import QdrantServerStore
from services.cache.store import Condition, VectorStore, entry_id
from tests.integration.cache.test_cache_service import RESET, Lookup, Mesh, answer, ask, outcome, put
from tests.integration.cache.test_cache_service import cache as cache  # A fixture, used by its name.
from tests.integration.cache.test_cache_stores import entry

Item = cache_pb2.ImportEntriesRequest
REWORDED = "How can I reset the alarm?"


async def exported(cache: Mesh, namespace: str = "") -> list[cache_pb2.CacheEntry]:
    request = cache_pb2.ExportEntriesRequest(namespace=namespace)
    return [message.entry async for message in cache.stub.ExportEntries(request)]


async def imported(cache: Mesh, items: Iterable[Item]) -> cache_pb2.ImportEntriesResponse:
    async def stream() -> AsyncIterator[Item]:
        for item in items:
            yield item

    response: cache_pb2.ImportEntriesResponse = await cache.stub.ImportEntries(stream())
    return response


def pair(text: str, reply: str = "Press the button.", **fields: Any) -> Item:
    return Item(pair=cache_pb2.Pair(request=ask(text, **fields), completion=answer(reply)))


def by_id(entries: Iterable[cache_pb2.CacheEntry]) -> list[cache_pb2.CacheEntry]:
    return sorted(entries, key=lambda each: each.entry_id)


async def clear(cache: Mesh) -> None:
    await cache.stub.InvalidateEntries(cache_pb2.InvalidateEntriesRequest(all=True))


async def test_what_was_exported_is_found_again_after_an_import(cache: Mesh) -> None:
    system = chat_pb2.ChatMessage(role=chat_pb2.ROLE_SYSTEM, parts=[chat_pb2.ContentPart(text="Be brief.")])
    long_one = ask(RESET, tags={"team": "a"}, namespace="faq", user_id="u1")
    long_one.messages.insert(0, system)
    await put(cache, long_one, answer("With a system prompt."))
    await put(cache, ask(RESET), answer("Plain."))
    before = await exported(cache)
    assert len(before) == 2
    embedded = cache.encoder.count
    await clear(cache)
    assert await exported(cache) == []
    done = await imported(cache, [Item(entry=each) for each in before])
    assert (done.stored_count, dict(done.not_stored_counts)) == (2, {})
    assert cache.encoder.count == embedded, "vectors travel"
    for was, now in zip(by_id(before), by_id(await exported(cache)), strict=True):
        assert now.embedding.values == pytest.approx(list(was.embedding.values)), "scaled to length 1 once more"
        now.embedding.CopyFrom(was.embedding)
        assert now == was
    for text, kind in ((RESET, cache_pb2.HIT_KIND_EXACT), (REWORDED, cache_pb2.HIT_KIND_SEMANTIC)):
        long_one.messages[1].parts[0].text = text
        looked = await cache.stub.LookupCompletion(Lookup(request=long_one))
        assert (looked.hit.kind, looked.hit.completion) == (kind, answer("With a system prompt."))
    again = await imported(cache, [Item(entry=each) for each in before])
    assert (again.stored_count, dict(again.not_stored_counts)) == (0, {"already_stored": 2})


async def test_an_export_is_the_tenants_own_by_namespace_and_without_what_expired(
    cache: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "PAGE_COUNT", 2)
    set_identity(replace(TEST_IDENTITY, tenant_id="evil"))
    await put(cache, ask(RESET))
    set_identity(TEST_IDENTITY)
    await put(cache, ask("An old question"))
    cache.clock.now += 60
    words = ("one", "two", "three", "four", "five")
    for index, word in enumerate(words):
        await put(cache, ask(f"Explain {word} apples", namespace="even" if index % 2 == 0 else "odd"))
    cache.clock.now += 60
    everything = await exported(cache)
    assert sorted(each.question for each in everything) == sorted(f"Explain {word} apples" for word in words)
    assert {each.question for each in await exported(cache, "odd")} == {"Explain two apples", "Explain four apples"}
    (first, *_) = everything
    assert len(first.embedding.values) == 64
    assert first.embedding.embedder == cache.answers.embedder.version
    assert first.provenance.expire_time.ToSeconds() - first.create_time.ToSeconds() == 100


async def test_pairs_are_as_if_asked_and_answered_now(cache: Mesh) -> None:
    items = [
        pair(RESET),
        pair("How do I paint the fence?", "With a brush.", tags={"source": "faq"}, namespace="garden"),
    ]
    done = await imported(cache, items)
    assert (done.stored_count, dict(done.not_stored_counts)) == (2, {})
    looked = await cache.stub.LookupCompletion(Lookup(request=ask(REWORDED)))
    assert looked.hit.completion == answer("Press the button.")
    deletion = cache_pb2.InvalidateEntriesRequest(tags={"source": "faq"})
    assert (await imported(cache, items)).stored_count == 2, "idempotent"
    assert len(await exported(cache)) == 2
    assert (await cache.stub.InvalidateEntries(deletion)).entry_count == 1


async def test_the_last_of_two_answers_to_one_question_holds(cache: Mesh) -> None:
    await imported(cache, [pair(RESET, f"Answer {number}.") for number in range(20)])
    looked = await cache.stub.LookupCompletion(Lookup(request=ask(RESET)))
    assert looked.hit.completion == answer("Answer 19.")


async def test_the_gate_holds_for_imports_and_one_refusal_stops_nothing(cache: Mesh) -> None:
    await put(cache, ask(RESET))
    (stored,) = await exported(cache)
    bad_turn, unfinished, old, twin = (cache_pb2.CacheEntry() for _ in range(4))
    for copy in (bad_turn, unfinished, old, twin):
        copy.CopyFrom(stored)
    bad_turn.turn = "What is the weather?"
    unfinished.completion.finish_reason = chat_pb2.FINISH_REASON_CONTENT_FILTER
    old.provenance.expire_time.FromSeconds(999_999)
    truncated = pair("Explain apples")
    truncated.pair.completion.finish_reason = chat_pb2.FINISH_REASON_LENGTH
    items = [pair("What is the weather?"), pair("mail me at a@example.com"), truncated, pair("Explain pears")]
    items += [Item(entry=each) for each in (bad_turn, unfinished, old, twin)]
    done = await imported(cache, items)
    assert done.stored_count == 1
    assert dict(done.not_stored_counts) == {
        "time_bound": 2,
        "personal_data": 1,
        "truncated": 1,
        "unfinished": 1,
        "expired": 1,
        "already_stored": 1,
    }


async def test_another_tenants_entries_are_refused_whatever_is_forged(cache: Mesh) -> None:
    """An import must neither replace another tenant's entry nor crowd out its neighbours in a search."""
    await put(cache, ask(RESET))
    (stolen,) = await exported(cache)
    scope = semantic_scope(question_from_proto(ask(RESET), "acme"), cache.answers.embedder.version)
    assert stolen.scope == scope
    set_identity(replace(TEST_IDENTITY, tenant_id="evil"))
    crowd = []
    for index in range(10):
        forged = cache_pb2.CacheEntry()
        forged.CopyFrom(stolen)
        own = exact_key(question_from_proto(ask(f"x{index}"), "evil"))
        forged.exact_key, forged.entry_id = own, ""
        crowd.append(Item(entry=forged))
    done = await imported(cache, [Item(entry=stolen), *crowd])
    assert (done.stored_count, dict(done.not_stored_counts)) == (0, {"other_tenant": 11})
    assert await exported(cache) == []
    set_identity(TEST_IDENTITY)
    assert await outcome(cache, ask(RESET)) == "hit"
    assert await outcome(cache, ask(REWORDED)) == "hit"


def test_a_mark_is_a_tenants_own() -> None:
    assert len(tenant_mark("acme")) == 16
    assert tenant_mark("acme") != tenant_mark("acme2")
    assert exact_key(question_from_proto(ask(RESET), "acme")).startswith(tenant_mark("acme"))


async def test_an_entry_of_another_embedder_is_embedded_anew_or_found_exactly(cache: Mesh) -> None:
    followed = ask(RESET)
    first = chat_pb2.ChatMessage(role=chat_pb2.ROLE_SYSTEM, parts=[chat_pb2.ContentPart(text="Be brief.")])
    followed.messages.insert(0, first)
    floor = chat_pb2.RequestPolicy(tier_floor=chat_pb2.TIER_SIMPLE)
    await put(cache, ask("Paint a fence", policy=floor))
    await put(cache, followed)
    entries = await exported(cache)
    await clear(cache)
    for each in entries:
        each.embedding.embedder = "older@1"
        del each.embedding.values[7:]
    assert (await imported(cache, [Item(entry=each) for each in entries])).stored_count == 2
    assert await outcome(cache, ask("Paint the fence", policy=floor)) == "lease", "too far, but compared"
    assert await outcome(cache, ask("Paint a fence!", policy=floor)) == "hit", "by meaning"
    assert await outcome(cache, followed) == "hit"
    followed.messages[1].parts[0].text = REWORDED
    assert await outcome(cache, followed) == "lease", "its scope could not be made anew"


async def test_an_imported_entry_lives_no_longer_than_its_namespace_allows(cache: Mesh) -> None:
    await put(cache, ask(RESET))
    (stored,) = await exported(cache)
    await clear(cache)
    stored.provenance.expire_time.FromSeconds(9_000_000)
    stored.create_time.FromSeconds(5_000_000)
    assert (await imported(cache, [Item(entry=stored)])).stored_count == 1
    (again,) = await exported(cache)
    assert again.create_time.ToSeconds() == 1_000_000
    assert again.provenance.expire_time.ToSeconds() == 1_000_100


def change(path: str, value: object) -> Callable[[cache_pb2.CacheEntry], None]:
    def apply(made: cache_pb2.CacheEntry) -> None:
        target: Any = made
        *parents, name = path.split(".")
        for parent in parents:
            target = getattr(target, parent)
        if value is None:
            target.ClearField(name)
        elif isinstance(value, list):
            del getattr(target, name)[:]
            getattr(target, name).extend(value)
        else:
            setattr(target, name, value)

    return apply


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("exact_key", ""),
        ("exact_key", "A" * 64),
        ("scope", "short"),
        ("entry_id", str(uuid.UUID(int=1))),
        ("namespace", ""),
        ("namespace", "n" * 129),
        ("completion", None),
        ("question", " "),
        ("turn", ""),
        ("embedding.values", [1.0] * 3),
        ("embedding.values", [1.0] * 64),
        ("embedding.values", [float("nan")] * 64),
        ("provenance.tier", 9),
        ("provenance.hit_count", -1),
    ],
)
async def test_a_malformed_entry_is_named_and_those_before_it_are_stored(cache: Mesh, path: str, value: object) -> None:
    await put(cache, ask(RESET))
    (stored,) = await exported(cache)
    change(path, value)(stored)
    with pytest.raises(TenthError) as caught:
        await imported(cache, [pair("Explain pears"), Item(entry=stored)])
    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARGUMENT, f"items[1].entry.{path}")
    assert await outcome(cache, ask("Explain pears")) == "hit"


@pytest.mark.parametrize(
    ("item", "field"),
    [
        (Item(), "items[1].item"),
        (Item(pair=cache_pb2.Pair(request=ask(RESET))), "items[1].pair.completion"),
        (Item(pair=cache_pb2.Pair(completion=answer())), "items[1].pair.request.messages"),
    ],
)
async def test_a_malformed_item_is_named(cache: Mesh, item: Item, field: str) -> None:
    with pytest.raises(TenthError) as caught:
        await imported(cache, [pair("Explain pears"), item])
    assert (caught.value.code, caught.value.field) == (Code.INVALID_ARGUMENT, field)


async def test_a_private_entry_stays_its_users_own(cache: Mesh) -> None:
    cache.answers.namespaces = Namespaces(NamespacePolicy(ttl_seconds=100, sharing_user_count=2))
    await put(cache, ask(RESET, user_id="u1"))
    (stored,) = await exported(cache)
    assert not stored.provenance.shared
    for shared, others in ((False, "lease"), (True, "hit")):
        await clear(cache)
        stored.provenance.shared = shared
        assert (await imported(cache, [Item(entry=stored)])).stored_count == 1
        assert [each.provenance.shared for each in await exported(cache)] == [shared]
        for text in (RESET, REWORDED):
            assert await outcome(cache, ask(text, user_id="u1"), dry_run=True) == "hit"
            assert await outcome(cache, ask(text, user_id="u2"), dry_run=True) == others


async def test_pairs_have_no_write_rate(cache: Mesh) -> None:
    """A user's rate is 60 answers a minute, and a warm-up is larger."""
    done = await imported(cache, [pair(f"Explain apples number {index}", user_id="u1") for index in range(100)])
    assert (done.stored_count, dict(done.not_stored_counts)) == (100, {})


@pytest.mark.parametrize("kind", ["edge", "memory"])
async def test_a_scroll_gives_every_entry_once_with_its_vector(tmp_path: Path, kind: str) -> None:
    store: VectorStore = (
        QdrantEdgeStore(tmp_path / "cache", 4, 5.0)
        if kind == "edge"
        else QdrantServerStore(AsyncQdrantClient(location=":memory:"), "scrolled", 4, 10.0)
    )
    await store.open()
    for number in range(7):
        await store.put(entry(f"k{number}", tenant="evil" if number == 3 else "acme"), [0.6, 0.8, 0, 0])
    seen, after, pages = [], "", 0
    while True:
        page, after = await store.scroll((Condition("tenant", ("acme",)),), 2, after)
        assert len(page) <= 2
        seen += page
        pages += 1
        if not after:
            break
    assert pages >= 3, "the last may be empty"
    assert {each.entry_id for each, _ in seen} == {entry_id(f"k{number}") for number in (0, 1, 2, 4, 5, 6)}
    assert len(seen) == 6
    assert all(vector == pytest.approx([0.6, 0.8, 0, 0]) for _, vector in seen)
    await store.close()
