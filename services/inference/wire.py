"""OpenAI's JSON and our plain types, one into the other."""

from __future__ import annotations

import json
from typing import Any

from services.inference.policy import Delta, Generation, Image, Message, ResponseKind, TokenLogprob, ToolCall

_FINISH = {
    "stop": "stop",
    "length": "length",
    "max_tokens": "length",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "content_filter": "content_filter",
}


def request_body(generation: Generation, provider_model: str, limit: str, *, stream: bool) -> dict[str, Any]:
    """The body of a chat completion request; ``limit`` is the provider's name for the most output tokens."""
    sampling = generation.sampling
    body: dict[str, Any] = {
        "model": provider_model,
        "messages": [_message(message) for message in generation.messages],
    }
    optional = {
        limit: sampling.max_output_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "stop": list(sampling.stop) or None,
        "seed": sampling.seed,
        "frequency_penalty": sampling.frequency_penalty,
        "presence_penalty": sampling.presence_penalty,
    }
    body.update((name, value) for name, value in optional.items() if value is not None)
    if sampling.top_logprobs:
        body.update(logprobs=True, top_logprobs=sampling.top_logprobs)
    if generation.tools:
        body["tools"] = [
            {
                "type": "function",
                "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
                if tool.parameters is not None
                else {"name": tool.name, "description": tool.description},
            }
            for tool in generation.tools
        ]
        if generation.tool_choice == "named":
            body["tool_choice"] = {"type": "function", "function": {"name": generation.tool_choice_name}}
        elif generation.tool_choice:
            body["tool_choice"] = generation.tool_choice
    if generation.response is ResponseKind.JSON_OBJECT:
        body["response_format"] = {"type": "json_object"}
    elif generation.response is ResponseKind.JSON_SCHEMA:
        schema = {"name": generation.schema_name, "schema": generation.schema, "strict": True}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    if stream:
        body.update(stream=True, stream_options={"include_usage": True})
    return body


def delta_of(message: dict[str, Any], choice: dict[str, Any]) -> Delta:
    """What a message (or a stream's delta) holds. Texts of a wrong type count as absent.

    Raises AttributeError, TypeError or ValueError where an object or a list is something else.
    """
    content = message.get("content")
    reasoning = message.get("reasoning_content") or message.get("reasoning")
    calls = message.get("tool_calls")
    logprobs = choice.get("logprobs")
    return Delta(
        text=content if isinstance(content, str) else _joined(content),
        reasoning=reasoning if isinstance(reasoning, str) else "",
        tool_calls=tuple(_call(position, call) for position, call in enumerate(calls)) if calls else (),
        logprobs=tuple(_logprob(item) for item in logprobs.get("content") or ()) if logprobs else (),
    )


def finish_reason_of(value: object) -> str:
    """A finish reason in our words; empty while the answer goes on. An unknown one is a plain stop."""
    return _FINISH.get(value, "stop") if isinstance(value, str) and value else ""


def _message(message: Message) -> dict[str, Any]:
    result: dict[str, Any] = {"role": message.role}
    if any(isinstance(part, Image) for part in message.parts):
        result["content"] = [_part(part) for part in message.parts]
    elif message.parts or not message.tool_calls:
        result["content"] = message.text
    else:
        result["content"] = None
    if message.name:
        result["name"] = message.name
    if message.tool_calls:
        result["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        result["tool_call_id"] = message.tool_call_id
    return result


def _part(part: str | Image) -> dict[str, Any]:
    if isinstance(part, Image):
        return {"type": "image_url", "image_url": {"url": part.url, "detail": part.detail}}
    return {"type": "text", "text": part}


def _joined(content: Any) -> str:
    """Some servers answer with a list of parts."""
    if not isinstance(content, list):
        return ""
    return "".join(part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str))


def _call(position: int, call: Any) -> ToolCall:
    if not isinstance(call, dict):
        return ToolCall(position, "", "", "")
    function = call.get("function") or {}
    arguments = function.get("arguments") or ""
    index = call.get("index", position)
    return ToolCall(
        index=index if isinstance(index, int) else position,
        id=_text(call.get("id")),
        name=_text(function.get("name")),
        arguments=arguments if isinstance(arguments, str) else json.dumps(arguments),
    )


def _logprob(item: dict[str, Any]) -> TokenLogprob:
    best = item.get("top_logprobs") or ()
    return TokenLogprob(
        token=_text(item.get("token")),
        logprob=float(item.get("logprob", 0.0)),
        alternatives=tuple((_text(other.get("token")), float(other.get("logprob", 0.0))) for other in best),
    )


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
