"""The typed async client of the batch service: work that can wait, for half the price or less.

    async with Batches("127.0.0.1:7106", api_key) as batches:
        created = await batches.create(Path("questions.jsonl"), completion_window_seconds=24 * 3600)
        async for batch in batches.watch(created.batch.batch_id):
            print(batch.done_count, "of", batch.item_count)
        async for result in batches.results(created.batch.batch_id):
            print(result.custom_id, result.completion.message)

Creating is idempotent by ``request_id``: the same id and the same items are the same batch.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import grpc
from google.protobuf.duration_pb2 import Duration
from tenth.batch.v1 import batch_pb2, batch_pb2_grpc

from tenth_client.batch_files import pieces
from tenth_client.connection import Tls, dial
from tenth_client.errors import TenthClientError, decode
from tenth_client.retries import Retry

T = TypeVar("T")

Parts = Iterable[bytes | batch_pb2.BatchItem]
"""Items, or JSONL in OpenAI's batch format in pieces of any size; not both in one batch."""

ENDED = frozenset({batch_pb2.BATCH_STATE_DONE, batch_pb2.BATCH_STATE_CANCELLED, batch_pb2.BATCH_STATE_FAILED})
"""The states that nothing but RetryFailed changes."""

_CREATE_SECONDS = 3600.0
_RESULTS_SECONDS = 8 * 24 * 3600.0
"""A day more than the longest completion window."""


class Batches:
    """A connection to the batch service. An async context manager; safe to share between tasks.

    Every method raises TenthClientError. ``retry_seconds`` bounds how long UNAVAILABLE is retried (0: never).
    """

    def __init__(
        self,
        address: str,
        api_key: str = "",
        *,
        tls: Tls | None = None,
        timeout: float = 30.0,
        retry_seconds: float = 15.0,
        channel: grpc.aio.Channel | None = None,
    ) -> None:
        self._channel = channel if channel is not None else dial(address, tls)
        self._stub: Any = batch_pb2_grpc.BatchServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        self._timeout = timeout
        self._retry_seconds = retry_seconds

    async def __aenter__(self) -> Batches:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; running calls are cancelled, batches go on."""
        await self._channel.close()

    async def create(
        self,
        source: Path | Parts | Callable[[], Parts],
        *,
        completion_window_seconds: float = 24 * 3600.0,
        request_id: str = "",
        user_id: str = "",
        project_id: str = "",
        tags: Mapping[str, str] | None = None,
        lanes: Sequence[str] = (),
        timeout: float = _CREATE_SECONDS,  # noqa: ASYNC109  (becomes the RPC's deadline)
    ) -> batch_pb2.CreateBatchResponse:
        """Create a batch. With ``line_errors`` there is none, and nothing was spent.

        ``source`` is a file (JSONL, plain or gzip: OpenAI's batch format, or one chat-completions body a line),
        the parts, or a function that gives them. They are read as they are sent, never held together. An iterator
        can be read once: then a broken upload is not tried again. ``completion_window_seconds`` is 60 to 604,800.
        """
        window = Duration()
        window.FromMilliseconds(round(completion_window_seconds * 1000))
        header = batch_pb2.BatchHeader(
            request_id=request_id or str(uuid.uuid4()),
            completion_window=window,
            user_id=user_id,
            project_id=project_id,
            tags=tags or {},
            lanes=lanes,
        )
        parts, repeatable = _readable(source)

        async def send(_: None, **how: Any) -> batch_pb2.CreateBatchResponse:
            response: batch_pb2.CreateBatchResponse = await self._stub.CreateBatch(_requests(header, parts()), **how)
            return response

        return await self._call(send, None, timeout, retry=repeatable)

    async def get(self, batch_id: str) -> batch_pb2.Batch:
        """One batch as it stands."""
        call = batch_pb2.GetBatchRequest(batch_id=batch_id)
        response: batch_pb2.GetBatchResponse = await self._call(self._stub.GetBatch, call)
        return response.batch

    async def newest(self, count: int = 100) -> list[batch_pb2.Batch]:
        """The tenant's newest batches, at most ``count``."""
        found: list[batch_pb2.Batch] = []
        token = ""
        while len(found) < count:
            call = batch_pb2.ListBatchesRequest(page_size=min(count - len(found), 100), page_token=token)
            response: batch_pb2.ListBatchesResponse = await self._call(self._stub.ListBatches, call)
            found.extend(response.batches)
            token = response.next_page_token
            if not token:
                break
        return found[:count]

    async def watch(self, batch_id: str, *, interval_seconds: float = 1.0) -> AsyncIterator[batch_pb2.Batch]:
        """The batch as it stands, again and again until it has ended; its last state comes last."""
        while True:
            batch = await self.get(batch_id)
            yield batch
            if batch.state in ENDED:
                return
            await asyncio.sleep(interval_seconds)

    async def results(
        self,
        batch_id: str,
        *,
        in_input_order: bool = False,
        timeout: float = _RESULTS_SECONDS,  # noqa: ASYNC109  (becomes the RPC's deadline)
    ) -> AsyncIterator[batch_pb2.StreamBatchResultsResponse]:
        """Every item's result once, as they come or in input order; of a running batch it waits for the rest.

        A connection that breaks is made again; what had come is not given twice.
        """
        call = batch_pb2.StreamBatchResultsRequest(batch_id=batch_id, in_input_order=in_input_order)
        given: set[str] = set()
        deadline = time.monotonic() + timeout
        retry = Retry(self._retry_seconds)
        while True:
            left = max(0.0, deadline - time.monotonic())
            stream = self._stub.StreamBatchResults(call, timeout=left, metadata=self._metadata)
            try:
                async for result in stream:
                    if result.custom_id not in given:
                        given.add(result.custom_id)
                        # Whoever streams for hours may lose the connection more than once.
                        retry = Retry(self._retry_seconds)
                        yield result
                return
            except grpc.aio.AioRpcError as raw:
                error = decode(raw)
                if not await retry.wait(error):
                    raise error from None
            finally:
                if not stream.done():
                    stream.cancel()

    async def cancel(self, batch_id: str) -> batch_pb2.Batch:
        """Stop a batch; what ran is billed. Cancelling twice is cancelling once."""
        call = batch_pb2.CancelBatchRequest(batch_id=batch_id)
        response: batch_pb2.CancelBatchResponse = await self._call(self._stub.CancelBatch, call)
        return response.batch

    async def retry_failed(self, batch_id: str) -> batch_pb2.Batch:
        """Run the failed items again. FAILED_PRECONDITION while the batch runs."""
        call = batch_pb2.RetryFailedRequest(batch_id=batch_id)
        response: batch_pb2.RetryFailedResponse = await self._call(self._stub.RetryFailed, call)
        return response.batch

    async def _call(
        self,
        method: Callable[..., Awaitable[T]],
        request: object,
        timeout: float | None = None,  # noqa: ASYNC109  (becomes the RPC's deadline)
        *,
        retry: bool = True,
    ) -> T:
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        waits = Retry(min(self._retry_seconds, deadline - time.monotonic()) if retry else 0.0)
        while True:
            try:
                return await method(request, timeout=max(0.0, deadline - time.monotonic()), metadata=self._metadata)
            except grpc.aio.AioRpcError as raw:
                error: TenthClientError = decode(raw)
            if not (retry and await waits.wait(error)):
                raise error


def _requests(header: batch_pb2.BatchHeader, parts: Parts) -> Iterator[batch_pb2.CreateBatchRequest]:
    yield batch_pb2.CreateBatchRequest(header=header)
    for part in parts:
        if isinstance(part, bytes):
            yield batch_pb2.CreateBatchRequest(jsonl=part)
        else:
            yield batch_pb2.CreateBatchRequest(item=part)


def _readable(source: Path | Parts | Callable[[], Parts]) -> tuple[Callable[[], Parts], bool]:
    """How to read a source from its beginning, and whether that can be done more than once."""
    if isinstance(source, Path):
        return lambda: pieces(source), True
    if callable(source):
        return source, True
    return lambda: source, isinstance(source, Sequence)
