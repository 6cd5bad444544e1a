"""Token statistics and the isotonic map: what they say, and what log probabilities that say nothing come to."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.router.confidence import (
    Certainty,
    Confidence,
    ConfidenceMap,
    Token,
    certainty_of,
    read_confidence,
)
from services.router.train_confidence import DEFAULT_MAP, auc, calibration_error, fit, is_right

NAN, INFINITY = math.nan, math.inf
MARGIN_MAP = ConfidenceMap("mean_margin", (0.2, 0.8), (0.1, 0.9))


def token(chance: float, *others: float) -> Token:
    """A chosen token of that probability, and alternatives of others."""
    ranked = sorted([("a", chance), *((f"b{index}", other) for index, other in enumerate(others))], key=lambda x: -x[1])
    return Token("a", math.log(chance), [(text, math.log(value)) for text, value in ranked])


def test_the_statistics_of_an_answer() -> None:
    found = certainty_of([token(0.8, 0.1), token(0.5, 0.4)])
    assert found is not None
    assert found.mean_margin == pytest.approx((0.7 + 0.1) / 2)
    assert found.min_margin == pytest.approx(0.1)
    assert found.mean_logprob == pytest.approx((math.log(0.8) + math.log(0.5)) / 2)
    assert found.token_count == 2


def test_a_drawn_token_that_was_not_the_likeliest_has_a_negative_margin() -> None:
    found = certainty_of([token(0.2, 0.7)])
    assert found is not None
    assert found.min_margin == pytest.approx(-0.5)


def test_without_a_listed_rival_it_has_what_is_left() -> None:
    for alone in (Token("a", math.log(0.7)), Token("a", math.log(0.7), [("a", math.log(0.7))])):
        found = certainty_of([alone])
        assert found is not None
        assert found.min_margin == pytest.approx(0.7 - 0.3)


def test_an_alternative_of_the_same_text_is_still_a_rival() -> None:
    """Two tokens may look alike (pieces of one character): only the first is the chosen one itself."""
    found = certainty_of([Token("�", math.log(0.5), [("�", math.log(0.5)), ("�", math.log(0.4))])])
    assert found is not None
    assert found.min_margin == pytest.approx(0.1)


@pytest.mark.parametrize(
    "tokens",
    [
        [],
        [Token("a", NAN)],
        [token(0.9), Token("a", NAN)],
        [Token("a", -INFINITY)],
        [Token("a", INFINITY)],
        [Token("a", 0.5)],
        [Token("a", -0.1, [("a", -0.1), ("b", NAN)])],
    ],
    ids=["none", "nan", "nan later", "impossible", "infinite", "above 0", "nan rival"],
)
def test_what_says_nothing_is_no_confidence(tokens: list[Token]) -> None:
    assert certainty_of(tokens) is None
    assert Confidence({}, MARGIN_MAP).of(tokens) == 0.0


def test_impossible_alternatives_and_rounding_are_fine() -> None:
    found = certainty_of([Token("a", 1e-6, [("a", 1e-6), ("b", -INFINITY), ("c", -9999.0)])])
    assert found is not None
    assert found.min_margin == pytest.approx(1.0)


@pytest.mark.parametrize(("margin", "expected"), [(-1.0, 0.1), (0.2, 0.1), (0.5, 0.5), (0.8, 0.9), (1.0, 0.9)])
def test_the_map_is_linear_between_its_points_and_flat_beyond(margin: float, expected: float) -> None:
    assert MARGIN_MAP.probability(Certainty(-1.0, margin, 0.0, 1)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("statistic", "values", "probabilities"),
    [
        ("entropy", (0.0,), (0.5,)),
        ("mean_margin", (), ()),
        ("mean_margin", (0.1, 0.1), (0.1, 0.2)),
        ("mean_margin", (0.1, 0.2), (0.2, 0.1)),
        ("mean_margin", (0.1, 0.2), (0.2, 1.1)),
        ("mean_margin", (0.1,), (0.2, 0.3)),
        ("mean_margin", (0.1, NAN), (0.2, 0.3)),
        ("mean_margin", (0.1, 0.2), (0.2, NAN)),
    ],
)
def test_a_map_that_is_none_is_refused(
    statistic: str, values: tuple[float, ...], probabilities: tuple[float, ...]
) -> None:
    with pytest.raises(ValueError, match=r".+"):
        ConfidenceMap(statistic, values, probabilities)


def test_the_first_known_model_has_the_map() -> None:
    low = ConfidenceMap("mean_margin", (0.0,), (0.2,))
    known = Confidence({"small": low}, MARGIN_MAP)
    sure = [token(0.99, 0.001)]
    assert known.of(sure, "small") == known.of(sure, "new", "small") == 0.2
    assert known.of(sure, "new", "") == 0.9


def test_the_shipped_weights() -> None:
    shipped = read_confidence()
    assert shipped.default == DEFAULT_MAP
    fitted = shipped.maps["smollm2-135m"]
    # What was measured: the model is wrong often, and how sure it is says a little about when.
    assert 0.0 < fitted.probabilities[0] < 0.35
    assert 0.5 < fitted.probabilities[-1] < 0.9


def test_no_model_without_a_fit_is_ever_taken_to_be_certain() -> None:
    assert max(read_confidence().default.probabilities) <= 0.9


@pytest.mark.parametrize("text", ["[]", "{}", '{"maps": [], "default": {}}', "no json"])
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "weights.json").write_text(text)
    with pytest.raises(ValueError, match=r".+"):
        read_confidence(tmp_path / "weights.json")


@given(st.lists(st.tuples(st.floats(-3, 0), st.booleans()), min_size=10, max_size=200))
def test_a_fit_is_a_map_and_promises_neither_0_nor_1(rows: list[tuple[float, bool]]) -> None:
    values, right = np.array([value for value, _ in rows]), np.array([float(good) for _, good in rows])
    fitted = fit("mean_logprob", values, right)
    assert 0.0 < fitted.probabilities[0] <= fitted.probabilities[-1] < 1.0


def test_a_fit_finds_the_step() -> None:
    values = np.linspace(0.0, 1.0, 400)
    right = (values > 0.6).astype(float)
    fitted = fit("mean_margin", values, right)
    assert fitted.probability(Certainty(0, 0.3, 0, 1)) < 0.1
    assert fitted.probability(Certainty(0, 0.9, 0, 1)) > 0.9
    assert auc(values, right) == 1.0
    assert calibration_error(right, right) == 0.0
    assert math.isnan(auc(values, np.ones(400)))


@pytest.mark.parametrize(
    ("answer", "golds", "right"),
    [
        ("It was released on May 18, 2018.", ["may 18 2018"], True),
        ("The Beatles", ["Beatles"], True),
        ("In 20185.", ["2018"], False),
        ("No idea.", ["", "a"], False),
    ],
)
def test_what_counts_as_right(answer: str, golds: list[str], right: bool) -> None:
    assert is_right(answer, golds) is right
