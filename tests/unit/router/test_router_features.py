"""Complexity by features: what is hard rates higher than what is easy, alike in English and Korean."""

from __future__ import annotations

import time

import pytest

from services.router.catalog import Tier
from services.router.classifier import Thresholds, judge, wanted_tier
from services.router.features import Prompt, extract, is_korean
from services.router.settings import RouterSettings

_SETTINGS = RouterSettings()
THRESHOLDS = Thresholds(_SETTINGS.simple_below, _SETTINGS.complex_from, _SETTINGS.quality_target)

PAIRS = [
    # English, Korean, tier
    ("How do I reset my password?", "비밀번호를 어떻게 재설정하나요?", Tier.SIMPLE),
    ("What are your opening hours?", "영업시간이 어떻게 되나요?", Tier.SIMPLE),
    ("Where is my parcel?", "제 택배는 어디에 있나요?", Tier.SIMPLE),
    ("Can I change my delivery address?", "배송지를 변경할 수 있나요?", Tier.SIMPLE),
    ("Thanks, that helped!", "감사합니다, 도움이 됐어요!", Tier.SIMPLE),
    ("What is the capital of France?", "프랑스의 수도는 어디인가요?", Tier.SIMPLE),
    ("Summarize the following article in three sentences.", "다음 기사를 세 문장으로 요약해 주세요.", Tier.MEDIUM),
    ("Translate this paragraph into Korean.", "이 문단을 영어로 번역해 주세요.", Tier.MEDIUM),
    (
        "Explain the difference between a savings account and a fixed deposit.",
        "보통예금과 정기예금의 차이를 설명해 주세요.",
        Tier.MEDIUM,
    ),
    (
        "Write a Python function that returns the longest increasing subsequence of an array, with unit tests.",
        "배열에서 가장 긴 증가 부분 수열을 반환하는 파이썬 함수를 단위 테스트와 함께 작성해 줘.",
        Tier.COMPLEX,
    ),
    (
        "A train travels 120 km in 2 hours, then 90 km in 3 hours. What is its average speed over the total distance? "
        "Reason step by step.",
        "기차가 2시간 동안 120 km를 가고, 그다음 3시간 동안 90 km를 갔습니다. 전체 거리에 대한 평균 속력은 얼마인가요? "
        "단계별로 추론해 주세요.",
        Tier.COMPLEX,
    ),
    (
        "Prove that the square root of 2 is irrational, and then analyze where the argument would fail for 4.",
        "2의 제곱근이 무리수임을 증명하고, 4에 대해서는 논증이 어디에서 성립하지 않는지 분석하세요.",
        Tier.COMPLEX,
    ),
    (
        "Design the architecture of a payment system for 10 million users and discuss the trade-offs in detail.",
        "천만 명이 쓰는 결제 시스템의 아키텍처를 설계하고 장단점을 자세히 논하세요.",
        Tier.COMPLEX,
    ),
]
KOREAN_REASONING = [
    "철수는 영희보다 크고 영희는 민수보다 크다. 누가 가장 작은가?",
    "사과 12개를 3명이 똑같이 나누고 2개씩 먹으면 모두 몇 개가 남나요?",
    "다음 중 옳은 것을 고르고 그 근거를 제시하시오.",
    "세 공의 색깔이 모두 같을 확률을 구하시오.",
    "만약 모든 까마귀가 검다면, 검지 않은 새는 까마귀일 수 있는가? 논리적으로 답하라.",
    "한 사람은 거짓말만 하고 한 사람은 진실만 말한다. 어떤 질문을 해야 길을 알 수 있을까?",
    "x + 3 = 10 일 때 x의 값은?",
]


def tier_of(question: str, quality_target: float = 0.9) -> Tier:
    return wanted_tier(judge(extract(Prompt(question))), quality_target, THRESHOLDS)


@pytest.mark.parametrize(("english", "korean", "tier"), PAIRS)
def test_equivalents_land_in_the_same_tier(english: str, korean: str, tier: Tier) -> None:
    assert (tier_of(english), tier_of(korean)) == (tier, tier)


@pytest.mark.parametrize("question", KOREAN_REASONING)
@pytest.mark.parametrize("quality_target", [0.05, 0.5, 0.9])
def test_korean_reasoning_is_never_simple(question: str, quality_target: float) -> None:
    assert tier_of(question, quality_target) > Tier.SIMPLE


def test_hard_questions_rate_above_easy_ones() -> None:
    easy = [text for pair in PAIRS if pair[2] is Tier.SIMPLE for text in pair[:2]]
    hard = [text for pair in PAIRS if pair[2] is Tier.COMPLEX for text in pair[:2]] + KOREAN_REASONING

    def rate(text: str) -> float:
        return judge(extract(Prompt(text))).complexity

    wins = sum(rate(high) > rate(low) for high in hard for low in easy)
    assert wins / (len(hard) * len(easy)) >= 0.98  # The area under the ROC curve.


def test_languages() -> None:
    assert extract(Prompt("안녕하세요")).language == "ko"
    assert extract(Prompt("pandas DataFrame에서 groupby 후 merge가 느린데 왜 그런가요?")).language == "ko"
    assert extract(Prompt("Hello there")).language == "en"
    assert extract(Prompt("Как восстановить пароль?")).language == "other"
    assert extract(Prompt("")).language == "en"
    about_korean = Prompt("What does it say?", chunk_count=2, chunk_hangul_share=0.9)
    assert is_korean(about_korean, extract(about_korean))


def test_what_surrounds_the_question_counts() -> None:
    def rate(**more: int | bool) -> float:
        return judge(extract(Prompt("Is this allowed?", **more))).complexity  # type: ignore[arg-type]  # Any of the fields.

    plain = rate()
    for more in ({"user_turn_count": 9}, {"chunk_chars": 20_000}, {"tool_count": 4}, {"wants_schema": True}):
        assert rate(**more) > plain


def test_every_feature_is_bounded_whatever_the_text() -> None:
    for question in ("", " ", "a" * 100_000, "가" * 100_000, "1 + 1 = 2\n" * 5000, "```\n" * 999, "\x00\ud7a3🎉" * 99):
        found = extract(Prompt(question)).numbers()
        most = {"words": 1e6, "log_chars": 20, "log_lines": 20, "log_longest_line": 20, "question_marks": 5}
        most["word_chars"] = 2
        assert not {name: value for name, value in found.items() if not 0.0 <= value <= most.get(name, 1.0)}


def test_a_long_question_costs_no_more_than_its_ends() -> None:
    text = "Compare these two contracts. " * 30_000
    started = time.thread_time()
    extract(Prompt(text))
    assert time.thread_time() - started < 1
