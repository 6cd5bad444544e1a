"""Tool calls on the real engine: the shipped model under a chat template that renders tools in the Hermes form.

The model is too small to call tools by itself; what a grammar forces does not depend on that.
"""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from mesh.errors import TenthError
from services.inference.backend import Answer
from services.inference.models import parse_catalog
from services.inference.policy import Delta, Finished, Generation, Message, Meter, Sampling, Tool, ToolCall
from services.inference.serving import open_models
from services.inference.settings import InferenceSettings
from services.inference.vllm import VllmBackend

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # vLLM and torch warn of their own deprecations while they are imported.
    pytest.mark.filterwarnings("ignore"),
]

FOLDER = Path(os.environ.get("TENTH_MODELS_DIR", ".models")) / "smollm2-135m-instruct"
TEMPLATE = """{%- if tools %}{{ '<|im_start|>system\\nYou may call these functions:\\n<tools>' }}
{%- for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor %}
{{- '\\n</tools>\\nWrite a call as <tool_call>{"name": NAME, "arguments": OBJECT}</tool_call>.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'tool' and not message.name %}{{ raise_exception('a result without a call') }}{% endif %}
{{- '<|im_start|>' + message.role + '\\n' + message.content }}
{%- for call in message.tool_calls or [] %}
{{- '\\n<tool_call>\\n' + call.function | tojson + '\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
CATALOG = """
providers: {local: {backend: vllm}}
models:
  small:
    provider: local
    provider_model: calls-tools
    context_window_tokens: 1024
    max_output_tokens: 512
    abilities: {tools: true, json_schema: true}
    tool_format: hermes
"""
WEATHER = Tool(
    "get_weather",
    "The weather of a city.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Paris", "서울"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 9},
            "night": {"type": "boolean"},
        },
        "required": ["city", "days", "night"],
        "additionalProperties": False,
    },
)
CLOCK = Tool("get_time", "", None)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[VllmBackend]:
    folder = tmp_path_factory.mktemp("models") / "calls-tools"
    folder.mkdir()
    for path in FOLDER.iterdir():
        (folder / path.name).symlink_to(path.resolve())
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    catalog = parse_catalog(CATALOG, "c.yaml")
    settings = InferenceSettings(models_dir=folder.parent, kv_cache_bytes=128 * 1024 * 1024, max_running=4)
    async with AsyncExitStack() as stack:
        served, _ = await open_models(catalog, catalog["small"], settings, "", stack)
        result = served["small"].backend
        assert isinstance(result, VllmBackend)
        for _ in range(900):
            if not result.unavailable_reason() or not result.runs():
                break
            await asyncio.sleep(0.2)
        await result.ping()
        yield result


def asked(choice: str, name: str = "", *messages: Message, **changes: Any) -> Generation:
    return Generation(
        request_id=f"r{time.monotonic_ns()}",
        attempt=1,
        model="small",
        messages=messages or (Message("user", ("How is the weather in 서울?",)),),
        tools=changes.pop("tools", (WEATHER, CLOCK)),
        tool_choice=choice,
        tool_choice_name=name,
        sampling=Sampling(**{"temperature": 0.0, "max_output_tokens": 80, **changes.pop("sampling", {})}),
        **changes,
    )


async def whole(backend: VllmBackend, generation: Generation) -> tuple[Answer, Meter]:
    meter = Meter(1, len)
    return await backend.generate(generation, meter), meter


def check_weather(call: ToolCall) -> None:
    arguments = json.loads(call.arguments)
    assert call.name == "get_weather"
    assert set(arguments) == {"city", "days", "night"}
    assert arguments["city"] in ("Paris", "서울")
    assert arguments["days"] in range(1, 10)
    assert isinstance(arguments["night"], bool)


async def test_a_named_tool_is_called_with_arguments_to_its_schema(backend: VllmBackend) -> None:
    answer, meter = await whole(backend, asked("named", "get_weather"))
    assert answer.delta.text == ""
    (call,) = answer.delta.tool_calls
    check_weather(call)
    assert (call.index, bool(call.id)) == (0, True)
    assert answer.finished.finish_reason == "tool_calls"
    assert meter.usage() == answer.finished.usage
    assert not answer.finished.usage.estimated
    assert 15 < answer.finished.usage.output < 80


async def test_a_required_call_is_one_of_the_tools_streamed_and_whole(backend: VllmBackend) -> None:
    answer, _ = await whole(backend, asked("required"))
    assert answer.finished.finish_reason == "tool_calls"
    assert answer.delta.tool_calls
    for call in answer.delta.tool_calls:
        assert call.name in ("get_weather", "get_time")
        assert isinstance(json.loads(call.arguments), dict)
    events = [event async for event in backend.stream(asked("required"), Meter(1, len))]
    assert len(events) == 2, "nothing of a forced call is text"
    assert isinstance(events[0], Delta)
    assert isinstance(events[1], Finished)
    assert [(call.name, call.arguments) for call in events[0].tool_calls] == [
        (call.name, call.arguments) for call in answer.delta.tool_calls
    ]
    assert (events[1].finish_reason, events[1].usage.output) == ("tool_calls", answer.finished.usage.output)


async def test_a_call_that_is_cut_off_is_text_and_says_length(backend: VllmBackend) -> None:
    answer, _ = await whole(backend, asked("named", "get_weather", sampling={"max_output_tokens": 10}))
    assert answer.delta.tool_calls == ()
    assert answer.delta.text.startswith("<tool_call>")
    assert (answer.finished.finish_reason, answer.finished.usage.output) == ("length", 10)


async def test_with_auto_the_model_is_told_of_tools_and_may_answer_in_text(backend: VllmBackend) -> None:
    question = Message("user", ("What is the capital of France?",))
    generation = asked("auto", "", question)
    events = [event async for event in backend.stream(generation, Meter(1, len))]
    deltas = [event for event in events if isinstance(event, Delta)]
    answer, _ = await whole(backend, asked("auto", "", question))
    assert answer.delta.text == "".join(delta.text for delta in deltas)
    assert len(answer.delta.tool_calls) == sum(len(delta.tool_calls) for delta in deltas)
    assert len(deltas) > 4, "it streams"
    none, _ = await whole(backend, asked("none", "", question))
    plain, _ = await whole(backend, asked("", "", question, tools=()))
    assert none.delta == plain.delta
    assert none.finished.usage.input == plain.finished.usage.input
    assert answer.finished.usage.input > plain.finished.usage.input + 60


async def test_results_go_back_to_the_model(backend: VllmBackend) -> None:
    question = Message("user", ("How is the weather in 서울?",))
    called = Message("assistant", (), tool_calls=(ToolCall(0, "c1", "get_weather", '{"city": "서울"}'),))
    result = Message("tool", ("sunny",), tool_call_id="c1")
    answer, _ = await whole(backend, asked("auto", "", question, called, result))
    before, _ = await whole(backend, asked("auto", "", question))
    assert answer.delta.text or answer.delta.tool_calls
    assert answer.finished.usage.input > before.finished.usage.input + 20
    with pytest.raises(TenthError, match="a result without a call") as caught:
        await whole(backend, asked("auto", "", question, result))
    assert (caught.value.reason, caught.value.field) == ("UNSUPPORTED", "generation.messages")


async def test_tools_that_no_grammar_can_be_made_of_are_refused(backend: VllmBackend) -> None:
    odd = Tool("f", "", {"type": "object", "properties": {"a": {"$ref": "#/$defs/none"}}, "required": ["a"]})
    with pytest.raises(TenthError) as caught:
        await whole(backend, asked("required", tools=(odd,)))
    assert (caught.value.reason, caught.value.field) == ("UNSUPPORTED", "generation.tools")
    answer, _ = await whole(backend, asked("named", "get_weather"))
    assert answer.delta.tool_calls, "the engine goes on"
