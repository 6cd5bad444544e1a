"""`python -m services.cache.calibrate --data DIR`: fits the verifier of one embedder and writes its weights.

Reads the labelled questions of DIR/cache that ``split.in_training`` allows, never the others: those are what
``python -m bench.cache --held-out`` reports on. Every row is asked of a store that holds half of the rows, twice, with
the halves exchanged. Weights are fitted on all training groups; the probabilities behind the risk curves come from
models that did not see the asked row's group (three folds), so that thresholds are not chosen on what was fitted.

scikit-learn fits the weights; it comes with sentence-transformers and is needed here alone.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from services.cache.choice import NEIGHBOURS_READ, candidates, refusals
from services.cache.embedding import Embedder, load_encoder
from services.cache.features import NEIGHBOURHOOD, PAIR, pair_features
from services.cache.namespaces import Mode
from services.cache.split import in_training, tenth
from services.cache.verifier import WEIGHTS, Basis, Model, RiskPoint, Verifier, to_json

_OUTSIDE = "oos:"
_OUTSIDE_WEIGHT = 20.0
"""How much more a question counts that nothing answers: such are few in the data and many in life."""
FOLDS = 3
POINTS = 60
"""Thresholds kept of a risk curve."""
FLOOR_SHARE = 0.002
"""Share of right neighbours that the floor of the search may lose."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What one mode and language learn from: sets of questions with answers, and labelled pairs."""

    streams: tuple[str, ...]
    bounded: tuple[str, ...]
    """The streams whose errors bound the threshold."""
    pairs: tuple[str, ...] = ()
    contradictions: tuple[str, ...] = ()
    """Pairs whose contradictions and neutral hypotheses bound the threshold too."""


_KOREAN_PAIRS = ("question_pair_ko", "korsts_ko", "klue_sts_ko", "kornli_xnli_ko", "klue_nli_ko")
RECIPES: Mapping[tuple[Mode, str], Recipe] = {
    (Mode.STRICT, "en"): Recipe(("banking77", "clinc150"), ("banking77", "clinc150"), ("qqp_pairs", "gptcache_mock")),
    (Mode.STRICT, "ko"): Recipe(
        ("parakqc_ko",), ("parakqc_ko",),
        _KOREAN_PAIRS,
        ("kornli_xnli_ko", "klue_nli_ko"),
    ),
    (Mode.FAQ, "en"): Recipe(("banking77", "clinc150"), ("banking77", "clinc150")),
    (Mode.FAQ, "ko"): Recipe(
        ("parakqc_ko",), ("parakqc_ko",), _KOREAN_PAIRS, ("kornli_xnli_ko", "klue_nli_ko")
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """A question, the name of its answer, and its group."""

    text: str
    answer: str
    group: str


@dataclass(frozen=True, slots=True)
class Example:
    """A candidate of one asked row: ``asked`` numbers the row within its set, ``fold`` is that of its group."""

    asked: int
    fold: int
    values: tuple[float, ...]
    right: bool
    refused: bool
    outside: bool = False
    """Asked is what nothing of a curated set answers."""


@dataclass(slots=True)
class Trial:
    """What was tried of one set: how many rows were asked, and their candidates."""

    name: str
    count: int
    examples: list[Example]
    share: float = 1.0
    """What a wrong hit counts for: less in sets that hold nothing but traps."""


def main() -> None:
    """Fit, print a line per model, write the file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="directory that holds cache/*.jsonl.gz")
    parser.add_argument("--models", type=Path, default=Path(".models"))
    parser.add_argument("--embedder", default="multilingual-e5-small")
    parser.add_argument("--precision", default="int8")
    parser.add_argument("--languages", nargs="+", default=["en", "ko"], help="what the embedder reads")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    options = parser.parse_args()
    encoder = load_encoder(options.models, options.embedder, options.precision)
    version = Embedder(encoder, options.embedder).version
    vectors = Vectors(encoder, version)
    models: dict[str, Model] = {}
    floors: dict[str, float] = {}
    for (mode, tongue), recipe in RECIPES.items():
        if tongue not in options.languages:
            continue
        data = options.data / "cache"
        floor, trained = train(mode, recipe, data, vectors)
        floors[f"{mode.value}/{tongue}"] = floor
        for basis, model in trained.items():
            models[f"{mode.value}/{tongue}/{basis.value}"] = model
            print(f"{mode.value}/{tongue}/{basis.value}: {_summary(model)}", flush=True)
    options.out.mkdir(exist_ok=True)
    path = options.out / f"{options.embedder}-{options.precision}.json"
    path.write_text(json.dumps(to_json(Verifier(version, models, floors)), indent=1) + "\n", "utf-8")
    print(f"wrote {path}")


def train(mode: Mode, recipe: Recipe, data: Path, vectors: Vectors) -> tuple[float, dict[Basis, Model]]:
    """The floor and the two models of one mode and language."""
    streams = {name: _rows(data, name) for name in recipe.streams}
    floor = min(_floor(rows, vectors) for rows in streams.values())
    repeated = [_ask(name, rows, vectors, mode, floor, alone=False) for name, rows in streams.items()]
    alone = [_ask(name, rows, vectors, mode, floor, alone=True) for name, rows in streams.items()]
    traps = [trial for name in recipe.contradictions for trial in _traps(data, name, vectors, mode)]
    outside = [_outside(trial, streams[trial.name]) for trial in repeated]
    pairs = [_pairs(data, name, vectors, mode) for name in recipe.pairs]
    return floor, {
        Basis.PAIR: _fit(PAIR, [*alone, *pairs], [*(t for t in alone if t.name in recipe.bounded), *traps]),
        Basis.NEIGHBOURS: _fit(
            NEIGHBOURHOOD, repeated, [*(t for t in repeated if t.name in recipe.bounded), *filter(_count, outside)]
        ),
    }


def _count(trial: Trial) -> int:
    return trial.count


def _outside(trial: Trial, rows: Sequence[Row]) -> Trial:
    """The questions that nothing stored answers: few among all, and bounded on their own."""
    count = sum(row.answer.startswith(_OUTSIDE) for row in rows)
    return Trial(f"{trial.name}/outside", count, [each for each in trial.examples if each.outside], share=0.4)


class Vectors:
    """Embeds each text once, and keeps the vectors between runs in the system's temporary folder."""

    def __init__(self, encoder: Any, version: str) -> None:
        self._encoder = encoder
        name = hashlib.sha256(version.encode()).hexdigest()[:16]
        self._path = Path(tempfile.gettempdir()) / f"tenth-vectors-{name}.npz"
        self._known: dict[str, npt.NDArray[np.float32]] = {}
        if self._path.exists():
            kept = np.load(self._path)
            self._known = dict(zip(kept["texts"].tolist(), kept["vectors"], strict=True))

    def of(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """One row per text."""
        new = sorted(set(texts) - self._known.keys(), key=len)
        for start in range(0, len(new), 32):
            batch = new[start : start + 32]
            self._known.update(zip(batch, self._encoder.encode(batch), strict=True))
        if new:
            np.savez(self._path, texts=np.array(list(self._known)), vectors=np.stack(list(self._known.values())))
        return np.stack([self._known[text] for text in texts])


def _read(data: Path, name: str) -> list[dict[str, Any]]:
    with gzip.open(data / f"{name}.jsonl.gz", "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def _rows(data: Path, name: str) -> list[Row]:
    rows = []
    for row in _read(data, name):
        answer = str(row.get("intent", row.get("set", row.get("answer"))))
        # Nothing answers an out-of-scope question.
        answer = f"{_OUTSIDE}{row['id']}" if answer == "oos" else answer
        rows.append(Row(str(row.get("text", row.get("q"))), answer, answer))
    return [row for row in rows if in_training(name, row.group)]


def _floor(rows: Sequence[Row], vectors: Vectors) -> float:
    found = vectors.of([row.text for row in rows])
    answers = np.array([row.answer for row in rows])
    best = []
    for start in range(0, len(rows), 512):
        similar = found[start : start + 512] @ found.T
        same = answers[start : start + 512, None] == answers[None, :]
        same[np.arange(len(same)), start + np.arange(len(same))] = False
        best.extend(np.where(same, similar, -1.0).max(axis=1).tolist())
    return float(np.quantile([value for value in best if value > -1], FLOOR_SHARE))


def _ask(name: str, rows: Sequence[Row], vectors: Vectors, mode: Mode, floor: float, *, alone: bool) -> Trial:
    """Ask every row of a store with the other half. ``alone``: no two entries share an answer's text."""
    found = vectors.of([row.text for row in rows])
    order = np.random.default_rng(7).permutation(len(rows))
    halves = order[: len(rows) // 2], order[len(rows) // 2 :]
    examples = []
    for stored, asked in (halves, halves[::-1]):
        texts = [rows[place].text for place in stored]
        answers = [rows[place].answer for place in stored]
        for start in range(0, len(asked), 512):
            block = asked[start : start + 512]
            similar = found[block] @ found[stored].T
            near = np.argpartition(-similar, min(NEIGHBOURS_READ, len(texts) - 1), axis=1)[:, :NEIGHBOURS_READ]
            for line, row in enumerate(block):
                best = sorted(near[line], key=lambda place: -similar[line, place])
                best = [place for place in best if similar[line, place] >= floor]
                chosen = candidates(
                    rows[row].text,
                    [texts[place] for place in best],
                    [float(similar[line, place]) for place in best],
                    [str(place) if alone else answers[place] for place in best],
                    mode,
                )
                for candidate in chosen:
                    right = answers[best[candidate.place]] == rows[row].answer
                    if alone or candidate.basis is Basis.NEIGHBOURS:
                        fold = tenth(name, rows[row].group) % FOLDS
                        outside = not alone and rows[row].answer.startswith(_OUTSIDE)
                        refused = bool(candidate.refusals)
                        examples.append(Example(int(row), fold, candidate.values, right, refused, outside))
    return Trial(name, len(rows), examples)


def _pairs(data: Path, name: str, vectors: Vectors, mode: Mode) -> Trial:
    examples = []
    rows = [row for row in _read(data, name) if in_training(name, _group(row))]
    labelled = [(row, same) for row in rows if (same := _same(row)) is not None]
    one, other = vectors.of([row["b"] for row, _ in labelled]), vectors.of([row["a"] for row, _ in labelled])
    for place, (row, same) in enumerate(labelled):
        values = pair_features(row["b"], row["a"], float(one[place] @ other[place]))
        fold = tenth(name, _group(row)) % FOLDS
        examples.append(Example(place, fold, values, same, bool(refusals(row["b"], row["a"], mode))))
    return Trial(name, len(labelled), examples)


def _traps(data: Path, name: str, vectors: Vectors, mode: Mode) -> Iterable[Trial]:
    """Contradictions and neutral hypotheses: one in a hundred served counts as the bound of 5 in a thousand."""
    rows = [row for row in _read(data, name) if in_training(name, row["a"])]
    for label, share in (("contradiction", 0.5), ("neutral", 0.25)):
        chosen = [row for row in rows if row["label"] == label]
        one, other = vectors.of([row["b"] for row in chosen]), vectors.of([row["a"] for row in chosen])
        examples = [
            Example(
                place,
                tenth(name, row["a"]) % FOLDS,
                pair_features(row["b"], row["a"], float(one[place] @ other[place])),
                False,
                bool(refusals(row["b"], row["a"], mode)),
            )
            for place, row in enumerate(chosen)
        ]
        yield Trial(f"{name}/{label}", len(chosen), examples, share)


def _group(row: Mapping[str, Any]) -> str:
    # Inference sets ask several things of one premise.
    return str(row["a"] if "label" in row else row["id"])


def _same(row: Mapping[str, Any]) -> bool | None:
    if "same" in row:
        return bool(row["same"])
    if "score" in row:
        return True if row["score"] >= 4.5 else False if row["score"] <= 3 else None
    return None if row["label"] == "entailment" else False


def _fit(names: tuple[str, ...], trials: Sequence[Trial], bounded: Sequence[Trial]) -> Model:
    folds = [_weights(names, trials, without=fold) for fold in range(FOLDS)]
    final = _weights(names, trials, without=None)
    curve = _curve(bounded, folds)
    return Model(final.names, final.means, final.scales, final.weights, final.intercept, curve)


def _weights(names: tuple[str, ...], trials: Sequence[Trial], without: int | None) -> Model:
    from sklearn.linear_model import LogisticRegression

    values: list[tuple[float, ...]] = []
    right: list[bool] = []
    weight: list[float] = []
    for trial in trials:
        chosen = [example for example in trial.examples if example.fold != without]
        values.extend(example.values for example in chosen)
        right.extend(example.right for example in chosen)
        # Every set counts the same, however many rows it has.
        weight.extend((_OUTSIDE_WEIGHT if each.outside else 1.0) / len(chosen) for each in chosen)
    table = np.array(values)
    means, scales = table.mean(axis=0), np.maximum(table.std(axis=0), 1e-3)
    scaled = (table - means) / scales
    fitted = LogisticRegression(max_iter=3000).fit(scaled, right, np.array(weight) * len(weight) / len(trials))
    return Model(
        names, tuple(means.tolist()), tuple(scales.tolist()), tuple(fitted.coef_[0].tolist()),
        float(fitted.intercept_[0]), (),
    )  # fmt: skip


def _curve(trials: Sequence[Trial], folds: Sequence[Model]) -> tuple[RiskPoint, ...]:
    """Bound and hit rate at rising thresholds; the worst set decides at each."""
    outcomes = [_outcomes(trial, folds) for trial in trials]
    served = np.concatenate([best for best, _ in outcomes])
    grid = np.unique(np.quantile(served[served > 0], np.linspace(0, 1, 4 * POINTS)))
    points: list[RiskPoint] = []
    worst = 0.0
    for threshold in grid[::-1]:
        bounds = [
            1000 * trial.share * (wrong[best >= threshold].sum() + 1) / (trial.count + 1)
            for trial, (best, wrong) in zip(trials, outcomes, strict=True)
        ]
        rates = [
            float((best >= threshold).sum()) / trial.count
            for trial, (best, _) in zip(trials, outcomes, strict=True)
            if trial.share == 1
        ]
        # Risk is made monotone from the strict side, as the method asks.
        worst = max(worst, *bounds)
        points.append(RiskPoint(float(threshold), worst, float(np.mean(rates))))
    kept = [points[place] for place in np.unique(np.linspace(0, len(points) - 1, POINTS).astype(int))]
    return tuple(reversed(kept))


def _outcomes(trial: Trial, folds: Sequence[Model]) -> tuple[Floats, npt.NDArray[np.bool_]]:
    """Per asked row the best probability that may be served (0: none), and whether that answer is wrong."""
    best: dict[int, tuple[float, bool]] = {}
    for example in trial.examples:
        if not example.refused:
            probability = folds[example.fold].probability(example.values)
            if probability > best.get(example.asked, (0.0, False))[0]:
                best[example.asked] = (probability, not example.right)
    return np.array([value for value, _ in best.values()]), np.array([wrong for _, wrong in best.values()], bool)


def _summary(model: Model) -> str:
    parts = []
    for bound in (1.0, 2.5, 5.0, 10.0):
        point = next((point for point in model.curve if point.wrong_per_thousand <= bound), None)
        parts.append(
            f"<= {bound:g} wrong: " + (f"{point.hit_rate:.3f} at {point.probability:.4f}" if point else "none")
        )
    strongest = sorted(zip(model.names, model.weights, strict=True), key=lambda item: -abs(item[1]))[:8]
    return "; ".join(parts) + "\n    " + ", ".join(f"{name} {weight:+.2f}" for name, weight in strongest)


if __name__ == "__main__":
    main()
