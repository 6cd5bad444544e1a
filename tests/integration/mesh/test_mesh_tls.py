"""TLS and mTLS on loopback: who is let in, as whom, and certificates that change without a restart."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from pathlib import Path
from typing import Any, cast

import pytest
import trustme
import yaml
from tenth.cache.v1 import cache_pb2, cache_pb2_grpc

import mesh.connections
from mesh.auth import Authenticator, current_identity, set_identity
from mesh.channel import connect
from mesh.errors import Code, TenthError
from mesh.server import MeshServer
from mesh.settings import MeshSettings
from mesh.testing import KEY, memory_telemetry
from tests.integration.mesh.mesh_fakes import REGISTER, SERVICE, Fake

ASK = cache_pb2.EmbedRequest(texts=["a"])


class Files:
    """One party's certificate files; ``write`` replaces them."""

    def __init__(self, folder: Path, name: str) -> None:
        self.cert, self.key, self.ca = (folder / f"{name}.{part}" for part in ("pem", "key", "ca"))

    def write(self, ca: trustme.CA, *names: str, trusts: trustme.CA | None = None) -> Files:
        leaf = ca.issue_cert(*names)
        for path, content in (
            (self.cert, b"".join(part.bytes() for part in leaf.cert_chain_pems)),
            (self.key, leaf.private_key_pem.bytes()),
            (self.ca, (trusts or ca).cert_pem.bytes()),
        ):
            half = path.with_suffix(path.suffix + ".new")
            half.write_bytes(content)
            os.replace(half, path)
        return self

    def settings(self, **more: Any) -> MeshSettings:
        return MeshSettings(
            tls_cert_file=self.cert,
            tls_key_file=self.key,
            tls_ca_file=self.ca,
            unready_seconds=0,
            drain_seconds=0.2,
            **more,
        )


class Server:
    """A TLS server that remembers who called."""

    def __init__(self, tmp_path: Path, settings: MeshSettings) -> None:
        callers = tmp_path / "tls-callers.yaml"
        entry = {"name": "app", "tenant_id": "globex", "san": "app.globex.internal", "may_call": [f"{SERVICE}/Embed"]}
        callers.write_text(yaml.safe_dump({"callers": [entry]}))
        self.seen: list[str] = []

        async def embed(request: Any, context: Any) -> Any:
            self.seen.append(current_identity().tenant_id)
            return cache_pb2.EmbedResponse()

        self._server = MeshServer(settings, memory_telemetry()[0], Authenticator(callers, KEY), {})
        self._server.add(REGISTER, Fake(embed), SERVICE)

    async def __aenter__(self) -> Server:
        self.target = f"localhost:{await self._server.start()}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._server.drain()


async def call(target: str, settings: MeshSettings, seconds: float = 3.0) -> str:
    """OK, or the code that the call failed with."""
    set_identity(None)
    async with connect(target, settings, memory_telemetry()[0]) as channel:
        try:
            await cache_pb2_grpc.CacheServiceStub(cast(Any, channel)).Embed(ASK, timeout=seconds)
        except TenthError as error:
            return error.code.name
        return "OK"


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def other_ca() -> trustme.CA:
    return trustme.CA()


async def test_who_is_let_in(tmp_path: Path, ca: trustme.CA, other_ca: trustme.CA) -> None:
    server_files = Files(tmp_path, "server").write(ca, "localhost")
    async with Server(tmp_path, server_files.settings()) as server:
        good = Files(tmp_path, "good").write(ca, "app.globex.internal").settings()
        unknown = Files(tmp_path, "unknown").write(ca, "stranger.internal").settings()
        foreign = Files(tmp_path, "foreign").write(other_ca, "app.globex.internal", trusts=ca).settings()
        mistrusting = Files(tmp_path, "mistrusting").write(ca, "app.globex.internal", trusts=other_ca).settings()
        nameless = MeshSettings(tls_ca_file=server_files.ca)
        assert await call(server.target, good) == "OK"
        assert server.seen == ["globex"]
        assert await call(server.target, unknown) == Code.UNAUTHENTICATED.name
        for refused in (foreign, mistrusting, nameless, MeshSettings()):
            assert await call(server.target, refused) == Code.UNAVAILABLE.name
        assert server.seen == ["globex"]


async def test_a_server_with_another_name_is_refused(tmp_path: Path, ca: trustme.CA) -> None:
    impostor = Files(tmp_path, "impostor").write(ca, "not-localhost.internal").settings()
    async with Server(tmp_path, impostor) as server:
        good = Files(tmp_path, "good").write(ca, "app.globex.internal").settings()
        assert await call(server.target, good) == Code.UNAVAILABLE.name


async def test_tls_without_client_certificates(tmp_path: Path, ca: trustme.CA) -> None:
    files = Files(tmp_path, "server").write(ca, "localhost")
    async with Server(tmp_path, files.settings(tls_require_client_cert=False)) as server:
        # Let in to speak, but nobody: no key and no certificate.
        assert await call(server.target, MeshSettings(tls_ca_file=files.ca)) == Code.UNAUTHENTICATED.name


def served_serial(port: int, files: Files) -> int:
    """The serial number of the certificate that new connections see."""
    context = ssl.create_default_context(cafile=str(files.ca))
    context.load_cert_chain(files.cert, files.key)
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection(("localhost", port), timeout=5) as raw,
        context.wrap_socket(raw, server_hostname="localhost") as wrapped,
    ):
        peer = cast(dict[str, Any], wrapped.getpeercert())
        return int(peer["serialNumber"], 16)


async def test_new_connections_get_the_new_certificate(tmp_path: Path, ca: trustme.CA) -> None:
    files = Files(tmp_path, "server").write(ca, "localhost")
    client = Files(tmp_path, "client").write(ca, "app.globex.internal")
    async with Server(tmp_path, files.settings()) as server:
        port = int(server.target.rpartition(":")[2])
        first = await asyncio.to_thread(served_serial, port, client)
        files.write(ca, "localhost")
        second = await asyncio.to_thread(served_serial, port, client)
        assert second != first
        whole = files.cert.read_bytes()
        for half in (whole[: len(whole) // 2], b"", b"nonsense"):
            files.cert.write_bytes(half)
            assert await asyncio.to_thread(served_serial, port, client) == second
        files.cert.unlink()
        assert await asyncio.to_thread(served_serial, port, client) == second
        files.write(ca, "localhost")
        assert await asyncio.to_thread(served_serial, port, client) not in (first, second)
        assert await call(server.target, client.settings()) == "OK"


async def test_a_client_takes_its_new_certificate(
    tmp_path: Path, ca: trustme.CA, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mesh.connections, "_CERTIFICATE_SECONDS", 0.0)
    server_files = Files(tmp_path, "server").write(ca, "localhost")
    files = Files(tmp_path, "client").write(ca, "stranger.internal")
    set_identity(None)
    async with Server(tmp_path, server_files.settings()) as server:
        async with connect(server.target, files.settings(), memory_telemetry()[0]) as channel:
            stub = cache_pb2_grpc.CacheServiceStub(cast(Any, channel))
            with pytest.raises(TenthError) as caught:
                await stub.Embed(ASK, timeout=3)
            assert caught.value.code is Code.UNAUTHENTICATED
            files.write(ca, "app.globex.internal")
            await stub.Embed(ASK, timeout=3)
        assert server.seen == ["globex"]
