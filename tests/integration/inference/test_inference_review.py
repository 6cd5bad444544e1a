"""Providers that say too much, too little, or something else than the format has."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from tenth.inference.v1 import inference_pb2
from tenth.ledger.v1 import ledger_pb2

from mesh.errors import TenthError
from services.inference.attempts import AttemptLog
from tests.integration.inference.test_inference_providers import ANSWER, events, mesh_over, piece, reply

SECRET = "the prompt was: my secret"


async def test_one_tenants_failure_tells_others_nothing_of_its_words(tmp_path: Path) -> None:
    async with mesh_over(tmp_path, reply(500, {"error": {"message": SECRET}}), circuit_failures=1) as mesh:
        with pytest.raises(TenthError, match="my secret"):
            await mesh.stub.GenerateText(mesh.request(), timeout=5)
        with pytest.raises(TenthError) as caught:
            await mesh.stub.GenerateText(mesh.request(request_id="r2"), timeout=5)
        assert caught.value.reason == "PROVIDER_UNHEALTHY"
        assert "secret" not in caught.value.message
        assert "PROVIDER_FAILED" in caught.value.message
        listed = (await mesh.stub.ListServedModels(inference_pb2.ListServedModelsRequest(), timeout=5)).models[0]
        assert "secret" not in listed.reason


@pytest.mark.parametrize("status", [401, 402, 403])
async def test_what_a_provider_says_of_our_key_stays_here(tmp_path: Path, status: int) -> None:
    error = {"error": {"message": "Incorrect API key provided: sk-ab***yz"}}
    async with mesh_over(tmp_path, reply(status, error)) as mesh:
        with pytest.raises(TenthError) as caught:
            await mesh.stub.GenerateText(mesh.request(), timeout=5)
        assert "sk-" not in str(caught.value)
        assert f"HTTP {status}" in caught.value.message


@pytest.mark.parametrize("usage", [{}, {"prompt_tokens": 0, "completion_tokens": 0}, {"prompt_tokens": None}])
async def test_usage_that_says_nothing_is_not_free(tmp_path: Path, usage: dict[str, Any]) -> None:
    async with mesh_over(tmp_path, reply(200, {**ANSWER, "usage": usage})) as mesh:
        response = await mesh.stub.GenerateText(mesh.request(), timeout=5)
        assert response.completion.usage.input_token_count == 40
        assert response.completion.usage.output_token_count > 0
        assert response.completion.usage.estimated
        assert mesh.ending()[0] == "FINISHED"
        assert mesh.ending()[1] == 40


MESSAGES: list[dict[str, Any]] = [
    {"content": "x", "tool_calls": 7},
    {"content": "x", "tool_calls": [{"id": 5, "function": {"name": 6, "arguments": {"a": 1}}, "index": "one"}]},
    {"content": "x", "tool_calls": [{"function": "f"}]},
    {"content": 5},
]


@pytest.mark.parametrize("message", MESSAGES)
@pytest.mark.parametrize("streamed", [False, True])
async def test_fields_of_a_wrong_type_are_typed_as_garbage_or_left_out(
    tmp_path: Path, message: dict[str, Any], streamed: bool
) -> None:
    choice = {"index": 0, "finish_reason": "stop", ("delta" if streamed else "message"): message}
    script = events({"choices": [choice]}, "[DONE]") if streamed else reply(200, {**ANSWER, "choices": [choice]})
    async with mesh_over(tmp_path, script) as mesh:
        reason = ""
        try:
            await mesh.ask(5, streamed=streamed)
        except TenthError as error:
            reason = error.reason
        assert (reason, mesh.ending()[0]) in (("", "FINISHED"), ("PROVIDER_GARBAGE", "FAILED"))


@pytest.mark.parametrize("changes", [{"logprobs": [1]}, {"logprobs": {"content": [5]}}, {"delta": "text"}])
async def test_a_piece_of_a_wrong_form_is_garbage(tmp_path: Path, changes: dict[str, Any]) -> None:
    choice = {**piece("x", "stop")["choices"][0], **changes}
    async with mesh_over(tmp_path, events({"choices": [choice]}, "[DONE]")) as mesh:
        with pytest.raises(TenthError) as caught:
            await mesh.stream()
        assert caught.value.reason == "PROVIDER_GARBAGE"


async def test_a_purpose_of_a_newer_revision_does_not_close_a_model_for_ever(tmp_path: Path) -> None:
    async with mesh_over(tmp_path, reply(500, {}), reply(200, ANSWER), circuit_failures=1) as mesh:
        with pytest.raises(TenthError):
            await mesh.stub.GenerateText(mesh.request(), timeout=5)
        await asyncio.sleep(0.35)
        newer = mesh.request(request_id="r2")
        newer.purpose = 77  # type: ignore[assignment]  # A number that this revision does not know.
        await mesh.stub.GenerateText(newer, timeout=5)
        await mesh.stub.GenerateText(mesh.request(request_id="r3"), timeout=5)


@pytest.mark.parametrize("streamed", [False, True])
async def test_a_prompts_probabilities_are_refused_before_anything_is_spent(tmp_path: Path, streamed: bool) -> None:
    async with mesh_over(tmp_path, reply(200, ANSWER)) as mesh:
        with pytest.raises(TenthError) as caught:
            await mesh.ask(5, streamed=streamed, prompt_logprobs=True)
        assert (caught.value.reason, caught.value.field) == ("UNSUPPORTED", "generation.prompt_logprobs")
        assert mesh.provider.bodies == []
        assert mesh.log.pending_count() == 0


def test_a_delivery_that_cannot_be_marked_leaves_no_transaction_open(tmp_path: Path) -> None:
    log = AttemptLog(tmp_path / "attempts.db", lambda: 1.0)
    event = ledger_pb2.AttemptEvent(request_id="r", attempt=1, kind=ledger_pb2.ATTEMPT_KIND_STARTED)
    log.start(event)
    (seq, _), *_ = log.pending()
    log._database.execute("CREATE TRIGGER full BEFORE UPDATE ON records BEGIN SELECT RAISE(FAIL, 'disk full'); END")
    with pytest.raises(sqlite3.Error):
        log.delivered([seq])
    assert not log._database.in_transaction, "what is written next would be lost with the process"
    log._database.execute("DROP TRIGGER full")
    log.delivered([seq])
    assert log.pending_count() == 0
    log.close()
