"""The connections behind a channel: one target, or replicas by rendezvous hashing; certificates that change."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import grpc

from mesh.errors import unavailable
from mesh.settings import MeshSettings
from mesh.status import METADATA_BYTES

_RESOLVE_SECONDS = 5.0
_CERTIFICATE_SECONDS = 1.0
_RETIRE_SECONDS = 60.0


def rendezvous(key: str, replicas: Sequence[str]) -> str:
    """The replica that owns a key: highest SHA-256 of key and replica (Thaler and Ravishankar, 1998)."""
    return max(replicas, key=lambda replica: hashlib.sha256(f"{key}\x00{replica}".encode()).digest())


class Pool(ABC):
    """The connections behind one channel."""

    @abstractmethod
    def first(self) -> grpc.aio.Channel:
        """The connection whose state stands for the channel's."""

    @abstractmethod
    async def pick(self, key: str) -> grpc.aio.Channel:
        """The connection for a call made now. Raises UNAVAILABLE without any address."""

    async def replicas(self) -> tuple[str, ...]:
        """Routing keys that reach each replica once, for calls that concern all of them. Raises UNAVAILABLE."""
        return ("",)

    @abstractmethod
    async def close(self, grace: float | None) -> None:
        """Close all; running calls get ``grace`` seconds."""


class SinglePool(Pool):
    """One gRPC target, balanced by gRPC itself."""

    def __init__(self, target: str, dialer: Dialer) -> None:
        self._target = target
        self._dialer = dialer
        self._channel = dialer.dial(target)
        self._version = dialer.version()

    def first(self) -> grpc.aio.Channel:
        """The connection whose state stands for the channel's."""
        return self._channel

    async def pick(self, key: str) -> grpc.aio.Channel:
        """The connection for a call made now. Raises UNAVAILABLE without any address."""
        version = self._dialer.version()
        if version != self._version:
            self._version = version
            self._dialer.retire(self._channel)
            self._channel = self._dialer.dial(self._target)
        return self._channel

    async def close(self, grace: float | None) -> None:
        """Close all; running calls get ``grace`` seconds."""
        await self._channel.close(grace)
        await self._dialer.close()


class ShardedPool(Pool):
    """Replicas that are chosen by key, from a list or a DNS name that is asked again every few seconds."""

    def __init__(self, target: str, dialer: Dialer) -> None:
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
        """The connection whose state stands for the channel's."""
        if not self._addresses:
            raise unavailable(f"{self._name} has no address yet")
        return self._channel(self._addresses[0])

    async def pick(self, key: str) -> grpc.aio.Channel:
        """The connection for a call made now. Raises UNAVAILABLE without any address."""
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
        if key in self._addresses:  # A replica's own address, from ``replicas``.
            return self._channel(key)
        return self._channel(rendezvous(key, self._addresses) if key else self._next())

    async def replicas(self) -> tuple[str, ...]:
        """Routing keys that reach each replica once, for calls that concern all of them. Raises UNAVAILABLE."""
        if self._name:
            await self._resolve()  # Asked now: a call that leaves out a new replica would look done.
        if not self._addresses:
            raise unavailable(f"{self._name} has no address")
        return tuple(self._addresses)

    async def close(self, grace: float | None) -> None:
        """Close all; running calls get ``grace`` seconds."""
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


class Dialer:
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


def channel_options(settings: MeshSettings, retryable: Sequence[tuple[str, str]]) -> list[tuple[str, Any]]:
    """gRPC's options: balancing, retries as data, limits, keepalive and how fast a lost server is found again."""
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
                    # CANCELLED is how a stopping server drops calls that it had not begun.
                    "retryableStatusCodes": ["UNAVAILABLE", "CANCELLED"],
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
