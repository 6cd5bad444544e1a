"""A log of real traffic to new heads and back: the command's parts with real heads and real files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import json_format

from services.router import refit, traffic
from services.router.catalog import Tier
from services.router.decision import Embedding
from services.router.features import Features
from services.router.heads import Heads, Matrix, heads_from_bytes
from services.router.outcome_messages import outcome_message
from services.router.outcomes import Feedback, Outcome, RecordedCandidate, ScoreSource
from tests.unit.router.router_tiny_heads import EMBEDDER, LARGE, SMALL, features, heads_content, questions

MODEL = "our-mini"
Chance = Callable[[str, Matrix], "np.typing.NDArray[np.float64]"]


def bad_at_code(family: str, vectors: Matrix) -> np.typing.NDArray[np.float64]:
    """Good at chat as its class is, and hopeless at code, which its class is only half the time."""
    return np.full(len(vectors), 0.95 if family == "chat" else 0.1)


def as_predicted(family: str, vectors: Matrix) -> np.typing.NDArray[np.float64]:
    heads = heads_from_bytes(heads_content(), "tiny")
    found = features(len(vectors), 50, float(family == "code"))
    return heads.predict_many(vectors, found)[:, heads.arms.index("class:small")].astype(np.float64)


def log_of(chance: Chance, path: Path, count: int = 400, seed: int = 5) -> Path:
    """A log of that many outcomes of either family, as ``tenth router export`` writes it."""
    drawn = np.random.default_rng(seed)
    lines = []
    for family in ("chat", "code"):
        vectors, found = questions(family, count, seed + len(family)), features(count, 50, float(family == "code"))
        for number, (vector, seen, good) in enumerate(
            zip(vectors, found, drawn.random(count) < chance(family, vectors), strict=True)
        ):
            outcome = Outcome(
                "", f"{family}-{seed}-{number}", 1.0, model=MODEL, tier=Tier.SIMPLE, features=seen.numbers(),
                language="en", embedding=Embedding(vector, EMBEDDER), propensity=0.985,
                candidates=(RecordedCandidate(MODEL, Tier.SIMPLE, 0.5, 1),),
                feedback=Feedback(float(good), ScoreSource.CALLER),
            )  # fmt: skip
            lines.append(json.dumps(json_format.MessageToDict(outcome_message(outcome))))
    path.write_text("\n".join(lines) + "\n")
    return path


class Files:
    def __init__(self, folder: Path) -> None:
        self.folder, self.heads, self.out = folder, folder / "heads.npz", folder / "new.npz"
        self.heads.write_bytes(heads_content())

    def run(self, chance: Chance, *more: str, heads: Path | None = None, seed: int = 5) -> int:
        log = log_of(chance, self.folder / "log.jsonl", seed=seed)
        paths = (f"--log={log}", f"--heads={heads or self.heads}", f"--out={self.out}")
        return refit.main([*paths, *more], traffic.load_heads, traffic)


@pytest.fixture
def files(tmp_path: Path) -> Files:
    return Files(tmp_path)


def said(heads: Heads, family: str, arm: str, seed: int = 77) -> np.typing.NDArray[np.float32]:
    vectors, found = questions(family, 60, seed), features(60, seed, float(family == "code"))
    return heads.predict_many(vectors, found)[:, heads.arms.index(arm)]


def test_a_model_that_is_bad_at_code_is_found_out_and_nothing_else_changes(
    files: Files, capsys: pytest.CaptureFixture[str]
) -> None:
    assert files.run(bad_at_code) == 0
    assert f"{MODEL}: accepted: " in capsys.readouterr().out
    old, new = Heads.load(files.heads), Heads.load(files.out)
    assert new.arms == (*old.arms, MODEL)
    assert new.class_of[MODEL] == "class:small"
    before = said(old, "code", "class:small")
    after = said(new, "code", MODEL)
    assert before.mean() > 0.4
    assert after.mean() < 0.25, "0.1 by the log, shrunk towards what was known"
    assert np.abs(said(new, "chat", MODEL) - said(old, "chat", "class:small")).mean() < 0.04, "chat is as it was"
    beyond = np.abs(said(new, "far", MODEL) - said(old, "far", "class:small"))
    assert np.median(beyond) < 0.005, "and what nobody asked"
    for arm in old.arms:
        for family in ("chat", "code", "far"):
            assert np.array_equal(said(new, family, arm), said(old, family, arm)), "no other arm knows of the log"
    assert (new.embedder_version, new.gate.far, new.feature_names) == (
        old.embedder_version, old.gate.far, old.feature_names
    )  # fmt: skip
    assert np.array_equal(new.sample.predicted, old.sample.predicted)


def test_one_question_and_many_are_predicted_alike_by_refitted_heads(files: Files) -> None:
    assert files.run(bad_at_code) == 0
    heads = Heads.load(files.out)
    vectors, found = questions("code", 20, 3), features(20, 3, 1.0)
    alone = [list(heads.predict(vector, seen).success.values()) for vector, seen in zip(vectors, found, strict=True)]
    assert np.abs(heads.predict_many(vectors, found) - np.array(alone)).max() < 1e-4


def test_the_same_log_gives_the_same_bytes(files: Files) -> None:
    assert files.run(bad_at_code) == 0
    first = files.out.read_bytes()
    assert files.run(bad_at_code) == 0
    assert files.out.read_bytes() == first


def test_a_second_refit_takes_the_place_of_the_first(files: Files) -> None:
    assert files.run(bad_at_code) == 0
    once = files.folder / "once.npz"
    once.write_bytes(files.out.read_bytes())
    assert files.run(lambda family, vectors: np.full(len(vectors), 0.9), heads=once, seed=6) == 0
    heads = Heads.load(files.out)
    assert [expert.name for expert in heads.experts] == ["chat", "code", f"traffic:{MODEL}"]
    assert said(Heads.load(once), "code", MODEL).mean() < 0.25 < 0.6 < said(heads, "code", MODEL).mean()


@pytest.mark.parametrize("seed", [11, 12, 13])
def test_a_log_that_says_what_was_known_is_refused(files: Files, seed: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert files.run(as_predicted, seed=seed) == 1
    assert not files.out.exists()
    assert "nothing is written" in capsys.readouterr().out


def test_without_the_embedder_s_vectors_nothing_is_learnt(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    log = log_of(bad_at_code, files.folder / "log.jsonl", 60)
    log.write_text(log.read_text().replace(EMBEDDER, "other@1"))
    paths = (f"--log={log}", f"--heads={files.heads}", f"--out={files.out}")
    assert refit.main(paths, traffic.load_heads, traffic) == 1
    assert not files.out.exists()
    assert "nothing is written" in capsys.readouterr().out


def test_a_catalogue_says_which_arm_stands_for_a_model(files: Files) -> None:
    catalog = files.folder / "catalog.yaml"
    catalog.write_text(
        "providers: { local: { backend: vllm } }\nmodels:\n"
        f"  {MODEL}:\n    provider: local\n    provider_model: x\n    tier: simple\n    quality_like: {LARGE}\n"
        "    context_window_tokens: 8000\n    max_output_tokens: 2048\n    tokenizer: local\n"
    )
    assert files.run(bad_at_code, f"--catalog={catalog}") == 0
    heads = Heads.load(files.out)
    assert heads.class_of[MODEL] == "class:large"
    assert np.median(np.abs(said(heads, "far", MODEL) - said(heads, "far", LARGE))) < 0.005


def test_broken_heads_are_named(files: Files, capsys: pytest.CaptureFixture[str]) -> None:
    files.heads.write_bytes(b"PK nothing")
    assert files.run(bad_at_code) == 1
    assert str(files.heads) in capsys.readouterr().err
    assert not files.out.exists()


def test_an_arm_in_the_file_is_its_own_prior(files: Files) -> None:
    heads = traffic.load_heads(files.heads)
    own, other = heads.arm(SMALL), heads.arm("nobody")
    assert own is not None
    assert own.name == SMALL
    assert other is None


def test_the_module_is_a_command(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    import runpy

    log = log_of(bad_at_code, files.folder / "log.jsonl")
    arguments = ["refit", f"--log={log}", f"--heads={files.heads}", f"--out={files.out}"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.delitem(sys.modules, "services.router.refit")
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("services.router.refit", run_name="__main__")
    assert ended.value.code == 0
    assert MODEL in Heads.load(files.out).arms


def test_features_that_are_no_numbers_are_left_out(files: Files) -> None:
    heads = traffic.load_heads(files.heads)
    point = questions("chat", 1, 1)[0]
    whole = Embedding(point, EMBEDDER)
    assert isinstance(whole, Embedding)
    assert heads.inputs({"length": 0.5}, "en", whole) is not None
    assert heads.inputs({"length": float("nan")}, "en", whole) is None
    assert heads.inputs({}, "en", Embedding(point[:5], EMBEDDER)) is None
    assert heads.inputs({}, "en", None) is None
    assert Features.__dataclass_fields__["language"].metadata["text"]
