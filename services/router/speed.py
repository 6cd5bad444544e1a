"""Whether a model is fast enough for a request's deadline. Pure."""

from __future__ import annotations

from services.router.catalog import Model


def expected_seconds(model: Model, output_tokens: int) -> float:
    """Time that an answer of that many tokens takes, by what was measured of the model; 0 where nothing was.

    What is not measured counts as nothing, so that the estimate is a lower bound. The measurements are of one request
    at a time: under load an answer takes longer.
    """
    seconds = model.first_token_seconds
    if model.output_tokens_per_second:
        seconds += output_tokens / model.output_tokens_per_second
    return seconds


def too_slow(model: Model, expected_output_tokens: int, seconds_left: float | None) -> str:
    """Why the model cannot answer in time, in words; empty when it can, was not measured, or nothing presses."""
    seconds = expected_seconds(model, expected_output_tokens)
    if seconds_left is None or not seconds or seconds <= seconds_left:
        return ""
    return f"takes about {seconds:.1f} s, {max(seconds_left, 0.0):.1f} s are left"
