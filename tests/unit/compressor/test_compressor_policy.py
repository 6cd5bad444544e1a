"""Modes: never longer, deterministic, within the window or refused."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import TenthError
from services.compressor.choosing import fitted_chunks
from services.compressor.documents import Documents
from services.compressor.modes import Mode, plans
from services.compressor.policy import compress
from services.compressor.prompt import ASSISTANT, SYSTEM, USER, Message, Prompt
from services.compressor.weights import load

PLANS = plans(8000, 30)


@dataclass(frozen=True)
class Characters:
    """Every character is a token."""

    def text(self, text: str) -> int:
        return len(text)

    def message(self, message: Message) -> int:
        return 3 + sum(map(len, message.texts))

    def chunk(self, text: str) -> int:
        return 4 + len(text)

    def prompt(self, prompt: Prompt) -> int:
        return 3 + sum(map(self.message, prompt.messages)) + sum(map(self.chunk, prompt.chunks))


COUNTER = Characters()
FITTED = load()


def messages(*texts: tuple[str, str]) -> tuple[Message, ...]:
    return tuple(Message(at, role, (text,)) for at, (role, text) in enumerate(texts))


TALK = messages(
    (SYSTEM, "You are a helpful assistant.   Be   brief."), (USER, "one  " * 3), (ASSISTANT, "two"), (USER, "three")
)


def test_off_changes_nothing() -> None:
    prompt = Prompt(TALK, ("a", "a", "b"))
    done = compress(prompt, PLANS[Mode.OFF], COUNTER, None, 0, None)
    assert done.prompt is prompt
    assert (done.steps, done.token_count, done.chunk_positions) == ((), done.original_token_count, (0, 1, 2))


def test_safe_cleans_and_keeps_the_conversation() -> None:
    done = compress(Prompt(TALK), PLANS[Mode.SAFE], COUNTER, None, 1000, None)
    assert done.prompt.messages[0].texts == ("Be brief.",)
    assert [step.strategy for step in done.steps] == ["cleanup"]
    assert done.original_token_count - done.token_count == sum(step.removed_token_count for step in done.steps)
    assert done.stable_prefix_message_count == 2  # All before the last answer.


def test_an_emptied_system_message_is_dropped() -> None:
    talk = messages((SYSTEM, "You are a helpful assistant."), (USER, "hi"))
    done = compress(Prompt(talk), PLANS[Mode.SAFE], COUNTER, None, 0, None)
    assert [message.role for message in done.prompt.messages] == [USER]


def test_aggressive_drops_the_oldest_turns() -> None:
    done = compress(Prompt(TALK), PLANS[Mode.AGGRESSIVE], COUNTER, None, 1000, None)
    assert [message.index for message in done.prompt.messages] == [0, 3]
    assert done.stable_prefix_message_count == 1


def test_the_window_limits_every_mode_but_off() -> None:
    talk = messages((SYSTEM, "s" * 20), (USER, "a" * 100), (ASSISTANT, "b" * 100), (USER, "c" * 20))
    done = compress(Prompt(talk), PLANS[Mode.SAFE], COUNTER, None, 160, 100)
    assert [message.index for message in done.prompt.messages] == [0, 3]
    with pytest.raises(TenthError) as caught:
        compress(Prompt(talk), PLANS[Mode.OFF], COUNTER, None, 160, 100)
    assert (caught.value.reason, caught.value.field) == ("PROMPT_TOO_LONG", "request.messages")
    # What must stay leaves 100 - 49 tokens: the answer is shorter then, but there is one.
    assert compress(Prompt(talk), PLANS[Mode.SAFE], COUNTER, None, 100, 100).token_count == 49
    with pytest.raises(TenthError):
        compress(Prompt(talk), PLANS[Mode.SAFE], COUNTER, None, 49, 100)


def test_chunks_give_way_to_the_window_best_last() -> None:
    chunks = ("Of bananas.", "Refunds take two weeks.", "Of pears and plums.", "A refund is paid by card.", "Of tea.")
    prompt = Prompt(messages((USER, "refund?")), chunks)
    choice = fitted_chunks(prompt.messages, chunks, Documents(len, 0), FITTED)
    done = compress(prompt, PLANS[Mode.SAFE], COUNTER, choice, 110, 40)
    assert done.token_count <= 70
    assert set(done.chunk_positions) <= {1, 3}
    assert done.prompt.settled


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([SYSTEM, USER, ASSISTANT]), st.text("ab  \n가", max_size=40)), min_size=1, max_size=8
    ),
    st.lists(st.text("abc 가나", max_size=20), max_size=8),
    st.sampled_from(list(Mode)),
    st.integers(0, 400),
)
def test_never_longer_never_different(said: list[tuple[str, str]], chunks: list[str], mode: Mode, window: int) -> None:
    prompt = Prompt(messages(*said), tuple(chunks))
    choice = fitted_chunks(prompt.messages, chunks, Documents(len, 0), FITTED) if chunks else None
    try:
        done = compress(prompt, PLANS[mode], COUNTER, choice, window, None)
    except TenthError as error:
        if error.reason != "PROMPT_TOO_LONG" or window == 0:
            raise
        return
    assert done.token_count <= done.original_token_count
    assert done.token_count == COUNTER.prompt(done.prompt)
    assert not window or done.token_count < window
    assert compress(prompt, PLANS[mode], COUNTER, choice, window, None) == done
    assert all(text in chunks[at] for at, text in zip(done.chunk_positions, done.prompt.chunks, strict=True))
    indices = [message.index for message in done.prompt.messages]
    assert indices == sorted(indices)
    assert 0 <= done.stable_prefix_message_count <= len(indices)
