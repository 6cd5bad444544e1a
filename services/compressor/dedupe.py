"""The ``dedupe`` strategy: what stands in the prompt twice, across turns and chunks, goes once. Pure, deterministic.

The unit is a paragraph of a message, a fenced block, or a whole chunk. The earliest copy stays: it stands in the part
of the prompt that a provider has cached. In its place a later copy leaves ``[repeated above]``; a chunk leaves nothing.
Run it after ``history``, which might drop the first copy.

| what | goes when |
|---|---|
| prose | equal but for blanks, from 80 characters on |
| prose, nearly equal | from 160 characters on, when the earlier copy says all that it says (below) |
| code, JSON, tables, quotations, tool results | byte for byte equal, from 400 characters on |

The earlier copy says it all when eight in ten word triples are common to both, every word of the later copy stands in
it in that order (but for articles), and numbers, dates, negations, limiting words ("only", "until", "이상"),
identifiers and names are the same, one for one.

Never touched: system and pinned messages (they may hold the first copy), the last user message unless asked for, worked
examples (``Q:``, ``예시 1:``), and all that is shorter.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from services.compressor.minhash import Hashes, MinHasher, jaccard
from services.compressor.prompt import SYSTEM, TOOL, Message, last_user

MARK, MARK_KO = "[repeated above]", "[위와 같음]"
_FENCE = re.compile(r"^[ \t]*(```+|~~~+).*?(?:^[ \t]*\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_BREAK = re.compile(r"\n[ \t]*\n\s*")
_DATA = re.compile(
    r"```|~~~|[{}]|\|.*\||\t|^ {4,}\S|;\s*$|</?\w+[^<>]*>|=>|->|::|==|!=|\+=|^[^\S\n]*+\w[\w.]*\(.*\)\s*$|^[^\S\n]*+>"
    r"|^[^\S\n]*+(?:def|class|import|from|return|SELECT|INSERT|UPDATE|DELETE|CREATE)\b.*[:;({,=*)]?\s*$(?<!\.)"
    r"|\A\s*[\"“「『«]",
    re.MULTILINE,
)
_EXAMPLE = re.compile(
    r"^[^\S\n]*+(?:q|a|question|answer|user|assistant|system|human|ai|input|output|example"
    r"|예|예시|질문|답|답변|입력|출력|사용자)[ \t]{0,3}\d{0,3}[ \t]{0,3}[:：.)]",
    re.IGNORECASE | re.MULTILINE,
)
_TOKEN = re.compile(r"[\uac00-\ud7a3]+|\d+(?:[.,:/-]\d+)*|(?:(?![\uac00-\ud7a3])[^\W_])+(?:['’][a-z]+)?|[%$€£¥₩°+]")
_SAFE = frozenset({"a", "an", "the"})
_CRITICAL = re.compile(
    r"\d|[%$€£¥₩°]|^(?:no|not|never|none|nothing|nobody|neither|nor|without|cannot|except|unless|only|but|if|until|before"
    r"|after|all|any|every|some|least|most|more|less|must|may|should|shall|might|can|could|will|would)$|n['’]t$"
    r"|않|없|아니|못|말고|마세요|말라|금지|제외|외에|만$|미만|이하|이상|초과|까지|부터"
)
_IDENTIFIER = re.compile(r"\S*(?:\w[_@/\\#.:-]\w|[a-z][A-Z])\S*|\b[A-Z][\w-]*")
_DIGIT, _CAPITAL = re.compile(r"\d"), re.compile(r"\b[A-Z]")
"""Found in no time, and all of them stand in what is critical, in their order: copies have the same ones."""
_MOST_CANDIDATES = 8
"""Of texts that look alike (filled-in forms) only so many are kept to compare with."""
_LEAST_HANGUL, _LANGUAGE_CHARS = 0.2, 400


@dataclass(frozen=True, slots=True)
class DedupeSettings:
    """From which lengths on a copy goes, in characters."""

    least_chars: int = 80
    near_least_chars: int = 160
    near_similarity: float = 0.8
    data_least_chars: int = 400
    edit_last_user: bool = False
    """Whether copies in the last user message go as well, byte for byte equal ones of ``data_least_chars`` only."""


@dataclass(frozen=True, slots=True)
class Repeat:
    """A copy that went. Places are ``("message", position)`` or ``("chunk", position)``."""

    place: tuple[str, int]
    first: tuple[str, int]
    kind: str
    """"equal", "near" or "data"."""
    chars: int


@dataclass(frozen=True, slots=True)
class Deduped:
    """The prompt without its copies."""

    messages: tuple[Message, ...]
    chunk_positions: tuple[int, ...]
    repeats: tuple[Repeat, ...]


class _Block:
    """A paragraph, as near copies are compared with it. Few look like another one: all is made when asked for."""

    def __init__(self, place: tuple[str, int], text: str, hasher: MinHasher) -> None:
        self.place = place
        self._text = text
        self._hasher = hasher

    @cached_property
    def shingles(self) -> Hashes:
        """Of its words, for likeness."""
        return self._hasher.shingles(_units(self._tokens))

    @cached_property
    def keys(self) -> list[bytes]:
        """Like ones share one of these."""
        return self._hasher.bands(self.shingles)

    @cached_property
    def words(self) -> list[str]:
        """What it says, word for word."""
        return _told(self._tokens)

    @cached_property
    def critical(self) -> tuple[str, ...]:
        """What may not differ."""
        return _critical(self._text, self._tokens)

    @cached_property
    def _tokens(self) -> list[str]:
        return _TOKEN.findall(self._text)


class _Likely:
    """Paragraphs that have the same digits and capitals: only such ones can be copies of each other."""

    def __init__(self, first: _Block) -> None:
        self._only: _Block | None = first
        self._bands: dict[bytes, list[_Block]] = {}

    def like(self, block: _Block) -> Iterable[_Block]:
        """Those that may be like it."""
        if self._only is not None:
            self._add(self._only)
            self._only = None
        return {id(other): other for key in block.keys for other in self._bands.get(key, ())}.values()

    def add(self, block: _Block) -> None:
        """One more."""
        self.like(block)
        self._add(block)

    def _add(self, block: _Block) -> None:
        for key in block.keys:
            band = self._bands.setdefault(key, [])
            if len(band) < _MOST_CANDIDATES:
                band.append(block)


def dedupe(messages: Sequence[Message], chunks: Sequence[str], settings: DedupeSettings) -> Deduped:
    """The prompt in the order in which a model reads it: earlier messages, chunks, the last user message, the rest."""
    seen = _Seen(settings)
    at = last_user(messages)
    tail = len(messages) if at is None else at
    result = [_message(message, position, seen, settings) for position, message in enumerate(messages[:tail])]
    kept = []
    for position, chunk in enumerate(chunks):
        if not seen.repeats_block(chunk, ("chunk", position), strict=False):
            kept.append(position)
    for position, message in enumerate(messages[tail:], tail):
        strict = position == at
        result.append(_message(message, position, seen, settings, strict=strict))
    return Deduped(tuple(result), tuple(kept), tuple(seen.repeats))


def _message(
    message: Message, position: int, seen: _Seen, settings: DedupeSettings, *, strict: bool = False
) -> Message:
    fixed = message.role == SYSTEM or message.pinned or (strict and not settings.edit_last_user)
    place = ("message", position)
    if message.role == TOOL:
        texts = tuple(_mark(text) if seen.repeats_data(text, place, fixed=fixed) else text for text in message.texts)
    else:
        texts = tuple(_text(text, place, seen, fixed=fixed, strict=strict) for text in message.texts)
    return message if texts == message.texts else replace(message, texts=texts)


def _text(text: str, place: tuple[str, int], seen: _Seen, *, fixed: bool, strict: bool) -> str:
    """The text without copies of what was seen before."""
    parts = _parts(text)
    if _EXAMPLE.search(text):
        fixed = True  # Examples repeat on purpose; still they may be the first copy of what follows.
    result, gone = list[str](), False
    changed = False
    for block, gap in parts:
        repeated = bool(block) and seen.repeats_block(block, place, fixed=fixed, strict=strict)
        if not repeated:
            result.append(block + gap)
        elif not gone:
            result.append(_mark(block) + gap)
        changed = changed or repeated
        gone = repeated
    return "".join(result).rstrip("\n") if changed else text


def _parts(text: str) -> list[tuple[str, str]]:
    """Paragraphs and fenced blocks, each with the blank lines after it: together they are the text."""
    pieces, at = list[tuple[str, str]](), 0
    for match in _FENCE.finditer(text):
        pieces += _paragraphs(text[at : match.start()])
        pieces.append((match[0], ""))
        at = match.end()
    return pieces + _paragraphs(text[at:])


def _paragraphs(text: str) -> list[tuple[str, str]]:
    result, at = list[tuple[str, str]](), 0
    for match in _BREAK.finditer(text):
        result.append((text[at : match.start()], match[0]))
        at = match.end()
    if at < len(text):
        result.append((text[at:], ""))
    return result


class _Seen:
    """What was read so far."""

    def __init__(self, settings: DedupeSettings) -> None:
        self.repeats: list[Repeat] = []
        self._settings = settings
        self._hasher = MinHasher()
        self._exact: dict[bytes, tuple[str, int]] = {}
        self._raw: dict[bytes, tuple[str, int]] = {}
        self._likely: dict[str, _Likely] = {}

    def repeats_data(self, text: str, place: tuple[str, int], *, fixed: bool = False) -> bool:
        """True for a byte-identical large copy; what is none is remembered."""
        if len(text) < self._settings.data_least_chars:
            return False
        return self._known(self._raw, _digest(text), text, place, "data", fixed=fixed)

    def repeats_block(self, text: str, place: tuple[str, int], *, fixed: bool = False, strict: bool) -> bool:
        """True for a copy that may go; what is none is remembered."""
        if len(text) < self._settings.least_chars:
            return False
        if strict or _DATA.search(text):
            return self.repeats_data(text, place, fixed=fixed)
        same = " ".join(unicodedata.normalize("NFC", text).split())
        if self._known(self._exact, _digest(same), text, place, "equal", fixed=fixed):
            return True
        # Prose counts as data too, so that a strict reader of the last message finds it.
        self._raw.setdefault(_digest(text), place)
        if len(same) < self._settings.near_least_chars:
            return False
        return self._near(same, place, fixed=fixed)

    def _known(
        self,
        known: dict[bytes, tuple[str, int]],
        digest: bytes,
        text: str,
        place: tuple[str, int],
        kind: str,
        *,
        fixed: bool,
    ) -> bool:
        first = known.get(digest)
        if first is None:
            known[digest] = place
            return False
        if fixed:
            return False
        self.repeats.append(Repeat(place, first, kind, len(text)))
        return True

    def _near(self, text: str, place: tuple[str, int], *, fixed: bool) -> bool:
        block = _Block(place, text, self._hasher)
        marks = "".join((*_DIGIT.findall(text), "|", *_CAPITAL.findall(text)))
        likely = self._likely.get(marks)
        if likely is None:
            self._likely[marks] = _Likely(block)
            return False
        if not fixed:
            for other in likely.like(block):
                if self._stands_for(other, block):
                    self.repeats.append(Repeat(place, other.place, "near", len(text)))
                    return True
        likely.add(block)
        return False

    def _stands_for(self, first: _Block, later: _Block) -> bool:
        """True when the first says all that the later one does."""
        if jaccard(first.shingles, later.shingles) < self._settings.near_similarity:
            return False
        if first.critical != later.critical:
            return False
        rest = iter(first.words)
        return all(word in rest for word in later.words)  # In order: each search goes on where the last one ended.


def _units(words: Sequence[str]) -> list[str]:
    """For shingles: words in lower case, Hangul in bigrams, for few Korean words repeat exactly."""
    result = list[str]()
    for word in words:
        if "\uac00" <= word[0] <= "\ud7a3" and len(word) > 2:
            result += [word[at : at + 2] for at in range(len(word) - 1)]
        else:
            result.append(word.lower())
    return result


def _told(words: Sequence[str]) -> list[str]:
    lowered = (word.lower() for word in words)
    return [word for word in lowered if word not in _SAFE]


def _critical(text: str, words: Sequence[str]) -> tuple[str, ...]:
    """What may not differ, in order: numbers, dates, negations, limits; then identifiers and names."""
    lowered = [word.lower() for word in words]
    limits = [word for word in lowered if _CRITICAL.search(word)]
    # A sentence's first word has a capital for no reason of its own: equal words have equal capitals nearly always.
    names = [match[0].strip(".,;:!?()[]\"'") for match in _IDENTIFIER.finditer(text)]
    return (*limits, "", *names)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _mark(text: str) -> str:
    letters = sum(map(str.isalpha, text[:_LANGUAGE_CHARS])) or 1
    hangul = sum("\uac00" <= char <= "\ud7a3" for char in text[:_LANGUAGE_CHARS])
    return MARK_KO if hangul >= _LEAST_HANGUL * letters else MARK
