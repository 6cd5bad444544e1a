"""Summaries by a catalogue model, through the inference service."""

from __future__ import annotations

from tenth.inference.v1 import inference_pb2, inference_pb2_grpc
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.errors import TenthError
from mesh.status import detail
from services.compressor.summary import SummaryAnswer, SummaryRequest

KIND = "summary"
"""Of the overhead items."""
FIRST_ATTEMPT = 1501
"""For callers that do not number the attempts of summaries themselves."""


class InferenceSummarizer:
    """Summarizer of one request: its id, attempt number and project name what is spent."""

    def __init__(
        self,
        stub: inference_pb2_grpc.InferenceServiceAsyncStub,
        model: str,
        timeout_seconds: float,
        request_id: str,
        attempt: int = FIRST_ATTEMPT,
        project_id: str = "",
    ) -> None:
        """Ask ``model`` through ``stub``, waiting at most ``timeout_seconds``."""
        self._stub = stub
        self._model = model
        self._timeout_seconds = timeout_seconds
        self._request_id = request_id
        self._attempt = attempt
        self._project_id = project_id

    async def summarize(self, request: SummaryRequest) -> SummaryAnswer:
        """The model's summary. An unreachable model, or a text cut off at the limit, is a failure; both may cost."""
        generation = inference_pb2.GenerateTextRequest(
            request_id=self._request_id,
            attempt=self._attempt,
            model=self._model,
            messages=[
                _message(chat_pb2.ROLE_SYSTEM, request.system),
                _message(chat_pb2.ROLE_USER, request.user),
            ],
            sampling=chat_pb2.SamplingParameters(temperature=0.0, max_output_tokens=request.most_output_tokens),
            purpose=inference_pb2.PURPOSE_SUMMARY,
            estimated_input_token_count=len((request.system + request.user).encode("utf-8", "replace")) // 3,
            project_id=self._project_id,
        )
        try:
            response = await self._stub.GenerateText(generation, timeout=self._timeout_seconds)
        except TenthError as error:
            return SummaryAnswer("", f"{self._model} failed ({error.reason})", _spent(error, self._attempt))
        completion = response.completion
        item = receipt_pb2.OverheadItem(
            kind=KIND,
            model=self._model,
            usage=completion.usage,
            attempt=self._attempt,
            quantized=response.quantized,
        )
        text = "".join(part.text for part in completion.message.parts)
        # Half a summary would be kept, and read as a whole one.
        cut = completion.finish_reason == chat_pb2.FINISH_REASON_LENGTH
        return SummaryAnswer("" if cut else text, "the summary was cut off" if cut else "", (item,), useless=cut)


def _message(role: chat_pb2.Role.ValueType, text: str) -> chat_pb2.ChatMessage:
    # A lone surrogate has no form on the wire.
    sendable = text.encode("utf-8", "replace").decode("utf-8")
    return chat_pb2.ChatMessage(role=role, parts=[chat_pb2.ContentPart(text=sendable)])


def _spent(error: TenthError, attempt: int) -> tuple[receipt_pb2.OverheadItem, ...]:
    """What a failed call spent all the same, as inference counted it."""
    spent = detail(error, receipt_pb2.SpentDetail)
    if not isinstance(spent, receipt_pb2.SpentDetail):
        return ()
    items = tuple(spent.attempts)
    for item in items:
        item.kind = KIND
        item.attempt = item.attempt or attempt
    return items
