"""A prompt in plain types: what the compressor works on. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SYSTEM, USER, ASSISTANT, TOOL = "system", "user", "assistant", "tool"


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """One message; ``index`` is its place in the original prompt."""

    index: int
    role: str
    texts: tuple[str, ...]
    image_details: tuple[str, ...] = ()
    name: str = ""
    calls: tuple[Call, ...] = ()
    answers: str = ""
    """For a tool's result: the id of its call."""
    pinned: bool = False


@dataclass(frozen=True, slots=True)
class Prompt:
    """Everything that the model is sent."""

    messages: tuple[Message, ...]
    chunks: tuple[str, ...] = ()
    tools: tuple[str, ...] = ()
    """Each tool as the JSON text that a provider is sent."""
    response_schema: str = ""
    settled: bool = False
    """True when the chunks are a compressor's choice already."""

    def size(self) -> int:
        """Characters of text, for deciding where to do the work."""
        total = sum(map(len, self.chunks)) + sum(map(len, self.tools)) + len(self.response_schema)
        for message in self.messages:
            total += sum(map(len, message.texts)) + sum(len(call.arguments) for call in message.calls)
        return total


def last_user(messages: Sequence[Message]) -> int | None:
    """Position of the last user message."""
    return next((at for at in range(len(messages) - 1, -1, -1) if messages[at].role == USER), None)


def context_lead(chunks: Sequence[str]) -> str:
    """Retrieved chunks in the form that inference sends them: before the text of the last user message."""
    if not chunks:
        return ""
    return "Context:\n" + "".join(f"[{number}] {text}\n" for number, text in enumerate(chunks, 1)) + "\n"


def question(messages: Sequence[Message]) -> str:
    """The text of the last user message."""
    at = last_user(messages)
    return "" if at is None else "\n".join(messages[at].texts)
