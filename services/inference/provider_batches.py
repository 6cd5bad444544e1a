"""ProviderBatchService: translates between its messages and the batch interfaces of the providers. Keeps nothing."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import aclosing, contextmanager
from typing import Any

from google.protobuf.duration_pb2 import Duration
from tenth.inference.v1 import inference_pb2, inference_pb2_grpc

from mesh.auth import current_identity
from mesh.errors import Code, TenthError, invalid_argument, required
from services.inference import convert
from services.inference.batch_convert import batch_to_proto, result_to_proto
from services.inference.batch_items import BatchItem, Submission, tag_of
from services.inference.batch_upload import Upload
from services.inference.errors import Reason, unsupported
from services.inference.policy import check_abilities, check_prompt_logprobs, limited
from services.inference.served import Served, ServedBatches

_ITS_FAULT = frozenset(
    {
        Reason.PROVIDER_UNREACHABLE,
        Reason.PROVIDER_UNAUTHENTICATED,
        Reason.PROVIDER_FORBIDDEN,
        Reason.PROVIDER_FAILED,
    }
)
"""Failures after which the next call will most likely fail too."""


class ProviderBatchServicer(inference_pb2_grpc.ProviderBatchServiceServicer):
    """tenth.inference.v1.ProviderBatchService."""

    def __init__(self, served: Mapping[str, Served], clock: Callable[[], float] = time.monotonic) -> None:
        """``clock`` never goes back, seconds."""
        self._served = served
        self._clock = clock
        self._submitting: set[str] = set()

    async def SubmitProviderBatch(
        self, requests: AsyncIterator[inference_pb2.SubmitProviderBatchRequest], context: Any
    ) -> inference_pb2.SubmitProviderBatchResponse:
        """Put the stream into a file, then make a batch of it."""
        tenant_id = current_identity().tenant_id
        stream = aiter(requests)
        head = _head(await anext(stream, None))
        served, batches = self._batches(head.model, "head.model")
        submission = Submission(head.submission_id, head.begin_time.ToNanoseconds() / 1e9, head.first_call)
        self._check_not_running(submission.id, "head.submission_id")
        self._submitting.add(submission.id)
        try:
            upload = batches.provider.upload()
            try:
                async for message in stream:
                    with _numbered(message.generation, upload.count):
                        self._add(message, served, batches, upload, tag_of(submission.id), tenant_id)
                if not upload.count:
                    raise required("generation")
                upload.finish()
                with self._calling(head.model, batches):
                    status, found = await batches.provider.submit(submission, upload)
            finally:
                upload.close()
        finally:
            self._submitting.discard(submission.id)
        return inference_pb2.SubmitProviderBatchResponse(batch=batch_to_proto(head.model, status), found=found)

    async def FindProviderBatch(
        self, request: inference_pb2.FindProviderBatchRequest, context: Any
    ) -> inference_pb2.FindProviderBatchResponse:
        """Look for what a broken submission has left."""
        current_identity()
        _, batches = self._batches(request.model, "request.model")
        _check_submission(request, "request")
        if request.item_count < 1:
            raise required("request.item_count")
        self._check_not_running(request.submission_id, "request.submission_id")
        submission = Submission(request.submission_id, request.begin_time.ToNanoseconds() / 1e9)
        with self._calling(request.model, batches):
            status = await batches.provider.find(submission, request.item_count)
        # A call that came meanwhile may have made it since.
        self._check_not_running(request.submission_id, "request.submission_id")
        found = inference_pb2.FindProviderBatchResponse()
        if status is not None:
            found.batch.CopyFrom(batch_to_proto(request.model, status))
        return found

    async def GetProviderBatch(
        self, request: inference_pb2.GetProviderBatchRequest, context: Any
    ) -> inference_pb2.GetProviderBatchResponse:
        """How far a batch is."""
        batches = self._named(request.model, request.provider_batch_id)
        with self._calling(request.model, batches):
            status = await batches.provider.status(request.provider_batch_id)
        return inference_pb2.GetProviderBatchResponse(batch=batch_to_proto(request.model, status))

    async def StreamProviderBatchResults(
        self, request: inference_pb2.StreamProviderBatchResultsRequest, context: Any
    ) -> AsyncIterator[inference_pb2.StreamProviderBatchResultsResponse]:
        """Each result as it is read."""
        batches = self._named(request.model, request.provider_batch_id)
        with self._calling(request.model, batches):
            async with aclosing(batches.provider.results(request.provider_batch_id)) as results:
                async for result in results:
                    yield result_to_proto(request.model, batches.provider.provider_model, result)

    async def CancelProviderBatch(
        self, request: inference_pb2.CancelProviderBatchRequest, context: Any
    ) -> inference_pb2.CancelProviderBatchResponse:
        """Ask the provider to stop."""
        batches = self._named(request.model, request.provider_batch_id)
        with self._calling(request.model, batches):
            status = await batches.provider.cancel(request.provider_batch_id)
        return inference_pb2.CancelProviderBatchResponse(batch=batch_to_proto(request.model, status))

    async def GetProviderBatchLimits(
        self, request: inference_pb2.GetProviderBatchLimitsRequest, context: Any
    ) -> inference_pb2.GetProviderBatchLimitsResponse:
        """What the model's provider takes; nothing is asked of it."""
        current_identity()
        served = self._model(request.model, "request.model")
        batches = served.batches
        if batches is None:
            return inference_pb2.GetProviderBatchLimitsResponse()
        limits = batches.provider.limits
        return inference_pb2.GetProviderBatchLimitsResponse(
            supported=True,
            max_item_count=limits.items,
            max_byte_count=limits.bytes,
            expiry=Duration(seconds=int(limits.expiry_seconds)),
            interface=served.model.provider.batches,
        )

    def _add(
        self,
        message: inference_pb2.SubmitProviderBatchRequest,
        served: Served,
        batches: ServedBatches,
        upload: Upload,
        tag: str,
        tenant_id: str,
    ) -> None:
        """Check a generation as GenerateText does, and put it into the upload."""
        if message.WhichOneof("part") != "generation":
            raise required("generation")
        request = message.generation
        if request.model != served.model.name:
            raise invalid_argument(f"the batch is of {served.model.name}", field="generation.model")
        if request.purpose == inference_pb2.PURPOSE_SANDBOX:
            raise invalid_argument("the sandbox makes no batches", field="generation.purpose")
        generation = convert.generation_from_proto(request, tenant_id=tenant_id, traceparent="")
        generation = limited(generation, served.model.max_output)
        check_abilities(generation, served.model.ability)
        check_prompt_logprobs(generation, served.backend.kind)
        item = BatchItem(generation.request_id, generation.attempt, generation.estimated_input, tag)
        batches.provider.add(upload, generation, item)

    def _check_not_running(self, submission_id: str, field: str) -> None:
        if submission_id in self._submitting:
            said = f"the submission {submission_id} is running"
            raise TenthError(Code.ABORTED, Reason.ATTEMPT_RUNNING, said, field)

    def _named(self, model: str, batch_id: str) -> ServedBatches:
        current_identity()
        _, batches = self._batches(model, "request.model")
        if not batch_id:
            raise required("request.provider_batch_id")
        return batches

    def _batches(self, model: str, field: str) -> tuple[Served, ServedBatches]:
        served = self._model(model, field)
        if served.batches is None:
            if served.model.provider.batches != "none" and (error := served.backend.unavailable_error()) is not None:
                raise error
            raise unsupported(f"{model}: its provider has no batch interface that is set up here", field)
        return served, served.batches

    def _model(self, model: str, field: str) -> Served:
        if not model:
            raise required(field)
        served = self._served.get(model)
        if served is None:
            raise TenthError(Code.NOT_FOUND, Reason.MODEL_UNKNOWN, f"the catalogue has no {model!r}", field)
        return served

    @contextmanager
    def _calling(self, model: str, batches: ServedBatches) -> Iterator[None]:
        """The frame around a call: refused while the provider's circuit is open, which learns how it went."""
        circuit = batches.circuit
        wait = circuit.wait_seconds(self._clock())
        if wait:
            said = f"the batches of {model} are down: {circuit.reason}"
            raise TenthError(Code.UNAVAILABLE, Reason.PROVIDER_UNHEALTHY, said, retry_after_seconds=wait)
        left = True
        try:
            yield
            left = False
            circuit.succeeded()
        except TenthError as error:
            if error.reason in _ITS_FAULT:
                left = False
                circuit.failed(self._clock(), error.reason)
            raise
        finally:
            if left:
                circuit.left()


@contextmanager
def _numbered(request: inference_pb2.GenerateTextRequest, place: int) -> Iterator[None]:
    """A refusal inside names the generation: by its place in the field, by its request in the metadata."""
    try:
        yield
    except TenthError as error:
        error.field = error.field.replace("generation", f"generations[{place}]", 1)
        error.metadata.update(request_id=request.request_id, attempt=str(request.attempt))
        raise


def _head(message: inference_pb2.SubmitProviderBatchRequest | None) -> inference_pb2.ProviderBatchHead:
    if message is None or message.WhichOneof("part") != "head":
        raise required("head")
    head = message.head
    _check_submission(head, "head")
    return head


def _check_submission(
    message: inference_pb2.ProviderBatchHead | inference_pb2.FindProviderBatchRequest, field: str
) -> None:
    if not message.submission_id:
        raise required(f"{field}.submission_id")
    try:
        uuid.UUID(message.submission_id)
    except ValueError:
        raise invalid_argument("must be a UUID", field=f"{field}.submission_id") from None
    if not message.HasField("begin_time"):
        raise required(f"{field}.begin_time")
