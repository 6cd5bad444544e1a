"""Pruning by surprisal: what goes first, what never goes, and what holds of every text."""

from __future__ import annotations

import re
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.compressor.tokenwise import Surprisal, budget_of, protected_ranges, prune

_TOKEN = re.compile(r"\s*\S{1,4}|\s+")

ENGLISH = (
    "The lighthouse keeper of the island climbed the old stairs every evening and lit the lamp with a match. "
    "In 1923 he did not leave the tower for 14 days. You must keep the door shut. Who would have thought of it? "
    "The book at https://example.org/log lists the ships that passed the rocks of the bay (north side) in winter.\n"
)
KOREAN = (
    "# 등대\n등대지기는 저녁마다 낡은 계단을 올라가 등불을 켰고 그날의 날씨를 공책에 적었습니다. "
    "1923년에는 14일 동안 탑을 떠나지 않았습니다. 문은 반드시 닫아 두십시오. 누가 그것을 알았을까요?\n"
    "- 북쪽 바위 근처를 지나간 배들의 이름이 공책에 남아 있습니다.\n"
)


def count(text: str) -> int:
    """Tokens: words in pieces of four characters."""
    return len(_TOKEN.findall(text))


def scored(text: str, seed: int = 1) -> list[Surprisal]:
    """Tokens of a text with surprisals drawn from 0 to 10 nats; the first has none."""
    draw = Random(seed)
    tokens = [Surprisal(match.start(), match.end(), draw.random() * 10) for match in _TOKEN.finditer(text)]
    return [Surprisal(tokens[0].start, tokens[0].end, None), *tokens[1:]] if tokens else []


def informative(text: str, *dull: str) -> list[Surprisal]:
    """Tokens of 9 nats each, but for those of these words, of 1."""
    ranges = [match.span() for word in dull for match in re.finditer(re.escape(word), text)]
    return [
        Surprisal(m.start(), m.end(), 1.0 if any(a < m.end() <= b for a, b in ranges) else 9.0)
        for m in _TOKEN.finditer(text)
    ]


def test_what_tells_least_goes_first() -> None:
    text = "Say that keeper Lindqvist climbed up very old stairs quickly."
    done = prune(text, informative(text, " very", " old"), count(text) - 2, count)
    assert done.text == "Say that keeper Lindqvist climbed up stairs quickly."
    assert done.reached
    assert [text[each.start : each.end] for each in done.removed] == ["very ", "old "]
    assert [each.nats for each in done.removed] == [1.0, 1.0]


def test_an_article_goes_without_its_word_and_a_korean_particle_never_without_its_noun() -> None:
    text = "He saw the lamp that the keeper lit."
    assert prune(text, informative(text, " the"), count(text) - 2, count).text == "He saw lamp that keeper lit."
    korean = "그는 매우 낡은 등대 를 보았다."
    left = prune(korean, informative(korean, " 를"), 1, count).text
    assert "등대 를" in left or ("등대" not in left and " 를" not in left)


def test_a_name_goes_whole_or_not_at_all_and_a_month_stays() -> None:
    text = "Storms crossed warm Gulf of the Mexicans towards Hank J. Williams junior on May 3 quietly, folks."
    names = informative(text, " Gulf", " of", " the", " Mexicans")
    gone = [text[each.start : each.end] for each in prune(text, names, count(text) - 2, count).removed]
    assert gone == ["Gulf of the Mexicans "]
    half = informative(text, " Williams", " May")
    for budget in range(count(text)):
        left = prune(text, half, budget, count).text
        assert ("Hank J. Williams" in left) == ("Williams" in left) == ("Hank" in left)
        assert "May 3" in left
    # A name ends with its sentence.
    two = "They came from old Rome. Then they were gone again, folks."
    assert "Then" not in prune(two, informative(two, " Then"), count(two) - 1, count).text


def test_equal_words_go_from_the_left_and_a_word_is_weighed_by_its_tokens() -> None:
    text = "One considerable word may outweigh others here today indeed."
    nats = [Surprisal(token.start, token.end, 5.0) for token in scored(text)]
    first = prune(text, nats, count(text) - 1, count)
    assert [text[each.start : each.end] for each in first.removed] == ["One "]
    # Twelve nats in three tokens are less for each than five in one.
    cheap = [
        Surprisal(token.start, token.end, 4.0 if text.index("considerable") < token.end <= 16 else 5.0)
        for token in nats
    ]
    assert [text[each.start : each.end] for each in prune(text, cheap, count(text) - 1, count).removed] == [
        "considerable "
    ]


@pytest.mark.parametrize(
    "stays",
    [
        "1923", "not leave", "14 days", "You must keep the door shut.", "Who would have thought of it?",
        "https://example.org/log", "(north side)", "match.", "winter.", "every",
    ],
)  # fmt: skip
def test_what_must_stay_stays_however_much_is_asked_for(stays: str) -> None:
    done = prune(ENGLISH, scored(ENGLISH), 1, count)
    assert stays in done.text
    assert not done.reached
    assert done.after_tokens < done.before_tokens * 0.75


@pytest.mark.parametrize(
    "stays",
    [
        "# 등대", "1923년", "14일", "떠나지 않았습니다.", "문은 반드시 닫아 두십시오.", "누가 그것을 알았을까요?",
        "\n- ", "적었습니다.",
    ],
)  # fmt: skip
def test_what_must_stay_of_a_korean_text_stays(stays: str) -> None:
    done = prune(KOREAN, scored(KOREAN), 1, count)
    assert stays in done.text
    assert done.after_tokens < done.before_tokens


def test_of_what_nothing_is_known_nothing_goes() -> None:
    assert prune(ENGLISH, [], 1, count).text == ENGLISH
    unknown = [Surprisal(token.start, token.end, None) for token in scored(ENGLISH)]
    assert prune(ENGLISH, unknown, 1, count).text == ENGLISH
    done = prune(ENGLISH, scored(ENGLISH)[:30], 1, count)
    assert done.removed
    assert max(each.end for each in done.removed) <= scored(ENGLISH)[30].end


def test_tokens_that_share_a_character_count_for_its_word_together() -> None:
    text = "봄은 참 좋은 때다."
    # Bytes of one syllable: three tokens with the same place, and one that has the blank before as well.
    tokens = [Surprisal(0, 2, 1.0), Surprisal(2, 4, 1.0), Surprisal(3, 4, 1.0), Surprisal(3, 4, 1.0)]
    tokens += [Surprisal(4, 7, 9.0), Surprisal(7, 11, 9.0)]
    done = prune(text, tokens, count(text) - 1, count)
    assert [(text[each.start : each.end], each.nats) for each in done.removed] == [("봄은 ", 1.0)]
    more = prune(text, tokens, count(text) - 2, count)
    assert [(text[each.start : each.end], each.nats) for each in more.removed] == [("봄은 ", 1.0), ("참 ", 3.0)]


def test_a_share_is_of_all_tokens() -> None:
    assert [budget_of(100, share) for share in (0.2, 0.35, 0.9)] == [80, 65, 10]
    assert budget_of(1, 0.5) == 1


WORDS = st.sampled_from(
    [
        "the", "a", "of", "lamp", "keeper", "12", "1,000", "not", "no", "said.", "must", "Who?", "(north", "side)",
        "“a", "quote”", "`code`", "https://x.org/a?b=1", "x_y", "Dr.", "Kim", "3", "kg", "only", "{}", "-", "#", "|",
        "\n", "\n\n", "*", "**", "😀", "é", "؟", "東京。", "등대는", "등대", "를", "그", "배들의", "않았다.", "없다",
        "안", "간다", "무엇인가?", "3시",
    ]
)  # fmt: skip
TEXTS = st.lists(WORDS, max_size=60).map(" ".join) | st.text(max_size=200) | st.just(ENGLISH) | st.just(KOREAN)


@given(TEXTS, st.integers(0, 1000), st.integers(0, 120))
def test_what_holds_of_every_text(text: str, seed: int, budget: int) -> None:
    surprisals = scored(text, seed)
    done = prune(text, surprisals, budget, count)
    assert done == prune(text, surprisals, budget, count)
    assert len(done.text) <= len(text)
    assert done.after_tokens == count(done.text) <= count(text) == done.before_tokens
    assert done.reached == (done.after_tokens <= budget)
    # What went is said, in order, and what is left is the rest.
    left, at = [], 0
    for each in done.removed:
        assert at <= each.start < each.end
        left.append(text[at : each.start])
        at = each.end
    assert "".join([*left, text[at:]]) == done.text
    for start, end in protected_ranges(text):
        assert all(each.end <= start or each.start >= start + len(text[start:end].rstrip()) for each in done.removed)
    # Whole words only: an eojeol is never cut.
    words = iter(text.split())
    assert all(word in words for word in done.text.split())
    assert done.text.count("\n") == text.count("\n")


@given(TEXTS, st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 120))
def test_a_result_within_its_budget_is_not_pruned_again(text: str, seed: int, other: int, budget: int) -> None:
    done = prune(text, scored(text, seed), budget, count)
    again = prune(done.text, scored(done.text, other), budget, count)
    if done.reached:
        assert again.text == done.text


@given(TEXTS, st.integers(0, 1000), st.integers(0, 120), st.integers(0, 120))
def test_words_go_in_one_order_whatever_the_budget(text: str, seed: int, one: int, other: int) -> None:
    first, second = (
        {(each.start, each.end) for each in prune(text, scored(text, seed), budget, count).removed}
        for budget in (one, other)
    )
    assert first <= second or second <= first
