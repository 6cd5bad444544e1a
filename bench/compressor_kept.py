"""Which part of the compressor's bench measures what, so that a run of some parts keeps the others' figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench import kept
from bench.result import Result

_PREFIXES = {
    "speed/": "speed",
    "whole/": "speed",
    "net_dollars": "net_dollars",
    "local_model/": "local_model",
    "awesome_prompts/": "cleanup",
    "own_prompts_": "cleanup",
}


def part_of(metric: str) -> str:
    """The part that measures it."""
    for prefix, part in _PREFIXES.items():
        if metric.startswith(prefix):
            return part
    name = metric.partition("/")[0].removesuffix("_gold_only")
    # LoCoMo's set is called so, the chats' by their set and what is measured of it.
    return "history" if name.removesuffix("_unseen").endswith("_history") else name


def keep(result: Result, file: Path, measured: Sequence[str]) -> str:
    """Take over the parts that were not measured now, naming their commit. Returns why it cannot, else nothing."""
    return kept.keep(result, file, measured, part_of, ("rows", "seed"))
