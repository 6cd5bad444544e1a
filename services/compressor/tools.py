"""The ``tools`` strategy: schemas of tools that the turn has no use for are left out. Pure; opt-in.

A tool that is missing when it is needed costs an answer, a schema too many only tokens; and tools stand at the front of
the prompt, so that another choice of them gives up the provider's cached prefix. So this is for long lists of tools
(tens), few of which a turn can need, and nothing goes unless the turn's words or vectors tell tools apart.

Always kept: a tool named by ``tool_choice``, tools called anywhere in the history, tools whose name is said, and what
is no function with a name. Of the rest the best stay, at least ``least_count`` in all. Order is kept.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from services.compressor.history_relevance import Vectors, Weights, relevance
from services.compressor.prompt import USER, Message

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|[_\-./]+")
_MOST_PARAMETER_CHARS = 600
_WEIGHTS = Weights({"similarity": 1.0, "keywords": 3.0}, {"keywords": 1.0})


@dataclass(frozen=True, slots=True)
class ToolSettings:
    """How many tools stay."""

    least_count: int = 5
    most_count: int = 12
    recent_message_count: int = 3
    """So many messages before the last user message are read for what the turn is about."""


@dataclass(frozen=True, slots=True)
class ToolSelection:
    """The positions of the tools that stay, in order, and why."""

    positions: tuple[int, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class ToolText:
    """What a tool is called and what it says of itself."""

    name: str
    text: str


def tool_text(schema: str) -> ToolText | None:
    """Read from the JSON that a provider is sent; None for what is no function with a name."""
    try:
        found = json.loads(schema)
        function = found.get("function", found)
        name = function["name"]
        description = function.get("description") or ""
        parameters = function.get("parameters") or {}
        properties = parameters.get("properties") or {}
        told = " ".join(
            f"{_spoken(key)} {value.get('description', '') if isinstance(value, dict) else ''}"
            for key, value in properties.items()
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    if not isinstance(name, str) or not name or not isinstance(description, str):
        return None
    return ToolText(name, f"{_spoken(name)}: {description} {told[:_MOST_PARAMETER_CHARS]}".strip())


def select_tools(
    tools: Sequence[str],
    messages: Sequence[Message],
    settings: ToolSettings,
    chosen: str = "",
    vectors: Vectors | None = None,
) -> ToolSelection:
    """The tools to send. ``chosen`` is the name that ``tool_choice`` asks for; ``vectors`` has a row per tool.

    Everything stays when there are no more than ``least_count``, or when nothing tells the tools apart.
    """
    everything = tuple(range(len(tools)))
    if len(tools) <= max(1, settings.least_count):
        return ToolSelection(everything, "few tools")
    texts = [tool_text(tool) for tool in tools]
    called = {call.name for message in messages for call in message.calls}
    asked, recent = _turn(messages, settings.recent_message_count)
    said = f"{asked}\n{recent}".lower()
    always = {
        at
        for at, text in enumerate(texts)
        if text is None or text.name in called or text.name == chosen or _is_named(text.name, said)
    }
    documents = [Message(at, USER, (text.text if text else "",)) for at, text in enumerate(texts)]
    found = relevance(documents, asked, "", _WEIGHTS, vectors)
    earlier = relevance(documents, recent, "", _WEIGHTS, None)
    scores = found.scores + 0.5 * earlier.scores
    if float(np.ptp(scores)) < 1e-9:
        return ToolSelection(everything, "nothing tells the tools apart")
    ranked = sorted((at for at in everything if at not in always), key=lambda at: (-scores[at], at))
    # By words alone a score of nothing is no reason to keep a tool, beyond the least number.
    useful = len(ranked) if vectors is not None else sum(1 for at in ranked if scores[at] > 0)
    room = max(settings.least_count - len(always), min(useful, settings.most_count - len(always)), 0)
    positions = tuple(sorted(always | set(ranked[:room])))
    return ToolSelection(positions, f"{len(positions)} of {len(tools)} tools kept by {found.method}")


def _turn(messages: Sequence[Message], recent_count: int) -> tuple[str, str]:
    """The question with all that follows it, and the messages before."""
    at = next((at for at in range(len(messages) - 1, -1, -1) if messages[at].role == USER), len(messages))
    question = "\n".join(text for message in messages[at:] for text in message.texts)
    before = messages[max(0, at - recent_count) : at]
    return question, "\n".join(text for message in before for text in message.texts)


def _spoken(name: str) -> str:
    """``getOrder_status`` as words."""
    return " ".join(part for part in _CAMEL.split(name) if part)


def _is_named(name: str, said: str) -> bool:
    return len(name) > 2 and re.search(rf"(?<!\w){re.escape(name.lower())}(?![a-z0-9_])", said) is not None
