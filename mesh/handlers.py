"""The frame around every served call: decode, trace, authenticate, deadline, call, map errors, measure.

Handlers are wrapped once, when a service is added, and not by a grpc.aio interceptor: an interceptor costs two more
coroutines and a handler lookup on each call. Streams are written from a coroutine, not yielded from a generator, so
that the frame always ends in the task and context that it began in, also when the client has left.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.trace import SpanKind, Status, StatusCode

from mesh import deadlines
from mesh.auth import Authenticator, set_identity
from mesh.errors import Code, Reason, TenthError, deadline_exceeded, unavailable
from mesh.settings import MeshSettings
from mesh.status import grpc_code, trailing_metadata, wire_text
from mesh.telemetry import TRACEPARENT, TRACESTATE, Telemetry, parent_context

log = logging.getLogger("tenth.server")

_NO_SANS: tuple[str, ...] = ()


class Handlers:
    """Wraps the method handlers of services, and knows the calls in progress."""

    def __init__(self, settings: MeshSettings, telemetry: Telemetry, authenticator: Authenticator) -> None:
        self.telemetry = telemetry
        self.authenticator = authenticator
        self.default_seconds = settings.default_deadline_seconds
        self.mutual_tls = None not in (settings.tls_cert_file, settings.tls_ca_file)
        self.running: set[asyncio.Task[Any]] = set()
        self.draining = False

    def capture(
        self, register: Callable[[Any, Any], None], servicer: object
    ) -> dict[str, dict[str, grpc.RpcMethodHandler[Any, Any]]]:
        """Wrapped handlers by service and method, taken from a generated ``add_XServicer_to_server``."""
        captured = _Captured()
        register(servicer, captured)
        return {
            service: {name: self._wrap(f"/{service}/{name}", handler) for name, handler in handlers.items()}
            for service, handlers in captured.services.items()
        }

    async def cancel_running(self) -> None:
        """End the calls in progress as UNAVAILABLE, DRAINING; their callers may go to another replica."""
        tasks = [task for task in self.running if not task.done()]
        if tasks:
            log.warning("%d calls outlived the drain", len(tasks))
            self.draining = True
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1)

    def _wrap(self, path: str, inner: Any) -> grpc.RpcMethodHandler[Any, Any]:
        method = _Method(self, path)
        serialize = inner.response_serializer
        behaviour = inner.unary_unary or inner.unary_stream or inner.stream_unary or inner.stream_stream
        if getattr(behaviour, "__module__", "").endswith("_pb2_grpc"):
            behaviour = _unimplemented(path)  # The servicer does not override the generated stand-in.
        # Messages are decoded and encoded here, not by gRPC: bytes that are no message get a typed error, and an
        # answer that cannot be encoded does not leak its exception's text.
        read = _decode_all if inner.request_streaming else _decode
        decode = inner.request_deserializer

        async def one(raw: Any, context: Any) -> bytes:
            call = _Call(method, context)
            try:
                call.admit()
                request = read(decode, raw)
                if call.bounded or inner.request_streaming:
                    response = await behaviour(request, context)
                else:
                    response = await _within(method.handlers.default_seconds, behaviour(request, context))
                payload: bytes = serialize(response)
            except BaseException as error:
                await call.fail(error)
                raise
            call.end("OK")
            return payload

        async def many(raw: Any, context: Any) -> None:
            call = _Call(method, context)
            try:
                call.admit()
                responses = behaviour(read(decode, raw), context)
                if hasattr(responses, "__aiter__"):
                    await _write_all(responses, context.write)
                else:
                    await responses  # A servicer that writes to the context itself.
            except BaseException as error:
                await call.fail(error)
                raise
            call.end("OK")

        if inner.response_streaming:
            stream = grpc.stream_stream_rpc_method_handler if inner.request_streaming else None
            return (stream or grpc.unary_stream_rpc_method_handler)(many, None, serialize)
        single = grpc.stream_unary_rpc_method_handler if inner.request_streaming else None
        return (single or grpc.unary_unary_rpc_method_handler)(one, None, None)


class _Captured:
    """Stands in for the server while a generated register function runs."""

    def __init__(self) -> None:
        self.services: dict[str, Mapping[str, Any]] = {}

    def add_generic_rpc_handlers(self, _: object) -> None:
        """Holds the same handlers as the call below."""

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, Any]) -> None:
        self.services[service] = handlers


class _Method:
    """What is the same for all calls of a method."""

    __slots__ = ("attributes", "handlers", "name", "outcomes", "path")

    def __init__(self, handlers: Handlers, path: str) -> None:
        service, _, name = path[1:].rpartition("/")
        self.handlers = handlers
        self.path = path
        self.name = path[1:]
        self.attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": name}
        self.outcomes: dict[str, dict[str, str]] = {}

    def outcome(self, code: str) -> dict[str, str]:
        """The metric attributes of a call that ended with this code."""
        found = self.outcomes.get(code)
        if found is None:
            found = self.outcomes[code] = {"rpc.method": self.path, "rpc.grpc.status_code": code}
        return found


class _Call:
    """One served call. Its task and context are its own, so nothing needs to be put back at the end."""

    __slots__ = ("_context", "_metadata", "_method", "_span", "_started", "_task", "bounded")

    def __init__(self, method: _Method, context: Any) -> None:
        self._started = time.perf_counter()
        self._method = method
        self._context = context
        self._metadata = metadata = dict(context.invocation_metadata() or ())
        self.bounded = True
        handlers = method.handlers
        parent = parent_context(metadata.get(TRACEPARENT), metadata.get(TRACESTATE))
        self._span = handlers.telemetry.tracer.start_span(
            method.name, context=parent, kind=SpanKind.SERVER, attributes=method.attributes
        )
        context_api.attach(trace.set_span_in_context(self._span, parent))
        self._task = asyncio.current_task()
        if self._task is not None:
            handlers.running.add(self._task)

    def admit(self) -> None:
        """Authenticate the call and start its deadline. Raises TenthError."""
        handlers = self._method.handlers
        sans = _sans(self._context) if handlers.mutual_tls else _NO_SANS
        set_identity(handlers.authenticator.authenticate(self._method.path, self._metadata, sans))
        left = self._context.time_remaining()
        if left is None:
            self.bounded = False
            left = handlers.default_seconds
        elif left <= 0:
            raise deadline_exceeded("the deadline passed before the call began")
        deadlines.set_remaining(left)

    def end(self, code: str) -> None:
        """The call is over."""
        handlers = self._method.handlers
        self._span.end()
        handlers.telemetry.rpc_duration.record((time.perf_counter() - self._started) * 1000, self._method.outcome(code))
        if self._task is not None:
            handlers.running.discard(self._task)

    async def fail(self, error: BaseException) -> None:
        """End the call with the error that its client shall see. Returns when there is nobody to tell."""
        typed = self._typed(error)
        if typed is None:
            self.end(self._code_of(error))
            return
        self._span.set_status(Status(StatusCode.ERROR, typed.reason))
        self._span.set_attribute("rpc.grpc.status_code", typed.code.value)
        self.end(typed.code.name)
        try:
            await self._context.abort(grpc_code(typed.code), wire_text(typed.message), trailing_metadata(typed))
        except grpc.aio.UsageError:
            log.debug("%s ended before its error could be sent", self._method.path)

    def _typed(self, error: BaseException) -> TenthError | None:
        if isinstance(error, TenthError):
            return error
        if isinstance(error, grpc.aio.AbortError):
            return None
        if isinstance(error, asyncio.CancelledError):
            if self._method.handlers.draining and not self._context.done():
                return unavailable("the replica is shutting down", reason=Reason.DRAINING)
            if self._task is not None and self._task.cancelling():
                self._span.set_attribute("tenth.cancelled", True)  # The client left, or its deadline passed.
                return None
            # Something that the handler awaited was cancelled; without an answer the client would wait for ever.
        elif not isinstance(error, Exception):
            return None
        # The text of an unknown exception may hold a prompt or a secret: it goes to the log alone.
        trace_id = f"{self._span.get_span_context().trace_id:032x}"
        log.error("unhandled in %s, trace %s", self._method.path, trace_id, exc_info=error)
        return TenthError(
            Code.INTERNAL, Reason.INTERNAL, "internal error; the service's log has it", metadata={"trace_id": trace_id}
        )

    def _code_of(self, error: BaseException) -> str:
        if isinstance(error, grpc.aio.AbortError):
            number = self._context.code()
            return Code(number).name if number in Code._value2member_map_ else "UNKNOWN"
        left = deadlines.remaining()
        return "DEADLINE_EXCEEDED" if left is not None and left <= 0 else "CANCELLED"


async def _write_all(responses: AsyncIterator[Any], write: Callable[[Any], Any]) -> None:
    try:
        async for response in responses:
            await write(response)
    finally:
        # Left early: the generator's own clean-up runs now, here, and not whenever it is collected.
        close = getattr(responses, "aclose", None)
        if close is not None:
            await close()


async def _within(seconds: float, work: Any) -> Any:
    try:
        async with asyncio.timeout(seconds) as limit:
            return await work
    except TimeoutError as error:
        if limit.expired():
            raise deadline_exceeded() from error
        raise


def _unimplemented(path: str) -> Callable[[Any, Any], Any]:
    async def unimplemented(request: Any, context: Any) -> Any:
        raise TenthError(Code.UNIMPLEMENTED, Reason.UNIMPLEMENTED, f"{path} is not implemented here")

    return unimplemented


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
