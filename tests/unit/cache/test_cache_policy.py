"""What bypasses the cache, what is stored, what is served."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.cache.keys import ROLE_TOOL, ROLE_USER, Message, Question, Tool
from services.cache.policy import (
    Answer,
    BypassReason,
    CachePolicy,
    ExactOnly,
    NotStoredReason,
    bypass_reason,
    exact_only,
    not_stored_reason,
)

POLICY = CachePolicy()


def question(text: str, **changes: object) -> Question:
    base = Question("acme", "default", (Message(ROLE_USER, (("text", text),)),))
    return replace(base, **changes)  # type: ignore[arg-type]  # Fields by name.


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("How do I reset my password?", None),
        ("What is the weather like?", BypassReason.TIME_BOUND),
        ("What is the price of gold?", BypassReason.TIME_BOUND),
        ("What are today's headlines", BypassReason.TIME_BOUND),
        ("What time is it?", BypassReason.TIME_BOUND),
        ("I knowingly did it, snow fell", None),
        ("지금 몇 시야?", BypassReason.TIME_BOUND),
        ("오늘 서울 날씨 어때?", BypassReason.TIME_BOUND),
        ("비트코인시세 알려줘", BypassReason.TIME_BOUND),
        ("단어제한을 어떻게 설정하나요?", None),
        ("안내일정은 어떻게 만드나요?", None),
        ("비밀번호를 어떻게 변경하나요?", None),
        ("Write to ann.lee@example.com for me", BypassReason.PERSONAL_DATA),
        ("전화번호는 010-1234-5678 입니다", BypassReason.PERSONAL_DATA),
        ("Call me at (415) 555-0132", BypassReason.PERSONAL_DATA),
        ("제 주민번호 900101-1234567 맞나요", BypassReason.PERSONAL_DATA),
        ("My card is 4111 1111 1111 1111", BypassReason.PERSONAL_DATA),
        ("Where is order #48213377?", BypassReason.PERSONAL_DATA),
        ("주문번호 20240117 배송 조회", BypassReason.PERSONAL_DATA),
        ("My name is Ann, hello", BypassReason.PERSONAL_DATA),
        ("제 이름은 김철수예요", BypassReason.PERSONAL_DATA),
        ("In 2024, how do I order 3 copies in case of loss?", None),
    ],
)
def test_bypass_by_text(text: str, reason: BypassReason | None) -> None:
    assert bypass_reason(question(text), POLICY) == reason


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"cache_mode": 1}, BypassReason.CACHE_MODE_OFF),
        ({"sampling": (("temperature", 0.5),)}, None),
        ({"sampling": (("temperature", 0.51),)}, BypassReason.TEMPERATURE),
        ({"tools": (Tool("search", "", "", False),)}, None),
        ({"tools": (Tool("search", "", "", False), Tool("pay", "", "", True))}, BypassReason.TOOL_SIDE_EFFECTS),
        ({"chunks": (("", "", "x" * 400_001),)}, BypassReason.TOO_LARGE),
        ({"chunks": (("", "", "the price today, ann@example.com"),)}, None),
    ],
)
def test_bypass_by_circumstances(changes: dict[str, object], reason: BypassReason | None) -> None:
    assert bypass_reason(question("How do I reset it?", **changes), POLICY) == reason


def test_personal_data_of_earlier_turns_counts_and_their_time_does_not() -> None:
    last = Message(ROLE_USER, (("text", "And then?"),))
    earlier = question("x", messages=(Message(ROLE_USER, (("text", "I am ann@example.com"),)), last))
    assert bypass_reason(earlier, POLICY) is BypassReason.PERSONAL_DATA
    earlier = question("x", messages=(Message(ROLE_USER, (("text", "What is the weather today?"),)), last))
    assert bypass_reason(earlier, POLICY) is None


@pytest.mark.parametrize(
    ("asked", "reads_korean", "why"),
    [
        (question("Hello"), False, None),
        (question("안녕"), False, ExactOnly.LANGUAGE),
        (question("How do I write 안녕?"), False, ExactOnly.LANGUAGE),
        (question("안녕"), True, None),
        (question("こんにちは"), False, ExactOnly.LANGUAGE),
        (question("こんにちは"), True, None),
        (question("   "), False, ExactOnly.EMPTY),
        (question("x", messages=(Message(ROLE_USER, (("text", "a"), ("image", "auto x"))),)), False, ExactOnly.MEDIA),
        (question("x", messages=(Message(ROLE_TOOL, (("text", "a"),)),)), False, ExactOnly.NO_USER_TURN),
    ],
)
def test_what_may_only_hit_exactly(asked: Question, reads_korean: bool, why: ExactOnly | None) -> None:
    assert exact_only(asked, reads_korean) == why


GOOD = Answer(finish_reason=1, model="m", tier=2, is_empty=False)


@pytest.mark.parametrize(
    ("changes", "answer", "share_only", "reason"),
    [
        ({}, GOOD, False, None),
        ({}, replace(GOOD, finish_reason=3), False, None),
        ({}, GOOD, True, NotStoredReason.SHARE_ONLY),
        ({"cache_mode": 2}, GOOD, False, NotStoredReason.CACHE_MODE_READ),
        ({"cache_mode": 3}, GOOD, False, None),
        ({}, replace(GOOD, finish_reason=2), False, NotStoredReason.TRUNCATED),
        ({}, replace(GOOD, finish_reason=0), False, NotStoredReason.UNFINISHED),
        ({}, replace(GOOD, finish_reason=4), False, NotStoredReason.UNFINISHED),
        ({}, replace(GOOD, is_empty=True), False, NotStoredReason.EMPTY),
        ({"tier_floor": 3}, GOOD, False, NotStoredReason.BELOW_TIER_FLOOR),
        ({"tier_floor": 2}, GOOD, False, None),
        ({"model": "n"}, GOOD, False, NotStoredReason.OTHER_MODEL),
    ],
)
def test_what_is_stored(
    changes: dict[str, object], answer: Answer, share_only: bool, reason: NotStoredReason | None
) -> None:
    assert not_stored_reason(question("Hi", **changes), answer, share_only) == reason
