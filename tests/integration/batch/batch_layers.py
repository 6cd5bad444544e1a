"""The other services as a batch's worker meets them, played in one server on a loopback port: scripted, counting."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tenth.inference.v1 import inference_pb2, inference_pb2_grpc
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from tenth.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from tenth.type.v1 import chat_pb2, receipt_pb2, usage_pb2

from mesh.auth import Authenticator, current_identity
from mesh.errors import Code, TenthError
from mesh.server import MeshServer
from mesh.settings import MeshSettings
from mesh.testing import KEY, memory_telemetry, write_callers

PRICE = 100
"""Of an answer, nano-USD."""


@dataclass(frozen=True)
class Model:
    """A model of the played catalogue."""

    self_hosted: bool = False
    has_batch_price: bool = False
    backend: str = "openai"


LOCAL_MODEL, PAID_MODEL, OTHER_MODEL = "small", "paid", "claude"
MODELS = {
    LOCAL_MODEL: Model(self_hosted=True, has_batch_price=True, backend="vllm"),
    PAID_MODEL: Model(has_batch_price=True),
    OTHER_MODEL: Model(has_batch_price=True, backend="anthropic"),
}


def question(request: chat_pb2.CompletionRequest) -> str:
    """The last message's text."""
    return request.messages[-1].parts[0].text


@dataclass
class PlayedBatch:
    """A batch at the played provider."""

    model: str
    generations: list[inference_pb2.GenerateTextRequest]
    state: inference_pb2.ProviderBatchState.ValueType = inference_pb2.PROVIDER_BATCH_STATE_RUNNING
    results: list[inference_pb2.StreamProviderBatchResultsResponse] = field(default_factory=list)
    retryable: bool = False


class Layers:
    """All layers that a worker calls. What a test changes, it changes here."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """The methods of these services that no worker calls."""
        if not name[0].isupper():
            raise AttributeError(name)

        async def absent(*_: object) -> None:
            raise TenthError(Code.UNIMPLEMENTED, "UNIMPLEMENTED", name)

        return absent

    def __init__(self) -> None:
        self.cache: dict[str, str] = {}
        """What the cache answers, by question; also fed by finished answers."""
        self.embeddings: dict[str, list[float]] = {}
        self.near: dict[str, str] = {}
        """Questions that the cache answers with another one's answer, once it has that."""
        self.refused: dict[str, str] = {}
        """Questions that the first half refuses, with the reason."""
        self.reserved: dict[str, str] = {}
        """Reservations that stand, by request, with the model."""
        self.kept: dict[str, orchestrator_pb2.FinishedCompletion] = {}
        """Ends, by request: the first answer stays."""
        self.ends: Counter[str] = Counter()
        """How often a request was finished with an answer of a model."""
        self.prepared: Counter[str] = Counter()
        self.generated: dict[str, list[int]] = defaultdict(list)
        """Attempts that answered, by request."""
        self.tried: dict[str, list[tuple[str, int]]] = defaultdict(list)
        self.failing: Callable[[inference_pb2.GenerateTextRequest], TenthError | None] = lambda _: None
        self.none_left = "NO_MODEL_AVAILABLE"
        """The reason when every model is excluded; the router says NO_ELIGIBLE_MODEL when one was named."""
        self.down: set[str] = set()
        """Models that are down."""
        self.gate: asyncio.Event | None = None
        """While set and not open, answers wait."""
        self.free = 1_000_000
        """How many answers may come before the gate holds the others."""
        self.started = 0
        self.most_at_once = 0
        self.at_once = 0
        self.lanes: Counter[str] = Counter()
        self.batches: dict[str, PlayedBatch] = {}
        self.submissions: list[str] = []
        self.on_submit: Callable[[PlayedBatch], None] = answer_all
        self.on_cancel: Callable[[PlayedBatch], None] = end_as_it_is
        self.attempts: dict[tuple[str, int, int], ledger_pb2.AttemptEvent] = {}
        self.identities: set[tuple[str, str, str]] = set()
        self.calls: Counter[str] = Counter()
        self.seconds = 0.0
        self.on_call: Callable[[str, int], None] = lambda _, __: None
        """Hears of each call when its work is done, before it is answered, with how many there were of its kind."""

    def _called(self, name: str) -> None:
        self.calls[name] += 1
        self.on_call(name, self.calls[name])

    # The orchestrator's halves.

    async def PrepareCompletions(
        self, request: orchestrator_pb2.PrepareCompletionsRequest, context: Any
    ) -> orchestrator_pb2.PrepareCompletionsResponse:
        assert 1 <= len(request.items) <= 100
        outcomes = [self._prepare(item) for item in request.items]
        self._called("prepare")
        return orchestrator_pb2.PrepareCompletionsResponse(outcomes=outcomes)

    def _prepare(self, item: orchestrator_pb2.CompletionToPrepare) -> orchestrator_pb2.PrepareOutcome:
        request = item.request
        asked = question(request)
        assert item.HasField("reservation_ttl")
        self.prepared[request.request_id] += 1
        kept = self.kept.get(request.request_id)
        if kept is not None and kept.HasField("completion"):
            return orchestrator_pb2.PrepareOutcome(answered=kept)
        if asked in self.refused:
            error = orchestrator_pb2.HalfError(reason=self.refused[asked], message="refused")
            return orchestrator_pb2.PrepareOutcome(error=error)
        found = self.cache.get(asked) or self.cache.get(self.near.get(asked, ""))
        if found is not None and not item.skip_cache and request.policy.cache_mode != chat_pb2.CACHE_MODE_OFF:
            done = finished(request, found, "cached", hit=True)
            self.kept[request.request_id] = done
            self.reserved.pop(request.request_id, None)  # As the ledger does with a request's receipt.
            return orchestrator_pb2.PrepareOutcome(answered=done)
        wanted = request.policy.model or LOCAL_MODEL
        models = [name for name in (wanted, PAID_MODEL) if name not in item.excluded_models]
        if not models:
            error = orchestrator_pb2.HalfError(reason=self.none_left, message="all failed")
            return orchestrator_pb2.PrepareOutcome(error=error)
        model = models[0]
        self.reserved[request.request_id] = model
        generation = inference_pb2.GenerateTextRequest(
            request_id=request.request_id,
            attempt=1,
            model=model,
            messages=request.messages,
            sampling=request.sampling,
            estimated_input_token_count=len(asked),
            price_book_version=7,
            reservation_id=f"r-{request.request_id}",
        )
        prepared = orchestrator_pb2.PreparedCompletion(
            generation=generation,
            self_hosted=MODELS[model].self_hosted,
            has_batch_price=MODELS[model].has_batch_price,
            expected_nano_usd=PRICE,
            cacheable=request.sampling.temperature <= 0.3,
            state=f"{request.request_id}/{model}".encode(),
        )
        if asked in self.embeddings:
            prepared.embedding.CopyFrom(chat_pb2.Embedding(values=self.embeddings[asked], embedder="played"))
        return orchestrator_pb2.PrepareOutcome(prepared=prepared)

    async def FinishCompletions(
        self, request: orchestrator_pb2.FinishCompletionsRequest, context: Any
    ) -> orchestrator_pb2.FinishCompletionsResponse:
        assert 1 <= len(request.items) <= 100
        outcomes = [orchestrator_pb2.FinishOutcome(finished=self._finish(item)) for item in request.items]
        self._called("finish")
        return orchestrator_pb2.FinishCompletionsResponse(outcomes=outcomes)

    def _finish(self, item: orchestrator_pb2.CompletionToFinish) -> orchestrator_pb2.FinishedCompletion:
        request = item.request
        kept = self.kept.get(request.request_id)
        if kept is not None and kept.HasField("completion"):
            return kept
        kind = item.WhichOneof("outcome")
        if kind == "generated":
            assert item.state, "a generated answer without its state"
            self.ends[request.request_id] += 1
            self.lanes[f"{item.lane} {'batch' if item.batch else 'full'}"] += 1
            text = item.generated.completion.message.parts[0].text
            done = finished(request, text, item.generated.completion.model)
            if request.policy.cache_mode != chat_pb2.CACHE_MODE_OFF:
                self.cache.setdefault(question(request), text)
        elif kind == "shared":
            done = finished(request, item.shared.message.parts[0].text, item.shared.model, hit=True)
        else:
            done = orchestrator_pb2.FinishedCompletion(receipt=receipt_pb2.Receipt())
        self.reserved.pop(request.request_id, None)
        self.kept[request.request_id] = done
        return done

    # Inference.

    async def GenerateText(
        self, request: inference_pb2.GenerateTextRequest, context: Any
    ) -> inference_pb2.GenerateTextResponse:
        assert request.priority == inference_pb2.PRIORITY_BATCH
        identity = current_identity()
        self.identities.add((identity.tenant_id, identity.user_id, identity.service))
        self.tried[request.request_id].append((request.model, request.attempt))
        self.started += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            if request.model in self.down:
                raise TenthError(Code.UNAVAILABLE, "MODEL_UNAVAILABLE", "down")
            error = self.failing(request)
            if error is not None:
                raise error
            if self.gate is not None and self.started > self.free:
                await self.gate.wait()
            if self.seconds:
                await asyncio.sleep(self.seconds)
        finally:
            self.at_once -= 1
        self.generated[request.request_id].append(request.attempt)
        return generated(request)

    async def ListServedModels(
        self, request: inference_pb2.ListServedModelsRequest, context: Any
    ) -> inference_pb2.ListServedModelsResponse:
        return inference_pb2.ListServedModelsResponse(
            models=[
                inference_pb2.ServedModel(model=name, backend=model.backend, healthy=name not in self.down)
                for name, model in MODELS.items()
            ]
        )

    # Providers' batches.

    async def GetProviderBatchLimits(
        self, request: inference_pb2.GetProviderBatchLimitsRequest, context: Any
    ) -> inference_pb2.GetProviderBatchLimitsResponse:
        self._called("limits")
        return inference_pb2.GetProviderBatchLimitsResponse(
            supported=not MODELS[request.model].self_hosted,
            max_item_count=1000,
            max_byte_count=10**8,
            interface=MODELS[request.model].backend,
        )

    async def SubmitProviderBatch(
        self, request: AsyncIterator[inference_pb2.SubmitProviderBatchRequest], context: Any
    ) -> inference_pb2.SubmitProviderBatchResponse:
        head = (await anext(request)).head
        generations = [part.generation async for part in request]
        assert head.first_call or head.submission_id in self.submissions, "only a repeated call is none"
        self.submissions.append(head.submission_id)
        name = f"batch-{head.submission_id}"
        for generation in generations:
            key = (generation.request_id, generation.attempt, ledger_pb2.ATTEMPT_KIND_STARTED)
            assert key in self.attempts, "handed in before the ledger knew"
        found = name in self.batches
        if not found:
            self.batches[name] = PlayedBatch(head.model, generations)
            self.on_submit(self.batches[name])
        self._called("submit")
        return inference_pb2.SubmitProviderBatchResponse(batch=self._batch(name), found=found)

    async def FindProviderBatch(
        self, request: inference_pb2.FindProviderBatchRequest, context: Any
    ) -> inference_pb2.FindProviderBatchResponse:
        self._called("find")
        assert request.HasField("begin_time")
        name = f"batch-{request.submission_id}"
        if name not in self.batches:
            return inference_pb2.FindProviderBatchResponse()
        assert len(self.batches[name].generations) <= request.item_count
        return inference_pb2.FindProviderBatchResponse(batch=self._batch(name))

    async def GetProviderBatch(
        self, request: inference_pb2.GetProviderBatchRequest, context: Any
    ) -> inference_pb2.GetProviderBatchResponse:
        self.calls["poll"] += 1
        return inference_pb2.GetProviderBatchResponse(batch=self._batch(request.provider_batch_id))

    async def CancelProviderBatch(
        self, request: inference_pb2.CancelProviderBatchRequest, context: Any
    ) -> inference_pb2.CancelProviderBatchResponse:
        self.calls["cancel"] += 1
        batch = self.batches[request.provider_batch_id]
        if batch.state == inference_pb2.PROVIDER_BATCH_STATE_RUNNING:
            self.on_cancel(batch)
        return inference_pb2.CancelProviderBatchResponse(batch=self._batch(request.provider_batch_id))

    async def StreamProviderBatchResults(
        self, request: inference_pb2.StreamProviderBatchResultsRequest, context: Any
    ) -> AsyncIterator[inference_pb2.StreamProviderBatchResultsResponse]:
        for result in self.batches[request.provider_batch_id].results:
            yield result

    def _batch(self, name: str) -> inference_pb2.ProviderBatch:
        batch = self.batches[name]
        return inference_pb2.ProviderBatch(
            provider_batch_id=name,
            model=batch.model,
            state=batch.state,
            item_count=len(batch.generations),
            retryable=batch.retryable,
        )

    # The ledger.

    async def RecordAttempts(
        self, request: ledger_pb2.RecordAttemptsRequest, context: Any
    ) -> ledger_pb2.RecordAttemptsResponse:
        for event in request.events:
            self.attempts.setdefault((event.request_id, event.attempt, event.kind), event)
        return ledger_pb2.RecordAttemptsResponse(recorded_count=len(request.events))

    def kinds(self, request_id: str) -> list[tuple[int, str]]:
        """What the ledger has of a request: attempts and kinds, in order."""
        return sorted(
            (attempt, ledger_pb2.AttemptKind.Name(event.kind).removeprefix("ATTEMPT_KIND_"))
            for (request, attempt, _), event in self.attempts.items()
            if request == request_id
        )


def finished(
    request: chat_pb2.CompletionRequest, text: str, model: str, *, hit: bool = False
) -> orchestrator_pb2.FinishedCompletion:
    """An end with an answer and a receipt."""
    facts = receipt_pb2.ReceiptFacts(request_id=request.request_id, cache_hit=hit)
    price = 0 if hit else PRICE
    saving = receipt_pb2.LayerSaving(layer=receipt_pb2.LAYER_CACHE, saving_nano_usd=PRICE - price)
    return orchestrator_pb2.FinishedCompletion(
        completion=completion(text, model),
        receipt=receipt_pb2.Receipt(facts=facts, actual_nano_usd=price, baseline_nano_usd=PRICE, savings=[saving]),
    )


def completion(text: str, model: str) -> chat_pb2.Completion:
    """An answer."""
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT, parts=[chat_pb2.ContentPart(text=text)])
    usage = usage_pb2.Usage(input_token_count=3, output_token_count=5)
    return chat_pb2.Completion(message=message, model=model, usage=usage)


def generated(request: inference_pb2.GenerateTextRequest) -> inference_pb2.GenerateTextResponse:
    """A model's answer; which attempt gave it can be seen."""
    text = f"{request.model} {request.attempt}: {request.messages[-1].parts[0].text}"
    return inference_pb2.GenerateTextResponse(completion=completion(text, request.model))


def result(
    generation: inference_pb2.GenerateTextRequest, reason: str = "", *, retryable: bool = False
) -> inference_pb2.StreamProviderBatchResultsResponse:
    """What a provider says of one generation."""
    answer = inference_pb2.StreamProviderBatchResultsResponse(
        request_id=generation.request_id, attempt=generation.attempt
    )
    if reason:
        answer.error.CopyFrom(inference_pb2.ProviderBatchError(reason=reason, message="played", retryable=retryable))
    else:
        answer.answer.CopyFrom(generated(generation))
    return answer


def answer_all(batch: PlayedBatch) -> None:
    """The provider answers all at once."""
    batch.results = [result(one) for one in batch.generations]
    batch.state = inference_pb2.PROVIDER_BATCH_STATE_ENDED


def never(_: PlayedBatch) -> None:
    """The provider does not get to it."""


def end_as_it_is(batch: PlayedBatch) -> None:
    """The provider stops at once."""
    batch.state = inference_pb2.PROVIDER_BATCH_STATE_ENDED


@asynccontextmanager
async def played(folder: Path, layers: Layers) -> AsyncIterator[str]:
    """Serve the layers; yields their address."""
    settings = MeshSettings(unready_seconds=0, drain_seconds=0.1)
    callers = folder / "callers.yaml"
    if not callers.exists():
        write_callers(callers)
        callers.write_text(callers.read_text() + "  batch: ['*']\n")
    server = MeshServer(settings, memory_telemetry("layers")[0], Authenticator(callers, KEY), {})
    server.add(
        orchestrator_pb2_grpc.add_CompletionHalvesServiceServicer_to_server,
        layers,
        "tenth.orchestrator.v1.CompletionHalvesService",
    )
    server.add(inference_pb2_grpc.add_InferenceServiceServicer_to_server, layers, "tenth.inference.v1.InferenceService")
    server.add(
        inference_pb2_grpc.add_ProviderBatchServiceServicer_to_server, layers, "tenth.inference.v1.ProviderBatchService"
    )
    server.add(ledger_pb2_grpc.add_LedgerServiceServicer_to_server, layers, "tenth.ledger.v1.LedgerService")
    port = await server.start()
    watching = asyncio.create_task(server.watch_health())
    try:
        yield f"127.0.0.1:{port}"
    finally:
        watching.cancel()
        if layers.gate is not None:
            layers.gate.set()
        await server.drain()
