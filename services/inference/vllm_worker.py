"""What the service asks of an engine's own process: vLLM mixes this class into its workers (`worker_extension_cls`).

By name over vLLM's `collective_rpc`: sending functions instead would take pickles from a socket.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from typing import Any

from services.inference.quantization import layers_of


class WorkerReport:
    """Methods that a worker has beside vLLM's own."""

    get_model: Any
    """vLLM's: gives the model's torch module."""

    def tenth_layers(self) -> list[int]:
        """How many of this worker's layers are quantized, and how many there are."""
        layers = layers_of(self.get_model())
        return [layers.quantized_count, layers.count]

    def tenth_end_with(self, owner: int) -> None:
        """End this process when that of the service ends, in whichever way: a killed one cannot stop its engine, which
        would keep its memory for ever. ``owner`` is its process id."""
        threading.Thread(target=end_with, args=(owner,), name="tenth-owner", daemon=True).start()


def end_with(owner: int) -> None:
    """Wait for the end of another process, then kill this one."""
    try:
        descriptor = os.pidfd_open(owner)
    except ProcessLookupError:
        pass  # It has ended already.
    else:
        select.select([descriptor], [], [])
    os.kill(os.getpid(), signal.SIGKILL)
