"""The real engine under pressure and under faults, over the real service: one engine for the whole module.

Faults are put where they happen in life: an exception out of the engine's own step, and a dead thread.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from tenth.inference.v1 import inference_pb2, inference_pb2_grpc
from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2, usage_pb2

from mesh.auth import Authenticator
from mesh.errors import TenthError
from mesh.server import MeshServer
from mesh.settings import MeshSettings
from mesh.status import detail
from mesh.testing import KEY, dial, memory_metrics, metric_points, write_callers
from services.inference.admission import QueueLimits
from services.inference.attempts import AttemptLog
from services.inference.engine_metrics import observe_engine
from services.inference.models import Model, Provider
from services.inference.policy import Ability, Circuit
from services.inference.served import Served
from services.inference.servicer import InferenceServicer
from services.inference.tokens import count_tokens
from services.inference.vllm import VllmBackend
from services.inference.vllm_engine import Signals
from services.inference.vllm_load import EngineOptions
from services.inference.vllm_thread import EngineThread

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    # vLLM and torch warn of their own deprecations while they are imported.
    pytest.mark.filterwarnings("ignore"),
]

FOLDER = Path(os.environ.get("TENTH_MODELS_DIR", ".models")) / "smollm2-135m-instruct"
RUNNING, WAITING = 3, 4
LIMITS = QueueLimits(RUNNING, WAITING, kv_promise=100.0, batch_share=0.5, queue_seconds=20.0)
OPTIONS = EngineOptions(FOLDER, 2048, 2, 256 * 2**20, RUNNING, limits=LIMITS)
SERVICE = "tenth.inference.v1.InferenceService"


@dataclass
class Service:
    backend: VllmBackend
    stub: inference_pb2_grpc.InferenceServiceAsyncStub
    health: health_pb2_grpc.HealthAsyncStub
    attempts: AttemptLog
    metrics: Any
    count: int = 0

    def request(self, tokens: int, *, batch: bool = False) -> inference_pb2.GenerateTextRequest:
        """A long answer: greedy, and from a prompt that is never the same."""
        self.count += 1
        request = inference_pb2.GenerateTextRequest(
            request_id=f"r{self.count}",
            attempt=1,
            model="m",
            messages=[
                chat_pb2.ChatMessage(
                    role=chat_pb2.ROLE_USER,
                    parts=[chat_pb2.ContentPart(text=f"Tell a very long story about the number {self.count}.")],
                )
            ],
            priority=inference_pb2.PRIORITY_BATCH if batch else inference_pb2.PRIORITY_INTERACTIVE,
            estimated_input_token_count=30,
        )
        request.sampling.temperature = 0
        request.sampling.max_output_tokens = tokens
        return request

    async def serving(self) -> bool:
        reply = await self.health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=5)
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    def ending(self, request_id: str) -> ledger_pb2.AttemptEvent:
        """How an attempt ended, as the log has it."""
        events = [ledger_pb2.AttemptEvent.FromString(blob) for _, blob in self.attempts.pending(100_000)]
        (found,) = (
            item for item in events if item.request_id == request_id and item.kind != ledger_pb2.ATTEMPT_KIND_STARTED
        )
        return found


@dataclass
class Running:
    """A stream that is read by a task."""

    service: Service
    request: inference_pb2.GenerateTextRequest
    timeout: float = 60.0
    pieces: int = 0
    began: float = 0.0
    ended: float = 0.0
    error: TenthError | None = None
    first: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def start(self) -> Running:
        self.task = asyncio.create_task(self._read())
        return self

    async def _read(self) -> None:
        asked = inference_pb2.StreamGenerateTextRequest(generation=self.request)
        try:
            async with aclosing(self.service.stub.StreamGenerateText(asked, timeout=self.timeout)) as events:  # type: ignore[type-var]  # grpc's calls have aclose
                async for event in events:
                    self.pieces += event.WhichOneof("event") == "delta"
                    if self.pieces and not self.first.is_set():
                        self.began = time.monotonic()
                        self.first.set()
        except TenthError as error:
            self.error = error
        finally:
            self.ended = time.monotonic()

    async def leave(self) -> None:
        assert self.task is not None
        self.task.cancel()
        await asyncio.wait([self.task])

    async def end(self) -> TenthError:
        """The error that it ended with."""
        assert self.task is not None
        await self.task
        assert self.error is not None
        return self.error


async def until(condition: Any, seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not (await found if asyncio.iscoroutine(found := condition()) else found):
        assert time.monotonic() < end, "it did not come"
        await asyncio.sleep(0.01)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def service(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Service]:
    folder = tmp_path_factory.mktemp("hard")
    changed = asyncio.Event()
    backend = VllmBackend("m", "local", "folder", OPTIONS, Signals(changed=changed.set))
    model = Model("m", Provider("local", "vllm"), "folder", 2048, 1024, Ability())
    served = {"m": Served(model, backend, Circuit(3, 3.0))}
    async with AsyncExitStack() as stack:
        telemetry, reader = memory_metrics()
        observe_engine(telemetry.meter, served.values())
        attempts = AttemptLog(folder / "attempts.db", time.time)
        stack.callback(attempts.close)
        stack.push_async_callback(backend.close)
        backend.start()
        settings = MeshSettings(unready_seconds=0, drain_seconds=0.5)
        authenticator = Authenticator(write_callers(folder / "callers.yaml"), KEY)
        server = MeshServer(settings, telemetry, authenticator, {"vllm": backend.ping}, changed=changed)
        servicer = InferenceServicer(served, attempts, telemetry, count_tokens, time.time)
        server.add(inference_pb2_grpc.add_InferenceServiceServicer_to_server, servicer, SERVICE)
        port = await server.start()
        stack.push_async_callback(server.drain)
        stack.callback(asyncio.create_task(server.watch_health()).cancel)
        channel = await stack.enter_async_context(dial(f"127.0.0.1:{port}"))
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        result = Service(backend, stub, health_pb2_grpc.HealthStub(channel), attempts, reader)
        assert not await result.serving()
        await until(result.serving, 150)
        yield result


@pytest_asyncio.fixture(loop_scope="module")
async def full(service: Service) -> AsyncIterator[list[Running]]:
    """As many long streams as the engine works on, all begun."""
    dial_identity()
    streams = [Running(service, service.request(1500)).start() for _ in range(RUNNING)]
    for stream in streams:
        await asyncio.wait_for(stream.first.wait(), 30)
    yield streams
    for stream in streams:
        await stream.leave()
    await until(lambda: service.backend.engine.counts.running == 0)


def dial_identity() -> None:
    """Calls are made for the test's identity, in this task too."""
    from mesh.auth import set_identity
    from mesh.testing import TEST_IDENTITY

    set_identity(TEST_IDENTITY)


async def test_a_full_queue_refuses_and_says_when_to_come_back(service: Service, full: list[Running]) -> None:
    batch = [Running(service, service.request(8, batch=True)).start() for _ in range(WAITING // 2)]
    await until(lambda: service.backend.admission.waiting_count == len(batch))
    refused = await Running(service, service.request(8, batch=True)).start().end()
    assert (refused.code.name, refused.reason) == ("RESOURCE_EXHAUSTED", "QUEUE_FULL")
    assert refused.retry_after_seconds is not None
    assert 0 < refused.retry_after_seconds <= 60
    waiting = [Running(service, service.request(8)).start() for _ in range(WAITING - len(batch))]
    await until(lambda: service.backend.admission.waiting_count == WAITING)
    last = Running(service, service.request(8)).start()
    assert (await last.end()).reason == "QUEUE_FULL"
    assert detail(await last.end(), receipt_pb2.SpentDetail) is None
    assert service.ending(last.request.request_id).usage == usage_pb2.Usage()
    await until(lambda: service.backend.engine.counts.waiting == WAITING)
    points = metric_points(service.metrics, "tenth.engine.sequences")
    assert sorted(point.value for point in points.values()) == [RUNNING, WAITING]
    (usage,) = metric_points(service.metrics, "tenth.engine.kv_usage").values()
    assert 0 < usage.value <= 1
    (refusals,) = metric_points(service.metrics, "tenth.engine.refusals").values()
    assert refusals.value == service.backend.admission.refused_count >= 2
    # Interactive work goes first, although batch work came first.
    await full[0].leave()
    await asyncio.wait([stream.task for stream in (*batch, *waiting) if stream.task])
    assert not any(stream.error for stream in (*batch, *waiting))
    assert max(stream.began for stream in waiting) < min(stream.began for stream in batch)


async def test_a_deadline_that_passes_in_the_queue_costs_nothing(service: Service, full: list[Running]) -> None:
    late = Running(service, service.request(8), timeout=2).start()
    error = await late.end()
    assert (error.code.name, error.reason) == ("DEADLINE_EXCEEDED", "QUEUE_DEADLINE")
    ending = service.ending(late.request.request_id)
    assert (ending.kind, ending.usage.output_token_count) == (ledger_pb2.ATTEMPT_KIND_FAILED, 0)
    assert ending.usage.input_token_count == 0
    await until(lambda: service.backend.engine.counts.waiting == 0)
    assert all(stream.error is None for stream in full)


async def test_leaving_frees_the_sequence_at_once(service: Service, full: list[Running], record_property: Any) -> None:
    engine = service.backend.engine
    measured = []
    for gone, stream in enumerate(full, 1):
        left = time.perf_counter()
        await stream.leave()
        while engine.counts.running > len(full) - gone:
            await asyncio.sleep(0)
            assert time.perf_counter() - left < 20
        measured.append((time.perf_counter() - left) * 1000)
    record_property("cancellation_ms", [round(value, 1) for value in measured])
    print("\nfrom the client's cancel to the scheduler without the sequence, ms:", [f"{v:.0f}" for v in measured])


async def check_recovery(service: Service, streams: list[Running], broken_at: float) -> None:
    """All streams failed at once with their spend; the engine came back by itself, and readiness with it."""
    assert not await service.serving()
    for stream in streams:
        error = await stream.end()
        assert (error.code.name, error.reason) == ("UNAVAILABLE", "ENGINE_FAILED")
        assert stream.ended - broken_at < 2
        spent = detail(error, receipt_pb2.SpentDetail)
        assert isinstance(spent, receipt_pb2.SpentDetail)
        ending = service.ending(stream.request.request_id)
        assert ending.kind == ledger_pb2.ATTEMPT_KIND_FAILED
        assert not ending.usage.estimated
        assert spent.attempts[0].usage == ending.usage
        assert ending.usage.output_token_count >= stream.pieces
    error = await Running(service, service.request(8)).start().end()
    assert (error.code.name, error.reason) == ("UNAVAILABLE", "ENGINE_RESTARTING")
    assert error.retry_after_seconds is not None
    await until(service.serving, 60)
    answer = await service.stub.GenerateText(service.request(8), timeout=20)
    assert answer.completion.usage.output_token_count == 8
    # The engine's own counts are of the end of a step, a moment after its last output.
    await until(lambda: service.backend.engine.counts.running == 0)
    assert service.backend.admission.running_count == service.backend.admission.waiting_count == 0


async def test_an_engine_that_fails_is_told_and_started_again(service: Service, full: list[Running]) -> None:
    loaded = service.backend.engine.loaded
    assert loaded is not None

    def broken() -> None:
        raise ValueError("injected: this is no refusal of a request")

    loaded.engine.step = broken
    broken_at = time.monotonic()
    await until(lambda: service.backend.engine.unserved is not None, 2)
    await until(lambda: all(stream.error for stream in full), 2)
    await check_recovery(service, full, broken_at)
    assert service.backend.engine.totals.failures == 1


async def test_a_dead_thread_is_noticed_and_replaced(service: Service, full: list[Running]) -> None:
    def die(engine: Any) -> None:
        raise SystemExit

    thread = service.backend.engine
    assert isinstance(thread, EngineThread)
    thread._commands.put(die)
    broken_at = time.monotonic()
    await until(lambda: all(stream.error for stream in full), 2)
    await check_recovery(service, full, broken_at)


async def test_a_drain_hands_back_what_waits_and_lets_the_rest_run_for_its_notice(
    service: Service, full: list[Running]
) -> None:
    """The last one: the engine takes nothing any more."""
    short = full[0]
    await short.leave()
    quick = Running(service, service.request(60)).start()
    await asyncio.wait_for(quick.first.wait(), 20)
    waiting = [Running(service, service.request(8)).start() for _ in range(2)]
    await until(lambda: service.backend.admission.waiting_count == 2)
    began = time.monotonic()
    service.backend.drain(6.0)
    for stream in waiting:
        error = await stream.end()
        assert (error.code.name, error.reason) == ("UNAVAILABLE", "DRAINING")
        assert detail(error, receipt_pb2.SpentDetail) is None
        assert stream.ended - began < 2
    refused = await Running(service, service.request(8)).start().end()
    assert refused.reason == "DRAINING"
    assert quick.task is not None
    await quick.task
    assert quick.error is None, "it finished within the notice"
    reasons: Counter[str] = Counter()
    for stream in full[1:]:
        error = await stream.end()
        reasons[error.reason] += 1
        spent = detail(error, receipt_pb2.SpentDetail)
        assert isinstance(spent, receipt_pb2.SpentDetail)
        assert spent.attempts[0].usage.output_token_count >= stream.pieces > 60
        assert 5 < stream.ended - began < 10
    assert reasons == {"DRAINING": RUNNING - 1}
