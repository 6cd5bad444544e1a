"""Receipts as a stream, and the bounded sample of them that the page's latencies are computed from."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import receipt_pb2

from tenth_client.errors import TenthClientError
from tenth_client.reporting.sums import READ
from tenth_client.rpc import Rpc

_PAGE = 1000
WHOLE_UP_TO = 20_000
"""With no more requests than this the sample is all of them."""
SLICES = 6
PER_SLICE = 100
"""With more, each bucket of time is cut into six, and the first 100 receipts of each are taken."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Receipts to measure latencies by; ``whole`` when they are all there are."""

    receipts: tuple[receipt_pb2.Receipt, ...]
    whole: bool


async def receipts(
    rpc: Rpc, which: ledger_pb2.ReceiptFilter, *, seconds: float = 3_600
) -> AsyncGenerator[receipt_pb2.Receipt, None]:
    """Every receipt that the filter lets through, oldest first.

    From a server without StreamReceipts: pages, newest first. Raises TenthClientError.
    """
    request = ledger_pb2.StreamReceiptsRequest(filter=which)
    seen = False
    try:
        async with aclosing(rpc.stream("ledger", READ, "StreamReceipts", request, seconds=seconds)) as messages:
            async for message in messages:
                seen = True
                for receipt in message.receipts:
                    yield receipt
    except TenthClientError as error:
        if seen or error.code is not grpc.StatusCode.UNIMPLEMENTED:
            raise
    else:
        return
    token = ""
    while True:
        page = await rpc.call(
            "ledger",
            READ,
            "ListReceipts",
            ledger_pb2.ListReceiptsRequest(filter=which, page_size=_PAGE, page_token=token),
            seconds=60,
        )
        for receipt in page.receipts:
            yield receipt
        token = page.next_page_token
        if not token:
            return


async def sample(rpc: Rpc, which: ledger_pb2.ReceiptFilter, request_count: int, edges: Sequence[datetime]) -> Sample:
    """A bounded sample: all receipts of a small report, else some of each part of each bucket.

    ``edges`` are the instants between which the buckets lie, one more than there are buckets.
    """
    if request_count <= WHOLE_UP_TO:
        return Sample(tuple([each async for each in receipts(rpc, which)]), whole=True)
    found: list[receipt_pb2.Receipt] = []
    for start, end in pairwise(edges):
        step = (end - start) / SLICES
        for index in range(SLICES):
            part = ledger_pb2.ReceiptFilter()
            part.CopyFrom(which)
            low, high = start + index * step, start + (index + 1) * step
            if which.HasField("start_time"):
                low = max(low, which.start_time.ToDatetime(UTC))
            if which.HasField("end_time"):
                high = min(high, which.end_time.ToDatetime(UTC))
            if low >= high:
                continue
            part.start_time.CopyFrom(timestamp(low))
            part.end_time.CopyFrom(timestamp(high))
            found += await _first(rpc, part, PER_SLICE)
    return Sample(tuple(found), whole=False)


async def _first(rpc: Rpc, which: ledger_pb2.ReceiptFilter, count: int) -> list[receipt_pb2.Receipt]:
    found: list[receipt_pb2.Receipt] = []
    async with aclosing(receipts(rpc, which, seconds=60)) as stream:
        async for receipt in stream:
            found.append(receipt)
            if len(found) == count:
                break
    return found


def latency(receipt: receipt_pb2.Receipt) -> timedelta | None:
    """From admission to the answer; None for a failed request and for a receipt without both times."""
    facts = receipt.facts
    if facts.failed or not (facts.HasField("create_time") and facts.HasField("end_time")):
        return None
    nanoseconds = facts.end_time.ToNanoseconds() - facts.create_time.ToNanoseconds()
    return timedelta(microseconds=nanoseconds / 1000) if nanoseconds >= 0 else None


def timestamp(moment: datetime) -> Timestamp:
    """An aware datetime for the wire."""
    result = Timestamp()
    result.FromDatetime(moment.astimezone(UTC))
    return result
