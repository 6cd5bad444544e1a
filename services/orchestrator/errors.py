"""Reasons for which the orchestrator refuses or fails a request."""

from __future__ import annotations

from enum import StrEnum


class Reason(StrEnum):
    """Machine-readable reasons in google.rpc.ErrorInfo."""

    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    """The request_id was used before with another payload."""
    UNKNOWN_TENANT = "UNKNOWN_TENANT"
    """The caller's tenant is not in the ledger."""
    RATE_LIMITED = "RATE_LIMITED"
    """The tenant's requests or tokens per minute are used up; RetryInfo says when to come back."""
    BUDGET_EXCEEDED = "BUDGET_EXCEEDED"
    """A hard budget cannot hold this request on any allowed tier, or its ladder lets only others pass; the metadata
    name the budget, what is left and the step."""
    BUDGET_UNAVAILABLE = "BUDGET_UNAVAILABLE"
    """A hard budget applies and the ledger cannot be asked: nothing may be spent."""
    NOT_READY = "NOT_READY"
    """No prices are known yet: the ledger has not been reached since the first start."""
    NO_MODEL_AVAILABLE = "NO_MODEL_AVAILABLE"
    """Every allowed model failed or is down."""
    STREAM_BROKEN = "STREAM_BROKEN"
    """Inference went away in the middle of an answer, or a broken one could not be continued; SpentDetail says what
    was spent. A provider that breaks off keeps inference's own reason (PROVIDER_*)."""
    NOT_FOUND = "NOT_FOUND"
    """No such receipt or operation, or it has been forgotten."""
