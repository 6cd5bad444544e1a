"""One request, top to bottom. Start here. A batch's item takes the same path in two halves: halves.py.

    caller -> admit -> 1 cache -> 2 router -> 3 compressor -> 4 ledger -> 5 inference -> receipt -> answer
                                                                (in a cascade: 3 to 5 again after a check)
                                                              (7 cache store, shadow check in the background)

What happens when a hop is down or late (handover.py, steps.py, generation.py, cascade.py, leader.py, outbox.py):

| hop              | when it is down or late                                                        |
|------------------|--------------------------------------------------------------------------------|
| batch hand-over  | ONLINE: a request with a far window is worked on here, at once, marked         |
| cache lookup     | MISS: treated as a miss                                                        |
| router           | DEFAULT_TIER: the default tier within the caller's bounds, marked              |
| compressor       | UNCHANGED: the prompt goes out as it is, tokens estimated                      |
| ledger reserve   | REFUSE_IF_HARD_BUDGET: UNAVAILABLE; without a hard budget a local lease        |
| inference        | NEXT_MODEL: held while the service restarts (a model that the caller named:    |
|                  | while its engine does), else the next model of the tier;                       |
|                  | after the first piece: greedy own models continue, others fail with the spend  |
| router's check   | FIRST_ANSWER: a cascade's first answer is given, marked, not stored            |
| cache store      | DROP: dropped and counted                                                      |
| router's record  | DROP: dropped and counted                                                      |
| compressor's     | DROP: dropped and counted (it learns how the provider's prompt cache behaves)  |
| shadow check     | DROP: dropped and counted; nothing of it without the ledger's reservation      |
| ledger settle    | OUTBOX: durable local outbox, delivered when it is back                        |
"""

from __future__ import annotations

import asyncio

from tenth.cache.v1 import cache_pb2, cache_pb2_grpc
from tenth.orchestrator.v1 import orchestrator_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh import deadlines, telemetry
from mesh.errors import Code, TenthError
from services.orchestrator.background import Background
from services.orchestrator.call import Call, Generated, Prompt, Route, check_deadline, is_down
from services.orchestrator.cascade import Cascade
from services.orchestrator.choice import OutOfControl, choose
from services.orchestrator.generation import Assembly, Generation, broken, whole_delta
from services.orchestrator.leader import Leader
from services.orchestrator.policy import IfDown
from services.orchestrator.receipts import Receipts, store_refusal
from services.orchestrator.runs import Answer, Run
from services.orchestrator.settings import OrchestratorSettings
from services.orchestrator.shadow import Shadow
from services.orchestrator.steps import Steps

IF_DOWN = {
    "batch.EnqueueCompletion": IfDown.ONLINE,
    "cache.LookupCompletion": IfDown.MISS,
    "router.SelectModel": IfDown.DEFAULT_TIER,
    "compressor.CompressPrompt": IfDown.UNCHANGED,
    "ledger.ReserveFunds": IfDown.REFUSE_IF_HARD_BUDGET,
    "inference.GenerateText": IfDown.NEXT_MODEL,
    "router.CheckAnswer": IfDown.FIRST_ANSWER,
    "cache.StoreCompletion": IfDown.DROP,
    "router.RecordCompletion": IfDown.DROP,
    "compressor.RecordUsage": IfDown.DROP,
    "ledger.SettleReceipts": IfDown.OUTBOX,
}


class Flow:
    """Carries requests through the five layers."""

    def __init__(
        self,
        steps: Steps,
        generation: Generation,
        cache: cache_pb2_grpc.CacheServiceAsyncStub,
        receipts: Receipts,
        background: Background,
        settings: OrchestratorSettings,
        shadow: Shadow,
    ) -> None:
        self._steps = steps
        self._generation = generation
        self._cascade = Cascade(steps, generation)
        self._cache = cache
        self._receipts = receipts
        self._background = background
        self._settings = settings
        self._shadow = shadow

    async def answer(self, run: Run, call: Call) -> None:
        """Answer one admitted request and finish its run. Whatever happens, a receipt is kept for the ledger."""
        try:
            await self._answer(run, call)
        except TenthError as error:
            self._failed(call, error)
            raise
        except asyncio.CancelledError:
            self._keep_failed(call, "CANCELLED: the caller left", cancelled=True)
            raise
        except Exception:
            # A defect, which the caller sees as INTERNAL; what was spent is on the books all the same.
            self._keep_failed(call, "INTERNAL: internal error")
            raise

    async def _answer(self, run: Run, call: Call) -> None:
        # 1. The same question was answered before, or is being answered right now: no model, no money.
        found = await self._steps.lookup(call)
        lease_id = found.lease.lease_id
        if found.HasField("hit"):
            kind = "exact" if found.hit.kind == cache_pb2.HIT_KIND_EXACT else "semantic"
            return self._serve(run, call, found.hit.completion, kind, found.hit.entry_id)
        if found.HasField("follow"):
            seen = Assembly()
            shared = await self._follow(run, call, found.follow, seen)
            if isinstance(shared, chat_pb2.Completion):
                _emit_rest(run, call, shared, seen)
                return self._serve(run, call, shared, "follow", "")
            lease_id = shared

        leader = Leader(
            self._cache,
            self._background,
            lease_id,
            self._settings.publish_after_seconds,
            self._settings.background_cap_seconds,
        )
        run.may_stop = leader.may_stop
        if call.sent_text:  # Promoted after some pieces: new followers need the answer from its beginning.
            leader.delta(chat_pb2.CompletionDelta(text=call.sent_text))
        embedding = found.embedding if found.HasField("embedding") else None
        try:
            # 2 to 5. The cheapest good model, the shortest good prompt, within the budget.
            route, prompt, generated = await self._generate(run, call, embedding, leader)
            # 6. The receipt: kept durably before the answer leaves, settled behind it.
            completion = self._receipts.finish(call, route, prompt, generated)
            receipt = self._keep(call, self._receipts.miss(call, route, prompt, generated), completion)
            self._steps.record(call, receipt, generated)  # The router learns what became of its decision.
            self._steps.record_usage(call, generated)  # The compressor, whether the provider's cache held its prefix.
            self._shadow.consider(call, route, prompt, generated, receipt)  # Maybe answered again, and compared.
        except OutOfControl:
            leader.give_up()
            return await self._answer(run, call)
        except BaseException:
            leader.give_up()
            raise
        # 7. The next one who asks gets it for nothing.
        refusal = store_refusal(call, route, completion)
        if lease_id or self._may_store(call, found):
            entry = leader.finish(call.asked, completion, embedding, bool(refusal), call.price_book_version)
            entry.add_done_callback(lambda done: self._receipts.note_entry(call, done.result()))
        if not call.streaming:
            self._replay(run, call, completion, from_cache=False)
        run.finish(Answer(call.request.request_id, completion, receipt))
        return None

    async def _generate(
        self, run: Run, call: Call, embedding: chat_pb2.Embedding | None, leader: Leader
    ) -> tuple[Route, Prompt, Generated]:
        """Hops 2 to 5: down the tiers when the budget asks for it, on to the next model when one fails."""
        ceiling: chat_pb2.Tier.ValueType = chat_pb2.TIER_UNSPECIFIED
        failure: TenthError | None = None

        def emit(delta: chat_pb2.CompletionDelta) -> None:
            run.emit(delta)
            leader.delta(delta)

        def start(model: str) -> None:
            if call.streaming and not run.events:
                run.emit(_started(call, model, from_cache=False))

        while True:
            choice = await choose(self._steps, call, embedding, ceiling, failure)
            route, prompt, ceiling = choice.route, choice.prompt, choice.ceiling
            try:
                if route.cascade is not None:
                    return await self._cascade.answer(call, route, prompt, embedding, start, emit)
                start(route.model)
                return route, prompt, await self._generation.generate(call, route, prompt, emit)
            except TenthError as error:
                check_deadline(error, deadlines.remaining())
                if not call.escalated_from:
                    call.excluded.append(route.model)
                may_go_on = _try_next(error) or call.in_control
                if call.began or not may_go_on or len(call.excluded) >= self._settings.max_attempts:
                    raise
                call.leave_control(error.reason)
                failure = error

    async def _follow(
        self, run: Run, call: Call, flight: cache_pb2.Flight, seen: Assembly
    ) -> chat_pb2.Completion | str:
        """Follow an identical request: its answer, or the lease when its leader died and this request leads now.

        ``seen`` takes the pieces that the caller has got.
        """
        with call.hop("follow") as hop:
            try:
                async for event in self._cache.FollowCompletion(
                    cache_pb2.FollowCompletionRequest(flight_id=flight.flight_id)
                ):
                    kind = event.WhichOneof("event")
                    if kind == "finished":
                        return event.finished
                    if kind == "promoted":
                        hop.reason = "promoted: the leader is gone"
                        return event.promoted.lease_id
                    if kind == "delta" and call.streaming:
                        if not run.events:
                            run.emit(_started(call, "", from_cache=True))
                        seen.add(event.delta)
                        call.note_sent(seen.text, event.delta)
                        run.emit(event.delta)
            except TenthError as error:
                # The flight or the cache is gone: go and generate, without a lease.
                hop.outcome, hop.reason = receipt_pb2.HOP_OUTCOME_DEGRADED, f"miss: {error.reason}"
                return ""
            hop.outcome, hop.reason = receipt_pb2.HOP_OUTCOME_DEGRADED, "miss: the flight is gone"
        return ""

    def _serve(self, run: Run, call: Call, completion: chat_pb2.Completion, kind: str, entry_id: str) -> None:
        """Answer from the cache: two hops, no durable write that waits for a disk, no budget."""
        tokens = completion.baseline_input_token_count or self._steps.estimated_tokens(call)
        facts = self._receipts.hit(call, completion, kind, tokens)
        receipt = self._keep(call, facts, completion, entry_id)
        if not call.began:
            self._replay(run, call, completion, from_cache=True)
        run.finish(Answer(call.request.request_id, completion, receipt, entry_id))

    def _replay(self, run: Run, call: Call, completion: chat_pb2.Completion, *, from_cache: bool) -> None:
        """A whole answer as the events of a stream; a unary caller needs none."""
        if call.streaming:
            run.emit(_started(call, completion.model, from_cache=from_cache))
            run.emit(whole_delta(completion))

    def _keep(
        self, call: Call, facts: receipt_pb2.ReceiptFacts, completion: chat_pb2.Completion | None, entry_id: str = ""
    ) -> receipt_pb2.Receipt:
        """The receipt, durably on its way to the ledger, and on the span."""
        receipt = self._receipts.keep(call, facts, completion, entry_id)
        telemetry.annotate(_attributes(receipt))
        return receipt

    def _keep_failed(self, call: Call, error: str, *, cancelled: bool = False) -> receipt_pb2.Receipt:
        receipt = self._receipts.keep_failed(call, error, cancelled=cancelled)
        telemetry.annotate(_attributes(receipt))
        return receipt

    def _failed(self, call: Call, error: TenthError) -> None:
        """Keep the receipt of a failure and tell the caller what it has cost."""
        receipt = self._keep_failed(call, f"{error.reason}: {error.message}")
        self._steps.record(call, receipt, None)
        # In the place of inference's word on its own attempt, which has no prices: the receipt has every attempt.
        spent = receipt_pb2.SpentDetail(
            request_id=call.request.request_id,
            spent_nano_usd=receipt.overhead_nano_usd,
            attempts=receipt.facts.overheads,
        )
        error.details = (spent,)

    def _may_store(self, call: Call, found: cache_pb2.LookupCompletionResponse) -> bool:
        """Without a lease only a caller who asked to write, and whose question may be cached, has it stored."""
        return (
            call.request.policy.cache_mode == chat_pb2.CACHE_MODE_WRITE
            and not call.disabled("cache")
            and not found.HasField("bypass")
        )


def _emit_rest(run: Run, call: Call, completion: chat_pb2.Completion, seen: Assembly) -> None:
    """What the pieces of a followed answer left out of it. Raises STREAM_BROKEN when they do not belong to it."""
    if not call.began:
        return
    # Only text can be completed: half a tool call, or another leader's, would be taken for the whole one.
    if call.sent_other and not seen.holds_all_but_text_of(completion):
        raise broken()
    whole = whole_delta(completion).text
    if not whole.startswith(call.sent_text):
        raise broken()
    if len(whole) > len(call.sent_text):
        run.emit(chat_pb2.CompletionDelta(text=whole[len(call.sent_text) :]))


def _started(call: Call, model: str, *, from_cache: bool) -> orchestrator_pb2.CompletionStarted:
    return orchestrator_pb2.CompletionStarted(
        request_id=call.request.request_id, model=model, from_cache=from_cache, trace_id=call.trace_id
    )


def _try_next(error: TenthError) -> bool:
    """A provider's "this request is wrong" is wrong everywhere; anything else may go better elsewhere."""
    return is_down(error) or error.code in (Code.FAILED_PRECONDITION, Code.NOT_FOUND)


def _attributes(receipt: receipt_pb2.Receipt) -> dict[str, str | int]:
    facts = receipt.facts
    attributes: dict[str, str | int] = {
        "tenth.request_id": facts.request_id,
        "tenth.tenant_id": facts.tenant_id,
        "gen_ai.operation.name": "chat",
        "gen_ai.response.model": facts.model,
        "gen_ai.usage.input_tokens": facts.usage.input_token_count,
        "gen_ai.usage.cache_read.input_tokens": facts.usage.cached_input_token_count,
        "gen_ai.usage.output_tokens": facts.usage.output_token_count,
        "tenth.cache.kind": facts.cache_hit_kind,
        "tenth.receipt.baseline_model": facts.baseline_model,
        "tenth.receipt.baseline_nano_usd": receipt.baseline_nano_usd,
        "tenth.receipt.overhead_nano_usd": receipt.overhead_nano_usd,
        "tenth.receipt.actual_nano_usd": receipt.actual_nano_usd,
    }
    for saving in receipt.savings:
        layer = receipt_pb2.Layer.Name(saving.layer).removeprefix("LAYER_").lower()
        attributes[f"tenth.receipt.saving.{layer}_nano_usd"] = saving.saving_nano_usd
    for hop in facts.hops:
        outcome = receipt_pb2.HopOutcome.Name(hop.outcome).removeprefix("HOP_OUTCOME_").lower()
        attributes[f"tenth.hop.{hop.name}"] = f"{outcome}: {hop.reason}" if hop.reason else outcome
    return attributes
