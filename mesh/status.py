"""TenthError to and from google.rpc.Status on the wire."""

from __future__ import annotations

from typing import Any, cast

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2

from mesh.errors import Code, Reason, TenthError

DOMAIN = "tenth"
"""ErrorInfo.domain of every error of the mesh."""
DETAILS_KEY = "grpc-status-details-bin"

_CODES: dict[Code, grpc.StatusCode] = {Code(code.value[0]): code for code in grpc.StatusCode if code.value[0]}


def grpc_code(code: Code) -> grpc.StatusCode:
    """The grpc enum for a canonical code."""
    return _CODES[code]


def to_status(error: TenthError) -> status_pb2.Status:
    """The wire form: ErrorInfo first, then RetryInfo, BadRequest and the error's own details."""
    status = status_pb2.Status(code=error.code.value, message=error.message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=dict(error.metadata))
    if error.field:
        info.metadata["field"] = error.field
    parts: list[Message] = [info]
    if error.field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=error.field, description=error.message)
        parts.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if error.retry_after_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(int(error.retry_after_seconds * 1000))
        parts.append(retry)
    parts.extend(error.details)
    for part in parts:
        packed = status.details.add()
        packed.Pack(part)
    return status


def trailing_metadata(error: TenthError) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that carries the status details."""
    return ((DETAILS_KEY, to_status(error).SerializeToString()),)


def from_rpc_error(error: grpc.aio.AioRpcError) -> TenthError:
    """The typed error behind a failed call; details other than ours are kept in ``details``."""
    number = error.code().value[0]
    code = Code(number) if number else Code.UNKNOWN
    message = error.details() or code.name
    result = TenthError(code, _default_reason(code), message)
    for key, value in error.trailing_metadata() or ():
        if key == DETAILS_KEY and isinstance(value, bytes):
            try:
                _fill(result, status_pb2.Status.FromString(value))
            except DecodeError:
                break
    return result


def detail(error: TenthError, kind: type[Message]) -> Message | None:
    """The first attached detail of a message type, or None."""
    for item in error.details:
        if isinstance(item, kind):
            return item
        if isinstance(item, AnyMessage) and item.Is(cast(Any, kind.DESCRIPTOR)):
            message = kind()
            item.Unpack(message)
            return message
    return None


def _fill(result: TenthError, status: status_pb2.Status) -> None:
    rest: list[AnyMessage] = []
    for packed in status.details:
        if packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            packed.Unpack(info)
            result.reason = info.reason
            result.metadata = {key: value for key, value in info.metadata.items() if key != "field"}
            result.field = info.metadata.get("field", "")
        elif packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            packed.Unpack(retry)
            result.retry_after_seconds = retry.retry_delay.ToMilliseconds() / 1000
        elif not packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            rest.append(packed)
    result.details = tuple(rest)


def _default_reason(code: Code) -> str:
    if code is Code.DEADLINE_EXCEEDED:
        return Reason.DEADLINE_EXPIRED
    if code is Code.UNAVAILABLE:
        return Reason.UNREACHABLE
    return Reason.INTERNAL if code in (Code.UNKNOWN, Code.INTERNAL) else code.name
