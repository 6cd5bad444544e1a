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
METADATA_BYTES = 64 * 1024
"""Largest metadata of a call that either side accepts (gRPC's default of 8 KiB is short for error details)."""
_DETAILS_BYTES = 12 * 1024
_TEXT_CHARS = 2048

_CODES: dict[Code, grpc.StatusCode] = {Code(code.value[0]): code for code in grpc.StatusCode if code.value[0]}


def grpc_code(code: Code) -> grpc.StatusCode:
    """The grpc enum for a canonical code."""
    return _CODES[code]


def to_status(error: TenthError) -> status_pb2.Status:
    """The wire form: ErrorInfo first, then RetryInfo, BadRequest and the error's own details.

    Texts are cut and details left out where the whole would not fit into a call's metadata: a client must get the
    code and the reason whatever a message quotes.
    """
    message = wire_text(error.message)
    status = status_pb2.Status(code=error.code.value, message=message)
    metadata = {wire_text(key): wire_text(value) for key, value in error.metadata.items()}
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    field = wire_text(error.field)
    if field:
        info.metadata["field"] = field
    if info.ByteSize() > _DETAILS_BYTES:
        info.metadata.clear()
    parts: list[Message] = [info]
    if error.retry_after_seconds is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMilliseconds(round(error.retry_after_seconds * 1000))
        parts.append(retry)
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=message)
        parts.append(error_details_pb2.BadRequest(field_violations=[violation]))
    parts.extend(error.details)
    size = 0
    for part in parts:
        size += part.ByteSize()
        if size > _DETAILS_BYTES and part is not info:
            break
        if isinstance(part, AnyMessage):
            status.details.append(part)  # As it came from another service.
        else:
            status.details.add().Pack(part)
    return status


def wire_text(text: str) -> str:
    """A text that every gRPC implementation carries: valid UTF-8, of bounded length."""
    cut = text if len(text) <= _TEXT_CHARS else text[: _TEXT_CHARS - 1] + "…"
    return cut.encode("utf-8", "replace").decode()


def trailing_metadata(error: TenthError) -> tuple[tuple[str, bytes], ...]:
    """The trailing metadata that carries the status details."""
    return ((DETAILS_KEY, to_status(error).SerializeToString()),)


def from_rpc_error(error: grpc.aio.AioRpcError) -> TenthError:
    """The typed error behind a failed call; details other than ours are kept in ``details``."""
    code = Code(error.code().value[0] or Code.UNKNOWN.value)
    message = error.details() or code.name
    if code is Code.CANCELLED and not error.trailing_metadata():
        # Nobody here cancelled (that is asyncio's CancelledError): a server that stops drops the calls that had not
        # reached its handlers yet in this way.
        code, message = Code.UNAVAILABLE, "the server ended the call before it began"
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
