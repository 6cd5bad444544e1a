"""The `llm` strategy: a small model classifies through the inference service."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tenth.inference.v1 import inference_pb2, inference_pb2_grpc
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.errors import TenthError
from mesh.status import detail
from services.router.catalog import Tier
from services.router.classifier import classification_prompt, parse_label

FIRST_ATTEMPT = 1001
"""For callers that do not number the classifier's attempts themselves."""
_MAX_OUTPUT_TOKENS = 4


@dataclass(frozen=True, slots=True)
class Classification:
    """What the model said; ``tier`` is None when it could not be asked, and ``failure`` says why."""

    tier: Tier | None
    parsed: bool
    failure: str
    overheads: Sequence[receipt_pb2.OverheadItem]


class LlmClassifier:
    """Asks the catalogue's classifier model for one of three words."""

    def __init__(self, stub: inference_pb2_grpc.InferenceServiceAsyncStub, timeout_seconds: float) -> None:
        """Ask through ``stub``, waiting at most ``timeout_seconds``."""
        self._stub = stub
        self._timeout_seconds = timeout_seconds

    async def classify(
        self, model: str, question: str, request_id: str, attempt: int, project_id: str
    ) -> Classification:
        """The tier that the model names; anything but one of the three words is medium."""
        prompt = classification_prompt(question)
        request = inference_pb2.GenerateTextRequest(
            request_id=request_id,
            attempt=attempt,
            model=model,
            messages=[chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text=prompt)])],
            sampling=chat_pb2.SamplingParameters(temperature=0.0, max_output_tokens=_MAX_OUTPUT_TOKENS),
            purpose=inference_pb2.PURPOSE_CLASSIFIER,
            estimated_input_token_count=len(prompt.encode()) // 3,
            project_id=project_id,
        )
        try:
            response = await self._stub.GenerateText(request, timeout=self._timeout_seconds)
        except TenthError as error:
            return Classification(None, False, error.reason, _spent(error, attempt))
        answer = "".join(part.text for part in response.completion.message.parts)
        tier = parse_label(answer)
        item = receipt_pb2.OverheadItem(
            kind="classifier",
            model=model,
            usage=response.completion.usage,
            attempt=attempt,
            quantized=response.quantized,
        )
        return Classification(tier or Tier.MEDIUM, tier is not None, "", (item,))


def _spent(error: TenthError, attempt: int) -> list[receipt_pb2.OverheadItem]:
    """What a failed call spent all the same, as inference counted it."""
    spent = detail(error, receipt_pb2.SpentDetail)
    if not isinstance(spent, receipt_pb2.SpentDetail):
        return []
    items = list(spent.attempts)
    for item in items:
        item.kind = "classifier"
        item.attempt = item.attempt or attempt
    return items
