"""Mixes of workloads as streams of requests: which rows are asked, how often, in which order and when.

Popularity follows Zipf's law twice: of topics, and of the wordings of a topic. Arrival times are the Azure trace's.
"""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import yaml

from bench.endtoend_rows import WORKLOADS, Ask

MIXES = ("support_heavy", "even", "adversarial")
FOLDER = Path(__file__).with_name("mixes")
WORDING_ZIPF = 0.7
"""Of the wordings of one topic."""


@dataclass(frozen=True, slots=True)
class Mix:
    """How much of what, and what its operator promises."""

    name: str
    shares: Mapping[str, float]
    quality_target: float
    """Asked of the router where outcomes are recorded, 0..1."""
    zipf: float = 1.0
    out_of_scope: float = 0.0
    """Share of the support questions that no stored answer is right for, 0..1."""
    bulk_repeats: float = 0.0
    unique: bool = False
    hard: bool = False


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a stream."""

    index: int
    seconds: float
    """After the first one, on the trace's clock."""
    ask: Ask
    user: str
    """Who asks; empty for a job's own account."""


def read_mix(name: str, folder: Path = FOLDER) -> Mix:
    """A mix file. Raises OSError, and TypeError or ValueError for one that is not so."""
    content = yaml.safe_load((folder / f"{name}.yaml").read_text("utf-8"))
    mix = Mix(name=name, **content)
    if set(mix.shares) - set(WORKLOADS) or abs(sum(mix.shares.values()) - 1) > 1e-6:
        raise ValueError(f"{name}: shares are of {', '.join(WORKLOADS)} and make 1")
    return mix


def stream(mix: Mix, asks: Mapping[str, Sequence[Ask]], count: int, times: Sequence[float], seed: int) -> list[Arrival]:
    """The requests of a mix in order of arrival; fewer than ``count`` where rows may not repeat and are too few.

    Raises ValueError when no workload of the mix has rows.
    """
    chosen = random.Random(f"{seed}:{mix.name}")  # noqa: S311  (a workload, no secret)
    rows = {name: list(asks.get(name, ())) for name in WORKLOADS}
    if mix.hard:
        rows["reasoning"] = _hard(rows["reasoning"])
    wanted = {name: share for name, share in mix.shares.items() if share and rows[name]}
    if not wanted:
        raise ValueError(f"{mix.name}: no rows")
    total = sum(wanted.values())
    if mix.unique:
        count = min(count, *(int(len(rows[name]) * total / share) for name, share in wanted.items()))
    picked: list[Ask] = []
    for name, share in wanted.items():
        picked += _picked(mix, name, rows[name], round(count * share / total), chosen)
    chosen.shuffle(picked)
    clock = itertools.chain(times, itertools.count(int(times[-1]) + 1 if times else 0))
    return [
        Arrival(index, float(next(clock)), ask, f"customer-{chosen.randrange(10**6)}" if _of_person(ask) else "")
        for index, ask in enumerate(picked)
    ]


def unasked(asks: Mapping[str, Sequence[Ask]], streams: Iterable[Sequence[Arrival]]) -> dict[str, Sequence[Ask]]:
    """The rows whose question is in none of the streams; all rows of a workload that has no others."""
    taken = {arrival.ask.question for each in streams for arrival in each}
    return {name: [row for row in rows if row.question not in taken] or rows for name, rows in asks.items()}


def arrival_times(data: Path, count: int, seed: int) -> list[float]:
    """Seconds after the first of ``count`` arrivals in a row of the Azure trace; empty when it is not there."""
    file = data / "workload" / "azure_llm_conv.jsonl.gz"
    if not file.is_file():
        return []
    with gzip.open(file, "rt", encoding="utf-8") as lines:
        # Seven digits after the point; datetime reads six.
        times = [datetime.fromisoformat(json.loads(line)["t"][:26]).timestamp() for line in lines]
    start = random.Random(seed).randrange(max(1, len(times) - count))  # noqa: S311  (where to begin)
    part = sorted(times[start : start + count])
    return [each - part[0] for each in part]


def _of_person(ask: Ask) -> bool:
    return ask.workload in ("support", "chat")


def _picked(mix: Mix, workload: str, rows: Sequence[Ask], count: int, chosen: random.Random) -> list[Ask]:
    if workload == "support" and not mix.unique:
        outside = [row for row in rows if not row.servable]
        strange = round(count * mix.out_of_scope) if outside else 0
        inside = [row for row in rows if row.servable]
        return _popular(inside, count - strange, mix.zipf, chosen) + _spread(outside, strange, chosen)
    if workload == "bulk" and not mix.unique:
        first = _spread(rows, count - round(count * mix.bulk_repeats), chosen)
        return first + [chosen.choice(first) for _ in range(count - len(first))]
    return _spread(rows, count, chosen)


def _popular(rows: Sequence[Ask], count: int, zipf: float, chosen: random.Random) -> list[Ask]:
    topics: dict[str, list[Ask]] = defaultdict(list)
    for row in rows:
        topics[row.topic].append(row)
    order = sorted(topics)
    chosen.shuffle(order)
    for topic in order:
        chosen.shuffle(topics[topic])
    drawn = chosen.choices(order, [1 / rank**zipf for rank in range(1, len(order) + 1)], k=count)
    return [
        chosen.choices(topics[topic], [1 / rank**WORDING_ZIPF for rank in range(1, len(topics[topic]) + 1)])[0]
        for topic in drawn
    ]


def _spread(rows: Sequence[Ask], count: int, chosen: random.Random) -> list[Ask]:
    """Each row once before any comes again."""
    found: list[Ask] = []
    while len(found) < count:
        found += chosen.sample(rows, min(len(rows), count - len(found)))
    return found


def _hard(rows: Sequence[Ask]) -> list[Ask]:
    """The tasks in which the weak model is right least often, until they hold half of the rows."""
    tasks: dict[str, list[Ask]] = defaultdict(list)
    for row in rows:
        tasks[row.task].append(row)
    weak = {task: sum(min(each.correct.values()) for each in found) / len(found) for task, found in tasks.items()}
    kept: list[Ask] = []
    for task in sorted(tasks, key=lambda name: (weak[name], name)):
        if len(kept) >= len(rows) / 2:
            break
        kept += tasks[task]
    return kept
