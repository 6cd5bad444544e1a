"""Loads a model into vLLM's V1 engine: in the thread that will step it, or into a process of its own.

vLLM (and torch with it) is imported here and nowhere else, and only when an engine is asked for: the service starts
serving other providers at once, and starts at all where vLLM cannot be installed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mesh.errors import Code, TenthError
from mesh.process import give_back_memory
from services.inference.adapters import Adapter, engine_rank
from services.inference.admission import QueueLimits
from services.inference.engine_environment import SPIN_COUNT, engine_environment
from services.inference.engine_plan import unsupported
from services.inference.errors import Reason
from services.inference.folder_checks import (
    Folder,
    available_bytes,
    check_memory,
    check_scheme,
    read_folder,
    scheme_of,
)
from services.inference.hardware import Hardware
from services.inference.model_folder import FolderError, Scheme, declared_scheme, read_config
from services.inference.quantization import Layers, Recovery, admit, check_engine, check_layers
from services.inference.restarts import RestartPolicy
from services.inference.tool_calls import ToolFormat, open_tool_format

log = logging.getLogger("tenth.inference.vllm")

_ENGINE_BYTES = {"thread": 500 * 2**20, "async": 900 * 2**20}
"""What an engine takes beside weights and KV cache once vLLM is imported here (measured with the shipped model: 450 MiB
in this process, 790 MiB in a process of its own, which imports vLLM again)."""
_WORKER = "services.inference.vllm_worker.WorkerReport"
_WARM_UP = [{"role": "user", "content": "Hello"}]

Stepped = Callable[[tuple[int, int, float] | None, int], None]
"""Takes what runs and waits and the share of the KV cache in use (None: vLLM did not say), and the tokens made."""


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engine is set up; see the settings of the same names. ``otlp_endpoint`` empty: vLLM makes no spans."""

    folder: Path
    context_window: int
    threads: int
    kv_cache_bytes: int
    max_running: int
    compile: bool = False
    otlp_endpoint: str = ""
    step_seconds: float = 60.0
    """Longest that a step of the engine may take before it counts as hung."""
    restart: RestartPolicy = field(default_factory=RestartPolicy)
    limits: QueueLimits | None = None
    """None: the default bounds for ``max_running``."""
    spin_count: int = SPIN_COUNT
    """Rounds that a waiting OpenMP thread spins before it sleeps."""
    adapters: tuple[Adapter, ...] = ()
    """LoRA adapters that requests may have put on; all are kept in memory."""
    quantization: str = ""
    """vLLM's online quantization of unquantized weights; empty: none."""
    arguments: Mapping[str, Any] = field(default_factory=dict)
    """vLLM's own (EngineArgs), as `engine_plan.py` or a setting chose them."""
    recovery: Recovery = field(default_factory=Recovery)
    hardware: Hardware | None = None
    """None: unknown."""
    tool_format: str = ""
    """The name of vLLM's parser of the model's tool calls; empty: it calls none."""
    engine: Literal["thread", "async"] = "thread"
    """Stepped by a thread of this process, or AsyncLLM with its core in a process of its own."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """An engine that has answered once, and what else is read from the model's folder."""

    engine: Any
    """vLLM's LLMEngine, touched by its thread alone; or its AsyncLLM."""
    tokenizer: Any
    """One of our own: the engine's is busy in the engine's thread, and it is not safe to share."""
    longest_token: int
    """Characters of the vocabulary's longest token."""
    defaults: Mapping[str, Any]
    """Sampling parameters that the model's folder recommends."""
    tools: ToolFormat = field(default_factory=ToolFormat)

    def tokenize(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> list[int]:
        """The prompt's tokens, by the model's own chat template."""
        text = self.tokenizer.apply_chat_template(messages, tools=tools, add_generation_prompt=True, tokenize=False)
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False)
        return ids

    @property
    def kv_tokens(self) -> int:
        """Tokens that the KV cache holds."""
        cache = self.engine.vllm_config.cache_config
        return int((cache.num_gpu_blocks - 1) * cache.block_size)  # One block is vLLM's own.

    def counts(self) -> tuple[int, int, float]:
        """Sequences that run and wait, and the share of the KV cache in use. In the engine's thread only."""
        scheduler = self.engine.engine_core.engine_core.scheduler
        running, waiting = scheduler.get_request_counts()
        return running, waiting, scheduler.get_kv_cache_usage()


def load(model: str, options: EngineOptions) -> Loaded:
    """An engine that is ready: it has really answered.

    Raises ImportError without vLLM, TenthError for what a person must change, and what else vLLM raises.
    """
    started = time.monotonic()
    folder, scheme = _admitted(options)
    with _engine_environment(options):
        from vllm import EngineArgs, SamplingParams
        from vllm.v1.engine.llm_engine import LLMEngine

        imported = time.monotonic()
        engine = LLMEngine.from_engine_args(EngineArgs(**_arguments(options, folder)))
        check_engine(model, options.quantization or scheme, engine)
        for each in options.adapters:
            try:
                engine.add_lora(lora_of(options.adapters, each.name))
            except Exception as error:
                raise _unusable(each, error) from error
        loaded = _loaded(engine, options)
        built = time.monotonic()
        ids = loaded.tokenize(_WARM_UP)
        engine.add_request("warm-up", prompt_of(ids, ""), SamplingParams(max_tokens=2))
        while engine.has_unfinished_requests():
            engine.step()
    give_back_memory()
    _log_ready(model, options, engine, (started, imported, built))
    return loaded


async def load_async(model: str, options: EngineOptions, stepped: Stepped) -> Loaded:
    """The same with an AsyncLLM, whose core is a process of its own; ``stepped`` is called in the event loop with the
    figures of every step of it. Raises as ``load`` does; no process is left then.
    """
    started = time.monotonic()
    built_engine: list[tuple[Loaded, str, float]] = []
    await asyncio.to_thread(_build_async, options, stepped, built_engine.append)
    loaded, scheme, imported = built_engine.pop()
    try:
        from vllm import SamplingParams

        engine, claimed = loaded.engine, options.quantization or scheme
        for found in await engine.collective_rpc("tenth_layers"):
            check_layers(model, claimed, Layers(*found))
        for each in options.adapters:
            try:
                await engine.add_lora(lora_of(options.adapters, each.name))
            except Exception as error:
                raise _unusable(each, error) from error
        await engine.collective_rpc("tenth_end_with", args=(os.getpid(),))
        built = time.monotonic()
        ids = await asyncio.to_thread(loaded.tokenize, _WARM_UP)
        async for _ in engine.generate(prompt_of(ids, ""), SamplingParams(max_tokens=2), "warm-up"):
            pass
    except BaseException:
        await asyncio.shield(asyncio.to_thread(release, loaded))
        raise
    _log_ready(model, options, engine, (started, imported, built))
    return loaded


def _build_async(
    options: EngineOptions, stepped: Stepped, hand_over: Callable[[tuple[Loaded, str, float]], None]
) -> None:
    """Blocks until the core's process is ready; the tasks of AsyncLLM begin with its first call in the event loop.

    Hands over the engine, its scheme, and when vLLM was imported. Something that vLLM imports keeps a frame of its
    set-up, and with it all that called it: nothing is returned, so that an engine which has failed can be collected.
    """
    folder, scheme = _admitted(options)
    with _engine_environment(options):
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM
        from vllm.v1.metrics.loggers import StatLoggerBase

        class Figures(StatLoggerBase):
            """Passes on what the scheduler tells after each step."""

            def __init__(self, vllm_config: Any, engine_index: int = 0) -> None:
                """Nothing is kept."""

            def record(self, scheduler_stats: Any, iteration_stats: Any, *_: Any, **__: Any) -> None:
                tokens = iteration_stats.num_generation_tokens if iteration_stats is not None else 0
                counts = None
                if scheduler_stats is not None:
                    waiting = scheduler_stats.num_waiting_reqs + scheduler_stats.num_skipped_waiting_reqs
                    counts = (scheduler_stats.num_running_reqs, waiting, scheduler_stats.kv_cache_usage)
                stepped(counts, tokens)

            def log_engine_initialized(self) -> None:
                """Nothing is kept."""

        imported = time.monotonic()
        arguments = {**_arguments(options, folder), "disable_log_stats": True, "worker_extension_cls": _WORKER}
        engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments), stat_loggers=[Figures])
    try:
        hand_over((_loaded(engine, options), scheme, imported))
    except BaseException:
        engine.shutdown()
        raise
    finally:
        del engine


def _admitted(options: EngineOptions) -> tuple[Folder, str]:
    """The folder, which is whole and may be served, and its scheme. Needs no vLLM."""
    folder = read_folder(options.folder)
    if options.hardware is not None:
        check_scheme(folder, on_cpu=not options.hardware.gpu)
        if options.quantization == "fp8" and (cannot := unsupported(options.hardware, Scheme.FP8)):
            said = f"TENTH_INFERENCE_QUANTIZATION=fp8: {cannot}"
            raise TenthError(Code.UNAVAILABLE, Reason.SCHEME_UNSUPPORTED, said)
    return folder, admit(options.folder, options.recovery, options.hardware)


def _arguments(options: EngineOptions, folder: Folder) -> dict[str, Any]:
    """EngineArgs of both kinds of engine. Raises TenthError where folder and machine do not fit."""
    on_cpu = not _has_cuda()
    arguments: dict[str, Any] = {"dtype": _cpu_dtype()} if on_cpu else {}
    # Without it a small model spends its whole answer on the white space that a schema allows.
    arguments["structured_outputs_config"] = {"backend": "xgrammar", "disable_any_whitespace": True}
    if on_cpu:
        arguments["kv_cache_memory_bytes"] = options.kv_cache_bytes
        growth = 2.0 if arguments["dtype"] == "float32" and not scheme_of(folder.config) else 1.0
        check_memory(folder, options.kv_cache_bytes, _ENGINE_BYTES[options.engine], growth, available_bytes())
    if options.adapters:
        # vLLM's CPU kernels take "no adapter" (-1) for the last place, so that a plain sequence in a batch with
        # others got that one's adapter: one place more, which stays empty, is what -1 then means.
        places = len(options.adapters) + (1 if on_cpu else 0)
        arguments.update(enable_lora=True, max_loras=places, max_lora_rank=engine_rank(options.adapters))
    return {
        "model": str(options.folder),
        "max_model_len": options.context_window,
        "max_num_seqs": options.max_running,
        "quantization": options.quantization or None,
        "enable_prefix_caching": True,
        "scheduling_policy": "priority",
        "enforce_eager": not options.compile,
        "otlp_traces_endpoint": options.otlp_endpoint or None,
        "disable_log_stats": not options.otlp_endpoint,  # Its spans are made of its statistics.
        **arguments,
        **options.arguments,
    }


def _loaded(engine: Any, options: EngineOptions) -> Loaded:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(options.folder, local_files_only=True)
    if not tokenizer.chat_template:
        text = f"{options.folder} has no chat template (chat_template.jinja); take an instruction-tuned model"
        raise TenthError(Code.UNAVAILABLE, Reason.MODEL_INCOMPLETE, text)
    longest = max(len(token) for token in tokenizer.get_vocab())
    defaults = dict(engine.model_config.get_diff_sampling_param())
    return Loaded(engine, tokenizer, longest, defaults, open_tool_format(options.tool_format, tokenizer))


def _log_ready(model: str, options: EngineOptions, engine: Any, times: tuple[float, float, float]) -> None:
    started, imported, built = times
    log.info(
        "%s ready: import %.1f s, load %.1f s, first answer %.1f s, %s, %d threads",
        model,
        imported - started,
        built - imported,
        time.monotonic() - built,
        engine.model_config.dtype,
        options.threads,
    )


def _unusable(adapter: Adapter, error: Exception) -> TenthError:
    """All adapters are loaded at the start: a bad one met within a step would end the engine for everybody."""
    said = f"the adapter {adapter.name!r} cannot be loaded ({error}): save it again, or take it off the catalogue"
    return TenthError(Code.UNAVAILABLE, Reason.ADAPTER_UNAVAILABLE, said)


def release(loaded: Loaded) -> None:
    """Give back the memory of an engine that is stopped or has failed, so that another can be loaded. Blocks."""
    engine = loaded.engine
    try:
        # AsyncLLM has tasks and sockets beside its core; LLMEngine has nothing else.
        (engine.shutdown if hasattr(engine, "output_handler") else engine.engine_core.shutdown)()
    except Exception:
        log.exception("the old engine could not be put away whole; its memory may stay taken")


def is_quantized(folder: Path) -> bool:
    """True when a model folder holds quantized weights, by its own configuration."""
    try:
        return declared_scheme(read_config(folder)) is not Scheme.NONE
    except FolderError:
        return False


def prompt_of(ids: list[int], cache_salt: str) -> Any:
    """Tokens as vLLM takes them. The salt keeps prefix-cache timing from telling one tenant about another's prompts."""
    from vllm.inputs.engine import tokens_input

    return tokens_input(ids, cache_salt=cache_salt or None)


def lora_of(adapters: tuple[Adapter, ...], name: str) -> Any:
    """The adapter as vLLM takes it; None for none."""
    if not name:
        return None
    from vllm.lora.request import LoRARequest

    found = next(adapter for adapter in adapters if adapter.name == name)
    return LoRARequest(found.name, found.number, str(found.folder.resolve()))


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
        **engine_environment(options.threads, options.spin_count),
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",  # gRPC's threads do not survive a fork.
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
