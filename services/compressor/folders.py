"""The tokenizer and the chat template of a Hugging Face model folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
import tokenizers

from services.compressor.bytelevel import byte_level_count
from services.compressor.vocabularies import Count

_USUAL_MESSAGE_TOKENS = 5


class FolderTokenizer:
    """Counts as the folder's tokenizer does, and a conversation as its template renders it."""

    def __init__(self, folder: Path) -> None:
        """Read ``tokenizer.json`` and the chat template. Raises OSError or ValueError when one is unusable."""
        text = (folder / "tokenizer.json").read_text("utf-8")
        self._tokenizer = tokenizers.Tokenizer.from_str(text)
        spec = json.loads(text)
        special = [str(item["content"]) for item in spec.get("added_tokens", [])]
        # Text between special tokens is tokenized apart, so that counts of the pieces add up and can be kept.
        longest_first = sorted(special, key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if special else None
        config_file = folder / "tokenizer_config.json"
        self._config: dict[str, Any] = json.loads(config_file.read_text("utf-8")) if config_file.exists() else {}
        self._template = _template(folder, self._config)
        self._plain = byte_level_count(spec, self._slow) or self._slow
        self.fast = self._plain != self._slow
        """True when texts are counted by tiktoken's core."""
        self.message_tokens = self._message_tokens()
        """What the template puts around one message, rounded up."""

    def count(self, text: str) -> int:
        """Tokens of a text; a special token written in it counts as one, as it does for the model."""
        if self._special is None:
            return self._plain(text)
        pieces = self._special.split(text)
        return sum(self._plain(piece) for piece in pieces[::2] if piece) + len(pieces) // 2

    def count_chat(self, messages: Sequence[Mapping[str, str]], count: Count) -> int:
        """Tokens of a conversation as the template renders it, ready for the answer; pieces by ``count``.

        Raises jinja2.TemplateError when the template does not take these messages.
        """
        rendered = self._template.render(messages=list(messages), add_generation_prompt=True, **self._tokens())
        if self._special is None:
            return count(rendered)
        pieces = self._special.split(rendered)
        return sum(count(piece) for piece in pieces[::2] if piece) + len(pieces) // 2

    def _message_tokens(self) -> int:
        pair = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]
        try:
            one, three = (self.count_chat(pair * pairs + pair[:1], self.count) for pairs in (1, 3))
        except jinja2.TemplateError:
            return _USUAL_MESSAGE_TOKENS
        return max(0, -(-(three - one) // 4) - self.count("x"))

    def _slow(self, text: str) -> int:
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _tokens(self) -> dict[str, str]:
        found = {}
        for key in ("bos_token", "eos_token", "pad_token", "unk_token"):
            value = self._config.get(key)
            value = value.get("content") if isinstance(value, dict) else value
            if isinstance(value, str):
                found[key] = value
        return found


def _template(folder: Path, config: Mapping[str, Any]) -> jinja2.Template:
    # The options are those of transformers' apply_chat_template; a sandbox, since the template came with a model.
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _raise
    file = folder / "chat_template.jinja"
    source = file.read_text("utf-8") if file.exists() else config.get("chat_template")
    if not isinstance(source, str):
        raise ValueError(f"{folder.name}: no chat template")
    return environment.from_string(source)


def _raise(message: str) -> None:
    raise jinja2.TemplateError(message)
