"""Fits the weights and the thresholds of the retrieval strategies: ``python -m services.compressor.fit --data DIR``.

    python -m services.compressor.fit --data DIR [--vectors DIR] [--out services/compressor/weights/ranking.json]

Logistic functions by Newton's method with a small ridge: same data and seed, same file. Weights and thresholds see only
the training tenths of the groups (``datasets.Case.training``); what is printed is of training and of held-out
rows, by set. A mode's threshold is the harshest that loses, on no training set, more answers than the mode may.
``--vectors`` is a folder of vectors by text (``python -m bench.compressor_vectors`` writes it); without it only the
weights for words alone are fitted, and the others stay as they are in the file.
"""

from __future__ import annotations

import argparse
import hashlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from services.compressor import weights as file_of_weights
from services.compressor.datasets import Case, alone, answered, holds, read
from services.compressor.documents import Document, prepare
from services.compressor.ranking import (
    CHUNK_FEATURES,
    HOP_FEATURES,
    UNIT_FEATURES,
    Features,
    Floats,
    Level,
    Query,
    Vectors,
    Weights,
    hop_features,
    measure,
    score,
    unit_features,
)
from services.compressor.retrieval import (
    Fitted,
    Harshness,
    Prepared,
    blend,
    mask,
    prepare_ranked,
    selection,
    threshold_for_share,
)
from services.compressor.sentences import Kind
from services.compressor.vocabularies import load_encoding

SETS: Mapping[str, tuple[str, ...]] = {
    "en": ("nq_gold_passages", "beerqa_1000", "mtrag_un_multiturn", "mtrag_human_eval3"),
    "ko": ("korquad1_dev_ko",),
}
MAY_LOSE: Mapping[Harshness, float] = {Harshness.SAFE: 0.004, Harshness.BALANCED: 0.02, Harshness.AGGRESSIVE: 0.05}
"""Share of answers that a mode may lose on a training set, and one of any. Held-out rows lose more:
``safe``, which promises 1%, is given less than half of that."""
MAY_SAVE: Mapping[Harshness, float] = {Harshness.SAFE: 0.7, Harshness.BALANCED: 0.8, Harshness.AGGRESSIVE: 0.88}
"""Share of tokens beyond which a mode does not go on any training set, even where it would lose no more than it may."""
SHARES = (0.2, 0.35, 0.5, 0.6, 0.7, 0.8)
_MOST_CASES = 900
"""Of each set, by seed."""
_CANDIDATES = 60
_RIDGE = 1.0
_ROUNDS = 30


@dataclass(frozen=True, slots=True)
class Example:
    """A case with what was measured of it and what should come out."""

    case: Case
    documents: tuple[Document, ...]
    features: Features
    chunk_labels: Floats
    unit_labels: Floats

    @property
    def query(self) -> Query:
        """Of the case."""
        return Query(self.case.question, self.case.earlier)


Known = Mapping[bytes, Floats]


def labels(case: Case, documents: Sequence[Document]) -> tuple[Floats, Floats]:
    """1 for each chunk and each unit that is needed, else 0."""
    chunks = np.zeros(len(documents))
    chunks[list(case.gold)] = 1.0
    units: list[float] = []
    gold_titles = [documents[at].heading.lower() for at in case.gold]
    for at, document in enumerate(documents):
        texts = [document.text[unit.start : unit.end] for unit in document.units]
        if at not in case.gold:
            units += [0.0] * len(texts)
            continue
        if case.evidence:
            support = case.evidence[case.gold.index(at)]
            units += [float(text.strip() in support) for text in texts]
            continue
        # The title alone answers nothing, though the answer may stand in it.
        body = [place for place, unit in enumerate(document.units) if place or not document.heading]
        found = [float(place in body and holds(text, case.answers)) for place, text in enumerate(texts)]
        if not any(found):
            # A step on the way to the answer: where another gold chunk is named, else where the text begins.
            others = [title for title in gold_titles if title and title != document.heading.lower()]
            bridges = [place for place in body if any(other in texts[place].lower() for other in others)]
            found[(bridges or body or [0])[0]] = 1.0
        units += found
    return chunks, np.array(units)


def logistic(rows: Floats, labels_: Floats, weights: Floats | None = None) -> Floats:
    """Weights of a logistic function by Newton's method with a ridge; columns that are all 0 get 0."""
    used = np.flatnonzero(np.abs(rows).max(axis=0) > 0)
    x = rows[:, used]
    w = np.zeros(len(used))
    importance = np.ones(len(x)) if weights is None else weights
    ridge = np.full(len(used), _RIDGE)
    for _ in range(_ROUNDS):
        p = 1 / (1 + np.exp(-np.clip(x @ w, -30, 30)))
        gradient = x.T @ (importance * (labels_ - p)) - ridge * w
        hessian = (x * (importance * p * (1 - p))[:, None]).T @ x + np.diag(ridge)
        step = np.linalg.solve(hessian, gradient)
        w = w + step
        if float(np.abs(step).max()) < 1e-8:
            break
    found = np.zeros(rows.shape[1])
    found[used] = w
    return found


def fit_weights(examples: Sequence[Example]) -> Weights:
    """The three functions, one after the other."""
    chunk = logistic(
        np.vstack([each.features.chunk for each in examples]), np.concatenate([each.chunk_labels for each in examples])
    )
    firsts = [each.features.chunk @ chunk for each in examples]
    hops = [hop_features(first, each.features) for first, each in zip(firsts, examples, strict=True)]
    hop = logistic(np.vstack(hops), np.concatenate([each.chunk_labels for each in examples]))
    seconds = [each @ hop for each in hops]
    rows = np.vstack([unit_features(second, each.features) for second, each in zip(seconds, examples, strict=True)])
    unit = logistic(rows, np.concatenate([each.unit_labels for each in examples]))
    return Weights(_named(chunk, CHUNK_FEATURES), _named(hop, HOP_FEATURES), _named(unit, UNIT_FEATURES))


def _named(values: Floats, names: Sequence[str]) -> dict[str, float]:
    return {name: round(float(value), 4) for name, value in zip(names, values, strict=True)}


def digest(text: str) -> bytes:
    """Under which a text's vector is kept; as ``bench.cache_vectors`` has it."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:16]


def read_vectors(folder: Path) -> dict[bytes, Floats]:
    """All vectors of the sets, by digest of their text."""
    found: dict[bytes, Floats] = {}
    for file in sorted(folder.glob("compressor_*.npz")):
        with np.load(file) as content:
            keys = content["digests"].tobytes()
            for place, vector in enumerate(content["vectors"]):
                found[keys[place * 16 : place * 16 + 16]] = vector
    return found


def vectors_of(case: Case, documents: Sequence[Document], known: Known, level: Level) -> Vectors | None:
    """The vectors of a case at a level. Raises KeyError for a text that was not embedded."""
    if level is Level.WORDS:
        return None
    earlier = known[digest(case.earlier[0])].astype(float) if case.earlier else None
    question = blend(known[digest(case.question)].astype(float), earlier)
    chunks = np.array([known[digest(text)] for text in case.chunks], float)
    if level is Level.CHUNKS:
        return Vectors(question, chunks)
    none = np.full(len(question), np.nan)
    rows = [
        none if unit.kind is Kind.HEADING else known[digest(document.embedded_text(place))]
        for document in documents
        for place, unit in enumerate(document.units)
    ]
    return Vectors(question, chunks, np.array(rows, float))


def examples_of(cases: Sequence[Case], known: Known, level: Level, memory: dict[str, Document]) -> list[Example]:
    """What is fitted on and measured."""
    count = load_encoding("cl100k_base")
    if count is None:
        raise ValueError("cl100k_base is not on this machine")
    found = []
    for case in cases:
        for text in case.chunks:
            if text not in memory:
                memory[text] = prepare(text, count)
        documents = tuple(memory[text] for text in case.chunks)
        features = measure(documents, Query(case.question, case.earlier), vectors_of(case, documents, known, level))
        found.append(Example(case, documents, features, *labels(case, documents)))
    return found


def prepared_of(examples: Sequence[Example], weights: Weights) -> list[Prepared]:
    """The cases ranked by these weights."""
    return [prepare_ranked(each.documents, each.query, score(each.features, weights)) for each in examples]


def measured(examples: Sequence[Example], prepared: Sequence[Prepared], threshold: float) -> tuple[float, float]:
    """Share of answers kept and of tokens saved at a threshold."""
    kept, saved, total = 0, 0.0, 0.0
    for example, each in zip(examples, prepared, strict=True):
        stays = mask(each, threshold)
        found = selection(each, stays, cut_records=False)
        kept += answered(example.case, {chunk.place: chunk.text for chunk in found.chunks})
        total += each.tokens
        saved += each.tokens - float(each.worth.tokens[stays].sum())
    return kept / len(examples), saved / total


def fit_threshold(sets: Sequence[tuple[Sequence[Example], Sequence[Prepared]]], mode: Harshness) -> float:
    """The harshest threshold, of a number of candidates, with which a mode does what it may on all of the sets."""

    def allowed(threshold: float) -> bool:
        for examples, prepared in sets:
            kept, saved = measured(examples, prepared, threshold)
            lost = round((1 - kept) * len(examples))
            if lost > max(1, MAY_LOSE[mode] * len(examples)) or saved > MAY_SAVE[mode]:
                return False
        return True

    every = np.concatenate([each.worth.density for _, prepared in sets for each in prepared])
    candidates = np.quantile(every[np.isfinite(every)], np.linspace(0.05, 0.98, _CANDIDATES))
    low, high = 0, len(candidates) - 1
    while low < high:
        middle = (low + high + 1) // 2
        if allowed(float(candidates[middle])):
            low = middle
        else:
            high = middle - 1
    return float(f"{candidates[low]:.4g}")


def cases_of(data: Path, name: str, seed: int) -> list[Case]:
    """At most so many cases of a set."""
    cases = read(data, name, seed)
    if len(cases) > _MOST_CASES:
        cases = random.Random(seed).sample(cases, _MOST_CASES)  # noqa: S311  (a sample, no secret)
    return cases


def fit(data: Path, known: Known, levels: Sequence[Level], seed: int, fitted: Fitted) -> Fitted:
    """Weights and thresholds of each language and level; prints what they are worth."""
    weights, thresholds = dict(fitted.weights), dict(fitted.thresholds)
    memory: dict[str, Document] = {}
    for language, names in SETS.items():
        cases = {
            name: cases_of(data, name, seed) for name in names if (data / "compressor" / f"{name}.jsonl.gz").is_file()
        }
        for level in levels:
            whole = {name: examples_of(each, known, level, memory) for name, each in cases.items()}
            single = {
                name: examples_of([alone(case) for case in each], known, level, memory) for name, each in cases.items()
            }
            seen = [each for part in (whole, single) for rows in part.values() for each in rows if each.case.training]
            mine = weights[language, level] = fit_weights(seen)
            sides = {}
            for name, rows in [*whole.items(), *((f"{name} alone", rows) for name, rows in single.items())]:
                for side, wanted in (("training", True), ("held out", False)):
                    some = [each for each in rows if each.case.training is wanted]
                    if some:
                        sides[name, side] = (some, prepared_of(some, mine))
            for mode in Harshness:
                training = [each for (name, side), each in sides.items() if side == "training" and name in cases]
                thresholds[language, level, mode] = fit_threshold(training, mode)
            for (name, side), each in sides.items():
                _print(
                    f"{level.value:<9} {name:<26} {side:<8}",
                    each,
                    [thresholds[language, level, mode] for mode in Harshness],
                )
    return Fitted(weights, thresholds)


def _print(lead: str, each: tuple[Sequence[Example], Sequence[Prepared]], thresholds: Sequence[float]) -> None:
    modes = [measured(*each, threshold) for threshold in thresholds]
    forced = [measured(*each, threshold_for_share(each[1], share)) for share in SHARES]
    parts = [f"{kept:.3f}@{saved:.2f}" for kept, saved in [*modes, *forced]]
    print(f"{lead} n={len(each[0]):<4} modes {' '.join(parts[:3])}  forced {' '.join(parts[3:])}", flush=True)


def main() -> None:
    """Fit, print, write."""
    parser = argparse.ArgumentParser(prog="python -m services.compressor.fit", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with the layout of the evaluation data")
    parser.add_argument("--vectors", type=Path, help="folder of vectors that bench.compressor_vectors wrote")
    parser.add_argument("--out", type=Path, default=file_of_weights.FILE)
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    fitted = file_of_weights.load(arguments.out) if arguments.out.is_file() else Fitted({}, {})
    known = read_vectors(arguments.vectors) if arguments.vectors else {}
    levels = tuple(Level) if known else (Level.WORDS,)
    fitted = fit(arguments.data, known, levels, arguments.seed, fitted)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(file_of_weights.dump(fitted, {"seed": arguments.seed}), "utf-8")


if __name__ == "__main__":
    main()
