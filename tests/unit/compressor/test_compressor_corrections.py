"""Correction factors follow what is billed, slowly and within bounds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.compressor.correction_file import CorrectionFile
from services.compressor.corrections import LEAST_FACTOR, MOST_FACTOR, CorrectionRules, Corrections
from services.compressor.settled import SettledUsage


def taught(*ratios: float, model: str = "m") -> Corrections:
    result = Corrections()
    for ratio in ratios:
        result.observe(model, 1000, round(1000 * ratio))
    return result


@pytest.mark.parametrize(
    ("ratios", "factor"),
    [
        ([], 1.0),
        ([1.2] * 19, 1.0),
        ([1.2] * 20, 1.2),
        ([1.01] * 30, 1.0),  # Not far enough from 1.
        ([3.0] * 30, MOST_FACTOR),
        ([0.3] * 30, LEAST_FACTOR),
        ([1.2] * 30 + [3.5] * 20, 1.2),  # Pictures among them.
        ([9.0] * 50, 1.0),  # Another prompt.
        ([1.2] * 64 + [1.4] * 64, 1.4),  # The window moves on.
        ([1.2] * 30 + [1.21] * 64, 1.2),
    ],
)
def test_the_factor(ratios: list[float], factor: float) -> None:
    assert taught(*ratios).factor("m") == factor
    assert taught(*ratios).factor("other") == 1.0


@pytest.mark.parametrize(("counted", "billed"), [(0, 10), (10, 12), (-5, 5), (1000, 0), (1000, -1)])
def test_counts_that_make_no_sense_teach_nothing(counted: int, billed: int) -> None:
    corrections = Corrections(CorrectionRules(least_samples=1))
    assert not corrections.observe("m", counted, billed)
    assert corrections.factor("m") == 1.0


def test_it_says_when_a_factor_changed() -> None:
    corrections = Corrections()
    assert [corrections.observe("m", 1000, 1300) for _ in range(25)] == [False] * 19 + [True] + [False] * 5


def test_models_are_bounded() -> None:
    corrections = Corrections(CorrectionRules(least_samples=1, most_models=3))
    for model in "abcd":
        corrections.observe(model, 1000, 1300)
    assert [corrections.factor(model) for model in "abcd"] == [1.0, 1.3, 1.3, 1.3]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(-5, 10**6), st.integers(-5, 10**7)), max_size=80))
def test_factors_are_in_bounds_and_kept(samples: list[tuple[str, int, int]]) -> None:
    corrections = Corrections(CorrectionRules(least_samples=2))
    for sample in samples:
        corrections.observe(*sample)
    again = Corrections.from_json(corrections.to_json(), CorrectionRules(least_samples=2))
    for model in "ab":
        assert LEAST_FACTOR <= corrections.factor(model) <= MOST_FACTOR
        assert again.factor(model) == corrections.factor(model)
    assert again.to_json() == corrections.to_json()


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "[]", "{}", '{"version":2,"models":{}}', '{"version":1}', '{"version":1,"models":{"m":1}}'),
        *(json.dumps({"version": 1, "models": {"m": {"factor": factor, "ratios": []}}}) for factor in (9, None, True)),
        *(
            f'{{"version":1,"models":{{"m":{{"factor":1,"ratios":{ratios}}}}}}}'
            for ratios in ("null", '["x"]', "[99]", "[NaN]")
        ),
    ],
)
def test_damaged_files_are_left(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r".*"):
        Corrections.from_json(text)
    (tmp_path / "c.json").write_text(text)
    assert CorrectionFile(tmp_path / "c.json").load().factor("m") == 1.0


def test_a_file_keeps_them(tmp_path: Path) -> None:
    file = CorrectionFile(tmp_path / "new" / "c.json")
    assert file.load().factor("m") == 1.0
    file.save(taught(*[1.3] * 20).to_json())
    file.save(taught(*[1.4] * 20).to_json())
    assert file.load().factor("m") == 1.4
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["c.json"]


class Kept:
    def __init__(self, failing: bool = False) -> None:
        self.texts: list[str] = []
        self.failing = failing

    def save(self, text: str) -> None:
        if self.failing:
            raise OSError("disk full")
        self.texts.append(text)


async def test_settled_usage_is_learned_and_kept_once() -> None:
    corrections, store = Corrections(), Kept()
    usage = SettledUsage(corrections, store)
    for _ in range(30):
        await usage.learn("m", 1000, 1250, 1.0)
    assert corrections.factor("m") == 1.25
    assert len(store.texts) == 1
    assert Corrections.from_json(store.texts[0]).factor("m") == 1.25


async def test_a_corrected_count_is_not_corrected_twice() -> None:
    corrections = Corrections()
    usage = SettledUsage(corrections, Kept(failing=True))  # A failing store is logged.
    for _ in range(200):
        told = round(1000 * corrections.factor("m"))
        await usage.learn("m", told, 1250)
    assert corrections.factor("m") == 1.25
    # Calls in flight say which factor their count had.
    for _ in range(64):
        await usage.learn("m", 1000, 1250, 1.0)
    assert corrections.factor("m") == 1.25
