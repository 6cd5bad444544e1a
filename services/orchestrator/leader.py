"""The leader's side of single flight: publish a slow answer to followers, store it at the end, or give the lease up."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator

from tenth.cache.v1 import cache_pb2, cache_pb2_grpc
from tenth.type.v1 import chat_pb2

from mesh import deadlines
from mesh.errors import TenthError
from services.orchestrator.background import Background

Item = cache_pb2.PublishCompletionRequest


class Leader:
    """Leads one flight. Without a lease (cache off, down or bypassed) it does nothing but store where asked.

    A quick answer costs one background StoreCompletion. Only an answer that takes longer than
    ``publish_after_seconds`` opens a publish stream, which keeps the lease alive and feeds the followers.
    """

    def __init__(
        self,
        cache: cache_pb2_grpc.CacheServiceAsyncStub,
        background: Background,
        lease_id: str,
        publish_after_seconds: float,
        cap_seconds: float,
    ) -> None:
        self._cache = cache
        self._background = background
        self._lease_id = lease_id
        self._cap_seconds = cap_seconds
        self._context = contextvars.copy_context()
        self._backlog: list[chat_pb2.CompletionDelta] = []
        self._queue: asyncio.Queue[Item | None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        if lease_id:
            self._timer = asyncio.get_running_loop().call_later(publish_after_seconds, self._open)

    def delta(self, delta: chat_pb2.CompletionDelta) -> None:
        """Pass a piece on to the followers."""
        if self._queue is not None:
            self._queue.put_nowait(Item(delta=delta))
        elif self._lease_id:
            self._backlog.append(delta)

    async def may_stop(self) -> bool:
        """Asked when the caller has left: give the lease up unless somebody follows."""
        if not self._lease_id:
            return True
        # In the request's context: its identity, and its routing key, without which another shard would be asked.
        return await asyncio.get_running_loop().create_task(self._release_unfollowed(), context=self._context)

    async def _release_unfollowed(self) -> bool:
        deadlines.set_remaining(None)  # The caller may have left because its deadline passed.
        try:
            request = cache_pb2.ReleaseLeaseRequest(lease_id=self._lease_id, only_if_unfollowed=True)
            reply = await self._cache.ReleaseLease(request, timeout=self._cap_seconds)
        except TenthError:
            return True  # Whoever follows will be promoted when the publish stream breaks.
        return reply.released

    def finish(
        self,
        request: chat_pb2.CompletionRequest,
        completion: chat_pb2.Completion,
        embedding: chat_pb2.Embedding | None,
        share_only: bool,
        price_book_version: int,
    ) -> asyncio.Future[str]:
        """End the flight with an answer, in the background. The future gets the new entry's id, or ""."""
        entry: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._close(Item(finished=completion))
        message = cache_pb2.StoreCompletionRequest(
            lease_id=self._lease_id,
            request=request,
            completion=completion,
            share_only=share_only,
            price_book_version=price_book_version,
        )
        if embedding is not None:
            message.embedding.CopyFrom(embedding)
        self._background.spawn("cache store", self._store(message, entry))
        return entry

    def give_up(self) -> None:
        """The request failed: somebody else may lead."""
        self._close(None)
        if self._lease_id:
            self._background.spawn("lease release", self._release())

    def _open(self) -> None:
        self._queue = asyncio.Queue()
        for delta in self._backlog:
            self._queue.put_nowait(Item(delta=delta))
        self._backlog.clear()
        self._background.spawn("publish", self._publish(self._queue))

    def _close(self, last: Item | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._queue is not None:
            if last is not None:
                self._queue.put_nowait(last)
            self._queue.put_nowait(None)

    async def _publish(self, queue: asyncio.Queue[Item | None]) -> None:
        async def items() -> AsyncIterator[Item]:
            yield Item(lease_id=self._lease_id)
            while (item := await queue.get()) is not None:
                yield item

        await self._cache.PublishCompletion(items())

    async def _store(self, message: cache_pb2.StoreCompletionRequest, entry: asyncio.Future[str]) -> None:
        try:
            reply = await self._cache.StoreCompletion(message, timeout=self._cap_seconds)
            entry.set_result(reply.entry_id)
        finally:
            if not entry.done():
                entry.set_result("")

    async def _release(self) -> None:
        await self._cache.ReleaseLease(
            cache_pb2.ReleaseLeaseRequest(lease_id=self._lease_id), timeout=self._cap_seconds
        )
