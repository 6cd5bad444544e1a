"""A hostile tenant, a hostile user and an unlucky operator against the cache on the real embedded store."""

from __future__ import annotations

import asyncio
import math
import sqlite3
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tenth.cache.v1 import cache_pb2
from tenth.type.v1 import chat_pb2

from mesh.auth import set_identity
from mesh.errors import Code, TenthError
from mesh.testing import TEST_IDENTITY
from services.cache.aliases import alias_of
from services.cache.answers import MOST_CHARACTERS_COMPARED
from services.cache.embedding import Vector
from services.cache.keys import own_scope, semantic_scope
from services.cache.messages import question_from_proto
from services.cache.store import Entry
from tests.integration.cache.life_cache import Cache, GivenEncoder, SameEncoder, answer, ask, running_cache

RESET, SAME = "How do I reset the alarm?", "How can I reset the alarm?"
SECRET = "The blue key opens the red vault."
Import = cache_pb2.ImportEntriesRequest


@pytest.fixture
async def cache(tmp_path: Path) -> AsyncIterator[Cache]:
    async with running_cache(tmp_path) as made:
        made.encoder.given.update({RESET: (1.0,), SAME: (1.0, 0.05)})
        yield made


@pytest.fixture
async def same(tmp_path: Path) -> AsyncIterator[Cache]:
    async with running_cache(tmp_path, SameEncoder()) as made:
        yield made


def become(tenant: str) -> None:
    set_identity(replace(TEST_IDENTITY, tenant_id=tenant))


async def imported(cache: Cache, *entries: cache_pb2.CacheEntry) -> cache_pb2.ImportEntriesResponse:
    async def stream() -> AsyncIterator[Import]:
        for each in entries:
            yield Import(entry=each)

    return await cache.servicer.ImportEntries(stream(), None)


async def exported(cache: Cache, namespace: str = "") -> list[cache_pb2.CacheEntry]:
    request = cache_pb2.ExportEntriesRequest(namespace=namespace)
    return [message.entry async for message in cache.servicer.ExportEntries(request, None)]


async def test_another_tenant_reaches_nothing_by_any_rpc(cache: Cache) -> None:
    victim = ask(RESET, tags={"team": "a"}, namespace="desk")
    looked = await cache.lookup(victim)
    stored = (await cache.put(victim, SECRET, lease_id=looked.lease.lease_id)).entry_id
    private = (await cache.put(ask(RESET, "ann", namespace="desk2"), SECRET)).entry_id
    flying = await cache.lookup(ask("How do I paint the fence?", namespace="desk"))
    following = await cache.lookup(ask("How do I paint the fence?", namespace="desk"))
    before = await cache.everything()
    evil = cache.servicer
    become("evil")
    for dry_run in (True, False):
        for selection in (
            {"entry_ids": [stored, private]},
            {"namespace": "desk"},
            {"namespace_prefix": "d"},
            {"question_prefix": "how"},
            {"tags": {"team": "a"}},
            {"all": True},
        ):
            request = cache_pb2.InvalidateEntriesRequest(dry_run=dry_run, **selection)
            assert (await evil.InvalidateEntries(request, None)).entry_count == 0
    assert (await evil.DeleteUserEntries(cache_pb2.DeleteUserEntriesRequest(user_id="ann"), None)).entry_count == 0
    assert await exported(cache) == []
    inspected = await evil.InspectLookup(cache_pb2.InspectLookupRequest(request=victim, candidate_count=100), None)
    assert (inspected.outcome, len(inspected.candidates)) == ("miss", 0)
    stats = await evil.GetStats(cache_pb2.GetStatsRequest(), None)
    assert (stats.entry_count, stats.entry_bytes, stats.private_entry_count, stats.miss_count) == (0, 0, 0, 0)
    listed = await evil.ListNamespaces(cache_pb2.ListNamespacesRequest(), None)
    assert [each.namespace for each in listed.namespaces] == ["default"]
    for report_id in ("", "semantic:desk:1"):
        report = cache_pb2.ReportAnswerQualityRequest(entry_id=stored, report_id=report_id, question=RESET)
        assert not (await evil.ReportAnswerQuality(report, None)).retired
    for flight in (following.follow.flight_id, cache.answers.ask(question_from_proto(victim, "acme")).key + ".x"):
        follow = cache_pb2.FollowCompletionRequest(flight_id=flight)
        with pytest.raises(TenthError) as caught:
            _ = [event async for event in evil.FollowCompletion(follow, None)]
        assert caught.value.code is Code.NOT_FOUND
    lease = flying.lease.lease_id
    await evil.ReleaseLease(cache_pb2.ReleaseLeaseRequest(lease_id=lease), None)
    poisoned = ask("How do I paint the fence?", namespace="desk")
    await cache.put(poisoned, "Burn it.", "evil", lease_id=lease)
    become("evil")
    await evil.InvalidateEntries(cache_pb2.InvalidateEntriesRequest(all=True), None)
    assert await cache.everything() == before
    assert (await cache.lookup(poisoned)).follow.flight_id == following.follow.flight_id, "the flight goes on"
    assert cache.servicer._board.key_of(lease, "acme"), "and its lease is in force"
    assert await cache.text(victim) == SECRET
    assert not (await cache.servicer.GetStats(cache_pb2.GetStatsRequest(), None)).bypass_counts


async def test_a_forged_import_reaches_no_other_user_and_no_other_namespace(same: Cache) -> None:
    await same.put(ask(RESET, namespace="desk"), "Planted.")
    (entry,) = await exported(same)
    question = question_from_proto(ask(RESET, "ann"), "acme")
    scope = semantic_scope(question, same.answers.embedder.version)
    become("acme")
    forged = cache_pb2.CacheEntry()
    forged.CopyFrom(entry)
    forged.create_time.FromSeconds(int(same.now[0]) + 50)
    forged.scope = own_scope(scope, "ann")
    done = await imported(same, forged)
    assert dict(done.not_stored_counts) == {"other_tenant": 1}
    # The keys of one namespace under the name of another.
    forged.scope, forged.namespace = scope, "desk"
    forged.tags.extend(["waiting:" + scope, "alias_of=" + entry.entry_id, "alias_user=ann"])
    same.now[0] += 1
    await imported(same, forged)
    for asked in (ask(RESET, "ann"), ask(SAME, "ann"), ask(SAME)):
        assert await same.text(asked) == "", asked
    assert await same.text(ask(SAME, namespace="desk")) == ""


async def test_an_import_that_no_one_could_read_in_time_is_found_exactly_only(cache: Cache) -> None:
    await cache.put(ask(RESET), "Press it.")
    (entry,) = await exported(cache)
    await cache.servicer.InvalidateEntries(cache_pb2.InvalidateEntriesRequest(all=True), None)
    entry.turn = RESET + " again" * MOST_CHARACTERS_COMPARED
    assert (await imported(cache, entry)).stored_count == 1
    (kept,) = await cache.everything()
    assert kept.scope == ""
    assert await cache.text(ask(SAME)) == ""
    assert await cache.text(ask(RESET)) == "Press it."


async def test_deleting_a_user_leaves_nothing_of_theirs(cache: Cache) -> None:
    await cache.put(ask(RESET, "ann"))  # Waits.
    await cache.put(ask("How do I paint it?", "bob"))
    await cache.put(ask("How do I paint it?", "ann"))  # Shared: two agree.
    await cache.put(ask(RESET, "ann"), tenant="other")
    source = next(entry for entry in await cache.everything() if entry.tenant == "acme" and not entry.owner)

    async def alias(of: Entry, text: str, user: str) -> Entry:
        asked = cache.answers.ask(question_from_proto(ask(text, user), "acme"))
        scope = semantic_scope(asked.question, cache.answers.embedder.version)
        made = alias_of(of, asked.question, asked.key, asked.text, scope, cache.now[0])
        await cache.answers.put(made, [1.0] * 32)
        return made

    first = await alias(source, "How is it painted?", "cid")
    await alias(first, "How would I paint it?", "dan")
    become("acme")
    done = await cache.servicer.DeleteUserEntries(cache_pb2.DeleteUserEntriesRequest(user_id="ann"), None)
    assert done.entry_count == 4
    assert [(entry.tenant, entry.user_id) for entry in await cache.everything()] == [("other", "ann")]
    for text in (RESET, "How do I paint it?", "How is it painted?", "How would I paint it?"):
        for user in ("", "ann", "cid", "dan"):
            assert await cache.text(ask(text, user)) == ""


async def test_a_crowd_of_another_tenant_does_not_keep_two_users_from_agreeing(same: Cache) -> None:
    for number in range(60):
        await same.put(ask(f"How do I reset alarm {number}?", f"u{number}"), tenant="evil")
    await same.put(ask(RESET, "ann"))
    await same.put(ask(SAME, "bob"))
    assert await same.text(ask(SAME, "cid")) == "Press the button."
    become("evil")
    assert (await same.servicer.GetStats(cache_pb2.GetStatsRequest(), None)).private_entry_count == 60


async def test_one_user_alone_poisons_no_one_else_however_often(cache: Cache) -> None:
    for number in range(16):
        text = f"How can I reset the alarm{'?' * number}"
        cache.encoder.given[text] = (1.0, 0.001 * number)
        await cache.put(ask(text, "mallory"), "Throw it away.")
    for asked in (ask(RESET, "ann"), ask(SAME, "ann"), ask(RESET), ask(SAME)):
        assert await cache.text(asked) == ""
    # Nor does it become anyone's because another got another answer to the same.
    await cache.put(ask(SAME, "ann"), "Press the button.")
    assert await cache.text(ask(SAME, "ann")) == "Press the button."
    assert await cache.text(ask(SAME, "bob")) == ""


@pytest.mark.parametrize("values", [[math.nan] * 32, [0.0] * 32, [math.inf] * 32, [1.0] * 31, [math.nan] + [1.0] * 31])
async def test_an_embedding_that_is_none_is_made_anew(cache: Cache, values: Sequence[float]) -> None:
    given = chat_pb2.Embedding(values=values, embedder=cache.answers.embedder.version)
    await cache.put(ask(RESET), embedding=given)
    ((_, vector),) = (await cache.store.scroll((), 10))[0]
    assert vector == pytest.approx([1.0] + [0.0] * 31)
    assert await cache.text(ask(SAME)) == "Press the button."


class BrokenEncoder(GivenEncoder):
    """What a damaged model makes."""

    value = 0.0

    def encode(self, texts: Sequence[str]) -> Vector:
        return np.full((len(texts), self.dimension), self.value, np.float32)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0.0])
async def test_a_broken_embedder_serves_nothing(tmp_path: Path, value: float) -> None:
    encoder = BrokenEncoder()
    async with running_cache(tmp_path, encoder) as cache:
        encoder.given = {}
        encoder.value = 1.0
        await cache.put(ask(RESET))
        encoder.value = value
        broken = [cache.text(ask(SAME)), cache.put(ask("How do I open it?")), cache.text(ask("How might I open it?"))]
        for done in await asyncio.gather(*broken, return_exceptions=True):
            if isinstance(done, TenthError):
                assert done.code is Code.UNAVAILABLE
            else:
                assert done == "" or isinstance(done, cache_pb2.StoreCompletionResponse)
        assert await cache.text(ask(RESET)) == "Press the button.", "exactly, as before"


LOOKALIKES = [
    ("🍎🍎", "🍌🍌"),
    ("???", "!!!"),
    ("\ue000\ue001", "\ue002"),
    ("What does 🍎 mean?", "What does 🍌 mean?"),
    ("How do I en\u00adable the alarm?", "How do I dis\u00adable the alarm?"),
    ("ＯＮ 하는 법 알려 줘, turn it ＯＮ", "ＯＦＦ 하는 법 알려 줘, turn it ＯＦＦ"),
    ("How do I reset p\u0430ssword?", "How do I reset password?"),
    ("비밀번호 reset", "password reset"),
    ("a:\n  b: how?", "  a:\n  b: how?"),
    ("How do I reset it? " + "🍎" * 2000, "How do I reset it? " + "🍌" * 2000),
    ("\u202eHow do I enable it?", "How do I dis\u200fable it?"),
    ("What is -5 plus 3?", "What is 5 plus 3?"),
    ("단계 ① 어떻게 하나요?", "단계 ② 어떻게 하나요?"),
]


@pytest.mark.parametrize(("stored", "asked"), LOOKALIKES, ids=ascii)
async def test_what_an_embedder_cannot_tell_apart_is_not_served(same: Cache, stored: str, asked: str) -> None:
    await same.put(ask(stored))
    assert await same.text(ask(asked)) == ""
    assert await same.text(ask(stored)) == "Press the button."


async def test_a_huge_question_is_bypassed(same: Cache) -> None:
    looked = await same.lookup(ask("reset " * 170_000))
    assert looked.bypass.reason == "too_large"


async def test_an_endless_list_of_ids_is_no_outage(cache: Cache) -> None:
    stored = (await cache.put(ask(RESET))).entry_id
    others = [f"00000000-0000-0000-0000-{number:012d}" for number in range(40_000)]
    request = cache_pb2.InvalidateEntriesRequest(entry_ids=[*others, stored])
    assert (await cache.servicer.InvalidateEntries(request, None)).entry_count == 1
    assert await cache.everything() == []


async def test_a_full_disk_loses_and_invents_nothing(cache: Cache) -> None:
    await cache.put(ask(RESET), "Press it.")
    assert cache.store._table is not None
    connection: sqlite3.Connection = cache.store._table._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(TenthError) as caught:
        await cache.put(ask("How do I open it?"), "x" * 500_000)
    assert caught.value.code is Code.UNAVAILABLE
    assert await cache.text(ask("How do I open it?")) == ""
    assert await cache.text(ask(RESET)) == "Press it."
    assert await cache.text(ask(SAME)) == "Press it."
    connection.execute("PRAGMA max_page_count = 1000000")
    await cache.put(ask("How do I open it?"), "Turn it.")
    assert await cache.text(ask("How do I open it?")) == "Turn it."


async def test_a_clock_that_goes_back_serves_nothing_that_is_too_old(cache: Cache) -> None:
    await cache.put(ask(RESET))
    policy = chat_pb2.RequestPolicy()
    policy.cache_max_age.FromSeconds(60)
    assert await cache.text(ask(RESET, policy=policy)) == "Press the button."
    cache.now[0] -= 3600
    for text in (RESET, SAME):
        assert await cache.text(ask(text, policy=policy)) == "", "nobody knows how old it is"
    cache.now[0] += 3600 + 101
    assert await cache.text(ask(RESET)) == "", "expired"


async def test_tool_answers_and_texts_of_one_wording_do_not_agree(cache: Cache) -> None:
    called = answer("", finish_reason=chat_pb2.FINISH_REASON_TOOL_CALLS)
    called.message.tool_calls.add(id="1", name="find", arguments_json="{}")
    tools = [chat_pb2.Tool(name="find")]
    await cache.put(ask(RESET, "ann", tools=tools), called)
    await cache.put(ask(RESET, "bob", tools=tools), "find {}")
    assert await cache.text(ask(RESET, "cid", tools=tools)) == ""
