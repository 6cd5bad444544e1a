"""GPUs: the memory that a process finds, and the bandwidth of that memory. Pure facts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU.

    ``memory_gib`` is what CUDA reports as total to a process (``torch.cuda.get_device_properties``), which is 1 to 4%
    below the name's gigabytes: error correction and the driver take the rest. ``gigabytes_per_second`` is the memory's
    bandwidth by the maker's data sheet, 10^9 bytes. ``capability`` is CUDA's compute capability times ten.
    """

    memory_gib: float
    gigabytes_per_second: float
    capability: int

    @property
    def memory_bytes(self) -> int:
        """The same memory in bytes."""
        return int(self.memory_gib * GIB)


GPUS: Mapping[str, Gpu] = {
    "t4": Gpu(14.6, 320, 75),
    "a10": Gpu(22.1, 600, 86),
    "l4": Gpu(22.0, 300, 89),
    "rtx3090": Gpu(23.6, 936, 86),
    "rtx4090": Gpu(23.5, 1008, 89),
    "rtx5090": Gpu(31.3, 1792, 120),
    "a100-40gb": Gpu(39.4, 1555, 80),
    "l40s": Gpu(44.4, 864, 89),
    "a100-80gb": Gpu(79.2, 2039, 80),
    "h100-80gb": Gpu(79.2, 3350, 90),
    "h200": Gpu(139.8, 4800, 90),
    "b200": Gpu(178.4, 7700, 100),
}
"""By the price book's KIND, where it has one (``gpu:a100-80gb``). The 80 GB cards are the SXM ones."""


def gpu_of(name: str) -> tuple[str, Gpu]:
    """A GPU by its name, ``gpu:`` before it or not. Raises ValueError naming the flag and what is known."""
    key = name.lower().removeprefix("gpu:")
    key = {"a100": "a100-80gb", "h100": "h100-80gb"}.get(key, key)
    if key not in GPUS:
        raise ValueError(f"--gpu {name}: not known; choose one of {', '.join(GPUS)}")
    return key, GPUS[key]
