"""Limits lie above what is predicted and needed, never above what was asked for; hints only where they pay."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.compressor.output import TARGETS, OutputSettings, brevity_hint, plan_output, schema_tokens
from services.compressor.vocabularies import load_encoding

SETTINGS = OutputSettings()


def schema(**properties: object) -> str:
    return json.dumps({"type": "object", "properties": properties, "additionalProperties": False})


@pytest.mark.parametrize(
    ("predicted", "asked", "question", "limit", "hinted"),
    [
        (20, None, "Is it open?", 256, False),
        (400, None, "Why is the sky blue?", 1000, True),
        (400, 300, "Why is the sky blue?", 300, True),
        (400, None, "하늘은 왜 파란가요?", 1000, True),
        (400, None, "Explain in detail why the sky is blue", 1000, False),
        (400, None, "하늘이 왜 파란지 자세히 설명해 주세요", 1000, False),
        (400, None, "Write an essay of 500 words", 1000, False),
        (300, None, "Write a python function that sorts", 2048, False),
        (300, None, "정렬하는 함수를 구현해 주세요", 2048, False),
        (0, 77, "?", 77, False),
        (float("nan"), None, "?", None, False),
        (-5, None, "?", None, False),
    ],
)
def test_limits_and_hints(predicted: float, asked: int | None, question: str, limit: int | None, hinted: bool) -> None:
    plan = plan_output(predicted, asked, question, SETTINGS)
    assert plan.max_output_tokens == limit
    assert bool(plan.hint) == hinted
    assert bool(plan.hint_token_count) == hinted


def test_json_gets_what_its_schema_needs_or_no_limit() -> None:
    bounded = schema(name={"type": "string", "maxLength": 400}, age={"type": "integer"}, kind={"enum": ["a", "bb"]})
    need = schema_tokens(bounded)
    assert need is not None
    assert plan_output(10, None, "?", SETTINGS, bounded).max_output_tokens == 2 * need > 800
    free = schema(name={"type": "string"})
    assert plan_output(10, None, "?", SETTINGS, free).max_output_tokens is None
    assert plan_output(10, None, "?", SETTINGS, wants_json=True).max_output_tokens is None
    assert plan_output(10, 50, "?", SETTINGS, free).max_output_tokens == 50
    assert plan_output(900, None, "?", SETTINGS, bounded).hint == ""


@pytest.mark.parametrize(
    "unbounded",
    [
        "",
        "{",
        "[]",
        '{"$ref": "#/x"}',
        '{"type": "object"}',
        '{"type": "object", "properties": {"a": {"type": "integer"}}}',
        '{"type": "array", "items": {"type": "integer"}}',
        '{"type": "string"}',
        '{"anyOf": [{"type": "integer"}, {"type": "string"}]}',
        '{"a":' * 200 + "1" + "}" * 200,
    ],
)
def test_schemas_without_a_bound(unbounded: str) -> None:
    assert schema_tokens(unbounded) is None


def test_arrays_and_alternatives() -> None:
    assert schema_tokens('{"type": "array", "maxItems": 10, "items": {"type": "integer"}}') == 104
    assert schema_tokens('{"anyOf": [{"type": "integer"}, {"type": ["null", "boolean"]}]}') == 16


@pytest.mark.parametrize("question", ["Why?", "왜요?"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_hint_costs_what_it_says(question: str, target: int) -> None:
    count = load_encoding("cl100k_base")
    assert count is not None
    hint, cost = brevity_hint(target * (4.2 if question == "Why?" else 8.0), question, SETTINGS)
    assert f" {target}" in hint
    assert count("\n" + hint) == cost


@given(st.floats(0, 1e6), st.one_of(st.none(), st.integers(1, 5000)), st.text(max_size=30))
def test_never_above_what_was_asked_for_nor_below_what_is_predicted(
    predicted: float, asked: int | None, text: str
) -> None:
    plan = plan_output(predicted, asked, text, SETTINGS)
    if asked is not None:
        assert plan.max_output_tokens is not None
        assert plan.max_output_tokens <= asked
    elif plan.max_output_tokens is not None:
        assert plan.max_output_tokens >= max(predicted, SETTINGS.least_tokens)
    assert bool(plan.hint) == bool(plan.hint_token_count)
