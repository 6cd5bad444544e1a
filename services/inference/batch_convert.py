"""Providers' batches and their results as messages of tenth.inference.v1."""

from __future__ import annotations

from google.protobuf.timestamp_pb2 import Timestamp
from tenth.inference.v1 import inference_pb2
from tenth.type.v1 import chat_pb2

from services.inference import convert
from services.inference.backend import Answer
from services.inference.batch_items import BatchStatus, ItemFailure, ItemResult

_STATES = {
    "running": inference_pb2.PROVIDER_BATCH_STATE_RUNNING,
    "ended": inference_pb2.PROVIDER_BATCH_STATE_ENDED,
    "failed": inference_pb2.PROVIDER_BATCH_STATE_FAILED,
}


def batch_to_proto(model: str, status: BatchStatus) -> inference_pb2.ProviderBatch:
    """How far a batch is, as a message."""
    batch = inference_pb2.ProviderBatch(
        provider_batch_id=status.id,
        model=model,
        state=_STATES[status.state],
        item_count=status.items,
        done_count=status.done,
        failed_count=status.failed,
        error_message=status.error,
        retryable=status.retryable,
    )
    if status.expires is not None:
        batch.expire_time.CopyFrom(Timestamp(seconds=int(status.expires)))
    return batch


def result_to_proto(
    model: str, provider_model: str, result: ItemResult
) -> inference_pb2.StreamProviderBatchResultsResponse:
    """How an item ended, as a message."""
    response = inference_pb2.StreamProviderBatchResultsResponse(
        request_id=result.item.request_id, attempt=result.item.attempt
    )
    outcome = result.outcome
    if isinstance(outcome, ItemFailure):
        error = inference_pb2.ProviderBatchError(
            reason=outcome.reason, message=outcome.message, retryable=outcome.retryable
        )
        if outcome.usage is not None:
            error.usage.CopyFrom(convert.usage_to_proto(outcome.usage))
        response.error.CopyFrom(error)
    else:
        response.answer.CopyFrom(_answer(model, provider_model, outcome))
    return response


def _answer(model: str, provider_model: str, answer: Answer) -> inference_pb2.GenerateTextResponse:
    return inference_pb2.GenerateTextResponse(
        completion=chat_pb2.Completion(
            message=convert.answer_to_proto(answer.delta),
            finish_reason=convert.FINISH_REASONS[answer.finished.finish_reason],
            model=model,
            usage=convert.usage_to_proto(answer.finished.usage),
            logprobs=convert.logprobs_to_proto(answer.delta),
        ),
        provider_model=provider_model,
    )
