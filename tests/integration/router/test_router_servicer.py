"""The router over a real socket, with a stand-in inference service."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tenth.inference.v1 import inference_pb2, inference_pb2_grpc
from tenth.router.v1 import router_pb2, router_pb2_grpc
from tenth.type.v1 import chat_pb2, receipt_pb2, usage_pb2

from mesh.catalog import WatchedFile
from mesh.errors import Code, TenthError
from mesh.testing import TEST_IDENTITY, dial, running
from tests.integration.router.router_parts import parse, router_servicer

USER, SYSTEM = chat_pb2.ROLE_USER, chat_pb2.ROLE_SYSTEM
EASY = "What are your opening hours?"


class FakeInference(inference_pb2_grpc.InferenceServiceServicer):
    """Says what it is told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answer = "complex"
        self.error: TenthError | None = None
        self.asked: list[inference_pb2.GenerateTextRequest] = []

    async def GenerateText(
        self, request: inference_pb2.GenerateTextRequest, context: Any
    ) -> inference_pb2.GenerateTextResponse:
        self.asked.append(request)
        if self.error is not None:
            raise self.error
        message = chat_pb2.ChatMessage(parts=[chat_pb2.ContentPart(text=self.answer)])
        usage = usage_pb2.Usage(input_token_count=90, output_token_count=1)
        return inference_pb2.GenerateTextResponse(
            completion=chat_pb2.Completion(message=message, model=request.model, usage=usage)
        )


class Mesh:
    """A running router and what stands behind it."""

    def __init__(self, stub: router_pb2_grpc.RouterServiceAsyncStub, inference: FakeInference) -> None:
        self.stub = stub
        self.inference = inference

    async def select(self, text: str = EASY, **more: Any) -> router_pb2.SelectModelResponse:
        return await self.stub.SelectModel(ask(text, **more), timeout=5)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    async with AsyncExitStack() as stack:
        inference = FakeInference()  # type: ignore[abstract]  # Only what is called is played.
        address = await stack.enter_async_context(
            running(
                inference_pb2_grpc.add_InferenceServiceServicer_to_server,
                inference,
                "tenth.inference.v1.InferenceService",
                tmp_path,
            )
        )
        behind = await stack.enter_async_context(dial(address))
        catalog = WatchedFile(Path("deploy/catalog.yaml"), parse)
        servicer, log = router_servicer(
            tmp_path / "outcomes.sqlite", catalog, inference_pb2_grpc.InferenceServiceStub(behind)
        )
        await log.open()
        stack.push_async_callback(log.close)
        target = await stack.enter_async_context(
            running(
                router_pb2_grpc.add_RouterServiceServicer_to_server, servicer, "tenth.router.v1.RouterService", tmp_path
            )
        )
        channel = await stack.enter_async_context(dial(target))
        yield Mesh(router_pb2_grpc.RouterServiceStub(channel), inference)


def ask(
    text: str = EASY,
    policy: chat_pb2.RequestPolicy | None = None,
    edit: Callable[[chat_pb2.CompletionRequest], Any] | None = None,
    request_id: str = "",
    **more: Any,
) -> router_pb2.SelectModelRequest:
    request = chat_pb2.CompletionRequest(
        request_id=request_id,
        messages=[chat_pb2.ChatMessage(role=USER, parts=[chat_pb2.ContentPart(text=text)])],
        policy=policy,
    )
    if edit is not None:
        edit(request)
    return router_pb2.SelectModelRequest(request=request, **more)


async def test_an_easy_question_goes_to_the_cheapest_and_every_candidate_is_explained(mesh: Mesh) -> None:
    response = await mesh.select()
    assert (response.model, response.tier) == ("smollm2-135m", chat_pb2.TIER_SIMPLE)
    assert response.strategy == router_pb2.STRATEGY_FEATURES
    assert response.fallback_models[0] == "gpt-4o-mini"
    assert len(response.candidates) == len((await mesh.stub.ListModels(router_pb2.ListModelsRequest())).models)
    costs = {item.model: item.expected_cost_nano_usd for item in response.candidates}
    assert 0 < costs["smollm2-135m"] < costs["gpt-4o-mini"] < costs["claude-opus-4-7"]
    assert mesh.inference.asked == []


async def test_a_korean_question_goes_to_a_model_that_knows_korean(mesh: Mesh) -> None:
    response = await mesh.select("영업시간이 어떻게 되나요?")
    assert (response.model, response.tier) == ("gpt-4o-mini", chat_pb2.TIER_SIMPLE)
    rejected = {item.model: item.rejected_reason for item in response.candidates}
    assert rejected["smollm2-135m"] == "weak in Korean"


async def test_abilities_are_read_off_the_request(mesh: Mesh) -> None:
    tools = await mesh.select(edit=lambda request: request.tools.add(name="find"))
    assert tools.model == "gpt-4o-mini"
    picture = chat_pb2.ContentPart(image=chat_pb2.ImageContent(url="https://example.com/a.png"))
    vision = await mesh.select(edit=lambda request: request.messages[0].parts.append(picture))
    assert vision.model == "gpt-4o-mini"
    long = await mesh.select(
        edit=lambda request: request.retrieved_chunks.extend([chat_pb2.RetrievedChunk(text="word " * 4000)] * 3)
    )
    assert "smollm2-135m" not in (long.model, *long.fallback_models)


async def test_the_budget_lowers_the_tier(mesh: Mesh) -> None:
    hard = "Prove that there are infinitely many primes, step by step, and analyze where the argument needs choice."
    assert (await mesh.select(hard)).tier == chat_pb2.TIER_COMPLEX
    lowered = await mesh.select(hard, tier_ceiling=chat_pb2.TIER_MEDIUM)
    assert lowered.tier == chat_pb2.TIER_MEDIUM
    assert "budget's ceiling" in lowered.reason


@pytest.mark.parametrize(
    ("request_", "code", "reason", "field"),
    [
        (router_pb2.SelectModelRequest(), Code.INVALID_ARGUMENT, "REQUIRED_FIELD", "request.messages"),
        (
            ask(policy=chat_pb2.RequestPolicy(model="gpt-9")),
            Code.INVALID_ARGUMENT,
            "UNKNOWN_MODEL",
            "request.policy.model",
        ),
        (
            ask(policy=chat_pb2.RequestPolicy(quality_target=1.5)),
            Code.INVALID_ARGUMENT,
            "INVALID_FIELD",
            "request.policy.quality_target",
        ),
        (
            ask(policy=chat_pb2.RequestPolicy(quality_target=float("nan"))),
            Code.INVALID_ARGUMENT,
            "INVALID_FIELD",
            "request.policy.quality_target",
        ),
        (
            ask(policy=chat_pb2.RequestPolicy(tier_floor=3, tier_ceiling=1)),  # type: ignore[arg-type]  # Plain numbers.
            Code.INVALID_ARGUMENT,
            "CONTRADICTORY_BOUNDS",
            "request.policy.tier_floor",
        ),
        (
            ask(policy=chat_pb2.RequestPolicy(tier_floor=9)),  # type: ignore[arg-type]  # No such tier.
            Code.INVALID_ARGUMENT,
            "INVALID_FIELD",
            "request.policy.tier_floor",
        ),
        (ask("word " * 2_000_000), Code.FAILED_PRECONDITION, "NO_ELIGIBLE_MODEL", ""),
    ],
)
async def test_refusals(
    mesh: Mesh, request_: router_pb2.SelectModelRequest, code: Code, reason: str, field: str
) -> None:
    with pytest.raises(TenthError) as caught:
        await mesh.stub.SelectModel(request_, timeout=5)
    assert (caught.value.code, caught.value.reason, caught.value.field) == (code, reason, field)
    assert (await mesh.select()).model == "smollm2-135m"  # It goes on serving.


async def test_a_named_model_answers_alone(mesh: Mesh) -> None:
    response = await mesh.select(policy=chat_pb2.RequestPolicy(model="gpt-4o"), strategy=router_pb2.STRATEGY_LLM)
    assert (response.model, response.strategy) == ("gpt-4o", router_pb2.STRATEGY_OVERRIDE)
    assert list(response.fallback_models) == []
    assert mesh.inference.asked == []


async def test_the_llm_strategy_asks_once_per_request_and_shows_the_cost(mesh: Mesh) -> None:
    first = await mesh.select(request_id="r1", strategy=router_pb2.STRATEGY_LLM)
    assert (first.tier, first.strategy) == (chat_pb2.TIER_COMPLEX, router_pb2.STRATEGY_LLM)
    (item,) = first.overheads
    assert (item.kind, item.model, item.attempt, item.usage.input_token_count) == (
        "classifier",
        "gpt-4o-mini",
        1001,
        90,
    )
    (asked,) = mesh.inference.asked
    assert (asked.purpose, asked.attempt, asked.request_id) == (inference_pb2.PURPOSE_CLASSIFIER, 1001, "r1")
    assert (asked.sampling.max_output_tokens, asked.sampling.temperature) == (4, 0.0)
    assert EASY in asked.messages[0].parts[0].text
    # The budget sends it back: what is known already is not paid again.
    again = await mesh.select(request_id="r1", strategy=router_pb2.STRATEGY_LLM, tier_ceiling=chat_pb2.TIER_MEDIUM)
    assert (again.tier, list(again.overheads), len(mesh.inference.asked)) == (chat_pb2.TIER_MEDIUM, [], 1)


async def test_an_unusable_label_is_medium(mesh: Mesh) -> None:
    mesh.inference.answer = "It is quite simple"
    response = await mesh.select(strategy=router_pb2.STRATEGY_LLM)
    assert response.tier == chat_pb2.TIER_MEDIUM
    assert len(response.overheads) == 1
    assert (await mesh.stub.GetStats(router_pb2.GetStatsRequest())).unparsable_classification_count == 1


async def test_a_failed_classifier_falls_back_to_features_and_its_spending_is_shown(mesh: Mesh) -> None:
    spent = receipt_pb2.SpentDetail(
        request_id="r2",
        spent_nano_usd=7,
        attempts=[receipt_pb2.OverheadItem(kind="failed_attempt", model="gpt-4o-mini")],
    )
    mesh.inference.error = TenthError(Code.UNAVAILABLE, "PROVIDER_FAILED", "gone", details=(spent,))
    response = await mesh.select(request_id="r2", strategy=router_pb2.STRATEGY_LLM)
    assert (response.model, response.strategy) == ("smollm2-135m", router_pb2.STRATEGY_FEATURES)
    assert "PROVIDER_FAILED" in response.reason
    (item,) = response.overheads
    assert (item.kind, item.attempt) == ("classifier", 1001)
    mesh.inference.error = None
    await mesh.select(request_id="r2", strategy=router_pb2.STRATEGY_LLM)
    assert [asked.attempt for asked in mesh.inference.asked] == [1001, 1002]


async def test_a_dry_run_spends_and_counts_nothing(mesh: Mesh) -> None:
    response = await mesh.select(strategy=router_pb2.STRATEGY_LLM, dry_run=True)
    assert response.strategy == router_pb2.STRATEGY_FEATURES
    assert mesh.inference.asked == []
    assert dict((await mesh.stub.GetStats(router_pb2.GetStatsRequest())).decision_counts) == {}


async def test_outcomes_are_kept_and_forgotten_by_tenant(mesh: Mesh) -> None:
    def by(user_id: str) -> Callable[[chat_pb2.CompletionRequest], Any]:
        return lambda request: setattr(request, "user_id", user_id)

    for number in range(3):
        await mesh.select(request_id=f"r{number}", edit=by("ann"))
    await mesh.select(request_id="other", edit=by("bob"))
    await mesh.stub.ReportOutcome(router_pb2.ReportOutcomeRequest(request_id="r0", score=1.0))
    await mesh.stub.ReportOutcome(router_pb2.ReportOutcomeRequest(request_id="r0", score=0.5))
    for bad, field in (
        (router_pb2.ReportOutcomeRequest(score=1), "request_id"),
        (router_pb2.ReportOutcomeRequest(request_id="r0", score=2), "score"),
        (router_pb2.ReportOutcomeRequest(request_id="r0", score=float("nan")), "score"),
    ):
        with pytest.raises(TenthError) as caught:
            await mesh.stub.ReportOutcome(bad)
        assert caught.value.field == field
    from mesh.auth import set_identity

    forget = router_pb2.DeleteUserOutcomesRequest(user_id="ann")
    set_identity(replace(TEST_IDENTITY, tenant_id="another"))
    assert (await mesh.stub.DeleteUserOutcomes(forget)).outcome_count == 0
    set_identity(TEST_IDENTITY)
    assert (await mesh.stub.DeleteUserOutcomes(forget)).outcome_count == 3
    assert (await mesh.stub.DeleteUserOutcomes(forget)).outcome_count == 0
    assert sum((await mesh.stub.GetStats(router_pb2.GetStatsRequest())).decision_counts.values()) == 4


async def test_the_catalogue_is_listed_in_pages(mesh: Mesh) -> None:
    seen: list[str] = []
    token = ""
    while True:
        page = await mesh.stub.ListModels(router_pb2.ListModelsRequest(page_size=2, page_token=token))
        seen += [item.model for item in page.models]
        token = page.next_page_token
        if not token:
            break
    assert seen[:2] == ["gpt-4o-mini", "smollm2-135m"]
    assert len(seen) == len(set(seen))
    with pytest.raises(TenthError):
        await mesh.stub.ListModels(router_pb2.ListModelsRequest(page_token="x"))


async def test_a_decision_costs_less_than_a_millisecond(mesh: Mesh, tmp_path: Path) -> None:
    """The figure itself is in the README; this only catches a slip by an order of magnitude."""
    request = ask("How do I change the delivery address of an order that I placed yesterday?")
    catalog = WatchedFile(Path("deploy/catalog.yaml"), parse)
    async with dial("127.0.0.1:1") as nobody:
        servicer, _ = router_servicer(tmp_path / "unused", catalog, inference_pb2_grpc.InferenceServiceStub(nobody))
    times = []
    for _ in range(300):
        started = time.thread_time_ns()
        await servicer.SelectModel(request, None)
        times.append(time.thread_time_ns() - started)
    assert sorted(times)[150] < 1_000_000
