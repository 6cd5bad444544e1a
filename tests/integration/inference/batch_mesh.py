"""ProviderBatchService over the sandbox's batch interfaces, with real sockets between all of them."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn
from tenth.inference.v1 import inference_pb2, inference_pb2_grpc
from tenth.type.v1 import chat_pb2

from mesh.testing import dial, running
from sandbox.batch_runs import BatchPlan
from sandbox.openai_batches import StoredBatch
from sandbox.provider import Provider
from sandbox.writers import InstantWriter
from services.inference.batch_items import item_of
from services.inference.models import parse_catalog
from services.inference.provider_batches import ProviderBatchServicer
from services.inference.serving import open_models
from services.inference.settings import InferenceSettings
from tests.integration.inference.test_inference_providers import Handler, _until

CATALOG = """
providers:
  openai: { backend: openai, base_url: "https://api.openai.com/v1", key_env: TENTH_NO_SUCH_KEY }
  anthropic:
    { backend: openai, base_url: "https://api.anthropic.com/v1/", key_env: TENTH_NO_SUCH_KEY, batches: anthropic }
  other: { backend: openai, base_url: "https://example.invalid/v1", key_env: TENTH_NO_SUCH_KEY }
  local: { backend: vllm }
models:
  gpt: { provider: openai, provider_model: gpt-x, context_window_tokens: 8000, max_output_tokens: 500 }
  claude: { provider: anthropic, provider_model: claude-x, context_window_tokens: 8000, max_output_tokens: 500 }
  other: { provider: other, provider_model: other-x, context_window_tokens: 8000, max_output_tokens: 500 }
  small: { provider: local, provider_model: folder, context_window_tokens: 8000, max_output_tokens: 500 }
"""
RUNNING, ENDED, FAILED = (
    inference_pb2.PROVIDER_BATCH_STATE_RUNNING,
    inference_pb2.PROVIDER_BATCH_STATE_ENDED,
    inference_pb2.PROVIDER_BATCH_STATE_FAILED,
)


def ids(count: int) -> list[str]:
    return [str(uuid.uuid4()) for _ in range(count)]


def generation(request_id: str, model: str, text: str = "Hi") -> inference_pb2.GenerateTextRequest:
    request = inference_pb2.GenerateTextRequest(
        request_id=request_id,
        attempt=1,
        model=model,
        messages=[chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=text)])],
        estimated_input_token_count=40,
    )
    request.sampling.max_output_tokens = 30
    request.sampling.temperature = 0
    return request


@dataclass(slots=True)
class Submission:
    """What is sent, as often as the test likes."""

    model: str
    requests: list[str]
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    begun: float = field(default_factory=time.time)
    first: bool = False
    change: Callable[[inference_pb2.GenerateTextRequest], None] = lambda _: None

    async def messages(self) -> AsyncIterator[inference_pb2.SubmitProviderBatchRequest]:
        head = inference_pb2.ProviderBatchHead(submission_id=self.id, model=self.model, first_call=self.first)
        head.begin_time.FromNanoseconds(int(self.begun * 1e9))
        yield inference_pb2.SubmitProviderBatchRequest(head=head)
        for number, name in enumerate(self.requests):
            request = generation(name, self.model, f"Question {number}")
            self.change(request)
            yield inference_pb2.SubmitProviderBatchRequest(generation=request)


class BatchMesh:
    """The service, and the sandbox that plays the providers."""

    def __init__(self, stub: inference_pb2_grpc.ProviderBatchServiceAsyncStub, sandbox: Provider, url: str) -> None:
        self.stub = stub
        self.sandbox = sandbox
        self.url = url

    def crowd(self, count: int) -> None:
        """More batches than a page has, as another user of the account makes them."""
        for number in range(count):
            name = f"batch_other{number}"
            asked = {"input_file_id": "f", "metadata": None}
            self.sandbox.openai_batches.batches[name] = StoredBatch(name, asked, time.time(), None)

    def plan(self, **changes: float) -> None:
        self.sandbox.batches.plan = BatchPlan(**changes)  # type: ignore[arg-type]  # counts, shares and seconds

    async def submit(self, submission: Submission) -> inference_pb2.SubmitProviderBatchResponse:
        return await self.stub.SubmitProviderBatch(submission.messages(), timeout=30)

    async def find(self, submission: Submission) -> inference_pb2.FindProviderBatchResponse:
        request = inference_pb2.FindProviderBatchRequest(
            submission_id=submission.id, model=submission.model, item_count=len(submission.requests)
        )
        request.begin_time.FromNanoseconds(int(submission.begun * 1e9))
        return await self.stub.FindProviderBatch(request, timeout=30)

    async def get(self, batch: inference_pb2.ProviderBatch) -> inference_pb2.ProviderBatch:
        request = inference_pb2.GetProviderBatchRequest(model=batch.model, provider_batch_id=batch.provider_batch_id)
        return (await self.stub.GetProviderBatch(request, timeout=10)).batch

    async def reached(self, batch: inference_pb2.ProviderBatch, state: int = ENDED) -> inference_pb2.ProviderBatch:
        async with asyncio.timeout(30):
            while True:
                now = await self.get(batch)
                if now.state == state:
                    return now
                await asyncio.sleep(0.02)

    async def cancel(self, batch: inference_pb2.ProviderBatch) -> inference_pb2.ProviderBatch:
        request = inference_pb2.CancelProviderBatchRequest(model=batch.model, provider_batch_id=batch.provider_batch_id)
        return (await self.stub.CancelProviderBatch(request, timeout=10)).batch

    def results(
        self, batch: inference_pb2.ProviderBatch
    ) -> AsyncIterator[inference_pb2.StreamProviderBatchResultsResponse]:
        request = inference_pb2.StreamProviderBatchResultsRequest(
            model=batch.model, provider_batch_id=batch.provider_batch_id
        )
        return aiter(self.stub.StreamProviderBatchResults(request, timeout=30))

    async def outcomes(
        self, batch: inference_pb2.ProviderBatch
    ) -> dict[str, inference_pb2.StreamProviderBatchResultsResponse]:
        found: dict[str, inference_pb2.StreamProviderBatchResultsResponse] = {}
        async for result in self.results(batch):
            assert result.request_id not in found, "an item has one result"
            found[result.request_id] = result
        return found

    def ran(self, requests: Iterable[str]) -> list[int]:
        """How often the sandbox was asked to run each of them."""
        runs: Counter[str] = Counter()
        for name, count in self.sandbox.batches.runs.items():
            item = item_of(name)
            assert item is not None
            runs[item.request_id] += count
        return [runs[each] for each in requests]


@asynccontextmanager
async def serving_sandbox(sandbox: Provider) -> AsyncIterator[str]:
    config = uvicorn.Config(sandbox.app, host="127.0.0.1", port=0, log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    serving = asyncio.ensure_future(server._serve())  # Signals are the test runner's.
    await _until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        await serving
        for batch in sandbox.openai_batches.batches.values():
            if batch.run is not None:
                batch.run.task.cancel()
        for run in sandbox.message_batches.batches.values():
            run.task.cancel()


@asynccontextmanager
async def scripted(handler: Handler) -> AsyncIterator[str]:
    """A server that answers everything in one way."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
                headers = dict(line.split(": ", 1) for line in head.split("\r\n") if ": " in line)
                await reader.readexactly(int(headers.get("content-length", 0)))
                await handler({}, headers, writer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"


@asynccontextmanager
async def batch_mesh(tmp_path: Path, url: str = "", sandbox: Provider | None = None) -> AsyncIterator[BatchMesh]:
    """``url``: where the providers are, if not in the sandbox."""
    sandbox = sandbox or Provider(InstantWriter(0, 6), 48)
    async with AsyncExitStack() as stack:
        url = url or await stack.enter_async_context(serving_sandbox(sandbox))
        settings = InferenceSettings(sandbox_url=url, local_model="none", circuit_failures=2, retries=1)
        catalog = parse_catalog(CATALOG, "catalog.yaml")
        served, _ = await open_models(catalog, None, settings, "", stack, upload_dir=tmp_path)
        address = await stack.enter_async_context(
            running(
                inference_pb2_grpc.add_ProviderBatchServiceServicer_to_server,
                ProviderBatchServicer(served),
                "tenth.inference.v1.ProviderBatchService",
                tmp_path,
            )
        )
        channel = await stack.enter_async_context(dial(address))
        yield BatchMesh(inference_pb2_grpc.ProviderBatchServiceStub(channel), sandbox, url)
