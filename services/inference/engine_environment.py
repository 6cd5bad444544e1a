"""The environment of a process with a local engine on a CPU: of the service, the evaluation and the benchmarks."""

from __future__ import annotations

import os

SPIN_COUNT = 2000
"""Rounds that a waiting OpenMP thread spins before it sleeps: some 50 microseconds, about what an engine's Python needs
between two operations."""


def engine_environment(threads: int, spin_count: int = SPIN_COUNT) -> dict[str, str]:
    """What vLLM, OpenMP and oneDNN read when they are imported: ``threads`` of them, which spin so many rounds."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # LLMEngine's core runs in the thread that steps it.
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(threads),
        # Threads that wait by spinning for ever take the cores that their own neighbours (and other services) need:
        # measured beside a busy machine, 1.4 tokens/s with it against 10 without. Some rounds spare them the sleep
        # between an engine's operations, and the waking up; libgomp takes the count before the policy.
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": str(spin_count),
        # oneDNN keeps the code that it makes for each number of tokens in a step: 1,024 of them by itself, which take
        # minutes of traffic and 0.25 GB to come together. With 64 a request costs as much CPU, and memory is flat.
        "ONEDNN_PRIMITIVE_CACHE_CAPACITY": os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64"),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # Cores are shared with the other services.
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
    }
