"""What a call to the mesh can raise, decoded from google.rpc error details."""

from __future__ import annotations

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from tenth.type.v1 import receipt_pb2

_DETAILS_KEY = "grpc-status-details-bin"


class TenthClientError(Exception):
    """A call that failed, typed.

    ``code`` is the gRPC status; ``reason`` the machine-readable cause (docs/errors.md lists them), ``UNREACHABLE``
    when nobody answered; ``field`` the path of the offending request field; ``spent`` what the failed request cost
    so far, where the mesh said so; ``retry_after`` seconds to wait before trying again, where the mesh said so.
    """

    def __init__(
        self,
        code: grpc.StatusCode,
        reason: str,
        message: str,
        field: str = "",
        *,
        spent: receipt_pb2.SpentDetail | None = None,
        retry_after: float | None = None,
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.field = field
        self.spent = spent
        self.retry_after = retry_after
        self.metadata = metadata or {}

    def __str__(self) -> str:
        where = f" ({self.field})" if self.field else ""
        return f"{self.code.name} {self.reason}{where}: {self.message}"

    @property
    def spent_nano_usd(self) -> int:
        """What the failed request cost so far, nano-USD; 0 where the mesh named nothing."""
        return self.spent.spent_nano_usd if self.spent is not None else 0

    @property
    def retryable(self) -> bool:
        """True when the same request (same request_id) may be sent again.

        Whatever an earlier try has spent stays on the request's receipt, and nothing that was answered is paid twice.
        """
        return self.code is grpc.StatusCode.UNAVAILABLE


def decode(error: grpc.aio.AioRpcError) -> TenthClientError:
    """The typed error behind a failed RPC. Details that are unknown or damaged are passed over."""
    code = error.code()
    if code is grpc.StatusCode.CANCELLED and not error.trailing_metadata():
        # A server that stops drops the calls that it had not begun in this way; nothing of ours cancels a call.
        code = grpc.StatusCode.UNAVAILABLE
    result = TenthClientError(code, _default_reason(code), error.details() or code.name)
    for key, value in error.trailing_metadata() or ():
        if key == _DETAILS_KEY and isinstance(value, bytes):
            try:
                _fill(result, status_pb2.Status.FromString(value))
            except DecodeError:
                break
    return result


def _fill(result: TenthClientError, status: status_pb2.Status) -> None:
    for packed in status.details:
        if packed.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
            info = error_details_pb2.ErrorInfo()
            packed.Unpack(info)
            result.reason = info.reason
            result.metadata = {key: value for key, value in info.metadata.items() if key != "field"}
            result.field = info.metadata.get("field", result.field)
        elif packed.Is(error_details_pb2.BadRequest.DESCRIPTOR):
            bad = error_details_pb2.BadRequest()
            packed.Unpack(bad)
            if bad.field_violations and not result.field:
                result.field = bad.field_violations[0].field
        elif packed.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
            retry = error_details_pb2.RetryInfo()
            packed.Unpack(retry)
            result.retry_after = retry.retry_delay.ToMilliseconds() / 1000
        elif packed.Is(receipt_pb2.SpentDetail.DESCRIPTOR):
            spent = receipt_pb2.SpentDetail()
            packed.Unpack(spent)
            result.spent = spent


def _default_reason(code: grpc.StatusCode) -> str:
    if code is grpc.StatusCode.UNAVAILABLE:
        return "UNREACHABLE"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return "DEADLINE_EXPIRED"
    return "INTERNAL" if code in (grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL) else code.name
