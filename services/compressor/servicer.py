"""tenth.compressor.v1.CompressorService: proto to plain and back."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar

from tenth.compressor.v1 import compressor_pb2, compressor_pb2_grpc
from tenth.type.v1 import chat_pb2

from mesh.auth import identity_or_none
from mesh.catalog import WatchedFile
from mesh.errors import invalid_argument, required
from mesh.telemetry import annotate
from services.compressor.catalog import Model
from services.compressor.errors import Reason
from services.compressor.modes import HISTORY, SUMMARY, Mode, Plan, overridden
from services.compressor.money import InputPrice, compute_cost
from services.compressor.policy import Compressed, Hints, compress, room_of
from services.compressor.prefixes import PrefixTracker, prefix_version
from services.compressor.prompt import Prompt
from services.compressor.settled import SettledUsage
from services.compressor.summarising import SummaryStep, due, named, not_set_up, overheads_of, spent_on
from services.compressor.summary_step import Decision, Told, with_summary_step
from services.compressor.tokens import ModelCounter, TokenCounters
from services.compressor.tokenwise_rpc import Tokenwise
from services.compressor.translation import chunks_of, messages_of, prompt_of, result_of
from services.compressor.vectors import Found, Given, PromptVectors
from services.compressor.weighing import Facts, Scales

T = TypeVar("T")

_CHARS_PER_PART = 100

_MODES = {
    chat_pb2.COMPRESSION_MODE_UNSPECIFIED: Mode.SAFE,
    chat_pb2.COMPRESSION_MODE_OFF: Mode.OFF,
    chat_pb2.COMPRESSION_MODE_SAFE: Mode.SAFE,
    chat_pb2.COMPRESSION_MODE_BALANCED: Mode.BALANCED,
    chat_pb2.COMPRESSION_MODE_AGGRESSIVE: Mode.AGGRESSIVE,
}


class CompressorServicer(compressor_pb2_grpc.CompressorServiceServicer):
    """Shortens prompts and counts tokens. Keeps nothing but counts and vectors."""

    def __init__(
        self,
        catalog: WatchedFile[dict[str, Model]],
        counters: TokenCounters,
        plans: Mapping[Mode, Plan],
        vectors: PromptVectors,
        thread_bytes: int,
        prefixes: PrefixTracker,
        usage: SettledUsage,
        now: Callable[[], datetime],
        summaries: SummaryStep,
        tokenwise: Tokenwise | None = None,
    ) -> None:
        """Prompts of more than ``thread_bytes`` are worked on in a thread; ``now`` says which prices hold. Without
        ``tokenwise`` no text is pruned.
        """
        self._catalog = catalog
        self._counters = counters
        self._plans = plans
        self._vectors = vectors
        self._thread_bytes = thread_bytes
        self._prefixes = prefixes
        self._usage = usage
        self._now = now
        self._summaries = summaries
        self._tokenwise = tokenwise or Tokenwise(None, str)

    async def CompressPrompt(
        self, request: compressor_pb2.CompressPromptRequest, context: Any
    ) -> compressor_pb2.CompressPromptResponse:
        """Shorten a prompt for one model."""
        return (await self._compress(request, "", remember=True))[0]

    async def PreviewCompression(
        self, request: compressor_pb2.PreviewCompressionRequest, context: Any
    ) -> compressor_pb2.PreviewCompressionResponse:
        """The same, to look at."""
        response, done, price = await self._compress(request.compression, "compression.", remember=False)
        return compressor_pb2.PreviewCompressionResponse(
            compression=response,
            message_indexes=[message.index for message in done.prompt.messages],
            chunk_indexes=done.chunk_positions,
            input_nano_usd_per_million_tokens=price.input if price else 0,
            cached_input_nano_usd_per_million_tokens=price.cached if price else 0,
        )

    async def RecordUsage(
        self, request: compressor_pb2.RecordUsageRequest, context: Any
    ) -> compressor_pb2.RecordUsageResponse:
        """Learn how the provider's prompt cache behaves, and how far estimated counts are off."""
        if not request.request_id:
            raise required("request_id")
        model = self._model(request.model, "model")
        cached = request.usage.cached_input_token_count
        if not 0 <= cached <= request.usage.input_token_count:
            raise invalid_argument(
                "cached tokens are negative or more than the input", field="usage.cached_input_token_count"
            )
        if request.told_input_token_count < 0 or request.token_correction < 0:
            raise invalid_argument("a count or a factor is negative", field="told_input_token_count")
        if request.usage.estimated:
            return compressor_pb2.RecordUsageResponse()
        counter = await self._counters.counter(model)
        if counter.estimated and request.told_input_token_count:
            correction = request.token_correction or None
            billed = request.usage.input_token_count
            await self._usage.learn(model.name, request.told_input_token_count, billed, correction)
        if model.cache is None:
            return compressor_pb2.RecordUsageResponse()
        counted = self._prefixes.record(_scope(model), request.request_id, cached, model.cache)
        return compressor_pb2.RecordUsageResponse(counted=counted)

    async def PruneText(
        self, request: compressor_pb2.PruneTextRequest, context: Any
    ) -> compressor_pb2.PruneTextResponse:
        """Leave out the words of a text that tell least."""
        if not request.model:
            raise required("model")
        model, now = self._model(request.model, "model"), self._now()
        scoring = self._catalog.current.get(self._tokenwise.scoring_model)
        scoring_price = scoring.price(now) if scoring is not None else None
        counter = await self._counters.counter(model)
        return await self._tokenwise.prune(request, counter, model.price(now), scoring_price)

    async def _compress(
        self, request: compressor_pb2.CompressPromptRequest, path: str, *, remember: bool
    ) -> tuple[compressor_pb2.CompressPromptResponse, Compressed, InputPrice | None]:
        """The answer, what was done, and the model's price; ``path`` goes before the names of wrong fields."""
        asked = request.request
        if not asked.messages:
            raise required(f"{path}request.messages")
        if not request.model:
            raise required(f"{path}model")
        if request.context_window_tokens < 0:
            raise invalid_argument("context_window_tokens is negative", field=f"{path}context_window_tokens")
        budget = request.token_budget if request.HasField("token_budget") else None
        if budget is not None and budget < 1:
            raise invalid_argument("token_budget is less than 1", field=f"{path}token_budget")
        if not all(map(math.isfinite, request.embedding.values)):
            raise invalid_argument("a value is not a finite number", field=f"{path}embedding.values")
        model = self._model(request.model, f"{path}model")
        baseline = self._model(request.baseline_model, f"{path}baseline_model") if request.baseline_model else model
        plan = self._plan(request, path)
        meter = _Meter()
        prompt = await self._run(lambda: prompt_of(asked), _parts(asked), _Meter())
        size = prompt.size() + _parts(asked)
        counter = (await self._counters.counter(model)).for_one_prompt()
        baseline_counter = await self._counters.counter(baseline)
        sampling = asked.sampling
        max_output = sampling.max_output_tokens if sampling.HasField("max_output_tokens") else None
        window = request.context_window_tokens or model.context_window_tokens
        price = model.price(self._now())
        facts, scope = Facts(price, model.cache, watches=remember), _scope(model)

        def weigh() -> Decision | None:
            if not due(prompt, plan, counter, room_of(window, max_output, budget)):
                return None
            held = 0.0 if price is None else Scales(facts, self._prefixes, scope, prompt, counter).probability
            return self._summaries.decide(prompt, counter, facts, held, preview=not remember)

        told = Told(prompt)
        if plan.runs(SUMMARY):
            if named(request) and self._summaries.why_not():
                raise not_set_up(self._summaries.why_not(), path)
            decision = await self._run(weigh, size, meter)
            told = told if decision is None else await self._summaries.finish(decision, request)
        with spent_on(told, asked.request_id):
            found = await self._find(request, told.prompt, plan, counter, meter)
            chunks, why_not = self._vectors.chunks(told.prompt, found), found.failure
            hints = Hints(
                found.question,
                found.messages,
                asked.tool_choice.name,
                request.predicted_output_token_count,
                asked.response_format.kind == chat_pb2.RESPONSE_FORMAT_KIND_JSON_OBJECT,
            )
            facts = replace(facts, compute_nano_usd=compute_cost(meter.micros, model.cpu_hour_nano_usd))

            def work() -> tuple[Compressed, int, float]:
                # Weighed against the prompt as it was asked; a summary is part of what is sent.
                scales = None if price is None else Scales(facts, self._prefixes, scope, prompt, counter)
                done = compress(told.prompt, plan, counter, chunks, window, max_output, scales, budget, hints)
                done = with_summary_step(done, told)
                if scales is not None and remember:
                    scales.finish(done.prompt, asked.request_id)
                same = baseline_counter == counter
                baseline_count = done.original_token_count if same else baseline_counter.prompt(prompt)
                return done, baseline_count, scales.probability if scales is not None else 0.0

            done, baseline_count, probability = await self._run(work, size, meter)
        saving = round(sum(step.saving_nano_usd for step in done.steps))
        annotate(
            {
                "tenth.compressor.model": model.name,
                "tenth.compressor.mode": plan.mode.value,
                "tenth.compressor.original_input_tokens": done.original_token_count,
                "tenth.compressor.input_tokens": done.token_count,
                "tenth.compressor.strategies": [step.strategy for step in done.steps],
                "tenth.compressor.declined": [step.strategy for step in done.declined],
                "tenth.compressor.expected_saving_nano_usd": saving,
                "tenth.compressor.prompt_cache_probability": probability,
                "tenth.compressor.compute_micros": meter.micros,
            }
        )
        kept, chosen = await self._run(lambda: (messages_of(asked, done), chunks_of(asked, done)), _parts(asked), meter)
        response = compressor_pb2.CompressPromptResponse(
            messages=kept,
            retrieved_chunks=chosen,
            original_input_token_count=done.original_token_count,
            compressed_input_token_count=done.token_count,
            baseline_input_token_count=baseline_count,
            estimated=counter.estimates(prompt) or baseline_counter.estimates(prompt),
            strategies=[result_of(step, why_not) for step in done.steps],
            stable_prefix_message_count=done.stable_prefix_message_count,
            compute_micros=meter.micros,
            expected_saving_nano_usd=saving,
            declined=[result_of(step, why_not) for step in done.declined],
            prompt_cache_probability=probability,
            prefix_version=prefix_version(counter.tokenizer, model.cache, price),
            max_output_token_count=done.max_output_tokens,
            cut_tool_indexes=[at for at in range(len(prompt.tools)) if at not in done.tool_positions],
            token_correction=counter.correction,
            overheads=overheads_of(told),
        )
        return response, done, price

    def _plan(self, request: compressor_pb2.CompressPromptRequest, path: str) -> Plan:
        mode = _MODES.get(request.request.policy.compression_mode)
        if mode is None:
            raise invalid_argument("no such mode", field=f"{path}request.policy.compression_mode")
        switches = {item.strategy: item.enabled for item in request.strategy_overrides}
        if len(switches) < len(request.strategy_overrides):
            raise invalid_argument(
                "a strategy is named twice", field=f"{path}strategy_overrides", reason=Reason.UNKNOWN_STRATEGY
            )
        return overridden(self._plans[mode], switches, self._plans)

    async def CountTokens(
        self, request: compressor_pb2.CountTokensRequest, context: Any
    ) -> compressor_pb2.CountTokensResponse:
        """Count a prompt's tokens for each model."""
        parts, meter = _parts(request.request), _Meter()
        prompt = await self._run(lambda: prompt_of(request.request), parts, meter)
        models = [self._model(name, f"models[{at}]") for at, name in enumerate(request.models)]
        counters = [await self._counters.counter(model) for model in models]
        size = prompt.size() + parts
        counts = await self._run(lambda: [counter.prompt(prompt) for counter in counters], size, meter)
        return compressor_pb2.CountTokensResponse(
            counts=[
                compressor_pb2.TokenCount(
                    model=model.name, input_token_count=count, estimated=counter.estimates(prompt)
                )
                for model, counter, count in zip(models, counters, counts, strict=True)
            ]
        )

    def _model(self, name: str, field: str) -> Model:
        model = self._catalog.current.get(name)
        if model is None:
            raise invalid_argument(f"the catalogue has no model {name}", field=field, reason=Reason.UNKNOWN_MODEL)
        return model

    async def _find(
        self,
        request: compressor_pb2.CompressPromptRequest,
        prompt: Prompt,
        plan: Plan,
        counter: ModelCounter,
        meter: _Meter,
    ) -> Found:
        """The vectors that this prompt's strategies can use."""
        messages = False
        if plan.runs(HISTORY) and plan.history is not None and plan.history_tokens is not None:
            limit = plan.history_tokens
            size = prompt.size() + _parts(request.request)
            messages = await self._run(lambda: sum(map(counter.message, prompt.messages)) > limit, size, meter)
        ranks = plan.ranks(prompt.chunks) and not prompt.settled
        if not (ranks or messages):
            return Found()
        given = Given(tuple(request.embedding.values), request.embedding.embedder)
        found = await self._vectors.find(prompt, given, chunks=ranks, messages=messages)
        meter.micros += found.compute_micros
        return found

    async def _run(self, work: Callable[[], T], size: int, meter: _Meter) -> T:
        """Do CPU work here, or in a thread when it is on many characters; its CPU time goes to the meter."""

        def measured() -> tuple[T, int]:
            started = time.thread_time_ns()
            result = work()
            return result, (time.thread_time_ns() - started) // 1000

        if size * 2 > self._thread_bytes:
            result, micros = await asyncio.to_thread(measured)
        else:
            result, micros = measured()
        meter.micros += micros
        return result


class _Meter:
    """CPU time of one request, microseconds."""

    __slots__ = ("micros",)

    def __init__(self) -> None:
        self.micros = 0


def _parts(asked: chat_pb2.CompletionRequest) -> int:
    """What the messages and chunks of a request weigh beside their texts, as characters: empty ones take time too."""
    return _CHARS_PER_PART * (len(asked.messages) + len(asked.retrieved_chunks) + len(asked.tools))


def _scope(model: Model) -> str:
    """Whose starts of prompts may meet: a tenant's, of one model. Without an identity, as in a test: nobody's."""
    identity = identity_or_none()
    return f"{identity.tenant_id if identity else ''}\0{model.name}"
