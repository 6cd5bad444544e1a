"""InferenceService: translates, writes the attempt down on both sides of the backend, and nothing else."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from functools import partial
from typing import Any

from google.protobuf.duration_pb2 import Duration
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from tenth.inference.v1 import inference_pb2, inference_pb2_grpc
from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.auth import current_identity
from mesh.errors import Code, TenthError
from mesh.errors import Reason as MeshReason
from mesh.telemetry import Telemetry, current_trace_id, traceparent
from services.inference import convert
from services.inference.attempts import AttemptLog, timestamp
from services.inference.backend import Backend
from services.inference.errors import Reason, unsupported
from services.inference.hedging import NUMBER_OFFSET
from services.inference.metrics import CANCELLED, OTHER, GenerationMetrics
from services.inference.policy import (
    PROMPT_LOGPROBS_FIELD,
    CountTokens,
    Finished,
    Meter,
    check_abilities,
    check_prompt_logprobs,
    limited,
    worst_case,
)
from services.inference.served import Attempt, Served, numbered
from services.inference.usage import Usage

_NOT_THE_PROVIDERS_FAULT = frozenset(
    {
        Reason.PROVIDER_REJECTED,
        Reason.PROMPT_TOO_LONG,
        Reason.UNSUPPORTED,
        Reason.PROVIDER_RATE_LIMITED,
        Reason.PROVIDER_BUSY,
        Reason.PROVIDER_NOT_CONFIGURED,
        Reason.MODEL_UNAVAILABLE,
        # The local engine knows by itself whether it works; a circuit would keep callers off it after its restart.
        Reason.ENGINE_FAILED,
        Reason.ENGINE_RESTARTING,
        Reason.QUEUE_FULL,
        Reason.QUEUE_DEADLINE,
        MeshReason.DRAINING,
    }
)
"""Failures that say nothing about whether the next call will work."""

_BOOKED_AS = {
    inference_pb2.PURPOSE_CLASSIFIER: "classifier",
    inference_pb2.PURPOSE_SUMMARY: "summary",
    inference_pb2.PURPOSE_TOKENWISE: "tokenwise",
    inference_pb2.PURPOSE_SHADOW: "shadow",
    inference_pb2.PURPOSE_JUDGE: "judge",
}
"""What the ledger calls a purpose; any other is an answer's."""
_SANDBOX = " (sandbox)"
"""How a provider's name ends that the sandbox plays."""
_FAIR_SECONDS = 2.0
"""A provider that does not answer within a caller's shorter deadline is not taken for dead."""


class InferenceServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Generates on the named model."""

    def __init__(
        self,
        served: Mapping[str, Served],
        attempts: AttemptLog,
        telemetry: Telemetry,
        count_tokens: CountTokens,
        now: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``now`` is wall time in seconds since 1970, ``clock`` a monotonic one."""
        self._served = served
        self._attempts = attempts
        self._telemetry = telemetry
        self._metrics = GenerationMetrics(telemetry.meter)
        self._count_tokens = count_tokens
        self._now = now
        self._clock = clock
        self._abandoned: set[asyncio.Future[Any]] = set()

    async def GenerateText(
        self, request: inference_pb2.GenerateTextRequest, context: Any
    ) -> inference_pb2.GenerateTextResponse:
        """The whole answer."""
        work = asyncio.ensure_future(self._whole(request))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            served = self._served.get(request.model)
            if served is not None and served.backend.bills_abandoned:
                # The caller left, the bill comes all the same: stay (until the deadline) to learn what it says.
                self._abandoned.add(work)
                work.add_done_callback(self._forget)
            else:
                work.cancel()
                await asyncio.wait([work])
            raise

    async def close(self) -> None:
        """Let abandoned answers come in for a moment, then give them up."""
        if self._abandoned:
            await asyncio.wait(self._abandoned, timeout=2)
        for work in list(self._abandoned):
            work.cancel()
        if self._abandoned:
            await asyncio.wait(self._abandoned)

    def _forget(self, work: asyncio.Future[Any]) -> None:
        self._abandoned.discard(work)
        if not work.cancelled():
            work.exception()  # Nobody is left to hear it; the attempt's record has it.

    async def _whole(self, request: inference_pb2.GenerateTextRequest) -> inference_pb2.GenerateTextResponse:
        with self._attempt(request) as attempt:
            backend = attempt.served.backend
            answer = await backend.generate(attempt.generation, attempt.meter)
            self._finished(attempt, answer.finished, answer.delta.text)
            response = inference_pb2.GenerateTextResponse(
                completion=chat_pb2.Completion(
                    message=convert.answer_to_proto(answer.delta),
                    finish_reason=convert.FINISH_REASONS[answer.finished.finish_reason],
                    model=attempt.generation.model,
                    usage=convert.usage_to_proto(answer.finished.usage),
                    logprobs=convert.logprobs_to_proto(answer.delta),
                ),
                quantized=backend.quantized,
                provider_model=backend.provider_model,
                overheads=attempt.beside(),
                attempt=attempt.answered_beside,
                prompt_tokens=convert.prompt_tokens_to_proto(answer.delta),
            )
            seconds = answer.first_token_seconds
            elapsed = self._clock() - attempt.started
            response.time_to_first_token.CopyFrom(_duration(elapsed if seconds is None else seconds))
        return response

    async def StreamGenerateText(
        self, request: inference_pb2.StreamGenerateTextRequest, context: Any
    ) -> AsyncIterator[inference_pb2.StreamGenerateTextResponse]:
        """Started, pieces, exactly one finished."""
        if request.generation.prompt_logprobs:
            raise unsupported("a stream does not tell the prompt's probabilities", PROMPT_LOGPROBS_FIELD)
        with self._attempt(request.generation) as attempt:
            backend = attempt.served.backend
            last: inference_pb2.StreamGenerateTextResponse | None = None
            begun = False
            texts: list[str] = []
            async with aclosing(backend.stream(attempt.generation, attempt.meter)) as events:
                async for event in events:
                    if not begun:
                        begun = True
                        attempt.served.circuit.succeeded()  # A probe that answers need not come to its end.
                        started = inference_pb2.GenerationStarted(provider_model=backend.provider_model)
                        yield inference_pb2.StreamGenerateTextResponse(started=started)
                    if isinstance(event, Finished):
                        self._finished(attempt, event, "".join(texts))
                        finished = inference_pb2.GenerationFinished(
                            finish_reason=convert.FINISH_REASONS[event.finish_reason],
                            usage=convert.usage_to_proto(event.usage),
                            quantized=backend.quantized,
                            overheads=attempt.beside(),
                            attempt=attempt.answered_beside,
                        )
                        if attempt.first_token_seconds is not None:
                            finished.time_to_first_token.CopyFrom(_duration(attempt.first_token_seconds))
                        last = inference_pb2.StreamGenerateTextResponse(finished=finished)
                    else:
                        attempt.first_token(self._clock())
                        if self._telemetry.record_content:
                            texts.append(event.text)
                        yield inference_pb2.StreamGenerateTextResponse(delta=convert.delta_to_proto(event))
            assert last is not None
        # The attempt is on record before the caller hears that it is over.
        yield last

    async def ListServedModels(
        self, request: inference_pb2.ListServedModelsRequest, context: Any
    ) -> inference_pb2.ListServedModelsResponse:
        """The models by name, with their health."""
        size = min(request.page_size or 100, 1000)
        names = sorted(name for name in self._served if name > request.page_token)
        response = inference_pb2.ListServedModelsResponse()
        for name in names[:size]:
            served = self._served[name]
            reason = served.backend.unavailable_reason() or served.circuit.reason
            response.models.add(
                model=name,
                provider=served.backend.provider,
                healthy=served.circuit.healthy and not served.backend.unavailable_reason(),
                backend=served.backend.kind,
                reason=reason,
                running_count=served.running,
                quantized=served.backend.quantized,
            )
        response.next_page_token = names[size - 1] if len(names) > size else ""
        return response

    @contextmanager
    def _attempt(self, request: inference_pb2.GenerateTextRequest) -> Iterator[Attempt]:
        """The frame around one attempt: admission, span, and a record of it whichever way it ends.

        A context manager and not a decorator, so that CancelledError and GeneratorExit pass through it too.
        """
        identity = current_identity()
        sandbox = request.purpose == inference_pb2.PURPOSE_SANDBOX
        if sandbox and identity.service != "sandbox":
            raise TenthError(
                Code.PERMISSION_DENIED,
                Reason.PURPOSE_FORBIDDEN,
                "only the sandbox provider generates unmetered",
                "generation.purpose",
            )
        served = self._served.get(request.model)
        if served is None and request.model:
            raise TenthError(
                Code.NOT_FOUND, Reason.MODEL_UNKNOWN, f"the catalogue has no {request.model!r}", "generation.model"
            )
        span = self._telemetry.tracer.start_span(f"chat {request.model}", kind=SpanKind.CLIENT)
        try:
            generation = convert.generation_from_proto(
                request, tenant_id=identity.tenant_id, traceparent=traceparent(span)
            )
            assert served is not None
            generation = limited(generation, served.model.max_output)
            check_abilities(generation, served.model.ability)
            check_prompt_logprobs(generation, served.backend.kind)
            attempt = Attempt(
                generation, served, span, Meter(generation.estimated_input, self._count_tokens), self._clock()
            )
            self._describe(attempt, request)
            event = self._event(request, attempt, identity.tenant_id, identity.user_id, identity.project_id)
            # Last: from here on the circuit waits to hear how it went.
            self._admit(served)
            if not sandbox:
                self._record(attempt, event)
                attempt.meter.on_second = partial(self._second, attempt, event)
            served.running += 1
            kind, error_type = ledger_pb2.ATTEMPT_KIND_CANCELLED, CANCELLED
            try:
                yield attempt
                kind, error_type = ledger_pb2.ATTEMPT_KIND_FINISHED, ""
                served.circuit.succeeded()
            except Exception as error:
                kind = ledger_pb2.ATTEMPT_KIND_FAILED
                error_type = error.reason if isinstance(error, TenthError) else OTHER
                raise self._failed(attempt, error) from error
            finally:
                served.running -= 1
                if kind == ledger_pb2.ATTEMPT_KIND_CANCELLED:
                    served.circuit.left()
                    span.set_attribute("tenth.cancelled", True)
                _put_usage(span, attempt.meter.winner.usage())
                if not sandbox:
                    self._ended(attempt, event, kind, error_type)
        except TenthError as error:
            span.set_status(Status(StatusCode.ERROR, error.reason))
            raise
        finally:
            span.end()

    def _second(self, attempt: Attempt, event: ledger_pb2.AttemptEvent) -> None:
        """Write down that an attempt beside this one begins, at its own worst case."""
        self._attempts.start(numbered(event, event.attempt + NUMBER_OFFSET, self._now()))
        attempt.span.set_attribute("tenth.hedged", True)

    def _ended(
        self,
        attempt: Attempt,
        event: ledger_pb2.AttemptEvent,
        kind: ledger_pb2.AttemptKind.ValueType,
        error_type: str,
    ) -> None:
        """Record how the attempt ended, and the one beside it, which is cancelled where the other answered."""
        meter, backend = attempt.meter, attempt.served.backend
        beside = [(meter.second, event.attempt + NUMBER_OFFSET)] if meter.second is not None else []
        for each, number in [(meter, event.attempt), *beside]:
            lost = each is meter.loser and kind == ledger_pb2.ATTEMPT_KIND_FINISHED
            usage = each.usage()
            end = numbered(event, number, self._now())
            end.kind = ledger_pb2.ATTEMPT_KIND_CANCELLED if lost else kind
            end.usage.CopyFrom(convert.usage_to_proto(usage))
            self._attempts.end(end)
            self._metrics.record(
                _provider_name(backend),
                backend.provider_model,
                usage,
                self._clock() - attempt.started,
                sandbox=_is_sandbox(backend),
                error_type=CANCELLED if lost else error_type,
            )

    def _admit(self, served: Served) -> None:
        name = served.model.name
        error = served.backend.unavailable_error()
        if error is not None:
            raise error
        wait = served.circuit.wait_seconds(self._clock())
        if wait:
            raise TenthError(
                Code.UNAVAILABLE,
                Reason.PROVIDER_UNHEALTHY,
                f"{name} is down: {served.circuit.reason}",
                retry_after_seconds=wait,
            )

    def _record(self, attempt: Attempt, event: ledger_pb2.AttemptEvent) -> None:
        try:
            self._attempts.start(event)
        except TenthError:
            attempt.served.circuit.left()
            raise

    def _event(
        self,
        request: inference_pb2.GenerateTextRequest,
        attempt: Attempt,
        tenant_id: str,
        user_id: str,
        project_id: str,
    ) -> ledger_pb2.AttemptEvent:
        worst = worst_case(attempt.generation, attempt.served.model.max_output)
        return ledger_pb2.AttemptEvent(
            request_id=request.request_id,
            attempt=request.attempt,
            kind=ledger_pb2.ATTEMPT_KIND_STARTED,
            tenant_id=tenant_id,
            model=request.model,
            usage=convert.usage_to_proto(worst),
            reservation_id=request.reservation_id,
            price_book_version=request.price_book_version,
            event_time=timestamp(self._now()),
            user_id=user_id,
            project_id=request.project_id or project_id,
            purpose=_BOOKED_AS.get(request.purpose, "answer"),
            quantized=attempt.served.backend.quantized,
            trace_id=current_trace_id(),
        )

    def _failed(self, attempt: Attempt, error: Exception) -> Exception:
        """The error to raise: with what was spent, when the provider was reached."""
        circuit = attempt.served.circuit
        if not isinstance(error, TenthError):
            circuit.left()
            return error
        # The wait for our own turn says nothing of the provider.
        waited = self._clock() - attempt.started - attempt.meter.queued_seconds
        impatient = error.code is Code.DEADLINE_EXCEEDED and waited < _FAIR_SECONDS
        if error.reason in _NOT_THE_PROVIDERS_FAULT or impatient:
            circuit.left()
        else:
            # Said to every tenant that asks next: the provider's own words may quote this one's prompt.
            status = error.metadata.get("http_status", "")
            circuit.failed(self._clock(), error.reason + (f" (HTTP {status})" if status else ""))
        number, second = attempt.generation.attempt, attempt.meter.second
        items = attempt.spent(attempt.meter, number, "failed_attempt")
        if second is not None:
            items += attempt.spent(second, number + NUMBER_OFFSET, "hedged_attempt")
        if not items:
            return error
        detail = receipt_pb2.SpentDetail(request_id=attempt.generation.request_id, attempts=items)
        error.details = (*error.details, detail)
        return error

    def _finished(self, attempt: Attempt, finished: Finished, text: str) -> None:
        # The backend has the last word, also where it counted for a provider that did not.
        attempt.meter.winner.reported = finished.usage
        attempt.span.set_attribute("gen_ai.response.finish_reasons", (finished.finish_reason,))
        if self._telemetry.record_content:
            attempt.span.set_attribute("gen_ai.output.messages", _content([("assistant", text)]))

    def _describe(self, attempt: Attempt, request: inference_pb2.GenerateTextRequest) -> None:
        span = attempt.span
        if not span.is_recording():
            return
        backend, sampling = attempt.served.backend, attempt.generation.sampling
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": _provider_name(backend),
            "gen_ai.request.model": backend.provider_model,
            "gen_ai.response.model": backend.provider_model,
            "tenth.request_id": request.request_id,
            "tenth.attempt": request.attempt,
            "tenth.model": request.model,
            "tenth.purpose": _purpose(request.purpose),
            "tenth.sandbox": _is_sandbox(backend),
        }
        if sampling.max_output_tokens is not None:
            attributes["gen_ai.request.max_tokens"] = sampling.max_output_tokens
        if sampling.temperature is not None:
            attributes["gen_ai.request.temperature"] = sampling.temperature
        if self._telemetry.record_content:
            attributes["gen_ai.input.messages"] = _content([(m.role, m.text) for m in attempt.generation.messages])
        span.set_attributes(attributes)


def _provider_name(backend: Backend) -> str:
    return backend.provider.removesuffix(_SANDBOX)


def _is_sandbox(backend: Backend) -> bool:
    return backend.provider.endswith(_SANDBOX)


def _put_usage(span: Span, usage: Usage) -> None:
    span.set_attributes(
        {
            "gen_ai.usage.input_tokens": usage.input,
            "gen_ai.usage.cache_read.input_tokens": usage.cached,
            "gen_ai.usage.output_tokens": usage.output,
            "tenth.usage_estimated": usage.estimated,
        }
    )


def _purpose(purpose: inference_pb2.Purpose.ValueType) -> str:
    """Its name in small letters; a newer revision's has none here."""
    known = purpose in inference_pb2.Purpose.values()
    return inference_pb2.Purpose.Name(purpose).removeprefix("PURPOSE_").lower() if known else str(int(purpose))


def _content(messages: list[tuple[str, str]]) -> str:
    return json.dumps([{"role": role, "parts": [{"type": "text", "content": text}]} for role, text in messages])


def _duration(seconds: float) -> Duration:
    whole, part = divmod(int(seconds * 1e9), 1_000_000_000)
    return Duration(seconds=whole, nanos=part)
