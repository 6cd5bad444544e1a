"""Checks of a completion request's form, the same wherever one is taken in. Every refusal names the field; nothing has
been looked up or spent by then."""

from __future__ import annotations

import json
import math
import re
import unicodedata
import uuid
from collections.abc import Sequence

from tenth.type.v1 import chat_pb2

from mesh.errors import Reason, TenthError, invalid_argument, required

_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NAMESPACE = re.compile(r"[A-Za-z0-9._-]{1,64}")
_OWN_TAGS = "tenth."
_MAX_TAGS, _MAX_TAG_KEY, _MAX_TAG_VALUE = 16, 64, 256
_MAX_MESSAGES, _MAX_CHUNKS, _MAX_TOOLS, _MAX_STOPS = 10_000, 2_000, 512, 4
_MAX_ID = 256
_MAX_OUTPUT_TOKENS = 10_000_000

Message = chat_pb2.ChatMessage


def validate(request: chat_pb2.CompletionRequest, max_prompt_bytes: int) -> None:
    """Check a request's form. Raises INVALID_ARGUMENT with the field's path."""
    if request.request_id:
        _request_id(request.request_id)
    _messages(request.messages)
    _tools(request)
    _response_format(request.response_format)
    _sampling(request.sampling)
    _policy(request.policy)
    check_labels(request)
    _chunks(request.retrieved_chunks)
    size = prompt_bytes(request)
    if size > max_prompt_bytes:
        raise invalid_argument(
            f"the prompt has {size:,} bytes, the limit is {max_prompt_bytes:,}",
            field="request.messages",
            reason=Reason.PROMPT_TOO_LARGE,
        )


def prompt_bytes(request: chat_pb2.CompletionRequest) -> int:
    """Size of the prompt as it is sent, about: messages, chunks and tools, UTF-8 bytes."""
    parts = (request.messages, request.retrieved_chunks, request.tools)
    return sum(item.ByteSize() for group in parts for item in group)


def _request_id(request_id: str) -> None:
    try:
        uuid.UUID(request_id)
    except ValueError:
        raise invalid_argument("must be a UUID", field="request.request_id") from None


def _messages(messages: Sequence[Message]) -> None:
    if not messages:
        raise required("request.messages")
    if len(messages) > _MAX_MESSAGES:
        raise invalid_argument(f"at most {_MAX_MESSAGES} messages", field="request.messages")
    calls: set[str] = set()
    for index, message in enumerate(messages):
        _message(message, f"request.messages[{index}]", calls)
    if messages[-1].role not in (chat_pb2.ROLE_USER, chat_pb2.ROLE_TOOL):
        raise invalid_argument(
            "the last message must come from the user or a tool", field=f"request.messages[{len(messages) - 1}].role"
        )


def _message(message: Message, field: str, calls: set[str]) -> None:
    if message.role not in (chat_pb2.ROLE_SYSTEM, chat_pb2.ROLE_USER, chat_pb2.ROLE_ASSISTANT, chat_pb2.ROLE_TOOL):
        raise invalid_argument("unknown role", field=f"{field}.role")
    if message.role != chat_pb2.ROLE_ASSISTANT and message.tool_calls:
        raise invalid_argument("only assistant messages make tool calls", field=f"{field}.tool_calls")
    if not message.parts and not message.tool_calls:
        raise required(f"{field}.parts")
    for number, part in enumerate(message.parts):
        _part(part, f"{field}.parts[{number}]")
    for number, call in enumerate(message.tool_calls):
        if not call.id:
            raise required(f"{field}.tool_calls[{number}].id")
        if not call.name:
            raise required(f"{field}.tool_calls[{number}].name")
        calls.add(call.id)
    if message.role == chat_pb2.ROLE_TOOL:
        if not message.tool_call_id:
            raise required(f"{field}.tool_call_id")
        if message.tool_call_id not in calls:
            raise invalid_argument("answers no earlier tool call", field=f"{field}.tool_call_id")


def _part(part: chat_pb2.ContentPart, field: str) -> None:
    kind = part.WhichOneof("content")
    if kind is None:
        raise required(f"{field}.content")
    if kind == "image" and not part.image.url.startswith(("https://", "data:image/")):
        raise invalid_argument("must be an https: or data:image/ URL", field=f"{field}.image.url")


def _tools(request: chat_pb2.CompletionRequest) -> None:
    if len(request.tools) > _MAX_TOOLS:
        raise invalid_argument(f"at most {_MAX_TOOLS} tools", field="request.tools")
    names: set[str] = set()
    for index, tool in enumerate(request.tools):
        field = f"request.tools[{index}]"
        if not _TOOL_NAME.fullmatch(tool.name):
            raise invalid_argument('1 to 64 letters, digits, "_" or "-"', field=f"{field}.name")
        if tool.name in names:
            raise invalid_argument("named twice", field=f"{field}.name")
        names.add(tool.name)
        if tool.parameters_json_schema:
            _json_object(tool.parameters_json_schema, f"{field}.parameters_json_schema")
    choice = request.tool_choice
    if choice.mode not in chat_pb2.ToolChoiceMode.values():
        raise invalid_argument("unknown mode", field="request.tool_choice.mode")
    if choice.mode == chat_pb2.TOOL_CHOICE_MODE_REQUIRED and not names:
        raise invalid_argument("requires tools, and there are none", field="request.tool_choice.mode")
    if choice.mode == chat_pb2.TOOL_CHOICE_MODE_NAMED and choice.name not in names:
        raise invalid_argument("names no tool of the request", field="request.tool_choice.name")


def _response_format(response_format: chat_pb2.ResponseFormat) -> None:
    if response_format.kind not in chat_pb2.ResponseFormatKind.values():
        raise invalid_argument("unknown kind", field="request.response_format.kind")
    if response_format.kind == chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA:
        if not response_format.name:
            raise required("request.response_format.name")
        if not response_format.json_schema:
            raise required("request.response_format.json_schema")
        _json_object(response_format.json_schema, "request.response_format.json_schema")


def _sampling(sampling: chat_pb2.SamplingParameters) -> None:
    field = "request.sampling"
    for name, low, high in (
        ("temperature", 0.0, 2.0),
        ("top_p", 0.0, 1.0),
        ("frequency_penalty", -2.0, 2.0),
        ("presence_penalty", -2.0, 2.0),
    ):
        value = getattr(sampling, name)
        # NaN compares false with everything, so it is refused here as well.
        if not low <= value <= high:
            raise invalid_argument(f"must be from {low:g} to {high:g}", field=f"{field}.{name}")
    if sampling.HasField("top_p") and sampling.top_p <= 0:
        raise invalid_argument("must be above 0", field=f"{field}.top_p")
    if sampling.HasField("max_output_tokens") and not 1 <= sampling.max_output_tokens <= _MAX_OUTPUT_TOKENS:
        raise invalid_argument(f"must be from 1 to {_MAX_OUTPUT_TOKENS:,}", field=f"{field}.max_output_tokens")
    if len(sampling.stop) > _MAX_STOPS or any(not stop for stop in sampling.stop):
        raise invalid_argument(f"at most {_MAX_STOPS} texts, none empty", field=f"{field}.stop")
    if not 0 <= sampling.top_logprobs_count <= 20:
        raise invalid_argument("must be from 0 to 20", field=f"{field}.top_logprobs_count")


def _policy(policy: chat_pb2.RequestPolicy) -> None:
    field = "request.policy"
    if policy.HasField("quality_target") and not (
        math.isfinite(policy.quality_target) and 0 < policy.quality_target <= 1
    ):
        raise invalid_argument("must be above 0 and at most 1", field=f"{field}.quality_target")
    for name, values in (
        ("tier_floor", chat_pb2.Tier.values()),
        ("tier_ceiling", chat_pb2.Tier.values()),
        ("cache_mode", chat_pb2.CacheMode.values()),
        ("compression_mode", chat_pb2.CompressionMode.values()),
    ):
        if getattr(policy, name) not in values:
            raise invalid_argument("unknown value", field=f"{field}.{name}")
    if policy.tier_ceiling and policy.tier_floor > policy.tier_ceiling:
        raise invalid_argument("is above the ceiling", field=f"{field}.tier_floor")
    for name, duration in (("completion_window", policy.completion_window), ("cache_max_age", policy.cache_max_age)):
        if duration.seconds < 0 or duration.nanos < 0:
            raise invalid_argument("is negative", field=f"{field}.{name}")


def check_labels(request: chat_pb2.CompletionRequest) -> None:
    """Check tags, namespace, user and project alone. Raises INVALID_ARGUMENT with the field's path."""
    if len(request.tags) > _MAX_TAGS:
        raise invalid_argument(f"at most {_MAX_TAGS} tags", field="request.tags")
    for key, value in request.tags.items():
        if not 1 <= len(key) <= _MAX_TAG_KEY or len(value) > _MAX_TAG_VALUE:
            raise invalid_argument(
                f"keys have 1 to {_MAX_TAG_KEY} characters, values at most {_MAX_TAG_VALUE}", field="request.tags"
            )
        if any(unicodedata.category(letter) == "Cc" for letter in key + value):
            raise invalid_argument("holds a control character", field="request.tags")
        if key.startswith(_OWN_TAGS):
            raise invalid_argument(f"keys that begin with {_OWN_TAGS!r} are the mesh's own", field="request.tags")
    if request.namespace and not _NAMESPACE.fullmatch(request.namespace):
        raise invalid_argument('1 to 64 letters, digits, ".", "_" or "-"', field="request.namespace")
    for name in ("user_id", "project_id"):
        value = getattr(request, name)
        if len(value) > _MAX_ID:
            raise invalid_argument(f"at most {_MAX_ID} characters", field=f"request.{name}")
        # The ledger would refuse the receipt, when the answer is paid for.
        if any(unicodedata.category(letter) == "Cc" for letter in value):
            raise invalid_argument("holds a control character", field=f"request.{name}")


def _chunks(chunks: Sequence[chat_pb2.RetrievedChunk]) -> None:
    if len(chunks) > _MAX_CHUNKS:
        raise invalid_argument(f"at most {_MAX_CHUNKS} chunks", field="request.retrieved_chunks")
    ids: set[str] = set()
    for index, chunk in enumerate(chunks):
        field = f"request.retrieved_chunks[{index}]"
        if not chunk.text:
            raise required(f"{field}.text")
        if chunk.chunk_id and chunk.chunk_id in ids:
            raise invalid_argument("named twice", field=f"{field}.chunk_id")
        ids.add(chunk.chunk_id)
        if chunk.HasField("score") and not math.isfinite(chunk.score):
            raise invalid_argument("must be finite", field=f"{field}.score")


def _json_object(text: str, field: str) -> None:
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        raise _bad_json(field, "is not valid JSON") from None
    if not isinstance(parsed, dict):
        raise _bad_json(field, "must be a JSON object")


def _bad_json(field: str, message: str) -> TenthError:
    return invalid_argument(message, field=field)
