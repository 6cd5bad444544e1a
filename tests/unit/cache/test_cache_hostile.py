"""Hostile texts, broken vectors, damaged weights, and votes that are no evidence."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from tenth.type.v1 import chat_pb2

from mesh.catalog import CatalogError
from services.cache import features, traits
from services.cache.aliases import alias_of
from services.cache.choice import CHARACTERS_READ, explain, judge
from services.cache.embedding import has_direction
from services.cache.features import NEIGHBOURHOOD, PAIR, letters_of
from services.cache.files import weights
from services.cache.guards import differences
from services.cache.keys import ROLE_USER, Message, Question, canonical_text, exact_key, semantic_scope
from services.cache.messages import question_from_proto
from services.cache.namespaces import NamespacePolicy, parse_namespaces
from services.cache.policy import ExactOnly, exact_only, fresh
from services.cache.settings import CacheSettings
from services.cache.store import Entry, Found
from services.cache.verifier import Model, RiskPoint, Verifier, to_json
from tests.cache_verifier import VERIFIER

QUESTION = Question("acme", "default", (Message(ROLE_USER, (("text", "How do I reset the alarm?"),)),))
REWORDED = Question("acme", "default", (Message(ROLE_USER, (("text", "How do we reset the alarm?"),)),))
ENTRY = Entry("e0", "k0", "s", "acme", "default", "", "", "How can I reset the alarm?", b"", 0.0, 1e9, "m", 2,
              answer_digest="poison")  # fmt: skip
NEVER_ALONE = Model(PAIR, (0.0,) * len(PAIR), (1.0,) * len(PAIR), (0.0,) * len(PAIR), -9.0, (RiskPoint(0.5, 1.0, 1.0),))
BY_VOTES = Model(
    NEIGHBOURHOOD,
    tuple(1.5 * (name == "votes") for name in NEIGHBOURHOOD),
    (1.0,) * len(NEIGHBOURHOOD),
    tuple(20.0 * (name == "votes") for name in NEIGHBOURHOOD),
    0.0,
    (RiskPoint(0.5, 1.0, 1.0),),
)
VOTES = Verifier("v", {"strict/en/pair": NEVER_ALONE, "strict/en/neighbours": BY_VOTES}, {"strict/en": 0.0})
"""Serves when two vote for an answer, and never one alone."""


def served(*entries: Entry) -> bool:
    found = [Found(entry, 0.99 - 0.01 * place) for place, entry in enumerate(entries)]
    arguments: Any = (QUESTION, found, NamespacePolicy(), VOTES, lambda _: 1.0, 100.0)
    verdicts = judge(*arguments)
    explained = explain(*arguments)
    assert len(explained) == len(entries)
    assert any(verdict.serve for verdict in explained) == verdicts[0].serve, "inspect says what a lookup does"
    return verdicts[0].serve


def test_two_who_were_answered_alike_are_evidence() -> None:
    assert served(ENTRY, replace(ENTRY, entry_id="e1", turn="How to reset the alarm?"))
    assert not served(ENTRY, replace(ENTRY, entry_id="e1", answer_digest="another"))


def test_an_alias_is_no_second_witness() -> None:
    aliases = [
        alias_of(ENTRY, REWORDED, f"k{number}", f"How to reset the alarm {'?' * number}", "s", 1.0)
        for number in range(1, 9)
    ]
    assert not served(ENTRY, *aliases)
    assert not served(*aliases), "nor are they among themselves"
    other = replace(ENTRY, entry_id="e2", turn="How to reset the alarm?")
    assert served(*aliases, other)


def test_one_user_who_asks_often_is_one_witness() -> None:
    own = [replace(ENTRY, entry_id=f"e{number}", owner="mallory", user_id="mallory") for number in range(16)]
    assert not served(*own)
    assert served(*own, replace(ENTRY, entry_id="shared"))


def test_of_one_witness_the_wording_speaks_that_no_guard_refuses() -> None:
    off = replace(ENTRY, entry_id="e1", owner="ann", turn="How do I not reset the alarm?")
    on = replace(ENTRY, entry_id="e2", owner="ann")
    steep = judge(QUESTION, [Found(off, 0.999), Found(on, 0.998)], NamespacePolicy(), VERIFIER, lambda _: 1.0, 100.0)
    assert steep[0].serve
    assert steep[0].found.entry.entry_id == "e2"


def test_stale_entries_vote_neither_in_a_lookup_nor_in_its_explanation() -> None:
    gone = replace(ENTRY, entry_id="e1", expires=50.0)
    assert not served(ENTRY, gone)


def test_long_neighbours_are_not_all_read() -> None:
    long = [
        replace(ENTRY, entry_id=f"e{number}", turn="alarm " * 160, answer_digest=str(number)) for number in range(16)
    ]
    found = [Found(entry, 0.99) for entry in long]
    assert len(judge(QUESTION, found, NamespacePolicy(), VERIFIER, lambda _: 1.0, 100.0)) == 1
    huge = Found(replace(ENTRY, turn="alarm " * CHARACTERS_READ), 0.99)
    assert judge(QUESTION, [huge], NamespacePolicy(), VERIFIER, lambda _: 1.0, 100.0) == []


def test_long_texts_do_not_stay_in_memory() -> None:
    for number in range(100):
        text = f"{number} " + "ab cd ef " * 90
        letters_of(text)
        traits.analyse(text)
    for remembered in (features._letters_of_long, traits._remembered_long):
        assert remembered.cache_info().currsize <= 32
        assert remembered.cache_info().maxsize == 32


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_number_is_no_certainty(value: float) -> None:
    names = VERIFIER.models["strict/en/pair"].names
    assert VERIFIER.models["strict/en/pair"].probability((value,) * len(names)) == 0.0
    verdicts = judge(QUESTION, [Found(ENTRY, value)], NamespacePolicy(), VERIFIER, lambda _: 1.0, 100.0)
    assert not any(verdict.serve for verdict in verdicts)


@pytest.mark.parametrize("vector", [[0.0] * 4, [math.nan, 1.0], [math.inf, 0.0], [-math.inf, 1.0], []])
def test_a_vector_without_direction(vector: list[float]) -> None:
    assert not has_direction(vector)
    assert has_direction([0.0, 3.0])


def damaged(change: str) -> str:
    content = to_json(VERIFIER)
    rows = content["models"]["strict/en/pair"]["features"]
    if change == "unknown feature":
        rows["moon"] = [0, 1, 1]
    elif change == "missing feature":
        del rows["letters"]
    elif change == "another order":
        content["models"]["strict/en/pair"]["features"] = dict(reversed(rows.items()))
    elif change == "mean":
        rows["letters"][0] = math.nan
    elif change == "weight":
        rows["letters"][2] = math.inf
    elif change == "scale":
        rows["letters"][1] = math.nan
    elif change == "intercept":
        content["models"]["strict/en/pair"]["intercept"] = math.nan
    elif change == "threshold":
        content["models"]["strict/en/pair"]["curve"][0][0] = -1.0
    elif change == "risk":
        content["models"]["strict/en/pair"]["curve"][0][1] = -1.0
    elif change == "floor":
        content["floors"]["strict/en"] = math.nan
    elif change == "basis":
        content["models"]["strict/en/magic"] = content["models"].pop("strict/en/pair")
    elif change == "models":
        content["models"] = []
    return json.dumps(content)


CHANGES = ["unknown feature", "missing feature", "another order", "mean", "weight", "scale", "intercept", "threshold",
           "risk", "floor", "basis", "models"]  # fmt: skip
BROKEN = {
    **{change: damaged(change).encode() for change in CHANGES},
    "truncated": damaged("")[:900].encode(),
    "empty": b"",
    "a list": b"[]",
    "no embedder": b"{}",
    "not text": b"\xff\xfe\x00",
    "nested": b"[" * 100_000,
}


@pytest.mark.parametrize("content", BROKEN.values(), ids=BROKEN)
def test_damaged_weights_end_the_start_naming_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "words.json").write_bytes(content)
    with pytest.raises(SystemExit, match=r"TENTH_CACHE_WEIGHTS_DIR: .*words\.json"):
        weights(tmp_path, "words@1")


def test_weights_of_another_embedder_serve_nothing_by_meaning(tmp_path: Path) -> None:
    (tmp_path / "words.json").write_text(damaged(""))
    assert weights(tmp_path, "words@1") == VERIFIER
    assert weights(tmp_path, "words@2") is None
    assert weights(tmp_path / "absent", "words@1") is None


@pytest.mark.parametrize("value", ["-1", "0", "0.0", ".nan", ".inf", "1001", "1e3", "true", "'5'", "[]", ""])
def test_a_bound_that_is_none_is_refused(value: str) -> None:
    rules = f"tenants:\n  acme:\n    faq:\n      max_wrong_hits_per_thousand: {value}\n"
    with pytest.raises(CatalogError, match="max_wrong_hits_per_thousand"):
        parse_namespaces(rules, "namespaces.yaml", NamespacePolicy())


@pytest.mark.parametrize("name", ["max_wrong_hits_per_thousand", "ttl_seconds"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 0.0])
def test_a_setting_that_is_no_bound_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValidationError):
        CacheSettings(**{name: value})  # type: ignore[arg-type]  # Fields by name.


DIFFERENT = [
    ("What does 🍎 mean?", "What does 🍌 mean?"),
    ("Is x ≤ y here?", "Is x ≥ y here?"),
    ("Is x < y here?", "Is x > y here?"),
    ("What does && do in a shell?", "What does || do in a shell?"),
    ("What does == do?", "What does = do?"),
    ("What is 10² of that?", "What is 10³ of that?"),
    ("What is chapter Ⅱ about?", "What is chapter Ⅲ about?"),
    ("단계 ① 어떻게 하나요?", "단계 ② 어떻게 하나요?"),
    ("↑ 버튼은 뭐예요?", "↓ 버튼은 뭐예요?"),
    ("Show me \ue001 please", "Show me \ue002 please"),
    ("How do I en\u00adable the alarm?", "How do I dis\u00adable the alarm?"),
    ("How do I en\u200bable the alarm?", "How do I disable the alarm?"),
    ("Can I can\u2060cel it?", "Can I not can\u2060cel it?"),
    ("\u202eHow do I enable it?", "How do I dis\u200fable it?"),
    ("ＯＮ 하는 법 알려 줘, turn it ＯＮ", "ＯＦＦ 하는 법 알려 줘, turn it ＯＦＦ"),
    ("１０일 뒤에 환불되나요?", "２０일 뒤에 환불되나요?"),
    ("What is -5 plus 3?", "What is 5 plus 3?"),
    ("What is (1 + 2) * 3?", "What is 1 + 2 * 3?"),
    ("What is 6 / 3?", "What is 6 - 3?"),
    ("Why does it fail? if a:\n    b\nc", "Why does it fail? if a:\n    b\n    c"),
    ("  a:\n  b: how?", "a:\n  b: how?"),
    ("알람을 켜\u200b는 방법", "알람을 끄\u200b는 방법"),
]


@pytest.mark.parametrize(("one", "other"), DIFFERENT, ids=ascii)
def test_what_only_signs_and_hidden_letters_tell_apart(one: str, other: str) -> None:
    assert differences(one, other)
    assert differences(other, one)


@pytest.mark.parametrize(
    "text", ["🍎🍎", "???", "…", "\u200b\u200b", "\u202e!", "\ue000" * 50, "^^", "!= ==", "👩‍👩‍👧"]
)
def test_without_a_letter_nothing_is_compared_by_meaning(text: str) -> None:
    asked = replace(QUESTION, messages=(Message(ROLE_USER, (("text", text),)),))
    assert exact_only(asked, True) is ExactOnly.NO_LETTERS


def test_hidden_letters_and_width_alone_are_no_difference() -> None:
    assert not differences("How do I reset\u200b it in 10 days?", "How do I re\u00adset it in １０ days?")


@pytest.mark.parametrize(
    "text", ["\ud800 reset", "비밀번호 reset\udfff", "\x00", "a" * 1_000_000, "🍎" * 100_000, "e\u0301" * 50_000]
)
def test_no_text_breaks_keys_and_guards(text: str) -> None:
    asked = replace(QUESTION, messages=(Message(ROLE_USER, (("text", text),)),))
    assert exact_key(asked) != exact_key(QUESTION)
    assert semantic_scope(asked, "e")
    differences(text, "How do I reset it?")


def test_an_entry_from_the_future_has_no_age() -> None:
    """The clock was set back by an hour after it was stored."""
    asked = replace(QUESTION, max_age_seconds=60.0)
    assert fresh(replace(ENTRY, created=4000.0), asked, 400.0)
    assert not fresh(replace(ENTRY, created=410.0), asked, 400.0), "clocks of two replicas differ a little"
    assert not fresh(replace(ENTRY, created=4000.0), QUESTION, 400.0)


def base() -> chat_pb2.CompletionRequest:
    part = chat_pb2.ContentPart
    return chat_pb2.CompletionRequest(
        messages=[
            chat_pb2.ChatMessage(role=chat_pb2.ROLE_SYSTEM, parts=[part(text="Be brief.")]),
            chat_pb2.ChatMessage(
                role=chat_pb2.ROLE_USER,
                parts=[part(image=chat_pb2.ImageContent(url="https://x/a.png")), part(text="What is this?")],
            ),
            chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT, parts=[part(text="A cat.")]),
            chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, parts=[part(text="And its name?")]),
        ],
        tools=[chat_pb2.Tool(name="find", description="d", parameters_json_schema="{}")],
        retrieved_chunks=[
            chat_pb2.RetrievedChunk(chunk_id="1", text="one"),
            chat_pb2.RetrievedChunk(chunk_id="2", text="two"),
        ],
    )


def changed(number: int) -> chat_pb2.CompletionRequest:
    request = base()
    if number == 0:
        request.response_format.kind = chat_pb2.RESPONSE_FORMAT_KIND_JSON_OBJECT
    elif number == 1:
        request.tool_choice.mode = chat_pb2.TOOL_CHOICE_MODE_NONE
    elif number == 2:
        request.sampling.seed = 0
    elif number == 3:
        request.sampling.stop.append("\n")
    elif number == 4:
        request.sampling.stop.extend(["", "\n"])
    elif number == 5:
        request.sampling.top_logprobs_count = 2
    elif number == 6:
        request.messages[0].role = chat_pb2.ROLE_USER
    elif number == 7:
        request.messages[1].name = "ann"
    elif number == 8:
        request.messages[1].parts[0].image.detail = "low"
    elif number == 9:
        request.messages[1].parts.reverse()
    elif number == 10:
        request.retrieved_chunks.reverse()
    elif number == 11:
        request.retrieved_chunks[0].text = "one\n  two"
    elif number == 12:
        request.retrieved_chunks[0].text = "  one\n  two"
    elif number == 13:
        request.messages[0].parts[0].text = "Be"
        request.messages[0].parts.add(text=" brief.")
    elif number == 14:
        request.tools[0].parameters_json_schema = '{"a":1}'
    elif number == 15:
        request.sampling.temperature = 0.0
    elif number == 16:
        request.policy.model = "big"
    elif number == 17:
        request.messages[3].name = "ann"
    elif number == 18:
        request.messages[2].tool_calls.add(id="1", name="find", arguments_json="{}")
    elif number == 19:
        request.response_format.kind = chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA
        request.response_format.json_schema = "{}"
    elif number == 20:
        request.messages[3].tool_call_id = "1"
    return request


def test_whatever_changes_the_answer_changes_key_and_scope() -> None:
    questions = [question_from_proto(request, "acme") for request in (base(), *map(changed, range(21)))]
    assert len({exact_key(question) for question in questions}) == 22
    assert len({semantic_scope(question, "e") for question in questions}) == 22


def test_indentation_of_the_first_of_several_lines_is_part_of_the_text() -> None:
    """One YAML has two keys beside each other, the other a key within a key."""
    assert canonical_text("  a:\n  b: 1") != canonical_text("a:\n  b: 1")
    assert canonical_text("\n \n  a:\n  b: 1 \n") == canonical_text("  a:\n  b: 1")
    assert canonical_text("  one line ") == "one line"
