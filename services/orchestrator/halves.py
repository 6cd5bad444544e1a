"""One request in two halves, with a batch between them; top to bottom. The same steps as in flow.py, and their if-down
table holds here too, except that a hop has more time: nobody sits and waits.

    prepare: admit -> 1 cache -> 2 router -> 3 compressor -> 4 ledger -> a request ready for inference, and the state
                        (the batch service runs it: hours, another machine, whatever lane)
    finish:  state and answer -> 6 receipt -> 7 cache store; router and compressor hear of it

No lease is held and no flight followed over hours; a cascade is not begun, as nobody is there to check its first
answer; a request in a batch is in no control share, as that would have to leave the batch as well. Nothing is kept of
a prepared request but its reservation: the state has the rest, and any replica finishes it.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import sqlite3
from collections.abc import Callable, Sequence
from typing import Final

from tenth.cache.v1 import cache_pb2, cache_pb2_grpc
from tenth.orchestrator.v1 import halves_pb2, orchestrator_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.auth import current_identity, set_identity
from mesh.channel import routing_key
from mesh.errors import Code, TenthError, invalid_argument, required
from mesh.errors import Reason as MeshReason
from mesh.receipt import Usage, actual_cost, price_of
from services.orchestrator import half_state, policy
from services.orchestrator.admission import Admission, payload_digest
from services.orchestrator.background import Background
from services.orchestrator.call import DEGRADED, OK, SKIPPED, Call, Generated, Later, has_batch_price
from services.orchestrator.choice import Choice, choose
from services.orchestrator.errors import Reason
from services.orchestrator.generation import build_generation
from services.orchestrator.leader import Leader
from services.orchestrator.outbox import Kept, Outbox
from services.orchestrator.receipts import Receipts, store_refusal
from services.orchestrator.runs import reused
from services.orchestrator.settings import OrchestratorSettings
from services.orchestrator.steps import Steps

log = logging.getLogger("tenth.halves")

pb = orchestrator_pb2

_LONGEST_TTL_SECONDS: Final = 8 * 86_400
_FINISHED_TOGETHER: Final = 20
"""Requests finished in one transaction of the outbox; between two the event loop serves others."""
_SHARING_MODES: Final = (chat_pb2.CACHE_MODE_UNSPECIFIED, chat_pb2.CACHE_MODE_READ_WRITE)
_PASSING: Final = frozenset((Code.UNAVAILABLE, Code.DEADLINE_EXCEEDED, Code.ABORTED))
_TIMED_LANES: Final = ("local", "online")
"""Lanes in which an attempt's duration says something about its model, and not about a provider's queue."""

_After = Callable[[], "asyncio.Future[str] | None"]
"""What is done once receipts are kept; returns the store that is going on, if any."""


class Halves:
    """Prepares and finishes the requests of batches."""

    def __init__(
        self,
        admission: Admission,
        steps: Steps,
        receipts: Receipts,
        outbox: Outbox,
        cache: cache_pb2_grpc.CacheServiceAsyncStub,
        background: Background,
        settings: OrchestratorSettings,
    ) -> None:
        self._admission = admission
        self._steps = steps
        self._receipts = receipts
        self._outbox = outbox
        self._cache = cache
        self._background = background
        self._settings = settings
        self._room = asyncio.Semaphore(settings.halves_concurrency)

    async def prepare(self, items: Sequence[pb.CompletionToPrepare]) -> list[pb.PrepareOutcome]:
        """Hops 1 to 4 of each, some at once. A request that fails is its own outcome and stops no other.

        Cancelled in the middle it leaves no receipt of what is not over: the batch will ask again.
        """
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(self._prepare(item)) for item in items]
        return [task.result() for task in tasks]

    async def finish(self, items: Sequence[pb.CompletionToFinish]) -> list[pb.FinishOutcome]:
        """Hops 6 and 7 of each. When it returns, the cache has been offered the answers: the batch asks it next."""
        outcomes: list[pb.FinishOutcome] = []
        stores: list[asyncio.Future[str]] = []
        for first in range(0, len(items), _FINISHED_TOGETHER):
            together = [(contextvars.copy_context(), each) for each in items[first : first + _FINISHED_TOGETHER]]
            with self._outbox.transaction():
                done = [(context, context.run(self._finish, item)) for context, item in together]
            for context, (outcome, after) in done:
                outcomes.append(outcome)
                store = context.run(after) if after is not None else None
                if store is not None:
                    stores.append(store)
            await asyncio.sleep(0)
        if stores:
            await asyncio.wait(stores)
        return outcomes

    async def _prepare(self, item: pb.CompletionToPrepare) -> pb.PrepareOutcome:
        async with self._room:
            try:
                return await self._admitted(item)
            except TenthError as error:
                return pb.PrepareOutcome(error=half_error(error))
            except Exception:
                log.exception("request %s could not be prepared", item.request.request_id)
                return pb.PrepareOutcome(error=_defect())

    async def _admitted(self, item: pb.CompletionToPrepare) -> pb.PrepareOutcome:
        request = item.request
        if not request.request_id:
            raise required("request.request_id")
        # With the layer's kill switch an item costs and counts what it does online, and takes no provider's batch lane.
        switched_off = "batch" in self._admission.tenant(request).disabled_layers
        later = Later(item.batch_prices and not switched_off, _ttl_seconds(item))
        digest = self._admission.identify(request)
        kept = self._kept(request, digest)
        if kept is not None and kept.completion is not None:
            return pb.PrepareOutcome(answered=_finished(kept))
        call = self._admission.admit(request, digest, streaming=False, later=later)
        call.excluded.extend(item.excluded_models)
        if kept is not None:
            call.carry(kept.receipt.facts)
            self._outbox.withdraw(call.identity.tenant_id, request.request_id)
        set_identity(call.identity)
        with routing_key(call.shard):
            try:
                return await self._first_half(call, item.skip_cache)
            except TenthError as error:
                receipt = self._receipts.keep_failed(call, f"{error.reason}: {error.message}")
                self._steps.record(call, receipt, None)
                raise
            except Exception:
                self._receipts.keep_failed(call, "INTERNAL: internal error")
                raise

    async def _first_half(self, call: Call, skip_cache: bool) -> pb.PrepareOutcome:
        # 1. The same question was answered before: no model, no money.
        found = cache_pb2.LookupCompletionResponse()
        if skip_cache:
            call.skip("cache", SKIPPED, "an earlier half asked it")
        else:
            found = await self._steps.lookup(call)
        if found.HasField("hit"):
            kind = "exact" if found.hit.kind == cache_pb2.HIT_KIND_EXACT else "semantic"
            receipt = self._shared_receipt(call, found.hit.completion, kind, found.hit.entry_id)
            return pb.PrepareOutcome(answered=pb.FinishedCompletion(completion=found.hit.completion, receipt=receipt))
        embedding = found.embedding if found.HasField("embedding") else None
        # 2 to 4. The cheapest good model, the shortest good prompt, within the budget.
        failed = frozenset(call.excluded)
        choice = await choose(self._steps, call, embedding)
        if choice.route.model in failed:  # Nobody asked the router: a kill switch fixes the model.
            raise TenthError(
                Code.FAILED_PRECONDITION, Reason.NO_MODEL_AVAILABLE, f"{choice.route.model} failed on it before"
            )
        offers = not call.disabled("cache") and call.request.policy.cache_mode != chat_pb2.CACHE_MODE_OFF
        may_store = offers and not found.HasField("bypass")
        return pb.PrepareOutcome(prepared=self._prepared(call, choice, found.HasField("lease"), may_store, embedding))

    def _prepared(
        self, call: Call, choice: Choice, missed: bool, may_store: bool, embedding: chat_pb2.Embedding | None
    ) -> pb.PreparedCompletion:
        route, prompt = choice.route, choice.prompt
        attempt = call.next_attempt()
        price = price_of(route.model, call.prices)
        limit = call.request.sampling.max_output_tokens
        output = min(limit, route.expected_output_tokens or policy.EXPECTED_OUTPUT_TOKENS)
        batch = call.later is not None and call.later.batch_prices
        settled = not (call.downgraded or call.excluded or route.degraded)
        prepared = pb.PreparedCompletion(
            generation=build_generation(call, route, prompt, attempt),
            tier=route.tier,
            self_hosted=route.self_hosted,
            has_batch_price=has_batch_price(price) and not call.disabled("batch"),
            reserved_nano_usd=choice.reserved_nano_usd,
            expected_nano_usd=actual_cost(price, Usage(prompt.sent_tokens, output), batch=batch),
            cacheable=missed and may_store and settled and call.request.policy.cache_mode in _SHARING_MODES,
            state=half_state.to_bytes(call, route, prompt, attempt, may_store, embedding),
        )
        if embedding is not None:
            prepared.embedding.CopyFrom(embedding)
        return prepared

    def _finish(self, item: pb.CompletionToFinish) -> tuple[pb.FinishOutcome, _After | None]:
        try:
            return self._resumed(item)
        except TenthError as error:
            return pb.FinishOutcome(error=half_error(error)), None
        except sqlite3.Error:
            raise  # Nothing of this call is kept: it is to be made again.
        except Exception:
            log.exception("request %s could not be finished", item.request.request_id)
            return pb.FinishOutcome(error=_defect()), None

    def _resumed(self, item: pb.CompletionToFinish) -> tuple[pb.FinishOutcome, _After | None]:
        request = item.request
        if not request.request_id:
            raise required("request.request_id")
        kind = item.WhichOneof("outcome")
        if kind is None:
            raise required("outcome")
        digest = payload_digest(request)
        kept = self._kept(request, digest)
        if kept is not None and kept.completion is not None:
            return pb.FinishOutcome(finished=_finished(kept)), None
        if item.state:
            state = half_state.from_bytes(item.state)
            call = self._admission.resume(request, digest, state, {each.model for each in item.attempts})
        elif kind == "generated":
            raise required("state")
        else:
            state = halves_pb2.PreparedState()
            call = self._admission.admit(request, digest, streaming=False, later=Later(True, 0.0))
        call.note_overheads(item.attempts)
        if kept is not None:
            if kind == "failed" and _says_all(kept.receipt.facts, call):
                return pb.FinishOutcome(finished=_finished(kept)), None
            call.note_overheads(each for each in kept.receipt.facts.overheads if each.attempt)
            call.attempts_unknown = call.attempts_unknown or kept.receipt.facts.attempts_unknown
        set_identity(call.identity)
        if kind == "generated":
            return self._second_half(call, item, state)
        if kind == "shared":
            _note_lane(call, item, "another item of the batch asked the same")
            receipt = self._shared_receipt(call, item.shared, "follow", "")
            return pb.FinishOutcome(finished=pb.FinishedCompletion(completion=item.shared, receipt=receipt)), None
        _note_lane(call, item, item.failed.reason, degraded=True)
        receipt = self._receipts.keep_failed(call, f"{item.failed.reason}: {item.failed.message}")
        after = self._after(call, lambda: self._steps.record(call, receipt, None))
        return pb.FinishOutcome(finished=pb.FinishedCompletion(receipt=receipt)), after

    def _second_half(
        self, call: Call, item: pb.CompletionToFinish, state: halves_pb2.PreparedState
    ) -> tuple[pb.FinishOutcome, _After]:
        answer = item.generated
        if not answer.HasField("completion"):
            raise required("generated.completion")
        call.note_overheads(answer.overheads)
        _note_lane(call, item, "at batch prices" if item.batch else "")
        route, prompt = half_state.route_of(state), half_state.prompt_of(state)
        generated = Generated(
            answer.completion,
            answer.quantized,
            answer.attempt or item.attempt or state.attempt,
            item.duration.ToNanoseconds() / 1e9 if item.lane in _TIMED_LANES else 0.0,
        )
        # 6. The receipt: kept durably before anybody hears of the answer.
        completion = self._receipts.finish(call, route, prompt, generated)
        facts = self._receipts.miss(call, route, prompt, generated)
        facts.batch = item.batch
        try:
            receipt = self._receipts.keep(call, facts, completion)
        except TenthError as error:
            # Its usage cannot be: there is no answer to give, but inference's records say what was spent.
            call.attempts_unknown = True
            self._receipts.keep_failed(call, f"{error.reason}: {error.message}")
            raise

        def after() -> asyncio.Future[str] | None:
            self._steps.record(call, receipt, generated)
            self._steps.record_usage(call, generated)
            # 7. The next one who asks gets it for nothing.
            if not state.may_store or call.disabled("cache") or store_refusal(call, route, completion):
                return None
            cap = self._settings.background_cap_seconds
            leader = Leader(self._cache, self._background, "", 0.0, cap)
            embedding = state.embedding if state.HasField("embedding") else None
            entry = leader.finish(call.asked, completion, embedding, False, call.price_book_version)
            entry.add_done_callback(lambda done: self._receipts.note_entry(call, done.result()))
            return entry

        finished = pb.FinishedCompletion(completion=completion, receipt=receipt)
        return pb.FinishOutcome(finished=finished), self._after(call, after)

    def _shared_receipt(
        self, call: Call, completion: chat_pb2.Completion, kind: str, entry_id: str
    ) -> receipt_pb2.Receipt:
        """The receipt of an answer that no model was asked for."""
        tokens = completion.baseline_input_token_count or self._steps.estimated_tokens(call)
        return self._receipts.keep(call, self._receipts.hit(call, completion, kind, tokens), completion, entry_id)

    def _kept(self, request: chat_pb2.CompletionRequest, digest: bytes) -> Kept | None:
        """What an earlier try of the same request came to. Raises REQUEST_ID_REUSED for another payload."""
        kept = self._outbox.find(current_identity().tenant_id, request.request_id)
        if kept is not None and kept.digest != digest:
            raise reused(request.request_id)
        return kept

    @staticmethod
    def _after(call: Call, work: Callable[[], asyncio.Future[str] | None]) -> _After:
        def routed() -> asyncio.Future[str] | None:
            with routing_key(call.shard):
                return work()

        return routed


def half_error(error: TenthError) -> pb.HalfError:
    """An error as one item's outcome."""
    passing = error.code in _PASSING or error.reason == Reason.RATE_LIMITED
    told = pb.HalfError(reason=error.reason, message=error.message, field=error.field, retryable=passing)
    if error.retry_after_seconds is not None:
        told.retry_after.FromNanoseconds(int(error.retry_after_seconds * 1e9))
    return told


def _defect() -> pb.HalfError:
    return pb.HalfError(reason=MeshReason.INTERNAL, message="internal error; the service's log has it")


def _ttl_seconds(item: pb.CompletionToPrepare) -> float:
    seconds = item.reservation_ttl.seconds + item.reservation_ttl.nanos / 1e9
    if not item.HasField("reservation_ttl"):
        raise required("reservation_ttl")
    if not 0 < seconds <= _LONGEST_TTL_SECONDS:
        raise invalid_argument(f"not within 0..{_LONGEST_TTL_SECONDS} seconds", field="reservation_ttl")
    return seconds


def _finished(kept: Kept) -> pb.FinishedCompletion:
    return pb.FinishedCompletion(completion=kept.completion, receipt=kept.receipt)


def _says_all(told: receipt_pb2.ReceiptFacts, call: Call) -> bool:
    """True when a failure's kept receipt has everything that the same failure told again would have."""
    known = {item.attempt for item in told.overheads}
    return told.reservation_id == call.reservation_id and all(item.attempt in known for item in call.overheads)


def _note_lane(call: Call, item: pb.CompletionToFinish, why: str, *, degraded: bool = False) -> None:
    """The hop between the halves: in which lane it ran, how it went, how long the attempt took."""
    reason = f"{item.lane}: {why}" if item.lane and why else item.lane or why
    hop = receipt_pb2.Hop(name="batch", outcome=DEGRADED if degraded else OK, reason=reason)
    hop.duration.CopyFrom(item.duration)
    call.hops.append(hop)
