"""CheckAnswer: a cascade's first answer, from proto to plain, to the verdict."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tenth.router.v1 import router_pb2
from tenth.type.v1 import chat_pb2

from mesh.errors import invalid_argument, required
from services.router.answer_checks import Answer, ToolUse, Wanted, fault
from services.router.confidence import Confidence, Token

_FINISHES: Mapping[int, str] = {
    chat_pb2.FINISH_REASON_STOP: "stop",
    chat_pb2.FINISH_REASON_LENGTH: "length",
    chat_pb2.FINISH_REASON_TOOL_CALLS: "tool_calls",
    chat_pb2.FINISH_REASON_CONTENT_FILTER: "content_filter",
}
_FORCED = (chat_pb2.TOOL_CHOICE_MODE_REQUIRED, chat_pb2.TOOL_CHOICE_MODE_NAMED)


def verdict(
    request: router_pb2.CheckAnswerRequest, confidence: Confidence, quality_like: str = ""
) -> router_pb2.CheckAnswerResponse:
    """Whether the answer may be given. ``quality_like`` is the reference model that stands for the one that answered.

    Raises INVALID_FIELD for a request without messages, a plan without a model, and a threshold outside 0..1.
    """
    if not request.request.messages:
        raise required("request.messages")
    if not request.plan.escalation_model:
        raise required("plan.escalation_model")
    least = request.plan.min_confidence
    if not (math.isfinite(least) and 0.0 <= least <= 1.0):
        raise invalid_argument("min_confidence must be within 0..1", field="plan.min_confidence")
    wrong = fault(wanted_of(request.request), answer_of(request.completion))
    if wrong:
        return router_pb2.CheckAnswerResponse(accepted=False, confidence=0.0, reason=wrong)
    sure = confidence.of(tokens_of(request.completion), request.completion.model, quality_like)
    accepted = sure >= least
    compared = f"confidence {sure:.2f} {'>=' if accepted else '<'} {least:.2f}"
    reason = compared if request.completion.logprobs else f"{compared}; the answer has no log probabilities"
    return router_pb2.CheckAnswerResponse(accepted=accepted, confidence=sure, reason=reason)


def wanted_of(request: chat_pb2.CompletionRequest) -> Wanted:
    """What the request demands of an answer."""
    question, instructions = "", []
    for message in request.messages:
        text = "\n".join(part.text for part in message.parts if part.text)
        if message.role == chat_pb2.ROLE_USER:
            question = text
        elif message.role == chat_pb2.ROLE_SYSTEM:
            instructions.append(text)
    form, choice = request.response_format, request.tool_choice
    schema = form.kind == chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA
    return Wanted(
        question=question,
        instructions="\n".join(instructions),
        wants_json=schema or form.kind == chat_pb2.RESPONSE_FORMAT_KIND_JSON_OBJECT,
        json_schema=form.json_schema if schema else "",
        must_call_tool=choice.mode in _FORCED,
        tool_name=choice.name if choice.mode == chat_pb2.TOOL_CHOICE_MODE_NAMED else "",
        tool_names=[tool.name for tool in request.tools],
    )


def answer_of(completion: chat_pb2.Completion) -> Answer:
    """The answer; reasoning is no part of it."""
    message = completion.message
    return Answer(
        text="".join(part.text for part in message.parts),
        finish=_FINISHES.get(completion.finish_reason, ""),
        tool_uses=[ToolUse(call.name, call.arguments_json) for call in message.tool_calls],
    )


def tokens_of(completion: chat_pb2.Completion) -> list[Token]:
    """The answer's tokens with their log probabilities."""
    return [
        Token(item.token, item.logprob, [(other.token, other.logprob) for other in item.alternatives])
        for item in completion.logprobs
    ]
