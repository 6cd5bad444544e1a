"""Answer checks: faults in both languages, and answers that look like faults and are none."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.answer_checks import Answer, ToolUse, Wanted, fault

CUT, EMPTY, REFUSES = "cut off", "empty", "refuses or does not know"
LANGUAGE, REPEATS = "in another language than the question", "repeats itself"
NO_CODE = "without the code that was asked for"
LONG_ENGLISH = "The opening hours are from nine in the morning until six in the evening on all weekdays, as always."
LONG_KOREAN = "영업시간은 평일 오전 아홉 시부터 오후 여섯 시까지이며 주말에는 쉽니다."


@pytest.mark.parametrize(
    ("question", "text", "expected"),
    [
        ("What is the capital of France?", "", EMPTY),
        ("What is the capital of France?", " \n ", EMPTY),
        ("What is the capital of France?", "...", EMPTY),
        # Refusals.
        ("Who won the cup in 1998?", "I don't know.", REFUSES),
        ("Who won the cup in 1998?", "I’m sorry, but I can’t answer that.", REFUSES),
        ("Who won the cup in 1998?", "As an AI language model, I have no access to sports.", REFUSES),
        ("Who won the cup in 1998?", "I do not have enough information to say who won.", REFUSES),
        (
            "Who won the cup in 1998?",
            "The provided context does not mention the winner. The context is about tea.",
            REFUSES,
        ),
        ("Who won the cup in 1998?", "It is not mentioned in the text.", REFUSES),
        ("How do I get a refund?", "I'm unable to help with refunds.", REFUSES),
        ("1998년 우승 팀은 어디인가요?", "모르겠습니다.", REFUSES),
        ("1998년 우승 팀은 어디인가요?", "죄송합니다. 잘 모르겠어요.", REFUSES),
        ("1998년 우승 팀은 어디인가요?", "죄송하지만 해당 질문에는 답변을 드릴 수 없습니다.", REFUSES),
        ("1998년 우승 팀은 어디인가요?", "문서에는 우승 팀이 언급되어 있지 않습니다.", REFUSES),
        ("1998년 우승 팀은 어디인가요?", "관련 정보를 찾을 수 없습니다.", REFUSES),
        ("1998년 우승 팀은 어디인가요?", "알 수 없습니다.", REFUSES),
        ("1998년 우승 팀은 어디인가요?", "저는 AI라서 그런 것은 모릅니다.", REFUSES),
        # Languages.
        ("영업시간이 어떻게 되나요?", LONG_ENGLISH, LANGUAGE),
        ("What are your opening hours?", LONG_KOREAN, LANGUAGE),
        ("What are your opening hours?", "営業時間は平日の午前九時から午後六時までです。", LANGUAGE),
        # Code.
        ("Write a Python function that reverses a list.", "You can reverse it by going backwards.", NO_CODE),
        ("Write a regex that matches dates.", "Look for four digits, then two more.", NO_CODE),
        ("파이썬으로 리스트를 뒤집는 함수를 작성해 주세요.", "리스트를 거꾸로 읽으면 됩니다.", NO_CODE),
        ("피보나치 수열을 구하는 코드를 짜줘", "앞의 두 수를 더해 나가면 됩니다.", NO_CODE),
        # Repetition.
        ("Tell me about tea.", "Tea is a drink. " * 20, REPEATS),
        ("Tell me about tea.", "Tea comes from China. " + "and the the " * 12, REPEATS),
        ("차에 대해 알려주세요.", "차는 음료입니다. " * 20, REPEATS),
        ("Tell me about tea.", "\n".join(["It is green.", "It is a drink."] + ["It is very healthy."] * 8), REPEATS),
    ],
)
def test_faults(question: str, text: str, expected: str) -> None:
    assert fault(Wanted(question), Answer(text)) == expected


@pytest.mark.parametrize(
    ("question", "text"),
    [
        ("What is the capital of France?", "Paris"),
        ("Is the shop open on Sundays?", "No"),
        ("Is the shop open on Sundays?", "no."),
        ("How many days are in a week?", "7"),
        ("일요일에도 영업하나요?", "아니요."),
        ("일주일은 며칠인가요?", "7일"),
        # A term, a name or a number may answer a Korean question.
        ("웹 페이지를 전송하는 프로토콜은?", "HTTP (HyperText Transfer Protocol)"),
        ("파이썬을 만든 사람은?", "Guido van Rossum"),
        ("2의 10제곱은?", "1024"),
        (
            "리스트를 정렬하는 파이썬 코드를 작성해줘",
            "```python\nitems = [3, 1, 2]\nitems.sort()\nprint(items)\n# sorted in place, no copy is made\n```",
        ),
        # Another language was asked for.
        ("다음을 영어로 번역해 주세요: 영업시간은 아홉 시부터입니다.", LONG_ENGLISH),
        ("Translate into Korean: the opening hours are nine to six on weekdays.", LONG_KOREAN),
        ("Please answer in Korean: what are your opening hours?", LONG_KOREAN),
        ("How do you say 'I don't know' in Korean?", "모르겠습니다."),
        ("'모르겠습니다'는 영어로 뭐라고 하나요?", "I don't know."),
        # What is not possible is an answer, and so is an apology before one.
        ("Can I return worn shoes?", "No, worn shoes cannot be returned."),
        ("What if I don't know my password?", "If you don't know your password, choose 'Forgot password'."),
        ("Why can't I log in?", "You can't log in while your account is locked. Wait ten minutes."),
        ("신은 신발도 환불되나요?", "죄송하지만 신은 신발은 환불할 수 없습니다."),
        ("영업시간이 어떻게 되나요?", "기다리게 해서 죄송합니다. 평일 아홉 시부터 여섯 시까지입니다."),
        ("비밀번호를 모르면 어떻게 하나요?", "비밀번호를 모르는 경우 '비밀번호 찾기'를 누르세요."),
        (
            "Who sang 'I Will Always Love You'?",
            "Whitney Houston sang it; Dolly Parton wrote it. I don't know a better ballad.",
        ),
        # No code was asked for.
        ("Write a code of conduct for the office.", "Be kind, be on time, and listen to each other."),
        ("Write about the function of the heart.", "The heart pumps blood through the body."),
        ("Write a short movie script about a dog.", "A dog waits at a station. Its owner does not come. It waits."),
        ("할인 코드를 만들어 주세요.", "WELCOME10 을 사용하세요."),
        ("Write a regex that matches a year.", r"`\d{4}`"),
        ("Write a SQL query that counts users.", "SELECT COUNT(*) FROM users"),
        # What repeats without being stuck.
        ("Draw a table.", "| a | b |\n|---|---|\n| 1 | 2 |\n" + "=" * 80),
        ("Say hello ten times.", "hello " * 10 + "hello " * 10),
        ("Tell me a joke.", "Ha ha ha ha ha! Why did the chicken cross the road?"),
        ("List the numbers to forty.", ", ".join(str(number) for number in range(1, 41))),
        ("Give me a checklist.", "\n".join(f"- [ ] step {name} is done" for name in "abcdefgh")),
    ],
)
def test_answers_that_pass(question: str, text: str) -> None:
    assert fault(Wanted(question), Answer(text)) == ""


def test_instructions_may_set_the_language() -> None:
    assert fault(Wanted("영업시간이 어떻게 되나요?", "Always answer in English."), Answer(LONG_ENGLISH)) == ""
    assert fault(Wanted("What are your opening hours?", "고객에게 친절하게 답하세요."), Answer(LONG_KOREAN)) == ""
    assert fault(Wanted("영업시간이 어떻게 되나요?", "Be brief."), Answer(LONG_ENGLISH)) == LANGUAGE


@pytest.mark.parametrize(
    ("finish", "expected"),
    [("stop", ""), ("", ""), ("length", CUT), ("content_filter", "withheld by the provider")],
)
def test_how_it_ended(finish: str, expected: str) -> None:
    assert fault(Wanted("Where is Paris?"), Answer("In France.", finish)) == expected


SCHEMA = (
    '{"type": "object", "required": ["city"], "properties": {"city": {"type": "string"}, "size": {"type": "integer"}}}'
)


@pytest.mark.parametrize(
    ("schema", "text", "expected"),
    [
        ("", '{"a": 1}', ""),
        ("", ' {"error": "I don\'t know"}\n', ""),
        ("", "[1]", "not JSON of the demanded form"),
        ("", "```json\n{}\n```", "not JSON"),
        ("", '{"a": 1', "not JSON"),
        ("", "Sure! Here it is.", "not JSON"),
        (SCHEMA, '{"city": "서울", "size": 3}', ""),
        (SCHEMA, '{"city": "서울", "size": 3.0}', ""),
        (SCHEMA, '{"city": "서울", "size": true}', "not JSON of the demanded form"),
        (SCHEMA, '{"size": 3}', "not JSON of the demanded form"),
        (SCHEMA, '{"city": 3}', "not JSON of the demanded form"),
        ('{"type": "array"}', "[]1", "not JSON"),
        ('{"type": "array"}', "[1]", ""),
        ("no schema", "{}", ""),
    ],
)
def test_json(schema: str, text: str, expected: str) -> None:
    assert fault(Wanted("도시는?", wants_json=True, json_schema=schema), Answer(text)) == expected


FORCED: dict[str, Any] = {"must_call_tool": True, "tool_names": ("find", "buy")}


@pytest.mark.parametrize(
    ("wanted", "uses", "expected"),
    [
        (FORCED, [], "without the tool call that was demanded"),
        (FORCED, [ToolUse("find", '{"q": 1}')], ""),
        (FORCED, [ToolUse("find", "")], ""),
        (FORCED, [ToolUse("find", "{")], "calls a tool with arguments that are no JSON object"),
        (FORCED, [ToolUse("find", "[1]")], "calls a tool with arguments that are no JSON object"),
        (FORCED, [ToolUse("sell", "{}")], "calls a tool that there is not"),
        ({**FORCED, "tool_name": "buy"}, [ToolUse("find", "{}")], "calls another tool than demanded"),
        # A free choice may call as well, with no text beside it.
        ({"tool_names": ("find",)}, [ToolUse("find", "{}")], ""),
    ],
)
def test_tools(wanted: dict[str, Any], uses: list[ToolUse], expected: str) -> None:
    answer = Answer("I would rather talk." if not uses else "", "tool_calls" if uses else "stop", uses)
    assert fault(Wanted("Find it.", **wanted), answer) == expected


@given(st.text(max_size=300), st.text(max_size=300))
def test_any_text_is_judged(question: str, text: str) -> None:
    assert isinstance(fault(Wanted(question), Answer(text)), str)


@pytest.mark.parametrize("text", ["a" * 200_000, "ab " * 70_000, "죄송 " * 50_000, "code " * 40_000, "`" * 100_000])
def test_long_texts_take_no_time(text: str) -> None:
    started = time.perf_counter()
    fault(Wanted(text), Answer(text))
    fault(Wanted("Tell me."), Answer(text))
    assert time.perf_counter() - started < 2.0
