"""Kept token counts, and long texts in pieces that tokenizers take well."""

from __future__ import annotations

import hashlib
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator

from services.compressor.vocabularies import Count, sendable

_PIECE_CHARS = 40_000
_SHORT_CHARS = 16
"""Shorter texts are counted faster than they are looked up."""
ENTRY_BYTES = 320
"""Memory of one kept count: its digest, number and places in the table, measured with CPython 3.11."""

# Where every byte-level and word-based tokenizer parts a text anyway: before a single blank between two letters,
# and after a line break before a letter or digit.
_PARTING = re.compile(r"\n(?=[^\W_])|[^\W_](?= [^\W\d_])")


class TokenCache:
    """Token counts by tokenizer and digest of the text, least recently used out first. Holds no text."""

    def __init__(self, capacity_bytes: int) -> None:
        """Use at most about ``capacity_bytes`` of memory; 0 keeps nothing."""
        self._most = capacity_bytes // ENTRY_BYTES
        self._entries: OrderedDict[tuple[str, bytes], int] = OrderedDict()
        self._lock = threading.Lock()  # Long prompts are counted in threads.

    def __len__(self) -> int:
        return len(self._entries)

    def count(self, tokenizer: str, text: str, count: Count) -> int:
        """The kept count, or a new one. Lone surrogates count as U+FFFD."""
        if not text:
            return 0
        text = sendable(text)
        if len(text) < _SHORT_CHARS or not self._most:
            return sum(map(count, pieces(text)))
        # 128 bits, so that no two texts of a lifetime meet by chance.
        key = (tokenizer, hashlib.blake2b(text.encode(), digest_size=16).digest())
        with self._lock:
            kept = self._entries.get(key)
            if kept is not None:
                self._entries.move_to_end(key)
                return kept
        result = sum(map(count, pieces(text)))
        with self._lock:
            self._entries[key] = result
            while len(self._entries) > self._most:
                self._entries.popitem(last=False)
        return result


def pieces(text: str, limit: int = _PIECE_CHARS) -> Iterator[str]:
    """A long text in parts of at most ``limit`` characters, cut where tokenizers part it anyway.

    So the counts of the parts add up to the whole's. Where a stretch of half the limit has no such place (a run of
    one letter, of emoji or of blanks), it is cut anyway, which can cost a token more or so for each cut; without that
    some tokenizers would take quadratic time.
    """
    start = 0
    while len(text) - start > limit:
        end = _parting(text, start + limit // 2, start + limit)
        yield text[start:end]
        start = end
    yield text[start:] if start else text


def _parting(text: str, least: int, most: int) -> int:
    for width in (500, most - least):
        last = None
        for match in _PARTING.finditer(text, max(least, most - width), most):
            last = match
        if last is not None:
            return last.end()
    return most
