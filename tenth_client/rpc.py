"""Calls from the ``tenth`` command to any service of the mesh: one channel per service, typed errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from types import TracebackType
from typing import Any

import grpc

from tenth_client.connection import Connection, dial
from tenth_client.errors import decode


class Rpc:
    """An async context manager over a Connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._metadata = (("authorization", f"Bearer {connection.api_key}"),) if connection.api_key else ()

    async def __aenter__(self) -> Rpc:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel in self._channels.values():
            await channel.close()

    async def call(
        self, service: str, stub: Callable[[Any], Any], method: str, request: Any, *, seconds: float = 15.0
    ) -> Any:
        """One unary call to a service. Raises TenthClientError, and LookupError when its address is not known."""
        return await self._call(self.connection.address(service), stub, method, request, seconds)

    async def call_each(
        self, service: str, stub: Callable[[Any], Any], method: str, request: Any, *, seconds: float = 15.0
    ) -> list[Any]:
        """The same call to every replica of a service, for sharded ones."""
        addresses = replicas(self.connection.address(service))
        return await asyncio.gather(*(self._call(address, stub, method, request, seconds) for address in addresses))

    def replicas(self, service: str) -> list[str]:
        """The address of every replica of a service. Raises LookupError when none is known."""
        return replicas(self.connection.address(service))

    async def call_at(
        self, address: str, stub: Callable[[Any], Any], method: str, request: Any, *, seconds: float = 15.0
    ) -> Any:
        """One unary call to one replica."""
        return await self._call(address, stub, method, request, seconds)

    async def send(
        self, address: str, stub: Callable[[Any], Any], method: str, requests: Iterable[Any], *, seconds: float = 60.0
    ) -> Any:
        """A stream of messages to one replica, and its one answer."""
        try:
            return await getattr(stub(self._channel(address)), method)(
                iter(requests), timeout=seconds, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise decode(error) from None

    async def stream(
        self,
        service: str,
        stub: Callable[[Any], Any],
        method: str,
        request: Any,
        *,
        seconds: float = 15.0,
        address: str = "",
    ) -> AsyncGenerator[Any, None]:
        """The messages of a server's stream; leaving it early cancels it. Raises as ``call`` does.

        ``address`` names one replica.
        """
        stub_of = stub(self._channel(address or self.connection.address(service)))
        call = getattr(stub_of, method)(request, timeout=seconds, metadata=self._metadata)
        try:
            async for message in call:
                yield message
        except grpc.aio.AioRpcError as error:
            raise decode(error) from None
        finally:
            call.cancel()

    async def _call(self, address: str, stub: Callable[[Any], Any], method: str, request: Any, seconds: float) -> Any:
        try:
            return await getattr(stub(self._channel(address)), method)(
                request, timeout=seconds, metadata=self._metadata
            )
        except grpc.aio.AioRpcError as error:
            raise decode(error) from None

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = dial(address, self.connection.tls)
        return channel


def replicas(address: str) -> list[str]:
    """The single addresses of a list; a DNS name stays one."""
    if address.startswith("dns:"):
        return [address]
    return [part.strip() for part in address.removeprefix("ipv4:").split(",")]
