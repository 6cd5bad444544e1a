"""Estimates on receipts, corrected when the truth about an attempt comes later.

A stream that broke, a caller who left and a provider that reports nothing leave usage that inference counted itself,
marked as estimated. When an exact record of the same attempt comes (from inference, or from a provider's usage export
through ``reconcile_usage``), the receipt is computed again with it, at the price book version and instant pinned at
admission, and takes the estimated one's place: an event ``corrected``, and the difference in the budgets' windows. An
exact usage is never corrected again, so that nothing depends on the order in which records come.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

from sqlalchemy import Connection, bindparam, select
from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import receipt_pb2

from mesh.errors import TenthError
from mesh.receipt import Usage
from mesh.wire import usage_to_proto
from services.ledger.policy import Attempt, AttemptKind, spent_by_attempts
from services.ledger.pricebook import Versions, version_among
from services.ledger.receipts import AttemptRecord, parse_attempt
from services.ledger.settling import Change, Key, Visible, computed_anew, replace_in, visible
from services.ledger.tables import attempts, receipt_events

log = logging.getLogger("tenth.ledger")

RecordKey = tuple[str, str, str, int, str]
"""Tenant, request, purpose, attempt and kind of a stored record."""
Truths = Mapping[tuple[str, int], Attempt]
"""Attempts whose usage is exact, by purpose and number."""


def as_corrections(
    connection: Connection, records: Iterable[AttemptRecord], there: Collection[RecordKey]
) -> list[AttemptRecord]:
    """Records that repeat a stored end of the same kind, exactly where that one was estimated, as corrections.

    ``there`` are the keys of what is stored. A correction of an attempt that has one already is not among them.
    """
    repeated = [
        each
        for each in records
        if each.key in there
        and each.attempt.kind is not AttemptKind.STARTED
        and not each.attempt.estimated
        and (*each.key[:4], AttemptKind.CORRECTED.value) not in there
    ]
    if not repeated:
        return []
    estimated = {
        (row.tenant_id, row.request_id, row.purpose, row.attempt, row.kind)
        for row in connection.execute(_RECORDS, {"requests": sorted({each.request_id for each in repeated})})
        if ledger_pb2.AttemptEvent.FromString(row.event).usage.estimated
    }
    return [as_correction(each) for each in repeated if each.key in estimated]


def corrects(record: AttemptRecord, first: AttemptRecord) -> bool:
    """True when a record says exactly what another one of the same end only estimates."""
    kind = record.attempt.kind
    return kind is not AttemptKind.STARTED and first.attempt.estimated and not record.attempt.estimated


def as_correction(record: AttemptRecord) -> AttemptRecord:
    """The record to be stored beside the estimated one."""
    return replace(record, attempt=replace(record.attempt, kind=AttemptKind.CORRECTED))


def correct_in(
    connection: Connection,
    keys: Collection[Key],
    now: int,
    changes: list[Change] | None = None,
    versions: Versions | None = None,
) -> int:
    """Correct the receipts that these requests show, where they estimate what is known exactly; how many were.

    ``versions`` are price books at hand; others are read from the database and put there.
    """
    if not keys:
        return 0
    request_ids = sorted({request_id for _, request_id in keys})
    shown = {key: found for key, found in visible(connection, request_ids).items() if key in keys}
    if not shown:
        return 0
    blobs: dict[int, bytes] = {
        row.id: row.receipt
        for row in connection.execute(_EVENTS, {"events": [found.event_id for found in shown.values()]})
    }
    receipts = {key: receipt_pb2.Receipt.FromString(blobs[found.event_id]) for key, found in shown.items()}
    doubtful = {key: receipt.facts for key, receipt in receipts.items() if _estimates(receipt.facts)}
    if not doubtful:
        return 0
    recorded: dict[Key, list[Attempt]] = {key: [] for key in doubtful}
    for row in connection.execute(_RECORDS, {"requests": sorted({request_id for _, request_id in doubtful})}):
        if (row.tenant_id, row.request_id) in recorded:
            recorded[row.tenant_id, row.request_id].append(parse_attempt(row.event)[1])
    versions = {} if versions is None else versions
    count = 0
    for key, facts in doubtful.items():
        count += _correct(connection, facts, shown[key], truths_of(recorded[key]), now, changes, versions)
    return count


def truths_of(recorded: Sequence[Attempt]) -> Truths:
    """The attempts of one request whose usage is known exactly."""
    spent = spent_by_attempts(recorded, assume_worst=True) or ()
    return {(each.attempt.purpose, each.attempt.attempt): each.attempt for each in spent if not each.estimated}


def apply_truths(facts: receipt_pb2.ReceiptFacts, truths: Truths) -> bool:
    """Put exact usage in the place of estimates; True when any was.

    A truth is of the same attempt and model, and of the same purpose: what the classifier used never counts as an
    answer. The original prompt is scaled as the sent one turns out, as the orchestrator does, so that the error of an
    estimate never shows up as a saving.
    """
    changed = False
    if facts.usage.estimated and facts.attempt:
        truth = truths.get(("answer", facts.attempt))
        # An answer is never free: a record of nothing is of another end than this one.
        if truth is not None and truth.model == facts.model and truth.usage != Usage():
            estimated, exact = facts.usage.input_token_count, truth.usage.input
            original = facts.original_input_token_count
            scaled = (original * exact + estimated // 2) // estimated if estimated else original + exact
            if facts.model == facts.baseline_model or facts.baseline_input_token_count == original:
                # The baseline's prompt is this one, in the same tokens.
                facts.baseline_input_token_count = scaled
            facts.original_input_token_count = scaled
            facts.usage.CopyFrom(usage_to_proto(truth.usage))
            changed = True
    for item in facts.overheads:
        if not item.usage.estimated or not item.attempt:
            continue
        purpose = item.kind if item.kind in ("classifier", "summary", "tokenwise") else "answer"
        truth = truths.get((item.kind, item.attempt)) or truths.get((purpose, item.attempt))
        if truth is not None and truth.model == item.model:
            item.usage.CopyFrom(usage_to_proto(truth.usage))
            changed = True
    return changed


def _correct(
    connection: Connection,
    facts: receipt_pb2.ReceiptFacts,
    before: Visible,
    truths: Truths,
    now: int,
    changes: list[Change] | None,
    versions: Versions,
) -> bool:
    if not apply_truths(facts, truths):
        return False
    try:
        corrected = computed_anew(facts, version_among(connection, facts.price_book_version, versions), before)
    except TenthError as error:
        # The estimate stands; the record is kept, and the next one of this request tries again.
        log.warning("request %s of %s cannot be corrected: %s", facts.request_id, facts.tenant_id, error)
        return False
    replace_in(connection, corrected, before, now, changes)
    log.info(
        "request %s of %s: an estimate is corrected by %d nano-USD",
        facts.request_id,
        facts.tenant_id,
        corrected.actual - before.actual,
    )
    return True


def _estimates(facts: receipt_pb2.ReceiptFacts) -> bool:
    return facts.usage.estimated or any(item.usage.estimated for item in facts.overheads)


_RECORDS = select(
    attempts.c.tenant_id,
    attempts.c.request_id,
    attempts.c.purpose,
    attempts.c.attempt,
    attempts.c.kind,
    attempts.c.event,
).where(attempts.c.request_id.in_(bindparam("requests", expanding=True)))
_EVENTS = select(receipt_events.c.id, receipt_events.c.receipt).where(
    receipt_events.c.id.in_(bindparam("events", expanding=True))
)
