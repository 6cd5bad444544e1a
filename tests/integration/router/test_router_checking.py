"""CheckAnswer over a real socket: checks first, then the confidence against the plan's threshold."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from tenth.inference.v1 import inference_pb2_grpc
from tenth.router.v1 import router_pb2, router_pb2_grpc
from tenth.type.v1 import chat_pb2

from mesh.catalog import WatchedFile
from mesh.errors import Code, TenthError
from mesh.testing import dial, running
from services.router.confidence import Confidence, ConfidenceMap
from tests.integration.router.router_parts import parse, router_servicer

SMALL = "smollm2-135m"
CONFIDENCE = Confidence(
    {SMALL: ConfidenceMap("mean_margin", (0.0, 1.0), (0.0, 1.0))}, ConfidenceMap("mean_margin", (0.0,), (0.25,))
)


@pytest.fixture
async def router(tmp_path: Path) -> AsyncIterator[router_pb2_grpc.RouterServiceAsyncStub]:
    async with AsyncExitStack() as stack:
        nobody = await stack.enter_async_context(dial("127.0.0.1:1"))
        catalog = WatchedFile(Path("deploy/catalog.yaml"), parse)
        servicer, _ = router_servicer(
            tmp_path / "outcomes.sqlite",
            catalog,
            inference_pb2_grpc.InferenceServiceStub(nobody),
            confidence=CONFIDENCE,
        )
        address = await stack.enter_async_context(
            running(
                router_pb2_grpc.add_RouterServiceServicer_to_server, servicer, "tenth.router.v1.RouterService", tmp_path
            )
        )
        yield router_pb2_grpc.RouterServiceStub(await stack.enter_async_context(dial(address)))


def said(text: str, role: chat_pb2.Role.ValueType) -> chat_pb2.ChatMessage:
    return chat_pb2.ChatMessage(role=role, parts=[chat_pb2.ContentPart(text=text)])


def logprobs(*chances: float) -> list[chat_pb2.TokenLogprob]:
    """Tokens of these probabilities, each with a rival that has the rest."""
    return [
        chat_pb2.TokenLogprob(
            token="a",
            logprob=math.log(chance),
            alternatives=[
                chat_pb2.AlternativeToken(token="a", logprob=math.log(chance)),
                chat_pb2.AlternativeToken(token="b", logprob=math.log(1 - chance)),
            ],
        )
        for chance in chances
    ]


def question(text: str = "Where is Paris?", answer: str = "In France.", **fields: Any) -> router_pb2.CheckAnswerRequest:
    request = chat_pb2.CompletionRequest(messages=[said(text, chat_pb2.ROLE_USER)], **fields.pop("request", {}))
    plan = router_pb2.CascadePlan(
        escalation_model="gpt-4o-mini", min_confidence=fields.pop("least", 0.5), top_logprobs_count=2
    )
    completion: dict[str, Any] = {
        "message": said(answer, chat_pb2.ROLE_ASSISTANT),
        "model": SMALL,
        "finish_reason": chat_pb2.FINISH_REASON_STOP,
        "logprobs": logprobs(0.8, 0.9),
        **fields,
    }
    return router_pb2.CheckAnswerRequest(request=request, completion=chat_pb2.Completion(**completion), plan=plan)


@pytest.mark.parametrize(("least", "accepted"), [(0.69, True), (0.71, False), (0.0, True), (1.0, False)])
async def test_the_threshold_decides(
    router: router_pb2_grpc.RouterServiceAsyncStub, least: float, accepted: bool
) -> None:
    reply = await router.CheckAnswer(question(least=least))
    assert reply.accepted is accepted
    assert reply.confidence == pytest.approx(0.7)  # Margins 0.6 and 0.8.
    assert f"{least:.2f}" in reply.reason


async def test_a_model_without_a_fit_gets_the_default_map(router: router_pb2_grpc.RouterServiceAsyncStub) -> None:
    assert (await router.CheckAnswer(question(model="gpt-4o-mini"))).confidence == 0.25
    assert (await router.CheckAnswer(question(model="never heard of"))).confidence == 0.25


async def test_without_log_probabilities_there_is_no_confidence(
    router: router_pb2_grpc.RouterServiceAsyncStub,
) -> None:
    for nothing in ([], [chat_pb2.TokenLogprob(token="a", logprob=math.nan)]):
        reply = await router.CheckAnswer(question(logprobs=nothing))
        assert (reply.accepted, reply.confidence) == (False, 0.0)
    assert "no log probabilities" in (await router.CheckAnswer(question(logprobs=[]))).reason


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"answer": ""}, "empty"),
        ({"answer": "I don't know."}, "refuses or does not know"),
        ({"finish_reason": chat_pb2.FINISH_REASON_LENGTH}, "cut off"),
        (
            {
                "text": "파리는 어디에 있나요?",
                "answer": "Paris is in France, which is a country in the west of Europe.",
            },
            "language",
        ),
        (
            {"request": {"response_format": chat_pb2.ResponseFormat(kind=chat_pb2.RESPONSE_FORMAT_KIND_JSON_OBJECT)}},
            "not JSON",
        ),
        (
            {
                "request": {
                    "tools": [chat_pb2.Tool(name="find")],
                    "tool_choice": chat_pb2.ToolChoice(mode=chat_pb2.TOOL_CHOICE_MODE_REQUIRED),
                }
            },
            "tool call",
        ),
    ],
)
async def test_a_fault_is_never_accepted(
    router: router_pb2_grpc.RouterServiceAsyncStub, fields: dict[str, Any], reason: str
) -> None:
    reply = await router.CheckAnswer(question(least=0.0, **fields))
    assert (reply.accepted, reply.confidence) == (False, 0.0)
    assert reason in reply.reason


async def test_a_demanded_call_passes(router: router_pb2_grpc.RouterServiceAsyncStub) -> None:
    message = said("", chat_pb2.ROLE_ASSISTANT)
    message.tool_calls.add(id="c", name="find", arguments_json='{"q": "x"}')
    named = chat_pb2.ToolChoice(mode=chat_pb2.TOOL_CHOICE_MODE_NAMED, name="find")
    request = {"tools": [chat_pb2.Tool(name="find")], "tool_choice": named}
    reply = await router.CheckAnswer(question(request=request, message=message))
    assert reply.accepted
    request["tool_choice"] = chat_pb2.ToolChoice(mode=chat_pb2.TOOL_CHOICE_MODE_NAMED, name="buy")
    assert not (await router.CheckAnswer(question(request=request, message=message))).accepted


@pytest.mark.parametrize(
    ("spoil", "field"),
    [
        (lambda request: request.request.ClearField("messages"), "request.messages"),
        (lambda request: request.ClearField("plan"), "plan.escalation_model"),
        (lambda request: setattr(request.plan, "min_confidence", math.nan), "plan.min_confidence"),
        (lambda request: setattr(request.plan, "min_confidence", 1.5), "plan.min_confidence"),
    ],
)
async def test_what_is_no_question_is_refused(
    router: router_pb2_grpc.RouterServiceAsyncStub, spoil: Any, field: str
) -> None:
    request = question()
    spoil(request)
    with pytest.raises(TenthError) as raised:
        await router.CheckAnswer(request)
    assert (raised.value.code, raised.value.field) == (Code.INVALID_ARGUMENT, field)
