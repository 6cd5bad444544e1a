"""Texts split into units that tile them, in English and Korean."""

from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.compressor.sentences import Kind, heading, split


def parts(text: str) -> list[str]:
    return [text[unit.start : unit.end].strip() for unit in split(text)]


def kinds(text: str) -> list[Kind]:
    return [unit.kind for unit in split(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One came. Two left!  Three? Four", ["One came.", "Two left!", "Three?", "Four"]),
        ("Dr. Smith met Mr. J. R. Jones. He left.", ["Dr. Smith met Mr. J. R. Jones.", "He left."]),
        ("It costs 3.50 dollars. Pi is 3.14.", ["It costs 3.50 dollars.", "Pi is 3.14."]),
        ("See e.g. the U.S. Army. The rest is here.", ["See e.g. the U.S. Army.", "The rest is here."]),
        ("He came from the U.S. The trip was long.", ["He came from the U.S.", "The trip was long."]),
        ("Born Jan. 5, 1990 in St. Louis. Died young.", ["Born Jan. 5, 1990 in St. Louis.", "Died young."]),
        ('He said "Stop. Go back." Then he left.', ['He said "Stop. Go back."', "Then he left."]),
        ("It (see Fig. 2. It is old.) ends. C is new.", ["It (see Fig. 2. It is old.) ends.", "C is new."]),
        ("version 2.0 is out. it is fast.", ["version 2.0 is out. it is fast."]),
        ("Well... it ended.", ["Well... it ended."]),
        ("", []),
        ("   \n ", [""]),
    ],
)
def test_english_sentences(text: str, expected: list[str]) -> None:
    assert parts(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("서울은 수도이다. 부산은 항구이다.", ["서울은 수도이다.", "부산은 항구이다."]),
        ("서울은 수도이다.부산은 항구이다.끝", ["서울은 수도이다.", "부산은 항구이다.", "끝"]),
        ("어디로 가나요?집으로 가요!그래요.", ["어디로 가나요?", "집으로 가요!", "그래요."]),
        ("그는 “가자. 어서.”라고 말했다. 모두 갔다.", ["그는 “가자. 어서.”라고 말했다.", "모두 갔다."]),
        ("1924. 12. 2. 출생이다.", ["1924. 12. 2. 출생이다."]),
        ("값은 3.5원이다. 비싸다.", ["값은 3.5원이다.", "비싸다."]),
        ("今日は晴れ。明日は雨。", ["今日は晴れ。", "明日は雨。"]),
    ],
)
def test_korean_sentences(text: str, expected: list[str]) -> None:
    assert parts(text) == expected


def test_a_title_line_is_a_heading() -> None:
    text = "Hoosick, New York\nHoosick is a town. It is small."
    assert kinds(text) == [Kind.HEADING, Kind.PROSE, Kind.PROSE]
    assert heading(text, split(text)) == "Hoosick, New York"
    assert heading("# 개요\n본문이다.", split("# 개요\n본문이다.")) == "개요"
    assert heading("No title here. Only text.", split("No title here. Only text.")) == ""


@pytest.mark.parametrize(
    ("text", "kind", "units"),
    [
        ("```py\na = 1.\nB. C. D.\n```\n", Kind.CODE, 1),
        ('{"a": "One. Two.",\n "b": [1, 2]}', Kind.CODE, 1),
        ("| a | b |\n|---|---|\n| One. Two. | 3 |\n", Kind.TABLE, 1),
        ("name\tage\nKim\t3\nLee\t4\n", Kind.TABLE, 1),
        ("def f(x):\n    return x. y\n", Kind.CODE, 1),
        ("- first point\n- second point\n", Kind.LIST, 2),
        ("1. 첫째 항목\n2. 둘째 항목\n", Kind.LIST, 2),
    ],
)
def test_blocks_stay_whole(text: str, kind: Kind, units: int) -> None:
    assert kinds(text) == [kind] * units


def test_a_footnote_in_brackets_is_no_code() -> None:
    assert Kind.CODE not in kinds("[1] A note. Another note.")


@given(st.text(max_size=400) | st.text(alphabet='ab. \n"“”()|\t#-{}[]다요A1`', max_size=400))
@settings(max_examples=400, deadline=None)
def test_units_tile_the_text(text: str) -> None:
    units = split(text)
    assert "".join(text[unit.start : unit.end] for unit in units) == text
    assert all(unit.start < unit.end for unit in units)


@pytest.mark.parametrize(
    "piece", [" ", "(", '"', "a. ", "|", "\n", "-", "{", "A.", "다.", "\t|", "- x\n", "{\n", "``` \n", "“"]
)
def test_long_texts_take_linear_time(piece: str) -> None:
    small, large = piece * (20_000 // len(piece)), piece * (160_000 // len(piece)) + "x"
    split(small)
    started = time.process_time()
    split(small)
    first = time.process_time() - started
    started = time.process_time()
    split(large)
    # 8 times the text; quadratic time would take 64 times as long.
    assert time.process_time() - started < 30 * first + 0.2
