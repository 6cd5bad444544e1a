"""`python -m services.cache.calibrate --data DIR`: hits and errors of the serving policy on labelled questions.

Half of the rows are stored, half are asked; a hit is wrong when the stored question belongs to another set. Sets are
split in two by a fixed seed: rules are chosen on one half and reported on the other.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np

from services.cache.embedding import load_encoder
from services.cache.keys import ROLE_USER, Message, Question
from services.cache.policy import CachePolicy, judge
from services.cache.store import Entry, Found


def main() -> None:
    """Print one line per half."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="directory that holds cache/parakqc_ko.jsonl.gz")
    parser.add_argument("--model", type=Path, default=Path(".models/multilingual-e5-small"))
    arguments = parser.parse_args()
    with gzip.open(arguments.data / "cache" / "parakqc_ko.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    encoder = load_encoder(arguments.model.parent, arguments.model.name)
    texts = [row["text"] for row in rows]
    vectors = np.concatenate([encoder.encode(texts[start : start + 64]) for start in range(0, len(texts), 64)])
    sets = sorted({row["set"] for row in rows})
    random.Random(7).shuffle(sets)  # noqa: S311  (A split, not a secret.)
    chosen = set(sets[: len(sets) // 2])
    for name, inside in (("chosen on", True), ("reported", False)):
        part = [index for index, row in enumerate(rows) if (row["set"] in chosen) is inside]
        random.Random(1).shuffle(part)  # noqa: S311  (As above.)
        for guarded in (False, True):
            hits, wrong = _play(rows, vectors, part, encoder.reads_korean(), guarded)
            asked = len(part) - len(part) // 2
            print(
                f"{name}, {'this policy' if guarded else 'cosine 0.95 alone'}: hit rate {hits / asked:.3f}, "
                f"precision {1 - wrong / max(hits, 1):.3f}, wrong per 1,000 {1000 * wrong / asked:.1f} ({asked} asked)"
            )


def _play(rows: list[dict[str, Any]], vectors: Any, part: list[int], reads: bool, guarded: bool) -> tuple[int, int]:
    stored, asked = part[: len(part) // 2], part[len(part) // 2 :]
    similarities = vectors[asked] @ vectors[stored].T
    policy, hits, wrong = CachePolicy(), 0, 0
    for row, index in zip(similarities, asked, strict=True):
        question = Question("t", "n", (Message(ROLE_USER, (("text", rows[index]["text"]),)),))
        for place in np.argsort(-row)[:5]:
            turn = rows[stored[place]]["text"]
            entry = Entry("", "", "", "t", "n", "", turn, turn, b"", 0.0, 2.0, "", 3)
            found = Found(entry, float(row[place]))
            serve = judge(question, found, policy, reads, 1.0).serve if guarded else found.similarity >= 0.95
            if serve:
                hits += 1
                wrong += rows[stored[place]]["set"] != rows[index]["set"]
                break
    return hits, wrong


if __name__ == "__main__":
    main()
