"""Every reason that the batch service gives, beside those of ``mesh.errors``."""

from __future__ import annotations

from enum import StrEnum

from mesh.errors import Code, TenthError


class Reason(StrEnum):
    """Reasons of the batch service. Those of a line stand in its LineError, with the line's number."""

    REQUEST_ID_REUSED = "REQUEST_ID_REUSED"
    """The request_id was used before with another input."""
    UPLOAD_TAKEN_OVER = "UPLOAD_TAKEN_OVER"
    """A later call with the same request_id writes the batch now; its answer counts."""
    BATCH_NOT_FOUND = "BATCH_NOT_FOUND"
    """The tenant has no such batch, or it is past its retention."""
    BATCH_RUNNING = "BATCH_RUNNING"
    """Failed items are run again only when the batch has ended."""
    BATCH_GATHERED = "BATCH_GATHERED"
    """The batch was gathered from single requests; those that failed are asked again as single requests."""
    BATCH_EMPTY = "BATCH_EMPTY"
    """The input holds no item."""
    BATCH_TOO_LARGE = "BATCH_TOO_LARGE"
    """The input has more items or bytes than the deployment takes."""
    INPUT_ORDER = "INPUT_ORDER"
    """The head of the batch did not come first, or came twice, or items and JSONL pieces were mixed."""
    LINE_INVALID = "LINE_INVALID"
    """The line is no request in OpenAI's format; `field` and the message say where."""
    LINE_TOO_LONG = "LINE_TOO_LONG"
    """The line has more bytes than the deployment takes."""
    CUSTOM_ID_REPEATED = "CUSTOM_ID_REPEATED"
    """An earlier line has the same custom_id; the message names it."""
    REQUEST_ID_REPEATED = "REQUEST_ID_REPEATED"
    """An earlier line has the same request_id; the message names it."""
    MORE_ERRORS = "MORE_ERRORS"
    """Not an error of a line: the last entry of a list that was cut, with the number of all errors."""
    QUEUED_NOT_FOUND = "QUEUED_NOT_FOUND"
    """No such request was enqueued by this tenant, or it is forgotten."""
    BATCH_FAILED = "BATCH_FAILED"
    """The batch that the request was gathered into ended without a result of it."""
    WORKFLOW_FAILED = "WORKFLOW_FAILED"
    """The batch's workflow ended in a way that it did not foresee; RetryFailed runs what has no answer."""
    WORKFLOW_LOST = "WORKFLOW_LOST"
    """Temporal no longer knows the batch's workflow, which had started; RetryFailed runs what has no answer."""
    TEMPORAL_UNAVAILABLE = "TEMPORAL_UNAVAILABLE"
    """Temporal does not answer. What was taken in is kept: the same call with the same request_id goes on."""
    BATCH_CANCELLED = "BATCH_CANCELLED"
    """The batch was cancelled before the item was run."""
    BATCH_EXPIRED = "BATCH_EXPIRED"
    """The batch's deadline passed before the item was answered."""
    LANE_NOT_ALLOWED = "LANE_NOT_ALLOWED"
    """The model chosen for the item runs in none of the lanes that the batch allows."""
    ITEM_LOST = "ITEM_LOST"
    """The run ended without a result of the item; a defect, which RetryFailed mends."""
    ITEM_BROKEN = "ITEM_BROKEN"
    """A worker could not run the item for a reason that it did not foresee; its log says more."""
    STORE_UNAVAILABLE = "STORE_UNAVAILABLE"
    """The object store does not answer; trying again later may help."""
    STORE_FULL = "STORE_FULL"
    """The object store has no room left; nothing half-written is left behind."""
    STORE_DAMAGED = "STORE_DAMAGED"
    """An object cannot be read as what it should hold."""
    STORE_NAME = "STORE_NAME"
    """A name that no object may have; a defect of the service."""


def store_unavailable(what: str) -> TenthError:
    """The object store did not answer."""
    return TenthError(Code.UNAVAILABLE, Reason.STORE_UNAVAILABLE, f"the object store did not answer: {what}")


def store_full(what: str) -> TenthError:
    """The object store has no room."""
    return TenthError(Code.RESOURCE_EXHAUSTED, Reason.STORE_FULL, f"the object store is full: {what}")


def store_damaged(what: str) -> TenthError:
    """An object is not what it should be."""
    return TenthError(Code.DATA_LOSS, Reason.STORE_DAMAGED, f"an object cannot be read: {what}")


def temporal_unavailable(what: str) -> TenthError:
    """Temporal did not answer."""
    return TenthError(Code.UNAVAILABLE, Reason.TEMPORAL_UNAVAILABLE, f"Temporal did not answer: {what}")


def batch_not_found(batch_id: str) -> TenthError:
    """No such batch of this tenant."""
    return TenthError(Code.NOT_FOUND, Reason.BATCH_NOT_FOUND, f"no batch {batch_id!r}", "batch_id")
