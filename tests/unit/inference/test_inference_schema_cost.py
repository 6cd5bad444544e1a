"""Schemas whose patterns would hold the engine up."""

from __future__ import annotations

from typing import Any

import pytest

from services.inference.schema_cost import MOST_REPEATS, repeats

UUID = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "string"}, 0),
        ({"type": "string", "pattern": UUID}, 32),
        ({"pattern": "^a{1,5000}$"}, 5000),
        ({"pattern": "^a{5000,}$"}, 5000),
        ({"properties": {"a": {"items": [{"pattern": "b{700}"}]}, "b": {"anyOf": [{"pattern": "c{600}"}]}}}, 1300),
        ({"patternProperties": {"^x{900}$": {"pattern": "y{200}"}}}, 1100),
        ({"pattern": 7, "patternProperties": [3]}, 0),
        ("no schema", 0),
    ],
)
def test_counted_repeats_are_added_up_wherever_they_stand(schema: Any, expected: int) -> None:
    assert repeats(schema) == expected


def test_a_usual_schema_is_far_from_the_bound() -> None:
    assert repeats({"properties": {str(at): {"pattern": UUID} for at in range(20)}}) < MOST_REPEATS
