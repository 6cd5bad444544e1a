"""The history bench on a conversation of its own: what counts as kept, and what is skipped."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from bench.compressor_history import HistoryBench, interval, last_n, measure
from bench.result import Result
from services.compressor.history import HistorySettings
from services.compressor.history_sets import answer_terms, read_chats, read_locomo
from services.compressor.history_weights import load_weights
from services.compressor.prompt import ASSISTANT, USER, Message

TURNS = [
    {
        "id": f"D1:{at}",
        "speaker": ("Ann", "Bob")[at % 2],
        "text": f"We spoke about subject {at}.",
        "image_caption": None,
    }
    for at in range(1, 41)
]
LOCOMO = {
    "id": "made/up",
    "speakers": ["Bob", "Ann"],
    "sessions": [{"session": 1, "date": "1:56 pm on 8 May, 2023", "turns": TURNS}],
    "qa": [
        {"question": "Who spoke about subject 3?", "answer": "Bob", "evidence": ["D1:3"], "category": 4},
        {"question": "And subject 4?", "answer": "Ann", "evidence": ["D1:03; D:1:4"], "category": 1},
        {"question": "Nothing?", "answer": "", "evidence": ["D1:1"], "category": 5},
        {"question": "No evidence?", "answer": "", "evidence": [], "category": 1},
    ],
}
CHAT = {
    "id": "chat",
    "root": "chat",
    "messages": [
        {"role": role, "content": text}
        for role, text in [
            *((USER, "The blue harbour has nine boats"), (ASSISTANT, "Good to know")),
            *((USER, "Tell me a joke " * 9), (ASSISTANT, "A long joke " * 9)),
            *((USER, "How many boats are there?"), (ASSISTANT, "Nine boats in the blue harbour")),
        ]
    ],
}


def cost(message: Message) -> int:
    return 4 + sum(map(len, message.texts)) // 4


def write(data: Path, name: str, *rows: object) -> None:
    (data / "compressor").mkdir(exist_ok=True)
    with gzip.open(data / "compressor" / f"{name}.jsonl.gz", "wt", encoding="utf-8") as lines:
        lines.writelines(json.dumps(row) + "\n" for row in rows)


def test_questions_without_an_answer_or_evidence_are_left_out(tmp_path: Path) -> None:
    write(tmp_path, "locomo10_history", LOCOMO)
    (one,) = read_locomo(tmp_path)
    assert [set(question.evidence) for question in one.questions] == [{2}, {2, 3}]
    assert one.messages[0].texts[0].startswith("(1:56 pm on 8 May, 2023)\n")
    assert [message.role for message in one.messages[:2]] == [USER, ASSISTANT]


def test_the_words_of_the_answer_that_are_in_the_history_and_not_in_the_question(tmp_path: Path) -> None:
    write(tmp_path, "sharegpt_multiturn_en", CHAT, {**CHAT, "id": "short", "messages": CHAT["messages"][:2]})
    (chat,) = read_chats(tmp_path, "sharegpt_multiturn_en")
    assert chat.answer == "Nine boats in the blue harbour"
    assert answer_terms(chat)[0] == {"nine", "blue", "harbour"}


def test_figures_and_what_is_skipped(tmp_path: Path) -> None:
    write(tmp_path, "locomo10_history", LOCOMO)
    result = Result("test", False)
    weights, exponent = load_weights()
    measure(HistoryBench(tmp_path, result, cost, HistorySettings(weights, exponent), frozenset(), 7))
    assert result.metrics["locomo10_history/last_n_at_50/evidence_kept"]["value"] == 0.0
    assert result.metrics["locomo10_history/ours_words_at_50/evidence_kept"]["value"] == 1.0
    assert result.metrics["locomo10_history_unseen/ours_words_at_50/evidence_kept"]["n"] == 2
    assert "locomo10_history/ours_at_50/evidence_kept" not in result.metrics  # There is no encoder.
    assert "history, mtrag_un_multiturn: no file" in result.skipped


def test_the_newest_that_fit() -> None:
    messages = [Message(at, USER, ("x" * 4,)) for at in range(5)]
    assert last_n(messages, 15, cost) == [2, 3, 4]
    assert last_n(messages, 0, cost) == [4]


def test_intervals_hold_the_mean() -> None:
    found = interval([0.0, 1.0] * 50, 7)
    assert found is not None
    assert found[0] < 0.5 < found[1]
    assert interval([1.0], 7) is None
    assert interval(np.ones(9).tolist(), 7) == pytest.approx((1.0, 1.0))
