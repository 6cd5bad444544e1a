"""One way to call a service.

``connect`` returns a channel that generated stubs take as it is; every call through it gets the deadline budget,
the trace headers and the signed identity, and fails with TenthError. Retries are data: only the listed idempotent
unary methods are tried again, on UNAVAILABLE alone, through gRPC's service config.

A target is a gRPC target (``host:port``, ``dns:///host:port``, ``ipv4:a:1,b:2``) balanced round robin. With
``sharded=True`` it is a comma-separated list of replicas or ``dns:///host:port``, and calls that carry a routing key
(``routing_key``) reach the same replica by rendezvous hashing; calls without one take the replicas in turn.
A replica that is down fails its calls at once, as UNAVAILABLE.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import grpc
from google.protobuf.message import DecodeError
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from mesh import deadlines
from mesh.auth import AUTHORIZATION_KEY, IDENTITY_KEY, Signer, identity_or_none
from mesh.connections import Dialer, Pool, ShardedPool, SinglePool, channel_options, rendezvous
from mesh.errors import Code, Reason, TenthError, unavailable
from mesh.settings import MeshSettings
from mesh.status import from_rpc_error
from mesh.telemetry import TRACEPARENT, TRACESTATE, Telemetry, traceparent

__all__ = ["MeshChannel", "connect", "rendezvous", "routing_key"]

log = logging.getLogger("tenth.channel")

_routing_key: ContextVar[str] = ContextVar("tenth_routing_key", default="")


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
    dialer = Dialer(settings, channel_options(settings, retryable))
    pool: Pool = ShardedPool(target, dialer) if sharded else SinglePool(target, dialer)
    return MeshChannel(target, pool, telemetry, signer, api_key, settings.default_deadline_seconds)


class MeshChannel(grpc.aio.Channel):
    """A grpc.aio channel whose calls carry deadline, trace and identity. Made by ``connect``."""

    def __init__(
        self,
        target: str,
        pool: Pool,
        telemetry: Telemetry,
        signer: Signer | None,
        api_key: str,
        default_seconds: float,
    ) -> None:
        self.target = target
        self.default_seconds = default_seconds
        self._pool = pool
        self._telemetry = telemetry
        self._signer = signer
        self._authorization = f"Bearer {api_key}" if api_key else ""

    async def __aenter__(self) -> MeshChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self, grace: float | None = None) -> None:
        """Close the connections; running calls get ``grace`` seconds."""
        await self._pool.close(grace)

    async def replicas(self) -> tuple[str, ...]:
        """Routing keys that reach each replica of a sharded channel once; one key for any other channel."""
        return await self._pool.replicas()

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
        return _UnaryCall(self, method, "unary_unary", *args, **kwargs)

    def unary_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A server-streaming call; used by generated stubs."""
        return _StreamCall(self, method, "unary_stream", *args, **kwargs)

    def stream_unary(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A client-streaming call; used by generated stubs."""
        return _UnaryCall(self, method, "stream_unary", *args, **kwargs)

    def stream_stream(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """A bidirectional call; used by generated stubs."""
        return _StreamCall(self, method, "stream_stream", *args, **kwargs)

    def metadata(self, span: trace.Span) -> tuple[tuple[str, str], ...]:
        """The headers of one call."""
        headers = []
        context = span.get_span_context()
        if context.is_valid:
            headers.append((TRACEPARENT, traceparent(span)))
            if context.trace_state:
                headers.append((TRACESTATE, context.trace_state.to_header()))
        identity = identity_or_none()
        if self._signer is not None and identity is not None:
            headers.append((IDENTITY_KEY, self._signer.token(identity)))
        elif self._authorization:
            headers.append((AUTHORIZATION_KEY, self._authorization))
        return tuple(headers)

    def span(self, name: str, attributes: Mapping[str, str]) -> trace.Span:
        """The client span of one call."""
        return self._telemetry.tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)

    async def connection(self) -> grpc.aio.Channel:
        """The connection for a call made now."""
        return await self._pool.pick(_routing_key.get())


class _Call:
    """One method of a stub. Messages are encoded and decoded here: grpc.aio turns failures of either into None."""

    def __init__(
        self,
        channel: MeshChannel,
        method: str,
        kind: str,
        request_serializer: Callable[[Any], bytes] | None = None,
        response_deserializer: Callable[[bytes], Any] | None = None,
        **_: Any,
    ) -> None:
        service, _unused, name = method.lstrip("/").rpartition("/")
        self._channel = channel
        self._method = method
        self._kind = kind
        self._name = f"{service}/{name}"
        self._attributes = {
            "rpc.system": "grpc",
            "rpc.service": service,
            "rpc.method": name,
            "server.address": channel.target,
        }
        self._serialize = request_serializer or bytes
        self._deserialize = response_deserializer or bytes
        self._streams_requests = kind.startswith("stream_")
        # By connection, so that a stub never outlives the connection it belongs to.
        self._stubs: WeakKeyDictionary[grpc.aio.Channel, Any] = WeakKeyDictionary()

    async def _start(self, request: Any, seconds: float | None, metadata: tuple[tuple[str, str], ...]) -> Any:
        connection = await self._channel.connection()
        stub = self._stubs.get(connection)
        if stub is None:
            stub = self._stubs[connection] = getattr(connection, self._kind)(self._method)
        call = stub(request, timeout=seconds, metadata=metadata)
        if self._streams_requests and hasattr(call, "_cython_call"):
            call._cython_call = _TrueStatus(call._cython_call)
        return call

    def _decode(self, raw: bytes) -> Any:
        try:
            return self._deserialize(raw)
        except (DecodeError, ValueError) as error:
            raise TenthError(
                Code.INTERNAL, Reason.MALFORMED_MESSAGE, f"the answer of {self._name} is not a valid message"
            ) from error

    def _failed(self, span: trace.Span, error: BaseException, requests: _Requests | None) -> BaseException:
        """What the caller of a failed call gets."""
        if requests is not None and requests.error is not None:
            raised: BaseException = requests.error  # gRPC cancelled the call because of it.
        elif isinstance(error, grpc.aio.AioRpcError):
            raised = from_rpc_error(error)
            if raised.reason == Reason.UNREACHABLE and not error.trailing_metadata():
                # gRPC's own words name addresses of the mesh, and the error may go on to an outside caller.
                log.debug("%s: %s", self._name, raised.message)
                raised = unavailable(f"{self._attributes['rpc.service']} does not answer")
        elif isinstance(error, grpc.aio.UsageError):
            raised = unavailable(f"the channel to {self._channel.target} is closed")
        elif isinstance(error, asyncio.CancelledError) and not _being_cancelled():
            # Not this task but the call was cancelled: its channel was closed under it.
            raised = unavailable(f"the channel to {self._channel.target} was closed during the call")
        else:
            raised = error
        if isinstance(raised, TenthError):
            span.set_status(Status(StatusCode.ERROR, raised.reason))
            span.set_attribute("rpc.grpc.status_code", raised.code.value)
        elif isinstance(raised, asyncio.CancelledError | GeneratorExit):
            span.set_attribute("tenth.cancelled", True)
        else:
            span.set_status(Status(StatusCode.ERROR, type(raised).__name__))
        return raised


class _UnaryCall(_Call):
    async def __call__(self, request: Any, *, timeout: float | None = None, **_: Any) -> Any:  # noqa: ASYNC109  (gRPC's own signature)
        seconds = deadlines.budget(timeout)
        if seconds is None and not self._streams_requests:
            seconds = self._channel.default_seconds
        requests = _Requests(request, self._serialize) if self._streams_requests else None
        encoded = self._serialize(request) if requests is None else requests
        span = self._channel.span(self._name, self._attributes)
        call: Any = None
        try:
            call = await self._start(encoded, seconds, self._channel.metadata(span))
            return self._decode(await call)
        except BaseException as error:
            raised = self._failed(span, error, requests)
            if raised is error:
                raise
            raise raised from None
        finally:
            span.end()
            if requests is not None:
                await requests.close(call)


class _StreamCall(_Call):
    def __call__(self, request: Any, *, timeout: float | None = None, **_: Any) -> AsyncIterator[Any]:
        seconds = deadlines.budget(timeout)
        requests = _Requests(request, self._serialize) if self._streams_requests else None
        return self._iterate(self._serialize(request) if requests is None else requests, requests, seconds)

    async def _iterate(self, encoded: Any, requests: _Requests | None, seconds: float | None) -> AsyncIterator[Any]:
        span = self._channel.span(self._name, self._attributes)
        call: Any = None
        try:
            call = await self._start(encoded, seconds, self._channel.metadata(span))
            async for raw in call:
                yield self._decode(raw)
        except BaseException as error:
            raised = self._failed(span, error, requests)
            if raised is error:
                raise
            raise raised from None
        finally:
            # Left early (GeneratorExit, cancellation): the other side must stop working.
            if call is not None and not call.done():
                call.cancel()
            span.end()
            if requests is not None:
                await requests.close(call)


class _TrueStatus:
    """A client-streaming call that ends with the status that the server gave.

    When a write meets a stream that the server has just ended, grpc.aio 1.85 reports "Internal error from Core" in
    place of the server's status, which is on its way. Without that report it waits for the real one.
    """

    def __init__(self, call: Any) -> None:
        self._call = call

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def set_internal_error(self, _: str) -> None:
        """Left out."""


class _Requests:
    """The messages of a client stream. Keeps the error of the iterator, which gRPC would drop."""

    def __init__(self, messages: AsyncIterable[Any], serialize: Callable[[Any], bytes]) -> None:
        self._messages = aiter(messages)
        self._serialize = serialize
        self._idle = asyncio.Event()
        self._idle.set()
        self.error: Exception | None = None

    def __aiter__(self) -> _Requests:
        return self

    async def __anext__(self) -> bytes:
        self._idle.clear()
        try:
            return self._serialize(await anext(self._messages))
        except StopAsyncIteration:
            raise
        except Exception as error:
            self.error = error
            raise
        finally:
            self._idle.set()

    async def close(self, call: Any) -> None:
        """End the caller's generator now, not when it is collected: the other side may answer before it is used up."""
        if call is not None and not call.done():
            call.cancel()
        await self._idle.wait()  # The call's own task may be inside the generator.
        close = getattr(self._messages, "aclose", None)
        if close is not None:
            await close()


def _being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
