"""The end of a request: the answer as it is kept, the facts of its receipt, and the receipt on its way to the ledger.

Shared by the request that is answered at once (``flow.py``) and by the one in two halves (``halves.py``).
"""

from __future__ import annotations

from collections.abc import Callable

from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.errors import TenthError
from mesh.wire import build_receipt
from services.orchestrator import policy
from services.orchestrator.call import Call, Generated, Prompt, Route
from services.orchestrator.outbox import Outbox


class Receipts:
    """Makes receipts and keeps them, durably, before an answer leaves."""

    def __init__(self, outbox: Outbox, now: Callable[[], float]) -> None:
        self._outbox = outbox
        self._now = now

    def finish(self, call: Call, route: Route, prompt: Prompt, generated: Generated) -> chat_pb2.Completion:
        """The answer with what a later hit on it will need: model, tier, the baseline's tokens."""
        completion = generated.completion
        completion.model = route.model
        completion.tier = route.tier
        completion.baseline_input_token_count = _baseline_tokens(call, route, prompt, generated)
        return completion

    def miss(self, call: Call, route: Route, prompt: Prompt, generated: Generated) -> receipt_pb2.ReceiptFacts:
        """Facts of a request that a model answered."""
        facts = call.facts(self._now())
        facts.model = route.model
        facts.tier = route.tier
        facts.attempt = generated.attempt
        facts.usage.CopyFrom(generated.completion.usage)
        facts.baseline_input_token_count = generated.completion.baseline_input_token_count
        facts.original_input_token_count = _original_tokens(prompt, generated)
        facts.quantized = generated.quantized
        facts.attempts_unknown = call.attempts_unknown
        return facts

    def hit(self, call: Call, completion: chat_pb2.Completion, kind: str, tokens: int) -> receipt_pb2.ReceiptFacts:
        """Facts of a request answered without a model; ``tokens``: the original prompt's, for the baseline."""
        return call.hit_facts(self._now(), completion, kind, tokens)

    def keep(
        self,
        call: Call,
        facts: receipt_pb2.ReceiptFacts,
        completion: chat_pb2.Completion | None,
        entry_id: str = "",
        error: str = "",
    ) -> receipt_pb2.Receipt:
        """The receipt, durably on its way to the ledger. Raises as ``mesh.receipt.compute`` does."""
        receipt = build_receipt(facts, call.prices, receipt_pb2.RECEIPT_STATE_PENDING)
        self._outbox.append(call.digest, receipt, completion, entry_id, error, call.request.namespace, call.shard)
        return receipt

    def keep_failed(self, call: Call, error: str, *, cancelled: bool = False) -> receipt_pb2.Receipt:
        """The receipt of a request without an answer."""
        facts = call.failed_facts(self._now(), cancelled=cancelled)
        try:
            return self.keep(call, facts, None, error=error)
        except TenthError:
            # Something was spent that has no price here: the ledger completes the receipt from inference's records.
            facts.ClearField("overheads")
            facts.attempts_unknown = True
            return self.keep(call, facts, None, error=error)

    def note_entry(self, call: Call, entry_id: str) -> None:
        """Remember which cache entry the answer became; empty: none."""
        if entry_id:
            self._outbox.note_entry(call.identity.tenant_id, call.request.request_id, entry_id)


def store_refusal(call: Call, route: Route, completion: chat_pb2.Completion) -> str:
    """Why an answer is only shared with its followers and not stored; empty when it may be stored."""
    return policy.store_refusal(
        complete=completion.finish_reason in (chat_pb2.FINISH_REASON_STOP, chat_pb2.FINISH_REASON_TOOL_CALLS)
        or policy.as_long_as_asked(
            completion.usage.output_token_count, call.request.sampling.max_output_tokens, call.caller_set_limit
        ),
        downgraded=call.downgraded,
        fell_back=bool(call.excluded),
        router_degraded=route.degraded,
        writes=call.request.policy.cache_mode != chat_pb2.CACHE_MODE_READ,
        unaccepted=call.unaccepted,
    )


def _baseline_tokens(call: Call, route: Route, prompt: Prompt, generated: Generated) -> int:
    if route.model == call.tenant.baseline_model:
        return _original_tokens(prompt, generated)
    return prompt.baseline_tokens or _original_tokens(prompt, generated)


def _original_tokens(prompt: Prompt, generated: Generated) -> int:
    used = generated.completion.usage.input_token_count
    return policy.original_tokens(prompt.original_tokens, prompt.sent_tokens, used)
