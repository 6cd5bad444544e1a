"""What bypasses the cache, what is stored, what is served."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.cache.keys import ROLE_ASSISTANT, ROLE_TOOL, ROLE_USER, Message, Question, Tool
from services.cache.policy import (
    Answer,
    BypassReason,
    CachePolicy,
    ExactOnly,
    NotStoredReason,
    bypass_reason,
    exact_only,
    judge,
    not_stored_reason,
)
from services.cache.store import Entry, Found

POLICY = CachePolicy()
NOW = 1_000_000.0


def question(text: str, **changes: object) -> Question:
    base = Question("acme", "default", (Message(ROLE_USER, (("text", text),)),))
    return replace(base, **changes)  # type: ignore[arg-type]  # Fields by name.


def found(turn: str, similarity: float, **changes: object) -> Found:
    entry = Entry("id", "key", "scope", "acme", "default", "", turn, turn, b"", NOW - 10, NOW + 10, "m", 2)
    return Found(replace(entry, **changes), similarity)  # type: ignore[arg-type]  # Fields by name.


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


ASKED = "How do I reset my password?"
PARAPHRASE = "How can I reset my password?"


@pytest.mark.parametrize(
    ("asked", "candidate", "serve"),
    [
        (question(ASKED), found(PARAPHRASE, 0.97), True),
        (question(ASKED), found(PARAPHRASE, 0.9499), False),
        (question(ASKED), found("How do I not reset my password?", 0.99), False),
        (question(ASKED), found(PARAPHRASE, 0.97, expires=NOW), False),
        (question(ASKED, max_age_seconds=5.0), found(PARAPHRASE, 0.97), False),
        (question(ASKED, max_age_seconds=15.0), found(PARAPHRASE, 0.97), True),
        (question(ASKED, tier_floor=3), found(PARAPHRASE, 0.97), False),
        (question(ASKED, tier_floor=3), found(PARAPHRASE, 0.97, tier=3), True),
        (question(ASKED, tier_floor=1), found(PARAPHRASE, 0.97, tier=3), True),
    ],
)
def test_what_is_served(asked: Question, candidate: Found, serve: bool) -> None:
    verdict = judge(asked, candidate, POLICY, embedder_reads_korean=False, now=NOW)
    assert verdict.serve is serve, verdict.reasons
    assert any(line.startswith("refused") for line in verdict.reasons) is not serve


def test_korean_with_an_embedder_that_cannot_read_it_needs_letters_and_words_and_says_so() -> None:
    same, other = "비밀번호 변경하는 방법 알려주세요", "아이디 변경하는 방법 알려주세요"
    asked = question("비밀번호 변경하는 방법을 알려줘")
    good = judge(asked, found(same, 0.93), POLICY, embedder_reads_korean=False, now=NOW)
    assert good.serve
    assert any("Hangul" in line for line in good.reasons)
    bad = judge(asked, found(other, 0.99), POLICY, embedder_reads_korean=False, now=NOW)
    assert not bad.serve
    assert any("'비밀번호'" in line for line in bad.reasons)
    able = judge(asked, found(same, 0.93), POLICY, embedder_reads_korean=True, now=NOW)
    assert not able.serve, "an embedder that reads Korean is held to its own threshold"


def test_follow_ups_need_their_own_words_to_agree() -> None:
    history = (Message(ROLE_USER, (("text", ASKED),)), Message(ROLE_ASSISTANT, (("text", "So."),)))
    asked = question("x", messages=(*history, Message(ROLE_USER, (("text", "and for a phone?"),))))
    verdict = judge(asked, found("and for a laptop?", 0.99), POLICY, embedder_reads_korean=False, now=NOW)
    assert not verdict.serve
    verdict = judge(asked, found("and for the phone?", 0.99), POLICY, embedder_reads_korean=False, now=NOW)
    assert verdict.serve, verdict.reasons
