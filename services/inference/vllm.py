"""The Backend of the local engine: requests and outputs, ours into vLLM's and back.

The engine itself is stepped by a thread of its own, in this process (``vllm_thread.py``), or has a process of its own
(``vllm_async.py``).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Protocol

from mesh import deadlines
from mesh.errors import Code, TenthError, invalid_argument, unavailable
from mesh.errors import Reason as MeshReason
from services.inference.admission import Admission, QueueLimits, Speed, Ticket
from services.inference.backend import Answer
from services.inference.errors import Reason, prompt_too_long, unsupported
from services.inference.policy import (
    PROMPT_LOGPROBS_FIELD,
    Delta,
    Event,
    Finished,
    Generation,
    Meter,
    PromptToken,
    ResponseKind,
    TokenLogprob,
    room_for_output,
)
from services.inference.schema_cost import MOST_REPEATS, repeats
from services.inference.tool_calls import TOOLS_FIELD, ToolAnswer, chat_messages
from services.inference.usage import Usage
from services.inference.vllm_async import AsyncEngine
from services.inference.vllm_engine import EngineCounts, EngineFailedError, Job, Signals, Totals, Unserved
from services.inference.vllm_load import EngineOptions, Loaded, is_quantized
from services.inference.vllm_thread import EngineThread
from services.inference.vllm_watch import Watched, watch
from services.inference.work import WorkMeter

log = logging.getLogger("tenth.inference.vllm")

_THREAD_TEXT = 20_000
"""Characters from which tokenizing is worth a thread: below, it takes under a few milliseconds."""
_ANSWER_SHARE, _ANSWER_SECONDS = 0.1, 0.5
"""Kept back of a deadline, so that the refusal still reaches the caller: a share of what is left, but no more."""
_INTERACTIVE, _BATCH = 0, 10
"""Priorities as vLLM has them: the lower goes first, and the higher is preempted when the KV cache is full."""
_FINISH_REASONS = {"stop": "stop", "length": "length", "repetition": "stop"}


class LocalEngine(Watched, Protocol):
    """What runs the model; its methods are called in the event loop."""

    work: WorkMeter
    """How much of the time it had work; loading is none."""
    speed: Speed
    counts: EngineCounts
    totals: Totals
    hung: bool
    """True when only the end of this process helps."""
    reload_seconds: float
    """What a caller is told to wait for a model that is loaded again."""
    loaded: Loaded | None

    @property
    def unserved(self) -> Unserved | None:
        """Why the model is not served now; None when it is."""
        ...

    def start(self) -> None:
        """Begin loading the model; ``unserved`` says how far it is."""
        ...

    async def close(self) -> None:
        """Stop the engine; running generations fail."""
        ...

    def runs(self) -> bool:
        """True while the engine is there: loading, idle or at work."""
        ...

    def add(self, job: Job) -> bool:
        """Have a sequence made; it must be ended with ``remove``. False: the engine has gone meanwhile."""
        ...

    def remove(self, job: Job, *, finished: bool) -> None:
        """Forget a sequence; one that has not finished is aborted and its KV space freed."""
        ...

    def jobs(self) -> list[Job]:
        """The sequences that have not ended."""
        ...

    def refuse(self, unserved: Unserved) -> None:
        """Take no more sequences, and do not start the engine again; those that run go on."""
        ...


class VllmBackend:
    """A Backend on the local engine. ``start`` it, and ``close`` it at the end."""

    kind = "vllm"
    bills_abandoned = False

    def __init__(
        self, model: str, provider: str, provider_model: str, options: EngineOptions, signals: Signals | None = None
    ) -> None:
        self.model = model
        self.provider = provider
        self.provider_model = provider_model
        self.quantized = is_quantized(options.folder) or bool(options.quantization)
        kind = AsyncEngine if options.engine == "async" else EngineThread
        self.engine: LocalEngine = kind(model, options, signals)
        self._limits = options.limits or QueueLimits(options.max_running)
        self.admission = Admission(model, self._limits, self.engine.speed)
        self._options = options
        self._watch: asyncio.Task[None] | None = None
        self._count = 0

    @property
    def work(self) -> WorkMeter:
        """How much of the time the engine had work; loading is none."""
        return self.engine.work

    def start(self) -> None:
        """Begin loading the model; ``unavailable_reason`` says how far it is."""
        self.engine.start()
        self._watch = asyncio.create_task(watch(self.engine, self._options.step_seconds, time.monotonic))

    async def close(self) -> None:
        """Stop the engine; running generations fail."""
        if self._watch is not None:
            self._watch.cancel()
        await self.engine.close()

    def drain(self, notice_seconds: float) -> None:
        """This process is about to end: take nothing more, hand back at once what has not begun, and what still runs
        after ``notice_seconds``. All of it fails as DRAINING, with what it has made.
        """
        self.engine.refuse(Unserved(MeshReason.DRAINING, "this replica is shutting down"))
        handed_back = self._hand_back(begun=False)
        log.info("%s: %d waiting sequences handed back, others get %g s", self.model, handed_back, notice_seconds)
        asyncio.get_running_loop().call_later(notice_seconds, self._hand_back)

    def _hand_back(self, *, begun: bool = True) -> int:
        """``begun`` False: only those that wait."""
        jobs = [job for job in self.engine.jobs() if begun or not job.begun]
        for job in jobs:
            job.outputs.put_nowait(
                unavailable(f"{self.model}: this replica is shutting down", reason=MeshReason.DRAINING)
            )
        return len(jobs)

    def runs(self) -> bool:
        """True while the engine is there: loading, idle or at work."""
        return self.engine.runs()

    async def ping(self) -> None:
        """Raises while the engine is starting, and when it is down. An engine that can never start here (no vLLM, no
        model folder) does not count: the other providers are served without it.
        """
        unserved = self.engine.unserved
        if unserved is not None and unserved.unready:
            raise self._refusal(unserved)

    def unavailable_reason(self) -> str:
        """Why the model is not served now; empty when it is."""
        unserved = self.engine.unserved
        return "" if unserved is None else unserved.message

    def unavailable_error(self) -> TenthError | None:
        """The same as an error with its reason; None when it is served."""
        unserved = self.engine.unserved
        return None if unserved is None else self._refusal(unserved)

    def _gone(self) -> TenthError:
        """Said when the engine went, and came, between two looks at it."""
        return TenthError(
            Code.UNAVAILABLE,
            Reason.ENGINE_RESTARTING,
            f"{self.model}: the engine is starting again",
            retry_after_seconds=self.engine.reload_seconds,
        )

    def _refusal(self, unserved: Unserved) -> TenthError:
        return TenthError(
            Code.UNAVAILABLE,
            unserved.reason,
            f"{self.model}: {unserved.message}",
            retry_after_seconds=unserved.retry_after_seconds,
        )

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
        prompt = tuple(token for delta in deltas for token in delta.prompt)
        calls = tuple(call for delta in deltas for call in delta.tool_calls)
        return Answer(Delta(text=text, tool_calls=calls, logprobs=logprobs, prompt=prompt), finished, first)

    async def stream(self, generation: Generation, meter: Meter) -> AsyncGenerator[Event]:
        """Pieces as the engine makes them.

        Raises, before anything is spent: PROMPT_TOO_LONG, QUEUE_FULL, QUEUE_DEADLINE, and why the model is not served.
        Raises ENGINE_FAILED and DRAINING at any time; the meter has what was made.
        """
        loaded = self.engine.loaded
        if loaded is None or self.engine.unserved is not None:
            raise self.unavailable_error() or self._gone()
        tools = loaded.tools.answer(generation)
        ids = await self._prompt_ids(generation, loaded, tools)
        wanted = generation.sampling.max_output_tokens or self._options.context_window
        room = room_for_output(self.model, self._options.context_window, len(ids), wanted)
        params = self._params(generation, room, loaded.defaults, tools)
        self.admission.kv_tokens = loaded.kv_tokens
        ticket = self.admission.admit(len(ids), room, batch=generation.batch)
        self._count += 1
        job = Job(
            id=f"{generation.request_id}/{generation.attempt}#{self._count}",
            prompt_ids=ids,
            params=params,
            cache_salt=generation.tenant_id,
            adapter=generation.adapter,
            traceparent=generation.traceparent,
            outputs=asyncio.Queue(),
            priority=_BATCH if generation.batch else _INTERACTIVE,
        )
        finished = False
        try:
            if not self.engine.add(job):
                raise self.unavailable_error() or self._gone()
            while not finished:
                output = await (job.outputs.get() if job.begun else self._first(job))
                if isinstance(output, BaseException):
                    raise self._typed(output, generation, tools) from output
                part = output.outputs[0]
                cached = output.num_cached_tokens or 0
                if not job.begun:
                    job.begun = ticket.begun = True
                    self.engine.totals.prompt_tokens += len(ids)
                    self.engine.totals.cached_tokens += cached
                ticket.made += len(part.token_ids)
                finished = output.finished
                meter.reached = True
                usage = Usage(input=len(ids), cached=cached, output=ticket.made)
                meter.reported = usage
                prompt = self._prompt_tokens(generation, loaded, output.prompt_logprobs, ids)
                text = part.text if tools is None else tools.take(part.text)
                if text or part.logprobs or prompt:
                    yield Delta(text=text, logprobs=_logprobs(part, generation.sampling.top_logprobs), prompt=prompt)
                if finished:
                    reason = _FINISH_REASONS.get(part.finish_reason, "")
                    if not reason:
                        error = RuntimeError(f"the engine ended with {part.finish_reason!r}")
                        raise self._typed(error, generation, tools)
                    if tools is not None:
                        rest, reason = await asyncio.to_thread(tools.end, reason)
                        if rest != Delta():
                            yield rest
                    yield Finished(reason, usage)
        finally:
            self.admission.leave(ticket)
            self.engine.remove(job, finished=finished)
            self._count_unread(job, ticket, meter, len(ids))

    async def _first(self, job: Job) -> Any:
        """The first output, while there is time to wait for it."""
        left = deadlines.remaining()
        seconds = self._limits.queue_seconds
        useful = seconds if left is None else max(left - min(left * _ANSWER_SHARE, _ANSWER_SECONDS), 0.0)
        late = useful < seconds
        seconds = min(useful, seconds)
        try:
            async with asyncio.timeout(seconds):
                return await job.outputs.get()
        except TimeoutError:
            raise (self.admission.too_late() if late else self.admission.waited_out(seconds)) from None

    def _count_unread(self, job: Job, ticket: Ticket, meter: Meter, prompt_tokens: int) -> None:
        """Count what the engine made ahead of a caller who left."""
        unread = 0
        while not job.outputs.empty():
            left = job.outputs.get_nowait()
            unread += 0 if isinstance(left, BaseException) else len(left.outputs[0].token_ids)
        if unread:
            ticket.made += unread
            cached = 0 if meter.reported is None else meter.reported.cached
            meter.reached, meter.reported = True, Usage(input=prompt_tokens, cached=cached, output=ticket.made)

    async def _prompt_ids(self, generation: Generation, loaded: Loaded, answer: ToolAnswer | None) -> list[int]:
        length = sum(len(message.text) for message in generation.messages)
        if length > self._options.context_window * loaded.longest_token:
            raise prompt_too_long(self.model, self._options.context_window)  # Certain without tokenizing megabytes.
        if generation.prompt_logprobs:
            plain: list[int] = (await asyncio.to_thread(self._encode_plain, generation, loaded))["input_ids"]
            return plain
        messages, tools = chat_messages(generation.messages), None if answer is None else answer.tools
        length += sum(len(call.arguments) for message in generation.messages for call in message.tool_calls)
        try:
            if length > _THREAD_TEXT or len(str(tools)) > _THREAD_TEXT:
                return await asyncio.to_thread(loaded.tokenize, messages, tools)
            return loaded.tokenize(messages, tools)
        except _template_error() as error:
            raise unsupported(f"{self.model}: its chat template: {error}", "generation.messages") from error

    def _encode_plain(self, generation: Generation, loaded: Loaded) -> Any:
        """The one message's text as it stands, with each token's place in it."""
        if not loaded.tokenizer.is_fast:
            raise unsupported(f"{self.model}: its tokenizer does not tell places in the text", PROMPT_LOGPROBS_FIELD)
        text = generation.messages[0].text
        return loaded.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)

    def _prompt_tokens(
        self, generation: Generation, loaded: Loaded, told: Any, ids: list[int]
    ) -> tuple[PromptToken, ...]:
        if not generation.prompt_logprobs or not told:
            return ()
        places = self._encode_plain(generation, loaded)["offset_mapping"]
        return tuple(
            PromptToken(start, end, None if found is None else min(found[token_id].logprob, 0.0))
            for (start, end), found, token_id in zip(places, told, ids, strict=True)
        )

    def _params(
        self, generation: Generation, max_tokens: int, defaults: Mapping[str, Any], tools: ToolAnswer | None
    ) -> Any:
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

        sampling = generation.sampling
        given: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed,
            "frequency_penalty": sampling.frequency_penalty,
            "presence_penalty": sampling.presence_penalty,
            "logprobs": sampling.top_logprobs or None,
            "prompt_logprobs": 0 if generation.prompt_logprobs else None,
        }
        if tools is not None:
            given.update(tools.parameters)
        elif generation.response is not ResponseKind.TEXT:
            schema = generation.schema if generation.response is ResponseKind.JSON_SCHEMA else None
            if schema is not None and repeats(schema) > MOST_REPEATS:
                said = f"{self.model}: the schema's patterns repeat more than {MOST_REPEATS} times"
                raise unsupported(said, "generation.response_format.json_schema")
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

    def _typed(self, error: BaseException, generation: Generation, tools: ToolAnswer | None) -> TenthError:
        if isinstance(error, TenthError):
            return error
        if isinstance(error, EngineFailedError):
            message = f"{self.model}: the engine failed while it worked on this; the service's log has it"
            return unavailable(message, reason=Reason.ENGINE_FAILED)
        if isinstance(error, _refusals()) and tools is None and generation.response is ResponseKind.TEXT:
            return invalid_argument(f"{self.model}: {error}", field="generation")
        if isinstance(error, _refusals()):
            field = "generation.response_format.json_schema" if tools is None else TOOLS_FIELD
            return unsupported(f"{self.model}: {error}", field)
        log.error("%s: the engine failed", self.model, exc_info=error)
        return TenthError(Code.INTERNAL, Reason.ENGINE_FAILED, "the local engine failed; the service's log has it")


def _refusals() -> tuple[type[Exception], ...]:
    """What vLLM raises when a request is at fault and the engine is not."""
    from vllm.exceptions import VLLMClientError

    return (ValueError, VLLMClientError)


def _template_error() -> type[Exception]:
    """What a chat template raises, for instance where it has no place for a tool's result."""
    from jinja2 import TemplateError

    return TemplateError


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
