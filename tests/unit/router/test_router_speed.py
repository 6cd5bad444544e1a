"""Whether a model can answer in time, by what was measured of it."""

from __future__ import annotations

import pytest

from services.router.catalog import Abilities, Model, Tier
from services.router.speed import expected_seconds, too_slow


def model(rate: float, first: float) -> Model:
    return Model(
        "m", "p", Tier.SIMPLE, 8000, 4000, 100, Abilities(), output_tokens_per_second=rate, first_token_seconds=first
    )


@pytest.mark.parametrize(
    ("rate", "first", "tokens", "left", "objection"),
    [
        (50.0, 1.0, 100, None, ""),
        (50.0, 1.0, 100, 3.0, ""),
        (50.0, 1.0, 100, 2.9, "takes about 3.0 s, 2.9 s are left"),
        (50.0, 1.0, 100, 0.0, "takes about 3.0 s, 0.0 s are left"),
        (50.0, 1.0, 100, -5.0, "takes about 3.0 s, 0.0 s are left"),
        (50.0, 0.0, 100, 1.9, "takes about 2.0 s, 1.9 s are left"),  # What is not measured counts as nothing.
        (0.0, 1.0, 100, 1.0, ""),
        (0.0, 1.0, 100, 0.5, "takes about 1.0 s, 0.5 s are left"),
        (0.0, 0.0, 10_000, 0.0, ""),  # Not measured: never too slow.
        (50.0, 0.0, 0, 0.0, ""),
    ],
)
def test_objections(rate: float, first: float, tokens: int, left: float | None, objection: str) -> None:
    assert too_slow(model(rate, first), tokens, left) == objection


def test_expected_seconds() -> None:
    assert expected_seconds(model(76, 0.98), 120) == pytest.approx(2.559, abs=0.001)
