"""Retrieved chunks: tokens saved and answers kept by the compressor's modes and by simple filters.

``ours_*`` is the compressor's whole path with chunk vectors, the mesh's default; ``ours_words_*`` without, as when the
cache is down. ``ours_cold_*`` (vectors of the five chunks that words put first) and ``ours_sentences_*`` (sentence
vectors too, which the service does not ask for) are the retrieval strategy alone, as is ``ours_at_60``: no mode of the
product aims at a share of all prompts together.
"""

from __future__ import annotations

import gzip
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.cache_vectors import KeptEncoder
from bench.compressor_plots import Line
from bench.compressor_product import MODES, Product
from bench.compressor_vectors import embed
from bench.result import Result
from services.compressor.datasets import Case, alone, answered, read
from services.compressor.documents import Document, Documents
from services.compressor.fit import Known, digest, vectors_of
from services.compressor.ranking import Floats, Level, Query, Vectors
from services.compressor.retrieval import (
    Fitted,
    Harshness,
    Prepared,
    by_mode,
    mask,
    prepare,
    selection,
    threshold_for_share,
    worth_embedding,
)
from services.compressor.strategies import rank_by_bm25
from services.router.scores import Interval, mean, ratio, resamples

SETS = ("nq_gold_passages", "beerqa_1000", "korquad1_dev_ko", "mtrag_un_multiturn", "mtrag_human_eval3")
KEYS = "kv_retrieval_75"
TOP = 3
"""Chunks that the simple filters keep."""
SHARES = (0.50, 0.60)
"""Shares of tokens that a system is forced to save over a whole set."""
_CURVE_POINTS = 14
COLD_CHUNKS = 5
QUICK_ROWS = 60
_RESAMPLES = 1000
_MEMORY_BYTES = 256 << 20

Kept = Mapping[int, str]
"""The text that is left of each chunk, by place."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows are measured."""

    quick: bool
    held_out: bool
    """Only groups that fitting never saw."""
    seed: int


@dataclass(frozen=True, slots=True)
class Tools:
    """What a run is given; without an encoder what needs it is skipped."""

    product: Product
    encoder: KeptEncoder | None
    article_encoder: KeptEncoder | None

    @property
    def fitted(self) -> Fitted:
        """The shipped weights."""
        return self.product.fitted

    def count_tokens(self, text: str) -> int:
        """By cl100k_base."""
        return self.product.counter.text(text)


class _Set:
    """One set with its outcomes."""

    def __init__(self, cases: Sequence[Case], tools: Tools, seed: int) -> None:
        self._cases = cases
        self._tools = tools
        self._tokens: dict[str, int] = {}
        self._draws = resamples(len(cases), _RESAMPLES, seed)
        self._eligible = np.array([self._total(case.chunks) for case in cases], float)

    def note(self, result: Result, name: str, system: str, kept: Sequence[Kept]) -> None:
        """Add the two measures of one system."""
        left, right = self._measured(kept)
        _add(
            result,
            f"{name}/{system}/tokens_saved",
            ratio(self._eligible - left, self._eligible, self._draws),
            len(kept),
        )
        _add(result, f"{name}/{system}/answer_kept", mean(right, self._draws), len(kept))

    def point(self, kept: Sequence[Kept]) -> tuple[float, float]:
        """(tokens saved, answers kept), for a picture."""
        left, right = self._measured(kept)
        return float(1 - left.sum() / self._eligible.sum()), float(right.mean())

    def _measured(self, kept: Sequence[Kept]) -> tuple[Floats, Floats]:
        left = np.array([self._total(list(each.values())) for each in kept], float)
        right = np.array([answered(case, each) for case, each in zip(self._cases, kept, strict=True)], float)
        return left, right

    def _total(self, texts: Sequence[str]) -> int:
        for text in texts:
            if text not in self._tokens:
                self._tokens[text] = self._tools.count_tokens(text)
        return sum(self._tokens[text] for text in texts)


def measure(
    result: Result, data: Path, choice: Choice, tools: Tools, only: Sequence[str] = (*SETS, KEYS)
) -> dict[str, dict[str, Line]]:
    """Every set of these that is there. Returns what is needed for pictures, by set and system."""
    lines = {}
    for name in SETS:
        if name not in only:
            continue
        file = data / "compressor" / f"{name}.jsonl.gz"
        if not file.is_file():
            result.skipped.append(f"{name}: no file")
            continue
        try:
            cases = read(data, name, choice.seed)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            result.skipped.append(f"{name}: cannot be read: {error or type(error).__name__}")
            continue
        cases = _chosen(cases, choice)
        if not cases:
            result.skipped.append(f"{name}: no row to measure")
            continue
        lines[name] = _measure_set(result, name, cases, tools, choice)
    if KEYS in only:
        _measure_keys(result, data, choice, tools)
    return lines


def _measure_set(result: Result, name: str, cases: Sequence[Case], tools: Tools, choice: Choice) -> dict[str, Line]:
    outcomes = _Set(cases, tools, choice.seed)
    outcomes.note(result, name, "off", [dict(enumerate(case.chunks)) for case in cases])
    lines = {}
    bm25 = [rank_by_bm25(case.question, case.chunks).scores for case in cases]
    lines["bm25"] = _top_line(result, name, f"bm25_top{TOP}", outcomes, cases, bm25)
    if tools.article_encoder is not None:
        known = embed(tools.article_encoder, f"article_{name}", cases, sentences=False)
        cosines = [_cosines(case, known) for case in cases]
        lines["article"] = _top_line(result, name, "article", outcomes, cases, cosines)
    else:
        result.skipped.append(f"{name}/article: no model")
    memory = Documents(tools.count_tokens, _MEMORY_BYTES)
    documents = [memory.prepare(case.chunks) for case in cases]
    words = _prepared(cases, documents, tools.fitted, None, Level.WORDS)
    lines["ours_words"] = _note_product(result, name, "ours_words", outcomes, cases, words, tools, None)
    if tools.encoder is None:
        result.skipped.append(f"{name}/ours: no embedder")
        return lines
    known = embed(tools.encoder, f"compressor_{name}", cases, sentences=True)
    chunks = _prepared(cases, documents, tools.fitted, known, Level.CHUNKS)
    lines["ours"] = _note_product(result, name, "ours", outcomes, cases, chunks, tools, known)
    _note_strategy(result, name, "ours_cold", outcomes, _cold(cases, documents, tools.fitted, known), tools.fitted)
    sentences = _prepared(cases, documents, tools.fitted, known, Level.SENTENCES)
    _note_strategy(result, name, "ours_sentences", outcomes, sentences, tools.fitted)
    singles = [alone(case) for case in cases]
    single = _Set(singles, tools, choice.seed)
    prepared = _prepared(singles, [memory.prepare(case.chunks) for case in singles], tools.fitted, known, Level.CHUNKS)
    _note_product(result, f"{name}_gold_only", "ours", single, singles, prepared, tools, known)
    return lines


def _top_line(
    result: Result, name: str, system: str, outcomes: _Set, cases: Sequence[Case], scores: Sequence[Sequence[float]]
) -> Line:
    """A filter that keeps the best few chunks: measured at ``TOP``, drawn for every number."""
    most = max(len(case.chunks) for case in cases)
    outcomes.note(result, name, system, [_top(case, own, TOP) for case, own in zip(cases, scores, strict=True)])
    points = [
        outcomes.point([_top(case, own, count) for case, own in zip(cases, scores, strict=True)])
        for count in range(1, most + 1)
    ]
    return Line(points, {f"top {TOP}": points[min(TOP, most) - 1]})


def _note_product(
    result: Result,
    name: str,
    lead: str,
    outcomes: _Set,
    cases: Sequence[Case],
    prepared: Sequence[Prepared],
    tools: Tools,
    known: Known | None,
) -> Line:
    """Each mode by the whole path, and what the strategy does when it is forced to a share."""
    operating = {}
    for mode in MODES:
        kept = [tools.product.chunks(mode, case.question, case.earlier, case.chunks, known) for case in cases]
        outcomes.note(result, name, f"{lead}_{mode.value}", kept)
        operating[mode.value] = outcomes.point(kept)
    _note_shares(result, name, lead, outcomes, prepared)
    points = [outcomes.point(_at(prepared, threshold)) for threshold in _thresholds(prepared)]
    return Line(points, operating)


def _note_strategy(
    result: Result, name: str, lead: str, outcomes: _Set, prepared: Sequence[Prepared], fitted: Fitted
) -> None:
    for mode in Harshness:
        found = [by_mode(each, mode, fitted) for each in prepared]
        outcomes.note(
            result, name, f"{lead}_{mode.value}", [{chunk.place: chunk.text for chunk in each.chunks} for each in found]
        )
    _note_shares(result, name, lead, outcomes, prepared)


def _note_shares(result: Result, name: str, lead: str, outcomes: _Set, prepared: Sequence[Prepared]) -> None:
    for share in SHARES:
        kept = _at(prepared, threshold_for_share(prepared, share))
        outcomes.note(result, name, f"{lead}_at_{100 * share:.0f}", kept)


def _at(prepared: Sequence[Prepared], threshold: float) -> list[Kept]:
    forced = [selection(each, mask(each, threshold), cut_records=True) for each in prepared]
    return [{chunk.place: chunk.text for chunk in each.chunks} for each in forced]


def _thresholds(prepared: Sequence[Prepared]) -> list[float]:
    """Thresholds between which about equally many units lie."""
    every = np.concatenate([each.worth.density for each in prepared])
    return [float(each) for each in np.quantile(every[np.isfinite(every)], np.linspace(0.02, 0.98, _CURVE_POINTS))]


def _prepared(
    cases: Sequence[Case], documents: Sequence[list[Document]], fitted: Fitted, known: Known | None, level: Level
) -> list[Prepared]:
    found = []
    for case, mine in zip(cases, documents, strict=True):
        vectors = None if known is None else vectors_of(case, mine, known, level)
        found.append(prepare(mine, Query(case.question, case.earlier), vectors, fitted))
    return found


def _cold(cases: Sequence[Case], documents: Sequence[list[Document]], fitted: Fitted, known: Known) -> list[Prepared]:
    """Words first; then vectors of the chunks that they put first."""
    found = []
    for case, mine in zip(cases, documents, strict=True):
        query = Query(case.question, case.earlier)
        first = prepare(mine, query, None, fitted)
        whole = vectors_of(case, mine, known, Level.CHUNKS)
        if whole is None:
            raise ValueError("no chunk vectors")
        rows = np.full_like(whole.chunks, np.nan)
        places = worth_embedding(first, COLD_CHUNKS)
        rows[places] = whole.chunks[places]
        found.append(prepare(mine, query, Vectors(whole.question, rows), fitted))
    return found


def _measure_keys(result: Result, data: Path, choice: Choice, tools: Tools) -> None:
    """One chunk of JSON with 75 records; kept means that key and value stand in JSON that is still valid."""
    file = data / "compressor" / f"{KEYS}.jsonl.gz"
    if not file.is_file():
        result.skipped.append(f"{KEYS}: no file")
        return
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    rows = rows[:QUICK_ROWS] if choice.quick else rows
    draws = resamples(len(rows), _RESAMPLES, choice.seed)
    texts = [json.dumps(dict(row["ordered_kv_records"]), indent=1) for row in rows]
    eligible = np.array([tools.count_tokens(text) for text in texts], float)

    def note(system: str, kept: Sequence[str]) -> None:
        left = np.array([tools.count_tokens(text) for text in kept], float)
        right = np.array([_holds_pair(text, row) for text, row in zip(kept, rows, strict=True)], float)
        _add(result, f"{KEYS}/{system}/tokens_saved", ratio(eligible - left, eligible, draws), len(rows))
        _add(result, f"{KEYS}/{system}/answer_kept", mean(right, draws), len(rows))

    note("off", texts)
    records = [[f'"{key}": "{value}"' for key, value in row["ordered_kv_records"]] for row in rows]
    note(f"bm25_top{TOP}", [_top_records(row["key"], each) for row, each in zip(rows, records, strict=True)])
    for mode in MODES:
        kept = []
        for row, text in zip(rows, texts, strict=True):
            asked = f'Extract the value corresponding to the key "{row["key"]}" in the JSON object below.'
            kept.append(tools.product.chunks(mode, asked, (), [text]).get(0, ""))
        note(f"ours_{mode.value}", kept)


def _top_records(key: str, records: Sequence[str]) -> str:
    scores = rank_by_bm25(key, records).scores
    best = sorted(sorted(range(len(records)), key=lambda at: (-scores[at], at))[:TOP])
    return "{" + ", ".join(records[at] for at in best) + "}"


def _holds_pair(text: str, row: Mapping[str, Any]) -> bool:
    try:
        return bool(json.loads(text).get(row["key"]) == row["value"])
    except ValueError:
        return False


def _top(case: Case, scores: Sequence[float], count: int) -> Kept:
    best = sorted(range(len(case.chunks)), key=lambda at: (-scores[at], at))[:count]
    return {at: case.chunks[at] for at in sorted(best)}


def _cosines(case: Case, known: Mapping[bytes, Floats]) -> list[float]:
    question = known[digest(case.question)]
    return [float(known[digest(text)] @ question) for text in case.chunks]


def _chosen(cases: Sequence[Case], choice: Choice) -> list[Case]:
    kept = [case for case in cases if not (choice.held_out and case.training)]
    if choice.quick and len(kept) > QUICK_ROWS:
        kept = random.Random(choice.seed).sample(kept, QUICK_ROWS)  # noqa: S311  (a sample of rows)
    return kept


def _add(result: Result, name: str, found: Interval, n: int) -> None:
    result.add(name, found.value, "ratio", n, found.ci95)
