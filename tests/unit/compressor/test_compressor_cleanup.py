"""Clean-up drops what means nothing and leaves what may mean something."""

from __future__ import annotations

import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.compressor.cleanup import clean

LONG = "Always answer politely and in the language that the customer used."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello   world  \n\n\n\nfoo", "Hello world\n\nfoo"),
        ("  \n\nHello\n\n", "Hello"),
        ("가나다   라마바　　사", "가나다 라마바 사"),
        (unicodedata.normalize("NFD", "한국어 문장입니다"), "한국어 문장입니다"),
        ("- rule   one\n  - rule   two", "- rule one\n  - rule two"),
        # Preambles without content go ...
        ("You are a helpful assistant. Answer in Korean.", "Answer in Korean."),
        ("You are a helpful AI assistant.\n\nAnswer in Korean.", "Answer in Korean."),
        ("You are an AI language model.", ""),
        ("당신은 도움이 되는 AI 어시스턴트입니다. 당신의 역할은 환불 상담입니다.", "당신의 역할은 환불 상담입니다."),
        ("당신은 유능한 인공지능 비서입니다.", ""),
        ("너는 사용자를 돕는 챗봇이야. 짧게 답해.", "짧게 답해."),
        # ... and those that carry a role, a field, a tone or a name stay.
        ("You are a helpful assistant for billing questions.", None),
        ("You are a friendly assistant.", None),
        ("You are Ada, a helpful assistant.", None),
        ("You are a lawyer. Cite the law.", None),
        ("당신은 은행 상담원입니다. 항상 존댓말을 쓰세요.", None),
        ("당신은 친절한 AI 어시스턴트입니다.", None),
        ("당신은 20년 경력의 세무사입니다. 당신의 역할은 절세 상담입니다.", None),
        ("당신은 도움이 되는 여행 전문 어시스턴트입니다.", None),
        ("Say: You are a helpful assistant.", None),
        # Repeated paragraphs and lines.
        (f"{LONG}\n\nBe brief.\n\n{LONG}\n\nEnd.", f"{LONG}\n\nBe brief.\n\nEnd."),
        (f"- {LONG}\n- Be brief.\n- {LONG}\n- End.", f"- {LONG}\n- Be brief.\n- End."),
        ("Yes.\n\nNo.\n\nYes.", None),
        (f"Q: one?\nA: {LONG}\n\nQ: two?\nA: {LONG}", None),
        (f"Example: {LONG}\n\nExample: {LONG}", None),
    ],
)
def test_system_messages(text: str, expected: str | None) -> None:
    assert clean(text, system=True) == (text if expected is None else expected)


@pytest.mark.parametrize(
    "protected",
    [
        "```python\nx  =  1\n\n\n\nprint( x )   \n```",
        "~~~\na   b\n\n\n\nc\n~~~",
        "run `ls   -la` now",
        '{"a":   1,\n\n\n\n "b":  "two   blanks"}',
        "[\n  1,    2,\n\n\n\n  3\n]",
        "| a    | b |\n|------|---|\n| 1    | 2 |",
        "Name    Age\nBob     12\nAl      13",
        "a\tb\t\tc",
        'He said "a   b" twice',
        'She said "first   line\nsecond   line" and left',
        "그는 「두   칸」이라고 말했다",
        "“two   blanks”",
        "SELECT  a,   b\nFROM   t\nWHERE  a  =  1;",
        "def f(x):\n    return  x  +  1",
        "for (int i = 0;  i < n;  i++) {\n    a[i]  =  0;\n}",
        "https://example.com/a?q=1",
    ],
)
def test_protected_text_stays(protected: str) -> None:
    assert clean(protected, system=False) == protected
    around = clean(f"See   this:\n\n\n\n{protected}\n\nThank   you", system=True)
    assert protected in around
    assert "Thank you" in around


def test_only_system_messages_lose_preambles_and_repeats() -> None:
    for text in ("You are a helpful assistant.", f"{LONG}\n\n{LONG}"):
        assert clean(text, system=False) == text


_BITS = st.sampled_from(
    [
        *(
            "\n",
            "\n\n\n",
            " ",
            "   ",
            "\t",
            "```",
            "`",
            '"',
            "a",
            "b  c",
            "{",
            "}",
            "[1]",
            "|",
            "  x",
            "가",
            "각",
            "e\u0301",
        ),
        *(
            "You are a helpful assistant.",
            "당신은 유능한 비서입니다.",
            LONG,
            "def f():",
            "https://a.b/c",
            "Q:",
            "“",
            "”",
        ),
        *("\u0958", "\r\n", "\u2028", "- ", "a   b\n", "c   d\n"),
    ]
)


@settings(deadline=None)
@given(st.lists(_BITS, max_size=30).map("".join), st.booleans())
def test_never_longer_and_settled_after_once(text: str, system: bool) -> None:
    cleaned = clean(text, system=system)
    assert len(cleaned) <= len(text)
    assert clean(cleaned, system=system) == cleaned


@settings(deadline=None)
@given(st.text(max_size=200), st.booleans())
def test_any_text(text: str, system: bool) -> None:
    cleaned = clean(text, system=system)
    assert len(cleaned) <= len(text)
    assert clean(cleaned, system=system) == cleaned


@pytest.mark.parametrize(
    "text",
    [
        "a\n",
        '"',
        "{",
        "가 ",
        "\n",
        " ",
        " x",
        "(a)",
        "(a",
        "“",
        "`",
        "-",
        "|a",
        "a   ",
        " \n",
        "q ",
        "```\n",
        "\t",
        "you are a helpful ",
    ],
)
def test_no_text_takes_quadratic_time(text: str) -> None:
    for whole in (text * (60_000 // len(text)), text * (60_000 // len(text)) + "x"):
        started = time.thread_time()
        clean(whole, system=True)
        assert time.thread_time() - started < 3.0
