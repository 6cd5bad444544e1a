"""Three books of one batch compared: what the provider was asked, what receipts hold, what the ledger sums. Pure."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tenth.type.v1 import receipt_pb2

Attempt = tuple[str, int]
"""A request and the number of one generation of it."""
_ONLINE = re.compile(r"(?P<request>.+)/(?P<attempt>\d+)")
_IN_A_BATCH = re.compile(r"(?P<request>.+)-(?P<attempt>\d+)-\d+-[0-9a-f]{10}")


@dataclass(frozen=True, slots=True)
class Compared:
    """What is wrong, and what was done again."""

    provider_requests: int
    """What the provider answered of the batch's requests."""
    billed_twice: int
    """Generations that the provider ran again under the number that it had had, or that no receipt holds; and requests
    that the ledger counts beyond one an item."""
    repeated_items: int
    """Items that the provider answered under more than one number: honest work done again, booked each time."""
    booked_unasked: int
    """Generations in receipts that the provider knows nothing of: a request that died on its way, booked at most."""
    identity_violations: int
    """Receipts whose baseline, savings and overhead do not give what was paid."""


def attempt_of(name: str) -> Attempt | None:
    """What a provider's name of a request says: REQUEST_ID/ATTEMPT online, REQUEST_ID-ATTEMPT-ESTIMATE-TAG in a batch.
    None for a name that is neither."""
    found = _ONLINE.fullmatch(name) or _IN_A_BATCH.fullmatch(name)
    return (found["request"], int(found["attempt"])) if found else None


def booked(receipts: Iterable[receipt_pb2.Receipt]) -> set[Attempt]:
    """The generations that receipts hold."""
    found = set()
    for receipt in receipts:
        facts = receipt.facts
        numbers = [facts.attempt, *(item.attempt for item in facts.overheads)]
        found |= {(facts.request_id, number) for number in numbers if number}
    return found


def holds(receipt: receipt_pb2.Receipt) -> bool:
    """The identity of a receipt: baseline less savings, and overhead, is what was paid."""
    saved = sum(item.saving_nano_usd for item in receipt.savings)
    return bool(receipt.baseline_nano_usd - saved + receipt.overhead_nano_usd == receipt.actual_nano_usd)


def compare(asked: Iterable[str], receipts: Sequence[receipt_pb2.Receipt], ledger_requests: int) -> Compared:
    """``asked``: what the provider answered, by its names, in any order; ``ledger_requests``: how many requests the
    ledger counts for the batch."""
    items = {receipt.facts.request_id for receipt in receipts}
    served = Counter(found for name in asked if (found := attempt_of(name)) and found[0] in items)
    numbers: dict[str, set[int]] = defaultdict(set)
    for request_id, number in served:
        numbers[request_id].add(number)
    known = booked(receipts)
    again = sum(count - 1 for count in served.values())
    return Compared(
        provider_requests=served.total(),
        billed_twice=again + len(set(served) - known) + max(0, ledger_requests - len(items)),
        repeated_items=sum(len(each) > 1 for each in numbers.values()),
        booked_unasked=len(known - set(served)),
        identity_violations=sum(not holds(receipt) for receipt in receipts),
    )
