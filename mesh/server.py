"""One way to be a server: errors, deadlines, identity, traces, metrics, health, reflection, TLS and drain.

All of it is one interceptor and one class, so that a servicer is only methods that take a request and return a
response (or raise TenthError).
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection
from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from mesh import deadlines
from mesh.auth import Authenticator, set_identity
from mesh.errors import Code, Reason, TenthError, deadline_exceeded
from mesh.settings import MeshSettings
from mesh.status import grpc_code, trailing_metadata
from mesh.telemetry import TRACEPARENT, Telemetry, parent_context

log = logging.getLogger("tenth.server")

Ping = Callable[[], Awaitable[None]]
"""Raises while the adapter it belongs to cannot work."""

_OPEN = ("/grpc.health.v1.Health/", "/grpc.reflection.v1alpha.ServerReflection/")
_PING_SECONDS = 5.0
_PING_RETRY_SECONDS = 0.2


class MeshServer:
    """A gRPC server with everything a service of the mesh owes its callers."""

    def __init__(
        self,
        settings: MeshSettings,
        telemetry: Telemetry,
        authenticator: Authenticator,
        pings: Mapping[str, Ping],
    ) -> None:
        self._settings = settings
        self._pings = pings
        self._services: list[str] = []
        self._health = HealthServicer()
        self._interceptor = _Interceptor(settings, telemetry, authenticator)
        self._server = grpc.aio.server(
            interceptors=(self._interceptor,),
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", settings.max_message_bytes),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                ("grpc.so_reuseport", 0),
            ],
        )
        self.port = 0

    def add(self, register: Callable[[Any, Any], None], servicer: object, full_name: str) -> None:
        """Serve a generated service: ``add(add_XServicer_to_server, servicer, "tenth.x.v1.XService")``."""
        register(servicer, self._server)
        self._services.append(full_name)

    async def start(self) -> int:
        """Bind and start; health stays NOT_SERVING until every ping answers. Returns the port."""
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        for name in ("", *self._services):
            await self._health.set(name, health_pb2.HealthCheckResponse.NOT_SERVING)
        if self._settings.reflection:
            reflection.enable_server_reflection((*self._services, reflection.SERVICE_NAME), self._server)
        credentials = _server_credentials(self._settings)
        listen = self._settings.listen
        if credentials is None:
            self.port = self._server.add_insecure_port(listen)
        else:
            self.port = self._server.add_secure_port(listen, credentials)
        await self._server.start()
        log.info("listening on %s:%d", listen.rpartition(":")[0], self.port)
        return self.port

    async def serve(self, stop: asyncio.Event | None = None) -> None:
        """Start, serve until SIGTERM, SIGINT or ``stop``, then drain. The caller closes adapters afterwards."""
        stop = stop or asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        await self.start()
        watcher = asyncio.create_task(self.watch_health())
        try:
            await stop.wait()
        finally:
            watcher.cancel()
            await self.drain()

    async def watch_health(self) -> None:
        """SERVING when every adapter's ping answers, NOT_SERVING while one does not."""
        serving: bool | None = None
        while True:
            failed = await self._failed_pings()
            if serving is not (not failed):
                serving = not failed
                state = health_pb2.HealthCheckResponse
                for name in ("", *self._services):
                    await self._health.set(name, state.SERVING if serving else state.NOT_SERVING)
                log.info("serving" if serving else f"not serving: {failed}")
            await asyncio.sleep(_PING_SECONDS if serving else _PING_RETRY_SECONDS)

    async def drain(self) -> None:
        """Go NOT_SERVING, let balancers notice, finish what runs, stop."""
        log.info("draining")
        await self._health.enter_graceful_shutdown()
        await asyncio.sleep(self._settings.unready_seconds)
        await self._server.stop(self._settings.drain_seconds)
        log.info("stopped")

    async def _failed_pings(self) -> dict[str, str]:
        failed: dict[str, str] = {}
        for name, ping in self._pings.items():
            try:
                await asyncio.wait_for(ping(), timeout=5)
            except Exception as error:
                # Any failure of any adapter means the same here: not ready, try again.
                failed[name] = str(error) or type(error).__name__
        return failed


class _Interceptor(grpc.aio.ServerInterceptor):
    """Wraps every handler once: decode, trace, authenticate, deadline, call, map errors."""

    def __init__(self, settings: MeshSettings, telemetry: Telemetry, authenticator: Authenticator) -> None:
        self._settings = settings
        self._telemetry = telemetry
        self._authenticator = authenticator
        self._wrapped: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]],
        details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = details.method
        if method.startswith(_OPEN):
            return await continuation(details)
        handler = self._wrapped.get(method)
        if handler is None:
            inner = await continuation(details)
            if inner is None:
                return inner
            handler = self._wrapped[method] = self._wrap(method, inner)
        return handler

    def _wrap(self, method: str, inner: Any) -> grpc.RpcMethodHandler[Any, Any]:
        decode = inner.request_deserializer

        # Requests are decoded here, not by gRPC, so that bytes that are no message get a typed error.
        if inner.unary_unary:

            async def unary_unary(raw: bytes, context: Any) -> Any:
                async with _Served(self, method, context) as served:
                    served.result = await inner.unary_unary(_decode(decode, raw), context)
                return served.result

            return grpc.unary_unary_rpc_method_handler(unary_unary, None, inner.response_serializer)
        if inner.unary_stream:

            async def unary_stream(raw: bytes, context: Any) -> AsyncIterator[Any]:
                async with _Served(self, method, context):
                    async for response in inner.unary_stream(_decode(decode, raw), context):
                        yield response

            return grpc.unary_stream_rpc_method_handler(unary_stream, None, inner.response_serializer)
        if inner.stream_unary:

            async def stream_unary(raws: AsyncIterator[bytes], context: Any) -> Any:
                async with _Served(self, method, context) as served:
                    served.result = await inner.stream_unary(_decode_all(decode, raws), context)
                return served.result

            return grpc.stream_unary_rpc_method_handler(stream_unary, None, inner.response_serializer)

        async def stream_stream(raws: AsyncIterator[bytes], context: Any) -> AsyncIterator[Any]:
            async with _Served(self, method, context):
                async for response in inner.stream_stream(_decode_all(decode, raws), context):
                    yield response

        return grpc.stream_stream_rpc_method_handler(stream_stream, None, inner.response_serializer)

    def begin(self, method: str, context: Any) -> trace.Span:
        """Start the server span and the deadline, and authenticate. Raises TenthError."""
        metadata = dict(context.invocation_metadata() or ())
        service, _, name = method.lstrip("/").rpartition("/")
        return self._telemetry.tracer.start_span(
            f"{service}/{name}",
            context=parent_context(metadata.get(TRACEPARENT)),
            kind=SpanKind.SERVER,
            attributes={"rpc.system": "grpc", "rpc.service": service, "rpc.method": name},
        )

    def admit(self, method: str, context: Any) -> None:
        """Authenticate the call and start its deadline. Raises TenthError."""
        metadata = dict(context.invocation_metadata() or ())
        set_identity(self._authenticator.authenticate(method, metadata, _sans(context)))
        left = context.time_remaining()
        if left is not None and left <= 0:
            raise deadline_exceeded("the deadline passed before the call began")
        deadlines.set_remaining(self._settings.default_deadline_seconds if left is None else left)

    def record(self, method: str, started: float, code: str) -> None:
        """Record the call's duration."""
        self._telemetry.rpc_duration.record(
            (time.perf_counter() - started) * 1000, {"rpc.method": method, "rpc.grpc.status_code": code}
        )


class _Served:
    """The frame around one served call: span, admission, error mapping, metric."""

    __slots__ = ("_context", "_interceptor", "_method", "_span", "_started", "_token", "result")

    def __init__(self, interceptor: _Interceptor, method: str, context: Any) -> None:
        self._interceptor = interceptor
        self._method = method
        self._context = context
        self.result: Any = None

    async def __aenter__(self) -> _Served:
        self._started = time.perf_counter()
        self._span = self._interceptor.begin(self._method, self._context)
        self._token = context_api.attach(trace.set_span_in_context(self._span))
        try:
            self._interceptor.admit(self._method, self._context)
        except TenthError as error:
            await self.__aexit__(type(error), error, None)
            raise  # Not reached: aborting raises.
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        typed = self._typed(error)
        try:
            if typed is not None:
                self._span.set_status(Status(StatusCode.ERROR, typed.reason))
                self._span.set_attribute("rpc.grpc.status_code", typed.code.value)
                await self._context.abort(grpc_code(typed.code), typed.message, trailing_metadata(typed))
        finally:
            self._span.end()
            self._interceptor.record(self._method, self._started, typed.code.name if typed else "OK")
            _detach(self._token)

    def _typed(self, error: BaseException | None) -> TenthError | None:
        if error is None or isinstance(error, grpc.aio.AbortError):
            return None
        if isinstance(error, TenthError):
            return error
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            self._span.set_attribute("tenth.cancelled", True)
            return None
        # The text of an unknown exception may hold a prompt or a secret: it goes to the log alone.
        trace_id = f"{self._span.get_span_context().trace_id:032x}"
        log.error("unhandled in %s, trace %s", self._method, trace_id, exc_info=error)
        return TenthError(
            Code.INTERNAL, Reason.INTERNAL, "internal error; the service's log has it", metadata={"trace_id": trace_id}
        )


def _detach(token: Any) -> None:
    # A stream that the client left is closed in another context than it was opened in; nothing to restore then.
    try:
        token.var.reset(token)
    except ValueError:
        return


def _decode(decode: Callable[[bytes], Any], raw: bytes) -> Any:
    try:
        return decode(raw)
    except (DecodeError, ValueError) as error:
        raise TenthError(
            Code.INVALID_ARGUMENT, Reason.MALFORMED_MESSAGE, "the request is not a valid message", "request"
        ) from error


async def _decode_all(decode: Callable[[bytes], Any], raws: AsyncIterator[bytes]) -> AsyncIterator[Any]:
    async for raw in raws:
        yield _decode(decode, raw)


def _sans(context: Any) -> tuple[str, ...]:
    peer = context.auth_context().get("x509_subject_alternative_name", ())
    return tuple(value.decode() for value in peer)


def _server_credentials(settings: MeshSettings) -> grpc.ServerCredentials | None:
    cert_file, key_file = settings.tls_cert_file, settings.tls_key_file
    if cert_file is None or key_file is None:
        return None

    def read() -> grpc.ServerCertificateConfiguration:
        pair = (key_file.read_bytes(), cert_file.read_bytes())
        roots = settings.tls_ca_file.read_bytes() if settings.tls_ca_file else None
        return grpc.ssl_server_certificate_configuration([pair], roots)

    def renew() -> grpc.ServerCertificateConfiguration | None:
        try:
            return read()
        except OSError:
            return None  # Being replaced right now: the certificate in use stays.

    return grpc.dynamic_ssl_server_credentials(read(), cast(Any, renew), settings.tls_ca_file is not None)
