"""What guards refuse and what they let pass, English and Korean."""

from __future__ import annotations

import time

import pytest

from services.cache.features import letter_overlap
from services.cache.guards import differences
from services.cache.traits import analyse

REFUSED = [
    ("numbers", "How do I get a refund after 5 days?", "How do I get a refund after 7 days?"),
    ("numbers", "Convert 5 kg to pounds", "Convert 5 lb to kilograms"),
    ("numbers", "What is 12% of 80?", "What is 21% of 80?"),
    ("numbers", "Summarise it in two sentences", "Summarise it in three sentences"),
    ("numbers", "3일 안에 환불되나요?", "7일 안에 환불되나요?"),
    ("numbers", "사과 두 개 칼로리 알려줘", "사과 세 개 칼로리 알려줘"),
    ("identifiers", "What does error E404 mean?", "What does error E403 mean?"),
    ("identifiers", "How do I pair an iPhone15?", "How do I pair an iPhone14?"),
    ("identifiers", "Summarise https://a.example/x please", "Summarise https://a.example/y please"),
    ("identifiers", 'What does "git pull" do?', 'What does "git push" do?'),
    ("times", "Are you open on Monday?", "Are you open on Tuesday?"),
    ("times", "월요일에 영업하나요?", "화요일에 영업하나요?"),
    ("polarity", "Why is my card working?", "Why is my card not working?"),
    ("polarity", "How do I pay without a card?", "How do I pay with a card?"),
    ("polarity", "로그인이 돼요", "로그인이 안 돼요"),
    ("negation scope", "알림이 오게 해줘", "알림이 오지 않게 해줘"),
    ("antonyms", "How do I turn on notifications?", "How do I turn off notifications?"),
    ("antonyms", "How do I enable two-factor login?", "How do I disable two-factor login?"),
    ("antonyms", "How can I activate my account?", "How can I deactivate my account?"),
    ("antonyms", "거실 불 켜줘", "거실 불 꺼줘"),
    ("antonyms", "볼륨을 올려줘", "볼륨을 내려줘"),
    ("antonyms", "회원 가입 방법", "회원 탈퇴 방법"),
    ("asked for", "When does the shop open?", "Where does the shop open?"),
    ("asked for", "배송은 언제 오나요?", "배송은 어디로 오나요?"),
    ("things", "What is the capital of Austria?", "What is the capital of Australia?"),
    ("things", "How do I deploy to AWS?", "How do I deploy to GCP?"),
    (
        "things",
        "What is the capital city of this country? Austria.",
        "What is the capital city of this country? Spain.",
    ),
    ("argument order", "How long is the flight from seoul to busan?", "How long is the flight from busan to seoul?"),
    ("particles", "고양이가 개를 쫓아요", "개가 고양이를 쫓아요"),
    ("particles", "서울에서 부산까지 얼마나 걸려?", "부산에서 서울까지 얼마나 걸려?"),
]


@pytest.mark.parametrize(("guard", "asked", "stored"), REFUSED)
def test_a_difference_that_changes_the_answer_is_named_both_ways(guard: str, asked: str, stored: str) -> None:
    for one, other in ((asked, stored), (stored, asked)):
        assert guard in [difference.name for difference in differences(one, other)], differences(one, other)


PASSED = [
    ("How do I reset my password?", "How can I reset my password?"),
    ("How do I change my delivery address", "how can i change the delivery address?"),
    ("Can I get a refund within 2 weeks?", "Can I get a refund within two weeks?"),
    ("How do I change my delivery address? Thanks", "How do I change my delivery address?"),
    ("Does it take 1 second?", "Does it take 1 sec?"),
    ("Wait 30 seconds, then what?", "Wait 30 secs, then what?"),
    ("What does the API limit mean?", "what does the api limit mean"),
    ("비밀번호를 어떻게 변경하나요?", "비밀번호 변경은 어떻게 하나요?"),
    ("3시간 걸리나요?", "3 시간 걸리나요?"),
    ("로그인이 안 돼요", "로그인이 되지 않아요"),
]


@pytest.mark.parametrize(("asked", "stored"), PASSED)
def test_a_paraphrase_passes(asked: str, stored: str) -> None:
    assert differences(asked, stored) == ()


def test_the_same_text_has_no_differences() -> None:
    assert differences("Turn it on, not off, in 5 days", "Turn it on, not off, in 5 days") == ()


def test_letter_overlap_is_symmetric_and_bounded() -> None:
    assert letter_overlap("비밀번호 변경", "비밀번호변경!") == 1.0
    assert letter_overlap("abc", "xyz") == 0.0
    assert letter_overlap("", "") == 1.0
    one, other = "환불 방법 알려줘", "환불하는 방법을 알려주세요"
    assert letter_overlap(one, other) == letter_overlap(other, one) > 0.1


def test_long_texts_are_read_to_the_end() -> None:
    story = "The parcel came and went. " * 200
    assert differences(story + "It costs 5 dollars.", story + "It costs 6 dollars.")


@pytest.mark.parametrize(
    "piece",
    [
        "a.",
        "1,",
        "not ",
        "don't ",
        "말고 ",
        "하지 않",
        "안 ",
        "가",
        "에서",
        "1 시간 ",
        "A-",
        "/a",
        '"',
        "a@b",
        "from a to ",
        "(" * 3,
    ],
)
def test_hostile_repetition_is_read_in_linear_time(piece: str) -> None:
    def cpu(count: int) -> float:
        text = piece * count
        started = time.process_time()
        analyse(text)
        return time.process_time() - started

    cpu(1000)
    # Four times the text takes about four times as long; quadratic reading takes sixteen times.
    short, long = min(cpu(2000) for _ in range(3)), min(cpu(8000) for _ in range(3))
    assert long < 10 * short + 0.02


TEMPLATE = (
    "Read both scenes and say in which of them the speaker does something that most people of our time would call "
    "wrong; answer with the number of the scene, both, or neither, and give no reason. First scene: {} Second: {} "
    "Remember that the speaker tells the story, that nobody else was hurt, and that nothing was hidden from anyone."
)


def test_two_examples_in_one_long_template_share_no_answer() -> None:
    one = TEMPLATE.format("I lent my brother a ladder.", "I told the teacher who had cheated.")
    other = TEMPLATE.format("I took a coat that was not mine.", "I watered the plants for a friend.")
    found = [difference.name for difference in differences(one, other)]
    assert "long texts" in found
    assert "long texts" in [difference.name for difference in differences(other, one)]


def test_a_long_text_in_other_letters_still_shares() -> None:
    one = TEMPLATE.format("I lent my brother a ladder.", "I told the teacher who had cheated.")
    assert differences(one, one.replace("Read both scenes", "read both scenes").replace("; answer", ", answer")) == ()
