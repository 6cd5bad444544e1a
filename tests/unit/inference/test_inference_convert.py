"""Messages to plain types and to OpenAI's JSON, with every refusal."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from tenth.inference.v1 import inference_pb2

from mesh.errors import TenthError
from services.inference.convert import generation_from_proto
from services.inference.policy import Generation
from services.inference.wire import delta_of, finish_reason_of, request_body

USER = {"role": "ROLE_USER", "parts": [{"text": "Hi"}]}
BASE: dict[str, Any] = {"requestId": "r", "attempt": 1, "model": "m", "messages": [USER]}


def convert(**changes: Any) -> Generation:
    request = ParseDict({**BASE, **changes}, inference_pb2.GenerateTextRequest())
    return generation_from_proto(request, tenant_id="acme", traceparent="")


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"requestId": ""}, "REQUIRED_FIELD", "generation.request_id"),
        ({"attempt": 0}, "INVALID_FIELD", "generation.attempt"),
        ({"model": ""}, "REQUIRED_FIELD", "generation.model"),
        ({"messages": []}, "REQUIRED_FIELD", "generation.messages"),
        ({"messages": [{"parts": [{"text": "x"}]}]}, "INVALID_FIELD", "generation.messages[0].role"),
        ({"messages": [USER, {"role": "ROLE_USER"}]}, "REQUIRED_FIELD", "generation.messages[1].parts"),
        (
            {"messages": [{"role": "ROLE_USER", "parts": [{}]}]},
            "REQUIRED_FIELD",
            "generation.messages[0].parts[0].content",
        ),
        (
            {"messages": [{"role": "ROLE_TOOL", "parts": [{"text": "x"}]}]},
            "REQUIRED_FIELD",
            "generation.messages[0].tool_call_id",
        ),
        ({"sampling": {"temperature": 2.5}}, "INVALID_FIELD", "generation.sampling.temperature"),
        ({"sampling": {"topP": 0}}, "INVALID_FIELD", "generation.sampling.top_p"),
        ({"sampling": {"maxOutputTokens": 0}}, "INVALID_FIELD", "generation.sampling.max_output_tokens"),
        ({"sampling": {"presencePenalty": -3}}, "INVALID_FIELD", "generation.sampling.presence_penalty"),
        ({"sampling": {"stop": ["a", ""]}}, "INVALID_FIELD", "generation.sampling.stop"),
        ({"sampling": {"topLogprobsCount": 21}}, "INVALID_FIELD", "generation.sampling.top_logprobs_count"),
        (
            {"responseFormat": {"kind": "RESPONSE_FORMAT_KIND_JSON_SCHEMA"}},
            "REQUIRED_FIELD",
            "generation.response_format.json_schema",
        ),
        (
            {"responseFormat": {"kind": "RESPONSE_FORMAT_KIND_JSON_SCHEMA", "jsonSchema": "{"}},
            "INVALID_FIELD",
            "generation.response_format.json_schema",
        ),
        ({"tools": [{"name": ""}]}, "REQUIRED_FIELD", "generation.tools[0].name"),
        (
            {"tools": [{"name": "f", "parametersJsonSchema": "[]"}]},
            "INVALID_FIELD",
            "generation.tools[0].parameters_json_schema",
        ),
        (
            {"toolChoice": {"mode": "TOOL_CHOICE_MODE_NAMED", "name": "f"}},
            "INVALID_FIELD",
            "generation.tool_choice.name",
        ),
    ],
)
def test_a_malformed_request_is_refused_by_field(changes: dict[str, Any], reason: str, field: str) -> None:
    with pytest.raises(TenthError) as caught:
        convert(**changes)
    assert (caught.value.code.name, caught.value.reason, caught.value.field) == ("INVALID_ARGUMENT", reason, field)


def test_everything_reaches_the_provider_in_its_words() -> None:
    generation = convert(
        messages=[
            {"role": "ROLE_SYSTEM", "parts": [{"text": "Be "}, {"text": "short."}]},
            {"role": "ROLE_USER", "name": "kim", "parts": [{"text": "See"}, {"image": {"url": "https://x/y"}}]},
            {"role": "ROLE_ASSISTANT", "toolCalls": [{"id": "c1", "name": "f", "argumentsJson": '{"a":1}'}]},
            {"role": "ROLE_TOOL", "toolCallId": "c1", "parts": [{"text": "2"}]},
        ],
        tools=[{"name": "f", "description": "d", "parametersJsonSchema": '{"type":"object"}'}, {"name": "g"}],
        toolChoice={"mode": "TOOL_CHOICE_MODE_NAMED", "name": "f"},
        responseFormat={"kind": "RESPONSE_FORMAT_KIND_JSON_SCHEMA", "name": "n", "jsonSchema": "{}"},
        sampling={"temperature": 0, "topP": 0.5, "maxOutputTokens": 7, "stop": ["x"], "seed": 3, "topLogprobsCount": 2},
        retrievedChunks=[{"text": "fact"}],
    )
    body = request_body(generation, "gpt", "max_completion_tokens", stream=True)
    assert body["messages"] == [
        {"role": "system", "content": "Be short."},
        {
            "role": "user",
            "name": "kim",
            "content": [
                {"type": "text", "text": "Context:\n[1] fact\n\nSee"},
                {"type": "image_url", "image_url": {"url": "https://x/y", "detail": "auto"}},
            ],
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}}],
        },
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
    ]
    assert body["tools"][0]["function"]["parameters"] == {"type": "object"}
    assert "parameters" not in body["tools"][1]["function"]
    assert body["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert body["response_format"]["json_schema"] == {"name": "n", "schema": {}, "strict": True}
    assert (body["temperature"], body["top_p"], body["seed"], body["stop"]) == (0, 0.5, 3, ["x"])
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
    assert body["max_completion_tokens"] == 7
    assert body["stream_options"] == {"include_usage": True}
    plain = request_body(convert(sampling={"maxOutputTokens": 7}), "m", "max_tokens", stream=False)
    assert plain == {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 7}


def test_an_answer_is_read_whatever_the_dialect() -> None:
    delta = delta_of(
        {
            "content": [{"type": "text", "text": "a"}, {"type": "other"}],
            "reasoning_content": "because",
            "tool_calls": [{"id": "c", "function": {"name": "f", "arguments": {"a": 1}}}],
        },
        {"logprobs": {"content": [{"token": "a", "logprob": -0.1, "top_logprobs": [{"token": "b", "logprob": -2}]}]}},
    )
    assert (delta.text, delta.reasoning) == ("a", "because")
    assert (delta.tool_calls[0].name, delta.tool_calls[0].arguments) == ("f", '{"a": 1}')
    assert delta.logprobs[0].alternatives == (("b", -2),)
    assert [finish_reason_of(value) for value in ("stop", "max_tokens", "function_call", "eos", None, "")] == [
        "stop",
        "length",
        "tool_calls",
        "stop",
        "",
        "",
    ]
