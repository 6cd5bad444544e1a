"""Terms, dates, names and sentences, in English and Korean; the weights' file is read strictly."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.compressor.history_shorten import sentences, shortened
from services.compressor.history_terms import Date, Terms, asked_authors, asked_roles, author, dates, own_date
from services.compressor.history_weights import load_weights
from services.compressor.prompt import USER, Message


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("on 8 May, 2023", [Date(2023, 5, 8)]),
        ("May 8th 2023, or the 3rd of June", [Date(2023, 5, 8), Date(0, 6, 3)]),
        ("2023-05-08 and 2023/5/9", [Date(2023, 5, 8), Date(2023, 5, 9)]),
        ("in March 2023", [Date(2023, 3, 0)]),
        ("Sept. 4", [Date(0, 9, 4)]),
        ("in August", [Date(0, 8, 0)]),
        ("you may march on", []),
        ("2023년 5월 8일과 6월", [Date(2023, 5, 8), Date(0, 6, 0)]),
        ("2022년에", [Date(2022, 0, 0)]),
        ("13월 45일, 99 May", []),
        ("no date", []),
    ],
)
def test_dates(text: str, found: list[Date]) -> None:
    assert list(dates(text)) == found


def test_a_message_dates_itself_only_by_a_whole_date_at_its_head() -> None:
    assert own_date("(1:56 pm on 8 May, 2023)\nHello") == Date(2023, 5, 8)
    assert own_date("[2024-01-02 10:00] hi") == Date(2024, 1, 2)
    assert own_date("In May we met") is None
    assert own_date("x" * 80 + " 8 May, 2023") is None


def test_terms() -> None:
    assert Terms().of("The parties planned studies, we plan") == ["party", "plan", "study", "plan"]
    assert Terms().of("GPU가 환불을") == ["gpu", "가", "환불", "불을"]


def test_authors_and_roles() -> None:
    names = frozenset({"anna", "ben", "김민수"})
    assert asked_authors("What did Anna's dog eat?", names) == {"anna"}
    assert asked_authors("김민수가 뭐라고 했지?", names) == {"김민수"}
    assert asked_authors("Did Anna meet Ben?", frozenset({"anna", "ben"})) == frozenset()
    assert author(Message(0, USER, ("Carl: hello",))) == "carl"
    assert author(Message(0, USER, ("hello",), name="Dora")) == "dora"
    assert author(Message(0, USER, ("see http://a.b",))) == ""
    assert asked_roles("What did I tell you?") == (True, False)
    assert asked_roles("What did you recommend?") == (False, True)
    assert asked_roles("제가 뭐라고 말했죠?") == (True, False)
    assert asked_roles("아까 추천한 곳은?") == (False, True)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("One. Two! Three?", ["One. ", "Two! ", "Three?"]),
        ("Dr. Who came at 5. 30 men left.", ["Dr. Who came at 5. 30 men left."]),
        ('He said "Go. Now." Then left.', ['He said "Go. Now." ', "Then left."]),
        ("환불됩니다. 14일 안에요.\n끝", ["환불됩니다. ", "14일 안에요.\n", "끝"]),
        ("See https://a.b/c.d?e=f. Then go.", ["See https://a.b/c.d?e=f. ", "Then go."]),
    ],
)
def test_sentences(text: str, parts: list[str]) -> None:
    assert sentences(text) == parts


@given(st.text(max_size=200))
def test_sentences_are_the_text(text: str) -> None:
    assert "".join(sentences(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "Do this. ```\nx = 1\n``` Then that. And that. And that.",
        '{"a": 1}. One. Two. Three.',
        "- one. \n- two. \n- three. \n- four.",
        "| a | b |\nOne. Two. Three.",
        "One. Two.",
        "",
    ],
)
def test_what_is_not_prose_is_not_shortened(text: str) -> None:
    assert shortened(Message(0, USER, (text,)), "two", 0.5) is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "not an object"),
        ("{}", "cost_exponent"),
        ('{"cost_exponent": 9}', "cost_exponent"),
        ('{"cost_exponent": 1}', "with_vectors is not"),
        ('{"cost_exponent": 1, "with_vectors": {"mood": 1}}', r"with_vectors\.mood"),
        (
            '{"cost_exponent": 1, "with_vectors": {"date": 1}, "without_vectors": {"date": NaN}}',
            r"without_vectors\.date",
        ),
    ],
)
def test_wrong_weights_are_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "weights.json"
    file.write_text(content)
    with pytest.raises(ValueError, match=message):
        load_weights(file)


def test_the_shipped_weights_are_read() -> None:
    weights, exponent = load_weights()
    assert weights.with_vectors["similarity"] > 0
    assert "similarity" not in weights.without_vectors
    assert 0 <= exponent <= 1
