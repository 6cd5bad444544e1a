"""What receipt events change in the rollups: pure, but for the query of what requests showed before.

What an event shows is added, and what its request showed before is taken off again, both read from the events.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, func, select
from tenth.type.v1 import receipt_pb2

from services.ledger.grains import Grain
from services.ledger.receipts import flatten
from services.ledger.rollup_rows import KEY, SUMS, Key, State
from services.ledger.tables import ROLLED, SAVINGS, receipt_events

Request = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Rolled:
    """One receipt as the rollups take it."""

    key: Key
    sums: tuple[int, ...]
    create_ns: int
    broken: bool
    """True when it breaks the identity."""


@dataclass(slots=True)
class Step:
    """What some events change."""

    deltas: dict[Key, list[int]]
    receipts: int = 0
    violations: int = 0


def counted_at(event: Row[Any], receipt: receipt_pb2.Receipt) -> int:
    """The instant at which an event's receipt counts."""
    return int(receipt.facts.create_time.ToNanoseconds() if event.counted_ns is None else event.counted_ns)


def rolled(event: Row[Any]) -> Rolled:
    """A receipt event's receipt, at the instant at which it counts."""
    receipt = receipt_pb2.Receipt.FromString(event.receipt)
    create_ns = counted_at(event, receipt)
    columns = flatten(receipt, create_ns).columns
    values = {**columns, "start_ns": Grain.HOUR.start(create_ns)}
    saved = columns["baseline"] - sum(columns[name] for name in SAVINGS)
    return Rolled(
        key=tuple(values[name] for name in KEY),
        sums=(1, int(columns["failed"]), *(columns.get(name) or 0 for name in ROLLED)),
        create_ns=create_ns,
        broken=saved + columns["overhead"] != columns["actual"],
    )


def level_of(grain: Grain, *, people: bool) -> int:
    """The level of rollups of a grain, with users and projects or without."""
    return grain + (0 if people else len(Grain))


def leveled(hours: Mapping[Key, Sequence[int]]) -> dict[Key, list[int]]:
    """Sums of hours with users and projects, as every level has them; the level stands in front of the key."""
    found: dict[Key, list[int]] = {}
    for (start, tenant, model, tier, user, project, baseline, cache), sums in hours.items():
        for grain in Grain:
            at = grain.start(start)
            for people, who in ((True, (user, project)), (False, ("", ""))):
                key = (level_of(grain, people=people), at, tenant, model, tier, *who, baseline, cache)
                into = found.setdefault(key, [0] * len(SUMS))
                for index, value in enumerate(sums):
                    into[index] += value
    return found


def step_of(events: Sequence[Row[Any]], before: Mapping[Request, Row[Any]], state: State) -> Step:
    """What events (in their order) change, given what the requests that they correct showed before them."""
    shown: dict[Request, Rolled] = {key: rolled(event) for key, event in before.items()}
    step = Step({})
    for event in events:
        request = (event.tenant_id, event.request_id)
        new, old = rolled(event), shown.get(request)
        shown[request] = new
        # Every request has one event that is no correction; retention may have dropped it before the others.
        step.receipts += event.kind != "corrected"
        for each, sign in ((new, 1), *(((old, -1),) if old is not None else ())):
            step.violations += sign * each.broken
            if event.id <= state.rebuilt_id and each.create_ns < state.kept_ns:
                continue
            sums = step.deltas.setdefault(each.key, [0] * len(SUMS))
            for index, value in enumerate(each.sums):
                sums[index] += sign * value
    return step


def shown_before(event_id: int, up_to: int | None = None, *, since: int | None = None) -> Select[Any]:
    """The receipts (as of one event) of requests that a later event corrects: one after ``since``, up to ``up_to``."""
    after = event_id if since is None else since
    later = (receipt_events.c.kind == "corrected") & (receipt_events.c.id > after)
    if up_to is not None:
        later &= receipt_events.c.id <= up_to
    # Expressions, so that no index offers itself for the DISTINCT: SQLite would read it from end to end.
    names = (receipt_events.c.tenant_id + "", receipt_events.c.request_id + "")
    corrected = select(names[0].label("tenant_id"), names[1].label("request_id")).where(later).distinct().subquery()
    other = receipt_events.alias("other")
    last = (
        select(func.max(other.c.id).label("id"))
        .join(
            corrected,
            (other.c.request_id == corrected.c.request_id) & (other.c.tenant_id == corrected.c.tenant_id),
        )
        .where(other.c.id <= event_id)
        .group_by(other.c.tenant_id, other.c.request_id)
        .subquery()
    )
    columns = (receipt_events.c[name] for name in ("tenant_id", "request_id", "receipt", "counted_ns"))
    return select(*columns).join(last, receipt_events.c.id == last.c.id)
