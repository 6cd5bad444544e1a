"""The reasons that the compressor gives for a failure."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Reasons of the compressor, beside those of ``mesh.errors``."""

    UNKNOWN_MODEL = "UNKNOWN_MODEL"
    """The catalogue has no model of that name, so its tokens cannot be counted."""
    PROMPT_TOO_LONG = "PROMPT_TOO_LONG"
    """The prompt does not fit the model's context window, not even compressed as far as the mode allows."""
    BUDGET_TOO_SMALL = "BUDGET_TOO_SMALL"
    """What must stay of the prompt is more than the token budget; `over_token_count` says by how much."""
    UNKNOWN_STRATEGY = "UNKNOWN_STRATEGY"
    """A strategy was turned on or off that there is not, or twice."""
    SUMMARY_NOT_SET_UP = "SUMMARY_NOT_SET_UP"
    """The strategy `summary` was asked for by name, and no inference service or no summarising model is set."""
    TOKENWISE_NOT_SET_UP = "TOKENWISE_NOT_SET_UP"
    """A text was to be pruned, and no inference service or no model that tells its prompt's probabilities is set."""
