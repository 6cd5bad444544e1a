from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import json_format

from services.router import refit
from services.router.catalog import Tier
from services.router.decision import Embedding, Exploration
from services.router.outcome_messages import outcome_message
from services.router.outcomes import Completion, Feedback, Outcome, RecordedCandidate, ScoreSource
from services.router.refit import FloatMatrix, FloatVector, compare, held_out, main, read_log, rows_of

TRUE_WEIGHTS = np.array([3.0, -2.0, 0.0, 1.0, 0.0])


@dataclass
class Line:
    """A straight line, clipped."""

    weights: FloatVector

    def predict(self, inputs: FloatMatrix) -> FloatVector:
        design = np.c_[inputs, np.ones(len(inputs))]
        clipped: FloatVector = np.clip(design @ self.weights, 0.01, 0.99)
        return clipped


@dataclass
class Ridge:
    """Weighted ridge regression; keeps what it was asked to fit."""

    asked: list[tuple[FloatMatrix, FloatVector, FloatVector, object]] = field(default_factory=list)

    def fit_arm(self, inputs: FloatMatrix, targets: FloatVector, weights: FloatVector, prior: object) -> Line:
        self.asked.append((inputs, targets, weights, prior))
        design = np.c_[inputs, np.ones(len(inputs))]
        weighted = design * weights[:, None]
        return Line(np.linalg.solve(weighted.T @ design + np.eye(design.shape[1]), weighted.T @ targets))


@dataclass
class FakeHeads:
    """Heads whose file is JSON of the arms' weights."""

    arms: dict[str, Line]

    def inputs(
        self, features: Mapping[str, float], language: str, embedding: Embedding | None
    ) -> np.ndarray[tuple[int], np.dtype[np.float64]] | None:
        if embedding is None or embedding.version != "e5@2":
            return None
        return np.concatenate([[features["one"]], embedding.vector])

    def arm(self, model: str) -> Line | None:
        return self.arms.get(model)

    def with_arms(self, arms: Mapping[str, object]) -> FakeHeads:
        return FakeHeads({**self.arms, **arms})  # type: ignore[dict-item]  # All arms here are lines.

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({name: list(arm.weights) for name, arm in self.arms.items()}))


def load(path: Path) -> FakeHeads:
    return FakeHeads({name: Line(np.array(weights)) for name, weights in json.loads(path.read_text()).items()})


def traffic(count: int, model: str = "cheap", seed: int = 0, noise: bool = False) -> list[Outcome]:
    generator = np.random.default_rng(seed)
    made = []
    for number in range(count):
        inputs = generator.normal(size=4)
        chance = 0.5 if noise else 1 / (1 + np.exp(-inputs @ TRUE_WEIGHTS[:4]))
        made.append(
            Outcome(
                "", f"{model}-{number}", 0.0, model=model, tier=Tier.SIMPLE,
                features={"one": float(inputs[0])}, embedding=Embedding(inputs[1:].astype(np.float32), "e5@2"),
                candidates=(RecordedCandidate(model, Tier.SIMPLE, 0.5, 1),), propensity=0.985,
                feedback=Feedback(float(generator.random() < chance), ScoreSource.CALLER),
            )
        )  # fmt: skip
    return made


@dataclass
class Files:
    folder: Path

    def run(self, outcomes: list[Outcome], old: Mapping[str, list[float]], *more: str) -> int:
        lines = (json.dumps(json_format.MessageToDict(outcome_message(each))) for each in outcomes)
        (self.folder / "log.jsonl").write_text("\n".join(lines) + "\n")
        (self.folder / "heads.json").write_text(json.dumps(old))
        paths = [f"--{name}={self.folder / file}" for name, file in self.names.items()]
        return main([*paths, *more], load, Ridge())

    names: Mapping[str, str] = field(
        default_factory=lambda: {"log": "log.jsonl", "heads": "heads.json", "out": "new.json"}
    )

    @property
    def written(self) -> dict[str, list[float]] | None:
        path = self.folder / "new.json"
        return json.loads(path.read_text()) if path.exists() else None


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


KNOWS_NOTHING = [0.0, 0.0, 0.0, 0.0, 0.5]


def test_an_arm_that_is_better_is_taken_and_the_others_stay(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    old = {"cheap": KNOWS_NOTHING, "strong": [0.0, 0.0, 0.0, 0.0, 0.9]}
    assert files.run([*traffic(600), *traffic(60, "strong")], old) == 0
    assert files.written is not None
    assert files.written["strong"] == old["strong"]
    assert files.written["cheap"][0] > 0.2 > -0.1 > files.written["cheap"][1]
    said = capsys.readouterr().out
    assert "cheap: accepted: it is better than the one in use (" in said
    assert "strong: refused: " in said
    assert "at least 100 are needed" in said
    assert "1 of 2 arms are new" in said


@pytest.mark.parametrize("seed", range(8))
def test_a_refit_that_is_worse_is_refused(files: Files, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    good = Ridge()
    rows = rows_of(traffic(5000, seed=100), FakeHeads({}))["cheap"]
    best = list(good.fit_arm(rows.inputs, rows.targets, rows.weights, None).weights)
    assert files.run(traffic(220, seed=seed), {"cheap": best}) == 1
    assert files.written is None
    assert "not surely better" in capsys.readouterr().out


def test_noise_teaches_nothing(files: Files) -> None:
    passed = [files.run(traffic(300, seed=seed, noise=True), {"cheap": KNOWS_NOTHING}) == 0 for seed in range(20)]
    assert sum(passed) <= 2


def test_one_sided_feedback_is_refused(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    import dataclasses

    happy = [dataclasses.replace(each, feedback=Feedback(1.0, ScoreSource.CALLER)) for each in traffic(600)]
    assert files.run(happy, {"cheap": KNOWS_NOTHING}) == 1
    assert "too one-sided" in capsys.readouterr().out


def test_a_model_without_an_arm_is_measured_against_what_was_predicted(files: Files) -> None:
    assert files.run(traffic(600), {}) == 0
    assert files.written is not None
    assert set(files.written) == {"cheap"}


def test_only_what_was_asked_for(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert files.run([*traffic(600), *traffic(600, "strong")], {}, "--model", "strong", "--model", "none") == 0
    assert files.written is not None
    assert set(files.written) == {"strong"}
    assert "none: refused: no feedback" in capsys.readouterr().out


def test_rows_count_by_the_inverse_of_their_propensity_up_to_a_clip() -> None:
    import dataclasses

    first, second, third, fourth, fifth = traffic(5)
    explored = dataclasses.replace(first, propensity=0.1, exploration=Exploration.EXPLORE)
    rare = dataclasses.replace(second, propensity=0.001, exploration=Exploration.EXPLORE)
    refused = dataclasses.replace(
        third, feedback=None, propensity=1.0, completion=Completion("strong", escalated_from="cheap")
    )
    unread = dataclasses.replace(fourth, embedding=Embedding(np.zeros(3, np.float32), "other"))
    silent = dataclasses.replace(fifth, feedback=None)
    rows = rows_of([first, explored, rare, refused, unread, silent], FakeHeads({}))["cheap"]
    assert list(rows.weights) == [10.0, 20.0, 0.5], "the last outcome of a request counts"
    assert list(rows.judged) == [True, True, False]
    assert list(rows.targets) == [first.feedback.score, second.feedback.score, 0.0]  # type: ignore[union-attr]


def test_rows_held_out_are_not_fitted() -> None:
    fitter = Ridge()
    rows = rows_of(traffic(600), FakeHeads({}))
    (verdict,) = refit.refit(rows, FakeHeads({}), fitter)
    ((inputs, _, _, prior),) = fitter.asked
    assert prior is None
    kept_aside = {tuple(row) for row in rows["cheap"].inputs[rows["cheap"].held_out]}
    assert len(inputs) == verdict.training_count
    assert kept_aside.isdisjoint({tuple(row) for row in inputs})
    assert 0.25 < verdict.held_out_count / 600 < 0.35


def test_the_split_is_always_the_same() -> None:
    ids = [f"r{number}" for number in range(5000)]
    assert [held_out(each) for each in ids] == [held_out(each) for each in ids]
    assert sum(map(held_out, ids)) / 5000 == pytest.approx(0.3, abs=0.02)


def test_the_measures_by_hand() -> None:
    targets, weights = np.array([1.0, 0.0]), np.array([3.0, 1.0])
    measured = compare(targets, weights, np.array([0.5, 0.5]), np.array([0.9, 0.1]))
    assert measured.old_brier == pytest.approx(0.25)
    assert measured.new_brier == pytest.approx(0.01)
    assert measured.new_log_loss == pytest.approx(-np.log(0.9))
    assert (measured.brier_confidence, measured.log_loss_confidence) == (1.0, 1.0)
    same = compare(targets, weights, np.array([0.5, 0.5]), np.array([0.5, 0.5]))
    assert not same.better, "no better is not better"
    # Better by the one measure and worse by the other is refused.
    sure = compare(np.array([1.0] * 99 + [0.0]), np.ones(100), np.full(100, 0.9), np.full(100, 1.0 - 1e-9))
    assert sure.new_brier < sure.old_brier
    assert sure.new_log_loss > 0.9 * sure.old_log_loss
    assert not sure.better


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "log:2: "),
        ('{"requestId": "r", "color": 1}', "log:2: .*color"),
        ('{"model": "m"}', "log:2: outcome.request_id: "),
        ('{"requestId": "r", "score": 7}', "log:2: outcome.score: "),
    ],
)
def test_a_bad_line_is_named(line: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        list(read_log(['{"requestId": "r", "model": "m"}', line], "log"))


def test_a_missing_file_is_said(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"--{name}={files.folder / 'none'}" for name in ("log", "heads", "out")], load, Ridge()) == 1
    assert "refit: " in capsys.readouterr().err
