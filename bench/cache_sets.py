"""Reads the evaluation sets of the semantic cache: which rows, what their answer is, which group they belong to."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from services.cache.split import in_training

ADVERSARIAL = Path(__file__).parent / "adversarial"
OUT_OF_SCOPE = "oos"
KORSTS_SAME = 4.0
"""KorSTS grades 0..5. From 4 ("equivalent but for unimportant details") on two sentences may share an answer."""
QUICK_ROWS = 300
"""About as many rows of each set are taken in a quick run, in whole groups."""

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Row:
    """A question whose right answer is known."""

    text: str
    answer: str
    """What is stored for it. Rows with the same answer may be served each other's."""
    group: str
    out_of_scope: bool = False
    """No stored answer is right for it, nor its own for any other row."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two texts: ``stored`` is in the cache, ``asked`` comes."""

    stored: str
    asked: str
    label: str
    """"same" or "different"; for inference sets "entailment", "neutral" or "contradiction"."""
    group: str
    kind: str = ""
    """Of a pair: "identical" when the source says that the texts are trivially equal. Of a trap: what it tries."""


R = TypeVar("R", Row, Pair)


@dataclass(frozen=True, slots=True)
class Choice:
    """Which rows of a set are used."""

    quick: bool
    held_out: bool
    """Only groups that training never saw."""
    seed: int


def _banking77(row: Fields) -> Row:
    return Row(row["text"], _fixed("banking77", row["intent"]), row["intent"])


def _clinc150(row: Fields) -> Row:
    if row["intent"] != OUT_OF_SCOPE:
        return Row(row["text"], _fixed("clinc150", row["intent"]), row["intent"])
    group = f"{OUT_OF_SCOPE}:{row['id']}"
    return Row(row["text"], _fixed("clinc150", group), group, out_of_scope=True)


def _parakqc(row: Fields) -> Row:
    return Row(row["text"], _fixed("parakqc_ko", str(row["set"])), str(row["set"]))


def _chatbot(row: Fields) -> Row:
    return Row(row["q"], row["answer"], row["answer"])


def _same(row: Fields) -> Pair:
    return _pair(row, same=row["same"] == 1)


def _korsts(row: Fields) -> Pair:
    return _pair(row, same=row["score"] >= KORSTS_SAME)


def _pair(row: Fields, *, same: bool) -> Pair:
    kind = "identical" if row.get("identical") == 1 else ""
    return Pair(row["a"], row["b"], "same" if same else "different", str(row["id"]), kind)


def _inference(row: Fields) -> Pair:
    return Pair(row["a"], row["b"], row["label"], row["a"])


STREAMS: Mapping[str, Callable[[Fields], Row]] = {
    "banking77": _banking77,
    "clinc150": _clinc150,
    "parakqc_ko": _parakqc,
    "chatbot_ko": _chatbot,
}
"""Sets with answer identity."""
PAIRS: Mapping[str, Callable[[Fields], Pair]] = {
    "qqp_pairs": _same,
    "gptcache_mock": _same,
    "korsts_ko": _korsts,
    "klue_sts_ko": _same,
    "question_pair_ko": _same,
}
"""Sets of pairs that may share an answer or not."""
INFERENCE: Mapping[str, Callable[[Fields], Pair]] = {"kornli_xnli_ko": _inference, "klue_nli_ko": _inference}
"""Sets of premise and hypothesis."""


def read_stream(data: Path, name: str, choice: Choice) -> list[Row]:
    """The chosen rows of a set with answer identity. Raises OSError, ValueError or KeyError for a file not so."""
    return _chosen(name, map(STREAMS[name], _rows(data, name)), choice)


def read_pairs(data: Path, name: str, choice: Choice) -> list[Pair]:
    """The chosen pairs of a pair set or an inference set. Raises as ``read_stream``."""
    make = PAIRS.get(name) or INFERENCE[name]
    return _chosen(name, map(make, _rows(data, name)), choice)


def read_adversarial(folder: Path = ADVERSARIAL) -> dict[str, list[Pair]]:
    """This project's own traps by language. Never a part of training, so no choice is made. Empty without a folder."""
    found: dict[str, list[Pair]] = {}
    for file in sorted(folder.glob("*.yaml")):
        content = yaml.safe_load(file.read_text("utf-8")) or []
        for number, row in enumerate(content):
            label = "same" if row["same"] else "different"
            pair = Pair(row["a"], row["b"], label, f"{file.stem}:{number}", str(row["kind"]))
            found.setdefault(str(row["lang"]), []).append(pair)
    return found


def halves(rows: Sequence[R], seed: int) -> tuple[list[R], list[R]]:
    """The half that warms the store, and the half that asks; by seed."""
    mixed = list(rows)
    random.Random(seed).shuffle(mixed)  # noqa: S311  (a split, no secret)
    return mixed[: len(mixed) // 2], mixed[len(mixed) // 2 :]


def present(data: Path, name: str) -> bool:
    """True if the set's file is there."""
    return _file(data, name).is_file()


def _fixed(set_name: str, identity: str) -> str:
    # The stored answer must not tell the label: a cache that reads answers could learn from it.
    return f"Answer {hashlib.sha256(f'{set_name}:{identity}'.encode()).hexdigest()[:16]}."


def _file(data: Path, name: str) -> Path:
    return data / "cache" / f"{name}.jsonl.gz"


def _rows(data: Path, name: str) -> Iterable[Fields]:
    with gzip.open(_file(data, name), "rt", encoding="utf-8") as lines:
        for line in lines:
            yield json.loads(line)


def _chosen(name: str, rows: Iterable[R], choice: Choice) -> list[R]:
    kept = [row for row in rows if not (choice.held_out and in_training(name, row.group))]
    if not choice.quick:
        return kept
    groups: dict[Hashable, list[R]] = {}
    for row in kept:
        groups.setdefault(row.group, []).append(row)
    order = list(groups)
    random.Random(choice.seed).shuffle(order)  # noqa: S311  (a sample, no secret)
    few: list[R] = []
    for group in order:
        if len(few) >= QUICK_ROWS:
            break
        few += groups[group]
    return few
