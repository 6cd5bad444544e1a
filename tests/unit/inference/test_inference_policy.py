"""Decisions of inference that need no provider."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.errors import TenthError
from services.inference.policy import (
    Ability,
    Circuit,
    Delta,
    Generation,
    Image,
    Message,
    Meter,
    ResponseKind,
    Sampling,
    Tool,
    ToolCall,
    check_abilities,
    room_for_output,
    with_passages,
    worst_case,
)
from services.inference.usage import Usage


def user(text: str) -> Message:
    return Message("user", (text,))


def test_passages_stand_before_the_last_user_message_in_the_fixed_form() -> None:
    messages = [user("first"), Message("assistant", ("ok",)), user("Why?")]
    result = with_passages(messages, ["one", "two"])
    assert result[2].text == "Context:\n[1] one\n[2] two\n\nWhy?"
    assert result[:2] == tuple(messages[:2])


def test_passages_before_a_picture_and_without_a_user_message() -> None:
    picture = Message("user", (Image("https://x/y.png"), "What is it?"))
    assert with_passages([picture], ["one"])[0].parts[0] == "Context:\n[1] one\n\n"
    assert with_passages([Message("system", ("s",))], ["one"])[-1] == user("Context:\n[1] one\n\n")


@given(st.lists(st.text(min_size=1), max_size=5), st.lists(st.text(), max_size=4))
def test_passages_change_nothing_but_one_message(texts: list[str], passages: list[str]) -> None:
    messages = tuple(user(text) for text in texts)
    result = with_passages(messages, passages)
    assert len(result) == max(len(messages), 1 if passages else 0)
    assert result[: len(messages) - 1] == messages[: len(messages) - 1] or not messages
    if messages:
        assert result[-1].text.endswith(messages[-1].text)


def test_a_meter_charges_what_is_known() -> None:
    meter = Meter(100, len)
    assert meter.usage() == Usage()
    meter.reached = True
    assert meter.usage() == Usage(input=100, estimated=True)
    meter.emit(Delta(text="abc", reasoning="de", tool_calls=(ToolCall(0, "i", "f", "{}"),)))
    assert meter.usage() == Usage(input=100, output=8, estimated=True)
    meter.reported = Usage(input=90, output=5)
    assert meter.usage() == Usage(input=90, output=5)


def test_worst_case_is_bounded_by_the_model() -> None:
    generation = Generation("r", 1, "m", (), estimated_input=50)
    assert worst_case(generation, 200) == Usage(input=50, output=200, estimated=True)
    wants = Generation("r", 1, "m", (), sampling=Sampling(max_output_tokens=10), estimated_input=50)
    assert worst_case(wants, 200).output == 10


def test_the_window_leaves_what_it_leaves() -> None:
    assert room_for_output("m", 100, 90, 50) == 10
    assert room_for_output("m", 100, 10, 50) == 50
    with pytest.raises(TenthError) as caught:
        room_for_output("m", 100, 100, 1)
    assert caught.value.reason == "PROMPT_TOO_LONG"
    assert caught.value.metadata == {"prompt_tokens": "100", "context_window_tokens": "100"}


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"tools": (Tool("f", "", None),)}, "generation.tools"),
        ({"response": ResponseKind.JSON_SCHEMA}, "generation.response_format"),
        ({"messages": (Message("user", (Image("https://x"),)),)}, "generation.messages"),
    ],
)
def test_what_a_model_cannot_do_is_refused_by_field(changes: dict[str, Any], field: str) -> None:
    generation = Generation(**{"request_id": "r", "attempt": 1, "model": "m", "messages": (), **changes})
    with pytest.raises(TenthError) as caught:
        check_abilities(generation, Ability())
    assert (caught.value.reason, caught.value.field) == ("UNSUPPORTED", field)
    check_abilities(generation, Ability(tools=True, json_schema=True, vision=True))


def test_a_circuit_opens_probes_once_and_closes() -> None:
    circuit = Circuit(limit=2, open_seconds=3)
    circuit.failed(0, "down")
    assert circuit.wait_seconds(0) == 0
    circuit.failed(0, "down")
    assert not circuit.healthy
    assert circuit.wait_seconds(1) == 2
    assert circuit.wait_seconds(3) == 0  # the probe
    assert circuit.wait_seconds(3) > 0  # only one at a time
    circuit.failed(3, "still down")
    assert circuit.wait_seconds(4) == 2
    assert circuit.wait_seconds(6) == 0
    circuit.left()
    assert circuit.wait_seconds(6) == 0
    circuit.succeeded()
    assert circuit.healthy
    assert circuit.reason == ""
