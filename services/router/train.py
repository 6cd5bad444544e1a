"""Trains the shipped heads: ``python -m services.router.train --data DIR [--models DIR] [--out DIR] [--seed N]``.

It reads the sets that DIR has (see ``datasets.py``), embeds their questions with the mesh's embedder (vectors are kept
in the system's temporary folder), chooses each expert's recipe by cross-validation and writes numbers only:

    heads.npz          trained on all rows: in use
    held_out.npz       trained on 17 of 20 rows, so that the rest can be measured honestly (``datasets.held_out``)
    transfer/SET.npz   trained without a set and without rows of other sets that overlap it

The same data, seed, libraries and machine give the same bytes. With ``--curve SET`` it writes nothing and prints how a
set's figure grows with its training rows.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from services.router import datasets, fit
from services.router.datasets import CLASSES, PAIRS, Row
from services.router.features import Features, Prompt, extract
from services.router.fit import RECIPES, Floats, Recipe
from services.router.heads import (
    Expert,
    Heads,
    Matrix,
    Scaling,
    calibrated,
    expert_rows,
    heads_from_bytes,
    heads_to_bytes,
)
from services.router.policy import estimate_tokens
from services.router.scores import apgr, curve

FOLDS = 5
_EXPERT_ROWS = 300
"""A set with fewer rows is left to the general head."""
_ARM_SHARE = 0.5
"""An arm needs outcomes on this share of a set's rows."""
_ALL_MODELS = 12
"""A set with more models than this contributes those of a class or a pair only."""
_SAMPLE_ROWS = 4000
_EVERYDAY_ROWS = 1500
"""Of each set of everyday questions."""
_WEIGHTS = Path(__file__).parent / "weights"

FEATURE_NAMES = tuple(sorted(set(Features.__dataclass_fields__) - {"language", "words", "turns", "context", "tools"}))
"""What the heads look at. What no recorded question has (turns, context, tools) could only mislead them."""


class Encoder(Protocol):
    """The mesh's embedder."""

    def encode(self, texts: Sequence[str]) -> Matrix:
        """One L2-normalised row per text."""


@dataclass(frozen=True, slots=True)
class Everyday:
    """Everyday questions without any outcome, as vectors [n, d] and features [n, f]."""

    vectors: Matrix
    numbers: Matrix


@dataclass(frozen=True, slots=True)
class Corpus:
    """Rows with their vectors [n, d] and features [n, f]."""

    rows: tuple[Row, ...]
    vectors: Matrix
    numbers: Matrix
    everyday: Everyday
    """What the rows are told apart from."""

    def where(self, keep: npt.NDArray[np.bool_]) -> Corpus:
        """The rows that are kept."""
        places = np.flatnonzero(keep)
        rows = tuple(self.rows[place] for place in places)
        return Corpus(rows, self.vectors[places], self.numbers[places], self.everyday)

    @property
    def sets(self) -> list[str]:
        """Each row's set."""
        return [row.set_name for row in self.rows]

    def pair(self, name: str) -> tuple[Corpus, str, str]:
        """A set's rows that have outcomes of both its weak and its strong model, and the two."""
        own = self.where(np.array([each == name for each in self.sets]))
        weak, strong = PAIRS.get(name) or datasets.weak_and_strong(own.rows)
        return own.where(~np.isnan(own.quality(weak)) & ~np.isnan(own.quality(strong))), weak, strong

    def quality(self, arm: str) -> Floats:
        """Recorded quality of a model or class by row, NaN where there is none."""
        if arm in CLASSES:
            return np.array([datasets.class_quality(row).get(arm, np.nan) for row in self.rows])
        return np.array([row.quality.get(arm, np.nan) for row in self.rows])


def main() -> None:
    """Train and write, or print a learning curve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with router/*.jsonl.gz")
    parser.add_argument("--models", type=Path, default=Path(os.environ.get("TENTH_MODELS_DIR", ".models")))
    parser.add_argument("--model", default="multilingual-e5-small", help="the embedder's folder")
    parser.add_argument("--out", type=Path, default=_WEIGHTS)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--curve", metavar="SET", help="print a learning curve of this set instead")
    args = parser.parse_args()
    corpus, version = read_corpus(args.data, args.models, args.model)
    if args.curve:
        print_curve(corpus, version, args.curve, args.seed)
        return
    started = time.monotonic()
    recipes = choose_recipes(corpus, args.seed)
    held = np.array([datasets.held_out(row) for row in corpus.rows])
    _write(args.out / "heads.npz", train(corpus, version, recipes, args.seed, report=True))
    seen = corpus.where(~held)
    _write(args.out / "held_out.npz", train(seen, version, choose_recipes(seen, args.seed), args.seed))
    for name in PAIRS:
        if name in corpus.sets:
            rest = without(corpus, name)
            _write(args.out / "transfer" / f"{name}.npz", train(rest, version, recipes, args.seed, folds=0))
    print(f"{time.monotonic() - started:.0f} s")


def read_corpus(data: Path, models: Path, model: str) -> tuple[Corpus, str]:
    """All sets that are there, embedded; and the embedder's version. Raises OSError without any."""
    # The only place where the router touches the cache's code: to make the very vectors that it is handed in service.
    from importlib import import_module

    embedding = import_module("services.cache.embedding")
    encoder = embedding.load_encoder(models, model)
    version = f"{model}@{embedding._FORM}-{encoder.precision}"
    present = [name for name in datasets.TRAINING_SETS if name in datasets.set_names(data)]
    if not present:
        raise SystemExit(f"{data / datasets.FOLDER} has none of {', '.join(datasets.TRAINING_SETS)}")
    rows = [row for name in present for row in datasets.read(data, name)]
    texts, plain = [row.text for row in rows], datasets.everyday_questions(data, _EVERYDAY_ROWS)
    vectors, numbers = _embedded(encoder, version, [*texts, *plain]), _numbers([*texts, *plain])
    print(f"{len(rows)} rows of {', '.join(present)}; {len(plain)} everyday questions; embedder {version}")
    everyday = Everyday(vectors[len(rows) :], numbers[len(rows) :])
    return Corpus(tuple(rows), vectors[: len(rows)], numbers[: len(rows)], everyday), version


def choose_recipes(corpus: Corpus, seed: int) -> dict[str, Recipe]:
    """By set with enough rows: the recipe whose cross-validated gain orders the set's rows best."""
    chosen = {}
    for name in sorted(set(corpus.sets)):
        own, weak, strong = corpus.pair(name)
        if len(own.rows) < _EXPERT_ROWS:
            continue
        figures = {recipe.name: _recipe_apgr(own, recipe, weak, strong, seed) for recipe in RECIPES}
        chosen[name] = max(RECIPES, key=lambda recipe: figures[recipe.name])
        listed = ", ".join(f"{key} {value:.3f}" for key, value in figures.items())
        print(f"{name}: {len(own.rows)} rows, {listed} -> {chosen[name].name}")
    return chosen


def train(
    corpus: Corpus,
    version: str,
    recipes: Mapping[str, Recipe],
    seed: int,
    *,
    folds: int = FOLDS,
    report: bool = False,
) -> bytes:
    """The content of a file of heads. Without folds nothing is calibrated: only orders are right."""
    parts, facts = _fitted(corpus, version, recipes, seed)
    arms = facts["arms"]
    parts["platt"] = np.tile(np.array([1.0, 0.0], np.float32), (len(arms), 1))
    classes = facts["classes"]
    empty = np.zeros((0, len(classes)), np.float16)
    parts |= {"sample.predicted": empty, "sample.recorded": empty}
    parts |= {"sample.prompt_tokens": np.zeros(0, np.float32), "sample.length_ratio": np.zeros(0, np.float16)}
    if folds:
        raw, ratio = _cross_fitted(corpus, version, recipes, seed, folds, arms)
        for place, arm in enumerate(arms):
            quality = corpus.quality(arm)
            known = ~np.isnan(quality) & ~np.isnan(raw[:, place])
            if known.any():
                parts["platt"][place] = fit.platt(raw[known, place], quality[known])
        parts |= _sample(corpus, raw, ratio, parts["platt"], arms, classes, seed)
        if report:
            _print_report(corpus, raw, arms)
    return heads_to_bytes(parts, facts)


def without(corpus: Corpus, name: str) -> Corpus:
    """All rows but a set's and those of other sets that overlap it."""
    groups = {row.group for row in corpus.rows if row.set_name == name}
    return corpus.where(np.array([row.set_name != name and row.group not in groups for row in corpus.rows]))


def folds_of(rows: Sequence[Row], count: int, seed: int) -> npt.NDArray[np.intp]:
    """The fold of each row, by group."""
    return np.array(
        [int(hashlib.sha1(f"{seed}{row.group}".encode(), usedforsecurity=False).hexdigest()[:8], 16) for row in rows]
    ) % count  # fmt: skip


def print_curve(corpus: Corpus, version: str, name: str, seed: int) -> None:
    """APGR on a fifth of a set, trained on growing shares of the rest."""
    own, weak, strong = corpus.pair(name)
    order = np.array([int(row.group[8:16], 16) % 100 for row in own.rows])
    for share in (10, 20, 40, 60, 80, 100):
        figures = {}
        for recipe in RECIPES:
            fold = folds_of(own.rows, FOLDS, seed)
            predicted = np.zeros(len(own.rows))
            for each in range(FOLDS):
                learn = (fold != each) & (order < share)
                predicted[fold == each] = _gain(own.where(learn), own.where(fold == each), recipe, weak, strong, seed)
            figures[recipe.name] = apgr(curve(predicted, own.quality(strong) - own.quality(weak)))
        listed = ", ".join(f"{key} {value:.3f}" for key, value in figures.items())
        print(f"{name}/learning_curve/apgr_{share}: {max(figures.values()):.3f} ({listed})")


def _numbers(texts: Sequence[str]) -> Matrix:
    found = [extract(Prompt(question=text)) for text in texts]
    return np.array([[getattr(each, name) for name in FEATURE_NAMES] for each in found], np.float32)


def _fitted(
    corpus: Corpus, version: str, recipes: Mapping[str, Recipe], seed: int
) -> tuple[dict[str, npt.NDArray[Any]], dict[str, Any]]:
    common = fit.scaling(corpus.vectors, corpus.numbers)
    sets = corpus.sets
    named = [name for name in recipes if name in sets]
    experts = [_expert(corpus, name, recipes[name], seed) for name in named]
    owners = [named.index(name) if name in named else -1 for name in sets]
    gate = fit.gate(common, corpus.vectors, corpus.numbers, owners, seed)
    general = fit.general(
        common, corpus.vectors, corpus.numbers, sets, {name: corpus.quality(name) for name in CLASSES}, seed
    )
    lengths = np.array(
        [np.mean(list(row.output_tokens.values())) if row.output_tokens else np.nan for row in corpus.rows]
    )
    known = ~np.isnan(lengths)
    arms = sorted({arm for expert in experts for arm in expert.arms} | set(CLASSES))
    # A model that is in no class falls back to the middle one where its own experts do not speak.
    class_of = {arm: datasets.class_of(arm) or datasets.MEDIUM for arm in arms if arm not in CLASSES}
    recorded = np.array([bool(datasets.class_quality(row)) for row in corpus.rows])
    familiar = fit.familiar_weights(
        common,
        (corpus.vectors[recorded], corpus.numbers[recorded]),
        (corpus.everyday.vectors, corpus.everyday.numbers),
    )
    parts: dict[str, npt.NDArray[Any]] = {
        "familiar.weights": familiar.astype(np.float32),
        "gate.components": gate.components.astype(np.float16),
        "gate.centroids": gate.centroids.astype(np.float16),
        "gate.owners": gate.owners,
        "gate.spreads": gate.spreads,
        "general.codes": general.kernel.codes,
        "general.scales": general.kernel.scales,
        "general.weights": general.weights,
        "general.intercepts": general.intercepts,
        "general.slopes": general.slopes,
        "length.weights": _length(corpus.where(known), common, lengths[known]).astype(np.float32),
        "feature_quantiles": np.quantile(corpus.numbers, np.linspace(0, 1, 11), axis=0).T.astype(np.float32),
    }
    _put_scaling(parts, "common", common)
    for place, expert in enumerate(experts):
        _put_scaling(parts, f"expert{place}", expert.scaling)
        parts[f"expert{place}.weights"] = expert.weights
        if expert.kernel is not None:
            parts[f"expert{place}.codes"] = expert.kernel.codes
            parts[f"expert{place}.scales"] = expert.kernel.scales
    facts = {
        "embedder_version": version,
        "feature_names": list(FEATURE_NAMES),
        "arms": arms,
        "classes": list(CLASSES),
        "class_of": class_of,
        "experts": [_expert_facts(expert, recipes[expert.name]) for expert in experts],
        "gate": {"sharpness": gate.sharpness, "general_at": gate.general_at, "far": round(gate.far, 4)},
        "general": {"gamma": general.kernel.gamma, "feature_weight": general.kernel.feature_weight},
        "row_counts": {name: sets.count(name) for name in sorted(set(sets))},
        "seed": seed,
    }
    return parts, facts


def _expert(corpus: Corpus, name: str, recipe: Recipe, seed: int) -> Expert:
    own = corpus.where(np.array([each == name for each in corpus.sets]))
    quality = {arm: own.quality(arm) for arm in _arms(own)}
    return fit.expert(name, recipe, own.vectors, own.numbers, quality, seed)


def _arms(own: Corpus) -> list[str]:
    counts: dict[str, int] = {}
    for row in own.rows:
        for arm in (*row.quality, *datasets.class_quality(row)):
            counts[arm] = counts.get(arm, 0) + 1
    common = {arm for arm, count in counts.items() if count >= _ARM_SHARE * len(own.rows)}
    if len(common) > _ALL_MODELS + len(CLASSES):
        paired = {model for pair in PAIRS.values() for model in pair}
        common = {arm for arm in common if arm in CLASSES or arm in paired}
    return sorted(common)


def _expert_facts(expert: Expert, recipe: Recipe) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": expert.name, "arms": list(expert.arms), "kernel": expert.kernel is not None, "recipe": recipe.name
    }  # fmt: skip
    if expert.kernel is not None:
        facts |= {"gamma": expert.kernel.gamma, "feature_weight": expert.kernel.feature_weight}
    return facts


def _put_scaling(parts: dict[str, npt.NDArray[Any]], name: str, scaling: Scaling) -> None:
    for key in ("vector_mean", "vector_scale", "feature_mean", "feature_scale"):
        parts[f"{name}.{key}"] = getattr(scaling, key).astype(np.float16)


def _length(corpus: Corpus, common: Scaling, tokens: Floats) -> Floats:
    if not len(corpus.rows):
        return np.zeros(1 + corpus.vectors.shape[1] + corpus.numbers.shape[1])
    return fit.length_weights(common, corpus.vectors, corpus.numbers, tokens, corpus.sets)


def _cross_fitted(
    corpus: Corpus, version: str, recipes: Mapping[str, Recipe], seed: int, folds: int, arms: Sequence[str]
) -> tuple[Floats, Floats]:
    """What heads of the other folds say of each row: [n, arms], NaN for arms that they lack; and length ratios [n]."""
    raw = np.full((len(corpus.rows), len(arms)), np.nan)
    ratio = np.ones(len(corpus.rows))
    fold = folds_of(corpus.rows, folds, seed)
    for each in range(folds):
        heads = _uncalibrated(corpus.where(fold != each), version, recipes, seed)
        asked = fold == each
        said, length, _ = heads.raw_rows(corpus.vectors[asked], corpus.numbers[asked])
        ratio[asked] = length
        for place, arm in enumerate(arms):
            if arm in heads.arms:
                raw[asked, place] = said[:, heads.arms.index(arm)]
    return raw, ratio


def _uncalibrated(corpus: Corpus, version: str, recipes: Mapping[str, Recipe], seed: int) -> Heads:
    return heads_from_bytes(train(corpus, version, recipes, seed, folds=0), "heads of a fold")


def _sample(
    corpus: Corpus,
    raw: Floats,
    ratio: Floats,
    platt: Matrix,
    arms: Sequence[str],
    classes: Sequence[str],
    seed: int,
) -> dict[str, npt.NDArray[Any]]:
    """Rows with outcomes of two classes or more, each set counting alike up to its size."""
    recorded = np.stack([corpus.quality(name) for name in classes], axis=1)
    usable = np.flatnonzero((~np.isnan(recorded)).sum(1) >= 2)
    rank = np.array(
        [
            hashlib.sha1(f"{seed} {corpus.rows[place].row_id}".encode(), usedforsecurity=False).hexdigest()
            for place in usable
        ]
    )
    sets = np.array(corpus.sets)[usable]
    most = _SAMPLE_ROWS // max(1, len(set(sets.tolist())))
    kept = np.sort(
        np.concatenate(
            [usable[sets == name][np.argsort(rank[sets == name])[:most]] for name in sorted(set(sets.tolist()))]
        )
    )
    columns = [list(arms).index(name) for name in classes]
    predicted = calibrated(raw[kept][:, columns].astype(np.float32), platt[columns])
    texts = [corpus.rows[place].text for place in kept]
    tokens = [estimate_tokens(len(text), sum("\uac00" <= char <= "\ud7a3" for char in text), 1, 0) for text in texts]
    return {
        "sample.predicted": predicted.astype(np.float16),
        "sample.recorded": recorded[kept].astype(np.float16),
        "sample.prompt_tokens": np.array(tokens, np.float32),
        "sample.length_ratio": ratio[kept].astype(np.float16),
    }


def _recipe_apgr(own: Corpus, recipe: Recipe, weak: str, strong: str, seed: int) -> float:
    fold = folds_of(own.rows, FOLDS, seed)
    predicted = np.zeros(len(own.rows))
    for each in range(FOLDS):
        asked = own.where(fold == each)
        predicted[fold == each] = _gain(own.where(fold != each), asked, recipe, weak, strong, seed)
    return apgr(curve(predicted, own.quality(strong) - own.quality(weak)))


def _gain(learn: Corpus, asked: Corpus, recipe: Recipe, weak: str, strong: str, seed: int) -> Floats:
    quality = {"gain": learn.quality(strong) - learn.quality(weak)}
    expert = fit.expert("gain", recipe, learn.vectors, learn.numbers, quality, seed)
    return np.asarray(expert_rows(expert, asked.vectors, asked.numbers)[:, 0], np.float64)


def _print_report(corpus: Corpus, raw: Floats, arms: Sequence[str]) -> None:
    """Cross-fitted figures of the whole mixture: what the heads are worth on rows that they did not see."""
    sets = np.array(corpus.sets)
    for name, (weak, strong) in PAIRS.items():
        rows = (sets == name) & ~np.isnan(corpus.quality(weak)) & ~np.isnan(corpus.quality(strong))
        if rows.any():
            columns = [_column(arms, arm) for arm in (weak, strong)]
            gain = raw[rows, columns[1]] - raw[rows, columns[0]]
            figure = apgr(curve(gain, (corpus.quality(strong) - corpus.quality(weak))[rows]))
            print(f"{name}/cross_fitted/apgr: {figure:.3f} (n={rows.sum()})")
    for name in CLASSES:
        quality, said = corpus.quality(name), raw[:, list(arms).index(name)]
        known = ~np.isnan(quality) & ~np.isnan(said)
        brier = float(np.mean((said[known] - quality[known]) ** 2))
        base = float(np.mean((quality[known].mean() - quality[known]) ** 2))
        mean = quality[known].mean()
        print(f"{name}: {known.sum()} rows, mean {mean:.3f}, squared error {brier:.4f} (the mean's {base:.4f})")


def _column(arms: Sequence[str], arm: str) -> int:
    return list(arms).index(arm if arm in arms else datasets.class_of(arm))


def _embedded(encoder: Encoder, version: str, texts: Sequence[str]) -> Matrix:
    """Vectors, each distinct text embedded once and kept from run to run."""
    file = Path(tempfile.gettempdir()) / f"tenth-router-vectors-{hashlib.sha256(version.encode()).hexdigest()[:12]}.npz"
    known: dict[str, Matrix] = {}
    if file.is_file():
        with np.load(file) as stored:
            known = dict(zip(stored["digests"].tolist(), stored["vectors"], strict=True))
    digests = [hashlib.sha256(text.encode("utf-8", "replace")).hexdigest() for text in texts]
    missing = {digest: text for digest, text in zip(digests, texts, strict=True) if digest not in known}
    waiting = sorted(missing, key=lambda digest: len(missing[digest]))
    for start in range(0, len(waiting), 512):
        block = waiting[start : start + 512]
        known.update(zip(block, encoder.encode([missing[digest] for digest in block]), strict=True))
        print(f"embedded {start + len(block)} of {len(waiting)}", flush=True)
    if missing:
        half = file.with_suffix(f".{os.getpid()}.npz")
        np.savez(half, digests=np.array(list(known)), vectors=np.stack(list(known.values())))
        half.replace(file)
    return np.stack([known[digest] for digest in digests]).astype(np.float32)


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    print(f"{path.name}: {len(content) / 1e3:.0f} kB, sha256 {hashlib.sha256(content).hexdigest()[:16]}")


if __name__ == "__main__":
    main()
