"""TenthError to google.rpc.Status and back, as a table and as properties."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st
from tenth.type.v1 import receipt_pb2

from mesh.errors import Code, Reason, TenthError, deadline_exceeded, invalid_argument, required, unavailable
from mesh.status import DETAILS_KEY, METADATA_BYTES, detail, from_rpc_error, grpc_code, to_status, trailing_metadata


def over_the_wire(error: TenthError) -> TenthError:
    """What a client makes of an error, without a socket."""
    raw = grpc.aio.Metadata(*trailing_metadata(error))
    return from_rpc_error(grpc.aio.AioRpcError(grpc_code(error.code), grpc.aio.Metadata(), raw, error.message))


@pytest.mark.parametrize("code", list(Code))
def test_every_code_round_trips(code: Code) -> None:
    spent = receipt_pb2.SpentDetail(request_id="r1", spent_nano_usd=5)
    sent = TenthError(
        code, "SOME_REASON", "what", "request.a[1].b", metadata={"k": "v"}, retry_after_seconds=1.25, details=(spent,)
    )
    got = over_the_wire(sent)
    assert (got.code, got.reason, got.message, got.field) == (code, "SOME_REASON", "what", "request.a[1].b")
    assert got.metadata == {"k": "v"}
    assert got.retry_after_seconds == 1.25
    assert detail(got, receipt_pb2.SpentDetail) == spent
    assert detail(got, receipt_pb2.Receipt) is None


@pytest.mark.parametrize(
    ("error", "code", "reason", "field"),
    [
        (invalid_argument("m", field="f"), Code.INVALID_ARGUMENT, Reason.INVALID_FIELD, "f"),
        (required("request.x"), Code.INVALID_ARGUMENT, Reason.REQUIRED_FIELD, "request.x"),
        (unavailable("m"), Code.UNAVAILABLE, Reason.UNREACHABLE, ""),
        (unavailable("m", reason=Reason.DRAINING), Code.UNAVAILABLE, Reason.DRAINING, ""),
        (deadline_exceeded(), Code.DEADLINE_EXCEEDED, Reason.DEADLINE_EXPIRED, ""),
    ],
)
def test_the_shorthands(error: TenthError, code: Code, reason: str, field: str) -> None:
    got = over_the_wire(error)
    assert (got.code, got.reason, got.field, got.retry_after_seconds) == (code, reason, field, None)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (grpc.StatusCode.UNAVAILABLE, "UNREACHABLE"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXPIRED"),
        (grpc.StatusCode.UNKNOWN, "INTERNAL"),
        (grpc.StatusCode.INTERNAL, "INTERNAL"),
        (grpc.StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED"),
    ],
)
@pytest.mark.parametrize("details", [None, b"\xff\xfe not a status", b""])
def test_errors_of_others_get_a_reason(code: grpc.StatusCode, reason: str, details: bytes | None) -> None:
    raw = grpc.aio.Metadata(*([(DETAILS_KEY, details)] if details is not None else []))
    got = from_rpc_error(grpc.aio.AioRpcError(code, grpc.aio.Metadata(), raw, "text"))
    assert (got.code.name, got.reason, got.message) == (code.name, reason, "text")


def test_corrupt_detail_keeps_what_was_read() -> None:
    status = to_status(unavailable("m", reason="MINE"))
    status.details.append(AnyMessage(type_url=status.details[0].type_url, value=b"\xff\xff"))
    raw = grpc.aio.Metadata((DETAILS_KEY, status.SerializeToString()))
    got = from_rpc_error(grpc.aio.AioRpcError(grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), raw, "m"))
    assert (got.code, got.reason) == (Code.UNAVAILABLE, "MINE")


def test_details_of_a_downstream_service_are_passed_on_once_packed() -> None:
    spent = receipt_pb2.SpentDetail(request_id="r", spent_nano_usd=7)
    first = over_the_wire(TenthError(Code.ABORTED, "R", "m", details=(spent,)))
    assert detail(over_the_wire(first), receipt_pb2.SpentDetail) == spent


def test_a_field_is_also_a_bad_request_for_standard_clients() -> None:
    status = to_status(invalid_argument("too long", field="request.a"))
    bad = error_details_pb2.BadRequest()
    assert status.details[1].Unpack(bad)
    assert [(v.field, v.description) for v in bad.field_violations] == [("request.a", "too long")]


@pytest.mark.parametrize(
    "change",
    [
        {"message": "가" * 1_000_000},
        {"message": "m", "field": "f" * 1_000_000},
        {"message": "m", "metadata": {f"k{n}": "v" * 1000 for n in range(100)}},
        {"message": "m", "details": (receipt_pb2.SpentDetail(request_id="x" * 1_000_000),)},
    ],
)
def test_a_huge_error_still_fits_into_metadata(change: dict[str, Any]) -> None:
    error = TenthError(Code.ABORTED, "R", **change)
    assert len(trailing_metadata(error)[0][1]) < METADATA_BYTES / 2
    got = over_the_wire(error)
    assert (got.code, got.reason) == (Code.ABORTED, "R")


@settings(deadline=None)  # A shared machine pauses; the property is no question of time.
@given(st.text(alphabet=st.characters(), max_size=300), st.text(max_size=50))
def test_any_text_is_carried(message: str, field: str) -> None:
    got = over_the_wire(TenthError(Code.ABORTED, "R", message + "\ud800", field))
    assert (got.code, got.reason, got.field) == (Code.ABORTED, "R", field.encode("utf-8", "replace").decode())


def test_the_status_message_is_the_public_one() -> None:
    status = to_status(unavailable("m"))
    assert status == status_pb2.Status.FromString(status.SerializeToString())
    assert (status.code, status.message) == (14, "m")
