"""Parts of an earlier result, for a run that measures the others: a whole run takes its time."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.result import Result

NOT_ASKED = ": not asked for"


def keep(
    result: Result, file: Path, measured: Sequence[str], part_of: Callable[[str], str], alike: Sequence[str]
) -> str:
    """Take over the parts that were not measured now, naming their commit. Returns why it cannot, else nothing.

    ``part_of`` gives a metric's or a skipped item's part; ``alike`` are the assumptions that both runs must share.
    """
    try:
        earlier: dict[str, Any] = json.loads(file.read_text("utf-8"))
        commit, metrics, said = earlier["commit"], earlier["metrics"], earlier["assumptions"]
        same = earlier["quick"] == result.quick and all(said[name] == result.assumptions[name] for name in alike)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"nothing kept of {file.name}: {error or type(error).__name__}"
    if not same:
        return f"nothing kept of {file.name}: it is of other {' or '.join(alike)}, or a quick run"
    old = {name: metric for name, metric in metrics.items() if part_of(name) not in measured}
    parts = list(dict.fromkeys(map(part_of, old)))
    result.metrics = old | result.metrics
    result.assumptions = said | result.assumptions
    commits = dict(said.get("kept", {}))
    result.assumptions["kept"] = {part: commits.get(part, commit) for part in parts}
    absent = [f"{part}{NOT_ASKED}" for part in parts]
    old_skips = [
        item for item in earlier["skipped"] if not item.endswith(NOT_ASKED) and part_of(_subject(item)) in parts
    ]
    result.skipped = [*old_skips, *(item for item in result.skipped if item not in absent)]
    return ""


def _subject(item: str) -> str:
    return item.partition("/")[0].partition(":")[0].partition(",")[0]
