"""The `llm` strategy: a small model classifies through the inference service."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tenth.inference.v1 import inference_pb2, inference_pb2_grpc
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.errors import TenthError
from mesh.status import detail
from services.router.catalog import Catalog, Tier
from services.router.classifier import Judgement, classification_prompt, judge_label, parse_label
from services.router.decision import Asked
from services.router.outcomes import RequestMemory

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


class LlmJudge:
    """Judges requests by the catalogue's classifier model, each request once."""

    def __init__(self, classifier: LlmClassifier, memory: RequestMemory, new_id: Callable[[], str]) -> None:
        """``new_id`` names requests that come without an id, for the classifier's attempts."""
        self._classifier = classifier
        self._memory = memory
        self._new_id = new_id

    async def judge(
        self, asked: Asked, by_features: Judgement, catalog: Catalog, why: str
    ) -> tuple[Judgement, bool, str, Sequence[receipt_pb2.OverheadItem]]:
        """The judgement, whether it is the model's, why, and what it cost. ``why`` is what the features say."""
        tenant_id, request_id = asked.tenant_id, asked.request_id or self._new_id()
        kept = self._memory.get(tenant_id, request_id)
        if kept.label is not None:
            why = f"classified before as {kept.label.name.lower()}"
            return judge_label(kept.label, by_features), True, why, ()
        if asked.dry_run:
            return by_features, False, f"{why}, since a dry run spends nothing on the classifier", ()
        model = catalog.classifier_model
        if not model:
            return by_features, False, f"{why}, since the catalogue names no classifier_model", ()
        attempt = asked.classifier_attempt or FIRST_ATTEMPT + kept.classifier_attempts
        # Noted before the call: an attempt number is never used twice, however the call ends.
        self._memory.put(tenant_id, request_id, replace(kept, classifier_attempts=kept.classifier_attempts + 1))
        answer = await self._classifier.classify(model, asked.prompt.question, request_id, attempt, asked.project_id)
        if answer.tier is None:
            failed = f"{why}, since the classifier {model} failed: {answer.failure}"
            return by_features, False, failed, answer.overheads
        if answer.parsed:
            why = f"{model} says {answer.tier.name.lower()}"
        else:
            self._memory.unparsable_count += 1
            why = f"{model} gave no label, medium is assumed"
        noted = self._memory.get(tenant_id, request_id)
        self._memory.put(tenant_id, request_id, replace(noted, label=answer.tier, user_id=asked.user_id))
        return judge_label(answer.tier, by_features), True, why, answer.overheads


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
