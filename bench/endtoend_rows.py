"""What is asked in the end-to-end benchmark: the rows of the evaluation data as requests with a known right answer.

Only rows that no shipped weights were fitted on are taken from files that they were fitted on. Which files those are
is known by digest (``FITTED``); of any other file every row is taken.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sandbox.recorded import Recorded, key
from sandbox.usage import encode
from services.cache.split import in_training
from services.compressor import datasets as passages
from services.compressor.datasets import Case
from services.compressor.history_sets import is_fitted_on
from services.router import datasets as outcomes

WORKLOADS = ("support", "reasoning", "rag", "chat", "bulk")
MAIN, OMNIS = "main", "omnisbench"
"""Catalogues: that of the recorded pair GPT-4 and Mixtral, and that of omnisbench's models."""
STRONG = {MAIN: "gpt-4-1106-preview", OMNIS: "claude-opus-5"}
WEAK = {MAIN: "mixtral-8x7b-instruct", OMNIS: "gpt-5-nano"}
_ARMS = {
    "gpt-4-1106": STRONG[MAIN],
    "mixtral-8x7b": WEAK[MAIN],
    "claude-opus-5": STRONG[OMNIS],
    "gpt-5-nano": WEAK[OMNIS],
}
OUT_OF_SCOPE = "oos"
MULTIPLE_CHOICE_TOKENS = 48
"""Output tokens of an answer to a multiple-choice question: the letter and a short reason; nobody recorded them."""
LABEL_TOKENS = 8
MOST_HISTORY_CHARACTERS = 24_000
MOST_REPLY_TOKENS = 600
CUTS_OF_A_CHAT = 3
"""Requests made of one recorded chat: at its last, second last and third last question."""
UNREADABLE = (OSError, EOFError, zlib.error, ValueError, TypeError, KeyError, AttributeError)
FITTED = Path(__file__).with_name("endtoend_fitted.yaml")

Fields = Mapping[str, Any]
Message = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Ask:
    """One request as its caller would send it, and what is known of its answer."""

    workload: str
    row_id: str
    topic: str
    """What the question is about: questions on one topic are paraphrases. Unique where there are none."""
    messages: tuple[Message, ...]
    code: str
    """Names the right answer; the sandbox's answers begin with it."""
    tokens: Mapping[str, int]
    """Output tokens by model, "*" for any."""
    servable: bool = True
    """False for questions outside the curated set: no stored answer is right for them."""
    chunks: tuple[str, ...] = ()
    case: Case | None = None
    """What must be left of the chunks."""
    texts: Mapping[str, str] = field(default_factory=dict)
    correct: Mapping[str, float] = field(default_factory=dict)
    """Recorded quality by model, 0..1."""
    catalog: str = MAIN
    task: str = ""

    @property
    def question(self) -> str:
        """The last user message."""
        return self.messages[-1]["content"]

    def recorded(self) -> Recorded:
        """What the sandbox answers."""
        keep = self.case is not None
        return Recorded(self.question, self.code, self.tokens, self.texts, keep)


@dataclass(slots=True)
class Rows:
    """Everything that can be asked, by workload."""

    asks: dict[str, list[Ask]]
    skipped: list[str]
    fitted: list[str]
    """Files of which only the held-out side is taken."""

    @property
    def held_out_heads(self) -> bool:
        """True when the router must decide with the heads that never saw the held-out rows."""
        return any(name.startswith("router/") for name in self.fitted)


class Reader:
    """Reads one data folder."""

    def __init__(self, data: Path, seed: int) -> None:
        self._data = data
        self._seed = seed
        self._texts: dict[str, str] = yaml.safe_load(
            Path(__file__).with_name("endtoend_prompts.yaml").read_text("utf-8")
        )
        self._known = frozenset(yaml.safe_load(FITTED.read_text("utf-8")))
        self._rows = Rows({name: [] for name in WORKLOADS}, [], [])
        self._seen: set[str] = set()

    def read(self) -> Rows:
        """All workloads; what is absent or cannot be read is skipped and said."""
        parts: Sequence[tuple[str, str, Callable[[str, bool], Iterable[Ask]]]] = (
            ("cache", "banking77", self._support),
            ("cache", "clinc150", self._support),
            ("cache", "parakqc_ko", self._support),
            ("router", "routellm_mmlu", self._reasoning),
            ("router", "routellm_gsm8k", self._reasoning),
            ("router", "omnisbench", self._reasoning),
            ("compressor", "mtrag_un_multiturn", self._conversations),
            ("compressor", "mtrag_human_eval3", self._conversations),
            ("compressor", "nq_gold_passages", self._passages),
            ("compressor", "korquad1_dev_ko", self._passages),
            ("compressor", "beerqa_1000", self._passages),
            ("compressor", "sharegpt_multiturn_en", self._chats),
            ("compressor", "sharegpt_multiturn_ko", self._chats),
        )
        for folder, name, make in parts:
            file = self._data / folder / f"{name}.jsonl.gz"
            if not file.is_file():
                self._rows.skipped.append(f"{name}: no file")
                continue
            own = _digest(file) in self._known
            if own:
                self._rows.fitted.append(f"{folder}/{name}")
            try:
                found = list(make(name, own))
            except UNREADABLE as error:
                self._rows.skipped.append(f"{name}: cannot be read: {error or type(error).__name__}")
                continue
            for ask in found:
                # The sandbox finds an answer by the question alone.
                if key(ask.question) not in self._seen:
                    self._seen.add(key(ask.question))
                    self._rows.asks[ask.workload].append(ask)
        return self._rows

    def _lines(self, folder: str, name: str) -> list[Fields]:
        with gzip.open(self._data / folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def _support(self, name: str, own: bool) -> Iterable[Ask]:
        korean = name.endswith("_ko")
        system = self._texts["support_ko" if korean else "support_en"]
        rows = self._lines("cache", name)
        labels = sorted({str(row["intent"]) for row in rows if "intent" in row})
        job = self._texts["bulk"] + "  " + ", ".join(labels) + "\n"
        for number, row in enumerate(rows):
            identity = str(row["set"] if korean else row["intent"])
            outside = identity == OUT_OF_SCOPE
            topic = f"{name}:{identity}:{row['id']}" if outside else f"{name}:{identity}"
            if own and in_training(name, f"{OUT_OF_SCOPE}:{row['id']}" if outside else identity):
                continue
            code = code_of(topic)
            yield Ask(
                "support", str(row["id"]), topic, _turns(system, row["text"]), code,
                {"*": 60 + int(code, 16) % 81}, servable=not outside,
            )  # fmt: skip
            # Every other row is a message to be labelled, not one of the help centre's questions.
            if labels and number % 2:
                text = f"Message: {row['text']}"
                label = code_of(f"label:{name}:{identity}")
                yield Ask(
                    "bulk", f"{row['id']}/label", f"{name}:{row['id']}", _turns(job, text), label, {"*": LABEL_TOKENS}
                )

    def _reasoning(self, name: str, own: bool) -> Iterable[Ask]:
        catalog = OMNIS if name == OMNIS else MAIN
        texts = {str(row["id"]): row for row in self._lines("router", name)} if name == "routellm_gsm8k" else {}
        for row in outcomes.read(self._data, name):
            correct = {_ARMS[arm]: value for arm, value in row.quality.items() if arm in _ARMS}
            if (own and not outcomes.held_out(row)) or {STRONG[catalog], WEAK[catalog]} - set(correct):
                continue
            recorded = texts.get(row.row_id, {})
            said = (
                {WEAK[MAIN]: str(recorded["weak_response"]), STRONG[MAIN]: str(recorded["strong_response"])}
                if recorded.get("weak_response") and recorded.get("strong_response")
                else {}
            )
            tokens = {"*": MULTIPLE_CHOICE_TOKENS}
            tokens |= {_ARMS[arm]: int(count) for arm, count in row.output_tokens.items() if arm in _ARMS}
            yield Ask(
                "reasoning", row.row_id, f"{name}:{row.row_id}", _turns(self._texts["reasoning"], row.text),
                code_of(f"{name}:{row.row_id}"), tokens, texts=said, correct=correct, catalog=catalog,
                task=f"{name}:{row.task}",
            )  # fmt: skip

    def _passages(self, name: str, own: bool) -> Iterable[Ask]:
        for case in passages.read(self._data, name, self._seed):
            if not (own and case.training):
                yield self._case("rag", name, case, _turns(self._texts["rag"], case.question))

    def _conversations(self, name: str, own: bool) -> Iterable[Ask]:
        rows = {row["id"]: row for row in self._lines("compressor", name)}
        for case in passages.read(self._data, name, self._seed):
            if own and case.training:
                continue
            said = [
                {"role": each["role"], "content": each["content"]}
                for each in rows[case.id]["messages"]
                if each["role"] in ("user", "assistant")
            ]
            workload = "chat" if len(said) > 1 else "rag"
            system = self._texts["rag"]
            yield self._case(workload, name, case, ({"role": "system", "content": system}, *said))

    def _case(self, workload: str, name: str, case: Case, messages: tuple[Message, ...]) -> Ask:
        code = code_of(f"{name}:{case.id}")
        tokens = {"*": 30 + int(code, 16) % 61}
        return Ask(workload, case.id, f"{name}:{case.id}", messages, code, tokens, chunks=case.chunks, case=case)

    def _chats(self, name: str, own: bool) -> Iterable[Ask]:
        for row in self._lines("compressor", name):
            if own and is_fitted_on(str(row.get("root", row["id"]))):
                continue
            for before, reply in _conversations(row["messages"]):
                topic = f"{name}:{row['id']}:{len(before)}"
                tokens = {"*": max(12, min(MOST_REPLY_TOKENS, len(encode(reply))))}
                messages = ({"role": "system", "content": self._texts["chat"]}, *before)
                yield Ask("chat", f"{row['id']}:{len(before)}", topic, messages, code_of(topic), tokens)


def code_of(topic: str) -> str:
    """Six hexadecimal digits that name the answer to a topic."""
    return hashlib.sha256(topic.encode()).hexdigest()[:6]


def _turns(system: str, question: str) -> tuple[Message, ...]:
    return ({"role": "system", "content": system}, {"role": "user", "content": question})


def _conversations(messages: Sequence[Fields]) -> Iterable[tuple[list[Message], str]]:
    """Turns up to a user's message with turns before it and an answer after it, and that answer; the last few."""
    turns: list[Message] = [
        {"role": str(each["role"]), "content": str(each["content"])}
        for each in messages
        if str(each["content"]).strip()
    ]
    while turns and turns[0]["role"] != "user":
        turns.pop(0)
    found = 0
    for end in range(len(turns) - 1, 2, -1):
        before = turns[:end]
        if turns[end]["role"] != "assistant" or before[-1]["role"] != "user" or found == CUTS_OF_A_CHAT:
            continue
        if sum(len(each["content"]) for each in before) <= MOST_HISTORY_CHARACTERS:
            found += 1
            yield before, turns[end]["content"]


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
