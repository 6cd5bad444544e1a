"""Offline: ``python -m services.router.refit --log FILE --heads FILE --out FILE`` fits heads anew from real traffic.

The log is what ``tenth router export`` wrote. Each model with enough feedback gets a new arm, fitted on a part of its
rows; on the rest, which request ids choose by hash, the new arm must beat the old one. An arm that does not is
refused, and when none is left nothing is written and the exit status is 1. No service takes a file by itself: a person
reads what was printed and puts the file where the router reads it.

Rows count by the inverse of their decision's propensity, clipped: a model that was only tried now and then is learnt
from as if it had been tried everywhere (Horvitz and Thompson, 1952).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt
from google.protobuf import json_format
from tenth.router.v1 import router_pb2

from mesh.errors import TenthError
from services.router.catalog import CLASS_OF_TIER, Catalog, parse_catalog
from services.router.decision import Embedding
from services.router.outcome_messages import outcome_of
from services.router.outcomes import Outcome, ScoreSource, evidence

FloatMatrix = npt.NDArray[np.float64]
FloatVector = npt.NDArray[np.float64]

MOST_WEIGHT = 20.0
"""Clip of the inverse propensity: an exploration of 1 in 1000 would else drown everything."""
HELD_OUT_SHARE = 0.3
LEAST_TRAINING = 100
LEAST_HELD_OUT = 50
LEAST_OF_EACH = 5
"""Good answers, and bad ones, that both parts need at least."""
CONFIDENCE = 0.9
"""Share of the bootstrap's resamples in which the new arm must be better, in both measures."""
_RESAMPLES = 2000
_CHUNK = 200
_EDGE = 1e-6


class Arm(Protocol):
    """What the heads know of one model."""

    def predict(self, inputs: FloatMatrix) -> FloatVector:
        """The probability of a good answer, by row."""
        ...


class Fitter(Protocol):
    """Fits one arm."""

    def fit_arm(self, inputs: FloatMatrix, targets: FloatVector, weights: FloatVector, prior: Arm | None) -> Arm:
        """An arm for scores of 0..1; ``prior`` is what was known before."""
        ...


class Heads(Protocol):
    """The trained heads of a file."""

    def inputs(
        self, features: Mapping[str, float], language: str, embedding: Embedding | None
    ) -> npt.NDArray[np.floating] | None:
        """The row of inputs of a question; None where these heads cannot read it, as with another embedder."""
        ...

    def arm(self, model: str) -> Arm | None:
        """The arm that answers for a model, its own or its class's."""
        ...

    def with_arms(self, arms: Mapping[str, Arm]) -> Self:
        """These heads with some models' arms put in their place."""
        ...

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        ...


@dataclass(frozen=True, slots=True)
class Rows:
    """What a log says of one model, row by row."""

    inputs: FloatMatrix
    targets: FloatVector
    weights: FloatVector
    predicted: FloatVector
    """What was predicted when it was decided, where the heads have no arm to compare with."""
    held_out: npt.NDArray[np.bool_]
    judged: npt.NDArray[np.bool_]
    """False where a cascade's check refused the answer: to learn from, but no truth to measure by."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One arm on the rows held out; lower is better. Shares of resamples in which the new one is better."""

    old_brier: float
    new_brier: float
    old_log_loss: float
    new_log_loss: float
    brier_confidence: float
    log_loss_confidence: float

    @property
    def better(self) -> bool:
        """True when the new arm passes."""
        return min(self.brier_confidence, self.log_loss_confidence) >= CONFIDENCE


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one model. ``arm`` is None where the old one stays, and ``reason`` says why."""

    model: str
    training_count: int
    held_out_count: int
    measured: Measured | None
    arm: Arm | None
    reason: str


def read_log(lines: Iterable[str], name: str) -> Iterator[Outcome]:
    """The outcomes of an export. Raises ValueError naming file and line."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            message = json_format.ParseDict(json.loads(line), router_pb2.Outcome())
            yield outcome_of(message, "", "outcome")
        except (json_format.ParseError, json.JSONDecodeError) as error:
            raise ValueError(f"{name}:{number}: {error}") from None
        except TenthError as error:
            raise ValueError(f"{name}:{number}: {error.field}: {error.message}") from None


def held_out(request_id: str, share: float = HELD_OUT_SHARE) -> bool:
    """True for that share of request ids, always the same ones."""
    return int.from_bytes(hashlib.sha256(request_id.encode()).digest()[:8], "big") < share * 2**64


def rows_of(outcomes: Iterable[Outcome], heads: Heads) -> dict[str, Rows]:
    """The rows by model. Of a request that stands twice in the log the last outcome counts."""
    found: dict[str, list[tuple[npt.NDArray[np.floating], float, float, float, bool, bool]]] = {}
    for outcome in {outcome.request_id: outcome for outcome in outcomes if outcome.model}.values():
        said = list(evidence(outcome))
        inputs = heads.inputs(outcome.features, outcome.language, outcome.embedding) if said else None
        if inputs is None:
            continue
        importance = min(MOST_WEIGHT, 1.0 / outcome.propensity)
        aside = held_out(outcome.request_id)
        for each in said:
            candidate = outcome.candidate(each.model)
            predicted = candidate.success_probability if candidate is not None else 0.5
            judged = each.source is not ScoreSource.ESCALATION
            row = (inputs, each.score, importance * each.weight, predicted, aside, judged)
            found.setdefault(each.model, []).append(row)
    return {
        model: Rows(
            inputs=np.stack([row[0] for row in rows]).astype(np.float64),
            targets=np.array([row[1] for row in rows]),
            weights=np.array([row[2] for row in rows]),
            predicted=np.array([row[3] for row in rows]),
            held_out=np.array([row[4] for row in rows]),
            judged=np.array([row[5] for row in rows]),
        )
        for model, rows in sorted(found.items())
    }


def refit(
    rows: Mapping[str, Rows], heads: Heads, fitter: Fitter, seed: int = 0, stands_for: Mapping[str, str] | None = None
) -> list[Verdict]:
    """Fit and judge each model. ``stands_for`` names the arm in use of models that have none of their own name."""
    others = stands_for or {}
    return [
        _refit_one(model, its, heads.arm(model) or heads.arm(others.get(model, "")), fitter, seed)
        for model, its in rows.items()
    ]


def arms_in_use(outcomes: Iterable[Outcome], catalog: Catalog | None) -> dict[str, str]:
    """By model: the arm that the catalogue says stands for it; without one, the class of its tier in the log."""
    found = {candidate.model: CLASS_OF_TIER[candidate.tier] for outcome in outcomes for candidate in outcome.candidates}
    return found | {model.name: model.arm for model in (catalog.models if catalog is not None else ())}


def compare(targets: FloatVector, weights: FloatVector, old: FloatVector, new: FloatVector, seed: int = 0) -> Measured:
    """Two predictions on the same rows, by the paired bootstrap (Efron and Tibshirani, 1993)."""
    old, new = np.clip(old, _EDGE, 1 - _EDGE), np.clip(new, _EDGE, 1 - _EDGE)
    losses = [(values - targets) ** 2 for values in (old, new)]
    losses += [-(targets * np.log(values) + (1 - targets) * np.log1p(-values)) for values in (old, new)]
    # The sign of a weighted mean's difference is that of the sum: dividing by the weights changes nothing.
    gains = np.stack([weights * (losses[0] - losses[1]), weights * (losses[2] - losses[3])])
    generator = np.random.default_rng(seed)
    better = np.zeros(2)
    for _ in range(0, _RESAMPLES, _CHUNK):
        drawn = generator.multinomial(len(targets), np.full(len(targets), 1 / len(targets)), _CHUNK)
        better += (gains @ drawn.T > 0).sum(axis=1)
    means = [float(np.average(loss, weights=weights)) for loss in losses]
    return Measured(
        old_brier=means[0],
        new_brier=means[1],
        old_log_loss=means[2],
        new_log_loss=means[3],
        brier_confidence=float(better[0] / _RESAMPLES),
        log_loss_confidence=float(better[1] / _RESAMPLES),
    )


def main(arguments: Sequence[str], load_heads: Callable[[Path], Heads], fitter: Fitter) -> int:
    """Run the command; 0 when a file was written."""
    parser = argparse.ArgumentParser(prog="python -m services.router.refit", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--log", type=Path, required=True, help="what `tenth router export` wrote")
    parser.add_argument("--heads", type=Path, required=True, help="the heads that are in use")
    parser.add_argument("--out", type=Path, required=True, help="where the new heads go")
    parser.add_argument("--catalog", type=Path, help="the catalogue in use, for its quality_like (default: by tier)")
    parser.add_argument("--model", action="append", default=[], help="only this one; may be repeated")
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default: %(default)s)")
    parsed = parser.parse_args(arguments)
    try:
        heads = load_heads(parsed.heads)
        with parsed.log.open(encoding="utf-8") as lines:
            outcomes = list(read_log(lines, str(parsed.log)))
        rows = rows_of(outcomes, heads)
        stands_for = arms_in_use(outcomes, _catalog(parsed.catalog))
    except (OSError, ValueError) as error:
        print(f"refit: {error}", file=sys.stderr)
        return 1
    wanted = {model: its for model, its in rows.items() if not parsed.model or model in parsed.model}
    for model in sorted(set(parsed.model) - wanted.keys()):
        print(f"{model}: refused: no feedback that these heads can read")
    verdicts = refit(wanted, heads, fitter, parsed.seed, stands_for)
    for verdict in verdicts:
        print(words(verdict))
    accepted = {verdict.model: verdict.arm for verdict in verdicts if verdict.arm is not None}
    if not accepted:
        print("nothing is written: no arm is better than the one in use")
        return 1
    heads.with_arms(accepted).save(parsed.out)
    print(f"{parsed.out}: {len(accepted)} of {len(verdicts)} arms are new; the others stay as they were")
    return 0


def words(verdict: Verdict) -> str:
    """A verdict for a person."""
    head = f"{verdict.model}: {'accepted' if verdict.arm is not None else 'refused'}: {verdict.reason}"
    counts = f"{verdict.training_count} rows to fit, {verdict.held_out_count} held out"
    if verdict.measured is None:
        return f"{head} ({counts})"
    found = verdict.measured
    return (
        f"{head} ({counts}); Brier score {found.old_brier:.4f} to {found.new_brier:.4f}, better in "
        f"{found.brier_confidence:.1%} of resamples; log loss {found.old_log_loss:.4f} to {found.new_log_loss:.4f}, "
        f"better in {found.log_loss_confidence:.1%}"
    )


def _catalog(path: Path | None) -> Catalog | None:
    return None if path is None else parse_catalog(path.read_text("utf-8"), str(path), datetime.now(UTC))


def _refit_one(model: str, rows: Rows, old: Arm | None, fitter: Fitter, seed: int) -> Verdict:
    training, aside = ~rows.held_out, rows.held_out & rows.judged
    counts = int(training.sum()), int(aside.sum())
    for part, count, least, name in (
        (training, counts[0], LEAST_TRAINING, "to fit"),
        (aside, counts[1], LEAST_HELD_OUT, "held out"),
    ):
        if count < least:
            return Verdict(model, *counts, None, None, f"{count} rows {name}, at least {least} are needed")
        good = int((rows.targets[part] >= 0.5).sum())
        if min(good, count - good) < LEAST_OF_EACH:
            return Verdict(model, *counts, None, None, f"{good} good answers of {count} {name}: too one-sided")
    arm = fitter.fit_arm(rows.inputs[training], rows.targets[training], rows.weights[training], old)
    before = old.predict(rows.inputs[aside]) if old is not None else rows.predicted[aside]
    measured = compare(rows.targets[aside], rows.weights[aside], before, arm.predict(rows.inputs[aside]), seed)
    if not measured.better:
        return Verdict(model, *counts, measured, None, "it is not surely better than the one in use")
    return Verdict(model, *counts, measured, arm, "it is better than the one in use")


if __name__ == "__main__":
    from importlib import import_module

    # By name: the heads and their fitter know this module's types, this module only their protocols.
    _traffic = import_module("services.router.traffic")
    raise SystemExit(main(sys.argv[1:], _traffic.load_heads, _traffic))
