"""Calibration texts that the model writes itself: what they begin with, and that they are full, its own and the same
again."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from models.quantize_runner import own_texts, starts, temperature

PROMPTS = ["why", "왜"]


class Letters:
    """A tokenizer whose tokens are code points."""

    bos_token_id: int | None = 1
    eos_token_id = 2
    vocab_size = 50

    def __init__(self, chat_template: str | None = "chat") -> None:
        self.chat_template = chat_template

    def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        assert not add_special_tokens, "the template writes them"
        return {"input_ids": [ord(letter) for letter in text]}

    def apply_chat_template(
        self, messages: list[dict[str, str]], tokenize: bool, add_generation_prompt: bool = False
    ) -> str:
        said = "".join(f"[{item['role']}]{item['content']}." for item in messages)
        return said + ("[assistant]" if add_generation_prompt else "")


def read(ids: list[int]) -> str:
    return "".join(map(chr, ids))


def test_the_shapes_of_beginnings_take_turns() -> None:
    found = starts(PROMPTS, Letters(), 7, random.Random(3))
    assert len(found) == 7
    assert [ids[0] for ids in found[::3]] == [1, 1, 1]
    assert len({ids[1] for ids in found[::3]}) == 3
    assert all(ids[1] < 50 for ids in found[::3])
    assert [read(ids) for ids in found[1::3]] == ["[user]", "[user]"]
    assert [read(ids) for ids in found[2::3]] == ["[user]why.[assistant]", "[user]왜.[assistant]"]


def test_the_same_seed_begins_alike() -> None:
    one, two, other = (starts(PROMPTS, Letters(), 9, random.Random(seed)) for seed in (1, 1, 2))
    assert one == two
    assert one != other


def test_a_model_without_a_chat_template_gets_the_prompts_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Letters(chat_template=None)
    monkeypatch.setattr(tokenizer, "bos_token_id", None)
    found = starts(PROMPTS, tokenizer, 4, random.Random(0))
    assert [ids[0] for ids in found] == [2, 2, 2, 2]
    assert [read(ids[1:]) for ids in found[1::2]] == PROMPTS


def test_the_temperature_falls_to_one_and_stays() -> None:
    assert temperature(0) > temperature(5) > temperature(10) == temperature(500) == 1.0


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(**shape, vocab_size=12, bos_token_id=1, eos_token_id=2, pad_token_id=2)  # type: ignore[arg-type]
    untyped: Any = LlamaForCausalLM
    return untyped(config).eval()


def test_the_model_writes_full_texts_on_from_their_beginnings(model: Any, capsys: pytest.CaptureFixture[str]) -> None:
    begun = [[1, 3], [1, 4, 5, 6], [1, *[7] * 300]]
    torch.manual_seed(5)
    rows = own_texts(model, begun, 140)
    assert [row["input_ids"][:4] for row in rows] == [[1, 3, *rows[0]["input_ids"][2:4]], [1, 4, 5, 6], [1, 7, 7, 7]]
    assert [len(row["input_ids"]) for row in rows] == [140, 140, 140]
    assert [len(row["attention_mask"]) for row in rows] == [140, 140, 140]
    # Tokens drawn from an untrained model are near uniform: an end of text is among them, and did not end the text.
    assert 2 in rows[0]["input_ids"][:100]
    assert len(set(rows[0]["input_ids"])) > 5
    torch.manual_seed(5)
    assert own_texts(model, begun, 140) == rows
    torch.manual_seed(6)
    assert own_texts(model, begun, 140) != rows
    assert "calibration: the model writes texts 1 to 3 of 3: 128 tokens each" in capsys.readouterr().out


def test_texts_are_written_in_parts(model: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("models.quantize_runner._AT_ONCE", 2)
    rows = own_texts(model, [[1, 3, 3, 3], [1, 4], [1, 5, 5]], 6)
    assert [row["input_ids"][:2] for row in rows] == [[1, 3], [1, 4], [1, 5]], "in the order of the beginnings"
    assert rows[0]["input_ids"][:4] == [1, 3, 3, 3]
    assert {len(row["input_ids"]) for row in rows} == {6}
