"""Who gets whose answer: entries of one user, agreement, and attacks with crafted collisions. On the embedded store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tenth.cache.v1 import cache_pb2
from tenth.type.v1 import chat_pb2

from services.cache.keys import own_scope, semantic_scope
from services.cache.messages import question_from_proto, said
from services.cache.store import Condition, Entry, entry_id
from tests.integration.cache.life_cache import START, Cache, SameEncoder, answer, ask, running_cache

RESET, SAME = "How do I reset the alarm?", "How can I reset the alarm?"
NEAR = (1.0, 0.05)


@pytest.fixture
async def cache(tmp_path: Path) -> AsyncIterator[Cache]:
    async with running_cache(tmp_path) as made:
        made.encoder.given.update({RESET: (1.0,), SAME: NEAR})
        yield made


async def test_an_answer_is_its_users_own_until_a_second_user_agrees(cache: Cache) -> None:
    await cache.put(ask(RESET, "ann"))
    assert await cache.text(ask(RESET, "ann")) == "Press the button."
    assert await cache.text(ask(SAME, "ann")) == "Press the button.", "by meaning as well"
    for other in (ask(RESET, "bob"), ask(SAME, "bob"), ask(RESET), ask(SAME)):
        assert await cache.text(other) == ""
    found = await cache.lookup(ask(RESET, "ann"))
    assert not found.hit.provenance.shared
    await cache.put(ask(RESET, "bob"))
    for anyone in (ask(RESET, "ann"), ask(RESET, "cid"), ask(SAME, "dan"), ask(RESET), ask(SAME)):
        assert await cache.text(anyone) == "Press the button."
    assert (await cache.lookup(ask(RESET, "cid"))).hit.provenance.shared
    (entry,) = await cache.everything()
    assert (entry.owner, entry.pool, entry.user_id) == ("", "", "bob")


async def test_one_user_twice_is_not_two_and_another_answer_does_not_agree(cache: Cache) -> None:
    for text in ("Press the button.", "Press the button.", "Pull the lever."):
        await cache.put(ask(RESET, "ann"), text)
    await cache.put(ask(RESET, "bob"), "Press the button.")
    assert await cache.text(ask(RESET, "cid")) == ""
    assert await cache.text(ask(RESET, "ann")) == "Pull the lever."
    assert await cache.text(ask(RESET, "bob")) == "Press the button."
    await cache.put(ask(RESET, "cid"), "Pull the lever.")
    assert await cache.text(ask(RESET, "dan")) == "Pull the lever."
    assert await cache.text(ask(RESET, "bob")) == "Pull the lever.", "of own and shared the newer or equal"


async def test_a_user_may_agree_in_other_words(cache: Cache) -> None:
    await cache.put(ask(RESET, "ann"))
    stored = await cache.put(ask(SAME, "bob"))
    assert stored.entry_id == entry_id(cache.answers.ask(question_from_proto(ask(SAME), "acme")).key)
    assert await cache.text(ask(SAME, "cid")) == "Press the button."
    assert await cache.text(ask(RESET, "cid")) == "Press the button."
    # Her own wording is still found without an embedding.
    assert (await cache.lookup(ask(RESET, "ann"))).hit.kind == cache_pb2.HIT_KIND_EXACT


async def test_a_question_that_the_policy_would_not_serve_corroborates_nothing(cache: Cache) -> None:
    other = "How do I not reset the alarm?"
    cache.encoder.given[other] = NEAR
    await cache.put(ask(RESET, "ann"))
    await cache.put(ask(other, "bob"))
    assert await cache.text(ask(RESET, "cid")) == ""
    assert await cache.text(ask(other, "cid")) == ""


@pytest.mark.parametrize(
    ("text", "vector", "shared"),
    [
        ("Hold the red button down.", (1.0, 0.3), True),
        ("Hold the red button down.", (1.0, 0.8), False),
        ("Do not press the red button.", (1.0, 0.0), False),
        ("Press the red button 3 times.", (1.0, 0.0), False),
        ("Somebody will call you back soon.", (1.0, 0.0), False),
        ("Press it.", (1.0, 0.0), False),
    ],
    ids=["near", "far", "negated", "another number", "other words", "too short to tell"],
)
async def test_answers_in_free_text_agree_when_near_and_no_guard_differs(
    cache: Cache, text: str, vector: tuple[float, float], shared: bool
) -> None:
    first = "Press the red button down."
    cache.encoder.given.update({first: (1.0,), text: vector})
    await cache.put(ask(RESET, "ann"), first)
    await cache.put(ask(RESET, "bob"), text)
    assert await cache.text(ask(RESET, "cid")) == (text if shared else "")


async def test_tool_calls_agree_by_name_and_arguments_alone(cache: Cache) -> None:
    def calls(identifier: str, arguments: str) -> chat_pb2.Completion:
        made = answer("", finish_reason=chat_pb2.FINISH_REASON_TOOL_CALLS)
        made.message.tool_calls.add(id=identifier, name="find", arguments_json=arguments)
        return made

    tools = [chat_pb2.Tool(name="find")]
    await cache.put(ask(RESET, "ann", tools=tools), calls("c1", '{"a":1,"b":2}'))
    await cache.put(ask(RESET, "bob", tools=tools), calls("c2", '{"a":1,"b":3}'))
    assert not (await cache.lookup(ask(RESET, "dan", tools=tools))).HasField("hit")
    await cache.put(ask(RESET, "cid", tools=tools), calls("c3", '{"b": 2, "a": 1}'))
    assert (await cache.lookup(ask(RESET, "dan", tools=tools), dry_run=True)).hit.completion == calls(
        "c3", '{"b": 2, "a": 1}'
    )


async def test_requests_without_a_user_are_the_tenants_own(cache: Cache) -> None:
    await cache.put(ask(RESET))
    assert await cache.text(ask(SAME, "ann")) == "Press the button."


async def test_one_user_cannot_replace_a_shared_answer(cache: Cache) -> None:
    await cache.put(ask(RESET))
    cache.now[0] += 60
    await cache.put(ask(RESET, "eve"), "Call this number.")
    assert await cache.text(ask(RESET, "eve")) == "Call this number."
    assert await cache.text(ask(RESET, "ann")) == "Press the button."
    cache.now[0] += 30
    await cache.put(ask(RESET, "bob"))
    cache.now[0] += 50
    assert await cache.text(ask(RESET, "ann")) == "Press the button.", "the same answer anew is good for longer"


async def test_how_many_users_is_the_namespaces_own(tmp_path: Path) -> None:
    rules = "tenants: {acme: {open: {sharing_user_count: 1}, shy: {sharing_user_count: 3}}}"
    async with running_cache(tmp_path, rules=rules) as cache:
        await cache.put(ask(RESET, "ann", namespace="open"))
        assert await cache.text(ask(RESET, "bob", namespace="open")) == "Press the button."
        for user, shared in (("ann", ""), ("bob", ""), ("cid", "Press the button.")):
            await cache.put(ask(RESET, user, namespace="shy"))
            assert await cache.text(ask(RESET, "dan", namespace="shy")) == shared


async def test_two_users_at_once_are_seen_by_each_other(cache: Cache) -> None:
    await asyncio.gather(*(cache.put(ask(RESET, user)) for user in ("ann", "bob")))
    assert await cache.text(ask(RESET, "cid")) == "Press the button."


async def test_what_is_exact_only_is_shared_by_its_key(cache: Cache) -> None:
    long = "Please reset the alarm for me. " * 20
    await cache.put(ask(long, "ann"))
    assert await cache.text(ask(long, "bob")) == ""
    await cache.put(ask(long, "bob"))
    assert await cache.text(ask(long, "cid")) == "Press the button."


async def test_an_expired_answer_corroborates_nothing(cache: Cache) -> None:
    await cache.put(ask(RESET, "ann"))
    cache.now[0] += 101
    await cache.put(ask(RESET, "bob"))
    assert await cache.text(ask(RESET, "cid")) == ""


async def test_deleting_a_users_data_deletes_what_waits(cache: Cache) -> None:
    await cache.put(ask(RESET, "ann"))
    deleted = await cache.servicer.DeleteUserEntries(cache_pb2.DeleteUserEntriesRequest(user_id="ann"), None)
    assert deleted.entry_count == 1
    assert await cache.text(ask(RESET, "ann")) == ""
    await cache.put(ask(RESET, "bob"))
    assert await cache.text(ask(RESET, "cid")) == ""


async def test_a_follower_of_an_identical_request_gets_its_answer_and_shares_nothing(cache: Cache) -> None:
    lease = (await cache.lookup(ask(RESET, "ann"))).lease.lease_id
    flight = (await cache.lookup(ask(RESET, "bob"))).follow.flight_id
    await cache.put(ask(RESET, "ann"), lease_id=lease)
    follow = cache_pb2.FollowCompletionRequest(flight_id=flight)
    (event,) = [event async for event in cache.servicer.FollowCompletion(follow, None)]
    assert event.finished == answer("Press the button.")
    assert await cache.text(ask(RESET, "bob")) == "", "one generation is no agreement"


# Crafted collisions: the same vector, the same words, somebody else's entry.


def system(text: str, **fields: object) -> chat_pb2.CompletionRequest:
    made = ask(RESET, **fields)  # type: ignore[arg-type]  # Fields by name.
    made.messages.insert(0, chat_pb2.ChatMessage(role=chat_pb2.ROLE_SYSTEM, parts=[chat_pb2.ContentPart(text=text)]))
    return made


@pytest.fixture
async def same(tmp_path: Path) -> AsyncIterator[Cache]:
    async with running_cache(tmp_path, SameEncoder()) as made:
        yield made


async def test_the_same_vector_and_words_are_not_the_same_question(same: Cache) -> None:
    victim = system("Be brief.", namespace="desk")
    await same.put(victim, "Secret.")
    floor = chat_pb2.RequestPolicy(tier_floor=chat_pb2.TIER_COMPLEX)
    attacks = [
        (victim, "evil"),
        (system("Be brief."), "acme"),
        (system("Be brief.", namespace="desk2"), "acme"),
        (system("Be brief. ", namespace="desk", tools=[chat_pb2.Tool(name="x")]), "acme"),
        (system("Be brief!", namespace="desk"), "acme"),
        (system("", namespace="desk"), "acme"),
        (ask(RESET, namespace="desk"), "acme"),
        (
            system("Be brief.", namespace="desk", policy=floor),
            "acme",
        ),
    ]
    for request, tenant in attacks:
        assert await same.text(request, tenant) == "", request
    assert await same.text(victim) == "Secret."


async def test_a_planted_entry_is_not_served(same: Cache) -> None:
    """Somebody writes to the store itself, with a victim's vector and as many of its fields as he can guess."""
    asked = same.answers.ask(question_from_proto(ask(RESET, "ann"), "acme"))
    scope = semantic_scope(asked.question, same.answers.embedder.version)
    vector = [1.0] + [0.0] * 31
    forged = Entry(
        entry_id(asked.key), asked.key, scope, "acme", "default", "", RESET, RESET,
        answer("Planted.").SerializeToString(), START, START + 1000, "m", 2,
    )  # fmt: skip
    planted = {
        "another tenant's scope under this tenant's name": replace(forged, scope="0" * 64, exact_key="0" * 64),
        "this scope under another tenant's name": replace(forged, tenant="evil"),
        "this key under another tenant's name": replace(forged, tenant="evil", scope=""),
        "another key at this key's place": replace(forged, exact_key="1" * 64, scope=""),
        "another user's, in this one's scope": replace(forged, scope=own_scope(scope, "ann"), owner="bob"),
        "another user's, at this one's place": replace(forged, entry_id=entry_id(asked.key, "ann"), owner="bob"),
        "waiting in the pool": replace(forged, scope="", pool=scope, owner="bob", exact_key="2" * 64),
    }
    for how, entry in planted.items():
        await same.store.put(entry, vector)
        assert await same.text(ask(RESET, "ann")) == "", how
        inspected = await same.servicer.InspectLookup(cache_pb2.InspectLookupRequest(request=ask(RESET, "ann")), None)
        assert not inspected.candidates, how
        await same.store.delete((), [entry.entry_id])
    # It is found when nothing of it is wrong: the tests above do not pass by themselves.
    await same.store.put(forged, vector)
    for text in (RESET, SAME):
        assert await same.text(ask(text, "ann")) == "Planted."


async def test_a_planted_entry_of_another_tenant_corroborates_nothing(same: Cache) -> None:
    question = question_from_proto(ask(RESET, "ann"), "acme")
    key, pool = same.answers.ask(question).key, semantic_scope(question, same.answers.embedder.version)
    completion = answer("Press the button.").SerializeToString()
    planted = Entry(
        entry_id(key, "bob"), key, own_scope(pool, "bob"), "evil", "default", "bob", RESET, RESET, completion,
        START, START + 1000, "m", 2, owner="bob", pool=pool, answer_digest=said(completion).digest,
    )  # fmt: skip
    await same.store.put(planted, [1.0] + [0.0] * 31)
    await same.put(ask(RESET, "ann"))
    assert await same.text(ask(RESET, "cid")) == ""
    await same.store.put(replace(planted, tenant="acme"), [1.0] + [0.0] * 31)
    await same.put(ask(RESET, "ann"))
    assert await same.text(ask(RESET, "cid")) == "Press the button."


names = st.text(min_size=1, max_size=8) | st.sampled_from(["a", "a:b", "a\x00", "*", "acme", "Acme", "á", "a\u0301"])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(names, min_size=2, max_size=3, unique=True), st.lists(names, min_size=2, max_size=2, unique=True))
async def test_whatever_they_are_called_tenants_and_users_get_their_own(
    same: Cache, tenants: list[str], users: list[str]
) -> None:
    """One question, one vector, answers of each tenant and user: everyone gets his own and nobody another's."""
    await same.answers.delete((), (), False)
    same.now[0] += 60
    everyone = [(tenant, user) for tenant in tenants for user in users]
    for tenant, user in everyone:
        await same.put(ask(RESET, user), f"Answer {everyone.index((tenant, user))}.", tenant)
    same.answers._forget_all()
    for tenant, user in everyone:
        for question in (RESET, SAME):
            assert await same.text(ask(question, user), tenant) == f"Answer {everyone.index((tenant, user))}."
    for tenant in tenants:
        assert await same.text(ask(RESET), tenant) == ""
        assert await same.answers.count((Condition("tenant", (tenant,)),)) == len(users)
