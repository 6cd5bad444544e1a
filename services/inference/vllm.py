"""vLLM's V1 engine in this process, stepped by one thread of its own.

The event loop hands requests to that thread through a queue and gets outputs back through ``call_soon_threadsafe``,
one callback per engine step for all sequences together. The engine is touched by its thread alone. vLLM (and torch
with it) is imported in that thread and nowhere else, so the service starts serving other providers at once, and
starts at all where vLLM cannot be installed.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import queue
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mesh.errors import Code, TenthError, invalid_argument
from services.inference.backend import Answer
from services.inference.errors import Reason, prompt_too_long, unsupported
from services.inference.hardware import Hardware
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
from services.inference.quantization import Recovery, admit, check_engine
from services.inference.usage import Usage
from services.inference.work import WorkMeter

log = logging.getLogger("tenth.inference.vllm")

_THREAD_TEXT = 20_000
"""Characters from which tokenizing is worth a thread: below, it takes under a few milliseconds."""
_FINISH_REASONS = {"stop": "stop", "length": "length", "repetition": "stop"}
_MISSING = (
    "vLLM is not installed here; serve this model from a machine that has it and point the catalogue's provider at its "
    "OpenAI-compatible URL (backend: openai, base_url: http://HOST:8000/v1)"
)


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engine is set up; see the settings of the same names. ``otlp_endpoint`` empty: vLLM makes no spans.

    ``arguments`` are vLLM's own (EngineArgs), as `engine_plan.py` or a setting chose them; ``hardware`` None: unknown.
    """

    folder: Path
    context_window: int
    threads: int
    kv_cache_bytes: int
    max_running: int
    compile: bool = False
    otlp_endpoint: str = ""
    quantization: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    recovery: Recovery = field(default_factory=Recovery)
    hardware: Hardware | None = None


@dataclass(slots=True)
class _Job:
    """One sequence: what the engine thread needs, and where its outputs go."""

    id: str
    prompt_ids: list[int]
    params: Any
    cache_salt: str
    traceparent: str
    outputs: asyncio.Queue[Any]


class VllmBackend:
    """A Backend on the local engine. ``start`` it, and ``close`` it at the end."""

    kind = "vllm"
    bills_abandoned = False

    def __init__(self, model: str, provider: str, provider_model: str, options: EngineOptions) -> None:
        self.model = model
        self.provider = provider
        self.provider_model = provider_model
        self.quantized = is_quantized(options.folder) or bool(options.quantization)
        self.work = WorkMeter(time.monotonic_ns)
        """How much of the time the engine had work; loading is none."""
        self._options = options
        self._commands: queue.SimpleQueue[Callable[[Any], None] | None] = queue.SimpleQueue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._reason = "the engine has not been started"
        self._refusal: str = Reason.MODEL_UNAVAILABLE
        self._engine: Any = None
        self._tokenizer: Any = None
        self._longest_token = 1
        self._defaults: dict[str, Any] = {}
        self._jobs: dict[str, _Job] = {}
        self._count = 0

    def start(self) -> None:
        """Begin loading the model; ``unavailable_reason`` says how far it is."""
        if not (self._options.folder / "config.json").is_file():
            self._reason = (
                f"there is no model folder {self._options.folder}; `make models` builds the shipped ones, "
                "`python -m models.build ORG/NAME` fetches one from the hub"
            )
            log.error("%s: %s", self.model, self._reason)
            return
        self._reason = "the engine is starting"
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._run, name="vllm-engine", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Stop the engine; running generations fail."""
        self._commands.put(None)
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, 10)

    def runs(self) -> bool:
        """True while the engine's thread is there: loading, idle or at work."""
        return self._thread is not None and self._thread.is_alive()

    async def ping(self) -> None:
        """Raises while the engine is starting, and when it died. An engine that can never start here (no vLLM, a model
        that is refused) does not count: the other providers are served without it.
        """
        never = self._reason == _MISSING or self._refusal != Reason.MODEL_UNAVAILABLE
        if self._thread is not None and self._reason and not never:
            raise TenthError(Code.UNAVAILABLE, Reason.MODEL_UNAVAILABLE, self._reason)

    def unavailable_reason(self) -> str:
        """Why the model is not served now; empty when it is."""
        return self._reason

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
        if self._reason:
            raise TenthError(Code.UNAVAILABLE, self._refusal, f"{self.model}: {self._reason}")
        ids = await self._prompt_ids(generation)
        wanted = generation.sampling.max_output_tokens or self._options.context_window
        room = room_for_output(self.model, self._options.context_window, len(ids), wanted)
        self._count += 1
        job = _Job(
            id=f"{generation.request_id}/{generation.attempt}#{self._count}",
            prompt_ids=ids,
            params=self._params(generation, room),
            cache_salt=generation.tenant_id,
            traceparent=generation.traceparent,
            outputs=asyncio.Queue(),
        )
        self._jobs[job.id] = job
        self._commands.put(lambda engine: self._add(engine, job))
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
            del self._jobs[job.id]
            if not finished:
                self._commands.put(lambda engine: engine.abort_request([job.id]))

    async def _prompt_ids(self, generation: Generation) -> list[int]:
        length = sum(len(message.text) for message in generation.messages)
        if length > self._options.context_window * self._longest_token:
            raise prompt_too_long(self.model, self._options.context_window)  # Certain without tokenizing megabytes.
        messages = [{"role": message.role, "content": message.text} for message in generation.messages]
        if length > _THREAD_TEXT:
            return await asyncio.to_thread(self._tokenize, messages)
        return self._tokenize(messages)

    def _tokenize(self, messages: list[dict[str, str]]) -> list[int]:
        text = self._tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids

    def _params(self, generation: Generation, max_tokens: int) -> Any:
        from vllm.sampling_params import RequestOutputKind, SamplingParams, StructuredOutputsParams

        sampling = generation.sampling
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
                **{**self._defaults, **{key: value for key, value in given.items() if value is not None}},
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

    # What follows runs in the engine's thread.

    def _run(self) -> None:
        try:
            engine = self._load()
        except ImportError as error:
            self._reason = _MISSING
            log.warning("%s is not served: %s (%s)", self.model, _MISSING, error)
            return
        except TenthError as error:
            self._reason, self._refusal = error.message, error.reason
            log.error("%s is not served: %s", self.model, error.message)
            return
        except Exception:
            self._reason = "the engine did not start; the log has it"
            log.exception("%s is not served", self.model)
            return
        self._engine, self._reason = engine, ""
        try:
            while self._step(engine):
                pass
        except Exception as error:
            self._reason = "the engine died; the log has it"
            log.exception("%s is not served any more", self.model)
            self._hand_over([(job, error) for job in list(self._jobs.values())])
        finally:
            self.work.working(False)

    def _load(self) -> Any:
        options = self._options
        started = time.monotonic()
        scheme = admit(options.folder, options.recovery, options.hardware)
        with _engine_environment(options):
            from vllm import EngineArgs, SamplingParams
            from vllm.v1.engine.llm_engine import LLMEngine

            imported = time.monotonic()
            on_cpu = not _has_cuda()
            arguments: dict[str, Any] = {"dtype": _cpu_dtype()} if on_cpu else {}
            # Without it a small model spends its whole answer on the white space that a schema allows.
            arguments["structured_outputs_config"] = {"backend": "xgrammar", "disable_any_whitespace": True}
            if on_cpu:
                arguments["kv_cache_memory_bytes"] = options.kv_cache_bytes
            arguments.update(options.arguments)
            engine = LLMEngine.from_engine_args(
                EngineArgs(
                    model=str(options.folder),
                    max_model_len=options.context_window,
                    max_num_seqs=options.max_running,
                    quantization=options.quantization or None,
                    enable_prefix_caching=True,
                    enforce_eager=not options.compile,
                    otlp_traces_endpoint=options.otlp_endpoint or None,
                    disable_log_stats=not options.otlp_endpoint,  # Its spans are made of its statistics.
                    **arguments,
                )
            )
            check_engine(self.model, options.quantization or scheme, engine)
            # A tokenizer of our own: the engine's is busy in the engine's thread, and it is not safe to share.
            from transformers import AutoTokenizer

            self._tokenizer = AutoTokenizer.from_pretrained(options.folder, local_files_only=True)
            self._longest_token = max(len(token) for token in self._tokenizer.get_vocab())
            self._defaults = dict(engine.model_config.get_diff_sampling_param())
            loaded = time.monotonic()
            # Ready means that it has really answered.
            ids = self._tokenize([{"role": "user", "content": "Hello"}])
            engine.add_request("warm-up", _prompt(ids, ""), SamplingParams(max_tokens=2))
            while engine.has_unfinished_requests():
                engine.step()
        log.info(
            "%s ready: import %.1f s, load %.1f s, first answer %.1f s, %s, %d threads",
            self.model,
            imported - started,
            loaded - imported,
            time.monotonic() - loaded,
            engine.model_config.dtype,
            options.threads,
        )
        return engine

    def _step(self, engine: Any) -> bool:
        """Take the waiting commands and make one step. False: stop."""
        block = not engine.has_unfinished_requests()
        self.work.working(not block)
        while True:
            try:
                command = self._commands.get(block)
            except queue.Empty:
                break
            if command is None:
                return False
            command(engine)
            block = False
        if not engine.has_unfinished_requests():
            return True
        self.work.working(True)
        made = engine.step()
        self.work.made(sum(len(part.token_ids) for output in made for part in output.outputs))
        outputs = [(self._jobs.get(output.request_id), output) for output in made]
        self._hand_over([(job, output) for job, output in outputs if job is not None])
        return True

    def _add(self, engine: Any, job: _Job) -> None:
        headers = {"traceparent": job.traceparent} if job.traceparent else None
        try:
            engine.add_request(job.id, _prompt(job.prompt_ids, job.cache_salt), job.params, trace_headers=headers)
        except Exception as error:
            # Refused at admission: that sequence's problem alone, the engine goes on.
            self._hand_over([(job, error)])

    def _hand_over(self, outputs: list[tuple[_Job, Any]]) -> None:
        def deliver() -> None:
            for job, output in outputs:
                job.outputs.put_nowait(output)

        if outputs and self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(deliver)


def is_quantized(folder: Path) -> bool:
    """True when a model folder holds quantized weights, by its own configuration."""
    try:
        return "quantization_config" in json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        return False


def _prompt(ids: list[int], cache_salt: str) -> Any:
    from vllm.inputs.engine import tokens_input

    # The salt keeps prefix-cache timing from telling one tenant about another's prompts.
    return tokens_input(ids, cache_salt=cache_salt or None)


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


def _has_cuda() -> bool:
    import torch

    return bool(torch.cuda.is_available())


def _cpu_dtype() -> str:
    """bfloat16 where the CPU multiplies it (AVX-512, AMX, ARM), else float32: emulated it is 10-50 times slower."""
    import torch

    capability = torch.backends.cpu.get_cpu_capability()
    return "float32" if capability in ("DEFAULT", "NO AVX", "AVX2") else "bfloat16"


@contextmanager
def _engine_environment(options: EngineOptions) -> Iterator[None]:
    """vLLM reads the environment at import and while it starts; nothing of it is meant for anybody else."""
    variables = {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # The engine core runs in this very thread.
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": str(options.threads),
        # Threads that wait by spinning take the cores that their own neighbours (and other services) need: measured
        # beside a busy machine, 1.4 tokens/s with it against 10 without.
        "OMP_WAIT_POLICY": "PASSIVE",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # Cores are shared with the other services.
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "0",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "ERROR"),
        "OTEL_SERVICE_NAME": "vllm",  # Its spans are made by a tracer provider of its own.
        "OTEL_RESOURCE_ATTRIBUTES": "service.namespace=tenth",
        "OTEL_BSP_SCHEDULE_DELAY": "500",
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        # What vLLM still reads while it runs stays; the OpenTelemetry names would mislabel spans of ours.
        for name, value in before.items():
            if name.startswith("OTEL_"):
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
