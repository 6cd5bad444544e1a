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
from dataclasses import dataclass, replace
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
PREFERRED = "preferred:"
"""Before a model's name where what was recorded is how often its answer was preferred to the strong model's: that
measures style and length as much as use, and is never mixed with what was marked right or wrong."""

_EVERYDAY_FOLDER = "cache"
_EVERYDAY: Mapping[str, str] = {"banking77": "text", "clinc150": "text", "chatbot_ko": "q", "parakqc_ko": "text"}
"""Sets of everyday questions, and the field that holds one."""
_FEW_SHOT = frozenset({"routerbench_3tasks"})
_STEM_CHARS = 220
"""Two scenarios to be judged begin alike for some 150."""

PAIRS: Mapping[str, tuple[str, str]] = {
    "routellm_mmlu": ("mixtral-8x7b", "gpt-4-1106"),
    "routellm_gsm8k": ("mixtral-8x7b", "gpt-4-1106"),
    "routellm_mtbench": ("mixtral-8x7b", "gpt-4-1106"),
    "routerbench_3tasks": ("mixtral-8x7b", "gpt-4-1106"),
    "llmrouter_9models": ("mistral-7b", "llama-3.1-nemotron-51b-instruct"),
    "omnisbench": ("gpt-5-nano", "claude-opus-5"),
    "alpacaeval2_prefs": ("preferred:gpt-3.5-turbo", "preferred:gpt-4-1106"),
    "logickor_ko": ("mixtral-8x7b", "gpt-4-1106"),
}
"""The weak and the strong model of each set that is measured; a set that is not listed takes ``weak_and_strong``."""

_QUESTION_KEYS = ("prompt", "question", "instruction", "text", "query", "problem", "input")
_RECORD_KEYS = ("results", "models", "outcomes")
_OUTCOME_KEYS = ("scores", "score", *_RECORD_KEYS, "quality", "correct", "accuracy", "performance")
_GRADE_KEYS = ("passed", "correct", "score", "quality", "accuracy", "performance")
_COST_KEYS = ("cost_usd", "cost", "costs")
_OUTCOME_COLUMNS = ("_correct", "_passed", "_score", "_quality", "_accuracy")
_COST_COLUMNS = ("_cost_usd", "_cost")
_SCALES = (1.0, 5.0, 10.0, 100.0)

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
    def group(self) -> str:
        """Digest of how the question begins, letters and digits only.

        Copies of a question in several sets share it, and so do the questions on one passage: rows of one group are
        never on both sides of a split. Few-shot prompts begin alike, so that the whole text of those counts.
        """
        text = "".join(filter(str.isalnum, self.text.lower()))
        if self.set_name not in _FEW_SHOT:
            text = text.removeprefix("thisquestionreferstothefollowinginformation")[:_STEM_CHARS]
        return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def held_out(row: Row) -> bool:
    """True for three of twenty rows, by group: the heads in ``weights/held_out.npz`` never saw them."""
    return int(row.group[:8], 16) % 20 >= 17


def model_name(recorded: str) -> str:
    """The one name of a model that sets spell differently."""
    name = recorded.rsplit("/", 1)[-1].lower()
    return next((ours for pattern, ours in _NAMES if re.search(pattern, name)), name)


def class_quality(row: Row) -> dict[str, float]:
    """Mean quality of each class that has a member among the row's models."""
    found = {}
    for name, members in _CLASS_MEMBERS.items():
        known = [row.quality[member] for member in members if member in row.quality]
        if known:
            found[name] = sum(known) / len(known)
    return found


def class_of(model: str) -> str:
    """The class of a model; empty for one in none."""
    plain = model.removeprefix(PREFERRED)
    return next((name for name, members in _CLASS_MEMBERS.items() if plain in members), "")


def set_names(data: Path) -> list[str]:
    """The sets that a data folder holds, by name."""
    return sorted(path.name.removesuffix(SUFFIX) for path in (data / FOLDER).glob(f"*{SUFFIX}"))


def read(data: Path, name: str) -> list[Row]:
    """The rows of a set without contaminated ones and without those that have no question or no outcome.

    Marks are brought to 0..1 by the set's scale: of 1, 5, 10 and 100 the least that no mark exceeds.

    Raises OSError when the file is not there and ValueError when no row has an outcome in a known form.
    """
    rows, without = [], 0
    with gzip.open(data / FOLDER / f"{name}{SUFFIX}", "rt", encoding="utf-8") as lines:
        for number, line in enumerate(lines):
            row = json.loads(line)
            if not isinstance(row, dict):
                raise ValueError(f"{name}, row {number}: no JSON object")
            text = _text(row)
            if text and not row.get("contaminated"):
                read_row = _row(name, number, row, text)
                if read_row.quality:
                    rows.append(read_row)
                else:
                    without += 1
    if without and not rows:
        raise ValueError(f"{name}: no outcome of any model in {without} rows")
    highest = max((mark for row in rows for mark in row.quality.values()), default=0.0)
    scale = next((each for each in _SCALES if highest <= each), highest)
    if scale == 1.0:
        return rows
    return [replace(row, quality={model: mark / scale for model, mark in row.quality.items()}) for row in rows]


def everyday_questions(data: Path, count: int) -> list[str]:
    """Questions of customers and users whose answers nobody marked, at most ``count`` of a set, chosen by digest."""
    found = []
    for name, key in _EVERYDAY.items():
        path = data / _EVERYDAY_FOLDER / f"{name}{SUFFIX}"
        if path.is_file():
            with gzip.open(path, "rt", encoding="utf-8") as lines:
                texts = {str(json.loads(line)[key]) for line in lines}
            ranked = sorted(texts, key=lambda text: hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())
            found += ranked[:count]
    return found


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
    for key in _QUESTION_KEYS:
        if isinstance(row.get(key), str):
            return str(row[key])
    turns = row.get("turns") or row.get("messages") or row.get("conversation")
    if not isinstance(turns, list):
        return ""
    for turn in turns:
        if isinstance(turn, str):
            return turn
        if isinstance(turn, Mapping) and turn.get("role", "user") == "user" and isinstance(turn.get("content"), str):
            return str(turn["content"])
    return ""


def _row(name: str, number: int, row: Mapping[str, Any], text: str) -> Row:
    quality: dict[str, list[float]] = {}
    cost: dict[str, float] = {}
    tokens: dict[str, float] = {}
    for model, value in _qualities(row):
        quality.setdefault(model if model.startswith(PREFERRED) else model_name(model), []).append(value)
    for model, value in _costs(row):
        cost.setdefault(model_name(model), value)
    for model, value in _tokens(row):
        tokens.setdefault(model_name(model), value)
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
            yield PREFERRED + model_name(model), min(1.0, 2.0 * float(chance))
        return
    for model, value in (*_by_model(row, _OUTCOME_KEYS),) or _in_columns(row, _OUTCOME_COLUMNS):
        graded = _grade(value)
        if graded is not None:
            yield model, graded


def _by_model(row: Mapping[str, Any], keys: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """What the first of these keys holds by model, be it as an object or as a list of records that name theirs."""
    for key in keys:
        found = row.get(key)
        if isinstance(found, Mapping):
            yield from ((str(model), value) for model, value in found.items())
            return
        if isinstance(found, list) and found and all(isinstance(each, Mapping) and "model" in each for each in found):
            yield from ((str(each["model"]), each) for each in found)
            return


def _in_columns(row: Mapping[str, Any], endings: Sequence[str]) -> list[tuple[str, Any]]:
    """The numbers under ``<model><ending>`` of the first ending that two models have."""
    for ending in endings:
        found = [
            (key.removesuffix(ending), value)
            for key, value in row.items()
            if key.endswith(ending) and isinstance(value, int | float)
        ]
        if len(found) > 1:
            return found
    return []


def _grade(value: Any) -> float | None:
    """At least 0, on the set's scale: a number, the mean of a judge's marks, or a record with one of them; or None."""
    if value is None or isinstance(value, str):
        return None
    if isinstance(value, Mapping):
        inner = next((value[key] for key in _GRADE_KEYS if key in value), None)
        return _grade([each for each in value.values() if isinstance(each, int | float)] if inner is None else inner)
    if isinstance(value, list):
        # A turn without a mark is one that nobody judged.
        marks = [float(mark) for mark in value if mark is not None]
        return _grade(sum(marks) / len(marks)) if marks else None
    number = float(value)
    return max(0.0, number) if math.isfinite(number) else None


def _costs(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for model, value in (*_by_model(row, _COST_KEYS), *_in_columns(row, _COST_COLUMNS)):
        if isinstance(value, int | float):
            yield model, float(value)
    for model, result in _by_model(row, _RECORD_KEYS):
        if isinstance(result, Mapping):
            cost = next((result[key] for key in _COST_KEYS if isinstance(result.get(key), int | float)), None)
            if cost is not None:
                yield model, float(cost)


def _tokens(row: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for model, result in _by_model(row, _RECORD_KEYS):
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
