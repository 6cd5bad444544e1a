"""What a stranger may send takes time and memory in proportion to its length. Bounds are loose: machines are busy."""

from __future__ import annotations

import time

import pytest

from services.compressor.dedupe import DedupeSettings, dedupe
from services.compressor.exchanges import closed, exchanges
from services.compressor.prompt import ASSISTANT, SYSTEM, TOOL, USER, Call, Message
from services.compressor.sentences import split

LONG = ["\n" * 100_000 + "x", "<a " * 40_000, "!" * 100_000 + "x", "." * 100_000 + " x", "?! " * 40_000]


@pytest.mark.parametrize("text", LONG, ids=["blank lines", "tags", "exclamations", "dots", "ends"])
def test_odd_texts_are_read_in_linear_time(text: str) -> None:
    started = time.process_time()
    dedupe([Message(0, SYSTEM, ("Be brief.",)), Message(1, USER, (text,))], [text, text], DedupeSettings())
    split(text)
    assert time.process_time() - started < 5


def test_one_call_with_thousands_of_results_is_one_exchange() -> None:
    results = [Message(at, TOOL, ("ok",), answers="c") for at in range(1, 10_001)]
    groups = exchanges([Message(0, ASSISTANT, (), calls=(Call("c", "find", "{}"),)), *results])
    assert len({id(group) for group in groups}) == 1
    assert closed({5}, groups) == set(range(10_001))
