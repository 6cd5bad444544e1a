"""How long the whole path takes on a prompt of about 4,000 tokens, and how long and how much memory on one of 200,000.

- ``speed/ours/p50_ms_4k``: chunks seen before, their vectors given; ``_1k_tokens`` is the same for 1,000 tokens;
- ``speed/ours/p50_ms_4k_cold``: nothing seen before, question and chunks embedded one after the other on one thread;
- ``speed/ours_words/p50_ms_4k_cold``: nothing seen before and no vectors, as when the cache is down;
- ``speed/ours_chunks_200k``, ``ours_history_200k``: one prompt of chunks, one conversation, in a process of its own.

Wall time (``cpu_ms``: CPU time) of ``compress`` in mode ``safe`` with the scales of a provider with a prompt cache. The
RPC is not in it.
"""

from __future__ import annotations

import multiprocessing
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from bench.compressor_product import Product, product
from bench.result import Result, median, percentile
from services.compressor import weights
from services.compressor.datasets import Case, read
from services.compressor.modes import Mode, Plan
from services.compressor.money import CacheTerms, InputPrice
from services.compressor.policy import compress
from services.compressor.prefixes import PrefixTracker
from services.compressor.prompt import ASSISTANT, USER, Message, Prompt
from services.compressor.ranking import Floats
from services.compressor.tokens import ModelCounter
from services.compressor.weighing import Facts, Scales
from services.compressor.work import Counter

SET = "nq_gold_passages"
PROMPT_TOKENS = 4_000
LARGE_TOKENS = 200_000
LARGE_KINDS = ("chunks", "history")
_PROMPTS, _COLD_PROMPTS = 60, 8
_QUICK_PROMPTS, _QUICK_COLD_PROMPTS = 10, 2
_DIMENSIONS = 384
_ASKED = "who wrote the first book of the series"
_FACTS = Facts(InputPrice(1_250_000_000, 125_000_000, 1_250_000_000), CacheTerms(1024, 1024, 128, 300.0, False))
_HIGHEST = re.compile(r"VmHWM:\s+(\d+) kB")

Encode = Callable[[Sequence[str]], npt.NDArray[np.float32]]


def measure(result: Result, data: Path, seed: int, tools: Product, models_dir: Path, encode: Encode | None) -> None:
    """All of it; ``encode`` embeds texts, for the cold figure."""
    if not (data / "compressor" / f"{SET}.jsonl.gz").is_file():
        result.skipped.append(f"speed: no {SET}")
        return
    try:
        cases = read(data, SET, seed)
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        result.skipped.append(f"speed: {SET} cannot be read: {error or type(error).__name__}")
        return
    prompts = _prompts(cases, tools.counter.text)[: _QUICK_PROMPTS if result.quick else _PROMPTS]
    if not prompts:
        result.skipped.append(f"speed: {SET} is too small for a prompt of {PROMPT_TOKENS} tokens")
        return
    random = np.random.default_rng(seed)
    timed, warm, cpu, by_size, words = Timed(tools.fresh(), tools.modes[Mode.SAFE]), [], [], [], []
    for prompt in prompts:
        vectors = _unit(random, 1 + len(prompt.chunks))
        words.append(timed(prompt, None)[0])
        milliseconds, cpu_milliseconds = timed(prompt, vectors)
        warm.append(milliseconds)
        cpu.append(cpu_milliseconds)
        by_size.append(1000 * milliseconds / tools.counter.prompt(prompt))
    for kind, values in (("ms_4k", warm), ("cpu_ms_4k", cpu), ("ms_1k_tokens", by_size)):
        result.add(f"speed/ours/p50_{kind}", median(values), "ms", len(values))
        result.add(f"speed/ours/p95_{kind}", percentile(values, 0.95), "ms", len(values))
    result.add("speed/ours_words/p50_ms_4k_cold", median(words), "ms", len(words))
    if encode is None:
        result.skipped.append("speed/ours/p50_ms_4k_cold: no embedder")
    else:
        cold = []
        for prompt in prompts[: _QUICK_COLD_PROMPTS if result.quick else _COLD_PROMPTS]:
            fresh = Timed(tools.fresh(), tools.modes[Mode.SAFE])
            started = time.perf_counter()
            rows = np.asarray(encode([prompt.messages[-1].texts[0], *prompt.chunks]), float)
            cold.append(1000 * (time.perf_counter() - started) + fresh(prompt, rows)[0])
        result.add("speed/ours/p50_ms_4k_cold", median(cold), "ms", len(cold))
    if not result.quick:
        for kind in LARGE_KINDS:
            _large(result, data, seed, models_dir, kind)


class Timed:
    """Times ``compress`` with one memory of chunks and of the provider's prompt cache."""

    def __init__(self, tools: Product, plan: Plan) -> None:
        """The memory is the product's."""
        self._tools = tools
        self._plan = plan
        self._tracker = PrefixTracker(time.monotonic, 200_000)

    def __call__(self, prompt: Prompt, vectors: Floats | None) -> tuple[float, float]:
        """Milliseconds of wall and of CPU time; ``vectors`` are the question's and the chunks'."""
        question = None if vectors is None else vectors[0].tolist()
        rows = [] if vectors is None else vectors[1:].tolist()
        tools = self._tools
        started, before = time.perf_counter(), time.process_time()
        chooser, counter = tools.chooser(prompt, question, rows), _as_served(tools.counter)
        scales = Scales(_FACTS, self._tracker, "bench", prompt, counter)
        compress(prompt, self._plan, counter, chooser, 0, None, scales)
        return 1000 * (time.perf_counter() - started), 1000 * (time.process_time() - before)


def _large(result: Result, data: Path, seed: int, models_dir: Path, kind: str) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        milliseconds, megabytes, tokens = pool.apply(large, (data, seed, models_dir, kind))
    result.add(f"speed/ours_{kind}_200k/ms_cold", milliseconds, "ms", 1)
    result.add(f"speed/ours_{kind}_200k/mb_cold", megabytes, "MB", 1)
    result.assumptions[f"speed_{kind}_200k_tokens"] = tokens


def large(data: Path, seed: int, models_dir: Path, kind: str) -> tuple[float, float, int]:
    """(milliseconds, MB that the process grew by, tokens) of one prompt, all new, with a window of half its size."""
    tools = product(models_dir, weights.load())
    prompt, tokens = _large_prompt(read(data, SET, seed), kind)
    # What is loaded at first use is the model's, not the prompt's: its vocabulary and patterns.
    Timed(tools.fresh(), tools.modes[Mode.SAFE])(Prompt((Message(0, USER, (_ASKED,)),), prompt.chunks[:1]), None)
    before = _highest_megabytes()
    started = time.perf_counter()
    chooser, counter = tools.chooser(prompt), _as_served(tools.counter)
    scales = Scales(_FACTS, PrefixTracker(time.monotonic, 200_000), "bench", prompt, counter)
    compress(prompt, tools.modes[Mode.SAFE], counter, chooser, LARGE_TOKENS // 2, None, scales)
    milliseconds = 1000 * (time.perf_counter() - started)
    return milliseconds, _highest_megabytes() - before, tokens


def _large_prompt(cases: Sequence[Case], kind: str) -> tuple[Prompt, int]:
    """Passages up to the size (at four characters a token), as chunks or as the turns of a conversation."""
    taken: list[str] = []
    size, number = 0, 0
    while size < 4 * LARGE_TOKENS:
        for text in dict.fromkeys(chunk for case in cases for chunk in case.chunks):
            # Where the set is smaller than the prompt, its passages come again with a number before them.
            taken.append(f"{number} {text}" if number else text)
            size += len(taken[-1])
            if size >= 4 * LARGE_TOKENS:
                break
        number += 1
    if kind == "chunks":
        return Prompt((Message(0, USER, (_ASKED,)),), tuple(taken)), size // 4
    talk = [Message(at, USER if at % 2 == 0 else ASSISTANT, (text,)) for at, text in enumerate(taken)]
    if talk[-1].role == USER:
        talk.pop()
    return Prompt((*talk, Message(len(talk), USER, (_ASKED,)))), size // 4


def _prompts(cases: Sequence[Case], count_tokens: Callable[[str], int]) -> list[Prompt]:
    """The chunks of as many cases as make a prompt of the wanted size, with the question of the first."""
    found, chunks, question, tokens = [], dict[str, None](), "", 0
    for case in cases:
        question = question or case.question
        for chunk in case.chunks:
            if chunk not in chunks and tokens < PROMPT_TOKENS:
                chunks[chunk] = None
                tokens += count_tokens(chunk)
        if tokens >= PROMPT_TOKENS:
            found.append(Prompt((Message(0, USER, (question,)),), tuple(chunks)))
            chunks, question, tokens = {}, "", 0
    return found


def _unit(random: np.random.Generator, count: int) -> Floats:
    rows = random.normal(size=(count, _DIMENSIONS))
    found: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found


def _highest_megabytes() -> float:
    """The most that this process has held. ``ru_maxrss`` would start with what its parent held."""
    try:
        found = _HIGHEST.search(Path("/proc/self/status").read_text("utf-8"))
    except OSError:
        found = None
    return int(found[1]) / 1024 if found else float("nan")


def _as_served(counter: Counter) -> Counter:
    """What one request counts with in the service."""
    return counter.for_one_prompt() if isinstance(counter, ModelCounter) else counter
