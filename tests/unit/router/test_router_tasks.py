"""The kind of task by cues: 104 sentences of our own, half Korean, none of them from a data set.

``FIRST`` and ``SECOND`` say plainly what is wanted; nothing was changed after they were first tried. ``HARD`` avoids
the words that cues are made of.
"""

from __future__ import annotations

from collections import defaultdict

import pytest

from services.router.features import Prompt, extract
from services.router.tasks import TASKS, task_of

FIRST: list[tuple[str, str, str]] = [
    (
        "code",
        "Write a Python function that removes duplicates from a list.",
        "리스트에서 중복을 없애는 파이썬 함수를 작성해 줘.",
    ),
    ("code", "Why does this SQL query return no rows?", "이 SQL 쿼리가 왜 아무 행도 돌려주지 않나요?"),
    ("maths", "What is 17 * 23 + 4?", "17 * 23 + 4 는 얼마인가요?"),
    ("maths", "Find the derivative of x^3 - 2x.", "x^3 - 2x 의 미분을 구하시오."),
    (
        "reasoning",
        "Anna is taller than Ben, and Ben is taller than Carl. Who is the shortest?",
        "철수는 영희보다 크고 영희는 민수보다 크다. 누가 가장 작은가?",
    ),
    (
        "reasoning",
        "One of them is a liar. Which door is safe? Think step by step.",
        "셋 중 한 명만 거짓말을 한다. 누구인지 논리적으로 추론해 줘.",
    ),
    (
        "translate",
        "Translate this sentence into Korean: The shop closes at six.",
        "다음 문장을 영어로 번역해 줘: 가게는 여섯 시에 닫습니다.",
    ),
    ("translate", "How do you say 'see you tomorrow' in Korean? Please translate.", "'내일 봬요'를 일본어로 옮겨 줘."),
    ("summarise", "Summarize the attached minutes in three sentences.", "첨부한 회의록을 세 문장으로 요약해 주세요."),
    ("summarise", "TL;DR of this thread?", "이 글의 핵심만 간추려 줘."),
    ("rewrite", "Rephrase this sentence so that it sounds polite.", "이 문장을 더 공손하게 다듬어 줘."),
    ("rewrite", "Extract all phone numbers from the text below.", "아래 글에서 전화번호를 모두 추출해 줘."),
    ("creative", "Write a short story about a lighthouse keeper.", "등대지기에 관한 짧은 이야기를 써 줘."),
    ("creative", "Draft an email that declines an invitation.", "초대를 거절하는 이메일을 작성해 줘."),
    ("explain", "Explain how a refrigerator works.", "냉장고의 원리를 설명해 줘."),
    (
        "explain",
        "What is the difference between a virus and a bacterium? Compare them.",
        "바이러스와 세균의 차이를 알려 줘.",
    ),
    ("lookup", "What is the capital of Australia?", "호주의 수도는 어디인가요?"),
    ("lookup", "When does the library close on Sundays?", "도서관은 일요일에 언제 닫나요?"),
    ("chat", "Hello! How are you today?", "안녕하세요! 오늘 기분이 어때요?"),
    ("chat", "Thanks a lot, that was kind of you.", "고마워요, 정말 친절하시네요."),
]
SECOND: list[tuple[str, str, str]] = [
    (
        "code",
        "Refactor this JavaScript so that it uses async functions.",
        "이 자바스크립트 코드를 비동기 함수로 리팩터링해 줘.",
    ),
    ("code", "def area(r): return 3.14 * r * r  # add type hints", "도커 컨테이너가 자꾸 죽는데 로그를 보고 고쳐 줘."),
    (
        "maths",
        "A shirt costs 40 dollars and is reduced by 15%. How much is it now?",
        "셔츠가 4만 원인데 15% 할인하면 얼마인가요?",
    ),
    ("maths", "Solve the equation 3x + 5 = 20.", "방정식 3x + 5 = 20 을 풀어 줘."),
    (
        "reasoning",
        "Suppose all bloops are razzies. Must it be true that some razzies are bloops?",
        "모든 새가 난다고 가정하자. 그렇다면 펭귄은 새인가?",
    ),
    ("reasoning", "Prove that there is no largest odd number.", "가장 큰 홀수가 없음을 증명하라."),
    ("translate", "Please translate the menu from Japanese.", "이 메뉴판을 한국어로 번역 부탁해."),
    ("translate", "Put this paragraph into French.", "이 메일을 영문으로 바꿔 줘."),
    ("summarise", "Give me a summary of the following report.", "다음 보고서의 요약본을 보여 줘."),
    ("summarise", "What are the main points of this article?", "이 기사 줄거리를 짧게 정리해 줘."),
    ("rewrite", "Proofread my cover letter.", "이 글의 맞춤법을 교정해 주세요."),
    ("rewrite", "Classify these reviews as positive or negative.", "이 후기들을 긍정과 부정으로 분류해 줘."),
    ("creative", "Compose a poem about the first snow.", "첫눈에 대한 시를 한 편 지어 줘."),
    ("creative", "Come up with a slogan for a bakery.", "동네 빵집 광고 문구를 만들어 줘."),
    ("explain", "Describe the role of the liver in detail.", "간의 역할을 자세히 알려 줘."),
    ("explain", "What are the pros and cons of renting a flat?", "월세와 전세의 장점과 단점을 비교해 줘."),
    ("lookup", "Where can I renew my passport?", "여권은 어디에서 갱신하나요?"),
    ("lookup", "Who wrote The Old Man and the Sea?", "노인과 바다를 쓴 사람은 누구인가요?"),
    ("chat", "Good morning, nice to meet you.", "좋은 아침이에요, 반가워요."),
    (
        "chat",
        "I feel a bit lonely tonight and just wanted somebody to talk to for a little while, nothing more.",
        "오늘은 그냥 좀 외로워서 누구랑 이야기하고 싶었어요.",
    ),
]

HARD: list[tuple[str, str, str]] = [
    (
        "code",
        "my react component rerenders on every keystroke, what am i doing wrong",
        "리액트에서 글자 칠 때마다 화면이 다시 그려지는데 뭐가 문제죠",
    ),
    (
        "maths",
        "If I save 300 a month at 4 percent a year, what do I have after ten years?",
        "매달 30만 원씩 연 4퍼센트로 10년 넣으면 나중에 얼마 받아요?",
    ),
    (
        "reasoning",
        "My landlord says the deposit is gone, the contract says otherwise. Who is in the right, and how sure are you?",
        "회의가 월, 수, 금에만 있고 저는 수요일에 못 가는데 민수는 금요일에 못 가요. 둘 다 되는 날이 있나요?",
    ),
    ("translate", "what's the korean for 'please find the invoice attached'", "'송장을 첨부합니다'를 영어로 하면?"),
    (
        "summarise",
        "Boil this down to what my manager needs to know.",
        "이거 너무 길어요. 팀장님께 드릴 한 단락만 남겨 주세요.",
    ),
    (
        "rewrite",
        "make this less angry: I have asked you three times already!",
        "이거 좀 덜 딱딱하게 말해 줘: 요청하신 건은 처리 불가합니다.",
    ),
    (
        "creative",
        "Something funny for my colleague's farewell card, two lines.",
        "동료 송별 카드에 쓸 재미있는 말 두 줄만.",
    ),
    ("explain", "i never understood why the moon has phases", "달 모양이 바뀌는 게 왜 그런지 잘 모르겠어요"),
    ("lookup", "opening hours on public holidays", "공휴일 영업시간"),
    ("chat", "my day was awful, nobody listened to me", "오늘 회사에서 너무 힘들었어요"),
    ("code", "regex for a Korean mobile number", "휴대폰 번호 정규식"),
    (
        "explain",
        "Could you walk me through how a mortgage is paid back?",
        "대출 원리금 균등 상환이 어떤 건지 풀어서 알려 주세요",
    ),
]


def guess(text: str) -> str:
    return task_of(extract(Prompt(text)), text)


def right(table: list[tuple[str, str, str]]) -> int:
    return sum(guess(text) == task for task, *texts in table for text in texts)


@pytest.mark.parametrize(("task", "english", "korean"), FIRST)
def test_plain_tasks_are_told_apart_alike_in_both_languages(task: str, english: str, korean: str) -> None:
    assert (guess(english), guess(korean)) == (task, task)


def test_sentences_that_no_cue_was_chosen_for() -> None:
    """38 of 40 when this was written; the docstring of tasks.py says so."""
    assert right(SECOND) >= 38


def test_sentences_without_a_cue_word_are_mostly_missed() -> None:
    """10 of 24: a limit that the docstring states. Whoever raises it states the new one."""
    assert 10 <= right(HARD) <= 14


def test_every_kind_is_found_and_nothing_else_is() -> None:
    found: dict[str, set[str]] = defaultdict(set)
    for task, *texts in FIRST + SECOND:
        found[task].update(map(guess, texts))
    assert set(found) == set(TASKS)
    assert set().union(*found.values()) <= set(TASKS)


@pytest.mark.parametrize("text", ["", " ", "?", "\n\n", "ㅋ", "a" * 100_000, "model=x", "🎉"])
def test_any_text_has_a_kind(text: str) -> None:
    assert guess(text) in TASKS


def test_the_text_that_is_summarised_or_translated_does_not_decide() -> None:
    assert guess("Summarize: Prove that the sum of two even integers is even. Hence 2 + 2 = 4.") == "summarise"
    assert guess("다음을 영어로 번역해 줘: 17 더하기 4 를 계산하시오.") == "translate"


def test_code_that_is_to_be_translated_is_code() -> None:
    assert guess("Convert this Python function to Rust and translate the comments: def f(x): return x") == "code"
