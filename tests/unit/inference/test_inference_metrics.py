"""Metrics of generations: the conventions' names, units, boundaries and attributes."""

from __future__ import annotations

import pytest

from mesh.testing import memory_metrics, metric_points
from services.inference.metrics import SECOND_BOUNDARIES, TOKEN_BOUNDARIES, GenerationMetrics
from services.inference.usage import Usage

MODEL = {
    "gen_ai.operation.name": "chat",
    "gen_ai.provider.name": "openai",
    "gen_ai.request.model": "gpt-4o-mini",
    "gen_ai.response.model": "gpt-4o-mini",
    "tenth.sandbox": False,
}


def test_an_answer_has_a_duration_and_tokens_by_type() -> None:
    telemetry, reader = memory_metrics()
    metrics = GenerationMetrics(telemetry.meter)
    metrics.record("openai", "gpt-4o-mini", Usage(90, output=12), 0.5, sandbox=False)
    metrics.record("openai", "gpt-4o-mini", Usage(10, output=3), 1.5, sandbox=False)
    tokens = metric_points(reader, "gen_ai.client.token.usage")
    told = {**MODEL, "tenth.usage_estimated": False}
    sums = {kind: tokens[frozenset({**told, "gen_ai.token.type": kind}.items())].sum for kind in ("input", "output")}
    assert sums == {"input": 100, "output": 15}
    assert len(tokens) == 2
    assert next(iter(tokens.values())).explicit_bounds == tuple(map(float, TOKEN_BOUNDARIES))
    (duration,) = metric_points(reader, "gen_ai.client.operation.duration").values()
    assert (duration.count, duration.sum, dict(duration.attributes)) == (2, 2.0, MODEL)
    assert duration.explicit_bounds == pytest.approx(SECOND_BOUNDARIES)
    telemetry.close()


def test_a_failure_names_its_reason_and_records_what_it_spent() -> None:
    telemetry, reader = memory_metrics()
    metrics = GenerationMetrics(telemetry.meter)
    metrics.record("openai", "gpt-4o-mini", Usage(), 0.1, sandbox=True, error_type="PROVIDER_RATE_LIMITED")
    assert metric_points(reader, "gen_ai.client.token.usage") == {}
    metrics.record("openai", "gpt-4o-mini", Usage(9, output=1, estimated=True), 3, sandbox=True, error_type="CANCELLED")
    seconds = metric_points(reader, "gen_ai.client.operation.duration")
    assert {point.attributes["error.type"]: point.sum for point in seconds.values()} == {
        "PROVIDER_RATE_LIMITED": 0.1,
        "CANCELLED": 3,
    }
    assert all(dict(key)["tenth.usage_estimated"] for key in metric_points(reader, "gen_ai.client.token.usage"))
    telemetry.close()


def test_the_boundaries_are_those_that_the_conventions_advise() -> None:
    assert TOKEN_BOUNDARIES[:3] == (1, 4, 16)
    assert TOKEN_BOUNDARIES[-1] == 67_108_864
    assert SECOND_BOUNDARIES[0] == 0.01
    assert SECOND_BOUNDARIES[-1] == 81.92
