"""Protected spans are found in both languages, the traps are not, and no text takes long."""

from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.compressor.protected import HARD, SOFT, Kind, hard_ranges, hard_spans, soft_spans, spans

C, J, S, T = Kind.CODE, Kind.JSON, Kind.SQL, Kind.TABLE
U, E, P, I, Q, N, X = Kind.URL, Kind.EMAIL, Kind.PATH, Kind.IDENTIFIER, Kind.QUOTATION, Kind.NUMBER, Kind.NEGATION  # noqa: E741

CASES: list[tuple[str, Kind, list[str]]] = [
    # Code.
    ("See ```py\nnot a fence", C, []),
    ("a\n```py\nx  = 1\n\n\ny\n```\nb", C, ["```py\nx  = 1\n\n\ny\n```"]),
    ("a\n````\n```\n````\nb", C, ["````\n```\n````"]),
    ("a\n~~~\nx\n~~~\nb", C, ["~~~\nx\n~~~"]),
    ("a\n```\nnever closed\n\nto the end", C, ["```\nnever closed\n\nto the end"]),
    ("1. ```sh\nls\n```", C, ["1. ```sh\nls\n```"]),
    ("Run `git log -p` now", C, ["`git log -p`"]),
    ("`x`를 실행하세요", C, ["`x`"]),
    ("The price is `not closed", C, []),
    ("Use ``a ` b`` here", C, ["``a ` b``"]),
    ("Text:\ndef f(x):\n    return x\n\nprint(f(3))\nMore text here.", C, ["def f(x):\n    return x\n\nprint(f(3))"]),
    ("다음 코드:\nfor (int i = 0; i < n; i++) {\n  sum += i;\n}", C, ["for (int i = 0; i < n; i++) {\n  sum += i;\n}"]),
    ("import numpy as np\nfrom a.b import c", C, ["import numpy as np\nfrom a.b import c"]),
    ("Import duties are high.\nFrom here it is far.", C, []),
    ("For example, take this:\nIf you can, do it.", C, []),
    ("While we wait (for him), relax.", C, []),
    ("# Heading\n- item\n* other (note)", C, []),
    ("$ make test", C, ["$ make test"]),
    ('<div class="a">\ntext\n</div>', C, ['<div class="a">', "</div>"]),
    ("a < b and c > d in words", C, []),
    ("const x = 5;", C, ["const x = 5;"]),
    ("하나; 둘; 셋을 보세요", C, []),
    ("The value $x^2 + y_1$ is it", C, ["$x^2 + y_1$"]),
    ("It costs $5 or $6 today", C, []),
    ("\\begin{align} a \\end{align}", C, ["\\begin{align} a \\end{align}"]),
    # JSON.
    ('He sent {"a": [1, {"b": "}"}]} today', J, ['{"a": [1, {"b": "}"}]}']),
    ('[{"a": 1},\n {"a": 2}]', J, ['[{"a": 1},\n {"a": 2}]']),
    ("값은 {'키': '값'}입니다", J, ["{'키': '값'}"]),
    ("see [1, 2, 3] there", J, ["[1, 2, 3]"]),
    ("see [1] and [the note] and {this thing}", J, []),
    ('cut {"a": 1,\n"b": 2\n\nprose goes on', J, ['{"a": 1,\n"b": 2']),
    ('[see {"a": 1} below]', J, ['{"a": 1}']),
    # SQL.
    ("Run SELECT a FROM t WHERE b = 1; then stop", S, ["SELECT a FROM t WHERE b = 1;"]),
    ("SELECT a,\n  b\nFROM t\nWHERE c > 2\nIs it right?", S, ["SELECT a,\n  b\nFROM t\nWHERE c > 2"]),
    ("INSERT INTO t (a) VALUES (1);", S, ["INSERT INTO t (a) VALUES (1);"]),
    ("select * from users where id = 3", S, ["select * from users where id = 3"]),
    ("Select the best answer from the list.", S, []),
    ("Please update the set; delete from memory what you can.", S, []),
    ("이 쿼리 DELETE FROM logs WHERE day < 3; 를 보세요", S, ["DELETE FROM logs WHERE day < 3;"]),
    # Tables.
    ("| a | b |\n|---|---|\n| 1 | 2 |", T, ["| a | b |", "|---|---|", "| 1 | 2 |"]),
    ("Name    Age\nBob     12", T, ["Name    Age\nBob     12"]),
    ("이름   나이\n철수   12", T, ["이름   나이\n철수   12"]),
    ("one  gap here\nnone here", T, []),
    ("a\tb\tc", T, ["a\tb\tc"]),
    ("x,y,z\n1,2,3\n4,5,6", T, ["x,y,z\n1,2,3\n4,5,6"]),
    ("Yes, he said, no.\nOh, she said, well.\nAh, they said, so.", T, []),
    # URLs and e-mail.
    ("See https://a.org/b?c=d&e=(f), then.", U, ["https://a.org/b?c=d&e=(f)"]),
    ("(https://a.org/x)", U, ["https://a.org/x"]),
    ("www.example.com/x 와 example.co.kr", U, ["www.example.com/x", "example.co.kr"]),
    ("postgres://u@h:5432/db", U, ["postgres://u@h:5432/db"]),
    ("Well: //not a url", U, []),
    ("Mail bob.lee+x@mail.example.com.", E, ["bob.lee+x@mail.example.com"]),
    ("메일은ann@b.kr로", E, ["ann@b.kr"]),
    ("@ann is at 5 @ noon", E, []),
    # Paths.
    ("cat /etc/nginx/nginx.conf", P, ["/etc/nginx/nginx.conf"]),
    ("~/notes and ./run.sh", P, ["~/notes", "./run.sh"]),
    ("src/app/main.py 파일", P, ["src/app/main.py"]),
    (r"C:\Users\ann\a.txt", P, [r"C:\Users\ann\a.txt"]),
    ("보고서.pdf를 여세요", P, ["보고서.pdf"]),
    ("and/or, 24/7, km/h, he/she", P, []),
    # Identifiers.
    ("id 550e8400-e29b-41d4-a716-446655440000!", I, ["550e8400-e29b-41d4-a716-446655440000"]),
    ("commit 3f2a9c1d by", I, ["3f2a9c1d"]),
    ("user_id와 maxTokens는", I, ["user_id", "maxTokens"]),
    ("MAX_SIZE, __init__", I, ["MAX_SIZE", "__init__"]),
    ("version 1.2.3 or v2.0-rc.1", I, ["1.2.3", "v2.0-rc.1"]),
    ("COVID-19, AB-1234, GPT-4o", I, ["COVID-19", "AB-1234", "GPT-4o"]),
    ("call os.path.join or foo()", I, ["os.path.join", "foo()"]),
    ("전화 010-1234-5678로", I, ["010-1234-5678"]),
    ("Dear {name}, use {{slot}}", I, ["{name}", "{{slot}}"]),
    ("--flag #12 @ann $HOME", I, ["--flag", "#12", "@ann", "$HOME"]),
    ("well-known, e.g. this, U.S. and a.m.", I, []),
    ("It ended.Then it began", I, []),
    # Quotations.
    ('He said "no way" and left', Q, ['"no way"']),
    ("그는 “두 번”이라 했고 ‘예’라고 했다", Q, ["“두 번”", "‘예’"]),
    ("「책」과 『제목』", Q, ["「책」", "『제목』"]),
    ("don't and it's the dogs' own", Q, []),
    ("she said 'yes, I do' twice", Q, ["'yes, I do'"]),
    ("‘I don’t know’ he said", Q, ["‘I don’t know’"]),
    ('a "never closed quotation', Q, []),
    # Numbers with units.
    ("키는 180 cm이고 5%이다", N, ["180 cm", "5%"]),
    ("$3.50 and ₩5,000원", N, ["$3.50", "₩5,000원"]),
    ("2024년 11월 3일", N, ["2024년", "11월", "3일"]),
    ("3만 5천 원과 두 명", N, ["3만 5천 원", "두 명"]),
    ("three dogs, twenty-five cats", N, ["three", "twenty-five"]),
    ("10~20개, 12:30, 1/2", N, ["10~20개", "12:30", "1/2"]),
    ("-5 °C, 3rd, 5pm", N, ["-5 °C", "3rd", "5pm"]),
    ("한국과 두부, 세상", N, []),
    ("often, tension, someone", N, []),
    # Negations.
    ("He is not here and never was", X, ["not", "never"]),
    ("He didn't; we can’t; cannot", X, ["didn't", "can’t", "cannot"]),
    ("not only A but B", X, []),
    ("No. 5 and no 7; know, nor", X, ["nor"]),
    ("knot, notable, another, none", X, ["none"]),
    ("밥을 안 먹었다. 못 갔다.", X, ["안", "못"]),
    ("안녕, 안내, 안전, 그 안에, 못을 박다", X, []),
    ("가지 않는다. 하지는 못한다. 하지 마세요", X, ["지 않", "지는 못", "지 마"]),
    ("사실이 아니다. 없다. 금지", X, ["아니", "없", "금지"]),
    ("미국, 비행기, 무지개, 불꽃", X, []),
    ("미포함, 비공개, 무효", X, ["미", "비", "무"]),
    ("나뭇가지 마을, 강아지 말", X, []),
]


@pytest.mark.parametrize(("text", "kind", "expected"), CASES)
def test_spans_of_a_kind(text: str, kind: Kind, expected: list[str]) -> None:
    assert [text[span.start : span.end] for span in spans(text) if span.kind is kind] == expected


def test_the_table_is_large() -> None:
    assert len(CASES) >= 80
    assert {kind for _, kind, expected in CASES if expected} == set(Kind)


BITS = st.sampled_from(
    [
        *"\n `\"'{}[]|,.:;/\\@#$-_=(<“”「」1a가 안",
        "```",
        "SELECT ",
        " FROM t",
        "http://",
        "a_b",
        "x = 1\n",
        "  ",
        "지 않",
        "5 kg",
        "\ud800",
    ]
)


@settings(deadline=None)
@given(st.lists(BITS, max_size=60).map("".join))
def test_spans_are_in_order_and_within_the_text(text: str) -> None:
    hard = hard_spans(text)
    assert all(span.kind in HARD for span in hard)
    assert all(span.kind in SOFT for span in soft_spans(text))
    assert all(0 <= span.start < span.end <= len(text) for span in spans(text))
    assert all(left.end <= right.start for left, right in pairwise(hard))
    assert [span.start for span in spans(text)] == sorted(span.start for span in spans(text))
    covered = {at for start, end in hard_ranges(text) for at in range(start, end)}
    assert covered == {at for span in hard for at in range(span.start, span.end)}


@pytest.mark.parametrize(
    "unit",
    [
        *(
            "a",
            "가",
            " ",
            "\n",
            "a\n",
            "1",
            ".",
            "/",
            "-",
            "_",
            '"',
            "'",
            "`",
            "```\n",
            "{",
            "[",
            '{"a":',
            "[1",
            "[]",
            '"\\',
            "\\",
            "|",
        ),
        *(
            "\t",
            "a  ",
            "a  b\n",
            "SELECT ",
            "select from ",
            "SELECT FROM ",
            "“",
            "‘",
            "「",
            "@",
            "a@",
            "a.",
            "a/",
            "a-",
            "aB",
            "a_",
            "1,",
        ),
        *(
            "a1",
            "http://",
            "#",
            "$a",
            "(",
            "f(",
            "<a ",
            "a = ",
            "for (",
            "    x\n",
            "안 ",
            "not ",
            "한 명 ",
            "5 ",
            "; ",
            "{{",
            "--a ",
            "a.b ",
        ),
        *(
            "😀",
            "\x00",
            "\ud800",
            "a,b,c\n",
            "return x-",
            "const ",
            "A-",
            "::",
            "https://a.b/(",
            "The cat sat on it. ",
            "한국의 수도는 서울이다. ",
        ),
    ],
)
def test_a_megabyte_takes_a_second_at_most(unit: str) -> None:
    text = (unit * (1_000_000 // len(unit) + 1))[:1_000_000]
    started = time.thread_time()
    hard_spans(text)
    soft_spans(text)
    # A fifth of that is usual; the machine may be busy.
    assert time.thread_time() - started < 6
