"""``python -m mesh.healthcheck``: exit status 0 when a service says SERVING. For containers' health checks.

Asks ``TENTH_LISTEN`` of the environment (or the address given) with the service's own TLS settings. A certificate
that does not name the loopback address needs ``--server-name``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mesh.settings import MeshSettings, load


def main(arguments: Sequence[str] | None = None) -> int:
    """Ask once. Returns 0 (serving), 1 (it is not, or does not answer) or 2 (no port to ask)."""
    parser = argparse.ArgumentParser(prog="python -m mesh.healthcheck", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("address", nargs="?", default="", help="host:port (default: the port of TENTH_LISTEN)")
    parser.add_argument("--server-name", default="", help="name to expect in the server's certificate")
    parser.add_argument("--timeout-seconds", type=float, default=2.0, help="longest wait (default: %(default)s)")
    options = parser.parse_args(arguments)
    settings = load(MeshSettings)
    port = settings.listen.rpartition(":")[2]
    address = options.address or f"127.0.0.1:{port}"
    if address.endswith(":0"):
        print("TENTH_LISTEN names no port", file=sys.stderr)
        return 2
    answer = ask(address, settings, options.server_name, options.timeout_seconds)
    print(answer)
    return 0 if answer == "SERVING" else 1


def ask(address: str, settings: MeshSettings, server_name: str, timeout_seconds: float) -> str:
    """The health of the server at an address: a serving status, or the status code of the failed call."""
    with _channel(address, settings, server_name) as channel:
        try:
            response = health_pb2_grpc.HealthStub(channel).Check(
                health_pb2.HealthCheckRequest(), timeout=timeout_seconds
            )
        except grpc.RpcError as error:
            return str(error.code().name)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))


def _channel(address: str, settings: MeshSettings, server_name: str) -> grpc.Channel:
    cert_file, key_file = settings.tls_cert_file, settings.tls_key_file
    if cert_file is None or key_file is None:
        return grpc.insecure_channel(address)
    # Without a CA file (TLS, but no mTLS) the server's own certificate is the only root it can be checked against.
    roots = (settings.tls_ca_file or cert_file).read_bytes()
    credentials = grpc.ssl_channel_credentials(roots, key_file.read_bytes(), cert_file.read_bytes())
    options = [("grpc.ssl_target_name_override", server_name)] if server_name else []
    return grpc.secure_channel(address, credentials, options=options)


if __name__ == "__main__":
    sys.exit(main())
