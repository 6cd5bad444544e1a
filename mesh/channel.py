"""One way to call a service.

``connect`` returns a channel that generated stubs take as it is; every call through it gets the deadline budget,
the trace headers and the signed identity, and fails with TenthError. Retries are data: only the listed idempotent
unary methods are tried again, on UNAVAILABLE alone, through gRPC's service config.

A target is a gRPC target (``host:port``, ``dns:///host:port``, ``ipv4:a:1,b:2``) balanced round robin. With
``sharded=True`` it is a comma-separated list of replicas or a DNS name, and calls that carry a routing key
(``routing_key``) reach the same replica by rendezvous hashing.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import grpc
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from mesh import deadlines
from mesh.auth import IDENTITY_KEY, Signer, identity_or_none
from mesh.errors import TenthError, unavailable
from mesh.settings import MeshSettings
from mesh.status import from_rpc_error
from mesh.telemetry import TRACEPARENT, Telemetry, traceparent

_routing_key: ContextVar[str] = ContextVar("tenth_routing_key", default="")
_RESOLVE_SECONDS = 5.0


@contextmanager
def routing_key(key: str) -> Iterator[None]:
    """Calls made inside go to the replica that rendezvous hashing gives for this key (sharded channels only)."""
    token = _routing_key.set(key)
    try:
        yield
    finally:
        _routing_key.reset(token)


def connect(
    target: str,
    settings: MeshSettings,
    telemetry: Telemetry,
    signer: Signer | None = None,
    *,
    retryable: Sequence[tuple[str, str]] = (),
    sharded: bool = False,
    api_key: str = "",
) -> MeshChannel:
    """A channel to a service. ``retryable`` names idempotent unary methods as (service, method)."""
    options = _options(settings, retryable)
    credentials = _credentials(settings)

    def dial(address: str) -> grpc.aio.Channel:
        if credentials is None:
            return grpc.aio.insecure_channel(address, options=options)
        return grpc.aio.secure_channel(address, credentials, options=options)

    pool: _Pool = _ShardedPool(target, dial) if sharded else _SinglePool(dial(target))
    return MeshChannel(target, pool, telemetry, signer, api_key)


def rendezvous(key: str, replicas: Sequence[str]) -> str:
    """The replica that owns a key: highest SHA-256 of key and replica (Thaler and Ravishankar, 1998)."""
    return max(replicas, key=lambda replica: hashlib.sha256(f"{key}\x00{replica}".encode()).digest())


class MeshChannel(grpc.aio.Channel):
    """A grpc.aio channel whose calls carry deadline, trace and identity. Made by ``connect``."""

    def __init__(self, target: str, pool: _Pool, telemetry: Telemetry, signer: Signer | None, api_key: str) -> None:
        self.target = target
        self._pool = pool
        self._telemetry = telemetry
        self._signer = signer
        self._api_key = api_key

    async def __aenter__(self) -> MeshChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Close the connections; running calls get ``grace`` seconds."""
        await self._pool.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        """Connectivity of the (first) connection."""
        return self._pool.first().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        """Wait until the (first) connection's state changes."""
        await self._pool.first().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        """Wait until the (first) connection is up."""
        await self._pool.first().channel_ready()

    def unary_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A unary call; used by generated stubs."""
        kwargs.pop("_registered_method", None)
        return _UnaryCall(self, method, "unary_unary", args, kwargs)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A server-streaming call; used by generated stubs."""
        kwargs.pop("_registered_method", None)
        return _StreamCall(self, method, "unary_stream", args, kwargs)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A client-streaming call; used by generated stubs."""
        kwargs.pop("_registered_method", None)
        return _UnaryCall(self, method, "stream_unary", args, kwargs)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A bidirectional call; used by generated stubs."""
        kwargs.pop("_registered_method", None)
        return _StreamCall(self, method, "stream_stream", args, kwargs)

    def metadata(self, span: trace.Span) -> tuple[tuple[str, str], ...]:
        """The headers of one call."""
        headers = [(TRACEPARENT, traceparent(span))] if span.get_span_context().is_valid else []
        identity = identity_or_none()
        if self._signer is not None and identity is not None:
            headers.append((IDENTITY_KEY, self._signer.token(identity)))
        elif self._api_key:
            headers.append(("authorization", f"Bearer {self._api_key}"))
        return tuple(headers)

    def span(self, method: str) -> trace.Span:
        """The client span of one call."""
        service, _, name = method.lstrip("/").rpartition("/")
        return self._telemetry.tracer.start_span(
            f"{service}/{name}",
            kind=SpanKind.CLIENT,
            attributes={
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": name,
                "server.address": self.target,
            },
        )

    async def connection(self) -> grpc.aio.Channel:
        """The connection for a call made now."""
        return await self._pool.pick(_routing_key.get())


class _Call:
    def __init__(
        self, channel: MeshChannel, method: str, kind: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        self._channel = channel
        self._method = method
        self._kind = kind
        self._args = args
        self._kwargs = kwargs
        self._stubs: dict[int, Any] = {}

    async def _stub(self) -> Any:
        connection = await self._channel.connection()
        stub = self._stubs.get(id(connection))
        if stub is None:
            stub = getattr(connection, self._kind)(self._method, *self._args, **self._kwargs)
            self._stubs[id(connection)] = stub
        return stub


class _UnaryCall(_Call):
    async def __call__(self, request: Any, *, timeout: float | None = None, **_: Any) -> Any:  # noqa: ASYNC109  (gRPC's own signature)
        seconds = deadlines.budget(timeout)
        span = self._channel.span(self._method)
        try:
            stub = await self._stub()
            return await stub(request, timeout=seconds, metadata=self._channel.metadata(span))
        except grpc.aio.AioRpcError as error:
            raise _failed(span, error) from None
        finally:
            span.end()


class _StreamCall(_Call):
    def __call__(self, request: Any, *, timeout: float | None = None, **_: Any) -> AsyncIterator[Any]:
        return self._iterate(request, deadlines.budget(timeout))

    async def _iterate(self, request: Any | AsyncIterable[Any], seconds: float | None) -> AsyncIterator[Any]:
        span = self._channel.span(self._method)
        call: Any = None
        try:
            stub = await self._stub()
            call = stub(request, timeout=seconds, metadata=self._channel.metadata(span))
            async for response in call:
                yield response
        except grpc.aio.AioRpcError as error:
            raise _failed(span, error) from None
        finally:
            # Left early (GeneratorExit, cancellation): the other side must stop working.
            if call is not None and not call.done():
                call.cancel()
            span.end()


def _failed(span: trace.Span, error: grpc.aio.AioRpcError) -> TenthError:
    typed = from_rpc_error(error)
    span.set_status(Status(StatusCode.ERROR, typed.reason))
    span.set_attribute("rpc.grpc.status_code", typed.code.value)
    return typed


class _Pool(ABC):
    """The connections behind one channel."""

    @abstractmethod
    def first(self) -> grpc.aio.Channel: ...

    @abstractmethod
    async def pick(self, key: str) -> grpc.aio.Channel: ...

    @abstractmethod
    async def close(self, grace: float | None) -> None: ...


class _SinglePool(_Pool):
    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._channel = channel

    def first(self) -> grpc.aio.Channel:
        return self._channel

    async def pick(self, key: str) -> grpc.aio.Channel:
        return self._channel

    async def close(self, grace: float | None) -> None:
        await self._channel.close(grace)


class _ShardedPool(_Pool):
    def __init__(self, target: str, dial: Callable[[str], grpc.aio.Channel]) -> None:
        self._dial = dial
        self._name = target.removeprefix("dns:///") if target.startswith("dns:///") else ""
        self._addresses: list[str] = [] if self._name else sorted(part.strip() for part in target.split(","))
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._resolved_at = 0.0

    def first(self) -> grpc.aio.Channel:
        if not self._addresses:
            raise unavailable(f"{self._name} has no address yet")
        return self._channel(self._addresses[0])

    async def pick(self, key: str) -> grpc.aio.Channel:
        if self._name and time.monotonic() - self._resolved_at > _RESOLVE_SECONDS:
            await self._resolve()
        if not self._addresses:
            raise unavailable(f"{self._name} has no address")
        return self._channel(rendezvous(key, self._addresses))

    async def close(self, grace: float | None) -> None:
        for channel in self._channels.values():
            await channel.close(grace)

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = self._dial(address)
        return channel

    async def _resolve(self) -> None:
        self._resolved_at = time.monotonic()
        host, _, port = self._name.rpartition(":")
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        except OSError:
            return  # The addresses known so far stay in use.
        self._addresses = sorted({_host_port(str(info[4][0]), int(info[4][1])) for info in found})


def _host_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _options(settings: MeshSettings, retryable: Sequence[tuple[str, str]]) -> list[tuple[str, Any]]:
    config: dict[str, Any] = {"loadBalancingConfig": [{"round_robin": {}}]}
    if retryable:
        config["methodConfig"] = [
            {
                "name": [{"service": service, "method": method} for service, method in retryable],
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "0.5s",
                    "backoffMultiplier": 3,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ]
    return [
        ("grpc.service_config", json.dumps(config)),
        ("grpc.max_receive_message_length", settings.max_message_bytes),
        ("grpc.max_send_message_length", settings.max_message_bytes),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.max_pings_without_data", 0),
        # A restarted replica must be found again at once, not after gRPC's default two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
    ]


def _credentials(settings: MeshSettings) -> grpc.ChannelCredentials | None:
    if settings.tls_ca_file is None:
        return None
    key = settings.tls_key_file.read_bytes() if settings.tls_key_file else None
    chain = settings.tls_cert_file.read_bytes() if settings.tls_cert_file else None
    return grpc.ssl_channel_credentials(settings.tls_ca_file.read_bytes(), key, chain)
