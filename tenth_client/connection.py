"""Where the mesh is and how to get in: addresses, the API key, TLS; read from flags, environment or ``tenth up``."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

CLIENT_FILE = "client.json"
"""Written by ``tenth up`` into its data directory: the addresses and a local API key. Mode 0600."""
_MAX_MESSAGE_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files. With only roots: TLS; with a certificate and key as well: mutual TLS."""

    ca_file: Path
    cert_file: Path | None = None
    key_file: Path | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """Channel credentials from the files as they are now. Raises OSError when one cannot be read."""
        key = self.key_file.read_bytes() if self.key_file else None
        chain = self.cert_file.read_bytes() if self.cert_file else None
        return grpc.ssl_channel_credentials(self.ca_file.read_bytes(), key, chain)


@dataclass(frozen=True, slots=True)
class Connection:
    """The addresses of a mesh by service name, and the credentials for it."""

    addresses: Mapping[str, str]
    api_key: str = ""
    tls: Tls | None = None
    origin: str = field(default="", compare=False)

    def address(self, service: str) -> str:
        """The gRPC target of a service. Raises LookupError with advice when it is not known."""
        try:
            return self.addresses[service]
        except KeyError:
            known = ", ".join(sorted(self.addresses)) or "none"
            raise LookupError(
                f"the address of {service} is not known (known: {known}); "
                f"set TENTH_{_variable(service)}_ADDRESS or run `tenth up`"
            ) from None


def target(address: str) -> str:
    """A gRPC target: a comma-separated list of IPv4 addresses is balanced as one (``ipv4:a:1,b:2``)."""
    if "," in address and not address.startswith(("ipv4:", "ipv6:", "dns:")):
        return f"ipv4:{address}"
    return address


def dial(address: str, tls: Tls | None = None) -> grpc.aio.Channel:
    """A channel that balances over all addresses and finds restarted replicas within a second."""
    options: list[tuple[str, Any]] = [
        ("grpc.service_config", json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})),
        ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 5_000),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1_000),
    ]
    if tls is None:
        return grpc.aio.insecure_channel(target(address), options=options)
    return grpc.aio.secure_channel(target(address), tls.credentials(), options=options)


def find(
    *,
    address: str = "",
    api_key: str = "",
    data_dir: Path | None = None,
    tls: Tls | None = None,
    environ: Mapping[str, str] | None = None,
) -> Connection:
    """The connection that flags, then the environment, then DATA_DIR/client.json describe.

    Environment: ``TENTH_ADDRESS`` (orchestrator), ``TENTH_<SERVICE>_ADDRESS`` (the others), ``TENTH_API_KEY``,
    ``TENTH_TLS_CA_FILE``, ``TENTH_TLS_CERT_FILE``, ``TENTH_TLS_KEY_FILE``. Raises LookupError when there is none.
    """
    env = os.environ if environ is None else environ
    path = (data_dir or Path(env.get("TENTH_DATA_DIR", ".data"))) / CLIENT_FILE
    saved = _read(path)
    addresses = dict(saved.get("addresses", {}))
    for service in ("cache", "router", "compressor", "inference", "ledger", "batch", "batch-worker", "collector"):
        given = env.get(f"TENTH_{_variable(service)}_ADDRESS")
        if given:
            addresses[service] = given
    if address or env.get("TENTH_ADDRESS"):
        addresses["orchestrator"] = address or env["TENTH_ADDRESS"]
    if not addresses:
        raise LookupError(f"no mesh found: {path} is absent; run `tenth up`, or give --address and --api-key")
    if tls is None and env.get("TENTH_TLS_CA_FILE"):
        tls = Tls(
            Path(env["TENTH_TLS_CA_FILE"]),
            Path(env["TENTH_TLS_CERT_FILE"]) if env.get("TENTH_TLS_CERT_FILE") else None,
            Path(env["TENTH_TLS_KEY_FILE"]) if env.get("TENTH_TLS_KEY_FILE") else None,
        )
    key = api_key or env.get("TENTH_API_KEY") or str(saved.get("api_key", ""))
    return Connection(addresses, key, tls, origin=str(path) if saved else "environment")


def _variable(service: str) -> str:
    return service.upper().replace("-", "_")


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise LookupError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise LookupError(f"{path} is not a JSON object")
    return content
