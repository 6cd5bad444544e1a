"""Summaries through a real socket: what inference is asked, what comes back, what a failure costs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from tenth.inference.v1 import inference_pb2, inference_pb2_grpc
from tenth.type.v1 import chat_pb2, receipt_pb2, usage_pb2

from mesh.errors import Code, TenthError
from mesh.testing import dial, running
from services.compressor.summary import SummaryRequest
from services.compressor.summary_inference import InferenceSummarizer

REQUEST = SummaryRequest("Keep the summary.", "<summary>\n\ud800</summary>", 50)


class FakeInference(inference_pb2_grpc.InferenceServiceServicer):
    """Answers with what it is told, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[inference_pb2.GenerateTextRequest] = []
        self.finish_reason: chat_pb2.FinishReason.ValueType = chat_pb2.FINISH_REASON_STOP
        self.error: TenthError | None = None
        self.before: Callable[[], Awaitable[Any]] | None = None

    async def GenerateText(
        self, request: inference_pb2.GenerateTextRequest, context: Any
    ) -> inference_pb2.GenerateTextResponse:
        self.asked.append(request)
        if self.before is not None:
            await self.before()
        if self.error is not None:
            raise self.error
        return inference_pb2.GenerateTextResponse(
            completion=chat_pb2.Completion(
                message=chat_pb2.ChatMessage(
                    role=chat_pb2.ROLE_ASSISTANT, parts=[chat_pb2.ContentPart(text="They met.")]
                ),
                finish_reason=self.finish_reason,
                usage=usage_pb2.Usage(input_token_count=40, output_token_count=3),
            ),
            quantized=True,
        )


@pytest.fixture
async def inference(tmp_path: Path) -> AsyncIterator[tuple[FakeInference, InferenceSummarizer]]:
    fake = FakeInference()  # type: ignore[abstract]  # Only what is called is played.
    async with AsyncExitStack() as stack:
        address = await stack.enter_async_context(
            running(
                inference_pb2_grpc.add_InferenceServiceServicer_to_server,
                fake,
                "tenth.inference.v1.InferenceService",
                tmp_path,
            )
        )
        stub = inference_pb2_grpc.InferenceServiceStub(await stack.enter_async_context(dial(address)))
        yield fake, InferenceSummarizer(stub, "small", 5.0, "request-1", 1501, "project")


async def test_a_summary_is_asked_for_with_its_own_purpose_and_billed(
    inference: tuple[FakeInference, InferenceSummarizer],
) -> None:
    fake, summarizer = inference
    answer = await summarizer.summarize(REQUEST)
    assert (answer.text, answer.failure) == ("They met.", "")
    (asked,) = fake.asked
    assert asked.purpose == inference_pb2.PURPOSE_SUMMARY
    assert (asked.request_id, asked.attempt, asked.model, asked.project_id) == ("request-1", 1501, "small", "project")
    assert asked.sampling.max_output_tokens == 50
    assert [message.role for message in asked.messages] == [chat_pb2.ROLE_SYSTEM, chat_pb2.ROLE_USER]
    assert asked.messages[1].parts[0].text == "<summary>\n?</summary>"
    (item,) = answer.overheads
    assert isinstance(item, receipt_pb2.OverheadItem)
    assert (item.kind, item.model, item.attempt, item.quantized) == ("summary", "small", 1501, True)
    assert item.usage.input_token_count == 40


async def test_a_summary_that_was_cut_off_is_a_failure_that_cost(
    inference: tuple[FakeInference, InferenceSummarizer],
) -> None:
    fake, summarizer = inference
    fake.finish_reason = chat_pb2.FINISH_REASON_LENGTH
    answer = await summarizer.summarize(REQUEST)
    assert (answer.text, answer.failure) == ("", "the summary was cut off")
    assert len(answer.overheads) == 1


async def test_a_failing_model_is_a_failure_with_what_it_spent(
    inference: tuple[FakeInference, InferenceSummarizer],
) -> None:
    fake, summarizer = inference
    spent = receipt_pb2.SpentDetail(attempts=[receipt_pb2.OverheadItem(kind="failed_attempt", model="small")])
    fake.error = TenthError(Code.UNAVAILABLE, "PROVIDER_DOWN", "no", details=(spent,))
    answer = await summarizer.summarize(REQUEST)
    assert answer.failure == "small failed (PROVIDER_DOWN)"
    (item,) = answer.overheads
    assert isinstance(item, receipt_pb2.OverheadItem)
    assert (item.kind, item.attempt) == ("summary", 1501)
