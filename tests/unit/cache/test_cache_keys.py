"""The exact key and the semantic scope: what is the same request, and that nothing else can look like it."""

from __future__ import annotations

import unicodedata
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
    answer_digest,
    canonical,
    canonical_text,
    embedded_text,
    exact_key,
    language,
    own_scope,
    scopes_of,
    semantic_scope,
)
from services.cache.store import entry_id

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


SEPARATE = [
    ("What is 2² ?", "What is 22 ?"),
    ("１０ percent", "10 percent"),
    ("ＡＢＣ", "ABC"),
    ("ﬁle", "file"),
    ("x ≠ y", "x = y"),
    ("½ cup", "1/2 cup"),
    ("US", "us"),
    ("re-sign", "resign"),
    ("if a:\n    b\nc", "if a:\n    b\n    c"),
    ("a  b", "a b"),
    ("a\u00a0b", "a b"),
    ("a\u200bb", "ab"),
    ("ㄱ", "\u1100"),
    ("정수", "점수"),
    ("I", "İ"),
]


@pytest.mark.parametrize(("one", "other"), SEPARATE, ids=ascii)
def test_canonical_text_merges_no_two_questions(one: str, other: str) -> None:
    """What compatibility forms (NFKC), case folding or squeezed white space would merge stays apart."""
    assert exact_key(replace(BASE, messages=(user(one),))) != exact_key(replace(BASE, messages=(user(other),)))


@given(st.text(), st.text())
def test_texts_with_one_key_look_the_same(one: str, other: str) -> None:
    def seen(text: str) -> str:
        lines = unicodedata.normalize("NFD", text.replace("\r\n", "\n")).rstrip().split("\n")
        while len(lines) > 1 and not lines[0].strip():
            del lines[0]
        return "\n".join(lines) if len(lines) > 1 else lines[0].strip()

    same = canonical_text(one) == canonical_text(other)
    assert same == (seen(one) == seen(other))


def test_addresses_of_pictures_are_compared_by_the_byte() -> None:
    one, other = (
        Message(ROLE_USER, (("image", f"auto https://x/{name}.png"),)) for name in ("한", "\u1112\u1161\u11ab")
    )
    assert exact_key(replace(BASE, messages=(one,))) != exact_key(replace(BASE, messages=(other,)))


@given(nasty, nasty, nasty, nasty, nasty, nasty)
def test_scopes_and_entries_of_two_users_or_tenants_never_meet(a: str, b: str, c: str, d: str, e: str, f: str) -> None:
    one = replace(BASE, tenant_id=a, user_id=b, namespace=c)
    other = replace(BASE, tenant_id=d, user_id=e, namespace=f)
    mine, others = scopes_of(one, EMBEDDER), scopes_of(other, EMBEDDER)
    if a != d:
        assert set(mine).isdisjoint(others)
        ids = {entry_id(exact_key(one)), entry_id(exact_key(one), b)}
        assert ids.isdisjoint({entry_id(exact_key(other)), entry_id(exact_key(other), e)})
    elif c == f and b != e and b and e:
        assert set(mine) & set(others) == {semantic_scope(one, EMBEDDER)}
        assert entry_id(exact_key(one), b) != entry_id(exact_key(other), e)
    assert (len(mine) == 2) == bool(b)


def test_nobody_can_be_called_like_another_scope() -> None:
    scope = semantic_scope(BASE, EMBEDDER)
    assert own_scope(scope, "a") not in (scope, own_scope(scope, "b"), own_scope(own_scope(scope, "a"), ""))
    assert scopes_of(BASE, EMBEDDER) == (scope,)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ('{"a":1,"b":[2]}', '{"b": [2], "a": 1}', True),
        ('{"a":1}', '{"a":"1"}', False),
        ('{"a":1}', '{"a":1.0}', False),
        ('{"a":1}', '{"a":true}', False),
        ('{"a":null}', '{"a":"null"}', False),
        ('{"a":["number","1"]}', '{"a":1}', False),
        ('{"a":{}}', '{"a":["object"]}', False),
        ('{"a":1,"a":2}', '{"a":2}', False),
        ('{"a":[1,2]}', '{"a":[2,1]}', False),
        ("{", "{ ", False),
        ("x", '"x"', False),
        ("[" * 100_000, "[" * 100_001, False),
    ],
    ids=str,
)
def test_arguments_of_tool_calls_agree_by_what_they_say(one: str, other: str, same: bool) -> None:
    assert (answer_digest("", [("f", one)]) == answer_digest("", [("f", other)])) == same


@given(nasty, nasty, nasty, nasty, nasty, nasty)
def test_the_digest_of_an_answer_keeps_text_and_calls_apart(a: str, b: str, c: str, d: str, e: str, f: str) -> None:
    same = answer_digest(a, [(b, c)]) == answer_digest(d, [(e, f)])
    if same:
        assert (canonical_text(a), b) == (canonical_text(d), e)
    assert answer_digest(a, [(b, c)]) != answer_digest(a, [(b, c), (e, f)])
    assert answer_digest(a) != answer_digest(a, [(b, c)])
