"""`python -m bench.cache_guards --data DIR`: what each guard costs and gains on labelled pairs of questions.

Fire rates in percent: on pairs that mean the same (cost) and on near pairs that do not (gain), on the half of the data
that no rule was chosen on (SHA-1 of a set's, intent's or pair's id, odd). Near pairs of sets are a row's three nearest
rows of other sets by character 2-4-gram TF-IDF. Also: which share of the rows the gate bypasses, by rule.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import itertools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from services.cache.gate import identifies, own_account, time_bound
from services.cache.guards import GUARD_NAMES, HARD, fired

Pair = tuple[str, str, str, str]
"""Data set, label, asked, stored."""
Row = dict[str, Any]
_GATED = (
    ("banking77", "intent", "text"),
    ("clinc150", "intent", "text"),
    ("parakqc_ko", "set", "text"),
    ("chatbot_ko", "id", "q"),
)
"""Data set, what its rows are split by, the question's field."""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory that holds cache/*.jsonl.gz")
    parser.add_argument("--half", type=int, choices=(0, 1), default=1, help="0: the half that rules were chosen on")
    arguments = parser.parse_args()
    folder, half = arguments.data / "cache", arguments.half
    names = (*GUARD_NAMES, "any hard")
    counts: Counter[tuple[str, str]] = Counter()
    hits: Counter[tuple[tuple[str, str], str]] = Counter()
    for data, label, asked, stored in _pairs(folder, half):
        kind = (data, label)
        counts[kind] += 1
        bits = fired(asked, stored)
        hits.update((kind, name) for name, bit in zip(GUARD_NAMES, bits, strict=True) if bit)
        hits[kind, "any hard"] += any(bits[: len(HARD)])
    kinds = sorted(counts)
    print(f"{'':16}" + "".join(f"{data + ' ' + label:>24}" for data, label in kinds))
    print(f"{'pairs':16}" + "".join(f"{counts[kind]:>24}" for kind in kinds))
    for name in names:
        print(f"{name:16}" + "".join(f"{100 * hits[kind, name] / counts[kind]:>24.1f}" for kind in kinds))
    for data, group, field in _GATED:
        rows = [row for row in _rows(folder, data) if _half(row[group]) == half]
        rules = Counter(filter(None, (_bypass(row[field]) for row in rows)))
        share = ", ".join(f"{rule} {count}" for rule, count in rules.most_common())
        print(f"gate, {data}: {100 * rules.total() / len(rows):.1f}% of {len(rows)} rows bypassed ({share})")


def _bypass(text: str) -> str:
    return time_bound(text) or own_account(text) or identifies(text)


def _rows(folder: Path, name: str) -> list[Row]:
    with gzip.open(folder / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _half(group: object) -> int:
    return int(hashlib.sha1(str(group).encode(), usedforsecurity=False).hexdigest(), 16) % 2


def _pairs(folder: Path, half: int) -> Iterator[Pair]:
    rows = [row for row in _rows(folder, "parakqc_ko") if _half(row["set"]) == half]
    for _, group in itertools.groupby(sorted(rows, key=lambda row: row["set"]), key=lambda row: row["set"]):
        for one, other in itertools.combinations(group, 2):
            yield "parakqc", "same", one["text"], other["text"]
    for asked, stored in _near(rows):
        yield "parakqc", "near", asked["text"], stored["text"]
    for name in ("qqp_pairs", "question_pair_ko"):
        for row in _rows(folder, name):
            if _half(row["id"]) == half and row["a"] != row["b"]:
                yield name.split("_")[0], "same" if row["same"] else "near", row["a"], row["b"]
    for row in _rows(folder, "korsts_ko"):
        if row["a"] != row["b"] and _half(row["id"]) == half and (row["score"] >= 4.5 or 1.5 <= row["score"] <= 3):
            yield "korsts", "same" if row["score"] >= 4.5 else "near", row["a"], row["b"]
    for name in ("kornli_xnli_ko", "klue_nli_ko"):
        for row in _rows(folder, name):
            if _half(row["id"]) == half:
                yield name.removesuffix("_ko"), row["label"][:7], row["b"], row["a"]


def _near(rows: list[Row]) -> Iterator[tuple[Row, Row]]:
    grams = [_grams(row["text"]) for row in rows]
    frequency = Counter(gram for counted in grams for gram in counted)
    postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
    vectors = []
    for place, counted in enumerate(grams):
        weights = {gram: count * math.log(len(rows) / frequency[gram]) for gram, count in counted.items()}
        norm = math.sqrt(sum(weight * weight for weight in weights.values())) or 1.0
        vectors.append({gram: weight / norm for gram, weight in weights.items()})
        for gram, weight in vectors[-1].items():
            postings[gram].append((place, weight))
    for place, vector in enumerate(vectors):
        scores: Counter[int] = Counter()
        for gram, weight in vector.items():
            for other, value in postings[gram]:
                scores[other] += weight * value  # type: ignore[assignment]  # A Counter adds up floats too.
        others = [o for o, score in scores.most_common(60) if rows[o]["set"] != rows[place]["set"] and score > 0.2]
        for other in others[:3]:
            yield rows[place], rows[other]


def _grams(text: str) -> Counter[str]:
    letters = "".join(letter for letter in text.lower() if letter.isalnum())
    return Counter(letters[start : start + size] for size in (2, 3, 4) for start in range(len(letters) - size + 1))


if __name__ == "__main__":
    main()
