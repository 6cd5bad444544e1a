"""Own hardware: how busy its nodes were, and what they cost while busy and while idle.

Pure. A node's time is covered by rows that never overlap; each says which share of it the node worked. Time that no
row covers is not known and costs nothing here. Instants are integer nanoseconds, amounts integer nano-USD.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mesh.errors import Code, TenthError, invalid_argument, required
from mesh.money import MAX_NANO_USD, divide_half_even
from mesh.receipt import AMOUNT_OUT_OF_RANGE, CPU, PRICE_UNKNOWN
from services.ledger.errors import Reason
from services.ledger.policy import NANOS_PER_SECOND
from services.ledger.prices import DatedPrice

LONGEST_ROW_NS = 31 * 86_400 * NANOS_PER_SECOND
"""Longest time that one row may cover."""
MOST_UNITS = 10_000
_GPU = re.compile(r"gpu:[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_EARLIEST_NS = 946_684_800 * NANOS_PER_SECOND  # The year 2000: an earlier time is a clock or a unit gone wrong.
_AHEAD_NS = 86_400 * NANOS_PER_SECOND
_NANOS_PER_HOUR = 3_600 * NANOS_PER_SECOND
_BILLION = 10**9

HourPrice = Callable[[str, int], int]
"""Nano-USD of one unit-hour of a hardware at an instant; raises PRICE_UNKNOWN."""


@dataclass(frozen=True, slots=True)
class Utilization:
    """A node from ``start_ns`` to before ``end_ns``: busy for a share of it, 0 to 1."""

    node: str
    hardware: str
    unit_count: int
    start_ns: int
    end_ns: int
    busy_share: float
    model: str = ""
    output_tokens: int = 0


@dataclass(frozen=True, slots=True)
class NodeCost:
    """What a node cost over the time that its rows cover; busy and idle add up to the whole."""

    node: str
    hardware: str
    covered_ns: int
    busy_share: float
    busy: int
    idle: int


def check_hardware(hardware: str, field: str) -> None:
    """Refuse what is neither "cpu" nor "gpu:KIND"."""
    if not hardware:
        raise required(field)
    if hardware != CPU and not _GPU.fullmatch(hardware):
        raise invalid_argument('"cpu" or "gpu:KIND" with up to 64 letters, digits, ".", "_" or "-"', field=field)


def check_units(count: int, field: str) -> None:
    """Refuse a number of GPUs or cores outside 1..10,000."""
    if not 1 <= count <= MOST_UNITS:
        raise invalid_argument(f"{count} is not within 1..{MOST_UNITS}", field=field)


def check(row: Utilization, now_ns: int, field: str) -> None:
    """Refuse a row that cannot be, naming the field that is wrong. Names are checked where they are read."""
    check_hardware(row.hardware, f"{field}.hardware")
    check_units(row.unit_count, f"{field}.unit_count")
    if row.start_ns < _EARLIEST_NS:
        raise invalid_argument("before the year 2000", field=f"{field}.start_time")
    if row.end_ns <= row.start_ns:
        raise invalid_argument("not after start_time", field=f"{field}.end_time")
    if row.end_ns - row.start_ns > LONGEST_ROW_NS:
        raise invalid_argument("more than 31 days after start_time", field=f"{field}.end_time")
    if row.end_ns > now_ns + _AHEAD_NS:
        raise invalid_argument("more than a day ahead", field=f"{field}.end_time")
    if not (math.isfinite(row.busy_share) and 0 <= row.busy_share <= 1):
        raise invalid_argument(f"{row.busy_share} is not within 0..1", field=f"{field}.busy_share")
    if row.output_tokens < 0:
        raise invalid_argument("negative", field=f"{field}.output_token_count")


def admit(known: Iterable[Utilization], new: Sequence[Utilization], field: str) -> list[Utilization]:
    """The rows among ``new`` that the books do not have; ``known`` are those around them.

    A row that is known already, identically, changes nothing. Raises UTILIZATION_OVERLAP for one that covers time
    of its node that another row covers.
    """
    rows: dict[str, list[Utilization]] = defaultdict(list)
    for row in known:
        rows[row.node].append(row)
    added = []
    for index, row in enumerate(new):
        there = rows[row.node]
        if row in there:
            continue
        for other in there:
            if other.start_ns < row.end_ns and row.start_ns < other.end_ns:
                raise TenthError(
                    Code.ALREADY_EXISTS,
                    Reason.UTILIZATION_OVERLAP,
                    f"another record of node {row.node!r} covers some of that time",
                    f"{field}[{index}].start_time",
                )
        there.append(row)
        added.append(row)
    return added


def hour_prices(book: Iterable[DatedPrice]) -> HourPrice:
    """What an hour of one core or GPU costs, by the price book. No price, none confirmed, or zero: PRICE_UNKNOWN."""
    by_hardware: dict[str, list[DatedPrice]] = defaultdict(list)
    for row in book:
        by_hardware[row.model].append(row)

    def price(hardware: str, at_ns: int) -> int:
        for row in by_hardware[hardware]:
            if row.holds_at(at_ns) and row.price.confirmed:
                hour = row.price.cpu_hour if hardware == CPU else row.price.gpu_hour
                if hour:  # Nobody gives hardware away: a zero is a forgotten field.
                    return hour
        raise TenthError(
            Code.FAILED_PRECONDITION,
            PRICE_UNKNOWN,
            f"the price book has no confirmed price of an hour of {hardware!r} at that time",
            metadata={"model": hardware},
        )

    return price


def idle_cost(rows: Iterable[Utilization], start_ns: int, end_ns: int, hour_price: HourPrice) -> list[NodeCost]:
    """What each node cost between two instants, by node and hardware.

    Rows are clipped to the window, their busy share taken as even over their time and to the billionth. A row's
    price is the one at its own start, so that neighbouring windows use the same. The whole and the busy part are
    exact sums, rounded once each, half to even; the idle part is what remains, so that the two always add up.
    Raises PRICE_UNKNOWN, and AMOUNT_OUT_OF_RANGE for a sum past int64.
    """
    sums: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0, 0, 0])
    for row in rows:
        covered = min(row.end_ns, end_ns) - max(row.start_ns, start_ns)
        if covered <= 0:
            continue
        worth = covered * row.unit_count * hour_price(row.hardware, row.start_ns)
        busy = round(row.busy_share * _BILLION)
        added = (covered, covered * busy, worth, worth * busy)
        kept = sums[row.node, row.hardware]
        for index, amount in enumerate(added):
            kept[index] += amount
    return [_node_cost(*key, *sums[key]) for key in sorted(sums)]


def _node_cost(node: str, hardware: str, covered: int, busy_time: int, worth: int, busy_worth: int) -> NodeCost:
    whole = divide_half_even(worth, _NANOS_PER_HOUR)
    busy = divide_half_even(busy_worth, _NANOS_PER_HOUR * _BILLION)
    if whole > MAX_NANO_USD:
        raise TenthError(
            Code.OUT_OF_RANGE, AMOUNT_OUT_OF_RANGE, f"the cost of {node!r} does not fit 64 bits", "request.end_time"
        )
    return NodeCost(node, hardware, covered, busy_time / (covered * _BILLION), busy, whole - busy)
