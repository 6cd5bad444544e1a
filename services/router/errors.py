"""The reasons that the router gives for a failure."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Reasons of the router, beside those of ``mesh.errors``."""

    UNKNOWN_MODEL = "UNKNOWN_MODEL"
    """`request.policy.model`, or `model=NAME` in the message where a rule allows it, names a model that the catalogue
    does not have."""
    NO_ELIGIBLE_MODEL = "NO_ELIGIBLE_MODEL"
    """No model within the tier bounds can answer this request; the metadata names each model's reason."""
    CONTRADICTORY_BOUNDS = "CONTRADICTORY_BOUNDS"
    """The tier floor is above the tier ceiling: both the request's own, or one of them a routing rule's, which the
    metadata names; or the model of a rule or directive is outside them."""
    RULE_MODEL_UNKNOWN = "RULE_MODEL_UNKNOWN"
    """A routing rule names a model that the catalogue does not have: the operator's mistake, no other model answers."""
    OUTCOME_LOG_UNAVAILABLE = "OUTCOME_LOG_UNAVAILABLE"
    """The outcome log's file cannot be read or written (a full disk); decisions go on without it."""
