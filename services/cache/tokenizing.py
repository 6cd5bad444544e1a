"""Texts to token ids, whichever kind of tokenizer a model folder holds."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from services.cache.unigram import UnigramTokenizer, is_unigram


class TextTokenizer(Protocol):
    """What an encoder needs of a tokenizer."""

    def encode(self, text: str, limit: int) -> list[int]:
        """Ids of a text, at most ``limit``, with the ones that begin and end it."""

    def count(self, text: str, limit: int) -> int:
        """How many ids the whole text has; a number above ``limit`` says only that they are more."""

    def pieces(self, text: str) -> list[str]:
        """The tokens as text."""


class LibraryTokenizer:
    """Any ``tokenizer.json``, by the ``tokenizers`` library."""

    def __init__(self, path: Path) -> None:
        """Read the file. Raises OSError, or what the library raises for a broken one."""
        from tokenizers import Tokenizer

        self._tokenizer: Any = Tokenizer.from_file(str(path))
        # The folder's own file may pad and cut to other lengths than the model was made for.
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()

    def encode(self, text: str, limit: int) -> list[int]:
        """Ids of a text, at most ``limit``, with the ones that begin and end it."""
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids if len(ids) <= limit else [*ids[: limit - 1], ids[-1]]

    def count(self, text: str, limit: int) -> int:
        """How many ids the whole text has."""
        return len(self._tokenizer.encode(text).ids)

    def pieces(self, text: str) -> list[str]:
        """The tokens as text."""
        return list(self._tokenizer.encode(text).tokens)


def load_tokenizer(folder: Path) -> TextTokenizer:
    """The tokenizer of a model folder: the small one where it is of that kind. Raises OSError, ValueError."""
    path = folder / "tokenizer.json"
    return UnigramTokenizer(path) if is_unigram(path) else LibraryTokenizer(path)
