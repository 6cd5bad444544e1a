"""Summaries as a part of CompressPrompt, over real sockets: inference is played, speaking its proto."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tenth.cache.v1 import cache_pb2_grpc
from tenth.compressor.v1 import compressor_pb2, compressor_pb2_grpc
from tenth.inference.v1 import inference_pb2_grpc
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.auth import set_identity
from mesh.catalog import WatchedFile
from mesh.errors import Code, TenthError
from mesh.status import detail
from mesh.testing import TEST_IDENTITY, dial, running
from services.compressor.catalog import parse_catalog
from services.compressor.corrections import Corrections
from services.compressor.documents import Documents
from services.compressor.embeddings import Embeddings
from services.compressor.history_weights import history_settings
from services.compressor.modes import SUMMARY, plans
from services.compressor.prefixes import PrefixTracker
from services.compressor.servicer import CompressorServicer
from services.compressor.settled import SettledUsage
from services.compressor.summarising import SummaryStep, SummaryTimes
from services.compressor.summary import SummarySettings, SummaryStore
from services.compressor.summary_step import Summaries
from services.compressor.tokens import TokenCounters
from services.compressor.vectors import PromptVectors, rough_tokens
from services.compressor.weights import load
from tests.integration.compressor.test_compressor_summary_inference import FakeInference

AT = datetime(2026, 11, 26, tzinfo=UTC)
HISTORY_TOKENS = 1500
MINI = "gpt-4o-mini"
LINE = "The harbour master wrote down every ship, its captain, its load and the hour of the tide. " * 4


def message(role: chat_pb2.Role.ValueType, text: str) -> chat_pb2.ChatMessage:
    return chat_pb2.ChatMessage(role=role, parts=[chat_pb2.ContentPart(text=text)])


def talk(turns: int, text: str = LINE) -> chat_pb2.CompletionRequest:
    messages = [message(chat_pb2.ROLE_SYSTEM, "You keep the log of the harbour.")]
    for turn in range(turns):
        messages.append(message(chat_pb2.ROLE_USER, f"Day {turn}: {text}"))
        messages.append(message(chat_pb2.ROLE_ASSISTANT, f"Noted for day {turn}: {text}"))
    messages.append(message(chat_pb2.ROLE_USER, "Which ship came last?"))
    mode = chat_pb2.COMPRESSION_MODE_BALANCED
    return chat_pb2.CompletionRequest(
        request_id="r-1", messages=messages, policy=chat_pb2.RequestPolicy(compression_mode=mode)
    )


class Mesh:
    """A running compressor, and the inference behind it."""

    def __init__(self, stub: compressor_pb2_grpc.CompressorServiceAsyncStub, inference: FakeInference) -> None:
        self.stub = stub
        self.inference = inference

    async def compress(
        self, turns: int = 12, model: str = "gpt-4o", name_it: bool = True, **more: Any
    ) -> compressor_pb2.CompressPromptResponse:
        return await self.stub.CompressPrompt(asking(turns, model, name_it, **more), timeout=20)


def asking(turns: int, model: str, name_it: bool, **more: Any) -> compressor_pb2.CompressPromptRequest:
    request = compressor_pb2.CompressPromptRequest(request=talk(turns), model=model, **more)
    if name_it:
        request.strategy_overrides.add(strategy=SUMMARY, enabled=True)
    return request


@pytest.fixture(params=[("gpt-4o-mini", True)], ids=["set up"])
async def mesh(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Mesh]:
    model, reachable = request.param
    async with AsyncExitStack() as stack:
        inference = FakeInference()  # type: ignore[abstract]  # Only what is called is played.
        register = inference_pb2_grpc.add_InferenceServiceServicer_to_server
        address = await stack.enter_async_context(
            running(register, inference, "tenth.inference.v1.InferenceService", tmp_path)
        )
        behind = inference_pb2_grpc.InferenceServiceStub(await stack.enter_async_context(dial(address)))
        nowhere = cache_pb2_grpc.CacheServiceStub(await stack.enter_async_context(dial("127.0.0.1:1")))
        catalog = WatchedFile(Path("deploy/catalog.yaml"), parse_catalog)
        counters = TokenCounters(tmp_path, 1 << 20)
        counters.load(catalog.current.values())
        memory = Documents(counters.plain, 1 << 20)
        embeddings = Embeddings(nowhere, 0.05, 60.0, 10, lambda: 0.0)
        summaries = Summaries(SummarySettings(), SummaryStore(10_000), 60.0, lambda: 0.0)
        stack.push_async_callback(summaries.close)
        servicer = CompressorServicer(
            catalog,
            counters,
            plans(HISTORY_TOKENS, 800, history_settings()),
            PromptVectors(embeddings, memory, Documents(rough_tokens, 1 << 20), load(), 8),
            50_000,
            PrefixTracker(lambda: 0.0, 100),
            SettledUsage(Corrections(), None),
            lambda: AT,
            SummaryStep(
                behind if reachable else None, model, summaries, catalog, SummaryTimes(5.0, 5.0), lambda: AT, str
            ),
        )
        target = await stack.enter_async_context(
            running(
                compressor_pb2_grpc.add_CompressorServiceServicer_to_server,
                servicer,
                "tenth.compressor.v1.CompressorService",
                tmp_path,
            )
        )
        channel = await stack.enter_async_context(dial(target))
        yield Mesh(compressor_pb2_grpc.CompressorServiceStub(channel), inference)


def step_of(
    response: compressor_pb2.CompressPromptResponse, declined: bool = False
) -> compressor_pb2.StrategyResult | None:
    found = response.declined if declined else response.strategies
    return next((each for each in found if each.strategy == SUMMARY), None)


async def test_old_turns_become_a_summary_behind_the_system_messages(mesh: Mesh) -> None:
    response = await mesh.compress(summary_attempt=42)
    told = response.messages[1]
    assert told.role == chat_pb2.ROLE_SYSTEM
    assert told.parts[0].text == "Summary of the earlier conversation:\nThey met."
    assert response.messages[0].parts[0].text == "You keep the log of the harbour."
    assert response.messages[2].parts[0].text.startswith("Day 8: ")
    (asked,) = mesh.inference.asked
    assert (asked.request_id, asked.attempt, asked.model) == ("r-1", 42, MINI)
    (item,) = response.overheads
    assert (item.kind, item.model, item.attempt, item.usage.input_token_count) == ("summary", MINI, 42, 40)
    step = step_of(response)
    assert step is not None
    assert list(step.cut_message_indexes) == list(range(1, 17))
    assert step.removed_token_count > 0
    removed = sum(each.removed_token_count for each in response.strategies)
    assert response.original_input_token_count - removed == response.compressed_input_token_count
    assert response.original_input_token_count == response.baseline_input_token_count
    whole = await mesh.stub.CountTokens(
        compressor_pb2.CountTokensRequest(request=talk(12), models=["gpt-4o"]), timeout=20
    )
    assert response.original_input_token_count == whole.counts[0].input_token_count


async def test_the_next_turn_has_the_same_summary_for_nothing(mesh: Mesh) -> None:
    first, later = await mesh.compress(12), await mesh.compress(13)
    assert list(later.messages[:2]) == list(first.messages[:2])
    assert not later.overheads
    assert len(mesh.inference.asked) == 1


async def test_another_tenant_has_a_summary_of_its_own(mesh: Mesh) -> None:
    await mesh.compress()
    set_identity(replace(TEST_IDENTITY, tenant_id="globex"))
    response = await mesh.compress()
    assert len(response.overheads) == 1
    assert len(mesh.inference.asked) == 2


async def test_off_by_default_and_for_short_talks(mesh: Mesh) -> None:
    assert step_of(await mesh.compress(name_it=False)) is None
    short = await mesh.compress(1)
    assert step_of(short) is None
    assert step_of(short, declined=True) is None
    assert not mesh.inference.asked


async def test_a_failing_model_leaves_truncation_and_its_bill(mesh: Mesh) -> None:
    spent = receipt_pb2.OverheadItem(kind="failed_attempt", model=MINI)
    spent.usage.input_token_count = 900
    mesh.inference.error = TenthError(
        Code.UNAVAILABLE, "PROVIDER_DOWN", "no", details=(receipt_pb2.SpentDetail(attempts=[spent]),)
    )
    # A model without a prompt cache here: truncation is taken for what it saves.
    response = await mesh.compress(model="claude-opus-4-7", token_budget=1200)
    assert step_of(response) is None
    assert any(each.strategy == "history" for each in response.strategies)
    declined = step_of(response, declined=True)
    assert declined is not None
    assert "PROVIDER_DOWN" in declined.reason
    (item,) = response.overheads
    assert (item.kind, item.usage.input_token_count) == ("summary", 900)


async def test_a_refusal_after_the_summary_says_what_was_spent(mesh: Mesh) -> None:
    with pytest.raises(TenthError) as raised:
        await mesh.compress(token_budget=5)
    assert raised.value.reason == "BUDGET_TOO_SMALL"
    found = detail(raised.value, receipt_pb2.SpentDetail)
    assert isinstance(found, receipt_pb2.SpentDetail)
    assert [item.kind for item in found.attempts] == ["summary"]
    assert found.request_id == "r-1"


async def test_what_does_not_pay_is_not_asked_for(mesh: Mesh) -> None:
    response = await mesh.compress(model="smollm2-135m")  # Far cheaper than the model that would make it.
    declined = step_of(response, declined=True)
    assert declined is not None
    assert "USD more than it saves" in declined.reason
    assert not mesh.inference.asked


async def test_a_preview_asks_no_model_and_says_so(mesh: Mesh) -> None:
    look = compressor_pb2.PreviewCompressionRequest(compression=asking(12, "gpt-4o", True))
    found = await mesh.stub.PreviewCompression(look, timeout=20)
    declined = step_of(found.compression, declined=True)
    assert declined is not None
    assert "asks no model: gpt-4o-mini would be asked" in declined.reason
    assert not mesh.inference.asked
    await mesh.compress()
    found = await mesh.stub.PreviewCompression(look, timeout=20)
    assert list(found.message_indexes)[:3] == [0, -1, 17]
    assert not found.compression.overheads


async def test_a_summary_is_not_waited_for_beyond_half_of_the_time_left(mesh: Mesh) -> None:
    done = asyncio.Event()
    mesh.inference.before = done.wait
    response = await mesh.stub.CompressPrompt(asking(12, "gpt-4o", True), timeout=1.0)
    declined = step_of(response, declined=True)
    assert declined is not None
    assert "a later turn" in declined.reason
    assert not response.overheads
    done.set()
    later = await mesh.compress(13)
    assert step_of(later) is not None
    assert len(mesh.inference.asked) == 1


async def test_a_prompt_over_the_window_gets_a_summary(mesh: Mesh) -> None:
    request = asking(12, "gpt-4o", True, context_window_tokens=1500)
    request.request.policy.compression_mode = chat_pb2.COMPRESSION_MODE_SAFE
    response = await mesh.stub.CompressPrompt(request, timeout=20)
    assert step_of(response) is not None
    assert response.compressed_input_token_count < 1500


@pytest.mark.parametrize("mesh", [("", True), ("gpt-4o-mini", False)], ids=["no model", "no inference"], indirect=True)
async def test_without_a_model_only_who_names_it_is_refused(mesh: Mesh) -> None:
    with pytest.raises(TenthError) as raised:
        await mesh.compress()
    assert (raised.value.code, raised.value.reason) == (Code.FAILED_PRECONDITION, "SUMMARY_NOT_SET_UP")
    assert raised.value.field == "strategy_overrides"
    assert (await mesh.compress(name_it=False)).messages
