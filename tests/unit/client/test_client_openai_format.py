"""OpenAI-format requests to CompletionRequest: what is taken, and what is refused by which name."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tenth.type.v1 import chat_pb2

from formats.openai import FormatError, completion_request, parse_json, read_jsonl
from tenth_client.client import to_messages

USER = {"role": "user", "content": "hello"}


def body(**more: Any) -> dict[str, Any]:
    return {"messages": [USER], **more}


def test_messages_of_every_role() -> None:
    request = completion_request(
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "developer", "content": "Be kind."},
                {"role": "user", "name": "kim", "content": "날씨 어때?"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "c1",
                            "type": "function",
                            "function": {"name": "weather", "arguments": '{"city":"서울"}'},
                        }
                    ],
                },
                {"role": "tool", "tool_call_id": "c1", "content": "맑음"},
            ]
        }
    )
    roles = [message.role for message in request.messages]
    assert roles == [
        chat_pb2.ROLE_SYSTEM,
        chat_pb2.ROLE_SYSTEM,
        chat_pb2.ROLE_USER,
        chat_pb2.ROLE_ASSISTANT,
        chat_pb2.ROLE_TOOL,
    ]
    assert request.messages[2].name == "kim"
    assert request.messages[3].tool_calls[0] == chat_pb2.ToolCall(
        id="c1", name="weather", arguments_json='{"city":"서울"}'
    )
    assert not request.messages[3].parts
    assert request.messages[4].tool_call_id == "c1"


def test_content_of_several_parts() -> None:
    parts = [
        {"type": "text", "text": "What is this?"},
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}},
        {"type": "image_url", "image_url": "data:image/png;base64,AAAA"},
    ]
    message = completion_request({"messages": [{"role": "user", "content": parts}]}).messages[0]
    assert message.parts[0].text == "What is this?"
    assert message.parts[1].image == chat_pb2.ImageContent(url="https://example.com/a.png", detail="low")
    assert message.parts[2].image.url.startswith("data:")


def test_tools_choice_and_format() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    request = completion_request(
        body(
            tools=[{"type": "function", "function": {"name": "book", "parameters": schema, "has_side_effects": True}}],
            tool_choice={"type": "function", "function": {"name": "book"}},
            response_format={"type": "json_schema", "json_schema": {"name": "place", "schema": schema}},
        )
    )
    assert request.tools[0].has_side_effects
    assert json.loads(request.tools[0].parameters_json_schema) == schema
    assert request.tool_choice == chat_pb2.ToolChoice(mode=chat_pb2.TOOL_CHOICE_MODE_NAMED, name="book")
    assert request.response_format.kind == chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA
    assert json.loads(request.response_format.json_schema) == schema


@pytest.mark.parametrize(
    ("given_choice", "mode"),
    [
        ("auto", chat_pb2.TOOL_CHOICE_MODE_AUTO),
        ("none", chat_pb2.TOOL_CHOICE_MODE_NONE),
        ("required", chat_pb2.TOOL_CHOICE_MODE_REQUIRED),
    ],
)
def test_tool_choice_words(given_choice: str, mode: chat_pb2.ToolChoiceMode.ValueType) -> None:
    assert completion_request(body(tool_choice=given_choice)).tool_choice.mode == mode


def test_sampling() -> None:
    sampling = completion_request(
        body(temperature=0, top_p=0.5, max_completion_tokens=7, stop="END", seed=3, logprobs=True, top_logprobs=5)
    ).sampling
    assert sampling.HasField("temperature")
    assert sampling.temperature == 0
    assert sampling.top_p == 0.5
    assert sampling.max_output_tokens == 7
    assert list(sampling.stop) == ["END"]
    assert sampling.seed == 3
    assert sampling.top_logprobs_count == 5


def test_absent_sampling_stays_absent() -> None:
    assert not completion_request(body()).HasField("sampling")


def test_own_extension() -> None:
    request = completion_request(
        body(
            user="u1",
            metadata={"team": "desk"},
            model="gpt-4o",
            stream=True,
            tenth={
                "retrieved_chunks": ["plain", {"text": "t", "chunk_id": "c", "document_id": "d", "score": 0.5}],
                "tags": {"app": "faq"},
                "namespace": "shop",
                "project_id": "p1",
                "request_id": "r1",
                "policy": {
                    "tier_floor": "medium",
                    "cache_mode": "read",
                    "compression_mode": "off",
                    "completion_window": "15m",
                    "cache_max_age": 90,
                    "quality_target": 0.9,
                    "model": "gpt-4o-mini",
                },
            },
        )
    )
    assert [chunk.text for chunk in request.retrieved_chunks] == ["plain", "t"]
    assert request.retrieved_chunks[1].score == 0.5
    assert not request.retrieved_chunks[0].HasField("score")
    assert dict(request.tags) == {"team": "desk", "app": "faq"}
    assert (request.namespace, request.project_id, request.request_id, request.user_id) == ("shop", "p1", "r1", "u1")
    policy = request.policy
    assert policy.tier_floor == chat_pb2.TIER_MEDIUM
    assert policy.cache_mode == chat_pb2.CACHE_MODE_READ
    assert policy.compression_mode == chat_pb2.COMPRESSION_MODE_OFF
    assert policy.completion_window.seconds == 900
    assert policy.cache_max_age.seconds == 90
    assert policy.model == "gpt-4o-mini"


def test_the_body_s_model_binds_nothing() -> None:
    assert not completion_request(body(model="gpt-4o")).HasField("policy")


@pytest.mark.parametrize(
    ("request_body", "field"),
    [
        ({}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [USER, {"role": "wizard", "content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": 7, "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]}, "messages[0].content[0].text"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "ftp://x"}]}]},
            "messages[0].content[0].image_url.url",
        ),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{**USER, "tool_calls": [{"function": {"name": "f"}}]}]}, "messages[0].tool_calls"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0].function.name"),
        ({"messages": [{**USER, "colour": "red"}]}, "messages[0].colour"),
        (body(temprature=1), "temprature"),
        (body(temperature=3), "temperature"),
        (body(temperature="hot"), "temperature"),
        (body(temperature=True), "temperature"),
        (body(top_p=0), "top_p"),
        (body(max_tokens=0), "max_tokens"),
        (body(max_tokens=1.5), "max_tokens"),
        (body(seed=2**70), "seed"),
        (body(stop=["a"] * 5), "stop"),
        (body(stop=[1]), "stop[0]"),
        (body(n=2), "n"),
        (body(logprobs="yes"), "logprobs"),
        (body(logprobs=True, top_logprobs=99), "top_logprobs"),
        (body(tools={}), "tools"),
        (body(tools=[{"type": "web"}]), "tools[0].type"),
        (body(tools=[{"function": {}}]), "tools[0].function.name"),
        (body(tools=[{"function": {"name": "f", "parameters": []}}]), "tools[0].function.parameters"),
        (body(tool_choice="maybe"), "tool_choice"),
        (body(tool_choice={"function": {}}), "tool_choice.function.name"),
        (body(response_format={"type": "xml"}), "response_format.type"),
        (body(response_format={"type": "json_schema", "json_schema": {}}), "response_format.json_schema.schema"),
        (body(metadata={"a": 1}), "metadata.a"),
        (body(tenth={"colour": 1}), "tenth.colour"),
        (body(tenth={"retrieved_chunks": [{}]}), "tenth.retrieved_chunks[0].text"),
        (body(tenth={"retrieved_chunks": [{"text": "t", "score": "x"}]}), "tenth.retrieved_chunks[0].score"),
        (body(tenth={"policy": {"tier_floor": "huge"}}), "tenth.policy.tier_floor"),
        (body(tenth={"policy": {"quality_target": 0}}), "tenth.policy.quality_target"),
        (body(tenth={"policy": {"completion_window": "soon"}}), "tenth.policy.completion_window"),
        (body(tenth={"policy": {"completion_window": -1}}), "tenth.policy.completion_window"),
        (body(tenth={"policy": {"speed": 1}}), "tenth.policy.speed"),
    ],
)
def test_refused_by_field(request_body: dict[str, Any], field: str) -> None:
    with pytest.raises(FormatError) as caught:
        completion_request(request_body)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        (b'{"messages": "\xff"}', "line 2: not UTF-8 at byte 14"),
        (b'{"messages": [', "line 2: not JSON at column"),
        (b"[1]", "line 2: a JSON object is expected, not a list"),
        (b'{"messages": [{"role": "user", "content": NaN}]}', "line 2: NaN is not JSON"),
        (b"[" * 100_000, "line 2: not JSON: nested too deeply"),
        (b'{"messages": [{"role": "elf", "content": "x"}]}', "line 2: messages[0].role: unknown role 'elf'"),
        (b'{"custom_id": "a", "body": 3}', "line 2: body: an object is expected"),
    ],
)
def test_a_bad_line_is_named(raw: bytes, words: str) -> None:
    good = json.dumps({"messages": [USER]}).encode()
    with pytest.raises(FormatError) as caught:
        read_jsonl(good + b"\n" + raw + b"\n" + good)
    assert str(caught.value).startswith(words)


def test_jsonl_keeps_line_numbers_and_takes_the_batch_form() -> None:
    plain = json.dumps({"messages": [USER]})
    batch = json.dumps({"custom_id": "x1", "method": "POST", "url": "/v1/chat/completions", "body": json.loads(plain)})
    lines = read_jsonl(f"{plain}\r\n\n{batch}\n".encode())
    assert [(line.number, line.custom_id) for line in lines] == [(1, ""), (3, "x1")]
    assert lines[0].request == lines[1].request


def test_messages_for_the_client() -> None:
    made = to_messages([USER, chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT), {"role": "user", "content": "b"}])
    assert [message.role for message in made] == [chat_pb2.ROLE_USER, chat_pb2.ROLE_ASSISTANT, chat_pb2.ROLE_USER]
    assert to_messages("hi")[0].parts[0].text == "hi"
    with pytest.raises(FormatError) as caught:
        to_messages([USER, {"role": "elf"}])
    assert caught.value.field == "messages[1].role"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.sampled_from(
        ["messages", "tools", "tool_choice", "response_format", "stop", "metadata", "tenth", "user", "seed"]
    ),
    json_values,
)
def test_anything_else_is_refused_typed(key: str, value: Any) -> None:
    with contextlib.suppress(FormatError):
        assert completion_request({"messages": [USER], key: value}).messages


@given(st.binary(max_size=64))
def test_any_bytes_are_an_object_or_refused(raw: bytes) -> None:
    with contextlib.suppress(FormatError):
        assert isinstance(parse_json(raw), dict)
