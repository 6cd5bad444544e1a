"""OpenAI chat-completions requests as CompletionRequest messages, and JSONL files of them.

Accepted: the request body, or a line of OpenAI's batch format ({"custom_id", "method", "url", "body"}). What is
Tenth's own stands under the key ``tenth``: retrieved_chunks, policy, tags, namespace, project_id, user_id,
request_id. Unknown keys are refused, so that a misspelt parameter cannot be lost silently. The body's ``model``
says what the caller used to pay for; it does not bind the router unless ``tenth.policy.model`` does.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf.duration_pb2 import Duration
from tenth.type.v1 import chat_pb2

ROLES = {
    "system": chat_pb2.ROLE_SYSTEM,
    "developer": chat_pb2.ROLE_SYSTEM,
    "user": chat_pb2.ROLE_USER,
    "assistant": chat_pb2.ROLE_ASSISTANT,
    "tool": chat_pb2.ROLE_TOOL,
}
TIERS = {"simple": chat_pb2.TIER_SIMPLE, "medium": chat_pb2.TIER_MEDIUM, "complex": chat_pb2.TIER_COMPLEX}
CACHE_MODES = {
    "off": chat_pb2.CACHE_MODE_OFF,
    "read": chat_pb2.CACHE_MODE_READ,
    "write": chat_pb2.CACHE_MODE_WRITE,
    "read_write": chat_pb2.CACHE_MODE_READ_WRITE,
}
COMPRESSION_MODES = {
    "off": chat_pb2.COMPRESSION_MODE_OFF,
    "safe": chat_pb2.COMPRESSION_MODE_SAFE,
    "balanced": chat_pb2.COMPRESSION_MODE_BALANCED,
    "aggressive": chat_pb2.COMPRESSION_MODE_AGGRESSIVE,
}

_BODY_KEYS = {
    "messages",
    "tools",
    "tool_choice",
    "response_format",
    "temperature",
    "top_p",
    "max_tokens",
    "max_completion_tokens",
    "stop",
    "seed",
    "frequency_penalty",
    "presence_penalty",
    "logprobs",
    "top_logprobs",
    "user",
    "metadata",
    "n",
    "tenth",
}
_IGNORED_KEYS = {
    "model",
    "stream",
    "stream_options",
    "store",
    "service_tier",
    "parallel_tool_calls",
    "prompt_cache_key",
    "safety_identifier",
}
_TENTH_KEYS = {"retrieved_chunks", "policy", "tags", "namespace", "project_id", "user_id", "request_id"}
_POLICY_KEYS = {
    "quality_target",
    "tier_floor",
    "tier_ceiling",
    "completion_window",
    "cache_mode",
    "cache_max_age",
    "compression_mode",
    "model",
}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class FormatError(ValueError):
    """Input that is no request. ``field`` is the path of what is wrong; ``line`` its line from 1, 0 for none."""

    def __init__(self, field: str, message: str, line: int = 0) -> None:
        super().__init__(message)
        self.field = field
        self.message = message
        self.line = line

    def __str__(self) -> str:
        where = f"line {self.line}: " if self.line else ""
        return f"{where}{self.field}: {self.message}" if self.field else f"{where}{self.message}"


@dataclass(frozen=True, slots=True)
class Line:
    """One request of a file: its line from 1, the caller's id of it (batch format), and the request."""

    number: int
    custom_id: str
    request: chat_pb2.CompletionRequest


def text_message(role: chat_pb2.Role.ValueType, text: str) -> chat_pb2.ChatMessage:
    """A message of one text part."""
    return chat_pb2.ChatMessage(role=role, parts=[chat_pb2.ContentPart(text=text)])


def read_jsonl(source: Path | bytes) -> list[Line]:
    """Every request of a JSONL file, empty lines passed over. Raises FormatError naming line and field."""
    raw = source if isinstance(source, bytes) else source.read_bytes()
    return list(_lines(raw))


def _lines(raw: bytes) -> Iterator[Line]:
    for number, line in enumerate(raw.split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            body: Mapping[str, Any] = parse_json(line)
            custom_id = ""
            if "body" in body and "messages" not in body:
                custom_id = str(body.get("custom_id", ""))
                body = _mapping(body["body"], "body")
            yield Line(number, custom_id, completion_request(body))
        except FormatError as error:
            raise FormatError(error.field, error.message, number) from None


def parse_json(raw: bytes | str) -> dict[str, Any]:
    """A JSON object from UTF-8 bytes. Raises FormatError for bad UTF-8, bad JSON and anything but an object."""
    try:
        text = raw.decode("utf-8") if isinstance(raw, bytes) else raw
    except UnicodeDecodeError as error:
        raise FormatError("", f"not UTF-8 at byte {error.start}: {error.reason}") from None
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise FormatError("", f"not JSON at column {error.colno}: {error.msg}") from None
    except RecursionError:
        raise FormatError("", "not JSON: nested too deeply") from None
    if not isinstance(value, dict):
        raise FormatError("", f"a JSON object is expected, not {_kind(value)}")
    return value


def completion_request(body: Mapping[str, Any]) -> chat_pb2.CompletionRequest:
    """An OpenAI chat-completions body as a CompletionRequest. Raises FormatError naming the field."""
    _known(body, _BODY_KEYS | _IGNORED_KEYS, "")
    if body.get("n") not in (None, 1):
        raise FormatError("n", "only one choice per request is made")
    if "messages" not in body:
        raise FormatError("messages", "is required")
    messages = _list(body["messages"], "messages")
    if not messages:
        raise FormatError("messages", "at least one message is needed")
    request = chat_pb2.CompletionRequest(
        messages=messages_from_openai(messages),
        tools=[_tool(tool, f"tools[{index}]") for index, tool in enumerate(_list(body.get("tools"), "tools"))],
        sampling=_sampling(body),
        user_id=_text(body.get("user"), "user"),
        tags=_tags(body.get("metadata"), "metadata"),
    )
    if body.get("tool_choice") is not None:
        request.tool_choice.CopyFrom(_tool_choice(body["tool_choice"]))
    if body.get("response_format") is not None:
        request.response_format.CopyFrom(_response_format(_mapping(body["response_format"], "response_format")))
    _extend(request, _mapping(body.get("tenth"), "tenth"))
    return request


def messages_from_openai(messages: Sequence[Any], first: int = 0) -> list[chat_pb2.ChatMessage]:
    """OpenAI-format messages. ``first`` is the index of the first one, for the paths in errors."""
    return [_message(message, f"messages[{index}]") for index, message in enumerate(messages, start=first)]


def _message(value: Any, path: str) -> chat_pb2.ChatMessage:
    body = _mapping(value, path)
    _known(body, {"role", "content", "name", "tool_calls", "tool_call_id", "refusal", "reasoning_content"}, path)
    role = body.get("role")
    if role is None:
        raise FormatError(f"{path}.role", "is required")
    if not isinstance(role, str) or role not in ROLES:
        raise FormatError(f"{path}.role", f"unknown role {role!r}; known: {', '.join(ROLES)}")
    message = chat_pb2.ChatMessage(
        role=ROLES[role],
        parts=_parts(body.get("content"), f"{path}.content"),
        name=_text(body.get("name"), f"{path}.name"),
        tool_call_id=_text(body.get("tool_call_id"), f"{path}.tool_call_id"),
        reasoning=_text(body.get("reasoning_content"), f"{path}.reasoning_content"),
    )
    for index, call in enumerate(_list(body.get("tool_calls"), f"{path}.tool_calls")):
        message.tool_calls.append(_tool_call(call, f"{path}.tool_calls[{index}]"))
    if message.tool_calls and role != "assistant":
        raise FormatError(f"{path}.tool_calls", "only an assistant message may call tools")
    if role == "tool" and not message.tool_call_id:
        raise FormatError(f"{path}.tool_call_id", "is required in a tool message")
    if not message.parts and not message.tool_calls:
        raise FormatError(f"{path}.content", "is required")
    return message


def _parts(value: Any, path: str) -> list[chat_pb2.ContentPart]:
    if value is None:
        return []
    if isinstance(value, str):
        return [chat_pb2.ContentPart(text=_text(value, path))]
    parts = []
    for index, item in enumerate(_list(value, path)):
        where = f"{path}[{index}]"
        part = _mapping(item, where)
        kind = part.get("type")
        if kind in ("text", "input_text"):
            parts.append(chat_pb2.ContentPart(text=_text(part.get("text"), f"{where}.text")))
        elif kind == "image_url":
            image = part.get("image_url")
            image = {"url": image} if isinstance(image, str) else _mapping(image, f"{where}.image_url")
            url = _text(image.get("url"), f"{where}.image_url.url")
            if not url.startswith(("https:", "data:")):
                raise FormatError(f"{where}.image_url.url", "an https: or data: URL is needed")
            detail = _text(image.get("detail"), f"{where}.image_url.detail")
            parts.append(chat_pb2.ContentPart(image=chat_pb2.ImageContent(url=url, detail=detail)))
        else:
            raise FormatError(f"{where}.type", f"unknown part type {kind!r}; known: text, image_url")
    return parts


def _tool_call(value: Any, path: str) -> chat_pb2.ToolCall:
    body = _mapping(value, path)
    function = _mapping(body.get("function"), f"{path}.function")
    name = _text(function.get("name"), f"{path}.function.name")
    if not name:
        raise FormatError(f"{path}.function.name", "is required")
    arguments = _text(function.get("arguments"), f"{path}.function.arguments")
    return chat_pb2.ToolCall(id=_text(body.get("id"), f"{path}.id"), name=name, arguments_json=arguments)


def _tool(value: Any, path: str) -> chat_pb2.Tool:
    body = _mapping(value, path)
    if body.get("type", "function") != "function":
        raise FormatError(f"{path}.type", f"unknown tool type {body['type']!r}; known: function")
    function = _mapping(body.get("function"), f"{path}.function")
    _known(function, {"name", "description", "parameters", "strict", "has_side_effects"}, f"{path}.function")
    name = _text(function.get("name"), f"{path}.function.name")
    if not name:
        raise FormatError(f"{path}.function.name", "is required")
    parameters = function.get("parameters")
    if parameters is not None:
        _mapping(parameters, f"{path}.function.parameters")
    return chat_pb2.Tool(
        name=name,
        description=_text(function.get("description"), f"{path}.function.description"),
        parameters_json_schema="" if parameters is None else _compact(parameters),
        has_side_effects=_boolean(function.get("has_side_effects"), f"{path}.function.has_side_effects"),
    )


def _tool_choice(value: Any) -> chat_pb2.ToolChoice:
    modes = {
        "auto": chat_pb2.TOOL_CHOICE_MODE_AUTO,
        "none": chat_pb2.TOOL_CHOICE_MODE_NONE,
        "required": chat_pb2.TOOL_CHOICE_MODE_REQUIRED,
    }
    if isinstance(value, str):
        if value not in modes:
            raise FormatError("tool_choice", f"unknown choice {value!r}; known: {', '.join(modes)}")
        return chat_pb2.ToolChoice(mode=modes[value])
    function = _mapping(_mapping(value, "tool_choice").get("function"), "tool_choice.function")
    name = _text(function.get("name"), "tool_choice.function.name")
    if not name:
        raise FormatError("tool_choice.function.name", "is required")
    return chat_pb2.ToolChoice(mode=chat_pb2.TOOL_CHOICE_MODE_NAMED, name=name)


def _response_format(body: Mapping[str, Any]) -> chat_pb2.ResponseFormat:
    kind = body.get("type")
    if kind == "text":
        return chat_pb2.ResponseFormat(kind=chat_pb2.RESPONSE_FORMAT_KIND_TEXT)
    if kind == "json_object":
        return chat_pb2.ResponseFormat(kind=chat_pb2.RESPONSE_FORMAT_KIND_JSON_OBJECT)
    if kind != "json_schema":
        raise FormatError("response_format.type", f"unknown type {kind!r}; known: text, json_object, json_schema")
    schema = _mapping(body.get("json_schema"), "response_format.json_schema")
    if "schema" not in schema:
        raise FormatError("response_format.json_schema.schema", "is required")
    return chat_pb2.ResponseFormat(
        kind=chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA,
        name=_text(schema.get("name"), "response_format.json_schema.name") or "answer",
        json_schema=_compact(_mapping(schema["schema"], "response_format.json_schema.schema")),
    )


def _sampling(body: Mapping[str, Any]) -> chat_pb2.SamplingParameters | None:
    sampling = chat_pb2.SamplingParameters()
    for name, low, high in (
        ("temperature", 0.0, 2.0),
        ("top_p", 0.0, 1.0),
        ("frequency_penalty", -2.0, 2.0),
        ("presence_penalty", -2.0, 2.0),
    ):
        if body.get(name) is not None:
            number = _number(body[name], name)
            if not low <= number <= high or (name == "top_p" and number == 0):
                raise FormatError(name, f"{number:g} is not within {low:g} to {high:g}")
            setattr(sampling, name, number)
    for name in ("max_tokens", "max_completion_tokens"):
        if body.get(name) is not None:
            sampling.max_output_tokens = _whole(body[name], name, low=1)
    if body.get("seed") is not None:
        sampling.seed = _whole(body["seed"], "seed")
    stop = body.get("stop")
    stops = [stop] if isinstance(stop, str) else _list(stop, "stop")
    if len(stops) > 4:
        raise FormatError("stop", "at most 4 texts")
    sampling.stop.extend(_text(text, f"stop[{index}]") for index, text in enumerate(stops))
    if _boolean(body.get("logprobs"), "logprobs"):
        sampling.top_logprobs_count = _whole(body.get("top_logprobs") or 1, "top_logprobs", low=1, high=20)
    return sampling if sampling.ByteSize() else None


def _extend(request: chat_pb2.CompletionRequest, own: Mapping[str, Any]) -> None:
    _known(own, _TENTH_KEYS, "tenth")
    for index, value in enumerate(_list(own.get("retrieved_chunks"), "tenth.retrieved_chunks")):
        request.retrieved_chunks.append(_chunk(value, f"tenth.retrieved_chunks[{index}]"))
    request.tags.update(_tags(own.get("tags"), "tenth.tags"))
    request.namespace = _text(own.get("namespace"), "tenth.namespace")
    request.project_id = _text(own.get("project_id"), "tenth.project_id")
    request.request_id = _text(own.get("request_id"), "tenth.request_id")
    request.user_id = _text(own.get("user_id"), "tenth.user_id") or request.user_id
    if own.get("policy") is not None:
        request.policy.CopyFrom(_policy(_mapping(own["policy"], "tenth.policy")))


def _chunk(value: Any, path: str) -> chat_pb2.RetrievedChunk:
    if isinstance(value, str):
        return chat_pb2.RetrievedChunk(text=_text(value, path))
    body = _mapping(value, path)
    _known(body, {"chunk_id", "text", "document_id", "score"}, path)
    text = _text(body.get("text"), f"{path}.text")
    if not text:
        raise FormatError(f"{path}.text", "is required")
    chunk = chat_pb2.RetrievedChunk(
        chunk_id=_text(body.get("chunk_id"), f"{path}.chunk_id"),
        text=text,
        document_id=_text(body.get("document_id"), f"{path}.document_id"),
    )
    if body.get("score") is not None:
        chunk.score = _number(body["score"], f"{path}.score")
    return chunk


def _policy(body: Mapping[str, Any]) -> chat_pb2.RequestPolicy:
    _known(body, _POLICY_KEYS, "tenth.policy")
    policy = chat_pb2.RequestPolicy(model=_text(body.get("model"), "tenth.policy.model"))
    if body.get("quality_target") is not None:
        policy.quality_target = _number(body["quality_target"], "tenth.policy.quality_target")
        if not 0 < policy.quality_target <= 1:
            raise FormatError("tenth.policy.quality_target", "must be above 0 and at most 1")
    for name, table in (
        ("tier_floor", TIERS),
        ("tier_ceiling", TIERS),
        ("cache_mode", CACHE_MODES),
        ("compression_mode", COMPRESSION_MODES),
    ):
        if body.get(name) is not None:
            word = body[name]
            if not isinstance(word, str) or word not in table:
                raise FormatError(f"tenth.policy.{name}", f"unknown value {word!r}; known: {', '.join(table)}")
            setattr(policy, name, table[word])
    if body.get("completion_window") is not None:
        policy.completion_window.CopyFrom(_duration(body["completion_window"], "tenth.policy.completion_window"))
    if body.get("cache_max_age") is not None:
        policy.cache_max_age.CopyFrom(_duration(body["cache_max_age"], "tenth.policy.cache_max_age"))
    return policy


def _duration(value: Any, path: str) -> Duration:
    if isinstance(value, str):
        match = _DURATION.fullmatch(value)
        if match is None:
            raise FormatError(path, f"{value!r} is no duration; write seconds or 90s, 15m, 24h")
        seconds = float(match[1]) * _SECONDS[match[2]]
    else:
        seconds = _number(value, path)
    if not 0 <= seconds <= 315_576_000_000:
        raise FormatError(path, "a duration of at least 0 is needed")
    result = Duration()
    result.FromMilliseconds(round(seconds * 1000))
    return result


def _tags(value: Any, path: str) -> dict[str, str]:
    return {key: _text(text, f"{path}.{key}") for key, text in _mapping(value, path).items()}


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _known(body: Mapping[str, Any], known: set[str], path: str) -> None:
    for key in body:
        if key not in known:
            raise FormatError(f"{path}.{key}" if path else str(key), "is not known")


def _mapping(value: Any, path: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise FormatError(path, f"an object is expected, not {_kind(value)}")
    return value


def _list(value: Any, path: str) -> Sequence[Any]:
    if value is None:
        return []
    if not isinstance(value, list | tuple):
        raise FormatError(path, f"a list is expected, not {_kind(value)}")
    return value


def _text(value: Any, path: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise FormatError(path, f"a text is expected, not {_kind(value)}")
    try:
        # JSON may write a lone surrogate (\ud800), which no UTF-8 message can carry.
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise FormatError(path, f"not UTF-8 at character {error.start}: {error.reason}") from None
    return value


def _number(value: Any, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FormatError(path, f"a number is expected, not {_kind(value)}")
    return float(value)


def _whole(value: Any, path: str, low: int = -(2**63), high: int = 2**63 - 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise FormatError(path, f"a whole number is expected, not {_kind(value)}")
    if not low <= value <= high:
        raise FormatError(path, f"{value} is not within {low} to {high}")
    return value


def _boolean(value: Any, path: str) -> bool:
    if value is None:
        return False
    if not isinstance(value, bool):
        raise FormatError(path, f"true or false is expected, not {_kind(value)}")
    return value


def _kind(value: Any) -> str:
    names = {type(None): "null", bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list"}
    return names.get(type(value), "an object" if isinstance(value, Mapping) else type(value).__name__)


def _refuse_constant(name: str) -> float:
    raise FormatError("", f"{name} is not JSON")
