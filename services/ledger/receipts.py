"""Receipts and attempts between the wire and the books: checked, computed again, and flattened into rows."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import receipt_pb2, usage_pb2

from mesh.errors import Code, TenthError, invalid_argument, required
from mesh.receipt import AMOUNT_OUT_OF_RANGE, PRICE_UNKNOWN, PriceBook
from mesh.wire import build_receipt, usage_from_proto, usage_to_proto
from services.ledger.errors import Reason
from services.ledger.labels import CONTROL, tags_pairs, tags_text
from services.ledger.policy import Attempt, AttemptKind, Scope, Spent
from services.ledger.tables import SAVINGS

ID_LENGTH = 256
"""Longest id or name that the books take, characters."""
TAG_COUNT = 64
_DIGEST = re.compile(r"[0-9a-f]{64}")
_EARLIEST_NS = 946_684_800 * 10**9  # The year 2000: an earlier time is a clock or a unit gone wrong.
_AHEAD_NS = 86_400 * 10**9
_RECEIPT_NAMES = ("request_id", "tenant_id", "baseline_model")
_RECEIPT_LABELS = ("user_id", "project_id", "model", "reservation_id", "trace_id", "cache_hit_kind", "payload_digest")
MADE_HERE = "tenth.reconciled"
"""Tag of receipts that the ledger made from attempts because none came."""

KINDS = {
    ledger_pb2.ATTEMPT_KIND_STARTED: AttemptKind.STARTED,
    ledger_pb2.ATTEMPT_KIND_FINISHED: AttemptKind.FINISHED,
    ledger_pb2.ATTEMPT_KIND_FAILED: AttemptKind.FAILED,
    ledger_pb2.ATTEMPT_KIND_CANCELLED: AttemptKind.CANCELLED,
}


@dataclass(frozen=True, slots=True)
class Settlement:
    """A receipt as the ledger computed it."""

    tenant_id: str
    request_id: str
    scope: Scope
    create_ns: int
    actual: int
    digest: str
    payload_digest: str
    failed: bool
    attempts: frozenset[int]
    """Numbers of the attempts that this receipt accounts for."""
    reservation_id: str
    blob: bytes
    columns: dict[str, Any]
    estimated: bool = False
    """True when the usage of an attempt on it is an estimate."""

    @property
    def key(self) -> tuple[str, str]:
        """What a receipt is unique by."""
        return self.tenant_id, self.request_id


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """One attempt's record with whose it is."""

    tenant_id: str
    request_id: str
    price_book_version: int
    attempt: Attempt
    reservation_id: str
    blob: bytes

    @property
    def key(self) -> tuple[str, str, str, int, str]:
        """What a record is unique by."""
        each = self.attempt
        return self.tenant_id, self.request_id, each.purpose, each.attempt, each.kind.value


def check_name(value: str, field: str, *, optional: bool = False) -> str:
    """An id or a name: present unless optional, at most 256 characters, none of them a control character."""
    if not value and not optional:
        raise required(field)
    if len(value) > ID_LENGTH:
        raise invalid_argument(f"longer than {ID_LENGTH} characters", field=field)
    # Almost every name is printable, and so has no control character: that test alone is quick.
    if not value.isprintable() and any(unicodedata.category(each) == "Cc" for each in value):
        raise invalid_argument("holds a control character", field=field)
    return value


def check_digest(value: str, field: str) -> str:
    """A SHA-256 in lower-case hex, or nothing."""
    if value and not _DIGEST.fullmatch(value):
        raise invalid_argument("not a SHA-256 in hex", field=field)
    return value


def instant(message: Timestamp, field: str) -> int:
    """Nanoseconds since the epoch. Raises INVALID_FIELD for a time outside of what int64 nanoseconds carry."""
    nanos = message.seconds * 10**9 + message.nanos
    if not 0 <= message.nanos < 10**9 or not -(2**63) <= nanos < 2**63:
        raise invalid_argument("not a valid time", field=field)
    return nanos


def settlement(
    receipt: receipt_pb2.Receipt, book: Callable[[int], PriceBook], now_ns: int, field: str = "receipt"
) -> Settlement:
    """Check a receipt and compute it again from its facts.

    ``book`` gives the pinned version's prices at an instant. Raises INVALID_RECEIPT, naming the field, for facts
    that are not allowed and for amounts other than the ledger's own; PRICE_UNKNOWN as ``mesh.receipt`` does.
    """
    facts = receipt.facts
    try:
        create_ns = _check_facts(facts, now_ns, f"{field}.facts")
        own = build_receipt(facts, book(create_ns), receipt_pb2.RECEIPT_STATE_FINAL)
    except TenthError as error:
        if error.reason == PRICE_UNKNOWN:
            raise
        raise _invalid(error.message, error.field) from error
    _compare(receipt, own, field)
    return flatten(own, create_ns)


def flatten(own: receipt_pb2.Receipt, create_ns: int) -> Settlement:
    """The row of a receipt that the ledger computed."""
    facts = own.facts
    blob = serialized(own)
    numbers = frozenset(filter(None, (facts.attempt, *(item.attempt for item in facts.overheads))))
    columns: dict[str, Any] = {
        "tenant_id": facts.tenant_id,
        "request_id": facts.request_id,
        "user_id": facts.user_id,
        "project_id": facts.project_id,
        "create_ns": create_ns,
        "model": _counted_model(facts),
        "tier": facts.tier,
        "baseline_model": facts.baseline_model,
        "cache": (facts.cache_hit_kind or "hit") if facts.cache_hit else "miss",
        "failed": facts.failed,
        "input_tokens": 0 if facts.cache_hit else facts.usage.input_token_count,
        "output_tokens": 0 if facts.cache_hit else facts.usage.output_token_count,
        "baseline": own.baseline_nano_usd,
        "baseline_prompt_cached": own.baseline_prompt_cached_nano_usd,
        **{name: saving.saving_nano_usd for name, saving in zip(SAVINGS, own.savings, strict=True)},
        "overhead": own.overhead_nano_usd,
        "actual": own.actual_nano_usd,
        "payload_digest": facts.payload_digest,
        "attempts": " ".join(map(str, sorted(numbers))),
        "tags": tags_text(facts.tags),
        "latency_ns": _latency_ns(facts),
        "control": facts.tags.get(CONTROL) == "true",
    }
    return Settlement(
        tenant_id=facts.tenant_id,
        request_id=facts.request_id,
        scope=Scope(facts.tenant_id, facts.user_id, facts.project_id, columns["model"], tags_pairs(columns["tags"])),
        create_ns=create_ns,
        actual=own.actual_nano_usd,
        digest=hashlib.sha256(blob).hexdigest(),
        payload_digest=facts.payload_digest,
        failed=facts.failed,
        attempts=numbers,
        reservation_id=facts.reservation_id,
        blob=blob,
        columns=columns,
        estimated=facts.usage.estimated or any(item.usage.estimated for item in facts.overheads),
    )


def made_ns(blob: bytes) -> int:
    """The create_time of a stored receipt, by the clock of who made it."""
    return int(receipt_pb2.Receipt.FromString(blob).facts.create_time.ToNanoseconds())


def check_tags(tags: Mapping[str, str], field: str) -> dict[str, str]:
    """At most 64 labels, each a name with a text that may be empty. Raises INVALID_FIELD and REQUIRED_FIELD."""
    if len(tags) > TAG_COUNT:
        raise invalid_argument(f"more than {TAG_COUNT} tags", field=field)
    for key, value in tags.items():
        check_name(key, field)
        check_name(value, field, optional=True)
    return dict(tags)


def serialized(message: Message) -> bytes:
    """A message's bytes, the same for equal messages."""
    return message.SerializeToString(deterministic=True)


def attempt_record(event: ledger_pb2.AttemptEvent, field: str) -> AttemptRecord:
    """Check one attempt's record. Raises INVALID_FIELD and REQUIRED_FIELD, naming the field."""
    for name in ("request_id", "tenant_id", "model"):
        check_name(getattr(event, name), f"{field}.{name}")
    for name in ("user_id", "project_id", "purpose", "reservation_id", "trace_id"):
        check_name(getattr(event, name), f"{field}.{name}", optional=True)
    if event.attempt < 1:
        raise invalid_argument("attempts count from 1", field=f"{field}.attempt")
    if event.kind not in KINDS:
        raise invalid_argument("not a kind of record", field=f"{field}.kind")
    if event.price_book_version < 0:
        raise invalid_argument("negative", field=f"{field}.price_book_version")
    if not event.HasField("event_time"):
        raise required(f"{field}.event_time")
    event_ns = instant(event.event_time, f"{field}.event_time")
    if event_ns < _EARLIEST_NS:
        raise invalid_argument("before the year 2000", field=f"{field}.event_time")
    _check_usage(event.usage, f"{field}.usage")
    attempt = _plain_attempt(event, event_ns)
    return AttemptRecord(
        tenant_id=event.tenant_id,
        request_id=event.request_id,
        price_book_version=event.price_book_version,
        attempt=attempt,
        reservation_id=event.reservation_id,
        blob=serialized(event),
    )


def parse_attempt(blob: bytes) -> tuple[ledger_pb2.AttemptEvent, Attempt]:
    """An attempt's record as it was stored."""
    event = ledger_pb2.AttemptEvent.FromString(blob)
    return event, _plain_attempt(event, event.event_time.ToNanoseconds())


def reconciled_facts(
    events: list[ledger_pb2.AttemptEvent],
    spent: tuple[Spent, ...],
    baseline_model: str,
    version: int,
    tags: Mapping[str, str],
) -> receipt_pb2.ReceiptFacts:
    """The facts of a request whose receipt never came: it failed, and all that its attempts spent is overhead.

    ``tags`` are those that its reservation has; records of attempts have none.
    """
    first = min(events, key=lambda each: each.event_time.ToNanoseconds())
    last = max(events, key=lambda each: each.event_time.ToNanoseconds())
    facts = receipt_pb2.ReceiptFacts(
        request_id=first.request_id,
        tenant_id=first.tenant_id,
        user_id=first.user_id,
        project_id=first.project_id,
        tags={**tags, MADE_HERE: "true"},
        price_book_version=version,
        baseline_model=baseline_model,
        failed=True,
        reservation_id=first.reservation_id,
        create_time=first.event_time,
        end_time=last.event_time,
        trace_id=first.trace_id,
    )
    add_spent(facts, spent)
    return facts


def add_spent(facts: receipt_pb2.ReceiptFacts, spent: Iterable[Spent]) -> None:
    """Put what attempts spent on a receipt, as overhead."""
    for item in spent:
        facts.overheads.add(
            kind=item.kind,
            model=item.attempt.model,
            attempt=item.attempt.attempt,
            quantized=item.attempt.quantized,
            usage=usage_to_proto(item.attempt.usage, estimated=item.estimated),
        )


def _plain_attempt(event: ledger_pb2.AttemptEvent, event_ns: int) -> Attempt:
    return Attempt(
        attempt=event.attempt,
        purpose=event.purpose or "answer",
        kind=KINDS[event.kind],
        model=event.model,
        usage=usage_from_proto(event.usage),
        estimated=event.usage.estimated,
        quantized=event.quantized,
        event_ns=event_ns,
    )


def _check_facts(facts: receipt_pb2.ReceiptFacts, now_ns: int, field: str) -> int:
    for name in _RECEIPT_NAMES:
        check_name(getattr(facts, name), f"{field}.{name}")
    for name in _RECEIPT_LABELS:
        check_name(getattr(facts, name), f"{field}.{name}", optional=True)
    check_digest(facts.payload_digest, f"{field}.payload_digest")
    if len(facts.cache_hit_kind) > 16:
        raise invalid_argument("longer than 16 characters", field=f"{field}.cache_hit_kind")
    if not facts.model and not facts.cache_hit and not facts.failed:
        raise required(f"{field}.model")
    check_tags(facts.tags, f"{field}.tags")
    if not facts.HasField("create_time"):
        raise required(f"{field}.create_time")
    create_ns = instant(facts.create_time, f"{field}.create_time")
    if not _EARLIEST_NS <= create_ns <= now_ns + _AHEAD_NS:
        raise invalid_argument("before the year 2000 or in the future", field=f"{field}.create_time")
    instant(facts.end_time, f"{field}.end_time")
    if facts.price_book_version < 0:
        raise invalid_argument("negative", field=f"{field}.price_book_version")
    for name in ("baseline_input_token_count", "original_input_token_count"):
        if getattr(facts, name) < 0:
            raise invalid_argument("negative", field=f"{field}.{name}")
    _check_usage(facts.usage, f"{field}.usage")
    for index, item in enumerate(facts.overheads):
        if item.model:
            check_name(item.model, f"{field}.overheads[{index}].model")
        if item.compute_micros < 0:
            raise invalid_argument("negative", field=f"{field}.overheads[{index}].compute_micros")
        _check_usage(item.usage, f"{field}.overheads[{index}].usage")
    return create_ns


def _counted_model(facts: receipt_pb2.ReceiptFacts) -> str:
    """The model that a request counts for: the one that answered; of a failed one the last that was asked."""
    if facts.model or not facts.failed:
        return facts.model
    beside = ("classifier", "summary", "tokenwise")
    asked = [item for item in facts.overheads if item.model and item.kind not in beside]
    return max(asked, key=lambda item: item.attempt).model if asked else ""


def _latency_ns(facts: receipt_pb2.ReceiptFacts) -> int | None:
    if not facts.HasField("end_time"):
        return None
    took = facts.end_time.ToNanoseconds() - facts.create_time.ToNanoseconds()
    return took if took >= 0 else None


def _check_usage(usage: usage_pb2.Usage, field: str) -> None:
    for descriptor, value in usage.ListFields():
        if value < 0:
            raise invalid_argument("negative", field=f"{field}.{descriptor.name}")
    parts = usage.cached_input_token_count + usage.cache_write_5m_token_count + usage.cache_write_1h_token_count
    if usage.reasoning_output_token_count > usage.output_token_count:
        raise invalid_argument("reasoning tokens exceed the output", field=field, reason=AMOUNT_OUT_OF_RANGE)
    if parts > usage.input_token_count:
        raise invalid_argument("cached and written tokens exceed the input", field=field, reason=AMOUNT_OUT_OF_RANGE)


def _compare(given: receipt_pb2.Receipt, own: receipt_pb2.Receipt, field: str) -> None:
    for name in ("baseline", "baseline_prompt_cached", "overhead", "actual"):
        theirs, ours = (getattr(each, f"{name}_nano_usd") for each in (given, own))
        if theirs != ours:
            raise _invalid(f"{name} is {theirs}, computed {ours}", f"{field}.{name}_nano_usd")
    savings = [[(each.layer, each.saving_nano_usd) for each in item.savings] for item in (given, own)]
    if savings[0] != savings[1]:
        raise _invalid(f"savings are {savings[0]}, computed {savings[1]}", f"{field}.savings")
    for index, (item, mine) in enumerate(zip(given.facts.overheads, own.facts.overheads, strict=True)):
        if item.cost_nano_usd != mine.cost_nano_usd:
            raise _invalid(
                f"cost is {item.cost_nano_usd}, computed {mine.cost_nano_usd}",
                f"{field}.facts.overheads[{index}].cost_nano_usd",
            )


def _invalid(message: str, field: str) -> TenthError:
    return TenthError(Code.INVALID_ARGUMENT, Reason.INVALID_RECEIPT, message, field)
