"""The sets are read as cases, answers are found as they should be, and fitting finds what made the labels."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest

from services.compressor import weights
from services.compressor.datasets import DISTRACTORS, Case, alone, answered, holds, normalised, read
from services.compressor.documents import prepare
from services.compressor.fit import labels, logistic
from services.compressor.ranking import Level
from services.compressor.retrieval import Harshness


def nq(folder: Path, rows: int) -> Path:
    (folder / "compressor").mkdir()
    with gzip.open(folder / "compressor" / "nq_gold_passages.jsonl.gz", "wt", encoding="utf-8") as out:
        for number in range(rows):
            row = {
                "id": f"nq/{number}",
                "question": f"who founded the city number {number}",
                "answers": [f"Founder {number}"],
                "gold_title": f"City {number}",
                "gold_text": f"The city number {number} is old. It was founded by Founder {number}.",
            }
            out.write(json.dumps(row) + "\n")
    return folder


def test_a_case_has_its_gold_passage_among_nine_others(tmp_path: Path) -> None:
    cases = read(nq(tmp_path, 15), "nq_gold_passages")
    assert len(cases) == 15
    for case in cases:
        assert len(case.chunks) == DISTRACTORS + 1
        assert [holds(case.chunks[at], case.answers) for at in case.gold] == [True]
    assert cases == read(tmp_path, "nq_gold_passages")
    assert len({case.gold for case in cases}) > 1
    assert {case.training for case in cases} == {True, False}
    assert alone(cases[0]).chunks == (cases[0].chunks[cases[0].gold[0]],)


@pytest.mark.parametrize(
    ("text", "answers", "found"),
    [
        ("It opened on May 18, 2018.", ["may 18 2018"], True),
        ("The Beatles sang.", ["Beatles"], True),
        ("It has 14 rooms.", ["4"], False),
        ("초대 국무장관직을 맡았다.", ["국무장관"], True),
        ("no answer here", ["", "?"], False),
    ],
)
def test_answers_are_found_normalised(text: str, answers: list[str], found: bool) -> None:
    assert holds(text, answers) is found
    assert normalised(text) == normalised(normalised(text))


TWO_HOPS = Case(
    id="1",
    group="g",
    question="q",
    earlier=(),
    chunks=("Town\nThe town has 6,924 people. It is old.", "Other\nNothing.", "Road\nIt is long. It ends in Town."),
    gold=(0, 2),
    answers=("6,924",),
)


@pytest.mark.parametrize(
    ("kept", "good"),
    [
        ({0: "Town\nThe town has 6,924 people.", 2: "Road\nIt is long."}, True),
        ({0: "Town\nIt is old.", 2: "Road\nIt ends in Town."}, False),
        ({0: "Town\nThe town has 6,924 people."}, False),
        ({0: "Town\nThe town has 6,924 people.", 2: "Road"}, False),
        ({}, False),
    ],
)
def test_every_gold_chunk_must_leave_what_is_needed(kept: dict[int, str], good: bool) -> None:
    assert answered(TWO_HOPS, kept) is good


def test_labels_are_the_answer_and_the_step_to_it() -> None:
    chunks, units = labels(TWO_HOPS, [prepare(text, len) for text in TWO_HOPS.chunks])
    assert chunks.tolist() == [1, 0, 1]
    assert units.tolist() == [0, 1, 0, 0, 0, 0, 0, 1]


def test_a_logistic_function_finds_its_weights_again() -> None:
    random = np.random.default_rng(1)
    rows = np.column_stack([np.ones(4_000), random.normal(size=(4_000, 2)), np.zeros(4_000)])
    chance = 1 / (1 + np.exp(-(rows @ np.array([-0.5, 2.0, -1.0, 0.0]))))
    drawn = (random.random(4_000) < chance).astype(float)
    found = logistic(rows, drawn)
    assert found == pytest.approx([-0.5, 2.0, -1.0, 0.0], abs=0.2)
    assert found[3] == 0
    assert (found == logistic(rows, drawn)).all()


def test_the_file_of_weights_is_read_as_written(tmp_path: Path) -> None:
    fitted = weights.load()
    path = tmp_path / "ranking.json"
    path.write_text(weights.dump(fitted, {"seed": 7}), "utf-8")
    assert weights.load(path) == fitted
    assert fitted.thresholds["ko", Level.CHUNKS, Harshness.SAFE] > 0
    path.write_text('{"fitted": {"en": {"words": {}}}}', "utf-8")
    with pytest.raises(ValueError, match="does not hold fitted weights"):
        weights.load(path)
