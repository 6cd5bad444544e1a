"""The one error class of the mesh, and the reasons that any service may give.

Pure: imports no gRPC, so that policy modules can raise it. ``mesh/status.py`` maps it to and from the wire.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntEnum, StrEnum
from typing import Any


class Code(IntEnum):
    """Canonical status codes (google.rpc.Code), by number."""

    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class Reason(StrEnum):
    """Reasons that the mesh itself gives; each service adds its own in its ``errors.py``."""

    MALFORMED_MESSAGE = "MALFORMED_MESSAGE"
    """The request's bytes are not a valid message (bad UTF-8 in a string, truncated)."""
    UNAUTHENTICATED = "UNAUTHENTICATED"
    """No credentials, or none that are known."""
    CALLER_FORBIDDEN = "CALLER_FORBIDDEN"
    """The caller is known, but may not call this method."""
    USER_ASSERTION_FORBIDDEN = "USER_ASSERTION_FORBIDDEN"
    """The caller named a user or project without being marked may_assert_user."""
    DEADLINE_EXPIRED = "DEADLINE_EXPIRED"
    """The deadline passed before the work began, or while it was done."""
    INTERNAL = "INTERNAL"
    """A defect of the service; the log has it under the trace id."""
    UNREACHABLE = "UNREACHABLE"
    """The called service did not answer."""
    DRAINING = "DRAINING"
    """The replica is shutting down; another one will answer."""
    INVALID_FIELD = "INVALID_FIELD"
    """A field has a value that is not allowed; `field` names it."""
    REQUIRED_FIELD = "REQUIRED_FIELD"
    """A required field is absent; `field` names it."""
    PROMPT_TOO_LARGE = "PROMPT_TOO_LARGE"
    """The prompt has more bytes than the deployment takes."""
    UNIMPLEMENTED = "UNIMPLEMENTED"
    """The method exists in the contract, but this service does not serve it."""


class TenthError(Exception):
    """A failure with a code, a machine-readable reason and a message for people.

    ``field`` is the path of the offending request field, e.g. ``request.messages[2].role``. ``metadata`` goes into
    google.rpc.ErrorInfo; ``retry_after_seconds`` into RetryInfo; ``details`` are protobuf messages attached as they
    are (for instance tenth.type.v1.SpentDetail).
    """

    def __init__(
        self,
        code: Code,
        reason: str,
        message: str,
        field: str = "",
        *,
        metadata: Mapping[str, str] | None = None,
        retry_after_seconds: float | None = None,
        details: tuple[Any, ...] = (),
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = str(reason)
        self.message = message
        self.field = field
        self.metadata = dict(metadata or {})
        self.retry_after_seconds = retry_after_seconds
        self.details = details

    def __str__(self) -> str:
        where = f" ({self.field})" if self.field else ""
        return f"{self.code.name} {self.reason}{where}: {self.message}"


def invalid_argument(message: str, *, field: str, reason: str = Reason.INVALID_FIELD) -> TenthError:
    """A request field has a value that is not allowed."""
    return TenthError(Code.INVALID_ARGUMENT, reason, message, field)


def required(field: str) -> TenthError:
    """A required request field is absent."""
    return TenthError(Code.INVALID_ARGUMENT, Reason.REQUIRED_FIELD, f"{field} is required", field)


def unavailable(message: str, *, reason: str = Reason.UNREACHABLE) -> TenthError:
    """A part is down; trying again later may help."""
    return TenthError(Code.UNAVAILABLE, reason, message)


def deadline_exceeded(message: str = "the deadline has passed") -> TenthError:
    """Too late."""
    return TenthError(Code.DEADLINE_EXCEEDED, Reason.DEADLINE_EXPIRED, message)
