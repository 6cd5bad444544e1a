"""End to end with the local model, where it can answer at all: ``local_model/<off|ours_*>/answered``.

SmolLM2-135M by vLLM in this process, greedy, gets an NQ question with three chunks: the gold passage and the two of its
distractors that BM25 puts first, in a seeded order. (Of ten chunks a model this small answers next to nothing.) The
same is asked with what each mode leaves of the three. An answer counts when a gold answer stands in it, normalised.

``answered_of_off`` is over the questions that the model answers with the chunks as they came: what was not lost.
``gained`` is the share of the others that it answers only when they are compressed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from bench.cache_vectors import KeptEncoder
from bench.compressor_product import MODES, Product
from bench.compressor_vectors import embed
from bench.result import Result
from services.compressor.datasets import Case, holds, read
from services.compressor.modes import Mode
from services.compressor.prompt import context_lead
from services.compressor.strategies import rank_by_bm25
from services.router.scores import mean, resamples

PART = "local_model"
MODEL = "smollm2-135m-instruct"
SET = "nq_gold_passages"
_ROWS, _QUICK_ROWS = 150, 10
_CHUNKS = 3
_MAX_CHUNK_CHARS = 900
_MAX_OUTPUT_TOKENS = 24
_WINDOW_TOKENS = 2048
_RESAMPLES = 1000


def cases_for_engine(
    result: Result, part: str, data: Path, models_dir: Path, seed: int, *, held_out: bool
) -> list[Case] | None:
    """The rows that a part with the local model works on; None, and why in the result, where it cannot."""
    if not (data / "compressor" / f"{SET}.jsonl.gz").is_file():
        result.skipped.append(f"{part}: no {SET}")
        return None
    if find_spec("vllm") is None or not (models_dir / MODEL).is_dir():
        result.skipped.append(f"{part}: no vLLM, or no {MODEL} in the models folder")
        return None
    try:
        return [case for case in read(data, SET, seed) if not (held_out and case.training)]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        result.skipped.append(f"{part}: {SET} cannot be read: {error or type(error).__name__}")
        return None


def measure(
    result: Result,
    data: Path,
    models_dir: Path,
    product: Product,
    encoder: KeptEncoder | None,
    seed: int,
    *,
    held_out: bool,
) -> None:
    """All of it, or the reason why not; without an encoder words alone choose."""
    found = cases_for_engine(result, PART, data, models_dir, seed, held_out=held_out)
    if found is None:
        return
    cases = [case for case in map(_small, found) if all(len(chunk) <= _MAX_CHUNK_CHARS for chunk in case.chunks)]
    cases = cases[: _QUICK_ROWS if result.quick else _ROWS]
    if not cases:
        result.skipped.append(f"{PART}: no rows with short passages")
        return
    known = None if encoder is None else embed(encoder, f"compressor_{SET}", cases, sentences=False)
    asked: list[tuple[Case, Sequence[str]]] = [(case, case.chunks) for case in cases]
    for mode in MODES:
        for case in cases:
            kept = product.chunks(mode, case.question, case.earlier, case.chunks, known)
            asked.append((case, [kept[at] for at in sorted(kept)]))
    try:
        answers = _answers(models_dir / MODEL, [_prompt(case, chunks) for case, chunks in asked])
    except (RuntimeError, ValueError, OSError) as error:
        result.skipped.append(f"{PART}: the engine does not run here: {error}")
        return
    right = [holds(answer, case.answers) for answer, (case, _) in zip(answers, asked, strict=True)]
    add(result, right, len(cases), seed)
    result.assumptions[PART] = f"{MODEL}, {_CHUNKS} chunks, {_MAX_OUTPUT_TOKENS} tokens, greedy"


def add(result: Result, right: Sequence[bool], count: int, seed: int) -> None:
    """``right`` has ``count`` flags with the chunks as they came, then as many for each mode."""
    flags = np.array(right, float).reshape(-1, count)
    every = resamples(count, _RESAMPLES, seed)
    for system, own in zip(("off", *(f"ours_{mode.value}" for mode in MODES)), flags, strict=True):
        found = mean(own, every)
        result.add(f"{PART}/{system}/answered", found.value, "ratio", count, found.ci95)
        for name, of in (("answered_of_off", flags[0] > 0), ("gained", flags[0] == 0)):
            if system != Mode.OFF.value and of.any():
                part = mean(own[of], resamples(int(of.sum()), _RESAMPLES, seed))
                result.add(f"{PART}/{system}/{name}", part.value, "ratio", int(of.sum()), part.ci95)


def _small(case: Case) -> Case:
    """The gold chunk and the two distractors that BM25 puts first, in the order that they have."""
    scores = rank_by_bm25(case.question, case.chunks).scores
    others = sorted((at for at in range(len(case.chunks)) if at not in case.gold), key=lambda at: (-scores[at], at))
    places = sorted([*case.gold, *others[: _CHUNKS - len(case.gold)]])
    gold = tuple(places.index(at) for at in case.gold)
    return replace(case, chunks=tuple(case.chunks[at] for at in places), gold=gold)


def _prompt(case: Case, chunks: Sequence[str]) -> str:
    """As inference sends it."""
    return f"{context_lead(tuple(chunks))}Answer in a few words: {case.question}?"


def _answers(folder: Path, prompts: Sequence[str]) -> list[str]:
    """Greedy answers from the engine in this process; all at once, the engine batches."""
    for name, value in (
        ("VLLM_ENABLE_V1_MULTIPROCESSING", "0"),
        ("VLLM_CPU_OMP_THREADS_BIND", "nobind"),
        ("VLLM_CPU_NUM_OF_RESERVED_CPU", "0"),
        ("VLLM_NO_USAGE_STATS", "1"),
        ("VLLM_LOGGING_LEVEL", "ERROR"),
        ("HF_HUB_OFFLINE", "1"),
        ("OMP_WAIT_POLICY", "PASSIVE"),
    ):
        os.environ.setdefault(name, value)
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=str(folder),
        max_model_len=_WINDOW_TOKENS,
        max_num_seqs=16,
        enforce_eager=True,
        seed=0,
        kv_cache_memory_bytes=512 * 1024 * 1024,
    )
    sampling = SamplingParams(temperature=0.0, max_tokens=_MAX_OUTPUT_TOKENS)
    chats: list[Any] = [[{"role": "user", "content": prompt}] for prompt in prompts]
    return [output.outputs[0].text for output in engine.chat(chats, sampling, use_tqdm=False)]
