"""The whole of ``compress``, as the service calls it: time at 4,000 tokens, time and memory at 200,000."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.result import Result, median, percentile
from services.compressor.catalog import Model
from services.compressor.choosing import FittedChunks, fitted_chunks
from services.compressor.datasets import read
from services.compressor.documents import Documents
from services.compressor.history_weights import history_settings
from services.compressor.modes import Mode, Plan, plans
from services.compressor.policy import compress
from services.compressor.prompt import ASSISTANT, USER, Message, Prompt
from services.compressor.retrieval import Fitted
from services.compressor.tokens import TokenCounters
from services.compressor.vectors import rough_tokens

SET = "nq_gold_passages"
PROMPT_TOKENS, LARGE_TOKENS = 4_000, 200_000
QUESTION = "who wrote the first book of the series"
_PROMPTS, _QUICK_PROMPTS = 60, 10
_MEMORY_BYTES = 64 << 20
_MODEL = Model("bench", "cl100k_base", "bench", 1_000_000)
_HISTORY_TOKENS = (8_000, 3_000)


def measure(result: Result, data: Path, seed: int, fitted: Fitted) -> None:
    """CPU time. At 4,000 tokens the chunks were seen before, and words rank them; at 200,000 everything is new."""
    if not (data / "compressor" / f"{SET}.jsonl.gz").is_file():
        result.skipped.append(f"whole: no {SET}")
        return
    texts = list(dict.fromkeys(chunk for case in read(data, SET, seed) for chunk in case.chunks))
    modes = plans(*_HISTORY_TOKENS, history_settings())
    counters = _counters()
    memory = Documents(counters.plain, _MEMORY_BYTES)
    times = []
    count = _QUICK_PROMPTS if result.quick else _PROMPTS
    for prompt in _small(texts, counters.plain, count):
        for round_ in range(2):
            spent = _timed(prompt, counters, modes[Mode.SAFE], _choice(prompt, memory, fitted))
            if round_:
                times.append(spent)
    result.add("whole/safe/p50_ms_4k", median(times), "ms", len(times))
    result.add("whole/safe/p95_ms_4k", percentile(times, 0.95), "ms", len(times))
    large = _taken(texts, counters.plain, LARGE_TOKENS)
    for mode in (Mode.SAFE, Mode.BALANCED, Mode.AGGRESSIVE):
        for shape, prompt in (("chunks", _with_chunks(large)), ("history", _as_history(large))):
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            choice = _choice(prompt, Documents(rough_tokens, _MEMORY_BYTES), fitted) if prompt.chunks else None
            spent = _timed(prompt, _counters(), modes[mode], choice)
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            result.add(f"whole/{mode.value}/ms_200k_{shape}", spent, "ms", 1)
            result.add(f"whole/{mode.value}/mb_200k_{shape}", grown, "MB", 1)


def _counters() -> TokenCounters:
    """Fresh: nothing counted yet."""
    counters = TokenCounters(Path("nowhere"), _MEMORY_BYTES)
    counters.load([_MODEL])
    return counters


def _timed(prompt: Prompt, counters: TokenCounters, plan: Plan, choice: FittedChunks | None) -> float:
    counter = counters.of(_MODEL)
    started = time.process_time()
    compress(prompt, plan, counter, choice, 0, None)
    return 1000 * (time.process_time() - started)


def _choice(prompt: Prompt, memory: Documents, fitted: Fitted) -> FittedChunks:
    return fitted_chunks(prompt.messages, prompt.chunks, memory, fitted)


def _small(texts: Sequence[str], count_tokens: Callable[[str], int], count: int) -> list[Prompt]:
    found: list[Prompt] = []
    chunks: list[str] = []
    tokens = 0
    for text in texts:
        chunks.append(text)
        tokens += count_tokens(text)
        if tokens >= PROMPT_TOKENS:
            found.append(_with_chunks(chunks))
            chunks, tokens = [], 0
            if len(found) == count:
                break
    return found


def _taken(texts: Sequence[str], count_tokens: Callable[[str], int], most: int) -> list[str]:
    """Texts of so many tokens; where there are too few, they come again with a number before them."""
    taken: list[str] = []
    tokens, round_ = 0, 0
    while tokens < most:
        for text in texts:
            taken.append(f"{round_} {text}" if round_ else text)
            tokens += count_tokens(text)
            if tokens >= most:
                break
        round_ += 1
    return taken


def _with_chunks(chunks: Sequence[str]) -> Prompt:
    return Prompt((Message(0, USER, (QUESTION,)),), tuple(chunks))


def _as_history(texts: Sequence[str]) -> Prompt:
    talk = (Message(at, ASSISTANT if at % 2 else USER, (text,)) for at, text in enumerate(texts))
    return Prompt((*talk, Message(len(texts), USER, (QUESTION,))))
