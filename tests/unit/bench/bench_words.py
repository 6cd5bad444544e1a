"""A counter for benches' tests: a token is a word."""

from __future__ import annotations

from collections.abc import Sequence

from services.compressor.prompt import Message, Prompt


class Words:
    """Counts words."""

    def text(self, text: str) -> int:
        return len(text.split())

    def message(self, message: Message) -> int:
        return sum(map(self.text, message.texts))

    def chunk(self, text: str) -> int:
        return self.text(text)

    def prompt(self, prompt: Prompt) -> int:
        return sum(map(self.message, prompt.messages)) + sum(map(self.chunk, prompt.chunks))

    def tools(self, tools: Sequence[str]) -> int:
        return sum(map(self.text, tools))
