"""The messages of tenth.inference.v1 to and from plain types, with every refusal of a malformed request."""

from __future__ import annotations

import json
from typing import Any

from tenth.inference.v1 import inference_pb2
from tenth.type.v1 import chat_pb2, usage_pb2

from mesh.errors import invalid_argument, required
from services.inference.policy import (
    PROMPT_LOGPROBS_FIELD,
    Delta,
    Generation,
    Image,
    Message,
    ResponseKind,
    Sampling,
    Tool,
    ToolCall,
    with_passages,
)
from services.inference.usage import Usage

_ROLES = {
    chat_pb2.ROLE_SYSTEM: "system",
    chat_pb2.ROLE_USER: "user",
    chat_pb2.ROLE_ASSISTANT: "assistant",
    chat_pb2.ROLE_TOOL: "tool",
}
_CHOICES = {
    chat_pb2.TOOL_CHOICE_MODE_UNSPECIFIED: "",
    chat_pb2.TOOL_CHOICE_MODE_AUTO: "auto",
    chat_pb2.TOOL_CHOICE_MODE_NONE: "none",
    chat_pb2.TOOL_CHOICE_MODE_REQUIRED: "required",
    chat_pb2.TOOL_CHOICE_MODE_NAMED: "named",
}
_RESPONSES = {
    chat_pb2.RESPONSE_FORMAT_KIND_UNSPECIFIED: ResponseKind.TEXT,
    chat_pb2.RESPONSE_FORMAT_KIND_TEXT: ResponseKind.TEXT,
    chat_pb2.RESPONSE_FORMAT_KIND_JSON_OBJECT: ResponseKind.JSON_OBJECT,
    chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA: ResponseKind.JSON_SCHEMA,
}
FINISH_REASONS = {
    "stop": chat_pb2.FINISH_REASON_STOP,
    "length": chat_pb2.FINISH_REASON_LENGTH,
    "tool_calls": chat_pb2.FINISH_REASON_TOOL_CALLS,
    "content_filter": chat_pb2.FINISH_REASON_CONTENT_FILTER,
}


def generation_from_proto(
    request: inference_pb2.GenerateTextRequest, *, tenant_id: str, traceparent: str
) -> Generation:
    """The generation that a request asks for. Raises INVALID_ARGUMENT naming the field."""
    if not request.request_id:
        raise required("generation.request_id")
    if request.attempt < 1:
        raise invalid_argument("attempts are counted from 1", field="generation.attempt")
    if not request.model:
        raise required("generation.model")
    if not request.messages:
        raise required("generation.messages")
    messages = tuple(_message(message, index) for index, message in enumerate(request.messages))
    format_ = request.response_format
    kind = _RESPONSES.get(format_.kind)
    if kind is None:
        raise invalid_argument("unknown kind", field="generation.response_format.kind")
    schema = None
    if kind is ResponseKind.JSON_SCHEMA:
        if not format_.json_schema:
            raise required("generation.response_format.json_schema")
        schema = _object(format_.json_schema, "generation.response_format.json_schema")
    choice = _CHOICES.get(request.tool_choice.mode)
    if choice is None:
        raise invalid_argument("unknown mode", field="generation.tool_choice.mode")
    if choice == "named" and request.tool_choice.name not in {tool.name for tool in request.tools}:
        raise invalid_argument("names no tool of the request", field="generation.tool_choice.name")
    if request.prompt_logprobs:
        _check_plain(request, messages, kind)
    return Generation(
        request_id=request.request_id,
        attempt=request.attempt,
        model=request.model,
        messages=with_passages(messages, [chunk.text for chunk in request.retrieved_chunks]),
        tools=tuple(_tool(tool, index) for index, tool in enumerate(request.tools)),
        tool_choice=choice,
        tool_choice_name=request.tool_choice.name,
        response=kind,
        schema_name=format_.name or "answer",
        schema=schema,
        sampling=_sampling(request.sampling),
        estimated_input=max(request.estimated_input_token_count, 0),
        prompt_logprobs=request.prompt_logprobs,
        tenant_id=tenant_id,
        traceparent=traceparent,
        stable_messages=min(max(request.stable_prefix_message_count, 0), len(messages)),
        prefix_version=request.prefix_version,
        batch=request.priority == inference_pb2.PRIORITY_BATCH,
    )


def usage_to_proto(usage: Usage) -> usage_pb2.Usage:
    """Usage as a message."""
    return usage_pb2.Usage(
        input_token_count=usage.input,
        cached_input_token_count=usage.cached,
        cache_write_5m_token_count=usage.write_5m,
        cache_write_1h_token_count=usage.write_1h,
        output_token_count=usage.output,
        reasoning_output_token_count=usage.reasoning,
        estimated=usage.estimated,
    )


def delta_to_proto(delta: Delta) -> chat_pb2.CompletionDelta:
    """A piece of an answer as a message."""
    result = chat_pb2.CompletionDelta(text=delta.text, reasoning=delta.reasoning)
    for call in delta.tool_calls:
        result.tool_calls.add(index=call.index, id=call.id, name=call.name, arguments_json=call.arguments)
    if delta.logprobs:
        result.logprobs.extend(logprobs_to_proto(delta))
    return result


def logprobs_to_proto(delta: Delta) -> list[chat_pb2.TokenLogprob]:
    """The log probabilities of a piece as messages."""
    return [
        chat_pb2.TokenLogprob(
            token=item.token,
            logprob=item.logprob,
            alternatives=[chat_pb2.AlternativeToken(token=token, logprob=value) for token, value in item.alternatives],
        )
        for item in delta.logprobs
    ]


def prompt_tokens_to_proto(delta: Delta) -> list[inference_pb2.PromptToken]:
    """The prompt's tokens as messages."""
    return [
        inference_pb2.PromptToken(start_character=token.start, end_character=token.end, logprob=token.logprob)
        for token in delta.prompt
    ]


def answer_to_proto(delta: Delta) -> chat_pb2.ChatMessage:
    """A whole answer as the assistant's message."""
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT, reasoning=delta.reasoning)
    if delta.text:
        message.parts.add(text=delta.text)
    for call in delta.tool_calls:
        message.tool_calls.add(id=call.id, name=call.name, arguments_json=call.arguments)
    return message


def _check_plain(request: inference_pb2.GenerateTextRequest, messages: tuple[Message, ...], kind: ResponseKind) -> None:
    """Refuse what a prompt without a chat template has no place for."""
    plain = len(messages) == 1 and all(isinstance(part, str) for part in messages[0].parts) and messages[0].text
    if (
        not plain
        or messages[0].tool_calls
        or request.retrieved_chunks
        or request.tools
        or kind is not ResponseKind.TEXT
    ):
        raise invalid_argument("needs one message of text, and nothing beside it", field=PROMPT_LOGPROBS_FIELD)


def _message(message: chat_pb2.ChatMessage, index: int) -> Message:
    where = f"generation.messages[{index}]"
    role = _ROLES.get(message.role)
    if role is None:
        raise invalid_argument("unknown role", field=f"{where}.role")
    if role == "tool" and not message.tool_call_id:
        raise required(f"{where}.tool_call_id")
    parts: list[str | Image] = []
    for number, part in enumerate(message.parts):
        kind = part.WhichOneof("content")
        if kind == "text":
            parts.append(part.text)
        elif kind == "image":
            parts.append(Image(part.image.url, part.image.detail or "auto"))
        else:
            raise required(f"{where}.parts[{number}].content")
    if not parts and not message.tool_calls:
        raise required(f"{where}.parts")
    return Message(
        role=role,
        parts=tuple(parts),
        name=message.name,
        tool_calls=tuple(
            ToolCall(number, call.id, call.name, call.arguments_json) for number, call in enumerate(message.tool_calls)
        ),
        tool_call_id=message.tool_call_id,
    )


def _tool(tool: chat_pb2.Tool, index: int) -> Tool:
    where = f"generation.tools[{index}]"
    if not tool.name:
        raise required(f"{where}.name")
    text = tool.parameters_json_schema
    parameters = _object(text, f"{where}.parameters_json_schema") if text else None
    return Tool(tool.name, tool.description, parameters)


def _object(text: str, field: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise invalid_argument("not JSON", field=field) from None
    if not isinstance(value, dict):
        raise invalid_argument("not a JSON object", field=field)
    return value


def _sampling(sampling: chat_pb2.SamplingParameters) -> Sampling:
    where = "generation.sampling"

    def between(name: str, low: float, high: float) -> float | None:
        if not sampling.HasField(name):  # type: ignore[arg-type]  # the name is one of the four below
            return None
        value = float(getattr(sampling, name))
        if not low <= value <= high:
            raise invalid_argument(f"must be {low:g} to {high:g}", field=f"{where}.{name}")
        return value

    top_p = between("top_p", 0, 1)
    if top_p == 0:
        raise invalid_argument("must be above 0", field=f"{where}.top_p")
    limit = sampling.max_output_tokens if sampling.HasField("max_output_tokens") else None
    if limit is not None and limit < 1:
        raise invalid_argument("must be at least 1", field=f"{where}.max_output_tokens")
    if len(sampling.stop) > 4 or "" in sampling.stop:
        raise invalid_argument("at most 4 texts, none of them empty", field=f"{where}.stop")
    if not 0 <= sampling.top_logprobs_count <= 20:
        raise invalid_argument("must be 0 to 20", field=f"{where}.top_logprobs_count")
    return Sampling(
        temperature=between("temperature", 0, 2),
        top_p=top_p,
        max_output_tokens=limit,
        stop=tuple(sampling.stop),
        seed=sampling.seed if sampling.HasField("seed") else None,
        frequency_penalty=between("frequency_penalty", -2, 2),
        presence_penalty=between("presence_penalty", -2, 2),
        top_logprobs=sampling.top_logprobs_count,
    )
