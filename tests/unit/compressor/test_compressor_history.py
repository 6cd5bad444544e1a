"""History by relevance: what must stay and what is asked for stays, in the budget, with roles and pairs intact."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import TenthError
from services.compressor.errors import Reason
from services.compressor.exchanges import may_follow
from services.compressor.history import STUB, HistorySettings, select_history
from services.compressor.history_relevance import Vectors
from services.compressor.history_weights import load_weights
from services.compressor.prompt import ASSISTANT, SYSTEM, TOOL, USER, Call, Message, last_user

WEIGHTS, EXPONENT = load_weights()
SETTINGS = HistorySettings(WEIGHTS, EXPONENT)


def say(role: str, text: str = "x", *, calls: str = "", answers: str = "", pinned: bool = False) -> Message:
    ids = tuple(Call(name, "f", "{}") for name in calls.split())
    return Message(0, role, (text,), calls=ids, answers=answers, pinned=pinned)


def cost(message: Message) -> int:
    return 4 + sum(map(len, message.texts)) // 4


def chat(*texts: str) -> list[Message]:
    return [say((USER, ASSISTANT)[at % 2], text) for at, text in enumerate(texts)]


FILLER = [
    "The weather was nice again and we walked around for a while, nothing special to report from here.",
    "That sounds lovely, thank you for telling me about it, I hope that you have a good rest of the week.",
]
FILLER_KO = [
    "오늘은 날씨가 좋아서 한참 걸었어요. 특별한 일은 없었고 그냥 그렇게 하루가 지나갔습니다.",
    "좋은 하루를 보내셨군요. 이야기해 주셔서 고맙습니다. 남은 한 주도 편안하게 보내시길 바랍니다.",
]


@pytest.mark.parametrize(
    ("fact", "reply", "question", "filler"),
    [
        ("My wifi router is an Asus AX58 in the attic.", "Noted.", "Which router do I have?", FILLER),
        ("Order A-1234 arrived broken.", "Sorry about A-1234.", "What about order A-1234?", FILLER),
        ("We meet on 12 May 2024 at the harbour.", "Good.", "What happens on May 12?", FILLER),
        ("제 공유기는 다락방에 있는 아수스 제품입니다.", "알겠습니다.", "공유기가 어디에 있다고 했죠?", FILLER_KO),
        ("회의는 2024년 5월 12일 항구에서 합니다.", "네.", "5월 12일에는 무엇을 하나요?", FILLER_KO),
    ],
)
def test_what_is_asked_for_stays(fact: str, reply: str, question: str, filler: list[str]) -> None:
    talk = chat(*filler * 4, fact, reply, *filler * 12, question)
    kept = select_history(talk, sum(map(cost, talk)) // 4, cost, SETTINGS)
    assert 8 in kept.positions
    assert 8 not in kept.stubbed
    assert kept.positions[-1] == len(talk) - 1
    assert "dropped by words" in kept.reason


def test_the_author_that_the_question_names_comes_first() -> None:
    talk = [
        Message(at, (USER, ASSISTANT)[at % 2], (f"I bought a thing in town: {at}.",), name=("Anna", "Ben")[at % 2])
        for at in range(40)
    ]
    kept = select_history([*talk, say(USER, "What did Ben buy?")], 300, cost, SETTINGS)
    whole = [at for at in kept.positions[:-1] if at not in kept.stubbed]
    names = [talk[at].name for at in whole if at < 38]
    assert names.count("Ben") > 2 * names.count("Anna")


def test_vectors_find_what_words_do_not() -> None:
    talk = chat(*FILLER * 4, "My automobile is red.", "Nice.", *FILLER * 8, "colour of the car")
    rows = np.zeros((len(talk), 4), np.float32)
    rows[:, 1] = 1
    rows[8] = [1, 0, 0, 0]
    kept = select_history(talk, 150, cost, SETTINGS, Vectors(np.array([1, 0, 0, 0], np.float32), rows))
    assert 8 in kept.positions
    assert 8 not in kept.stubbed
    assert kept.method == "embedding similarity and words"


def test_vectors_of_another_shape_are_refused() -> None:
    talk = chat(*FILLER * 4, "why")
    with pytest.raises(ValueError, match="vectors of shape"):
        select_history(talk, 40, cost, SETTINGS, Vectors(np.zeros(3), np.zeros((2, 3))))


def test_a_short_follow_up_is_read_with_the_question_before() -> None:
    talk = chat(
        "The blue paint costs nine euros.", "Good.", *FILLER * 8, "How much is the blue paint?", "Nine.", "Why?"
    )
    kept = select_history(talk, 130, cost, SETTINGS)
    assert 0 in kept.positions
    assert 0 not in kept.stubbed


def test_one_word_of_its_own_outweighs_the_question_before() -> None:
    talk = chat("The key is under the mat.", "Good.", *FILLER * 8, "Where is the key?")
    kept = select_history(talk, 130, cost, SETTINGS)
    assert 0 in kept.positions
    assert 0 not in kept.stubbed


def test_the_newest_turn_comes_before_the_relevant() -> None:
    talk = chat("red paint " * 5, "red " * 5, *FILLER * 4, "a" * 80, "b" * 80, "red paint?")
    kept = select_history(talk, 60, cost, SETTINGS)
    assert {len(talk) - 3, len(talk) - 2} <= set(kept.positions) - set(kept.stubbed)


def test_a_gap_keeps_one_stub_where_roles_would_meet() -> None:
    talk = [*chat("old question " * 9, "old answer " * 9), say(USER, "pinned " * 4, pinned=True), *chat("x" * 90)]
    talk[3] = say(ASSISTANT, "y" * 300)
    talk.append(say(USER, "and now?"))
    kept = select_history(talk, 40, cost, SETTINGS)
    assert [message.role for message in kept.messages] == [USER, ASSISTANT, USER]
    assert kept.messages[1].texts == (STUB,)
    assert kept.stubbed == (3,)
    loose = select_history(talk, 40, cost, HistorySettings(WEIGHTS, EXPONENT, keep_roles_apart=False))
    assert STUB not in {message.texts[0] for message in loose.messages}


def test_what_must_stay_over_the_budget_is_an_error_that_says_by_how_much() -> None:
    talk = [say(SYSTEM, "s" * 400), *chat("a" * 400, "b" * 400, "c" * 400)]
    with pytest.raises(TenthError) as caught:
        select_history(talk, 150, cost, SETTINGS)
    assert caught.value.reason == Reason.BUDGET_TOO_SMALL
    assert caught.value.metadata["over_token_count"] == "58"
    assert caught.value.metadata["protected_token_count"] == "208"


def test_long_messages_can_stay_by_their_sentences() -> None:
    long = (
        "Here is what we know. "
        + "The sky was grey on that day. " * 30
        + "The key is under the mat. "
        + "Bye now. " * 30
    )
    talk = chat("hello there", long, *FILLER * 2, "Where is the key?")
    options = HistorySettings(WEIGHTS, EXPONENT, shorten=True, shorten_over_tokens=40)
    kept = select_history(talk, 160, cost, options)
    assert kept.shortened == (1,)
    text = kept.messages[kept.positions.index(1)].texts[0]
    assert text.startswith("Here is what we know.")
    assert "The key is under the mat." in text
    assert kept.token_count <= 160


ROLES = st.sampled_from([SYSTEM, USER, USER, ASSISTANT, ASSISTANT, TOOL])
TEXTS = st.one_of(
    st.text(max_size=60),
    st.sampled_from(["", "🙂🙂", "\ud800", "한국어 문장입니다. 5월 3일.", "hello world 12", "اردو mixed"]),
)


@st.composite
def talks(draw: st.DrawFn) -> list[Message]:
    messages: list[Message] = []
    open_ids: list[str] = []
    for number in range(draw(st.integers(1, 30))):
        role, text = draw(ROLES), draw(TEXTS)
        pinned = draw(st.integers(0, 12)) == 0
        if role == TOOL:
            if open_ids:
                answered = open_ids.pop(draw(st.integers(0, len(open_ids) - 1)))
                messages.append(say(TOOL, text, answers=answered, pinned=pinned))
            continue
        calls = ""
        if role == ASSISTANT and draw(st.booleans()):
            ids = [f"{number}.{call}" for call in range(draw(st.integers(1, 2)))]
            open_ids += ids
            calls = " ".join(ids)
        messages.append(say(role, text, calls=calls, pinned=pinned))
    return messages or [say(USER)]


def _least(talk: list[Message], options: HistorySettings) -> int:
    """The smallest budget that there is an answer for."""
    try:
        select_history(talk, -1, cost, options)
    except TenthError as error:
        return int(error.metadata["protected_token_count"])
    raise AssertionError("a negative budget was met")


@settings(deadline=None)
@given(talks(), st.integers(0, 400), st.booleans(), st.booleans())
def test_selection_properties(talk: list[Message], budget: int, apart: bool, shorten: bool) -> None:
    options = HistorySettings(WEIGHTS, EXPONENT, keep_roles_apart=apart, shorten=shorten, shorten_over_tokens=10)
    least = _least(talk, options)
    if budget < least:
        with pytest.raises(TenthError) as caught:
            select_history(talk, budget, cost, options)
        assert caught.value.metadata["over_token_count"] == str(least - budget)
        return
    kept = select_history(talk, budget, cost, options)
    assert kept.token_count == sum(map(cost, kept.messages)) <= max(budget, 0)
    assert list(kept.positions) == sorted(set(kept.positions))
    assert sorted({*kept.positions, *kept.dropped}) == list(range(len(talk)))
    for at, message in zip(kept.positions, kept.messages, strict=True):
        assert message.role == talk[at].role
        assert message.calls == talk[at].calls
        assert message == talk[at] or at in {*kept.shortened, *kept.stubbed}
    last = last_user(talk)
    for at, message in enumerate(talk):
        if message.role == SYSTEM or message.pinned or (last is not None and at >= last):
            assert message == kept.messages[kept.positions.index(at)]
    called = {call.id for message in kept.messages for call in message.calls}
    answered = {message.answers for message in kept.messages if message.role == TOOL}
    assert answered <= called
    assert called & {message.answers for message in talk if message.role == TOOL} <= answered
    again = select_history(kept.messages, budget, cost, options)
    assert again.messages == kept.messages
    assert select_history(talk, budget, cost, options) == kept


@settings(deadline=None)
@given(st.lists(st.tuples(st.booleans(), TEXTS), min_size=1, max_size=25), st.integers(20, 300))
def test_what_strict_templates_allow_stays_allowed(turns: list[tuple[bool, str]], budget: int) -> None:
    talk = [say(SYSTEM, "s")]
    for number, (uses_tool, text) in enumerate(turns):
        talk.append(say(USER, text))
        if uses_tool:
            talk += [say(ASSISTANT, "", calls=f"{number}"), say(TOOL, text, answers=f"{number}")]
        talk.append(say(ASSISTANT, text * 3))
    talk.append(say(USER, "and?"))
    kept = select_history(talk, budget, cost, SETTINGS)
    roles = ["", *(message.role for message in kept.messages if message.role != SYSTEM)]
    assert all(may_follow(left, right) for left, right in pairwise(roles))


@pytest.mark.parametrize(("message_count", "seconds"), [(4_000, 1.0), (20_000, 5.0)])
def test_long_histories_are_fast(message_count: int, seconds: float) -> None:
    # About 50 tokens each: 200,000 and a million in all. CPU time, for other tests run beside.
    talk = [
        say((USER, ASSISTANT)[at % 2], f"In week {at} we spoke of topic {at * 7919 % 1000} and of plan {at % 13}. " * 3)
        for at in range(message_count)
    ]
    talk.append(say(USER, "What did we say of topic 421 and of plan 7?"))
    started = time.process_time()
    kept = select_history(talk, sum(map(cost, talk)) // 3, cost, SETTINGS)
    assert time.process_time() - started < seconds
    assert kept.dropped


@pytest.mark.parametrize("share", [0.25, 0.5, 0.75, 0.9])
def test_the_room_left_for_stubs_is_found_closely(share: float) -> None:
    talk = chat(*(f"In week {at} we spoke of topic {at * 7919 % 50} at length. " * 2 for at in range(400)), "Topic 21?")
    budget = int(share * sum(map(cost, talk)))
    kept = select_history(talk, budget, cost, SETTINGS)
    assert 0.95 * budget <= kept.token_count <= budget
