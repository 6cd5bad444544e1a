"""Recorded conversations to fit and measure the ``history`` strategy on.

- LoCoMo (Maharana et al., 2024): very long chats of two people over months, and questions with the turns that hold the
  evidence. Each turn is a message: the first speaker the user, the other the assistant, both by name; a session's date
  stands at the head of its first turn, a picture as its caption. Category 5 (questions without an answer) and questions
  without evidence are left out.
- chats with a real next answer (ShareGPT, mtRAG-UN): what the answer needs of the history is not marked, so its words
  stand in for it: those of the answer that are in the history and not in the question.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from services.compressor.history_terms import Terms
from services.compressor.prompt import ASSISTANT, SYSTEM, TOOL, USER, Message

LOCOMO = "locomo10_history"
CHATS = ("sharegpt_multiturn_en", "sharegpt_multiturn_ko", "mtrag_un_multiturn")
_TURN_ID = re.compile(r"D:?(\d+):(\d+)")
_WITHOUT_ANSWER = 5
_ROLES = frozenset({SYSTEM, USER, ASSISTANT, TOOL})
_LEAST_MESSAGES = 4


@dataclass(frozen=True, slots=True)
class Question:
    """A question about a conversation."""

    text: str
    evidence: frozenset[int]
    """Positions of the messages that hold the answer; never empty."""
    category: int


@dataclass(frozen=True, slots=True)
class Conversation:
    """A long chat with questions about it."""

    id: str
    messages: tuple[Message, ...]
    questions: tuple[Question, ...]


@dataclass(frozen=True, slots=True)
class Chat:
    """A chat that ends with a user's message, and the answer that came."""

    id: str
    group: str
    messages: tuple[Message, ...]
    answer: str


def read_locomo(data: Path) -> list[Conversation]:
    """The conversations. Raises OSError, and KeyError or ValueError when the file has another form."""
    return [_conversation(row) for row in _rows(data, LOCOMO)]


def read_chats(data: Path, name: str) -> list[Chat]:
    """Chats with at least four messages before the last question. Raises as ``read_locomo`` does."""
    return [chat for row in _rows(data, name) if (chat := _chat(row)) is not None]


def is_fitted_on(group: str) -> bool:
    """True for the six in ten groups on which weights are chosen."""
    return int(hashlib.sha1(group.encode(), usedforsecurity=False).hexdigest()[:8], 16) % 10 < 6


def answer_terms(chat: Chat) -> list[frozenset[str]]:
    """For each message before the question, which of the answer's words it has that the question has not."""
    terms = Terms()
    wanted = set(terms.of(chat.answer)) - set(terms.of(chat.messages[-1].texts[0]))
    return [frozenset(wanted & set(terms.of("\n".join(message.texts)))) for message in chat.messages[:-1]]


def ask(conversation: Conversation, question: Question) -> tuple[Message, ...]:
    """The conversation with the question as its last message."""
    return (*conversation.messages, Message(len(conversation.messages), USER, (question.text,)))


def _rows(data: Path, name: str) -> Iterator[dict[str, Any]]:
    with gzip.open(data / "compressor" / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _conversation(row: dict[str, Any]) -> Conversation:
    messages = list[Message]()
    places = dict[str, int]()
    first = row["speakers"][0]
    for session in row["sessions"]:
        for number, turn in enumerate(session["turns"]):
            text = turn["text"] + (f" [image: {turn['image_caption']}]" if turn.get("image_caption") else "")
            if number == 0:
                text = f"({session['date']})\n{text}"
            places[turn["id"]] = len(messages)
            role = USER if turn["speaker"] == first else ASSISTANT
            messages.append(Message(len(messages), role, (text,), name=turn["speaker"]))
    questions = []
    for asked in row["qa"]:
        ids = {f"D{int(session)}:{int(turn)}" for session, turn in _TURN_ID.findall(" ".join(asked["evidence"]))}
        evidence = frozenset(places[at] for at in ids if at in places)
        if evidence and asked["category"] != _WITHOUT_ANSWER:
            questions.append(Question(asked["question"], evidence, asked["category"]))
    return Conversation(row["id"], tuple(messages), tuple(questions))


def _chat(row: dict[str, Any]) -> Chat | None:
    messages = [
        Message(at, message["role"], (message["content"],))
        for at, message in enumerate(row["messages"])
        if message["role"] in _ROLES
    ]
    reference = row.get("reference")
    if reference:
        answer = "\n".join(reference)
    else:
        # The chat's own last answer to a user.
        at = next((at for at in range(len(messages) - 1, 0, -1) if _answers(messages, at)), 0)
        answer = messages[at].texts[0] if at else ""
        messages = messages[:at]
    if len(messages) <= _LEAST_MESSAGES or messages[-1].role != USER:
        return None
    numbered = tuple(replace(message, index=at) for at, message in enumerate(messages))
    return Chat(row["id"], str(row.get("root") or row.get("conversation_id") or row["id"]), numbered, answer)


def _answers(messages: list[Message], at: int) -> bool:
    return messages[at].role == ASSISTANT and messages[at - 1].role == USER
