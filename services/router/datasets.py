"""Recorded outcomes of models on questions: what the heads are trained on and measured with.

Each file of a data folder's ``router/`` holds one set, gzipped JSON lines. Whatever a set's form, a row comes out as a
question and one quality per model, 0 (useless) to 1 (right, or as good as can be). Files that are not named here are
read by the shape of their fields, so that sets which nobody has seen yet can be measured.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = "router"
SUFFIX = ".jsonl.gz"

SMALL, MEDIUM, LARGE = "class:small", "class:medium", "class:large"
CLASSES = (SMALL, MEDIUM, LARGE)
"""Arms that pool models of one strength; the tiers simple, medium and complex stand on them unless a catalogue says
otherwise."""

# One name for a model wherever it was recorded. Order matters: the first match counts.
_NAMES = (
    (r"mixtral-8x7b", "mixtral-8x7b"),
    (r"gpt-?4[-_]1106", "gpt-4-1106"),
    (r"gpt-?3\.?5-turbo", "gpt-3.5-turbo"),
    (r"claude-instant", "claude-instant"),
    (r"claude-v1|^claude$", "claude-1"),
    (r"claude-v2|claude-2(?!\.)", "claude-2"),
    (r"wizardlm-13b", "wizardlm-13b"),
    (r"llama-2-70b", "llama-2-70b"),
    (r"mistral-7b-(?:chat|instruct)", "mistral-7b"),
    (r"llama-3(?:\.1)?-8b-instruct", "llama-3-8b"),
)
_CLASS_MEMBERS: Mapping[str, tuple[str, ...]] = {
    SMALL: (
        *("mistral-7b", "llama-3-8b", "wizardlm-13b", "gemma-2-9b-it", "qwen2.5-7b-instruct"),
        *("dolphin-2.9-llama3-8b", "dolphin-2.6-mistral-7b", "zephyr-7b-beta"),
    ),
    MEDIUM: (
        *("mixtral-8x7b", "gpt-3.5-turbo", "claude-instant", "yi-34b-chat", "llama-3.1-nemotron-51b-instruct"),
        *("llama-3.3-nemotron-super-49b-v1", "gpt-5-nano"),
    ),
    LARGE: ("gpt-4-1106", "claude-opus-5", "gpt-5"),
}
# Preferences against the strongest model measure style and length as much as use: they train their own arms only.
_WITHOUT_CLASSES = frozenset({"alpacaeval2_prefs"})

PAIRS: Mapping[str, tuple[str, str]] = {
    "routellm_mmlu": ("mixtral-8x7b", "gpt-4-1106"),
    "routellm_gsm8k": ("mixtral-8x7b", "gpt-4-1106"),
    "routellm_mtbench": ("mixtral-8x7b", "gpt-4-1106"),
    "routerbench_3tasks": ("mixtral-8x7b", "gpt-4-1106"),
    "llmrouter_9models": ("mistral-7b", "llama-3.1-nemotron-51b-instruct"),
    "omnisbench": ("gpt-5-nano", "claude-opus-5"),
    "alpacaeval2_prefs": ("gpt-3.5-turbo", "gpt-4-1106"),
    "logickor_ko": ("mixtral-8x7b", "gpt-4-1106"),
}
"""The weak and the strong model of each set that is measured; a set that is not listed takes ``weak_and_strong``."""

TRAINING_SETS = (*PAIRS, "routerdc_7models")


@dataclass(frozen=True, slots=True)
class Row:
    """One question and how the models did on it."""

    set_name: str
    row_id: str
    text: str
    """The question as the last user message would hold it."""
    task: str
    """The set's own name of the task; empty where it names none."""
    quality: Mapping[str, float]
    """By model, 0..1, models under their one name."""
    cost_usd: Mapping[str, float]
    """By model, as recorded; empty where nobody did."""
    output_tokens: Mapping[str, float]
    """By model, recorded or estimated from characters; empty where nobody knows."""

    @property
    def digest(self) -> str:
        """Of the question, blanks and case aside: copies of a question in several sets share it."""
        return hashlib.sha1(" ".join(self.text.lower().split()).encode(), usedforsecurity=False).hexdigest()


def held_out(row: Row) -> bool:
    """True for the rows that the shipped heads never saw: three of twenty, by the question, whatever its set."""
    return int(row.digest[:8], 16) % 20 >= 17


def model_name(recorded: str) -> str:
    """The one name of a model that sets spell differently."""
    name = recorded.rsplit("/", 1)[-1].lower()
    return next((ours for pattern, ours in _NAMES if re.search(pattern, name)), name)


def class_quality(row: Row) -> dict[str, float]:
    """Mean quality of each class that has a member among the row's models."""
    found = {}
    if row.set_name not in _WITHOUT_CLASSES:
        for name, members in _CLASS_MEMBERS.items():
            known = [row.quality[member] for member in members if member in row.quality]
            if known:
                found[name] = sum(known) / len(known)
    return found


def class_of(model: str) -> str:
    """The class of a model; empty for one in none."""
    return next((name for name, members in _CLASS_MEMBERS.items() if model in members), "")


def set_names(data: Path) -> list[str]:
    """The sets that a data folder holds, by name."""
    return sorted(path.name.removesuffix(SUFFIX) for path in (data / FOLDER).glob(f"*{SUFFIX}"))


def read(data: Path, name: str) -> list[Row]:
    """The rows of a set without contaminated ones and without those that have no question.

    Raises OSError when the file is not there and ValueError for rows that have no outcome in a known form.
    """
    rows = []
    with gzip.open(data / FOLDER / f"{name}{SUFFIX}", "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            row = json.loads(line)
            text = _text(row)
            if text and not row.get("contaminated"):
                rows.append(_row(name, number, row, text))
    return rows


def weak_and_strong(rows: Sequence[Row]) -> tuple[str, str]:
    """The worst and the best model by mean quality over all rows that have both; for sets without a named pair.

    Raises ValueError when there are no two models.
    """
    totals: dict[str, list[float]] = {}
    for row in rows:
        for model, quality in row.quality.items():
            totals.setdefault(model, []).append(quality)
    full = {model: sum(values) / len(values) for model, values in totals.items() if len(values) > len(rows) / 2}
    if len(full) < 2:
        raise ValueError("fewer than two models have outcomes on most rows")
    ranked = sorted(full, key=lambda model: (full[model], model))
    return ranked[0], ranked[-1]


def _text(row: Mapping[str, Any]) -> str:
    for key in ("prompt", "question", "instruction", "text", "query"):
        if isinstance(row.get(key), str):
            return str(row[key])
    turns = row.get("turns")
    return str(turns[0]) if isinstance(turns, list) and turns else ""


def _row(name: str, number: int, row: Mapping[str, Any], text: str) -> Row:
    quality: dict[str, list[float]] = {}
    cost: dict[str, float] = {}
    tokens: dict[str, float] = {}
    for model, value in _qualities(row):
        quality.setdefault(model_name(model), []).append(value)
    for model, value in _costs(row):
        cost.setdefault(model_name(model), value)
    for model, value in _tokens(row):
        tokens.setdefault(model_name(model), value)
    if not quality:
        raise ValueError(f"{name}, row {number}: no outcome of any model")
    task = row.get("task") or row.get("subject") or row.get("eval_name") or row.get("dataset") or row.get("category")
    return Row(
        set_name=name,
        row_id=str(row.get("id", number)),
        text=text,
        task=str(task or ""),
        quality={model: sum(values) / len(values) for model, values in quality.items()},
        cost_usd=cost,
        output_tokens=tokens,
    )


def _qualities(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    if "weak_correct" in row:
        weak, strong = row.get("weak_model") or "mixtral-8x7b", row.get("strong_model") or "gpt-4-1106-preview"
        yield str(weak), float(row["weak_correct"])
        yield str(strong), float(row["strong_correct"])
        return
    if isinstance(row.get("win_prob_vs_gpt4_turbo"), Mapping):
        for model, chance in row["win_prob_vs_gpt4_turbo"].items():
            # 0.5 is a tie with the strong model: as good as can be asked.
            yield model, min(1.0, 2.0 * float(chance))
        return
    outcomes: Any = next((row[key] for key in ("scores", "score", "results") if isinstance(row.get(key), Mapping)), {})
    for model, value in outcomes.items():
        graded = _grade(value)
        if graded is not None:
            yield model, graded


def _grade(value: Any) -> float | None:
    """0..1 of a grade: a number, a judge's marks out of ten per turn, or a record with one of them; None without."""
    if value is None:
        return None
    if isinstance(value, Mapping):
        inner = next((value[key] for key in ("passed", "correct", "score", "quality") if key in value), None)
        return _grade(list(value.values()) if inner is None else inner)
    if isinstance(value, list):
        # A turn without a mark is one that nobody judged.
        marks = [float(mark) for mark in value if mark is not None]
        return min(1.0, sum(marks) / len(marks) / 10.0) if marks else None
    number = float(value)
    if not math.isfinite(number):
        return None
    return number if 0.0 <= number <= 1.0 else max(0.0, min(1.0, number / 10.0))


def _costs(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for model, value in (row.get("cost_usd") or {}).items() if isinstance(row.get("cost_usd"), Mapping) else ():
        if value is not None:
            yield model, float(value)
    for model, result in (row.get("results") or {}).items() if isinstance(row.get("results"), Mapping) else ():
        if isinstance(result, Mapping) and result.get("cost_usd") is not None:
            yield model, float(result["cost_usd"])


def _tokens(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for model, result in (row.get("results") or {}).items() if isinstance(row.get("results"), Mapping) else ():
        if isinstance(result, Mapping) and result.get("output_tokens") is not None:
            yield model, float(result["output_tokens"])
    if "weak_response" in row:
        yield "mixtral-8x7b", estimated_tokens(str(row["weak_response"]))
        yield "gpt-4-1106-preview", estimated_tokens(str(row["strong_response"]))
    for model, chars in (row.get("output_chars") or {}).items() if isinstance(row.get("output_chars"), Mapping) else ():
        if chars is not None:
            yield model, float(chars) * _TOKENS_PER_CHAR
    for model, outputs in (row.get("outputs") or {}).items() if isinstance(row.get("outputs"), Mapping) else ():
        if isinstance(outputs, list) and outputs and isinstance(outputs[0], str):
            yield model, estimated_tokens(outputs[0])


_TOKENS_PER_CHAR = 0.22
_HANGUL = re.compile(r"[\uac00-\ud7a3]")


def estimated_tokens(text: str) -> float:
    """Tokens of an answer by its characters: 1.0 per Hangul syllable, 0.22 per other character (cl100k_base)."""
    hangul = len(_HANGUL.findall(text))
    return hangul + (len(text) - hangul) * _TOKENS_PER_CHAR
