"""Tools that the turn may need stay; nothing goes without a reason."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.compressor.history_relevance import Vectors
from services.compressor.prompt import ASSISTANT, USER, Call, Message
from services.compressor.tools import ToolSettings, select_tools, tool_text

SETTINGS = ToolSettings(least_count=2, most_count=3)


def tool(name: str, description: str, **parameters: str) -> str:
    properties = {key: {"type": "string", "description": value} for key, value in parameters.items()}
    function = {"name": name, "description": description, "parameters": {"type": "object", "properties": properties}}
    return json.dumps({"type": "function", "function": function}, ensure_ascii=False)


TOOLS = [
    tool("get_weather", "Current weather of a city", city="name of the city"),
    tool("sendEmail", "Send an e-mail to a contact", recipient="who gets it", subject="subject line"),
    tool("refund_order", "Refund a paid order", order="order number"),
    tool("search_flights", "Find flights between airports", origin="airport", destination="airport"),
    tool("book_table", "식당 예약을 합니다", guests="인원"),
    tool("translate_text", "Translate a text into another language", language="target"),
]


def ask(text: str) -> list[Message]:
    return [Message(0, USER, (text,))]


@pytest.mark.parametrize(
    ("question", "position"),
    [
        ("What is the weather like in Oslo?", 0),
        ("Please refund my order 1234.", 2),
        ("Find me flights to Seoul", 3),
        ("내일 저녁 식당을 예약해 주세요", 4),
    ],
)
def test_the_tool_of_the_turn_stays(question: str, position: int) -> None:
    kept = select_tools(TOOLS, ask(question), SETTINGS)
    assert position in kept.positions
    assert 2 <= len(kept.positions) <= 3
    assert kept.reason.endswith("tools kept by words")


def test_called_chosen_and_named_tools_stay() -> None:
    talk = [
        Message(0, USER, ("translate this",)),
        Message(1, ASSISTANT, (), calls=(Call("1", "translate_text", "{}"),)),
        Message(2, USER, ("Now the weather in Oslo; then use sendEmail",)),
    ]
    kept = select_tools(TOOLS, talk, SETTINGS, chosen="book_table")
    assert {0, 1, 4, 5} <= {*kept.positions, 0}
    assert {1, 4, 5} <= set(kept.positions)


@pytest.mark.parametrize(
    ("tools", "reason"), [(TOOLS[:2], "few tools"), ([], "few tools"), (TOOLS, "nothing tells the tools apart")]
)
def test_everything_stays_without_a_reason(tools: list[str], reason: str) -> None:
    kept = select_tools(tools, ask("zzz"), SETTINGS)
    assert kept.positions == tuple(range(len(tools)))
    assert kept.reason == reason


def test_what_is_no_function_stays() -> None:
    strange = ["no json", "[]", '{"type": "web_search"}', '{"function": {"name": ""}}', '{"function": {"name": 3}}']
    kept = select_tools([*strange, *TOOLS], ask("weather in Oslo"), SETTINGS)
    assert set(range(len(strange))) <= set(kept.positions)
    assert all(tool_text(each) is None for each in strange)


def test_vectors_rank_too() -> None:
    rows = np.eye(len(TOOLS), dtype=np.float32)
    kept = select_tools(TOOLS, ask("zzz"), SETTINGS, vectors=Vectors(rows[3], rows))
    assert 3 in kept.positions


@settings(deadline=None)
@given(
    st.lists(st.sampled_from([*TOOLS, "", "{", "🙂"]), max_size=9),
    st.sampled_from(["", "\ud800", "weather", "예약", "refund flights"]),
    st.integers(1, 5),
    st.integers(1, 6),
)
def test_properties(tools: list[str], question: str, least: int, most: int) -> None:
    options = ToolSettings(least_count=least, most_count=most)
    kept = select_tools(tools, ask(question), options)
    assert list(kept.positions) == sorted(set(kept.positions))
    assert len(kept.positions) >= min(least, len(tools))
    assert kept == select_tools(tools, ask(question), options)
