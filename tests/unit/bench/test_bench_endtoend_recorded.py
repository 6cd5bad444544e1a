"""The sandbox's recorded answers: found by the question, as long as recorded, and in the words recorded."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from mesh.errors import TenthError
from sandbox.recorded import Record, Recorded, RecordedWriter, Speed, key, read, write
from sandbox.usage import encode

ENTRY = Recorded("Where  is it?", "abc123", {"big": 40, "*": 20}, {"poet": "A rose is a rose."})
KEPT = Recorded("Who?", "def456", {"*": 30}, keep_prompt=True)


def _record() -> Record:
    return Record(0.0, {"big": Speed(0.5, 50.0)}, {key(each.question): each for each in (ENTRY, KEPT)})


def _asked(text: str, model: str = "big") -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": text}]}


async def _written(body: dict[str, Any], limit: int = 100, prompts: Path | None = None) -> tuple[str, str]:
    pieces = [each async for each in RecordedWriter(_record(), prompts).write(body, limit)]
    return "".join(text for text, _ in pieces), pieces[-1][1]


@pytest.mark.parametrize("text", ["Where is it?", "Where  is it?", "Context:\n[1] a\n\nb\n\nWhere is it?"])
def test_a_question_is_found_also_after_passages(text: str) -> None:
    answer, reason = asyncio.run(_written(_asked(text)))
    assert answer.startswith("[abc123] the")
    assert len(encode(answer)) == 40
    assert reason == "stop"


def test_a_question_is_found_by_its_beginning_where_a_paragraph_went() -> None:
    beginning = "Please write the next section in the same form as the one before, but about warranties and terms."
    long = Recorded(f"{beginning}\n\nThe notes.\n\nIn 150 words.", "fed321", {"*": 20})
    record = Record(1.0, {}, {key(each.question): each for each in (long, KEPT)})
    cut = f"{beginning}\n\n[repeated above]\n\nIn 150 words."
    assert record.find([{"role": "user", "content": cut}]) is long
    assert record.find([{"role": "user", "content": cut.replace("[repeated above]", "Others.")}]) is None


def test_each_model_answers_as_recorded() -> None:
    assert len(encode(asyncio.run(_written(_asked("Where is it?", "other")))[0])) == 20
    assert asyncio.run(_written(_asked("Where is it?", "poet")))[0] == "A rose is a rose."


def test_the_limit_cuts() -> None:
    answer, reason = asyncio.run(_written(_asked("Where is it?"), limit=10))
    assert len(encode(answer)) == 10
    assert reason == "length"


def test_what_is_not_recorded_is_an_error() -> None:
    with pytest.raises(TenthError, match="no answer"):
        asyncio.run(_written(_asked("Something else")))


def test_kept_prompts_are_named_in_the_answer(tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    answer, _ = asyncio.run(_written(_asked("Context:\n[1] x\n\nWho?"), prompts=file))
    line = json.loads(file.read_text("utf-8"))
    assert answer.startswith(f"[def456 {line['digest']}]")
    assert line["text"] == "s\nContext:\n[1] x\n\nWho?"


def test_time_is_the_models_own_on_the_clock() -> None:
    record = Record(0.1, {"big": Speed(0.5, 50.0)}, {})
    assert record.seconds("big", 100) == pytest.approx(0.25)
    assert record.seconds("unknown", 100) == 0.0


def test_a_written_file_is_read_back(tmp_path: Path) -> None:
    write(tmp_path / "r.jsonl", _record())
    assert read(tmp_path / "r.jsonl") == _record()
