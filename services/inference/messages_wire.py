"""Anthropic's Messages JSON and our plain types, one into the other. Pure.

Source: Anthropic's API reference, version 2026-10-21 (the one that the pinned SDK sends).
"""

from __future__ import annotations

import json
from typing import Any

from services.inference.errors import unsupported
from services.inference.policy import Delta, Generation, Image, Message, ResponseKind, ToolCall

_STOP_REASONS = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "pause_turn": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_CACHED = {"type": "ephemeral"}
"""A cache breakpoint of five minutes, renewed by each read."""


def request_body(
    generation: Generation, provider_model: str, max_output: int, *, stream: bool, hints: bool
) -> dict[str, Any]:
    """The body of a Messages request. ``hints``: the end of the stable prefix is marked for the prompt cache.

    Raises UNSUPPORTED for a JSON object without a schema, which the API has no mode for.
    """
    sampling = generation.sampling
    body: dict[str, Any] = {
        "model": provider_model,
        # The API wants a limit.
        "max_tokens": sampling.max_output_tokens or max_output,
    }
    body.update(_prompt(generation, hints=hints))
    optional = {
        "stop_sequences": list(sampling.stop) or None,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
    }
    body.update((name, value) for name, value in optional.items() if value is not None)
    if generation.tools:
        body["tools"] = [
            {
                "name": tool.name,
                **({"description": tool.description} if tool.description else {}),
                "input_schema": tool.parameters or {"type": "object", "properties": {}},
            }
            for tool in generation.tools
        ]
        if generation.tool_choice:
            body["tool_choice"] = _tool_choice(generation)
    if generation.response is ResponseKind.JSON_SCHEMA:
        body["output_config"] = {"format": {"type": "json_schema", "schema": generation.schema}}
    elif generation.response is ResponseKind.JSON_OBJECT:
        raise unsupported(
            f"{generation.model} writes JSON to a schema only: give one", "generation.response_format.kind"
        )
    if stream:
        body["stream"] = True
    return body


def stop_reason_of(value: object) -> str:
    """A stop reason in our words; empty while the answer goes on. An unknown one is a plain stop."""
    return _STOP_REASONS.get(value, "stop") if isinstance(value, str) and value else ""


def delta_of(content: Any) -> Delta:
    """What a whole answer's content blocks hold; blocks of unknown kinds are left out.

    Raises AttributeError, TypeError or ValueError where an object or a list is something else.
    """
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for block in content:
        kind = block.get("type")
        if kind == "text":
            texts.append(_text(block.get("text")))
        elif kind == "thinking":
            thoughts.append(_text(block.get("thinking")))
        elif kind == "tool_use":
            arguments = json.dumps(block.get("input") or {}, ensure_ascii=False)
            calls.append(ToolCall(len(calls), _text(block.get("id")), _text(block.get("name")), arguments))
    return Delta("".join(texts), "".join(thoughts), tuple(calls))


class BlockReader:
    """Puts the events of a stream into deltas.

    A block begins once and ends once: what comes for a block that has ended, or begins one again, is a repeat and is
    left out.
    """

    def __init__(self) -> None:
        self._calls: dict[int, int] = {}
        self._open: set[int] = set()
        self._seen: set[int] = set()
        self._written: set[int] = set()

    def read(self, event: dict[str, Any]) -> Delta | None:
        """What the event adds; None: nothing.

        Raises AttributeError, KeyError, TypeError or ValueError for a wrong form.
        """
        kind = event.get("type")
        if kind == "content_block_start":
            return self._begin(int(event["index"]), event["content_block"])
        if kind == "content_block_delta":
            return self._go_on(int(event["index"]), event["delta"])
        if kind == "content_block_stop":
            return self._end(int(event["index"]))
        return None

    def _begin(self, index: int, block: dict[str, Any]) -> Delta | None:
        if index in self._seen:
            return None
        self._seen.add(index)
        self._open.add(index)
        kind = block.get("type")
        if kind == "tool_use":
            number = self._calls[index] = len(self._calls)
            return Delta(tool_calls=(ToolCall(number, _text(block.get("id")), _text(block.get("name")), ""),))
        return _piece(_text(block.get("text")), _text(block.get("thinking")))

    def _go_on(self, index: int, delta: dict[str, Any]) -> Delta | None:
        if index not in self._open:
            return None
        kind = delta.get("type")
        if kind == "text_delta":
            return _piece(_text(delta.get("text")), "")
        if kind == "thinking_delta":
            return _piece("", _text(delta.get("thinking")))
        if kind == "input_json_delta" and index in self._calls and (part := _text(delta.get("partial_json"))):
            self._written.add(index)
            return Delta(tool_calls=(ToolCall(self._calls[index], "", "", part),))
        return None

    def _end(self, index: int) -> Delta | None:
        if index not in self._open:
            return None
        self._open.remove(index)
        if index in self._calls and index not in self._written:
            return Delta(tool_calls=(ToolCall(self._calls[index], "", "", "{}"),))  # A call without arguments.
        return None


def _prompt(generation: Generation, *, hints: bool) -> dict[str, Any]:
    """``system`` and ``messages``. All system messages go to the front: the API has one place for them."""
    system: list[dict[str, Any]] = []
    messages: list[dict[str, Any]] = []
    last_stable: dict[str, Any] | None = None
    for place, message in enumerate(generation.messages):
        blocks = _blocks(message)
        if not blocks:
            continue
        if message.role == "system":
            system.extend(blocks)
        elif message.role == "tool" and messages and _is_results(messages[-1]):
            messages[-1]["content"].extend(blocks)  # The results of one turn belong into one message.
        else:
            messages.append({"role": "assistant" if message.role == "assistant" else "user", "content": blocks})
        if place < generation.stable_messages:
            last_stable = blocks[-1]
    if hints and last_stable is not None:
        last_stable["cache_control"] = dict(_CACHED)
    return {**({"system": system} if system else {}), "messages": messages}


def _blocks(message: Message) -> list[dict[str, Any]]:
    """A message's content; texts without a letter are refused by the API and left out."""
    if message.role == "tool":
        content: str | list[dict[str, Any]] = message.text
        if any(isinstance(part, Image) for part in message.parts):
            content = [_block(part) for part in message.parts if isinstance(part, Image) or part.strip()]
        return [{"type": "tool_result", "tool_use_id": message.tool_call_id, "content": content}]
    blocks: list[dict[str, Any]] = [_block(part) for part in message.parts if isinstance(part, Image) or part.strip()]
    return blocks + [
        {"type": "tool_use", "id": call.id, "name": call.name, "input": _arguments(call.arguments)}
        for call in message.tool_calls
    ]


def _block(part: str | Image) -> dict[str, Any]:
    return _image(part) if isinstance(part, Image) else {"type": "text", "text": part}


def _is_results(message: dict[str, Any]) -> bool:
    return bool(message["role"] == "user" and message["content"][0]["type"] == "tool_result")


def _image(image: Image) -> dict[str, Any]:
    if not image.url.startswith("data:"):
        return {"type": "image", "source": {"type": "url", "url": image.url}}
    kind, _, data = image.url.removeprefix("data:").partition(";base64,")
    if not data:
        raise unsupported("pictures in a data: URL must be base64", "generation.messages")
    return {"type": "image", "source": {"type": "base64", "media_type": kind, "data": data}}


def _arguments(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {"arguments": text}  # A model wrote it; the turn must still be sent.
    return value if isinstance(value, dict) else {"arguments": value}


def _tool_choice(generation: Generation) -> dict[str, str]:
    if generation.tool_choice == "named":
        return {"type": "tool", "name": generation.tool_choice_name}
    return {"type": "any" if generation.tool_choice == "required" else generation.tool_choice}


def _piece(text: str, thought: str) -> Delta | None:
    return Delta(text, thought) if text or thought else None


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
