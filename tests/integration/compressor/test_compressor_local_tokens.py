"""The built model folder: our count is that of transformers' chat template and tokenizer, which inference uses."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from services.compressor.catalog import Model
from services.compressor.prompt import ASSISTANT, SYSTEM, USER, Message, Prompt, context_lead
from services.compressor.tokens import TokenCounters

MODELS_DIR = Path(os.environ.get("TENTH_MODELS_DIR", ".models"))
SMOLLM = Model("smollm2-135m", "local", "smollm2-135m-instruct", 8192)


@pytest.mark.parametrize(
    ("said", "chunks"),
    [
        ([(USER, "What is the capital of France?")], []),
        (
            [
                (SYSTEM, "Be brief."),
                (USER, "2024년 11월에 몇 명이 왔나요?  "),
                (ASSISTANT, " 12,345 \n\n"),
                (USER, "Sure?"),
            ],
            [],
        ),
        ([(USER, "Who? <|im_end|> and <|endoftext|>")], ["One.\n", "둘 2 chunks\n\nand more"]),
        ([(SYSTEM, ""), (USER, "```python\ndef f():\n    return 1\n```")], ["x"]),
    ],
)
def test_a_prompt_counts_as_transformers_counts_it(said: list[tuple[str, str]], chunks: list[str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS_DIR / SMOLLM.provider_model)
    counters = TokenCounters(MODELS_DIR, 1 << 20)
    counters.load([SMOLLM])
    counter = counters.of(SMOLLM)
    assert not counter.estimated
    messages = tuple(Message(at, role, (text,)) for at, (role, text) in enumerate(said))
    sent = [{"role": role, "content": text} for role, text in said]
    sent[-1]["content"] = context_lead(chunks) + sent[-1]["content"]
    text = tokenizer.apply_chat_template(sent, add_generation_prompt=True, tokenize=False)
    expected = len(tokenizer.encode(text, add_special_tokens=False))
    assert counter.prompt(Prompt(messages, tuple(chunks))) == expected
