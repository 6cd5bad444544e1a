"""The exact key and the semantic scope: what is the same request, and that nothing else can look like it."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.cache.keys import (
    ROLE_ASSISTANT,
    ROLE_SYSTEM,
    ROLE_USER,
    Language,
    Message,
    Question,
    Tool,
    canonical,
    canonical_text,
    embedded_text,
    exact_key,
    language,
    semantic_scope,
)

EMBEDDER = "test@1"


def user(text: str) -> Message:
    return Message(ROLE_USER, (("text", text),))


BASE = Question(
    tenant_id="acme",
    namespace="default",
    messages=(Message(ROLE_SYSTEM, (("text", "Be brief."),)), user("How do I reset my password?")),
)

CHANGES = {
    "tenant": replace(BASE, tenant_id="evil"),
    "namespace": replace(BASE, namespace="other"),
    "system": replace(BASE, messages=(Message(ROLE_SYSTEM, (("text", "Be long."),)), BASE.messages[1])),
    "tools": replace(BASE, tools=(Tool("search", "", "{}", False),)),
    "tool choice": replace(BASE, tool_choice=(3, "")),
    "format": replace(BASE, response_format=(2, "", "")),
    "schema": replace(BASE, response_format=(3, "x", "{}")),
    "temperature": replace(BASE, sampling=(("temperature", 0.0),)),
    "max tokens": replace(BASE, sampling=(("max_output_tokens", 5),)),
    "chunks": replace(BASE, chunks=(("1", "doc", "text"),)),
    "model": replace(BASE, model="gpt-4o"),
    "quality": replace(BASE, quality_target=0.9),
    "history": replace(BASE, messages=(user("Hi"), Message(ROLE_ASSISTANT, (("text", "Hello"),)), BASE.messages[1])),
}


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changes_the_answer_changes_key_and_scope(name: str) -> None:
    assert exact_key(CHANGES[name]) != exact_key(BASE)
    assert semantic_scope(CHANGES[name], EMBEDDER) != semantic_scope(BASE, EMBEDDER)


def test_the_floor_is_in_the_key_and_checked_by_policy_in_the_scope() -> None:
    demanding = replace(BASE, tier_floor=3)
    assert exact_key(demanding) != exact_key(BASE)
    assert semantic_scope(demanding, EMBEDDER) == semantic_scope(BASE, EMBEDDER)


def test_wording_of_the_last_turn_changes_the_key_alone() -> None:
    other = replace(BASE, messages=(BASE.messages[0], user("How can I reset my password?")))
    assert exact_key(other) != exact_key(BASE)
    assert semantic_scope(other, EMBEDDER) == semantic_scope(BASE, EMBEDDER)


def test_language_and_embedder_part_scopes() -> None:
    korean = replace(BASE, messages=(BASE.messages[0], user("비밀번호를 어떻게 바꾸나요?")))
    assert semantic_scope(korean, EMBEDDER) != semantic_scope(BASE, EMBEDDER)
    assert semantic_scope(BASE, "test@2") != semantic_scope(BASE, EMBEDDER)


def test_who_pays_and_labels_do_not_change_the_answer() -> None:
    same = replace(BASE, user_id="u", tags=(("a", "b"),), cache_mode=4, max_age_seconds=9.0)
    assert exact_key(same) == exact_key(BASE)


def test_decomposed_hangul_line_ends_and_outer_space_are_the_same_text() -> None:
    assert canonical_text("\u1112\u1161\u11ab글\r\n끝 ") == "한글\n끝"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("How are you?", Language.ENGLISH),
        ("Café – naïve “quote”", Language.ENGLISH),
        ("Docker 설치", Language.KOREAN),
        ("ㅋㅋ", Language.KOREAN),
        ("こんにちは", Language.OTHER),
        ("Привет", Language.OTHER),
        ("123!", Language.ENGLISH),
    ],
)
def test_language_is_the_script(text: str, expected: Language) -> None:
    assert language(text) is expected


def test_a_follow_up_is_embedded_with_what_it_follows() -> None:
    assert embedded_text(BASE) == "How do I reset my password?"
    turns = (user("How do I\nreset my password?"), Message(ROLE_ASSISTANT, (("text", "So."),)), user("And on a phone?"))
    assert embedded_text(replace(BASE, messages=turns)) == "How do I reset my password?\nAnd on a phone?"
    assert len(embedded_text(replace(BASE, messages=(user("word " * 200), *turns[1:])))) < 280


values = st.recursive(
    st.text() | st.binary() | st.integers() | st.booleans() | st.none() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4).map(tuple),
    max_leaves=12,
)


def typed(value: object) -> object:
    """Python calls 1, 1.0 and True equal; the canonical form must not."""
    if isinstance(value, tuple):
        return tuple(typed(item) for item in value)
    return (type(value).__name__, repr(value))


@given(st.lists(values, max_size=4), st.lists(values, max_size=4))
def test_the_canonical_form_is_injective(one: list, other: list) -> None:  # type: ignore[type-arg]  # Any value.
    assert (canonical(one) == canonical(other)) == (typed(tuple(one)) == typed(tuple(other)))


names = st.text(max_size=12)
nasty = st.sampled_from(["", "s4:", "t1:", "acme", "default", "s7:defaults0:", "\x00", "n", "i1;"]) | names


@given(nasty, nasty, nasty, nasty, nasty, nasty)
def test_no_text_forges_another_tenants_key(a: str, b: str, c: str, d: str, e: str, f: str) -> None:
    one = replace(BASE, tenant_id=a, namespace=b, messages=(user(c),))
    other = replace(BASE, tenant_id=d, namespace=e, messages=(user(f),))
    if a != d:
        assert exact_key(one) != exact_key(other)
        assert semantic_scope(one, EMBEDDER) != semantic_scope(other, EMBEDDER)


@given(st.lists(names, min_size=1, max_size=4), st.lists(names, min_size=1, max_size=4))
def test_moving_a_boundary_between_messages_changes_the_key(one: list[str], other: list[str]) -> None:
    texts_one, texts_other = ([canonical_text(text) for text in texts] for texts in (one, other))
    same = exact_key(replace(BASE, messages=tuple(map(user, one)))) == exact_key(
        replace(BASE, messages=tuple(map(user, other)))
    )
    assert same == (texts_one == texts_other)
