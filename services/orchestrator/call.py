"""One request on its way through the flow: what was admitted, decided and spent so far."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from tenth.ledger.v1 import ledger_pb2
from tenth.router.v1 import router_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2, usage_pb2

from mesh.auth import Identity
from mesh.errors import Code, TenthError, deadline_exceeded
from mesh.receipt import CPU, Price
from mesh.status import detail

OK = receipt_pb2.HOP_OUTCOME_OK
SKIPPED = receipt_pb2.HOP_OUTCOME_SKIPPED
DISABLED = receipt_pb2.HOP_OUTCOME_DISABLED
DEGRADED = receipt_pb2.HOP_OUTCOME_DEGRADED

CONTROL_TAG = "tenth.control"
"""Tag of requests that take part in the tenant's measured comparison: "true", the control share, or "false"."""

_ANSWERS = frozenset(
    (Code.INVALID_ARGUMENT, Code.FAILED_PRECONDITION, Code.NOT_FOUND, Code.OUT_OF_RANGE, Code.ALREADY_EXISTS)
)


def is_down(error: TenthError) -> bool:
    """True when a hop did not do its work (down, late, broken, misconfigured); False when it answered "no"."""
    return error.code not in _ANSWERS


@dataclass(frozen=True, slots=True)
class Route:
    """The model that shall answer."""

    model: str
    tier: chat_pb2.Tier.ValueType
    degraded: bool = False
    context_window_tokens: int = 0
    self_hosted: bool = False
    cascade: router_pb2.CascadePlan | None = None
    """Set when this model's answer must be checked before it is given."""
    expected_output_tokens: int = 0
    """What the router expects the answer to have; 0: not known."""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is sent, with its token counts."""

    messages: tuple[chat_pb2.ChatMessage, ...]
    chunks: tuple[chat_pb2.RetrievedChunk, ...]
    original_tokens: int
    sent_tokens: int
    baseline_tokens: int
    """0: nobody counted with the baseline's tokenizer."""
    estimated: bool
    cut_tools: frozenset[int] = frozenset()
    """Places in the request's tools of those that are not sent."""
    max_output_tokens: int = 0
    """A limit on the answer from its predicted length; 0: none but the request's."""
    shortened_by: tuple[str, ...] = ()
    """The compressor's strategies that took something away."""
    stable_messages: int = 0
    """Leading messages that earlier requests began with byte for byte; 0: none, or not known."""
    prefix_version: str = ""
    """Of the rules that made them; empty: not known."""


@dataclass(frozen=True, slots=True)
class Generated:
    """A whole answer from a model."""

    completion: chat_pb2.Completion
    quantized: bool
    attempt: int
    """Its number, as inference knows it."""
    seconds: float
    """From asking the model to the whole answer."""


@dataclass(frozen=True, slots=True)
class Later:
    """How a request is answered that is prepared now and finished later, in a batch."""

    batch_prices: bool
    """True where it may go at batch prices."""
    ttl_seconds: float
    """How long its reservation must stand."""

    def pooled(self, route: Route, prices: Mapping[str, Price]) -> bool:
        """True when its reservation is a batch's: at batch prices, or on own hardware, where it waits behind others.

        Else it goes where callers who wait go, counts among their requests per minute, and pays what they do.
        """
        return self.batch_prices and (route.self_hosted or has_batch_price(prices.get(route.model)))


def has_batch_price(price: Price | None) -> bool:
    """True when the price book says what a model costs in a batch."""
    return price is not None and (price.batch_input is not None or price.batch_output is not None)


@dataclass(slots=True)
class Call:
    """The state of one request."""

    request: chat_pb2.CompletionRequest
    digest: bytes
    identity: Identity
    tenant: ledger_pb2.TenantPolicy
    prices: Mapping[str, Price]
    price_book_version: int
    created: float
    trace_id: str
    streaming: bool
    attempt_base: int
    caller_set_limit: bool = True
    """False when max_output_tokens is the deployment's default."""
    control: bool | None = None
    """The side that it was drawn for, which its receipt says whatever became of it; see policy.control_side."""
    left_control: bool = False
    """True when it was drawn for the control share and goes on with every layer all the same."""
    shard: str = ""
    """Routing key of its cache replica."""
    later: Later | None = None
    """Set when it is answered in two halves; None: here and now."""
    hops: list[receipt_pb2.Hop] = field(default_factory=list)
    overheads: list[receipt_pb2.OverheadItem] = field(default_factory=list)
    compute_micros: int = 0
    attempts: int = 0
    selections: int = 0
    compressions: int = 0
    attempts_unknown: bool = False
    reservation_id: str = ""
    downgraded: bool = False
    excluded: list[str] = field(default_factory=list)
    """Models that were asked and failed."""
    routed: bool = False
    """True when the router has decided: it wants to know what became of it."""
    compressed_for: str = ""
    """The model that the compressor made the prompt for last; empty: it was not asked."""
    told_tokens: int = 0
    """The compressor's count of what was sent to that model."""
    token_correction: float = 0.0
    """What settled usage had taught of that count."""
    escalated_from: str = ""
    """The model whose answer a cascade did not accept."""
    unaccepted: bool = False
    """True when a cascade's first answer is given although no check accepted it."""
    sent_text: str = ""
    """Answer text that the caller has already received."""
    sent_other: bool = False
    """True when the caller has received reasoning, tool calls or log probabilities: they cannot be continued."""

    @property
    def asked(self) -> chat_pb2.CompletionRequest:
        """The request as the cache shall know it: the deployment's default limit is nothing that the caller asked for,
        and whoever warms or inspects the cache does not know it."""
        if self.caller_set_limit:
            return self.request
        asked = chat_pb2.CompletionRequest()
        asked.CopyFrom(self.request)
        asked.sampling.ClearField("max_output_tokens")
        return asked

    @property
    def began(self) -> bool:
        """True when the caller has received a piece of an answer."""
        return bool(self.sent_text) or self.sent_other

    def note_sent(self, text: str, delta: chat_pb2.CompletionDelta) -> None:
        """The caller received a piece; ``text`` is the answer text so far."""
        self.sent_text = text
        self.sent_other = self.sent_other or bool(delta.reasoning or delta.tool_calls or delta.logprobs)

    def carry(self, earlier: receipt_pb2.ReceiptFacts) -> None:
        """Take over what an earlier, failed try of the same request spent: the request has one receipt."""
        self.overheads.extend(earlier.overheads)
        self.attempts_unknown = earlier.attempts_unknown

    @property
    def in_control(self) -> bool:
        """True while the baseline model shall answer with every layer off, to measure the savings against."""
        return bool(self.control) and not self.left_control

    def disabled(self, layer: str) -> bool:
        """True when a kill switch turned a layer off for this tenant, or the request is of the control share."""
        return self.in_control or layer in self.tenant.disabled_layers

    @property
    def why_disabled(self) -> tuple[receipt_pb2.HopOutcome.ValueType, str]:
        """Outcome and reason of the hop of a disabled layer. With a switch off a request is in no control share."""
        return (SKIPPED, "control share") if self.in_control else (DISABLED, "kill switch")

    @property
    def tags(self) -> dict[str, str]:
        """The caller's tags and the mesh's own, for the reservation and the receipt."""
        own = {} if self.control is None else {CONTROL_TAG: "true" if self.control else "false"}
        return {**self.request.tags, **own}

    def leave_control(self, why: str) -> None:
        """Go on with every layer: measuring must not cost a caller its answer. No effect outside the control share.

        It stays on its side of the comparison: without those that the baseline cannot answer, or a budget does not
        hold, that side would be of other requests than the other one.
        """
        if self.in_control:
            self.left_control = True
            self.skip("control", SKIPPED, f"left the control share: {why}")

    @contextmanager
    def hop(self, name: str) -> Iterator[receipt_pb2.Hop]:
        """Time a hop and note what became of it; the body sets outcome and reason."""
        hop = receipt_pb2.Hop(name=name, outcome=OK)
        started = time.perf_counter()
        try:
            yield hop
        finally:
            hop.duration.FromNanoseconds(int((time.perf_counter() - started) * 1e9))
            self.hops.append(hop)

    def skip(self, name: str, outcome: receipt_pb2.HopOutcome.ValueType, reason: str) -> None:
        """Note a hop that was not asked."""
        self.hops.append(receipt_pb2.Hop(name=name, outcome=outcome, reason=reason))

    def next_attempt(self) -> int:
        """The number of the attempt that begins now."""
        self.attempts += 1
        return self.attempt_base + self.attempts

    def next_classifier_attempt(self) -> int:
        """The number for the router's own model call, if it makes one; of the same unique range."""
        self.selections += 1
        return self.attempt_base + 500 + self.selections

    def next_summary_attempt(self) -> int:
        """The number for the compressor's own model call, if it makes one; of the same unique range."""
        self.compressions += 1
        # Not 250 behind another range: that is where hedges of its attempts are numbered.
        return self.attempt_base + 400 + self.compressions

    def note_failed_attempt(self, model: str, error: TenthError) -> None:
        """Put what a failed attempt spent on the receipt; without word of it, the ledger asks inference's records."""
        if not self.note_spent(error):
            self.attempts_unknown = True

    def note_spent(self, error: TenthError) -> bool:
        """Put what an error says was spent on the receipt; False when it says nothing."""
        spent = detail(error, receipt_pb2.SpentDetail)
        if not isinstance(spent, receipt_pb2.SpentDetail):
            return False
        self.note_overheads(spent.attempts)
        return True

    def note_overheads(self, items: Iterable[receipt_pb2.OverheadItem]) -> None:
        """Put what was spent beside the answer on the receipt; an attempt that stands on it already once only.

        What has no price here must not cost the caller its answer: the ledger adds it from inference's records.
        """
        known = {item.attempt for item in self.overheads if item.attempt}
        for item in items:
            if item.attempt in known:
                continue
            if item.model and not self._priced(item.model):
                self.attempts_unknown = True
            else:
                self.overheads.append(item)

    def _priced(self, name: str) -> bool:
        price = self.prices.get(name)
        return price is not None and price.confirmed

    def facts(self, now: float) -> receipt_pb2.ReceiptFacts:
        """The receipt's facts as far as they do not depend on the outcome."""
        overheads = list(self.overheads)
        if self.compute_micros and self._priced(CPU):
            overheads.append(receipt_pb2.OverheadItem(kind="compute", compute_micros=self.compute_micros))
        facts = receipt_pb2.ReceiptFacts(
            request_id=self.request.request_id,
            tenant_id=self.identity.tenant_id,
            user_id=self.identity.user_id,
            project_id=self.identity.project_id,
            tags=self.tags,
            price_book_version=self.price_book_version,
            baseline_model=self.tenant.baseline_model,
            overheads=overheads,
            reservation_id=self.reservation_id,
            trace_id=self.trace_id,
            hops=self.hops,
            payload_digest=self.digest.hex(),
        )
        facts.create_time.FromNanoseconds(int(self.created * 1e9))
        facts.end_time.FromNanoseconds(int(now * 1e9))
        return facts

    def failed_facts(self, now: float, *, cancelled: bool) -> receipt_pb2.ReceiptFacts:
        """Facts of a request without an answer: everything spent is overhead."""
        facts = self.facts(now)
        facts.failed = True
        facts.cancelled = cancelled
        facts.attempts_unknown = self.attempts_unknown or (cancelled and self.attempts > 0)
        return facts

    def hit_facts(
        self, now: float, completion: chat_pb2.Completion, kind: str, baseline_tokens: int
    ) -> receipt_pb2.ReceiptFacts:
        """Facts of a request answered without a model."""
        facts = self.facts(now)
        facts.cache_hit = True
        facts.cache_hit_kind = kind
        facts.model = completion.model
        facts.tier = completion.tier
        facts.usage.CopyFrom(usage_pb2.Usage(output_token_count=completion.usage.output_token_count))
        facts.baseline_input_token_count = baseline_tokens
        return facts


def check_deadline(error: TenthError, remaining_seconds: float | None) -> None:
    """A hop that was late because the whole request is late: then the request has failed, not the hop."""
    if error.code is Code.DEADLINE_EXCEEDED and remaining_seconds is not None and remaining_seconds <= 0.02:
        raise deadline_exceeded() from error
