"""One way to be a server: errors, deadlines, identity, traces, metrics, health, reflection, TLS and drain.

A servicer is only methods that take a request and return a response (or raise TenthError): ``mesh/handlers.py`` puts
the same frame around each of them. Health and reflection are the shared server's own and open to everybody.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_reflection.v1alpha import reflection

from mesh.auth import Authenticator
from mesh.handlers import Handlers
from mesh.process import settle_memory
from mesh.settings import MeshSettings
from mesh.status import METADATA_BYTES
from mesh.telemetry import Telemetry

log = logging.getLogger("tenth.server")

Ping = Callable[[], Awaitable[None]]
"""Raises while the adapter it belongs to cannot work."""

_PING_SECONDS = 5.0
_PING_TIMEOUT_SECONDS = 5.0
_PING_RETRY_SECONDS = 0.2


class MeshServer:
    """A gRPC server with everything a service of the mesh owes its callers."""

    def __init__(
        self,
        settings: MeshSettings,
        telemetry: Telemetry,
        authenticator: Authenticator,
        pings: Mapping[str, Ping],
        *,
        changed: asyncio.Event | None = None,
        on_drain: Callable[[], None] | None = None,
    ) -> None:
        """``changed``: set by an adapter whose state has changed, so that the pings are asked at once and not at their
        next turn. ``on_drain``: called when the drain begins, before new calls are refused; must not wait.
        """
        self._changed = changed or asyncio.Event()
        self._on_drain = on_drain
        self._settings = settings
        self._pings = pings
        self._services: list[str] = []
        self._health = HealthServicer()
        self._handlers = Handlers(settings, telemetry, authenticator)
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", settings.max_message_bytes),
                ("grpc.max_metadata_size", METADATA_BYTES),
                ("grpc.absolute_max_metadata_size", METADATA_BYTES),
                # Clients of the mesh ping every 20 s while a call runs; others may do so up to every 5 s.
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
                # A client whose machine vanished must not hold its streams (and their spending) open for ever.
                ("grpc.keepalive_time_ms", 30_000),
                ("grpc.keepalive_timeout_ms", 10_000),
                ("grpc.so_reuseport", 0),
            ],
        )
        self.port = 0

    def add(self, register: Callable[[Any, Any], None], servicer: object, full_name: str) -> None:
        """Serve a generated service: ``add(add_XServicer_to_server, servicer, "tenth.x.v1.XService")``."""
        captured = self._handlers.capture(register, servicer)
        if set(captured) != {full_name}:
            raise ValueError(f"{full_name} was to be added, but {sorted(captured)} were registered")
        for service, methods in captured.items():
            self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))
            self._server.add_registered_method_handlers(service, dict(methods))
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
        try:
            await self.start()
            settle_memory()
            watcher = asyncio.create_task(self.watch_health())
            try:
                await stop.wait()
            finally:
                watcher.cancel()
                await self.drain()
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

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
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_PING_SECONDS if serving else _PING_RETRY_SECONDS):
                    await self._changed.wait()
            self._changed.clear()

    async def drain(self) -> None:
        """Go NOT_SERVING, let balancers notice, refuse new calls, finish what runs, stop.

        A call that outlives ``drain_seconds`` ends as UNAVAILABLE, DRAINING, so that its caller may try elsewhere.
        """
        log.info("draining")
        await self._health.enter_graceful_shutdown()
        if self._on_drain is not None:
            self._on_drain()
        await asyncio.sleep(self._settings.unready_seconds)
        # The extra second is for the last calls' own clean-up.
        stopping = asyncio.create_task(self._server.stop(self._settings.drain_seconds + 1))
        await asyncio.wait((stopping,), timeout=self._settings.drain_seconds)
        await self._handlers.cancel_running()
        # What is left is a client that watches health or does not close its stream: nothing of ours is lost.
        await self._server.stop(0)
        await stopping
        log.info("stopped")

    async def _failed_pings(self) -> dict[str, str]:
        if not self._pings:
            return {}
        running = {name: asyncio.ensure_future(ping()) for name, ping in self._pings.items()}
        try:
            # Not wait_for: it waits for a ping that hangs even when cancelled.
            await asyncio.wait(running.values(), timeout=_PING_TIMEOUT_SECONDS)
        finally:
            for task in running.values():
                task.cancel()
        failed: dict[str, str] = {}
        for name, task in running.items():
            # Any failure of any adapter means the same here: not ready, try again.
            if not task.done():
                failed[name] = f"no answer within {_PING_TIMEOUT_SECONDS:g} s"
            elif task.cancelled():
                failed[name] = "cancelled"
            elif (error := task.exception()) is not None:
                failed[name] = str(error) or type(error).__name__
        return failed


def _server_credentials(settings: MeshSettings) -> grpc.ServerCredentials | None:
    cert_file, key_file = settings.tls_cert_file, settings.tls_key_file
    if cert_file is None or key_file is None:
        return None

    mutual = settings.tls_ca_file is not None and settings.tls_require_client_cert

    def read() -> grpc.ServerCertificateConfiguration:
        pair = (key_file.read_bytes(), cert_file.read_bytes())
        roots = settings.tls_ca_file.read_bytes() if settings.tls_ca_file and mutual else None
        return grpc.ssl_server_certificate_configuration([pair], roots)

    def renew() -> grpc.ServerCertificateConfiguration | None:
        try:
            return read()
        except OSError:
            return None  # Being replaced right now: the certificate in use stays.

    return grpc.dynamic_ssl_server_credentials(read(), cast(Any, renew), mutual)
