"""Probabilities, risk curves, and the stored form of the weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from services.cache.features import NEIGHBOURHOOD, PAIR
from services.cache.verifier import NEVER, WEIGHTS, Basis, Model, RiskPoint, from_json, load_verifier, to_json
from tests.cache_verifier import VERIFIER

MODEL = Model(
    names=("a", "b"),
    means=(1.0, 0.0),
    scales=(2.0, 1.0),
    weights=(3.0, -1.0),
    intercept=0.5,
    curve=(RiskPoint(0.3, 9.0, 0.8), RiskPoint(0.7, 4.0, 0.5), RiskPoint(0.9, 1.5, 0.1)),
)


def test_the_probability_is_the_logistic_of_the_weighted_features() -> None:
    assert MODEL.probability((5.0, 2.0)) == pytest.approx(1 / (1 + math.exp(-(0.5 + 3 * 2 - 2))))


def test_no_value_overflows() -> None:
    assert MODEL.probability((1e9, 0.0)) == pytest.approx(1.0)
    assert 0 <= MODEL.probability((-1e9, 0.0)) < 1e-9


def test_contributions_and_the_intercept_make_the_log_odds() -> None:
    values = (4.0, 7.0)
    parts = MODEL.contributions(values)
    assert [part.name for part in parts] == ["b", "a"], "the strongest first"
    odds = MODEL.intercept + sum(part.amount for part in parts)
    assert MODEL.probability(values) == pytest.approx(1 / (1 + math.exp(-odds)))


@pytest.mark.parametrize(("bound", "needed"), [(20, 0.3), (9, 0.3), (8.9, 0.7), (1.5, 0.9), (1.4, NEVER)])
def test_a_tighter_bound_needs_a_higher_probability(bound: float, needed: float) -> None:
    assert MODEL.needed(bound) == needed


def test_weights_survive_their_stored_form() -> None:
    back = from_json(json.loads(json.dumps(to_json(VERIFIER))))
    assert back == VERIFIER


@pytest.mark.parametrize("row", [[0.0, 0.0, 1.0], [0.0, -1.0, 1.0], [0.0, 1.0]])
def test_a_feature_without_a_scale_is_refused(row: list[float]) -> None:
    content = to_json(VERIFIER)
    content["models"]["strict/en/pair"]["features"]["similarity"] = row
    with pytest.raises(ValueError, match="scale"):
        from_json(content)


def test_weights_are_found_by_the_version_of_the_embedder(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(to_json(VERIFIER)))
    assert load_verifier(tmp_path, "words@1") == VERIFIER
    assert load_verifier(tmp_path, "words@2") is None


SHIPPED = [from_json(json.loads(path.read_text("utf-8"))) for path in sorted(WEIGHTS.glob("*.json"))]


def test_weights_are_shipped() -> None:
    assert SHIPPED


@pytest.mark.parametrize("verifier", SHIPPED, ids=lambda verifier: verifier.embedder)
def test_shipped_weights_fit_the_features_of_today(verifier: object) -> None:
    for name, model in verifier.models.items():  # type: ignore[attr-defined]  # pytest hides the type.
        wanted = PAIR if name.endswith(Basis.PAIR.value) else NEIGHBOURHOOD
        assert model.names == wanted, name
        assert [point.probability for point in model.curve] == sorted(point.probability for point in model.curve)
        risks = [point.wrong_per_thousand for point in model.curve]
        assert risks == sorted(risks, reverse=True), name
