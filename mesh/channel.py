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
import hashlib
import json
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
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
from mesh.errors import Code, Reason, TenthError, unavailable
from mesh.settings import MeshSettings
from mesh.status import METADATA_BYTES, from_rpc_error
from mesh.telemetry import TRACEPARENT, TRACESTATE, Telemetry, traceparent

_routing_key: ContextVar[str] = ContextVar("tenth_routing_key", default="")
_RESOLVE_SECONDS = 5.0
_CERTIFICATE_SECONDS = 1.0
_RETIRE_SECONDS = 60.0


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
    dialer = _Dialer(settings, _options(settings, retryable))
    pool: _Pool = _ShardedPool(target, dialer) if sharded else _SinglePool(target, dialer)
    return MeshChannel(target, pool, telemetry, signer, api_key, settings.default_deadline_seconds)


def rendezvous(key: str, replicas: Sequence[str]) -> str:
    """The replica that owns a key: highest SHA-256 of key and replica (Thaler and Ravishankar, 1998)."""
    return max(replicas, key=lambda replica: hashlib.sha256(f"{key}\x00{replica}".encode()).digest())


class MeshChannel(grpc.aio.Channel):
    """A grpc.aio channel whose calls carry deadline, trace and identity. Made by ``connect``."""

    def __init__(
        self,
        target: str,
        pool: _Pool,
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


class _Pool(ABC):
    """The connections behind one channel."""

    @abstractmethod
    def first(self) -> grpc.aio.Channel: ...

    @abstractmethod
    async def pick(self, key: str) -> grpc.aio.Channel: ...

    @abstractmethod
    async def close(self, grace: float | None) -> None: ...


class _SinglePool(_Pool):
    def __init__(self, target: str, dialer: _Dialer) -> None:
        self._target = target
        self._dialer = dialer
        self._channel = dialer.dial(target)
        self._version = dialer.version()

    def first(self) -> grpc.aio.Channel:
        return self._channel

    async def pick(self, key: str) -> grpc.aio.Channel:
        version = self._dialer.version()
        if version != self._version:
            self._version = version
            self._dialer.retire(self._channel)
            self._channel = self._dialer.dial(self._target)
        return self._channel

    async def close(self, grace: float | None) -> None:
        await self._channel.close(grace)
        await self._dialer.close()


class _ShardedPool(_Pool):
    def __init__(self, target: str, dialer: _Dialer) -> None:
        self._dialer = dialer
        self._version = dialer.version()
        self._name = target.removeprefix("dns:///") if target.startswith("dns:///") else ""
        if self._name and not self._name.rpartition(":")[2].isdigit():
            raise ValueError(f"{target}: a sharded DNS name needs a port")
        self._addresses = [] if self._name else sorted({part.strip() for part in target.split(",")} - {""})
        if not self._name and not self._addresses:
            raise ValueError("a sharded channel needs at least one address")
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._resolved_at = float("-inf")
        self._resolving: asyncio.Task[None] | None = None
        self._turn = 0

    def first(self) -> grpc.aio.Channel:
        if not self._addresses:
            raise unavailable(f"{self._name} has no address yet")
        return self._channel(self._addresses[0])

    async def pick(self, key: str) -> grpc.aio.Channel:
        if self._name and time.monotonic() - self._resolved_at > _RESOLVE_SECONDS:
            if self._resolving is None or self._resolving.done():
                self._resolving = asyncio.create_task(self._resolve())
            if not self._addresses:  # Otherwise the call goes on with the addresses known so far.
                await asyncio.shield(self._resolving)
        if not self._addresses:
            raise unavailable(f"{self._name} has no address")
        version = self._dialer.version()
        if version != self._version:
            self._version = version
            self._drop(list(self._channels))
        return self._channel(rendezvous(key, self._addresses) if key else self._next())

    async def close(self, grace: float | None) -> None:
        if self._resolving is not None:
            self._resolving.cancel()
        for channel in self._channels.values():
            await channel.close(grace)
        await self._dialer.close()

    def _next(self) -> str:
        """The replicas in turn, without those known to be down."""
        for _ in self._addresses:
            self._turn += 1
            address = self._addresses[self._turn % len(self._addresses)]
            if self._channel(address).get_state() is not grpc.ChannelConnectivity.TRANSIENT_FAILURE:
                break
        return address

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = self._dialer.dial(address)
        return channel

    def _drop(self, addresses: Iterable[str]) -> None:
        for address in addresses:
            self._dialer.retire(self._channels.pop(address))

    async def _resolve(self) -> None:
        host, _, port = self._name.rpartition(":")
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
        except OSError:
            return  # The addresses known so far stay in use; the next call tries again.
        self._resolved_at = time.monotonic()
        self._addresses = sorted({_host_port(str(info[4][0]), int(info[4][1])) for info in found})
        self._drop(self._channels.keys() - set(self._addresses))


class _Dialer:
    """Opens connections, with the certificates as they are now, and closes the ones that are replaced."""

    def __init__(self, settings: MeshSettings, options: list[tuple[str, Any]]) -> None:
        self._settings = settings
        self._options = options
        files = (settings.tls_ca_file, settings.tls_cert_file, settings.tls_key_file)
        self._files = [file for file in files if file is not None] if settings.tls_ca_file is not None else []
        self._checked_at = time.monotonic()
        self._credentials = _credentials(settings)
        self._version = self._stamps()
        self._retiring: set[asyncio.Task[None]] = set()

    def dial(self, address: str) -> grpc.aio.Channel:
        """A new connection."""
        if self._credentials is None:
            return grpc.aio.insecure_channel(address, options=self._options)
        return grpc.aio.secure_channel(address, self._credentials, options=self._options)

    def version(self) -> object:
        """Changes when the certificates have; connections made before are to be replaced then."""
        if self._files and time.monotonic() - self._checked_at > _CERTIFICATE_SECONDS:
            self._checked_at = time.monotonic()
            try:
                stamps = self._stamps()
                if stamps != self._version:
                    self._credentials = _credentials(self._settings)
                    self._version = stamps
            except OSError:
                pass  # Being replaced right now: what was read last stays in use.
        return self._version

    def retire(self, channel: grpc.aio.Channel) -> None:
        """Close a connection when its calls are over."""
        task = asyncio.create_task(channel.close(_RETIRE_SECONDS))
        self._retiring.add(task)
        task.add_done_callback(self._retiring.discard)

    async def close(self) -> None:
        """Close at once what is being retired."""
        for task in list(self._retiring):
            task.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)

    def _stamps(self) -> tuple[tuple[int, int], ...]:
        return tuple((stat.st_mtime_ns, stat.st_ino) for stat in (file.stat() for file in self._files))


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
        ("grpc.max_metadata_size", METADATA_BYTES),
        ("grpc.absolute_max_metadata_size", METADATA_BYTES),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.http2.max_pings_without_data", 0),
        # A restarted replica must be found again at once, not after gRPC's default two minutes.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
        # Despite its name the time that one attempt may take: a busy machine's TLS handshake needs more than 100 ms.
        ("grpc.min_reconnect_backoff_ms", 2_000),
        # New replicas behind a name are found when an old one leaves; gRPC would ask DNS twice a minute at most.
        ("grpc.dns_min_time_between_resolutions_ms", 1_000),
    ]


def _credentials(settings: MeshSettings) -> grpc.ChannelCredentials | None:
    if settings.tls_ca_file is None:
        return None
    key = settings.tls_key_file.read_bytes() if settings.tls_key_file else None
    chain = settings.tls_cert_file.read_bytes() if settings.tls_cert_file else None
    return grpc.ssl_channel_credentials(settings.tls_ca_file.read_bytes(), key, chain)
