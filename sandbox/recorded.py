"""Recorded and modelled answers of named models, for measurements of cost and quality that pay nobody.

A file of JSON lines says what each model answers to each question. Its first line has the models and the clock:

    {"clock": 0.02, "models": {"gpt-x": {"first_token_seconds": 0.6, "tokens_per_second": 25}}}
    {"question": "...", "code": "5f3a91", "tokens": {"gpt-x": 48, "*": 40}, "texts": {}, "keep_prompt": true}

``tokens`` are output tokens by cl100k_base; "*" stands for every other model. An answer without a recorded text is a
head that names it, ``[5f3a91]``, and filler up to the tokens. A question is found by the last user message or by what
follows an empty line in it, since retrieved passages stand before the question; by its beginning where a compressor has
put a mark in the place of a paragraph that stands above. ``keep_prompt`` writes what was sent to another file and names
it in the head, ``[5f3a91 DIGEST]``: what a compressor left of it can be looked at there.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesh.errors import Code, TenthError
from sandbox.usage import decode, encode, text_of

ANY_MODEL = "*"
_REPEATED, _HEAD_CHARS = ("[repeated above]", "[위와 같음]"), 80
_FILLER = " the"
"""One token by cl100k_base, also many of them in a row."""
_DIGEST_CHARS = 10


@dataclass(frozen=True, slots=True)
class Speed:
    """How fast a model answers, on its own clock."""

    first_token_seconds: float = 0.0
    tokens_per_second: float = float("inf")

    def seconds(self, tokens: int) -> float:
        """Until the last token."""
        return self.first_token_seconds + tokens / self.tokens_per_second


@dataclass(frozen=True, slots=True)
class Recorded:
    """What is answered to one question."""

    question: str
    code: str
    """Names the answer: questions with the same code have the same answer. Letters and digits."""
    tokens: Mapping[str, int]
    """Output tokens by model; ANY_MODEL stands for the others."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """By model, where the text was recorded."""
    keep_prompt: bool = False

    def answer(self, model: str, limit: int, digest: str = "") -> str:
        """The text, at most ``limit`` tokens long. Raises KeyError for a model of which nothing is recorded."""
        if model in self.texts:
            return _cut(self.texts[model], limit)
        head = f"[{self.code} {digest}]" if digest else f"[{self.code}]"
        wanted = min(self.tokens[model if model in self.tokens else ANY_MODEL], limit)
        return _cut(head + _FILLER * max(0, wanted - len(encode(head))), limit)

    def as_json(self) -> dict[str, Any]:
        """One line of the file."""
        return {
            "question": self.question,
            "code": self.code,
            "tokens": dict(self.tokens),
            "texts": dict(self.texts),
            "keep_prompt": self.keep_prompt,
        }


@dataclass(frozen=True, slots=True)
class Record:
    """Everything that is recorded, and how fast the models are."""

    clock: float
    """Seconds waited for each second of the models' clock; 0: no wait."""
    speeds: Mapping[str, Speed]
    entries: Mapping[str, Recorded]
    """By question."""

    def find(self, messages: list[dict[str, Any]]) -> Recorded | None:
        """What is recorded for the last user message, or for what follows an empty line in it."""
        for text in _tails(messages):
            found = self.entries.get(text)
            if found is not None:
                return found
            if any(mark in text for mark in _REPEATED):
                alike = [entry for asked, entry in self.entries.items() if asked[:_HEAD_CHARS] == text[:_HEAD_CHARS]]
                if len(alike) == 1:
                    return alike[0]
        return None

    def seconds(self, model: str, tokens: int) -> float:
        """How long an answer is waited for, on the clock."""
        return self.speeds.get(model, Speed()).seconds(tokens) * self.clock


def read(path: Path) -> Record:
    """Read a file of answers. Raises OSError, ValueError or KeyError for one that is not so."""
    with path.open(encoding="utf-8") as lines:
        head = json.loads(next(lines, "{}"))
        entries = (json.loads(line) for line in lines)
        found = {
            key(entry["question"]): Recorded(
                entry["question"], entry["code"], entry["tokens"], entry.get("texts") or {}, bool(entry["keep_prompt"])
            )
            for entry in entries
        }
    return Record(float(head["clock"]), {name: Speed(**speed) for name, speed in head["models"].items()}, found)


def write(path: Path, record: Record) -> None:
    """Write a file of answers."""
    speeds = {
        name: {"first_token_seconds": speed.first_token_seconds, "tokens_per_second": speed.tokens_per_second}
        for name, speed in record.speeds.items()
    }
    with path.open("w", encoding="utf-8") as file:
        file.write(json.dumps({"clock": record.clock, "models": speeds}) + "\n")
        for entry in record.entries.values():
            file.write(json.dumps(entry.as_json(), ensure_ascii=False) + "\n")


def key(question: str) -> str:
    """What a question is found by: its text with single blanks, since clean-up may take blanks out."""
    return " ".join(question.split())


class RecordedWriter:
    """Answers what is recorded."""

    def __init__(self, record: Record, prompts: Path | None) -> None:
        """``prompts`` is the file that kept prompts are added to, a JSON line each."""
        self._record = record
        self._prompts = prompts

    async def write(self, body: dict[str, Any], limit: int) -> AsyncGenerator[tuple[str, str]]:
        """The whole answer as one piece, when the model would have written it. Raises TenthError for no such answer."""
        found = self._record.find(body["messages"])
        if found is None:
            raise TenthError(Code.INVALID_ARGUMENT, "NOT_RECORDED", "no answer to this question is recorded")
        model = str(body.get("model", ""))
        digest = self._keep(body["messages"]) if found.keep_prompt else ""
        try:
            text = found.answer(model, limit, digest)
        except KeyError:
            raise TenthError(Code.INVALID_ARGUMENT, "NOT_RECORDED", f"nothing is recorded of {model}") from None
        tokens = len(encode(text))
        seconds = self._record.seconds(model, tokens)
        if seconds:
            await asyncio.sleep(seconds)
        yield text, ""
        yield "", "length" if tokens >= limit else "stop"

    def _keep(self, messages: list[dict[str, Any]]) -> str:
        text = "\n".join(text_of(message) for message in messages)
        digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_CHARS]
        if self._prompts is not None:
            with self._prompts.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"digest": digest, "text": text}, ensure_ascii=False) + "\n")
        return digest


def _tails(messages: list[dict[str, Any]]) -> Iterator[str]:
    last = next((text_of(each) for each in reversed(messages) if each.get("role") == "user"), "")
    yield key(last)
    end = len(last)
    while (at := last.rfind("\n\n", 0, end)) >= 0:
        yield key(last[at + 2 :])
        end = at


def _cut(text: str, limit: int) -> str:
    ids = encode(text)
    return text if len(ids) <= limit else decode(ids[:limit])
