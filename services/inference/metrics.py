"""Metrics of generations, as OpenTelemetry's GenAI semantic conventions have them.

Source: https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-metrics/ (names, units, attributes, boundaries).
Attributes have few values: catalogue models, providers, reasons of errors. Never a user, a tag or a request.
"""

from __future__ import annotations

from opentelemetry.metrics import Meter

from services.inference.usage import Usage

TOKEN_BOUNDARIES = tuple(4**power for power in range(14))
"""Advised for ``gen_ai.client.token.usage``: 1 to 67,108,864."""
SECOND_BOUNDARIES = tuple(0.01 * 2**power for power in range(14))
"""Advised for ``gen_ai.client.operation.duration``: 0.01 to 81.92."""
CANCELLED = "CANCELLED"
"""``error.type`` of an answer that its caller left."""
OTHER = "_OTHER"
"""``error.type`` of an error without a reason of ours (the conventions' own word)."""


class GenerationMetrics:
    """One record for each attempt, whichever way it ends."""

    def __init__(self, meter: Meter) -> None:
        self._tokens = meter.create_histogram(
            "gen_ai.client.token.usage",
            unit="{token}",
            description="Input and output tokens of one attempt, cached and reasoning ones included",
            explicit_bucket_boundaries_advisory=TOKEN_BOUNDARIES,
        )
        self._seconds = meter.create_histogram(
            "gen_ai.client.operation.duration",
            unit="s",
            description="Time from the call of a model to the end of its answer",
            explicit_bucket_boundaries_advisory=SECOND_BOUNDARIES,
        )

    def record(
        self, provider: str, provider_model: str, usage: Usage, seconds: float, *, sandbox: bool, error_type: str = ""
    ) -> None:
        """Count one attempt; ``error_type`` empty: it answered. One that used nothing has no tokens to record."""
        attributes: dict[str, str | bool] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": provider,
            "gen_ai.request.model": provider_model,
            "gen_ai.response.model": provider_model,
            "tenth.sandbox": sandbox,
        }
        self._seconds.record(seconds, {**attributes, "error.type": error_type} if error_type else attributes)
        if usage == Usage():
            return
        attributes["tenth.usage_estimated"] = usage.estimated
        self._tokens.record(usage.input, {**attributes, "gen_ai.token.type": "input"})
        self._tokens.record(usage.output, {**attributes, "gen_ai.token.type": "output"})
