"""The life of an entry: how long, how many, how fast, where it comes from, how it is invalidated. On a real store."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tenth.cache.v1 import cache_pb2
from tenth.type.v1 import chat_pb2

from mesh.auth import set_identity
from mesh.errors import TenthError
from mesh.testing import TEST_IDENTITY
from services.cache.namespaces import NamespacePolicy
from services.cache.store import Conditions, entry_bytes
from tests.integration.cache.life_cache import START, Cache, answer, ask, running_cache

Invalidate = cache_pb2.InvalidateEntriesRequest

RULES = """
tenants:
  acme:
    news: {ttl_seconds: 10}
    faq-*: {ttl_seconds: 1000, mode: faq, sharing_user_count: 1}
    slow: {writes_per_minute: 3, user_writes_per_minute: 2}
"""


@pytest.fixture
async def cache(tmp_path: Path) -> AsyncIterator[Cache]:
    async with running_cache(tmp_path, rules=RULES) as made:
        yield made


async def test_each_namespace_has_its_own_time_to_live(cache: Cache) -> None:
    asked = {name: ask("Explain this", namespace=name) for name in ("news", "desk", "faq-a")}
    for request in asked.values():
        await cache.put(request)
    for seconds, alive in ((9, 3), (2, 2), (90, 1), (890, 1), (10, 0)):
        cache.now[0] += seconds
        found = [await cache.text(request) for request in asked.values()]
        assert sum(bool(text) for text in found) == alive, cache.now[0] - START
    await cache.answers.sweep()
    assert await cache.everything() == []


async def invalidate(cache: Cache, **fields: object) -> int:
    """The count, having checked that a dry run counts the same and deletes nothing."""
    set_identity(TEST_IDENTITY)
    before = len(await cache.everything())
    dry = await cache.servicer.InvalidateEntries(Invalidate(dry_run=True, **fields), None)  # type: ignore[arg-type]  # By name.
    assert len(await cache.everything()) == before
    wet = await cache.servicer.InvalidateEntries(Invalidate(**fields), None)  # type: ignore[arg-type]  # By name.
    assert wet.entry_count == dry.entry_count
    assert len(await cache.everything()) == before - wet.entry_count
    return wet.entry_count


async def test_invalidation_by_beginnings(cache: Cache) -> None:
    long = "비밀번호를 바꾸는 방법을 처음부터 끝까지 하나하나 자세히 알려 주실 수 있나요"
    for namespace, text in (
        ("faq-a", "How do I pay?"),
        ("faq-b", "how  DO I\tpay by card?"),
        ("desk", "How do I pay?"),
        ("desk", "Who pays?"),
        ("desk", f"{long} (휴대폰)?"),
        ("desk", f"{long} (컴퓨터)?"),
        ("desk", "비밀번호가 뭔가요?"),
    ):
        await cache.put(ask(text, namespace=namespace))
    await cache.put(ask("How do I pay?"), tenant="other")
    for nothing in ("howdoipayx", "pay", "비밀번호는"):
        assert await invalidate(cache, question_prefix=nothing) == 0
    assert await invalidate(cache, question_prefix="HOW do i", namespace_prefix="faq-") == 2
    assert await invalidate(cache, question_prefix="How do I", namespace="desk") == 1
    assert await invalidate(cache, question_prefix=f"{long}(휴대") == 1, "longer than what the index holds"
    assert await invalidate(cache, question_prefix="비밀번호") == 2
    assert await invalidate(cache, namespace_prefix="de") == 1
    assert await cache.text(ask("How do I pay?"), "other") == "Press the button."
    with pytest.raises(TenthError) as caught:
        await invalidate(cache, question_prefix=" \n")
    assert (caught.value.reason, caught.value.field) == ("INVALID_FIELD", "question_prefix")


async def test_invalidation_joins_its_filters(cache: Cache) -> None:
    chunk = chat_pb2.RetrievedChunk(text="The alarm has a button.", document_id="manual")
    one = await cache.put(ask("How do I reset it?", retrieved_chunks=[chunk], tags={"team": "a"}))
    two = await cache.put(ask("How do I mount it?", retrieved_chunks=[chunk]))
    await cache.put(ask("How do I paint it?"))
    assert await invalidate(cache, question_prefix="how", document_id="manual", entry_ids=[one.entry_id]) == 1
    assert await invalidate(cache, question_prefix="how", tags={"team": "a"}) == 0
    assert await invalidate(cache, question_prefix="what", entry_ids=[two.entry_id]) == 0
    assert await invalidate(cache, document_id="manual") == 1
    assert await invalidate(cache, all=True) == 1


async def test_the_least_recently_used_go_when_the_bytes_are_too_many(tmp_path: Path) -> None:
    async with running_cache(tmp_path, max_entry_bytes=40_000) as cache:
        for number in range(12):
            cache.now[0] += 1
            await cache.put(ask(f"Explain part {number}", namespace=f"n{number}"), "x" * 3000)
        cache.now[0] += 1
        assert await cache.text(ask("Explain part 0", namespace="n0"))
        await cache.answers.sweep()
        kept = await cache.everything()
        size = await cache.answers.size_bytes(())
        assert size == sum(map(entry_bytes, kept))
        assert 30_000 < size <= 40_000
        assert await cache.text(ask("Explain part 0", namespace="n0")), "used lately"
        assert await cache.text(ask("Explain part 1", namespace="n1")) == "", "from memory neither"
        assert await cache.text(ask("Explain part 11", namespace="n11"))


async def test_a_store_is_measured_again_only_when_it_may_be_too_large(tmp_path: Path) -> None:
    async with running_cache(tmp_path, max_entry_bytes=20_000, defaults=NamespacePolicy(ttl_seconds=1000)) as cache:
        measured: list[int] = []
        size_bytes = cache.answers.size_bytes

        async def counted(conditions: Conditions) -> int:
            measured.append(await size_bytes(conditions))
            return measured[-1]

        cache.answers.size_bytes = counted  # type: ignore[method-assign]  # Counts its calls.
        for number in range(12):
            cache.now[0] += 1
            await cache.put(ask(f"Explain part {number}"), "x" * 1000)
            await cache.answers.sweep()
            assert await size_bytes(()) <= 20_000
            if number < 5:
                assert len(measured) == 1, "at the start, and not while there is room"
        assert len(measured) > 1
        assert await cache.text(ask("Explain part 11"))
        measured.clear()
        cache.now[0] += 301
        await cache.answers.sweep()
        assert len(measured) == 1, "others may have written to the store"


async def test_stores_beyond_the_rate_are_refused_and_counted(cache: Cache) -> None:
    def numbered(number: int, user: str = "") -> chat_pb2.CompletionRequest:
        return ask(f"Explain part {number}", user, namespace="slow")

    reasons = [(await cache.put(numbered(number, "ann"))).not_stored_reason for number in range(3)]
    assert reasons == ["", "", "write_rate"]
    assert [(await cache.put(numbered(9, user))).not_stored_reason for user in ("bob", "")] == ["", "write_rate"]
    assert not (await cache.put(ask("Explain"), tenant="other")).not_stored_reason
    cache.now[0] += 20
    assert not (await cache.put(numbered(8))).not_stored_reason, "one more in twenty seconds"
    truncated = answer("x", finish_reason=chat_pb2.FINISH_REASON_LENGTH)
    assert (await cache.put(numbered(7), truncated)).not_stored_reason == "truncated"
    stats = await cache.servicer.GetStats(cache_pb2.GetStatsRequest(namespace="slow"), None)
    assert dict(stats.not_stored_counts) == {"write_rate": 2, "truncated": 1}


async def test_statistics_count_bytes_and_what_waits(cache: Cache) -> None:
    await cache.put(ask("Explain this", "ann"))
    await cache.put(ask("Explain that"), "x" * 50_000)
    await cache.put(ask("Explain that"), tenant="other")
    stats = await cache.servicer.GetStats(cache_pb2.GetStatsRequest(), None)
    assert stats.entry_count == 1
    await cache.text(ask("Explain this", "ann"))
    stats = await cache.servicer.GetStats(cache_pb2.GetStatsRequest(), None)
    assert (stats.entry_count, stats.private_entry_count) == (2, 1)
    own = [entry for entry in await cache.everything() if entry.tenant == "acme"]
    assert stats.entry_bytes == sum(map(entry_bytes, own))


async def test_a_hit_says_where_its_answer_comes_from(cache: Cache) -> None:
    await cache.put(ask("Explain this"), price_book_version=7)
    for served in range(3):
        found = (await cache.lookup(ask("Explain this"))).hit.provenance
        assert (found.model, found.tier, found.price_book_version) == ("m", 2, 7)
        assert (found.hit_count, found.shared) == (served, True)
        assert found.expire_time.ToSeconds() == START + 100
        if served == 1:
            await cache.answers.sweep()  # Counting goes on after the hits are written.
    assert (await cache.lookup(ask("Explain this"), dry_run=True)).hit.provenance.hit_count == 3
    await cache.answers.sweep()
    (entry,) = await cache.everything()
    assert (entry.hits, entry.price_book_version) == (3, 7)
    assert entry.answer_digest
    inspect = cache_pb2.InspectLookupRequest(request=ask("Explain this"))
    (candidate,) = (await cache.servicer.InspectLookup(inspect, None)).candidates
    assert (candidate.provenance.hit_count, candidate.provenance.price_book_version) == (3, 7)


async def test_hits_are_not_lost_while_the_store_is_down(cache: Cache) -> None:
    await cache.put(ask("Explain this"))
    await cache.lookup(ask("Explain this"))
    await cache.store.close()
    with pytest.raises(TenthError):
        await cache.answers.sweep()
    assert (await cache.lookup(ask("Explain this"))).hit.provenance.hit_count == 1


async def test_namespaces_with_rules_and_those_that_were_asked_in(cache: Cache) -> None:
    await cache.text(ask("Explain this", namespace="faq-a"))
    await cache.text(ask("Explain this", namespace="theirs"), "other")
    await cache.text(ask("Explain this"))
    listed = (await cache.servicer.ListNamespaces(cache_pb2.ListNamespacesRequest(), None)).namespaces
    assert [each.namespace for each in listed] == ["default", "faq-a", "news", "slow"]
    faq = listed[1]
    assert (faq.mode, faq.ttl.seconds, faq.sharing_user_count) == ("faq", 1000, 1)
    assert faq.max_wrong_hits_per_thousand == NamespacePolicy().max_wrong_hits_per_thousand
    assert (faq.suspended, faq.suspended_reason, faq.lookup_count) == (False, "", 1)


async def test_an_answer_that_was_never_finished_is_not_stored(cache: Cache) -> None:
    lease = (await cache.lookup(ask("Explain this"))).lease.lease_id

    async def broken() -> AsyncIterator[cache_pb2.PublishCompletionRequest]:
        yield cache_pb2.PublishCompletionRequest(lease_id=lease, delta=chat_pb2.CompletionDelta(text="Pre"))

    with pytest.raises(TenthError) as caught:
        await cache.servicer.PublishCompletion(broken(), None)
    assert caught.value.reason == "PUBLISH_UNFINISHED"
    unfinished = answer("Pre", finish_reason=chat_pb2.FINISH_REASON_UNSPECIFIED)
    assert (await cache.put(ask("Explain this"), unfinished)).not_stored_reason == "unfinished"
    assert await cache.everything() == []
