"""tenth.compressor.v1.CompressorService: proto to plain and back."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, TypeVar

from tenth.compressor.v1 import compressor_pb2, compressor_pb2_grpc
from tenth.type.v1 import chat_pb2

from mesh.auth import identity_or_none
from mesh.catalog import WatchedFile
from mesh.errors import invalid_argument, required
from mesh.telemetry import annotate
from services.compressor import policy
from services.compressor.catalog import Model
from services.compressor.embeddings import Embeddings
from services.compressor.errors import Reason
from services.compressor.modes import RETRIEVAL, Mode, Plan, overridden
from services.compressor.money import InputPrice, compute_cost
from services.compressor.policy import Compressed, Step
from services.compressor.prefixes import PrefixTracker, prefix_version
from services.compressor.prompt import ASSISTANT, SYSTEM, TOOL, USER, Call, Message, Prompt, question
from services.compressor.strategies import Ranking, rank_by_bm25, rank_by_vectors
from services.compressor.tokens import TokenCounters
from services.compressor.weighing import Facts, Scales

T = TypeVar("T")

_MODES = {
    chat_pb2.COMPRESSION_MODE_UNSPECIFIED: Mode.SAFE,
    chat_pb2.COMPRESSION_MODE_OFF: Mode.OFF,
    chat_pb2.COMPRESSION_MODE_SAFE: Mode.SAFE,
    chat_pb2.COMPRESSION_MODE_BALANCED: Mode.BALANCED,
    chat_pb2.COMPRESSION_MODE_AGGRESSIVE: Mode.AGGRESSIVE,
}
_ROLES = {
    chat_pb2.ROLE_SYSTEM: SYSTEM,
    chat_pb2.ROLE_USER: USER,
    chat_pb2.ROLE_ASSISTANT: ASSISTANT,
    chat_pb2.ROLE_TOOL: TOOL,
}
_ENGLISH_EMBEDDERS = ("all-MiniLM",)
"""Embedders that cannot read Korean: their vocabulary takes Hangul apart or drops it."""
_KOREAN_SHARE = 0.15
_LETTER = re.compile(r"[^\W\d_]")
_HANGUL = re.compile(r"[\uac00-\ud7a3]")


class CompressorServicer(compressor_pb2_grpc.CompressorServiceServicer):
    """Shortens prompts and counts tokens. Keeps nothing but counts and vectors."""

    def __init__(
        self,
        catalog: WatchedFile[dict[str, Model]],
        counters: TokenCounters,
        plans: Mapping[Mode, Plan],
        embeddings: Embeddings,
        thread_bytes: int,
        prefixes: PrefixTracker,
        now: Callable[[], datetime],
    ) -> None:
        """Prompts of more than ``thread_bytes`` are worked on in a thread; ``now`` says which prices hold."""
        self._catalog = catalog
        self._counters = counters
        self._plans = plans
        self._embeddings = embeddings
        self._thread_bytes = thread_bytes
        self._prefixes = prefixes
        self._now = now

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
        """Learn how the provider's prompt cache behaves."""
        if not request.request_id:
            raise required("request_id")
        model = self._model(request.model, "model")
        cached = request.usage.cached_input_token_count
        if not 0 <= cached <= request.usage.input_token_count:
            raise invalid_argument(
                "cached tokens are negative or more than the input", field="usage.cached_input_token_count"
            )
        if model.cache is None or request.usage.estimated:
            return compressor_pb2.RecordUsageResponse()
        counted = self._prefixes.record(_scope(model), request.request_id, cached, model.cache)
        return compressor_pb2.RecordUsageResponse(counted=counted)

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
        model = self._model(request.model, f"{path}model")
        baseline = self._model(request.baseline_model, f"{path}baseline_model") if request.baseline_model else model
        plan = self._plan(request, path)
        prompt = prompt_of(asked)
        meter = _Meter()
        ranking, why_not = None, ""
        if plan.ranks(prompt.chunks):
            ranking, why_not = await self._rank(request, prompt, meter)
        counter, baseline_counter = self._counters.of(model), self._counters.of(baseline)
        sampling = asked.sampling
        max_output = sampling.max_output_tokens if sampling.HasField("max_output_tokens") else None
        window = request.context_window_tokens or model.context_window_tokens
        price = model.price(self._now())
        spent = compute_cost(meter.micros, model.cpu_hour_nano_usd)
        facts, scope = Facts(price, model.cache, spent, watches=remember), _scope(model)

        def work() -> tuple[Compressed, int, float]:
            if price is None:
                scales, done = None, policy.compress(prompt, plan, counter, ranking, window, max_output, None, budget)
            else:
                scales = Scales(facts, self._prefixes, scope, prompt, counter)
                done = policy.compress(prompt, plan, counter, ranking, window, max_output, scales, budget)
                if remember:
                    scales.finish(done.prompt, asked.request_id)
            same = baseline_counter == counter
            baseline_count = done.original_token_count if same else baseline_counter.prompt(prompt)
            return done, baseline_count, scales.probability if scales is not None else 0.0

        done, baseline_count, probability = await self._run(work, prompt, meter)
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
        response = compressor_pb2.CompressPromptResponse(
            messages=[_restored(asked.messages[message.index], message) for message in done.prompt.messages],
            retrieved_chunks=[asked.retrieved_chunks[at] for at in done.chunk_positions],
            original_input_token_count=done.original_token_count,
            compressed_input_token_count=done.token_count,
            baseline_input_token_count=baseline_count,
            estimated=counter.estimated or baseline_counter.estimated,
            strategies=[_result(step, why_not) for step in done.steps],
            stable_prefix_message_count=done.stable_prefix_message_count,
            compute_micros=meter.micros,
            expected_saving_nano_usd=saving,
            declined=[_result(step, why_not) for step in done.declined],
            prompt_cache_probability=probability,
            prefix_version=prefix_version(counter.tokenizer, model.cache, price),
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
        prompt = prompt_of(request.request)
        models = [self._model(name, f"models[{at}]") for at, name in enumerate(request.models)]
        counters = [self._counters.of(model) for model in models]
        counts = await self._run(lambda: [counter.prompt(prompt) for counter in counters], prompt, _Meter())
        return compressor_pb2.CountTokensResponse(
            counts=[
                compressor_pb2.TokenCount(model=model.name, input_token_count=count, estimated=counter.estimated)
                for model, counter, count in zip(models, counters, counts, strict=True)
            ]
        )

    def _model(self, name: str, field: str) -> Model:
        model = self._catalog.current.get(name)
        if model is None:
            raise invalid_argument(f"the catalogue has no model {name}", field=field, reason=Reason.UNKNOWN_MODEL)
        return model

    async def _rank(
        self, request: compressor_pb2.CompressPromptRequest, prompt: Prompt, meter: _Meter
    ) -> tuple[Ranking, str]:
        """The chunks' ranking, and why it is not by vectors."""
        asked = question(prompt.messages)
        given = request.embedding
        korean = _is_korean(asked)
        failure = ""
        if korean and given.embedder.startswith(_ENGLISH_EMBEDDERS):
            failure = f"{given.embedder} cannot read Korean"
        else:
            texts = [*prompt.chunks] if given.values else [*prompt.chunks, asked]
            found = await self._embeddings.embed(texts)
            meter.micros += found.compute_micros
            failure = found.failure
            if not failure and korean and found.embedder.startswith(_ENGLISH_EMBEDDERS):
                failure = f"{found.embedder} cannot read Korean"
            elif not failure and given.values and found.embedder != given.embedder:
                failure = f"the question's vector is of {given.embedder}, the chunks' of {found.embedder}"
            if not failure:
                vectors = found.vectors
                own = tuple(given.values) if given.values else vectors[-1]
                return rank_by_vectors(own, vectors[: len(prompt.chunks)]), ""
        return await self._run(lambda: rank_by_bm25(asked, prompt.chunks), prompt, meter), failure

    async def _run(self, work: Callable[[], T], prompt: Prompt, meter: _Meter) -> T:
        """Do CPU work here, or in a thread when it is long; its CPU time goes to the meter."""

        def measured() -> tuple[T, int]:
            started = time.thread_time_ns()
            result = work()
            return result, (time.thread_time_ns() - started) // 1000

        if prompt.size() * 2 > self._thread_bytes:
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


def prompt_of(request: chat_pb2.CompletionRequest) -> Prompt:
    """The prompt in plain types. Raises INVALID_FIELD for a message without a role."""
    return Prompt(
        messages=tuple(_message(at, message) for at, message in enumerate(request.messages)),
        chunks=tuple(chunk.text for chunk in request.retrieved_chunks),
        tools=tuple(_tool_text(tool) for tool in request.tools),
        response_schema=request.response_format.json_schema,
    )


def _message(at: int, message: chat_pb2.ChatMessage) -> Message:
    role = _ROLES.get(message.role)
    if role is None:
        raise invalid_argument("the role is not known", field=f"request.messages[{at}].role")
    return Message(
        index=at,
        role=role,
        texts=tuple(part.text for part in message.parts if part.WhichOneof("content") != "image"),
        image_details=tuple(part.image.detail for part in message.parts if part.WhichOneof("content") == "image"),
        name=message.name,
        calls=tuple(Call(call.id, call.name, call.arguments_json) for call in message.tool_calls),
        answers=message.tool_call_id,
        pinned=message.pinned,
    )


def _scope(model: Model) -> str:
    """Whose starts of prompts may meet: a tenant's, of one model. Without an identity, as in a test: nobody's."""
    identity = identity_or_none()
    return f"{identity.tenant_id if identity else ''}\0{model.name}"


def _result(step: Step, why_not: str) -> compressor_pb2.StrategyResult:
    ranked_otherwise = step.strategy == RETRIEVAL and why_not
    return compressor_pb2.StrategyResult(
        strategy=step.strategy,
        removed_token_count=step.removed_token_count,
        reason=f"{step.reason} ({why_not})" if ranked_otherwise else step.reason,
        before_token_count=step.before_token_count,
        after_token_count=step.before_token_count - step.removed_token_count,
        expected_saving_nano_usd=round(step.saving_nano_usd),
        cut_message_indexes=step.cut_messages,
        cut_chunk_indexes=step.cut_chunks,
        edited_message_indexes=step.edited_messages,
    )


def _restored(original: chat_pb2.ChatMessage, message: Message) -> chat_pb2.ChatMessage:
    """The original message with the shortened texts in their places."""
    texts = [part.text for part in original.parts if part.WhichOneof("content") != "image"]
    if tuple(texts) == message.texts:
        return original
    result = chat_pb2.ChatMessage()
    result.CopyFrom(original)
    rest = iter(message.texts)
    for part in result.parts:
        if part.WhichOneof("content") != "image":
            part.text = next(rest)
    return result


def _tool_text(tool: chat_pb2.Tool) -> str:
    """A tool as the JSON that a provider is sent; a schema that is no JSON is counted as the text it is."""
    schema = tool.parameters_json_schema or "{}"
    head = json.dumps({"name": tool.name, "description": tool.description}, ensure_ascii=False, separators=(",", ":"))
    return f'{{"type":"function","function":{head[:-1]},"parameters":{schema}}}}}'


def _is_korean(text: str) -> bool:
    start = text[:4000]
    letters = len(_LETTER.findall(start))
    return letters > 0 and len(_HANGUL.findall(start)) >= _KOREAN_SHARE * letters
