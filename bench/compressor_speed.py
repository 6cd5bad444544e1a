"""How long retrieval takes on a prompt of about 4,000 tokens, and on one of 200,000."""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bench.result import Result, median, percentile
from services.compressor.datasets import Case, read
from services.compressor.documents import Documents
from services.compressor.ranking import Floats, Query, Vectors
from services.compressor.retrieval import Fitted, Harshness, by_mode, prepare

SET = "nq_gold_passages"
PROMPT_TOKENS = 4_000
LARGE_TOKENS = 200_000
_PROMPTS = 60
_DIMENSIONS = 384
_MEMORY_BYTES = 64 << 20


def measure(
    result: Result,
    data: Path,
    seed: int,
    fitted: Fitted,
    count_tokens: Callable[[str], int],
    encode: Callable[[Sequence[str]], Floats] | None,
) -> None:
    """Wall time; ``encode`` embeds texts, for the cold figure."""
    if not (data / "compressor" / f"{SET}.jsonl.gz").is_file():
        result.skipped.append(f"speed: no {SET}")
        return
    cases = read(data, SET, seed)
    prompts = list(_prompts(cases, count_tokens))[:_PROMPTS]
    random = np.random.default_rng(seed)
    memory = Documents(count_tokens, _MEMORY_BYTES)
    warm, words_cold = [], []
    for question, chunks in prompts:
        vectors = Vectors(_unit(random, 1)[0], _unit(random, len(chunks)))
        started = time.perf_counter()
        by_mode(prepare(memory.prepare(chunks), Query(question), None, fitted), Harshness.SAFE, fitted)
        words_cold.append(1000 * (time.perf_counter() - started))
        started = time.perf_counter()
        by_mode(prepare(memory.prepare(chunks), Query(question), vectors, fitted), Harshness.SAFE, fitted)
        warm.append(1000 * (time.perf_counter() - started))
    result.add("speed/ours/p50_ms_4k", median(warm), "ms", len(warm))
    result.add("speed/ours/p95_ms_4k", percentile(warm, 0.95), "ms", len(warm))
    result.add("speed/ours_words/p50_ms_4k_cold", median(words_cold), "ms", len(words_cold))
    if encode is None:
        result.skipped.append("speed/ours/p50_ms_4k_cold: no embedder")
    else:
        cold = []
        for question, chunks in prompts[:8]:
            fresh = Documents(count_tokens, _MEMORY_BYTES)
            started = time.perf_counter()
            rows = np.asarray(encode([question, *chunks]), float)
            by_mode(
                prepare(fresh.prepare(chunks), Query(question), Vectors(rows[0], rows[1:]), fitted),
                Harshness.SAFE,
                fitted,
            )
            cold.append(1000 * (time.perf_counter() - started))
        result.add("speed/ours/p50_ms_4k_cold", median(cold), "ms", len(cold))
    _large(result, [chunk for case in cases for chunk in case.chunks], fitted, count_tokens)


def _large(result: Result, chunks: Sequence[str], fitted: Fitted, count_tokens: Callable[[str], int]) -> None:
    """One prompt of many chunks, all new; tokens of units by their length, as a caller does who must be quick."""
    taken, tokens = [], 0
    for chunk in dict.fromkeys(chunks):
        if tokens >= LARGE_TOKENS:
            break
        taken.append(chunk)
        tokens += count_tokens(chunk)
    # Where the set is smaller than the prompt, its passages come again with a number before them.
    for number, chunk in enumerate(tuple(taken)):
        if tokens >= LARGE_TOKENS:
            break
        taken.append(f"{number} {chunk}")
        tokens += count_tokens(chunk)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    memory = Documents(lambda text: -(-len(text) // 4), _MEMORY_BYTES)
    by_mode(
        prepare(memory.prepare(taken), Query("who wrote the first book of the series"), None, fitted),
        Harshness.SAFE,
        fitted,
    )
    result.add("speed/ours_words/ms_200k_cold", 1000 * (time.perf_counter() - started), "ms", 1)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    result.add("speed/ours_words/mb_200k_cold", grown, "MB", 1)


def _prompts(cases: Sequence[Case], count_tokens: Callable[[str], int]) -> list[tuple[str, list[str]]]:
    """The chunks of as many cases as make a prompt of the wanted size, with the question of the first."""
    found, chunks, question, tokens = [], dict[str, None](), "", 0
    for case in cases:
        question = question or case.question
        for chunk in case.chunks:
            if chunk not in chunks and tokens < PROMPT_TOKENS:
                chunks[chunk] = None
                tokens += count_tokens(chunk)
        if tokens >= PROMPT_TOKENS:
            found.append((question, list(chunks)))
            chunks, question, tokens = {}, "", 0
    return found


def _unit(random: np.random.Generator, count: int) -> Floats:
    rows = random.normal(size=(count, _DIMENSIONS))
    found: Floats = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return found
