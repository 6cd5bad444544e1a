"""A Unigram tokenizer (SentencePiece's; Kudo, 2018) that stays small in memory.

The ``tokenizers`` library holds a vocabulary of 250,000 pieces in 280 MB; a dictionary holds it in a fifth of that, and
for questions of a few dozen characters a search in Python takes less than a millisecond. Same tokens as the library
for the same ``tokenizer.json`` (tests compare them), but for one thing: a special token written out in a text, such as
``</s>``, is text here.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from tokenizers import Regex, normalizers

_UNKNOWN_PENALTY = 10.0
_BLANK = "\u2581"
_WORD_MEMORY_COUNT = 16_384
_WORD_LENGTH_LIMIT = 256
"""Characters. A longer run without a blank is cut up first: the search takes time by its length."""


def is_unigram(path: Path) -> bool:
    """True if a ``tokenizer.json`` is of this kind. Raises OSError, ValueError."""
    return bool(json.loads(path.read_text("utf-8"))["model"]["type"] == "Unigram")


class UnigramTokenizer:
    """Texts to ids, with the tokens that begin and end a sequence."""

    def __init__(self, path: Path) -> None:
        """Read a ``tokenizer.json``. Raises OSError, or ValueError for one with other steps than this class does."""
        content = json.loads(path.read_text("utf-8"))
        model, before, after = content["model"], content["pre_tokenizer"], content["post_processor"]
        kinds = (model["type"], before["type"], before.get("prepend_scheme"), after["type"])
        if kinds != ("Unigram", "Metaspace", "always", "TemplateProcessing"):
            raise ValueError(f"{path}: a tokenizer of other steps: {kinds}")
        special = {token["content"] for token in content["added_tokens"] if token["special"]}
        self._normalizer: Any = _normalizer(content["normalizer"])
        self._scores = [score for _, score in model["vocab"]]
        self._ids = {piece: place for place, (piece, _) in enumerate(model["vocab"]) if piece not in special}
        self.unknown_id = int(model["unk_id"])
        self._unknown_score = min(self._scores) - _UNKNOWN_PENALTY
        self._longest = max(map(len, self._ids))
        parts = [part["SpecialToken"]["id"] if "SpecialToken" in part else None for part in after["single"]]
        if len(parts) != 3 or parts[1] is not None:
            raise ValueError(f"{path}: a sequence is not one token, the text, one token")
        self._begin, self._end = (after["special_tokens"][name]["ids"][0] for name in (parts[0], parts[2]))
        self._word = lru_cache(_WORD_MEMORY_COUNT)(self._search)

    def encode(self, text: str, limit: int) -> list[int]:
        """Ids of a text, at most ``limit`` of them, with the ones that begin and end it."""
        return [self._begin, *self._content(text, limit - 2), self._end]

    def count(self, text: str, limit: int) -> int:
        """How many ids a text has; counting stops soon after ``limit``."""
        return len(self._content(text, limit)) + 2

    def pieces(self, text: str) -> list[str]:
        """The tokens of a text as text: slow, for looking at them."""
        names = {place: piece for piece, place in self._ids.items()}
        return [names.get(each, "<unk>") for each in self._content(text, len(text) + 2)]

    def _content(self, text: str, limit: int) -> list[int]:
        normal = self._normalizer.normalize_str(text).replace(" ", _BLANK)
        if not normal:
            return []
        ids: list[int] = []
        for word in normal.removeprefix(_BLANK).split(_BLANK):
            for start in range(0, len(word) + 1, _WORD_LENGTH_LIMIT):
                part = word[start : start + _WORD_LENGTH_LIMIT]
                ids += self._word(part if start else _BLANK + part)
            if len(ids) >= limit:
                break
        return ids[:limit]

    def _search(self, word: str) -> tuple[int, ...]:
        """The likeliest pieces of a word (Viterbi); unknown characters in a row are one unknown token."""
        count = len(word)
        best = [0.0] + [float("-inf")] * count
        back: list[tuple[int, int]] = [(0, 0)] * (count + 1)
        for start in range(count):
            reached = best[start]
            for end in range(start + 1, min(count, start + self._longest) + 1):
                found = self._ids.get(word[start:end])
                if found is None:
                    if end > start + 1:
                        continue
                    found, score = self.unknown_id, reached + self._unknown_score
                else:
                    score = reached + self._scores[found]
                if score > best[end]:
                    best[end], back[end] = score, (start, found)
        ids: list[int] = []
        at = count
        while at:
            at, found = back[at]
            if not (found == self.unknown_id and ids and ids[-1] == found):
                ids.append(found)
        return tuple(reversed(ids))


def _normalizer(steps: dict[str, Any]) -> Any:
    made: list[Any] = []
    for step in steps["normalizers"]:
        if step["type"] in ("Nmt", "NFKC"):
            made.append(getattr(normalizers, step["type"])())
        elif step["type"] == "Replace":
            ((kind, pattern),) = step["pattern"].items()
            made.append(normalizers.Replace(Regex(pattern) if kind == "Regex" else pattern, step["content"]))
        else:
            raise ValueError(f"a normaliser of an unknown kind: {step['type']}")
    return normalizers.Sequence(made)
