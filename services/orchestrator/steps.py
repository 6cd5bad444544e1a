"""The hops of a request, one method each: the call, its time cap, and what happens when the service is down.

The policies are those of the table in flow.py. Each method notes its hop on the call's receipt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

from tenth.cache.v1 import cache_pb2, cache_pb2_grpc
from tenth.compressor.v1 import compressor_pb2, compressor_pb2_grpc
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from tenth.router.v1 import router_pb2, router_pb2_grpc
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh import deadlines
from mesh.errors import Code, TenthError
from mesh.money import format_usd
from mesh.receipt import price_of, worst_case
from services.orchestrator import policy
from services.orchestrator.background import Background
from services.orchestrator.call import (
    DEGRADED,
    DISABLED,
    SKIPPED,
    Call,
    Generated,
    Prompt,
    Route,
    check_deadline,
    is_down,
)
from services.orchestrator.errors import Reason
from services.orchestrator.settings import OrchestratorSettings
from services.orchestrator.snapshot import Snapshot

_STRATEGIES = {
    "default": router_pb2.STRATEGY_UNSPECIFIED,
    "features": router_pb2.STRATEGY_FEATURES,
    "llm": router_pb2.STRATEGY_LLM,
    "trained": router_pb2.STRATEGY_TRAINED,
    "cascade": router_pb2.STRATEGY_CASCADE,
}


@dataclass(frozen=True, slots=True)
class Stubs:
    """The services that a request meets."""

    cache: cache_pb2_grpc.CacheServiceAsyncStub
    router: router_pb2_grpc.RouterServiceAsyncStub
    compressor: compressor_pb2_grpc.CompressorServiceAsyncStub
    ledger: ledger_pb2_grpc.LedgerServiceAsyncStub


class Steps:
    """The hops before the model is asked. ``generation.py`` holds the one that asks it."""

    def __init__(
        self, stubs: Stubs, settings: OrchestratorSettings, snapshot: Snapshot, background: Background
    ) -> None:
        self._stubs = stubs
        self._settings = settings
        self._snapshot = snapshot
        self._background = background

    async def lookup(self, call: Call) -> cache_pb2.LookupCompletionResponse:
        """Hop 1. Down or late: a miss without a lease."""
        missed = cache_pb2.LookupCompletionResponse()
        if call.disabled("cache"):
            call.skip("cache", *call.why_disabled)
            return missed
        if call.request.policy.cache_mode == chat_pb2.CACHE_MODE_OFF:
            call.skip("cache", SKIPPED, "cache_mode_off")
            return missed
        with call.hop("cache") as hop:
            try:
                found = await self._stubs.cache.LookupCompletion(
                    cache_pb2.LookupCompletionRequest(request=call.asked, without_lease=call.later is not None),
                    timeout=self._cap(call, self._settings.lookup_cap_seconds),
                )
            except TenthError as error:
                check_deadline(error, deadlines.remaining())
                hop.outcome, hop.reason = DEGRADED, f"miss: {error.reason}"
                return missed
            call.compute_micros += found.compute_micros
            hop.reason = _describe(found)
            return found

    async def select(self, call: Call, embedding: chat_pb2.Embedding | None, ceiling: chat_pb2.Tier.ValueType) -> Route:
        """Hop 2. Down or late: the default tier, marked. The router's own "no" is the caller's answer."""
        if call.disabled("routing"):
            # A model that the caller named must answer all the same; that was never the router's choice.
            name = call.request.policy.model or call.tenant.baseline_model
            outcome, why = call.why_disabled
            call.skip("router", outcome, f"{why}: {name} answers")
            return self.known_route(name)
        request = router_pb2.SelectModelRequest(
            request=call.request,
            tier_ceiling=ceiling,
            excluded_models=call.excluded,
            strategy=_STRATEGIES[self._settings.router_strategy],
            classifier_attempt=call.next_classifier_attempt(),
            streaming=call.streaming,
        )
        left = deadlines.remaining()
        if call.later is not None:
            request.request.policy.cascade_mode = chat_pb2.CASCADE_MODE_OFF  # Nobody is there to check a first answer.
        elif left is not None:
            request.time_left.FromNanoseconds(max(0, int(left * 1e9)))
        if embedding is not None:
            request.embedding.CopyFrom(embedding)
        slow = self._settings.router_strategy == "llm"
        cap = self._settings.select_llm_cap_seconds if slow else self._settings.select_cap_seconds
        with call.hop("router") as hop:
            try:
                chosen = await self._stubs.router.SelectModel(request, timeout=self._cap(call, cap))
            except TenthError as error:
                check_deadline(error, deadlines.remaining())
                if not is_down(error):
                    raise
                hop.outcome, hop.reason = DEGRADED, f"default tier: {error.reason}"
                return self._route_without_router(call, ceiling)
            call.note_overheads(chosen.overheads)
            call.routed = True
            hop.reason = f"{chosen.model}: {chosen.reason}"
            plan = chosen.cascade if chosen.HasField("cascade") and may_cascade(call) else None
            length = next(
                (each.expected_output_token_count for each in chosen.candidates if each.model == chosen.model), 0
            )
            return replace(
                self.known_route(chosen.model), tier=chosen.tier, cascade=plan, expected_output_tokens=length
            )

    async def check(self, call: Call, plan: router_pb2.CascadePlan, first: chat_pb2.Completion) -> bool | None:
        """Whether a cascade's first answer may be given. Down, late or refused, by whatever error: None, marked."""
        request = router_pb2.CheckAnswerRequest(request=call.request, completion=first, plan=plan)
        with call.hop("cascade") as hop:
            try:
                verdict = await self._stubs.router.CheckAnswer(request, timeout=self._settings.check_cap_seconds)
            except TenthError as error:
                # Also when the whole request is late: there is an answer, which is better than none.
                hop.outcome, hop.reason = DEGRADED, f"first answer: {error.reason}"
                return None
            decision = "accepted" if verdict.accepted else f"escalated to {plan.escalation_model}"
            hop.reason = f"{decision}: {verdict.reason}"
            return verdict.accepted

    def record(self, call: Call, receipt: receipt_pb2.Receipt, generated: Generated | None) -> None:
        """Tell the router what became of its decision, in the background. Down or late: dropped and counted."""
        if not call.routed:
            return
        request = router_pb2.RecordCompletionRequest(
            request_id=call.request.request_id,
            failed_models=call.excluded,
            escalated_from=call.escalated_from,
            cost_nano_usd=receipt.actual_nano_usd,
        )
        if generated is not None:
            request.model = generated.completion.model
            request.usage.CopyFrom(generated.completion.usage)
            request.finish_reason = generated.completion.finish_reason
            request.duration.FromNanoseconds(int(generated.seconds * 1e9))
        self._background.spawn("record", self._record(request))

    def record_usage(self, call: Call, generated: Generated) -> None:
        """Tell the compressor what the provider read from its prompt cache. Down or late: dropped and counted."""
        completion = generated.completion
        # Of an answer by another model than the prompt was made for, or counted here, nothing can be learned.
        if completion.model != call.compressed_for or completion.usage.estimated:
            return
        request = compressor_pb2.RecordUsageRequest(
            request_id=call.request.request_id,
            model=completion.model,
            usage=completion.usage,
            told_input_token_count=call.told_tokens,
            token_correction=call.token_correction,
        )
        self._background.spawn("record usage", self._record_usage(request))

    async def compress(self, call: Call, route: Route, embedding: chat_pb2.Embedding | None) -> Prompt:
        """Hop 3. Down or late: the prompt goes out unchanged, its tokens are estimated. So does a control's."""
        unchanged = self._estimated_prompt(call)
        if call.in_control:
            call.skip("compressor", *call.why_disabled)
            return replace(unchanged, baseline_tokens=0)
        off = call.disabled("compression") or call.request.policy.compression_mode == chat_pb2.COMPRESSION_MODE_OFF
        request = compressor_pb2.CompressPromptRequest(
            request=call.request,
            model=route.model,
            context_window_tokens=route.context_window_tokens,
            baseline_model=call.tenant.baseline_model,
            predicted_output_token_count=route.expected_output_tokens,
            summary_attempt=call.next_summary_attempt(),
        )
        if off:
            request.request.policy.compression_mode = chat_pb2.COMPRESSION_MODE_OFF
        if embedding is not None:
            request.embedding.CopyFrom(embedding)
        cap = (
            self._settings.compress_cap_seconds
            + self._settings.compress_cap_per_10k_tokens_seconds * unchanged.sent_tokens / 10_000
        )
        with call.hop("compressor") as hop:
            try:
                short = await self._stubs.compressor.CompressPrompt(request, timeout=self._cap(call, cap))
            except TenthError as error:
                call.note_spent(error)  # On a summary; of one that went on alone the ledger hears from inference.
                check_deadline(error, deadlines.remaining())
                if not is_down(error):
                    raise
                hop.outcome, hop.reason = DEGRADED, f"unchanged: {error.reason}"
                # The upper guess is for the reservation; in the baseline it would show up as a saving.
                return replace(unchanged, baseline_tokens=0)
            call.note_overheads(short.overheads)
            call.compute_micros += short.compute_micros
            call.compressed_for, call.token_correction = route.model, short.token_correction
            call.told_tokens = short.original_input_token_count if off else short.compressed_input_token_count
            if call.disabled("compression"):
                hop.outcome = DISABLED
            removed = short.original_input_token_count - short.compressed_input_token_count
            did = ", ".join(item.strategy for item in short.strategies if item.removed_token_count)
            hop.reason = f"-{removed} of {short.original_input_token_count} tokens" + (f" ({did})" if did else "")
            # With compression off only the counts are taken, whatever came back: off must mean untouched.
            return Prompt(
                messages=unchanged.messages if off else tuple(short.messages),
                chunks=unchanged.chunks if off else tuple(short.retrieved_chunks),
                original_tokens=short.original_input_token_count,
                sent_tokens=short.original_input_token_count if off else short.compressed_input_token_count,
                baseline_tokens=short.baseline_input_token_count,
                estimated=short.estimated,
                cut_tools=frozenset() if off else frozenset(short.cut_tool_indexes),
                max_output_tokens=0 if off else short.max_output_token_count,
                shortened_by=()
                if off
                else tuple(each.strategy for each in short.strategies if each.removed_token_count),
                stable_messages=0 if off else short.stable_prefix_message_count,
                prefix_version="" if off else short.prefix_version,
            )

    async def reserve(self, call: Call, route: Route, prompt: Prompt) -> ledger_pb2.ReserveFundsResponse:
        """Hop 4. Down or late: refused under a hard budget, else a local lease; settled later either way."""
        await self._release_earlier(call)
        # Whatever happens next, a model without a price is never asked.
        input_tokens = policy.reserve_input_tokens(prompt.sent_tokens, prompt.estimated)
        worst_case(price_of(route.model, call.prices), input_tokens, call.request.sampling.max_output_tokens)
        request = ledger_pb2.ReserveFundsRequest(
            request_id=call.request.request_id,
            model=route.model,
            input_token_count=input_tokens,
            max_output_token_count=call.request.sampling.max_output_tokens,
            price_book_version=call.price_book_version,
            user_id=call.identity.user_id,
            project_id=call.identity.project_id,
            payload_digest=call.digest.hex(),
            tags=call.tags,
            batch=call.later is not None and call.later.pooled(route, call.prices),
            tier=route.tier,
        )
        # As on the receipt, which is priced then.
        request.create_time.FromNanoseconds(int(call.created * 1e9))
        ttl_seconds = self._settings.reservation_ttl_seconds if call.later is None else call.later.ttl_seconds
        request.ttl.FromMilliseconds(int(ttl_seconds * 1000))
        with call.hop("ledger") as hop:
            try:
                cap = self._cap(call, self._settings.reserve_cap_seconds)
                funds = await self._stubs.ledger.ReserveFunds(request, timeout=cap)
            except TenthError as error:
                check_deadline(error, deadlines.remaining())
                if not is_down(error):
                    raise
                hop.outcome = DEGRADED
                if call.tenant.has_hard_budget:
                    hop.reason = f"refused: {error.reason}"
                    raise TenthError(
                        Code.UNAVAILABLE,
                        Reason.BUDGET_UNAVAILABLE,
                        "a hard budget applies and the ledger cannot be asked",
                        retry_after_seconds=1.0,
                    ) from error
                hop.reason = f"local lease: {error.reason}"
                return ledger_pb2.ReserveFundsResponse(decision=ledger_pb2.RESERVE_DECISION_OK)
            call.reservation_id = funds.reservation_id
            decision = ledger_pb2.ReserveDecision.Name(funds.decision).removeprefix("RESERVE_DECISION_").lower()
            hop.reason = (
                f"{decision}: {format_usd(funds.reserved_nano_usd)} held"
                if not funds.budget_name
                else f"{decision}: {format_usd(funds.remaining_nano_usd)} left in {funds.budget_name}"
            )
            return funds

    def _cap(self, call: Call, seconds: float) -> float:
        """The most that a hop may take: longer where nobody sits and waits, but hundreds are prepared at once."""
        return seconds if call.later is None else max(seconds, self._settings.halves_cap_seconds)

    def estimated_tokens(self, call: Call) -> int:
        """The prompt's tokens by estimate, for a stored answer that carries no count."""
        return self._estimated_prompt(call).baseline_tokens

    async def _release_earlier(self, call: Call) -> None:
        # Another model, another worst case: the first reservation makes room before the next is asked for.
        if call.reservation_id:
            reservation_id, call.reservation_id = call.reservation_id, ""
            request = ledger_pb2.ReleaseFundsRequest(reservation_id=reservation_id)
            try:
                await self._stubs.ledger.ReleaseFunds(request, timeout=self._settings.reserve_cap_seconds)
            except TenthError:
                self._background.spawn("release", self._release(request))

    async def _record(self, request: router_pb2.RecordCompletionRequest) -> None:
        await self._stubs.router.RecordCompletion(request, timeout=self._settings.background_cap_seconds)

    async def _record_usage(self, request: compressor_pb2.RecordUsageRequest) -> None:
        await self._stubs.compressor.RecordUsage(request, timeout=self._settings.background_cap_seconds)

    async def _release(self, request: ledger_pb2.ReleaseFundsRequest) -> None:
        await self._stubs.ledger.ReleaseFunds(request, timeout=self._settings.background_cap_seconds)

    def _route_without_router(self, call: Call, ceiling: chat_pb2.Tier.ValueType) -> Route:
        wanted = call.request.policy
        bound = min(filter(None, (ceiling, wanted.tier_ceiling)), default=0)
        model = policy.fallback_model(
            self._snapshot.models,
            default_tier=policy.TIER_NUMBERS[self._settings.default_tier],
            floor=wanted.tier_floor,
            ceiling=bound,
            named=wanted.model,
            excluded=call.excluded,
            needs_tools=bool(call.request.tools),
        )
        if model is None:
            raise TenthError(
                Code.UNAVAILABLE, Reason.NO_MODEL_AVAILABLE, "the router is down and no known model may answer"
            )
        return replace(self.known_route(model.name), degraded=True)

    def known_route(self, name: str) -> Route:
        """A route to a model of the catalogue as last heard from the router."""
        known = self._snapshot.model(name)
        return Route(
            model=name,
            tier=tier_value(known.tier if known else 0),
            context_window_tokens=known.context_window_tokens if known else 0,
            self_hosted=known.self_hosted if known else False,
        )

    def _estimated_prompt(self, call: Call) -> Prompt:
        texts = prompt_texts(call.request)
        chars = sum(map(len, texts))
        non_ascii = sum(len(text) - len(text.encode("ascii", "ignore")) for text in texts)
        tokens = policy.estimate_tokens(chars, non_ascii) + 4 * len(call.request.messages)
        return Prompt(
            messages=tuple(call.request.messages),
            chunks=tuple(call.request.retrieved_chunks),
            original_tokens=tokens,
            sent_tokens=tokens,
            baseline_tokens=tokens,
            estimated=True,
        )


def may_cascade(call: Call) -> bool:
    """True when the answer may be held back until it is checked: nobody reads along, or the caller said so."""
    mode = call.request.policy.cascade_mode
    if mode == chat_pb2.CASCADE_MODE_OFF or call.began or call.later is not None:
        return False
    return not call.streaming or mode == chat_pb2.CASCADE_MODE_ALLOW


def tier_value(number: int) -> chat_pb2.Tier.ValueType:
    """A tier's number as its enum value."""
    return cast(chat_pb2.Tier.ValueType, number)


def prompt_texts(request: chat_pb2.CompletionRequest) -> Sequence[str]:
    """Every text of a prompt."""
    texts = [part.text for message in request.messages for part in message.parts]
    texts += [call.arguments_json for message in request.messages for call in message.tool_calls]
    texts += [chunk.text for chunk in request.retrieved_chunks]
    texts += [tool.description + tool.parameters_json_schema for tool in request.tools]
    return texts


def _describe(found: cache_pb2.LookupCompletionResponse) -> str:
    outcome = found.WhichOneof("outcome")
    if outcome == "hit":
        kind = cache_pb2.HitKind.Name(found.hit.kind).removeprefix("HIT_KIND_").lower()
        return f"{kind} hit, similarity {found.hit.similarity:.3f}"
    if outcome == "bypass":
        return f"bypass: {found.bypass.reason}"
    return "miss" if outcome == "lease" else "follows an identical request" if outcome == "follow" else "miss"
