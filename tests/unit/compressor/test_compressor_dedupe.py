"""Copies go, the earliest stays; what differs in a number, a negation, a name or a date stays."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.compressor.dedupe import MARK, MARK_KO, Deduped, DedupeSettings, dedupe
from services.compressor.minhash import MinHasher, jaccard
from services.compressor.prompt import ASSISTANT, SYSTEM, TOOL, USER, Message

SETTINGS = DedupeSettings()
TERMS = (
    "Refunds are paid within 14 days of the purchase when the item is unused and in its box. The buyer pays for the "
    "parcel back to the warehouse in Oslo, and the money is returned to the card that was used for the order."
)
TERMS_KO = (
    "구매 후 14일 이내에 사용하지 않은 상품에 한하여 환불을 신청할 수 있습니다. 반품 배송비는 구매자가 부담하며, "
    "환불 금액은 주문에 사용한 카드로 입금됩니다. 상자와 구성품이 모두 있어야 하고, "
    "접수는 고객 센터 홈페이지에서 할 수 있습니다."
)
CODE = "```python\n" + "\n".join(f"def step_{number}(x):\n    return x + {number}" for number in range(20)) + "\n```"


def say(role: str, text: str, *, pinned: bool = False) -> Message:
    return Message(0, role, (text,), pinned=pinned)


def talk(first: str, second: str, role: str = USER) -> Deduped:
    return dedupe([say(role, first), say(ASSISTANT, "ok"), say(role, second), say(USER, "so?")], (), SETTINGS)


@pytest.mark.parametrize(
    ("second", "left"),
    [
        (TERMS, MARK),
        (TERMS.replace(" ", "  "), MARK),
        (TERMS_KO, MARK_KO),
        (f"Please look:\n\n{TERMS}\n\nWhat now?", f"Please look:\n\n{MARK}\n\nWhat now?"),
        (TERMS.replace("the item", "item").replace(", and", " and"), MARK),
        (CODE, MARK),
        (f"Again:\n{CODE}\nRight?", f"Again:\n{MARK}\nRight?"),
    ],
)
def test_copies_go(second: str, left: str) -> None:
    done = talk(f"{TERMS}\n\n{TERMS_KO}\n\n{CODE}", second)
    assert done.messages[2].texts == (left,)
    assert done.messages[0].texts == (f"{TERMS}\n\n{TERMS_KO}\n\n{CODE}",)
    assert [repeat.first for repeat in done.repeats] == [("message", 0)]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (TERMS, TERMS.replace("14", "30")),
        (TERMS, TERMS.replace("is unused", "is not unused")),
        (TERMS, TERMS.replace("are paid", "aren't paid")),
        (TERMS, TERMS.replace("Oslo", "Bergen")),
        (TERMS.replace("within", "only within"), TERMS),
        (TERMS, TERMS.replace("The buyer", "The seller")),
        (TERMS, TERMS + " Open on 3 May."),
        (TERMS, TERMS.replace("card", "card X-12")),
        (TERMS + " See order_id.", TERMS + " See orderId."),
        (TERMS, TERMS.replace("unused", "used")),
        (TERMS_KO, TERMS_KO.replace("14일", "30일")),
        (TERMS_KO, TERMS_KO.replace("신청할 수 있습니다", "신청할 수 없습니다")),
        (TERMS_KO, TERMS_KO.replace("구매자가", "판매자가")),
        (TERMS_KO, TERMS_KO.replace("이내에", "이후에")),
        (TERMS_KO, TERMS_KO.replace("사용하지 않은", "사용한")),
        (CODE, CODE.replace("x + 7", "x - 7")),
        (CODE, CODE.replace("    return", "  return")),
        ("def f(x):\n    return x", "def f(x):\n    return x"),  # Small code stays.
        ("yes, thank you", "yes, thank you"),  # So does what is short.
        (f"Q: {TERMS}\nA: yes", f"Q: {TERMS}\nA: yes"),  # Worked examples.
        (f'"{TERMS}"', f'"{TERMS}"'),  # A quotation under 400 characters.
        ("| a | b |\n" * 12, "| a | b |\n" * 12),
    ],
)
def test_traps_stay(first: str, second: str) -> None:
    done = talk(first, second)
    assert done.messages[2].texts == (second,)
    assert not done.repeats


def test_system_pinned_and_last_are_not_touched_but_are_first_copies() -> None:
    messages = [
        say(SYSTEM, TERMS),
        say(SYSTEM, TERMS),
        say(USER, TERMS, pinned=True),
        say(ASSISTANT, TERMS),
        say(USER, TERMS),
    ]
    done = dedupe(messages, (TERMS, "another passage"), SETTINGS)
    assert [message.texts[0] for message in done.messages] == [TERMS, TERMS, TERMS, MARK, TERMS]
    assert done.chunk_positions == (1,)
    assert [(repeat.place, repeat.first) for repeat in done.repeats] == [
        (("message", 3), ("message", 0)),
        (("chunk", 0), ("message", 0)),
    ]


def test_the_last_user_message_only_where_asked_for_and_only_large_equal_copies() -> None:
    long = f"{TERMS} {TERMS}"
    asked = f"{long}\n\n{TERMS}\n\nWhat is the deadline?"
    messages = [say(USER, f"{long}\n\n{TERMS}"), say(ASSISTANT, "ok"), say(USER, asked)]
    assert dedupe(messages, (), SETTINGS).messages[2].texts == (asked,)
    done = dedupe(messages, (), DedupeSettings(edit_last_user=True))
    assert done.messages[2].texts == (f"{MARK}\n\n{TERMS}\n\nWhat is the deadline?",)


def test_tool_results_are_data() -> None:
    large = '{"rows": [' + ", ".join(f'{{"id": {number}}}' for number in range(60)) + "]}"
    assert talk(large, large, TOOL).messages[2].texts == (MARK,)
    assert talk(large, large.replace("59", "60"), TOOL).messages[2].texts[0].startswith('{"rows"')
    assert talk(TERMS, TERMS, TOOL).messages[2].texts == (TERMS,)


def test_near_copies_of_chunks_go_and_the_first_stays() -> None:
    done = dedupe([say(USER, "so?")], (TERMS, TERMS.replace("the parcel", "parcel"), TERMS_KO), SETTINGS)
    assert done.chunk_positions == (0, 2)
    assert [repeat.kind for repeat in done.repeats] == ["near"]


PARAGRAPHS = st.sampled_from([TERMS, TERMS.replace("14", "15"), TERMS_KO, CODE, "short", "", "🙂" * 100, "\ud800" * 90])


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.sampled_from([SYSTEM, USER, ASSISTANT, TOOL]), st.lists(PARAGRAPHS, max_size=4)), max_size=8),
    st.lists(PARAGRAPHS, max_size=5),
    st.booleans(),
)
def test_properties(rows: list[tuple[str, list[str]]], chunks: list[str], edit_last: bool) -> None:
    messages = [say(role, "\n\n".join(parts)) for role, parts in rows]
    options = DedupeSettings(edit_last_user=edit_last)
    done = dedupe(messages, chunks, options)
    assert [message.role for message in done.messages] == [message.role for message in messages]
    for before, after in zip(messages, done.messages, strict=True):
        assert len(after.texts[0]) <= len(before.texts[0])
        assert before.role != SYSTEM or before == after
    again = dedupe(done.messages, [chunks[at] for at in done.chunk_positions], options)
    assert again.messages == done.messages
    assert len(again.chunk_positions) == len(done.chunk_positions)
    everything = "\n\n".join(
        [*(message.texts[0] for message in done.messages), *(chunks[at] for at in done.chunk_positions)]
    )
    for text in {part for _, parts in rows for part in parts} | set(chunks):
        assert text in everything  # No text is lost, only its copies.


def test_minhash_is_the_same_everywhere() -> None:
    hasher = MinHasher()
    one = hasher.shingles(["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog"])
    other = hasher.shingles(["the", "quick", "brown", "fox", "jumps", "over", "the", "lazy", "cat"])
    assert hasher.bands(one)[0].hex() == "00f27c7ff0fc2333138706000718233c0b427170ba61237c39011e7d9c5b28ec1b"
    assert len(hasher.bands(one)) == 16
    assert jaccard(one, one) == 1.0
    assert jaccard(one, other) == pytest.approx(6 / 8)
    assert jaccard(one[:0], one[:0]) == 0.0
    assert hasher.bands(hasher.shingles([])) == []


def test_a_long_conversation_is_fast() -> None:
    messages = [say((USER, ASSISTANT)[at % 2], f"{TERMS} Number {at}.\n\n{TERMS}") for at in range(2000)]
    started = time.process_time()
    done = dedupe(messages, (), SETTINGS)
    assert time.process_time() - started < 4
    assert len(done.repeats) == 1998  # The last user message keeps its own.
