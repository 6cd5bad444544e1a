"""Every rule of a request's form: bad input, the field that is named, and the reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tenth.type.v1 import chat_pb2

from mesh.errors import Code, Reason, TenthError
from mesh.validation import prompt_bytes, validate

LIMIT = 4 * 1024 * 1024
BAD, MISSING, LARGE = Reason.INVALID_FIELD, Reason.REQUIRED_FIELD, Reason.PROMPT_TOO_LARGE
NAN, INF = float("nan"), float("inf")
USER, ASSISTANT, TOOL, SYSTEM = chat_pb2.ROLE_USER, chat_pb2.ROLE_ASSISTANT, chat_pb2.ROLE_TOOL, chat_pb2.ROLE_SYSTEM
UNKNOWN: Any = 77
"""An enum value of a newer proto."""

Part, Message, Request = chat_pb2.ContentPart, chat_pb2.ChatMessage, chat_pb2.CompletionRequest


def says(text: str, role: chat_pb2.Role.ValueType = USER, **fields: Any) -> chat_pb2.ChatMessage:
    return Message(role=role, parts=[Part(text=text)], **fields)


def calls(*ids: str) -> chat_pb2.ChatMessage:
    return Message(role=ASSISTANT, tool_calls=[chat_pb2.ToolCall(id=each, name="find") for each in ids])


def request(*messages: chat_pb2.ChatMessage, **fields: Any) -> chat_pb2.CompletionRequest:
    return Request(messages=messages or [says("Hello?")], **fields)


def tool(name: str = "find", schema: str = "") -> chat_pb2.Tool:
    return chat_pb2.Tool(name=name, parameters_json_schema=schema)


def sampled(**fields: Any) -> chat_pb2.CompletionRequest:
    return request(sampling=chat_pb2.SamplingParameters(**fields))


def policed(**fields: Any) -> chat_pb2.CompletionRequest:
    return request(policy=chat_pb2.RequestPolicy(**fields))


def shaped(**fields: Any) -> chat_pb2.CompletionRequest:
    fields.setdefault("kind", chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA)
    return request(response_format=chat_pb2.ResponseFormat(**fields))


def chosen(
    mode: chat_pb2.ToolChoiceMode.ValueType, name: str = "", *tools: chat_pb2.Tool
) -> chat_pb2.CompletionRequest:
    return request(tools=tools, tool_choice=chat_pb2.ToolChoice(mode=mode, name=name))


def chunked(*chunks: chat_pb2.RetrievedChunk) -> chat_pb2.CompletionRequest:
    return request(retrieved_chunks=chunks)


def windowed(name: str, seconds: int = 0, nanos: int = 0) -> chat_pb2.CompletionRequest:
    made = request()
    getattr(made.policy, name).seconds = seconds
    getattr(made.policy, name).nanos = nanos
    return made


Chunk, Mode = chat_pb2.RetrievedChunk, chat_pb2.ToolChoiceMode
FIRST = "request.messages[0]"

REFUSED: list[tuple[str, chat_pb2.CompletionRequest, str, str]] = [
    ("no messages", Request(), "request.messages", MISSING),
    ("too many messages", request(*[says("x")] * 10_001), "request.messages", BAD),
    ("request id", request(request_id="42"), "request.request_id", BAD),
    ("no role", request(Message(parts=[Part(text="x")])), f"{FIRST}.role", BAD),
    ("unknown role", request(says("x", UNKNOWN)), f"{FIRST}.role", BAD),
    ("empty message", request(Message(role=USER)), f"{FIRST}.parts", MISSING),
    ("empty part", request(Message(role=USER, parts=[Part()])), f"{FIRST}.parts[0].content", MISSING),
    (
        "second part empty",
        request(Message(role=USER, parts=[Part(text="x"), Part()])),
        f"{FIRST}.parts[1].content",
        MISSING,
    ),
    (
        "file picture",
        request(Message(role=USER, parts=[Part(image=chat_pb2.ImageContent(url="file:///etc/passwd"))])),
        f"{FIRST}.parts[0].image.url",
        BAD,
    ),
    (
        "plain http picture",
        request(Message(role=USER, parts=[Part(image=chat_pb2.ImageContent(url="http://x/y.png"))])),
        f"{FIRST}.parts[0].image.url",
        BAD,
    ),
    (
        "empty picture",
        request(Message(role=USER, parts=[Part(image=chat_pb2.ImageContent())])),
        f"{FIRST}.parts[0].image.url",
        BAD,
    ),
    ("last from the model", request(says("x"), says("y", ASSISTANT)), "request.messages[1].role", BAD),
    ("only instructions", request(says("x", SYSTEM)), f"{FIRST}.role", BAD),
    (
        "a user calls tools",
        request(Message(role=USER, parts=[Part(text="x")], tool_calls=[chat_pb2.ToolCall(id="c", name="n")])),
        f"{FIRST}.tool_calls",
        BAD,
    ),
    ("tool call without id", request(calls(""), says("x")), f"{FIRST}.tool_calls[0].id", MISSING),
    (
        "tool call without name",
        request(Message(role=ASSISTANT, tool_calls=[chat_pb2.ToolCall(id="c")]), says("x")),
        f"{FIRST}.tool_calls[0].name",
        MISSING,
    ),
    ("tool result of nothing", request(says("r", TOOL)), f"{FIRST}.tool_call_id", MISSING),
    ("orphan tool result", request(says("r", TOOL, tool_call_id="c")), f"{FIRST}.tool_call_id", BAD),
    (
        "tool result before its call",
        request(says("r", TOOL, tool_call_id="c"), calls("c"), says("x")),
        f"{FIRST}.tool_call_id",
        BAD,
    ),
    (
        "result of another call",
        request(calls("a"), says("r", TOOL, tool_call_id="b")),
        "request.messages[1].tool_call_id",
        BAD,
    ),
    ("tool without name", request(tools=[tool("")]), "request.tools[0].name", BAD),
    ("tool name with space", request(tools=[tool("a b")]), "request.tools[0].name", BAD),
    ("Korean tool name", request(tools=[tool("찾기")]), "request.tools[0].name", BAD),
    ("tool name ends in newline", request(tools=[tool("find\n")]), "request.tools[0].name", BAD),
    ("long tool name", request(tools=[tool("x" * 65)]), "request.tools[0].name", BAD),
    ("tool twice", request(tools=[tool(), tool()]), "request.tools[1].name", BAD),
    ("too many tools", request(tools=[tool(f"t{number}") for number in range(513)]), "request.tools", BAD),
    ("tool schema no JSON", request(tools=[tool(schema="{")]), "request.tools[0].parameters_json_schema", BAD),
    ("tool schema a list", request(tools=[tool(schema="[]")]), "request.tools[0].parameters_json_schema", BAD),
    (
        "tool schema too deep",
        request(tools=[tool(schema='{"a":' * 100_000)]),
        "request.tools[0].parameters_json_schema",
        BAD,
    ),
    ("unknown choice", chosen(UNKNOWN), "request.tool_choice.mode", BAD),
    ("tools required, none", chosen(chat_pb2.TOOL_CHOICE_MODE_REQUIRED), "request.tool_choice.mode", BAD),
    ("named no tool", chosen(chat_pb2.TOOL_CHOICE_MODE_NAMED, "x", tool()), "request.tool_choice.name", BAD),
    ("named nothing", chosen(chat_pb2.TOOL_CHOICE_MODE_NAMED, "", tool()), "request.tool_choice.name", BAD),
    ("unknown format", shaped(kind=UNKNOWN), "request.response_format.kind", BAD),
    ("schema without name", shaped(json_schema="{}"), "request.response_format.name", MISSING),
    ("format without schema", shaped(name="n"), "request.response_format.json_schema", MISSING),
    ("schema no JSON", shaped(name="n", json_schema="{'a': 1}"), "request.response_format.json_schema", BAD),
    ("schema a number", shaped(name="n", json_schema="1"), "request.response_format.json_schema", BAD),
    ("cold", sampled(temperature=-0.1), "request.sampling.temperature", BAD),
    ("hot", sampled(temperature=2.1), "request.sampling.temperature", BAD),
    ("NaN temperature", sampled(temperature=NAN), "request.sampling.temperature", BAD),
    ("infinite temperature", sampled(temperature=INF), "request.sampling.temperature", BAD),
    ("no mass", sampled(top_p=0), "request.sampling.top_p", BAD),
    ("too much mass", sampled(top_p=1.01), "request.sampling.top_p", BAD),
    ("NaN mass", sampled(top_p=NAN), "request.sampling.top_p", BAD),
    ("frequency", sampled(frequency_penalty=-2.5), "request.sampling.frequency_penalty", BAD),
    ("presence", sampled(presence_penalty=NAN), "request.sampling.presence_penalty", BAD),
    ("no output", sampled(max_output_tokens=0), "request.sampling.max_output_tokens", BAD),
    ("negative output", sampled(max_output_tokens=-1), "request.sampling.max_output_tokens", BAD),
    ("endless output", sampled(max_output_tokens=2**62), "request.sampling.max_output_tokens", BAD),
    ("five stops", sampled(stop=list("abcde")), "request.sampling.stop", BAD),
    ("empty stop", sampled(stop=[""]), "request.sampling.stop", BAD),
    ("log probabilities", sampled(top_logprobs_count=21), "request.sampling.top_logprobs_count", BAD),
    ("negative log probabilities", sampled(top_logprobs_count=-1), "request.sampling.top_logprobs_count", BAD),
    ("quality 0", policed(quality_target=0), "request.policy.quality_target", BAD),
    ("quality above 1", policed(quality_target=1.1), "request.policy.quality_target", BAD),
    ("quality NaN", policed(quality_target=NAN), "request.policy.quality_target", BAD),
    ("quality infinite", policed(quality_target=INF), "request.policy.quality_target", BAD),
    ("unknown floor", policed(tier_floor=UNKNOWN), "request.policy.tier_floor", BAD),
    ("unknown ceiling", policed(tier_ceiling=UNKNOWN), "request.policy.tier_ceiling", BAD),
    ("unknown cache mode", policed(cache_mode=UNKNOWN), "request.policy.cache_mode", BAD),
    ("unknown compression", policed(compression_mode=UNKNOWN), "request.policy.compression_mode", BAD),
    (
        "floor above ceiling",
        policed(tier_floor=chat_pb2.TIER_COMPLEX, tier_ceiling=chat_pb2.TIER_SIMPLE),
        "request.policy.tier_floor",
        BAD,
    ),
    ("window in the past", windowed("completion_window", seconds=-1), "request.policy.completion_window", BAD),
    ("negative nanos", windowed("completion_window", nanos=-1), "request.policy.completion_window", BAD),
    ("negative age", windowed("cache_max_age", seconds=-1), "request.policy.cache_max_age", BAD),
    ("17 tags", request(tags={f"k{number}": "v" for number in range(17)}), "request.tags", BAD),
    ("empty tag", request(tags={"": "v"}), "request.tags", BAD),
    ("tag with a control character", request(tags={"k": "a\0b"}), "request.tags", BAD),
    ("long tag", request(tags={"k" * 65: "v"}), "request.tags", BAD),
    ("long tag value", request(tags={"k": "v" * 257}), "request.tags", BAD),
    ("namespace", request(namespace="a/b"), "request.namespace", BAD),
    ("long namespace", request(namespace="n" * 65), "request.namespace", BAD),
    ("namespace ends in newline", request(namespace="app\n"), "request.namespace", BAD),
    ("long user", request(user_id="u" * 257), "request.user_id", BAD),
    ("long project", request(project_id="p" * 257), "request.project_id", BAD),
    ("empty chunk", chunked(Chunk()), "request.retrieved_chunks[0].text", MISSING),
    (
        "chunk twice",
        chunked(Chunk(chunk_id="c", text="x"), Chunk(chunk_id="c", text="y")),
        "request.retrieved_chunks[1].chunk_id",
        BAD,
    ),
    ("chunk NaN", chunked(Chunk(text="x", score=NAN)), "request.retrieved_chunks[0].score", BAD),
    ("chunk infinite", chunked(Chunk(text="x", score=-INF)), "request.retrieved_chunks[0].score", BAD),
    ("too many chunks", chunked(*[Chunk(text="x")] * 2001), "request.retrieved_chunks", BAD),
    ("10 MB prompt", request(says("x" * 10_000_000)), "request.messages", LARGE),
    ("10 MB of chunks", chunked(*[Chunk(text="x" * 10_000)] * 1000), "request.messages", LARGE),
    ("10 MB of Korean", request(says("가" * 3_400_000)), "request.messages", LARGE),
    (
        "10 MB of tools",
        request(tools=[chat_pb2.Tool(name="t", description="d" * 10_000_000)]),
        "request.messages",
        LARGE,
    ),
]


@pytest.mark.parametrize(("bad", "field", "reason"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_refused(bad: chat_pb2.CompletionRequest, field: str, reason: str) -> None:
    with pytest.raises(TenthError) as raised:
        validate(bad, LIMIT)
    assert (raised.value.code, raised.value.reason, raised.value.field) == (Code.INVALID_ARGUMENT, reason, field)
    assert len(raised.value.message) < 200  # Never quotes the prompt.


ACCEPTED: list[tuple[str, Callable[[], chat_pb2.CompletionRequest]]] = [
    ("plain", request),
    ("id", lambda: request(request_id=str(uuid4()))),
    ("empty text", lambda: request(says(""))),
    ("conversation", lambda: request(says("s", SYSTEM), says("u"), says("a", ASSISTANT), says("u"))),
    ("tool round trip", lambda: request(says("u"), calls("a", "b"), says("1", TOOL, tool_call_id="b"))),
    ("picture", lambda: request(Message(role=USER, parts=[Part(image=chat_pb2.ImageContent(url="data:image/png;"))]))),
    ("limits", lambda: sampled(temperature=2, top_p=1, max_output_tokens=1, stop=list("abcd"), top_logprobs_count=20)),
    ("greedy", lambda: sampled(temperature=0, frequency_penalty=-2, presence_penalty=2)),
    ("equal bounds", lambda: policed(tier_floor=chat_pb2.TIER_MEDIUM, tier_ceiling=chat_pb2.TIER_MEDIUM)),
    ("floor alone", lambda: policed(tier_floor=chat_pb2.TIER_COMPLEX)),
    ("named tool", lambda: chosen(chat_pb2.TOOL_CHOICE_MODE_NAMED, "find", tool(schema='{"type": "object"}'))),
    ("schema", lambda: shaped(name="n", json_schema='{"type": "object"}')),
    ("JSON object", lambda: shaped(kind=chat_pb2.RESPONSE_FORMAT_KIND_JSON_OBJECT)),
    ("chunks without ids", lambda: chunked(Chunk(text="x"), Chunk(text="y", score=-3.5))),
    ("labels", lambda: request(tags={"k" * 64: "v" * 256}, namespace="a.b-c_9", user_id="u" * 256)),
    ("day window", lambda: windowed("completion_window", seconds=86_400)),
]


@pytest.mark.parametrize("good", [row[1] for row in ACCEPTED], ids=[row[0] for row in ACCEPTED])
def test_accepted(good: Callable[[], chat_pb2.CompletionRequest]) -> None:
    validate(good(), LIMIT)


def test_the_size_limit_is_exact() -> None:
    made = request(says("x" * 5000))
    size = prompt_bytes(made)
    validate(made, size)
    with pytest.raises(TenthError, match="limit"):
        validate(made, size - 1)


@settings(max_examples=200)
@given(st.binary(max_size=200))
def test_whatever_parses_is_accepted_or_refused_with_a_field(raw: bytes) -> None:
    made = Request()
    try:
        made.ParseFromString(raw)
    except Exception:
        return
    refused = None
    try:
        validate(made, LIMIT)
    except TenthError as error:
        refused = error
    if refused is not None:
        assert refused.code is Code.INVALID_ARGUMENT
        assert refused.field.startswith("request.")
