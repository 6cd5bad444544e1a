"""What may be cached at all, by the words of the question: time, accounts, persons. English and Korean."""

from __future__ import annotations

import time

import pytest

from services.cache.gate import identifies, own_account, time_bound

TIME_BOUND = [
    ("clock", "What time is it in Lisbon?"),
    ("clock", "지금 몇 시야?"),
    ("clock", "오늘 무슨 요일이야?"),
    ("weather", "Will it rain on Sunday?"),
    ("weather", "What's the weather like in Oslo?"),
    ("weather", "서울 날씨 어때?"),
    ("weather", "내일 부산에 비 와?"),
    ("weather", "미세먼지 심한지 알려줘"),
    ("price", "What is the price of gold?"),
    ("price", "How much is it now? I mean the current bitcoin price"),
    ("price", "What is the exchange rate between the yen and the won?"),
    ("price", "비트코인 시세 알려줘"),
    ("price", "엔화 환율 얼마야?"),
    ("price", "반도체 회사 주가 알려줘"),
    ("news", "What are today's headlines?"),
    ("news", "Give me the latest news about the strike"),
    ("news", "최신 뉴스 알려줘"),
    ("traffic", "How is the traffic on the ring road?"),
    ("traffic", "강변북로 교통 상황 알려줘"),
    ("stock", "Is the blue kettle in stock?"),
    ("stock", "이 신발 260 재고 있나요?"),
    ("now", "Who is the current president of Chile?"),
    ("now", "Which film is playing now?"),
    ("now", "Who currently leads the league?"),
    ("now", "현직 대통령이 누구야?"),
    ("now", "지금 문 연 약국이 어디야?"),
    ("now", "요즘 인기 있는 드라마 알려줘"),
    ("day", "Which shops are open tomorrow?"),
    ("day", "Which stations were closed yesterday?"),
    ("day", "내일 은행 영업하나요?"),
    ("day", "어제 경기 누가 이겼어?"),
]


@pytest.mark.parametrize(("rule", "text"), TIME_BOUND)
def test_what_changes_by_the_hour_is_bound(rule: str, text: str) -> None:
    assert time_bound(text) == rule


TIMELESS = [
    "How do I reset my password?",
    "I lost my card today, what now?",
    "My payment from yesterday was declined",
    "How does the weather app get its data?",
    "Why do stock prices fluctuate?",
    "How do I increase traffic to my blog?",
    "Explain how exchange rates are set",
    "Which documents do I need this year?",
    "How do I add my current address?",
    "I knowingly did it, snow fell",
    "Is the app available in Spanish?",
    "날씨 앱 추천해 줘",
    "주가가 뭐예요?",
    "환율이 무슨 뜻이야?",
    "이번 신청은 어떻게 취소하나요?",
    "단어제한을 어떻게 설정하나요?",
    "안내일정은 어떻게 만드나요?",
    "오늘부터 운동 시작하려고 해. 계획 짜 줘",
    "올해 목표 세우는 방법",
    "현재 완료 시제 설명해 줘",
    "최근 검색어 지우는 방법",
    "뉴스 기사 쓰는 법",
]


@pytest.mark.parametrize("text", TIMELESS)
def test_what_holds_for_longer_is_not(text: str) -> None:
    assert time_bound(text) == ""


OWN = [
    "What is my balance?",
    "What's my checking account balance?",
    "Show me my recent transactions",
    "Where is my order?",
    "Where are my packages?",
    "How much money do I have?",
    "How much did I spend on groceries?",
    "What's the status of my claim?",
    "When is my next appointment?",
    "Has my order shipped?",
    "What's on my calendar?",
    "Do I have any meetings?",
    "내 잔액 알려줘",
    "내 주문 어디야?",
    "제 택배 언제 와요?",
    "내 예약 확인해 줘",
    "제 포인트가 얼마 남았나요?",
    "제가 주문한 물건 어디까지 왔어요?",
    "잔액 조회해 줘",
]


@pytest.mark.parametrize("text", OWN)
def test_the_state_of_an_account_is_its_owners(text: str) -> None:
    assert own_account(text) == "own account"


EVERYBODYS = [
    "How do I check my balance in the app?",
    "Where can I see my order history?",
    "When will my card arrive?",
    "Why was my card declined?",
    "Can I change my delivery address?",
    "What is a credit score?",
    "How long does a refund take?",
    "How do I track my package?",
    "How much does a transfer cost?",
    "내 잔액은 어떻게 확인하나요?",
    "주문 취소하는 방법 알려줘",
    "배송은 얼마나 걸려요?",
    "포인트 적립 기준이 뭐예요?",
    "내 주문을 취소할 수 있나요?",
    "예약 변경 수수료가 얼마예요?",
]


@pytest.mark.parametrize("text", EVERYBODYS)
def test_how_tos_are_everybodys(text: str) -> None:
    assert own_account(text) == ""
    assert identifies(text) == ""


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ("e-mail address", "Write to ann.lee@example.com for me"),
        ("phone number", "전화번호는 010-1234-5678 입니다"),
        ("identity number", "제 주민번호 900101-1234567 맞나요"),
        ("card or account number", "My card is 4111 1111 1111 1111"),
        ("reference number", "주문번호 20240117 배송 조회"),
        ("stated name", "제 이름은 김철수예요"),
        ("", "In 2024, how do I order 3 copies in case of loss?"),
    ],
)
def test_persons_are_identified(rule: str, text: str) -> None:
    assert identifies(text) == rule


@pytest.mark.parametrize(
    "piece", ["what is ", "지금 ", "내 주문 ", "1 ", "a@", "my my ", "오늘 내일 ", "? what", "+1 2"]
)
def test_hostile_repetition_is_read_in_linear_time(piece: str) -> None:
    def cpu(count: int) -> float:
        text = piece * count
        started = time.process_time()
        for rule in (time_bound, own_account, identifies):
            rule(text)
        return time.process_time() - started

    cpu(100)
    # Four times the text takes about four times as long; a quadratic rule takes sixteen times.
    short, long = min(cpu(2000) for _ in range(3)), min(cpu(8000) for _ in range(3))
    assert long < 10 * short + 0.02
