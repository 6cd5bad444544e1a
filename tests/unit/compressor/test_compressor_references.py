"""A sentence is kept for a number, negation or identifier only where the question refers to it."""

from __future__ import annotations

import pytest

from services.compressor.references import dropped, numbers, references, referred


@pytest.mark.parametrize(
    ("question", "sentence", "expected"),
    [
        ("What happened in 2024?", "In 2024 it rained.", True),
        ("What happened in 2024?", "2024년에 비가 왔다.", True),
        ("What happened in 2024?", "In 2023 it rained.", False),
        ("5만 원짜리는?", "가격은 50,000원이다.", True),
        ("Who has three dogs?", "Ann has 3 dogs.", True),
        ("Who has three dogs?", "See figure 3.", False),
        ("두 명은 누구인가?", "2명은 학생이다.", False),  # No word in common beside the digit.
        ("학생 두 명은 누구인가?", "학생 2명이 왔다.", True),
        ("Where is order AB-1234?", "Order ab-1234 left.", True),
        ("Where is order AB-1234?", "Order AB-1235 left.", False),
        ("What does user_id mean?", "The user_id is a key.", True),
        ("`maxTokens`는 무엇인가?", "maxTokens는 한도이다.", True),
        ('Who said "no way out"?', "Then he said no way out of it.", True),
        ("Which cities are not in France?", "These cities are not in France but near.", True),
        ("Which cities are in France?", "These cities are not in France.", False),
        ("프랑스에 없는 도시는?", "그 도시는 프랑스에 없다.", True),
        ("프랑스에 없는 도시는?", "그 산은 높지 않다.", False),
        ("How many people live in Paris?", "In Paris live 2 million people.", True),
        ("How many people live in Paris?", "In Paris live many people.", False),
        ("How many people live in Paris?", "Rome has 3 million.", False),
        ("서울의 인구는 몇 명인가?", "서울의 인구는 940만 명이다.", True),
        ("When was the bridge built?", "The bridge was built in 1937.", True),
        ("Who built the bridge?", "The bridge was built in 1937.", False),
        ("", "In 2024 it rained, not snowed.", False),
        ("What?", "", False),
    ],
)
def test_what_a_question_refers_to(question: str, sentence: str, expected: bool) -> None:
    assert referred(question, sentence) is expected


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1,000 and 2.50", {"1000", "2.5"}),
        ("3만 5천 원", {"35000"}),
        ("12억", {"1200000000"}),
        ("3.5 million", {"3.5", "3500000"}),
        ("2024-01-05", {"2024", "1", "5"}),
        ("2024년 1월 5일", {"2024", "1", "5"}),
        ("twenty-five and a dozen", {"25"}),
        ("열두 명", {"12"}),
        ("１２３", {"123"}),
        ("1,2", {"1", "2"}),
        ("none", set()),
        ("9" * 5000, {"inf"}),
    ],
)
def test_values_of_numbers(text: str, values: set[str]) -> None:
    if values == {"inf"}:
        assert len(numbers(text)) <= 1  # Some number; no error and no long work.
    else:
        assert numbers(text) == values


def test_an_edit_that_loses_what_is_asked_for() -> None:
    asked = references("Which cities are not in France in 2024?")
    before = "These cities are not in France in 2024, they say."
    assert dropped(asked, before, "These cities are in France in 2024.")
    assert dropped(asked, before, "These cities are not in France.")
    assert not dropped(asked, before, "These cities are not in France in 2024.")
    assert not dropped(asked, "A mountain of 5 km.", "A mountain.")
