"""Parts of an earlier result, for a run that measures the others: a whole run takes a quarter of an hour."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    try:
        earlier: dict[str, Any] = json.loads(file.read_text("utf-8"))
        commit, metrics, said = earlier["commit"], earlier["metrics"], earlier["assumptions"]
        alike = (earlier["quick"], said["rows"], said["seed"]) == (
            result.quick,
            result.assumptions["rows"],
            result.assumptions["seed"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"nothing kept of {file.name}: {error or type(error).__name__}"
    if not alike:
        return f"nothing kept of {file.name}: it is of other rows, another seed, or a quick run"
    old = {name: metric for name, metric in metrics.items() if part_of(name) not in measured}
    parts = list(dict.fromkeys(map(part_of, old)))
    result.metrics = old | result.metrics
    result.assumptions = said | result.assumptions
    result.assumptions["kept"] = dict(said.get("kept", {})) | dict.fromkeys(parts, commit)
    for part in measured:
        result.assumptions["kept"].pop(part, None)
    for part, own in said.get("kept", {}).items():
        if part in parts:
            result.assumptions["kept"][part] = own
    absent = [f"{part}: not asked for" for part in parts]
    old_skips = [
        item
        for item in earlier["skipped"]
        if not item.endswith(": not asked for") and item.partition("/")[0].partition(":")[0].partition(",")[0] in parts
    ]
    result.skipped = [*old_skips, *(item for item in result.skipped if item not in absent)]
    return ""
