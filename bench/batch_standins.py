"""Stand-ins of the layers that a batch's worker calls: ``python -m bench.batch_standins``.

They answer at once and count nothing, so that a hundred thousand items take minutes; what is measured beside them, the
batch service and its worker, is real. Half the items are for a self-hosted model, half for a provider's batches; each
has an embedding, so that the worker looks for questions that mean nearly the same.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
from tenth.inference.v1 import inference_pb2, inference_pb2_grpc
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from tenth.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from tenth.type.v1 import chat_pb2, receipt_pb2, usage_pb2

from mesh.auth import Authenticator, read_key
from mesh.process import run
from mesh.server import MeshServer
from mesh.settings import MeshSettings, load
from mesh.telemetry import start_telemetry

OWN_MODEL, PAID_MODEL = "own", "paid"
ANSWER = "The parcel was weighed, its label was replaced, and the carrier has it since this morning. " * 3
DIMENSIONS = 384
_PRICE_NANO_USD = 100_000


class _Uncalled:
    """The methods that no worker calls."""

    def __getattr__(self, name: str) -> object:
        return None


class Orchestrator(orchestrator_pb2_grpc.CompletionHalvesServiceServicer):
    """Both halves; nothing is kept."""

    async def PrepareCompletions(
        self, request: orchestrator_pb2.PrepareCompletionsRequest, context: Any
    ) -> orchestrator_pb2.PrepareCompletionsResponse:
        """Everything is a miss."""
        return orchestrator_pb2.PrepareCompletionsResponse(outcomes=[_prepared(item.request) for item in request.items])

    async def FinishCompletions(
        self, request: orchestrator_pb2.FinishCompletionsRequest, context: Any
    ) -> orchestrator_pb2.FinishCompletionsResponse:
        """What was answered gets a receipt."""
        return orchestrator_pb2.FinishCompletionsResponse(outcomes=[_finished(item) for item in request.items])


class Inference(_Uncalled):
    """Answers at once."""

    async def GenerateText(
        self, request: inference_pb2.GenerateTextRequest, context: Any
    ) -> inference_pb2.GenerateTextResponse:
        """The one answer."""
        return _generated(request.model)

    async def ListServedModels(
        self, request: inference_pb2.ListServedModelsRequest, context: Any
    ) -> inference_pb2.ListServedModelsResponse:
        """The self-hosted model and the other."""
        return inference_pb2.ListServedModelsResponse(
            models=[
                inference_pb2.ServedModel(model=OWN_MODEL, backend="vllm", healthy=True),
                inference_pb2.ServedModel(model=PAID_MODEL, backend="openai", healthy=True),
            ]
        )


class ProviderBatches(_Uncalled):
    """A provider that has done every batch by the time it is asked."""

    def __init__(self) -> None:
        self._asked: dict[str, list[tuple[str, int]]] = {}

    async def GetProviderBatchLimits(
        self, request: inference_pb2.GetProviderBatchLimitsRequest, context: Any
    ) -> inference_pb2.GetProviderBatchLimitsResponse:
        """OpenAI's limits."""
        return inference_pb2.GetProviderBatchLimitsResponse(
            supported=True, max_item_count=50_000, max_byte_count=200_000_000, interface="openai"
        )

    async def SubmitProviderBatch(
        self, request: AsyncIterator[inference_pb2.SubmitProviderBatchRequest], context: Any
    ) -> inference_pb2.SubmitProviderBatchResponse:
        """Keep who asked."""
        head = (await anext(request)).head
        asked = [(part.generation.request_id, part.generation.attempt) async for part in request]
        self._asked[head.submission_id] = asked
        return inference_pb2.SubmitProviderBatchResponse(batch=self._batch(head.submission_id))

    async def GetProviderBatch(
        self, request: inference_pb2.GetProviderBatchRequest, context: Any
    ) -> inference_pb2.GetProviderBatchResponse:
        """Done."""
        return inference_pb2.GetProviderBatchResponse(batch=self._batch(request.provider_batch_id))

    async def StreamProviderBatchResults(
        self, request: inference_pb2.StreamProviderBatchResultsRequest, context: Any
    ) -> AsyncIterator[inference_pb2.StreamProviderBatchResultsResponse]:
        """An answer for each."""
        for request_id, attempt in self._asked[request.provider_batch_id]:
            yield inference_pb2.StreamProviderBatchResultsResponse(
                request_id=request_id, attempt=attempt, answer=_generated(PAID_MODEL)
            )

    def _batch(self, name: str) -> inference_pb2.ProviderBatch:
        count = len(self._asked[name])
        return inference_pb2.ProviderBatch(
            provider_batch_id=name,
            model=PAID_MODEL,
            state=inference_pb2.PROVIDER_BATCH_STATE_ENDED,
            item_count=count,
            done_count=count,
        )


class Ledger(_Uncalled):
    """Takes note."""

    async def RecordAttempts(
        self, request: ledger_pb2.RecordAttemptsRequest, context: Any
    ) -> ledger_pb2.RecordAttemptsResponse:
        """Of everything."""
        return ledger_pb2.RecordAttemptsResponse(recorded_count=len(request.events))


def _prepared(request: chat_pb2.CompletionRequest) -> orchestrator_pb2.PrepareOutcome:
    seed = hashlib.blake2b(request.request_id.encode(), digest_size=8).digest()
    own = seed[0] % 2 == 0
    vector = np.random.default_rng(int.from_bytes(seed)).standard_normal(DIMENSIONS)
    generation = inference_pb2.GenerateTextRequest(
        request_id=request.request_id,
        attempt=1,
        model=OWN_MODEL if own else PAID_MODEL,
        messages=request.messages,
        sampling=request.sampling,
        estimated_input_token_count=150,
        price_book_version=1,
        reservation_id=request.request_id,
    )
    prepared = orchestrator_pb2.PreparedCompletion(
        generation=generation,
        self_hosted=own,
        has_batch_price=True,
        expected_nano_usd=_PRICE_NANO_USD,
        cacheable=True,
        embedding=chat_pb2.Embedding(values=vector / np.linalg.norm(vector), embedder="stand-in"),
        state=bytes(200),
    )
    return orchestrator_pb2.PrepareOutcome(prepared=prepared)


def _finished(item: orchestrator_pb2.CompletionToFinish) -> orchestrator_pb2.FinishOutcome:
    facts = receipt_pb2.ReceiptFacts(request_id=item.request.request_id, batch=item.batch, attempt=item.attempt)
    receipt = receipt_pb2.Receipt(facts=facts, actual_nano_usd=_PRICE_NANO_USD, baseline_nano_usd=_PRICE_NANO_USD)
    completion = item.generated.completion if item.HasField("generated") else item.shared
    return orchestrator_pb2.FinishOutcome(
        finished=orchestrator_pb2.FinishedCompletion(completion=completion, receipt=receipt)
    )


def _generated(model: str) -> inference_pb2.GenerateTextResponse:
    message = chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT, parts=[chat_pb2.ContentPart(text=ANSWER)])
    usage = usage_pb2.Usage(input_token_count=150, output_token_count=60)
    return inference_pb2.GenerateTextResponse(
        completion=chat_pb2.Completion(message=message, model=model, usage=usage), attempt=1
    )


async def main() -> None:
    """Serve all of them, at one address."""
    mesh = load(MeshSettings)
    telemetry = start_telemetry("standins", mesh)
    try:
        server = MeshServer(mesh, telemetry, Authenticator(mesh.callers_file, read_key(mesh.identity_key_file)), {})
        for register, servicer, name in (
            (
                orchestrator_pb2_grpc.add_CompletionHalvesServiceServicer_to_server,
                Orchestrator(),
                "tenth.orchestrator.v1.CompletionHalvesService",
            ),
            (
                inference_pb2_grpc.add_InferenceServiceServicer_to_server,
                Inference(),
                "tenth.inference.v1.InferenceService",
            ),
            (
                inference_pb2_grpc.add_ProviderBatchServiceServicer_to_server,
                ProviderBatches(),
                "tenth.inference.v1.ProviderBatchService",
            ),
            (ledger_pb2_grpc.add_LedgerServiceServicer_to_server, Ledger(), "tenth.ledger.v1.LedgerService"),
        ):
            server.add(register, servicer, name)
        await server.serve(asyncio.Event())
    finally:
        telemetry.close()


if __name__ == "__main__":
    run(main())
