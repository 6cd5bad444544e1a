"""All strategies together: never longer, within its budget, the same again, nothing broken that must stay whole."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mesh.errors import TenthError
from services.compressor.catalog import Model
from services.compressor.choosing import FittedChunks, fitted_chunks
from services.compressor.documents import Documents
from services.compressor.exchanges import exchanges, protected_positions
from services.compressor.history_weights import history_settings
from services.compressor.modes import TOOLS, Mode, overridden, plans
from services.compressor.policy import Compressed, compress
from services.compressor.prompt import ASSISTANT, SYSTEM, TOOL, USER, Call, Message, Prompt, last_user
from services.compressor.protected import hard_spans
from services.compressor.tokens import TokenCounters
from services.compressor.vectors import rough_tokens
from services.compressor.weights import load

FITTED = load()
PLANS = plans(400, 150, history_settings())
COUNTERS = TokenCounters(Path("nowhere"), 8 << 20)
COUNTERS.load([])
COUNTER = COUNTERS.of(Model("m", "cl100k_base", "m", 128_000))
MEMORY = Documents(COUNTERS.plain, 32 << 20)
WORKING = [mode for mode in Mode if mode is not Mode.OFF]

PROSE = (
    "Refunds are paid within 14 days to the card that was used.",
    "The office in Busan is closed on Sundays, but not in December.",
    "환불은 구매 후 14일 안에 신청해야 하며, 배송비는 돌려드리지 않습니다.",
    "Our warehouse   moved to Lyon in 2019.  It now has forty people.\n\n\n\nThey work in shifts.",
    "As an AI language model, I am happy to help. I hope this helps!",
    "You are a helpful assistant.",
    "Emoji: 👩‍👩‍👧‍👦 🇰🇷 🏳️‍🌈, and a flag.",
    "مرحبا بالعالم and שלום עולם, written both ways.",
    "Broken: \ud83d alone, and \udc00 too.",
    "한글을 맥에서 쓰면 이렇게 됩니다.",
    "Who signed the lease for the second floor, and when did Ann Lee say that it ends?",
    "Zero\u200bwidth and\u00a0hard blanks,   many    of     them.",
)
WHOLE = (
    "```python\ndef  f(x):\n    return  x + 1\n```",
    '{"order":  "A-17",   "paid": true}',
    "https://example.com/a/b?c=d&e=f",
    "SELECT  id, name FROM users  WHERE id = 7;",
    "| a  | b |\n|----|---|\n| 1  | 2 |",
    "ann.lee@example.com",
    '"It ends in   May," she said.',
)
"""Texts with a protected span each."""


@st.composite
def texts(draw: st.DrawFn) -> str:
    parts = draw(st.lists(st.sampled_from((*PROSE, *WHOLE)) | st.text(max_size=12), max_size=6))
    return draw(st.sampled_from([" ", "\n", "\n\n", "\n\n\n\n"])).join(parts)


@st.composite
def prompts(draw: st.DrawFn) -> Prompt:
    """Talks as clients send them, and some as they should not: results without calls, an empty one, odd roles."""
    messages: list[Message] = []

    def say(role: str, text: str, **more: object) -> None:
        messages.append(Message(len(messages), role, (text,), **more))  # type: ignore[arg-type]  # Of the right kinds.

    for number in range(draw(st.integers(0, 9))):
        role = draw(st.sampled_from([SYSTEM, USER, ASSISTANT, "exchange", TOOL]))
        if role == "exchange":
            messages.append(Message(len(messages), ASSISTANT, (), calls=(Call(f"c{number}", "find", '{"q":  1}'),)))
            say(TOOL, draw(texts()), answers=f"c{number}")
        else:
            say(role, draw(texts()), pinned=draw(st.integers(0, 9)) == 0)
    if not messages or draw(st.booleans()):
        say(USER, draw(texts()))
    chunks = draw(st.lists(texts(), max_size=5))
    return Prompt(tuple(messages), tuple(chunks))


def choice(prompt: Prompt) -> FittedChunks | None:
    return fitted_chunks(prompt.messages, prompt.chunks, MEMORY, FITTED) if prompt.chunks else None


def run(prompt: Prompt, mode: Mode, window: int = 0, budget: int | None = None) -> Compressed:
    return compress(prompt, PLANS[mode], COUNTER, choice(prompt), window, None, None, budget)


def pairs(messages: tuple[Message, ...]) -> tuple[set[str], set[str]]:
    return {call.id for message in messages for call in message.calls}, {
        message.answers for message in messages if message.answers
    }


@settings(deadline=None, max_examples=150)
@given(prompts(), st.sampled_from(list(Mode)))
def test_never_longer_and_nothing_broken(prompt: Prompt, mode: Mode) -> None:
    done = run(prompt, mode)
    assert done.token_count == COUNTER.prompt(done.prompt) <= COUNTER.prompt(prompt) == done.original_token_count
    assert done.original_token_count - done.token_count == sum(step.removed_token_count for step in done.steps)
    assert run(prompt, mode) == done
    # Messages keep their places and roles, tools' results their calls.
    before = {message.index: message for message in prompt.messages}
    indexes = [message.index for message in done.prompt.messages]
    assert indexes == sorted(set(indexes))
    assert all(message.role == before[message.index].role for message in done.prompt.messages)
    assert all(message.calls == before[message.index].calls for message in done.prompt.messages)
    called, answered = pairs(prompt.messages)
    called_now, answered_now = pairs(done.prompt.messages)
    assert {each for each in called_now if each in answered} == {each for each in answered_now if each in called}
    # The last question stays, pinned and system messages too, but for a contentless one.
    last = last_user(prompt.messages)
    kept = set(indexes)
    assert last is None or all(message.index in kept for message in prompt.messages[last:])
    assert all(message.index in kept for message in prompt.messages if message.pinned)
    # Chunks are parts of what they were, in order.
    assert list(done.chunk_positions) == sorted(set(done.chunk_positions))
    assert len(done.chunk_positions) == len(done.prompt.chunks)


@settings(deadline=None, max_examples=150)
@given(prompts(), st.sampled_from(WORKING))
def test_what_came_out_comes_out_again_as_it_is(prompt: Prompt, mode: Mode) -> None:
    once = run(prompt, mode)
    again = run(once.prompt, mode)
    assert again.prompt == once.prompt
    assert again.steps == ()


def pieces(chunk: str) -> list[str]:
    """The units of a chunk, those that one protected span runs across as one."""
    document = MEMORY.prepare([chunk])[0]
    result, end = [""], 0
    for unit in document.units:
        if any(left < unit.start < right for left, right in document.hard()):
            result[-1] += chunk[end : unit.end]
        else:
            result.append(chunk[end : unit.end])
        end = unit.end
    return result


def made_of(text: str, parts: list[str]) -> bool:
    """True when the text is some of the parts, whole and in order, but for white space at its end."""
    reached = {0}
    for part in parts:
        if any(text[at:] == part.rstrip() for at in reached):
            return True
        reached |= {at + len(part) for at in reached if text.startswith(part, at)}
    return len(text) in reached


@settings(deadline=None, max_examples=150)
@given(prompts(), st.sampled_from(WORKING))
def test_protected_spans_stay_byte_for_byte_where_their_message_stays_whole(prompt: Prompt, mode: Mode) -> None:
    done = run(prompt, mode)
    before = {message.index: message for message in prompt.messages}
    shortened = {step.strategy for step in done.steps} & {"history", "dedupe"}
    for message in done.prompt.messages:
        for old, new in zip(before[message.index].texts, message.texts, strict=True):
            for span in hard_spans(old):
                text = old[span.start : span.end]
                # History and dedupe take out whole passages, never a part of a span.
                assert text in new or (shortened and message.role != SYSTEM)
    for at, text in zip(done.chunk_positions, done.prompt.chunks, strict=True):
        assert made_of(text, pieces(prompt.chunks[at]))


@settings(deadline=None, max_examples=150)
@given(prompts(), st.sampled_from(WORKING), st.integers(1, 300))
def test_a_budget_holds_or_the_error_says_by_how_much(prompt: Prompt, mode: Mode, budget: int) -> None:
    try:
        done = run(prompt, mode, budget=budget)
    except TenthError as caught:
        error: TenthError | None = caught
    else:
        error = None
    if error is not None:
        assert error.reason == "BUDGET_TOO_SMALL"
        over = int(error.metadata["over_token_count"])
        assert over == int(error.metadata["input_token_count"]) - budget > 0
        # What may not go is alone over it: so it is without all else.
        groups = exchanges(prompt.messages)
        standing = protected_positions(prompt.messages, groups)
        bare = Prompt(tuple(message for at, message in enumerate(prompt.messages) if at in standing), prompt.chunks)
        assert COUNTER.prompt(bare) >= budget
        return
    assert done.token_count <= budget
    assert run(done.prompt, mode, budget=budget).prompt == done.prompt


def test_a_budget_that_can_be_held_by_dropping_all_that_may_go_is_held() -> None:
    said = tuple(Message(at, (USER, ASSISTANT)[at % 2], (f"{at}: {PROSE[at % 3]} " * 8,)) for at in range(1, 12))
    question = Message(20, USER, ("Who pays for the delivery?",))
    prompt = Prompt((Message(0, SYSTEM, ("Be brief.",)), *said, question), PROSE[:4] * 2)
    least = COUNTER.prompt(Prompt((prompt.messages[0], question)))
    for budget in range(least, least + 400, 13):
        assert run(prompt, Mode.SAFE, budget=budget).token_count <= budget
    with pytest.raises(TenthError) as caught:
        run(prompt, Mode.SAFE, budget=least - 1)
    assert caught.value.metadata["over_token_count"] == "1"


def test_tools_that_the_turn_has_no_use_for_go_when_asked() -> None:
    names = ("get_weather", "book_flight", "send_mail", "play_music", "set_alarm", "find_recipe", "translate", "add")
    functions = ({"name": name, "description": f"To {name.replace('_', ' ')}.", "parameters": {}} for name in names)
    tools = tuple(json.dumps({"type": "function", "function": function}) for function in functions)
    prompt = Prompt((Message(0, USER, ("Please book a flight to Lyon.",)),), tools=tools)
    assert run(prompt, Mode.SAFE).prompt.tools == tools
    plan = overridden(PLANS[Mode.SAFE], {TOOLS: True}, PLANS)
    done = compress(prompt, plan, COUNTER, None, 0, None)
    assert tools[1] in done.prompt.tools
    assert len(done.prompt.tools) < len(tools)
    assert [tools[at] for at in done.tool_positions] == list(done.prompt.tools)
    assert compress(done.prompt, plan, COUNTER, None, 0, None).prompt == done.prompt


@pytest.mark.parametrize("mode", WORKING)
@pytest.mark.parametrize("shape", ["chunks", "history"])
def test_a_prompt_of_200k_tokens_is_done_in_seconds(shape: str, mode: Mode) -> None:
    """A loose bound, for a machine under load; the bench has the figure."""
    passages = [
        f"Passage {number} of the manual. {PROSE[number % 3]} Item {number * 7919}. " * 4 for number in range(1900)
    ]
    if shape == "chunks":
        prompt = Prompt((Message(0, USER, ("Who pays for the delivery of item 7919?",)),), tuple(passages))
        chunks = fitted_chunks(prompt.messages, prompt.chunks, Documents(rough_tokens, 64 << 20), FITTED)
    else:
        said = (Message(at, (USER, ASSISTANT)[at % 2], (text,)) for at, text in enumerate(passages))
        prompt, chunks = Prompt((*said, Message(1900, USER, ("And item 7919?",)))), None
    started = time.process_time()
    done = compress(prompt, PLANS[mode], COUNTER, chunks, 0, None)
    assert time.process_time() - started < 10
    assert done.original_token_count > 200_000
