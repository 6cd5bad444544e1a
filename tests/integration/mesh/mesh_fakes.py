"""A cache servicer whose methods each test writes itself, on a real MeshServer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from tenth.cache.v1 import cache_pb2, cache_pb2_grpc

from mesh.auth import Authenticator
from mesh.server import MeshServer
from mesh.settings import MeshSettings
from mesh.telemetry import Telemetry
from mesh.testing import KEY, memory_telemetry, write_callers

SERVICE = "tenth.cache.v1.CacheService"
REGISTER = cast(Any, cache_pb2_grpc.add_CacheServiceServicer_to_server)


if TYPE_CHECKING:
    Base = object  # The typed stand-in is abstract; a fake has only the methods that its tests use.
else:
    Base = cache_pb2_grpc.CacheServiceServicer


class Fake(Base):
    """Embed (unary), FollowCompletion (server stream) and PublishCompletion (client stream), as given."""

    def __init__(
        self,
        embed: Callable[..., Any] | None = None,
        follow: Callable[..., Any] | None = None,
        publish: Callable[..., Any] | None = None,
    ) -> None:
        self._embed = embed
        self._follow = follow
        self._publish = publish
        self.calls = 0

    async def Embed(self, request: Any, context: Any) -> Any:
        self.calls += 1
        if self._embed is None:
            return cache_pb2.EmbedResponse(compute_micros=len(request.texts))
        return await self._embed(request, context)

    async def FollowCompletion(self, request: Any, context: Any) -> AsyncIterator[Any]:
        self.calls += 1
        assert self._follow is not None
        async for event in self._follow(request, context):
            yield event

    async def PublishCompletion(self, request_iterator: Any, context: Any) -> Any:
        self.calls += 1
        assert self._publish is not None
        return await self._publish(request_iterator, context)


def piece(text: str) -> cache_pb2.FollowCompletionResponse:
    """One event of a stream."""
    event = cache_pb2.FollowCompletionResponse()
    event.delta.text = text
    return event


@asynccontextmanager
async def serving(
    servicer: object, tmp_path: Path, telemetry: Telemetry | None = None, **settings: Any
) -> AsyncIterator[tuple[MeshServer, str]]:
    """A server with settings of its own; drains at the end."""
    values = {"unready_seconds": 0, "drain_seconds": 0.5, "listen": "127.0.0.1:0", **settings}
    callers = write_callers(tmp_path / "callers.yaml")
    server = MeshServer(
        MeshSettings(**values), telemetry or memory_telemetry()[0], Authenticator(callers, KEY), pings={}
    )
    server.add(REGISTER, servicer, SERVICE)
    port = await server.start()
    try:
        yield server, f"127.0.0.1:{port}"
    finally:
        await server.drain()


async def until(condition: Callable[[], bool], seconds: float = 3.0) -> None:
    """Wait for something that another task or process does."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  (polls what has no event to wait for)
            await asyncio.sleep(0.01)
