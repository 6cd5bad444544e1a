"""History stays within its budget and whole; plain BM25."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.compressor.history import keep_history
from services.compressor.prompt import ASSISTANT, SYSTEM, TOOL, USER, Call, Message, last_user
from services.compressor.strategies import rank_by_bm25, terms


def say(role: str, text: str = "x", *, calls: str = "", answers: str = "", pinned: bool = False) -> Message:
    ids = tuple(Call(name, "f", "{}") for name in calls.split())
    return Message(0, role, (text,), calls=ids, answers=answers, pinned=pinned)


def cost(message: Message) -> int:
    return len(message.texts[0])


TALK = [
    say(SYSTEM, "s" * 10),
    say(USER, "a" * 10),
    say(ASSISTANT, "b" * 10),
    say(USER, "c" * 10),
    say(ASSISTANT, "d" * 5, calls="1 2"),
    say(TOOL, "e" * 5, answers="1"),
    say(TOOL, "f" * 5, answers="2"),
    say(ASSISTANT, "g" * 5),
    say(USER, "h" * 10),
]


@pytest.mark.parametrize(
    ("budget", "kept"),
    [
        (1000, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (70, [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        (69, [0, 3, 4, 5, 6, 7, 8]),
        (50, [0, 3, 4, 5, 6, 7, 8]),
        (49, [0, 8]),
        (0, [0, 8]),
    ],
)
def test_newest_turns_first_and_calls_with_their_results(budget: int, kept: list[int]) -> None:
    assert keep_history(TALK, budget, cost) == kept


def test_pinned_messages_stay_and_bring_their_exchange() -> None:
    talk = [*TALK]
    talk[5] = say(TOOL, "e" * 5, answers="1", pinned=True)
    assert keep_history(talk, 0, cost) == [0, 4, 5, 6, 8]


def test_a_running_tool_exchange_is_kept_whole() -> None:
    talk = [*TALK, say(ASSISTANT, "i" * 50, calls="9"), say(TOOL, "j" * 50, answers="9")]
    assert keep_history(talk, 0, cost) == [0, 8, 9, 10]


@st.composite
def talks(draw: st.DrawFn) -> list[Message]:
    messages: list[Message] = []
    open_ids: list[str] = []
    for number in range(draw(st.integers(1, 25))):
        role = draw(st.sampled_from([SYSTEM, USER, USER, ASSISTANT, TOOL]))
        text = "x" * draw(st.integers(1, 30))
        pinned = draw(st.integers(0, 9)) == 0
        if role == TOOL:
            if open_ids:
                at = draw(st.integers(0, len(open_ids) - 1))
                messages.append(say(TOOL, text, answers=open_ids.pop(at), pinned=pinned))
            continue
        calls = ""
        if role == ASSISTANT and draw(st.booleans()):
            ids = [f"{number}.{call}" for call in range(draw(st.integers(1, 3)))]
            open_ids += ids
            calls = " ".join(ids)
        messages.append(say(role, text, calls=calls, pinned=pinned))
    return messages or [say(USER)]


@settings(deadline=None)
@given(talks(), st.integers(0, 400))
def test_history_properties(talk: list[Message], budget: int) -> None:
    kept = keep_history(talk, budget, cost)
    assert kept == sorted(set(kept))  # Order is kept, nothing twice.
    least = keep_history(talk, -1, cost)
    if sum(cost(talk[at]) for at in least) <= budget:
        assert sum(cost(talk[at]) for at in kept) <= budget  # Within the budget whenever that can be.
    else:
        assert kept == least
    last = last_user(talk)
    assert all(
        at in kept
        for at, item in enumerate(talk)
        if item.role == SYSTEM or item.pinned or (last is not None and at >= last)
    )
    called = {call.id for at in kept for call in talk[at].calls}
    answered = {talk[at].answers for at in kept if talk[at].role == TOOL}
    assert answered <= called  # No result without its call ...
    everywhere = {item.answers for item in talk if item.role == TOOL}
    assert (called & everywhere) <= answered  # ... and no call without the results that it had.
    more = keep_history(talk, budget + 50, cost)
    assert set(kept) <= set(more)


@pytest.mark.parametrize(
    ("question", "chunks", "best"),
    [
        (
            "When was the Eiffel Tower built?",
            ["Pasta is boiled in water.", "The Eiffel Tower was built between 1887 and 1889.", "Paris is in France."],
            1,
        ),
        (
            "환불은 며칠 안에 신청해야 하나요?",
            ["배송은 보통 이틀이 걸립니다.", "회원 가입은 무료입니다.", "구매 후 14일 안에 환불을 신청할 수 있습니다."],
            2,
        ),
    ],
)
def test_bm25_finds_the_chunk_in_both_languages(question: str, chunks: list[str], best: int) -> None:
    scores = rank_by_bm25(question, chunks).scores
    assert max(range(3), key=lambda at: scores[at]) == best


def test_bm25_of_nothing() -> None:
    assert rank_by_bm25("", []).scores == ()
    assert rank_by_bm25("", ["", "a"]).scores == (0.0, 0.0)


def test_terms() -> None:
    assert terms("The GPU가 환불을") == ["gpu", "가", "환불", "불을"]
