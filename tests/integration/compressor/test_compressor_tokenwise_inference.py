"""Tokenwise through real sockets: how inference is asked for a text, what a failure costs, what PruneText answers."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from tenth.compressor.v1 import compressor_pb2
from tenth.inference.v1 import inference_pb2, inference_pb2_grpc
from tenth.type.v1 import chat_pb2, receipt_pb2, usage_pb2

from mesh.errors import Code, TenthError
from mesh.status import detail
from mesh.testing import dial, running
from services.compressor.catalog import Model
from services.compressor.money import InputPrice
from services.compressor.tokens import TokenCounters
from services.compressor.tokenwise_inference import PromptScorer
from services.compressor.tokenwise_rpc import Tokenwise

PRICE, SCORING_PRICE = InputPrice(2_500_000_000, 1_250_000_000, 2_500_000_000), InputPrice(10_000_000, 0, 0)
TEXT = "Say that keeper Lindqvist climbed up very very old stairs, and 서울의 봄은 참 짧았다고 적었다.\n\n" * 40
_TOKEN = re.compile(r"\s*\S+|\s+")


class FakeInference(inference_pb2_grpc.InferenceServiceServicer):
    """Tells of each word how long it is; holds at most ``most`` words."""

    def __init__(self) -> None:
        self.asked: list[inference_pb2.GenerateTextRequest] = []
        self.most = 10_000
        self.error_at = 0
        self.silent = False

    async def GenerateText(
        self, request: inference_pb2.GenerateTextRequest, context: Any
    ) -> inference_pb2.GenerateTextResponse:
        self.asked.append(request)
        text = request.messages[0].parts[0].text
        words = list(_TOKEN.finditer(text))
        if len(self.asked) == self.error_at:
            spent = receipt_pb2.OverheadItem(kind="failed_attempt", model="small", attempt=request.attempt)
            detail_ = receipt_pb2.SpentDetail(request_id=request.request_id, attempts=[spent])
            raise TenthError(Code.UNAVAILABLE, "ENGINE_FAILED", "no", details=(detail_,))
        if len(words) > self.most:
            raise TenthError(Code.INVALID_ARGUMENT, "PROMPT_TOO_LONG", "too long", "generation.messages")
        tokens = [
            inference_pb2.PromptToken(
                start_character=word.start(),
                end_character=word.end(),
                logprob=-float(len(word[0].strip())) if word.start() else None,
            )
            for word in words
        ]
        return inference_pb2.GenerateTextResponse(
            completion=chat_pb2.Completion(
                finish_reason=chat_pb2.FINISH_REASON_LENGTH,
                usage=usage_pb2.Usage(input_token_count=len(words), output_token_count=1),
            ),
            prompt_tokens=[] if self.silent else tokens,
        )


class Mesh:
    """A stand-in inference service, and a scorer that asks it."""

    def __init__(self, inference: FakeInference, stub: inference_pb2_grpc.InferenceServiceAsyncStub) -> None:
        self.inference = inference
        self._stub = stub

    def scorer(self, window: int = 100_000) -> PromptScorer:
        return PromptScorer(self._stub, "small", 5.0, window)


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    fake = FakeInference()  # type: ignore[abstract]  # Only what is called is played.
    async with AsyncExitStack() as stack:
        register = inference_pb2_grpc.add_InferenceServiceServicer_to_server
        name = "tenth.inference.v1.InferenceService"
        address = await stack.enter_async_context(running(register, fake, name, tmp_path))
        stub = inference_pb2_grpc.InferenceServiceStub(await stack.enter_async_context(dial(address)))
        yield Mesh(fake, stub)


async def test_a_text_is_asked_about_with_its_own_purpose_and_billed(mesh: Mesh) -> None:
    scored = await mesh.scorer().score("He climbed.", "request-1", "project")
    (asked,) = mesh.inference.asked
    assert asked.prompt_logprobs
    assert asked.purpose == inference_pb2.PURPOSE_TOKENWISE
    assert (asked.request_id, asked.attempt, asked.model, asked.project_id) == ("request-1", 1601, "small", "project")
    assert asked.sampling.max_output_tokens == 1
    assert asked.messages[0].parts[0].text == "He climbed."
    assert [(each.start, each.end, each.nats) for each in scored.surprisals] == [(0, 2, None), (2, 11, 8.0)]
    (item,) = scored.overheads
    assert (item.kind, item.model, item.attempt, item.usage.input_token_count) == ("tokenwise", "small", 1601, 2)


@pytest.mark.parametrize("window", [250, 500, 1777, 4000])
async def test_windows_tell_the_same_as_the_whole(mesh: Mesh, window: int) -> None:
    whole = await mesh.scorer().score(TEXT, "whole")
    scored = await mesh.scorer(window).score(TEXT, "windows")
    assert scored.surprisals == whole.surprisals
    asked = [each for each in mesh.inference.asked if each.request_id == "windows"]
    assert len(asked) > 1 or window >= len(TEXT)
    assert [each.attempt for each in asked] == list(range(1601, 1601 + len(asked)))
    assert all(len(each.messages[0].parts[0].text) <= window * 9 // 8 for each in asked)
    assert len(scored.overheads) == len(asked)
    assert all(token.nats is not None for token in scored.surprisals[1:]), "every later window has context"


async def test_a_text_without_blanks_is_read_to_its_end(mesh: Mesh) -> None:
    scored = await mesh.scorer(300).score("길" * 1000, "solid")
    assert scored.surprisals[-1].end == 1000
    assert len(mesh.inference.asked) < 10


async def test_a_window_that_does_not_fit_is_halved_and_its_attempt_number_is_not_used_again(mesh: Mesh) -> None:
    mesh.inference.most = 120
    whole_words = len(_TOKEN.findall(TEXT))
    scored = await mesh.scorer(4000).score(TEXT, "r")
    assert len(scored.surprisals) == whole_words
    attempts = [each.attempt for each in mesh.inference.asked]
    assert attempts == list(range(1601, 1601 + len(attempts)))
    assert len(scored.overheads) < len(attempts)
    mesh.inference.most = 1
    with pytest.raises(TenthError) as caught:
        await mesh.scorer(4000).score(TEXT, "r2")
    assert caught.value.reason == "PROMPT_TOO_LONG"


async def test_a_failure_says_all_that_was_spent(mesh: Mesh) -> None:
    mesh.inference.error_at = 3
    with pytest.raises(TenthError) as caught:
        await mesh.scorer(1000).score(TEXT, "r")
    assert caught.value.reason == "ENGINE_FAILED"
    spent = detail(caught.value, receipt_pb2.SpentDetail)
    assert isinstance(spent, receipt_pb2.SpentDetail)
    assert [(item.kind, item.attempt) for item in spent.attempts] == [("tokenwise", at) for at in (1601, 1602, 1603)]


async def test_a_model_that_tells_nothing_is_an_error_that_cost(mesh: Mesh) -> None:
    mesh.inference.silent = True
    with pytest.raises(TenthError) as caught:
        await mesh.scorer().score(TEXT, "r")
    assert caught.value.reason == "TOKENWISE_NOT_SET_UP"
    spent = detail(caught.value, receipt_pb2.SpentDetail)
    assert isinstance(spent, receipt_pb2.SpentDetail)
    assert len(spent.attempts) == 1


async def test_the_answer_has_the_text_the_places_and_the_money(mesh: Mesh, tmp_path: Path) -> None:
    counters = TokenCounters(tmp_path, 1 << 20)
    counters.load([])
    counter = counters.of(Model("m", "cl100k_base", "m", 0))
    request = compressor_pb2.PruneTextRequest(text=TEXT, model="m", share=0.2)
    ids = iter(["one", "two"])
    tokenwise = Tokenwise(mesh.scorer(), lambda: next(ids))
    found = await tokenwise.prune(request, counter, PRICE, SCORING_PRICE)
    assert found.reached
    assert found.original_token_count == counter.text(TEXT)
    assert found.pruned_token_count == counter.text(found.text) <= found.original_token_count * 0.8 + 1
    saved = found.original_token_count - found.pruned_token_count
    assert found.saving_nano_usd == saved * 2500
    assert found.scoring_cost_nano_usd == len(_TOKEN.findall(TEXT)) * 10
    assert (found.scoring_model, found.request_id, len(found.overheads)) == ("small", "one", 1)
    assert "Lindqvist" in found.text
    rest, at = "", 0
    for each in found.removed:
        rest += TEXT[at : each.start_character]
        at = each.end_character
    assert rest + TEXT[at:] == found.text
    budget = compressor_pb2.PruneTextRequest(text=found.text, model="m", token_budget=found.pruned_token_count)
    assert (await tokenwise.prune(budget, counter, None, None)).text == found.text
    assert mesh.inference.asked[-1].request_id == "two", "each call is charged anew"


@pytest.mark.parametrize(
    ("changes", "reason", "field"),
    [
        ({"text": " \n", "share": 0.2}, "REQUIRED_FIELD", "text"),
        ({"text": "x" * 100_001, "share": 0.2}, "INVALID_FIELD", "text"),
        ({"text": "x"}, "REQUIRED_FIELD", "target"),
        ({"text": "x", "share": 0.0}, "INVALID_FIELD", "share"),
        ({"text": "x", "share": 0.95}, "INVALID_FIELD", "share"),
        ({"text": "x", "share": float("nan")}, "INVALID_FIELD", "share"),
        ({"text": "x", "token_budget": 0}, "INVALID_FIELD", "token_budget"),
        ({"text": "x", "share": 0.2}, "TOKENWISE_NOT_SET_UP", ""),
    ],
)
async def test_a_request_that_cannot_be_served_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str, field: str
) -> None:
    counters = TokenCounters(tmp_path, 1 << 20)
    counters.load([])
    counter = counters.of(Model("m", "cl100k_base", "m", 0))
    with pytest.raises(TenthError) as caught:
        await Tokenwise(None, str).prune(compressor_pb2.PruneTextRequest(**changes), counter, None, None)
    assert (caught.value.reason, caught.value.field) == (reason, field)
