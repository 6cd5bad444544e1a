"""A tiny service for the supervisor's tests: gRPC health on TENTH_LISTEN, told by STAND_IN how to behave.

Needs no mesh, so that starting it costs little.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from concurrent import futures
from pathlib import Path

import grpc

SERVING, NOT_SERVING = b"\x08\x01", b"\x08\x02"


def main() -> None:
    """Serve until SIGTERM, or misbehave as told."""
    behaviour = os.environ.get("STAND_IN", "")
    data_dir = Path(os.environ["TENTH_DATA_DIR"])
    starts = data_dir / "starts"
    count = int(starts.read_text()) + 1 if starts.exists() else 1
    starts.write_text(str(count))
    print(f"start {count} threads {os.environ['OMP_NUM_THREADS']}", flush=True)
    if behaviour == "refuse":
        print("setting TENTH_X: is wrong", flush=True)
        sys.exit(2)
    if behaviour == "crash" or (behaviour == "crash-once" and count == 1):
        sys.exit(1)
    if behaviour == "long-line":
        print("x" * 3_000_000, flush=True)
    ready_at = time.monotonic() + (0.5 if behaviour == "slow" else 0)
    order = data_dir.parent / "order"

    def check(request: bytes, context: grpc.ServicerContext) -> bytes:
        return SERVING if time.monotonic() >= ready_at else NOT_SERVING

    server = grpc.server(futures.ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    handler: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(check)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("grpc.health.v1.Health", {"Check": handler}),)
    )
    server.add_insecure_port(os.environ["TENTH_LISTEN"])
    server.start()
    with order.open("a") as file:
        file.write(f"+{data_dir.name}\n")
    if behaviour == "deaf":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(1)
    signal.sigwait({signal.SIGTERM})
    with order.open("a") as file:
        file.write(f"-{data_dir.name}\n")


if __name__ == "__main__":
    # Blocked before any thread starts, so that sigwait and no other thread gets it.
    if os.environ.get("STAND_IN") != "deaf":
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    main()
