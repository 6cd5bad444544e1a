"""vLLM's AsyncLLM, its core in a process of its own, on the CPU: one engine for the whole module, killed twice."""

from __future__ import annotations

import asyncio
import gc
import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from mesh.errors import TenthError
from services.inference.adapters import AdaptedBackend, read_adapter
from services.inference.admission import QueueLimits
from services.inference.policy import Delta, Finished, Generation, Message, Meter, ResponseKind, Sampling
from services.inference.quantization import Layers, check_layers
from services.inference.restarts import RestartPolicy
from services.inference.vllm import VllmBackend
from services.inference.vllm_async import AsyncEngine
from services.inference.vllm_engine import EngineCounts
from services.inference.vllm_load import EngineOptions
from tests.integration.inference.span_collector import Collector

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.timeout(200),
    # vLLM and torch warn of their own deprecations while they are imported.
    pytest.mark.filterwarnings("ignore"),
]

MODELS = Path(os.environ.get("TENTH_MODELS_DIR", ".models"))
FOLDER = MODELS / "smollm2-135m-instruct"
RUNNING = 2
OPTIONS = EngineOptions(
    FOLDER,
    2048,
    threads=2,
    kv_cache_bytes=256 * 2**20,
    max_running=RUNNING,
    engine="async",
    step_seconds=15.0,
    restart=RestartPolicy(backoff_seconds=0.1),
    limits=QueueLimits(RUNNING, 8),
)
TRACE_ID, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


def write_adapter(folder: Path) -> Path:
    """An adapter that turns every query of the shipped model to nonsense: fixed numbers, no training."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 64, "target_modules": ["q_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "task_type": "CAUSAL_LM"}))
    numbers = torch.sin(torch.arange(4 * 576, dtype=torch.float32) * 0.37) / 8
    tensors = {}
    for layer in range(30):
        name = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{name}.lora_A.weight"] = numbers.reshape(4, 576).clone()
        tensors[f"{name}.lora_B.weight"] = numbers.reshape(576, 4).clone()
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


async def until(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        await asyncio.sleep(0.02)


def cores() -> list[psutil.Process]:
    """The core's process and what it has started."""
    started = [psutil.Process(child.pid) for child in multiprocessing.active_children()]
    return [*started, *(below for process in started for below in process.children(recursive=True))]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(
    collector: tuple[Collector, str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[VllmBackend]:
    adapter = read_adapter("waves", write_adapter(tmp_path_factory.mktemp("async") / "waves"), 1)
    options = replace(OPTIONS, otlp_endpoint=collector[1], adapters=(adapter,))
    result = VllmBackend("smollm2", "local", "folder", options)
    assert isinstance(result.engine, AsyncEngine)
    result.start()
    with pytest.raises(TenthError, match="starting"):
        await result.ping()
    await until(lambda: not result.unavailable_reason(), 180)
    await result.ping()
    assert result.engine.totals.output_tokens == 0, "what it warmed up with is nobody's"
    yield result
    await result.close()
    gc.collect()  # vLLM leaves its ZeroMQ contexts to it, which warn: here, and not in another module's test.


def generation(text: str, tokens: int = 12, **changes: Any) -> Generation:
    return Generation(
        **{
            "request_id": f"r{time.monotonic_ns()}",
            "attempt": 1,
            "model": "smollm2",
            "messages": (Message("user", (text,)),),
            "sampling": Sampling(temperature=0.0, max_output_tokens=tokens),
            "tenant_id": "acme",
            **changes,
        }
    )


def meter() -> Meter:
    return Meter(1, len)


async def test_a_stream_and_a_whole_answer_agree(backend: VllmBackend) -> None:
    used = meter()
    events = [event async for event in backend.stream(generation("What is the capital of France?"), used)]
    text = "".join(event.text for event in events if isinstance(event, Delta))
    finished = events[-1]
    assert isinstance(finished, Finished)
    assert "Paris" in text
    assert finished.finish_reason == "stop"
    assert used.usage() == finished.usage
    backend.work.take()
    whole = await backend.generate(generation("What is the capital of France?"), meter())
    assert whole.delta.text == text
    assert whole.finished.usage.output == finished.usage.output
    work = backend.work.take()
    assert work.output_tokens == finished.usage.output
    assert 0 < work.busy_share <= 1
    assert backend.engine.totals.output_tokens == 2 * finished.usage.output
    assert backend.engine.speed.tokens_per_second > 0
    assert backend.engine.loaded is not None
    assert backend.engine.loaded.kv_tokens > 2048


async def test_two_at_once_one_of_them_with_an_adapter(backend: VllmBackend) -> None:
    asked = "Name three colours."
    plain, other = await asyncio.gather(
        backend.generate(generation(asked), meter()),
        AdaptedBackend(backend, "waves").generate(generation(asked), meter()),
    )
    assert plain.delta.text
    assert plain.delta.text != other.delta.text, "the adapter was put on"
    assert plain.finished.usage.input == other.finished.usage.input
    assert (await backend.generate(generation(asked), meter())).delta.text == plain.delta.text


async def test_its_layers_are_counted_in_its_own_process(backend: VllmBackend) -> None:
    assert backend.engine.loaded is not None
    (found,) = await backend.engine.loaded.engine.collective_rpc("tenth_layers")
    assert found[0] == 0
    assert found[1] >= 120, "the shipped model's linear layers, not quantized"
    with pytest.raises(TenthError, match=f"quantized none of its {found[1]} layers"):
        check_layers("smollm2", "int8", Layers(*found))


async def test_leaving_frees_the_sequence_and_charges_what_was_made(backend: VllmBackend) -> None:
    used = meter()
    async with aclosing(backend.stream(generation("Tell me a long story.", 1500), used)) as stream:
        await anext(stream)
        await until(lambda: backend.engine.counts.running == 1, 20)
        assert backend.engine.counts.kv_usage > 0
    await until(lambda: backend.engine.counts == EngineCounts(), 20)
    assert 1 <= used.usage().output < 1500
    whole = asyncio.create_task(backend.generate(generation("Tell me a long story.", 1500), used := meter()))
    await until(lambda: used.usage().output > 0, 20)
    whole.cancel()
    with pytest.raises(asyncio.CancelledError):
        await whole
    await until(lambda: backend.engine.counts == EngineCounts(), 20)
    assert not backend.engine.jobs()
    unsent = asyncio.create_task(backend.generate(generation("Never sent.", 1500), meter()))
    await until(lambda: bool(backend.engine.jobs()), 5)
    unsent.cancel()
    await asyncio.wait([unsent])
    answer = await backend.generate(generation("Hello", 3), meter())
    assert answer.finished.usage.output == 3
    await until(lambda: backend.engine.counts == EngineCounts(), 20)


async def test_an_answer_that_is_not_read_is_no_step_that_hangs(backend: VllmBackend) -> None:
    async with aclosing(backend.stream(generation("Hello", 3), used := meter())) as stream:
        await anext(stream)
        await until(lambda: not backend.engine.busy_since, 20)
        assert backend.engine.jobs()
        assert [event async for event in stream]
    assert used.usage().output == 3


async def test_interactive_work_goes_before_batch_work(backend: VllmBackend) -> None:
    running = [backend.stream(generation(f"Tell the story of {n}.", 1500), meter()) for n in range(RUNNING)]
    for stream in running:
        await anext(stream)
    order: list[str] = []

    async def ask(name: str, *, batch: bool) -> None:
        await backend.generate(generation("Hello", 3, batch=batch), meter())
        order.append(name)

    async with asyncio.TaskGroup() as group:
        group.create_task(ask("batch", batch=True))
        await until(lambda: backend.engine.counts.waiting == 1, 20)
        group.create_task(ask("interactive", batch=False))
        await until(lambda: backend.engine.counts.waiting == 2, 20)
        await running[0].aclose()
    await running[1].aclose()
    assert order == ["interactive", "batch"]


async def test_the_prefix_cache_is_used_within_a_tenant_only(backend: VllmBackend) -> None:
    text = "The quick brown fox jumps over the lazy dog. " * 40
    cached = []
    for tenant in ("acme", "acme", "rival"):
        answer = await backend.generate(generation(text, 1, tenant_id=tenant), meter())
        cached.append(answer.finished.usage.cached)
    assert (cached[0], cached[2]) == (0, 0)
    assert cached[1] >= 256


async def test_a_prompts_log_probabilities(backend: VllmBackend) -> None:
    text = "The lighthouse keeper climbed the stairs every evening."
    tokens = (await backend.generate(generation(text, 1, prompt_logprobs=True), meter())).delta.prompt
    assert "".join(text[token.start : token.end] for token in tokens) == text
    assert tokens[0].logprob is None
    assert all(token.logprob is not None and -20 < token.logprob <= 0 for token in tokens[1:])


async def test_what_the_engine_refuses_is_that_requests_problem_alone(backend: VllmBackend) -> None:
    asked = generation("x", response=ResponseKind.JSON_SCHEMA, schema={"type": "no such type"})
    with pytest.raises(TenthError) as caught:
        await backend.generate(asked, meter())
    assert (caught.value.reason, caught.value.field) == ("UNSUPPORTED", "generation.response_format.json_schema")
    schema = {"type": "object", "properties": {"city": {"enum": ["Paris", "Rome"]}}, "required": ["city"]}
    good = generation("Capital of France?", 20, response=ResponseKind.JSON_SCHEMA, schema=schema)
    answer = await backend.generate(good, meter())
    assert json.loads(answer.delta.text)["city"] in ("Paris", "Rome")


async def test_the_engines_span_joins_the_trace(backend: VllmBackend, collector: tuple[Collector, str]) -> None:
    earlier = len(collector[0].spans)  # Of another module's engine.
    await backend.generate(generation("Hello", traceparent=f"00-{TRACE_ID}-{PARENT}-01"), meter())

    def found() -> list[Any]:
        return [span for _, span in collector[0].spans[earlier:] if span.trace_id.hex() == TRACE_ID]

    await until(lambda: bool(found()), 20)
    assert (found()[0].name, found()[0].parent_span_id.hex()) == ("llm_request", PARENT)
    assert "OTEL_SERVICE_NAME" not in os.environ


async def fails(backend: VllmBackend, break_it: Callable[[], None], within: float) -> None:
    """Two sequences that run when the core breaks end with what they have made, and the model is not served."""
    used = [meter() for _ in range(RUNNING)]
    running = [
        asyncio.create_task(backend.generate(generation(f"Tell the story of {n}.", 1500), used[n]))
        for n in range(RUNNING)
    ]
    await until(lambda: all(each.usage().output > 0 for each in used), 30)
    failures = backend.engine.totals.failures
    break_it()
    broken_at = time.monotonic()
    await asyncio.wait(running, timeout=within)
    assert time.monotonic() - broken_at < within
    for each, task in zip(used, running, strict=True):
        error = task.exception()
        assert isinstance(error, TenthError)
        assert (error.code.name, error.reason) == ("UNAVAILABLE", "ENGINE_FAILED")
        assert each.reached
        assert each.usage().input > 0
        assert not each.usage().estimated
    assert backend.engine.totals.failures == failures + 1
    assert backend.engine.counts == EngineCounts()
    with pytest.raises(TenthError) as refused:
        await backend.generate(generation("Hello"), meter())
    assert refused.value.reason == "ENGINE_RESTARTING"
    assert refused.value.retry_after_seconds
    with pytest.raises(TenthError):
        await backend.ping()
    assert backend.runs()


async def recovers(backend: VllmBackend, before: list[psutil.Process]) -> None:
    await until(lambda: not backend.unavailable_reason(), 150)
    await backend.ping()
    assert not any(process.is_running() for process in before), "the old processes are gone"
    answer = await backend.generate(generation("What is the capital of France?"), meter())
    assert "Paris" in answer.delta.text
    assert backend.admission.running_count == backend.admission.waiting_count == 0


async def test_a_killed_core_is_told_and_started_again(backend: VllmBackend) -> None:
    before = cores()
    assert before
    await fails(backend, before[0].kill, within=2)
    await recovers(backend, before)


async def test_a_core_that_hangs_is_killed_and_started_again(backend: VllmBackend) -> None:
    before = cores()
    await fails(backend, before[0].suspend, within=OPTIONS.step_seconds + 5)
    await recovers(backend, before)
    assert not backend.engine.hung, "this process goes on"


async def test_closing_ends_the_core_and_what_runs(backend: VllmBackend) -> None:
    """The last one for this engine."""
    before = cores()
    running = asyncio.create_task(backend.generate(generation("Tell me a long story.", 1500), used := meter()))
    await until(lambda: used.usage().output > 0, 30)
    await backend.close()
    assert not any(process.is_running() for process in before)
    (done,), _ = await asyncio.wait([running], timeout=5)
    assert isinstance(done.exception(), TenthError)
    assert not backend.runs()


async def test_closing_while_it_loads_leaves_no_process() -> None:
    starting = VllmBackend("smollm2", "local", "folder", OPTIONS)
    starting.start()
    await until(lambda: bool(cores()), 60)
    before = cores()
    await asyncio.wait_for(starting.close(), 60)
    assert not any(process.is_running() for process in before)
    assert not cores()
    assert not starting.runs()
    gc.collect()


async def test_a_process_ends_with_its_owner() -> None:
    """What the core does when the service is killed, between two small processes."""
    owner = await asyncio.create_subprocess_exec("sleep", "600")
    code = f"from services.inference.vllm_worker import end_with; end_with({owner.pid})"
    core = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asyncio.shield(core.wait()), 1)
    owner.kill()
    assert await asyncio.wait_for(core.wait(), 30) == -signal.SIGKILL
    await owner.wait()
    late = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await asyncio.wait_for(late.wait(), 60) == -signal.SIGKILL, "an owner that has ended already"
