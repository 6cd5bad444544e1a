"""The reasons that the router gives for a failure."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Reasons of the router, beside those of ``mesh.errors``."""

    UNKNOWN_MODEL = "UNKNOWN_MODEL"
    """`request.policy.model` names a model that the catalogue does not have."""
    NO_ELIGIBLE_MODEL = "NO_ELIGIBLE_MODEL"
    """No model within the tier bounds can answer this request; the metadata names each model's reason."""
    CONTRADICTORY_BOUNDS = "CONTRADICTORY_BOUNDS"
    """The request's tier floor is above its own tier ceiling."""
    OUTCOME_LOG_UNAVAILABLE = "OUTCOME_LOG_UNAVAILABLE"
    """The outcome log's file cannot be read or written (a full disk); decisions go on without it."""
