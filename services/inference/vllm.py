"""The Backend of the local engine: requests and outputs, ours into vLLM's and back.

The engine itself is stepped by a thread of its own, in this process (``vllm_thread.py``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from mesh.errors import Code, TenthError, invalid_argument
from services.inference.backend import Answer
from services.inference.errors import Reason, prompt_too_long, unsupported
from services.inference.policy import (
    Delta,
    Event,
    Finished,
    Generation,
    Meter,
    ResponseKind,
    TokenLogprob,
    room_for_output,
)
from services.inference.usage import Usage
from services.inference.vllm_load import EngineOptions, is_quantized
from services.inference.vllm_thread import EngineThread, Job
from services.inference.work import WorkMeter

log = logging.getLogger("tenth.inference.vllm")

_THREAD_TEXT = 20_000
"""Characters from which tokenizing is worth a thread: below, it takes under a few milliseconds."""
_FINISH_REASONS = {"stop": "stop", "length": "length", "repetition": "stop"}


class VllmBackend:
    """A Backend on the local engine. ``start`` it, and ``close`` it at the end."""

    kind = "vllm"
    bills_abandoned = False

    def __init__(self, model: str, provider: str, provider_model: str, options: EngineOptions) -> None:
        self.model = model
        self.provider = provider
        self.provider_model = provider_model
        self.quantized = is_quantized(options.folder)
        self.engine = EngineThread(model, options)
        self._options = options
        self._count = 0

    @property
    def work(self) -> WorkMeter:
        """How much of the time the engine had work; loading is none."""
        return self.engine.work

    def start(self) -> None:
        """Begin loading the model; ``unavailable_reason`` says how far it is."""
        self.engine.start()

    async def close(self) -> None:
        """Stop the engine; running generations fail."""
        await self.engine.close()

    def runs(self) -> bool:
        """True while the engine's thread is there: loading, idle or at work."""
        return self.engine.runs()

    async def ping(self) -> None:
        """Raises while the engine is starting, and when it died."""
        await self.engine.ping()

    def unavailable_reason(self) -> str:
        """Why the model is not served now; empty when it is."""
        return self.engine.reason

    async def generate(self, generation: Generation, meter: Meter) -> Answer:
        """The whole answer. The pieces are folded here, so that a cancelled one is charged what was made."""
        started = time.monotonic()
        first, deltas, finished = None, [], None
        async with aclosing(self.stream(generation, meter)) as events:
            async for event in events:
                if isinstance(event, Finished):
                    finished = event
                else:
                    first = first or time.monotonic() - started
                    deltas.append(event)
        assert finished is not None
        text = "".join(delta.text for delta in deltas)
        logprobs = tuple(item for delta in deltas for item in delta.logprobs)
        return Answer(Delta(text=text, logprobs=logprobs), finished, first)

    async def stream(self, generation: Generation, meter: Meter) -> AsyncGenerator[Event]:
        """Pieces as the engine makes them."""
        if self.engine.reason:
            raise TenthError(Code.UNAVAILABLE, Reason.MODEL_UNAVAILABLE, f"{self.model}: {self.engine.reason}")
        ids = await self._prompt_ids(generation)
        wanted = generation.sampling.max_output_tokens or self._options.context_window
        room = room_for_output(self.model, self._options.context_window, len(ids), wanted)
        self._count += 1
        job = Job(
            id=f"{generation.request_id}/{generation.attempt}#{self._count}",
            prompt_ids=ids,
            params=self._params(generation, room),
            cache_salt=generation.tenant_id,
            traceparent=generation.traceparent,
            outputs=asyncio.Queue(),
        )
        self.engine.add(job)
        output_count, finished = 0, False
        try:
            while not finished:
                output = await job.outputs.get()
                if isinstance(output, BaseException):
                    finished = True
                    raise self._typed(output) from output
                part = output.outputs[0]
                output_count += len(part.token_ids)
                finished = output.finished
                meter.reached = True
                usage = Usage(input=len(ids), cached=output.num_cached_tokens or 0, output=output_count)
                meter.reported = usage
                if part.text or part.logprobs:
                    yield Delta(text=part.text, logprobs=_logprobs(part, generation.sampling.top_logprobs))
                if finished:
                    reason = _FINISH_REASONS.get(part.finish_reason)
                    if reason is None:
                        raise self._typed(RuntimeError(f"the engine ended with {part.finish_reason!r}"))
                    yield Finished(reason, usage)
        finally:
            self.engine.remove(job, finished=finished)

    async def _prompt_ids(self, generation: Generation) -> list[int]:
        loaded = self.engine.loaded
        assert loaded is not None
        length = sum(len(message.text) for message in generation.messages)
        if length > self._options.context_window * loaded.longest_token:
            raise prompt_too_long(self.model, self._options.context_window)  # Certain without tokenizing megabytes.
        messages = [{"role": message.role, "content": message.text} for message in generation.messages]
        if length > _THREAD_TEXT:
            return await asyncio.to_thread(loaded.tokenize, messages)
        return loaded.tokenize(messages)

    def _params(self, generation: Generation, max_tokens: int) -> Any:
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

        sampling = generation.sampling
        defaults = self.engine.loaded.defaults if self.engine.loaded is not None else {}
        given: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "frequency_penalty": sampling.frequency_penalty,
            "presence_penalty": sampling.presence_penalty,
            "logprobs": sampling.top_logprobs or None,
        }
        if generation.response is not ResponseKind.TEXT:
            schema = generation.schema if generation.response is ResponseKind.JSON_SCHEMA else None
            given["structured_outputs"] = (
                StructuredOutputsParams(json_object=True) if schema is None else StructuredOutputsParams(json=schema)
            )
        try:
            return SamplingParams(
                **{**defaults, **{key: value for key, value in given.items() if value is not None}},
                max_tokens=max_tokens,
                stop=list(sampling.stop) or None,
                output_kind=RequestOutputKind.DELTA,
            )
        except _refusals() as error:
            raise invalid_argument(str(error), field="generation.sampling") from error

    def _typed(self, error: BaseException) -> TenthError:
        if isinstance(error, TenthError):
            return error
        if isinstance(error, _refusals()):
            # The engine refuses at admission what it cannot do; of all we pass on only a schema can still be that.
            return unsupported(f"{self.model}: {error}", "generation.response_format.json_schema")
        log.error("%s: the engine failed", self.model, exc_info=error)
        return TenthError(Code.INTERNAL, Reason.ENGINE_FAILED, "the local engine failed; the service's log has it")


def _refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises when a request is at fault and the engine is not."""
    from vllm.exceptions import VLLMClientError

    return (ValueError, VLLMClientError)


def _logprobs(part: Any, wanted: int) -> tuple[TokenLogprob, ...]:
    if not wanted or not part.logprobs:
        return ()
    result = []
    for token_id, position in zip(part.token_ids, part.logprobs, strict=False):
        best = sorted(position.values(), key=lambda item: item.rank)[:wanted]
        result.append(
            TokenLogprob(
                token=position[token_id].decoded_token or "",
                logprob=position[token_id].logprob,
                alternatives=tuple((item.decoded_token or "", item.logprob) for item in best),
            )
        )
    return tuple(result)
