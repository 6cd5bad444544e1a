"""Providers' batches through their SDKs, over real sockets, against the sandbox's far side of both interfaces."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tenth.inference.v1 import inference_pb2

from mesh.errors import TenthError
from sandbox.provider import Provider
from sandbox.writers import InstantWriter
from services.inference.batch_items import BatchItem, tag_of
from tests.integration.inference.batch_mesh import (
    ENDED,
    FAILED,
    RUNNING,
    BatchMesh,
    Submission,
    batch_mesh,
    ids,
    scripted,
)
from tests.integration.inference.test_inference_providers import Handler, _until, drop, reply

BOTH = pytest.mark.parametrize("model", ["gpt", "claude"])


@BOTH
async def test_a_batch_from_its_upload_to_its_results(tmp_path: Path, model: str) -> None:
    async with batch_mesh(tmp_path) as mesh:
        wanted = ids(2000)
        submitted = await mesh.submit(Submission(model, wanted))
        assert not submitted.found
        assert submitted.batch.state == RUNNING
        assert 86_000 < submitted.batch.expire_time.seconds - time.time() < 86_500
        batch = await mesh.reached(submitted.batch)
        assert (batch.item_count, batch.done_count, batch.failed_count) == (2000, 2000, 0)
        order = [result.request_id async for result in mesh.results(batch)]
        assert sorted(order) == sorted(wanted)
        assert order != wanted, "a provider's results are in no order"
        outcomes = await mesh.outcomes(batch)
        assert all(outcomes[name].attempt == 1 for name in wanted)
        answer = outcomes[wanted[0]].answer
        assert len(answer.completion.message.parts[0].text.split()) == 6
        assert answer.completion.model == model
        assert answer.provider_model == f"{model}-x"
        books = mesh.sandbox.books.to_json()["models"][f"{model}-x"]
        usages = [outcome.answer.completion.usage for outcome in outcomes.values()]
        assert books["requests"] == 2000
        assert books["input_tokens"] == sum(usage.input_token_count for usage in usages)
        assert books["output_tokens"] == sum(usage.output_token_count for usage in usages)
        assert not any(usage.estimated for usage in usages)
        assert set(mesh.ran(wanted)) == {1}
        assert os.listdir(tmp_path) == ["callers.yaml"], "an upload's file has no name"


@BOTH
async def test_some_fail_and_say_why(tmp_path: Path, model: str) -> None:
    async with batch_mesh(tmp_path) as mesh:
        mesh.plan(failed_share=0.3, duplicate_share=0.5, stranger_lines=2)
        wanted = ids(40)
        batch = await mesh.reached((await mesh.submit(Submission(model, wanted))).batch)
        outcomes = await mesh.outcomes(batch)
        assert set(outcomes) == set(wanted)
        errors = [result.error for result in outcomes.values() if result.HasField("error")]
        assert len(errors) == batch.failed_count > 3
        assert {(error.reason, error.retryable) for error in errors} == {("PROVIDER_FAILED", True)}
        assert "sandbox failure" in errors[0].message
        assert not errors[0].HasField("usage")
        answers = [result.answer for result in outcomes.values() if result.HasField("answer")]
        texts = {answer.completion.message.parts[0].text for answer in answers}
        assert len(texts) > 5, "the first of two lines stands: items have their own answers"


@BOTH
async def test_a_batch_expires_with_what_has_run(tmp_path: Path, model: str) -> None:
    async with batch_mesh(tmp_path) as mesh:
        mesh.plan(expire_after=7)
        wanted = ids(20)
        batch = await mesh.reached((await mesh.submit(Submission(model, wanted))).batch)
        outcomes = await mesh.outcomes(batch)
        errors = {name: result.error for name, result in outcomes.items() if result.HasField("error")}
        assert len(outcomes) == 20
        assert {(error.reason, error.retryable) for error in errors.values()} == {("PROVIDER_BATCH_EXPIRED", True)}
        assert len(errors) == 13
        assert sum(mesh.ran(errors)) == 0
        assert mesh.ran(set(wanted) - set(errors)) == [1] * 7


@BOTH
async def test_a_cancelled_batch_gives_what_has_run(tmp_path: Path, model: str) -> None:
    async with batch_mesh(tmp_path) as mesh:
        mesh.plan(pause_after=5)
        wanted = ids(12)
        submitted = (await mesh.submit(Submission(model, wanted))).batch
        await _until(lambda: sum(mesh.ran(wanted)) == 5)
        with pytest.raises(TenthError) as caught:
            await mesh.outcomes(submitted)
        assert caught.value.reason == "PROVIDER_BATCH_NOT_ENDED"
        assert (await mesh.cancel(submitted)).state in (RUNNING, ENDED)
        batch = await mesh.reached(submitted)
        assert (await mesh.cancel(batch)).state == ENDED, "once more does nothing"
        outcomes = await mesh.outcomes(batch)
        cancelled = [name for name, each in outcomes.items() if each.error.reason == "PROVIDER_BATCH_CANCELLED"]
        assert len(outcomes) == 12
        assert len(cancelled) == 7
        assert sum(mesh.ran(cancelled)) == 0


async def test_a_batch_whose_answer_was_lost_is_found_again(tmp_path: Path) -> None:
    async with batch_mesh(tmp_path) as mesh:
        await mesh.submit(Submission("gpt", ids(30)))
        submission = Submission("gpt", ids(30))
        mesh.plan(drop_creates=1)
        with pytest.raises(TenthError) as caught:
            await mesh.submit(submission)
        assert caught.value.reason == "PROVIDER_INCOMPLETE"
        mesh.crowd(120)
        again = await mesh.submit(submission)
        assert again.found
        assert (await mesh.submit(submission)).batch.provider_batch_id == again.batch.provider_batch_id
        batch = await mesh.reached(again.batch)
        assert set(await mesh.outcomes(batch)) == set(submission.requests)
        assert set(mesh.ran(submission.requests)) == {1}


@BOTH
async def test_a_lost_batch_is_looked_for_and_none_is_made(tmp_path: Path, model: str) -> None:
    async with batch_mesh(tmp_path) as mesh:
        lost, never = Submission(model, ids(30)), Submission(model, ids(30))
        assert not (await mesh.find(never)).HasField("batch")
        mesh.plan(drop_creates=1, pause_after=2 if model == "claude" else 0)
        with pytest.raises(TenthError):
            await mesh.submit(lost)
        with pytest.raises(TenthError) as caught:
            await mesh.find(Submission(model, ids(30), id="no uuid"))
        assert caught.value.field == "request.submission_id"
        if model == "gpt":
            found = (await mesh.find(lost)).batch
        else:
            with pytest.raises(TenthError) as caught:
                await mesh.find(lost)
            assert (caught.value.code.name, caught.value.reason) == ("UNAVAILABLE", "PROVIDER_BATCH_UNCERTAIN")
            (run,) = mesh.sandbox.message_batches.batches.values()
            run.cancel()
            await run.task
            found = (await mesh.find(lost)).batch
        assert not (await mesh.find(never)).HasField("batch")
        assert set(await mesh.outcomes(await mesh.reached(found))) == set(lost.requests)
        made = mesh.sandbox.openai_batches.batches if model == "gpt" else mesh.sandbox.message_batches.batches
        assert len(made) == 1


async def test_an_uploaded_file_is_used_again_or_deleted(tmp_path: Path) -> None:
    async with batch_mesh(tmp_path) as mesh:
        files = mesh.sandbox.openai_batches.files
        submission = Submission("gpt", ids(5))
        mesh.plan(refuse_creates=3)
        with pytest.raises(TenthError) as caught:
            await mesh.submit(submission)
        assert (caught.value.code.name, caught.value.reason) == ("RESOURCE_EXHAUSTED", "PROVIDER_RATE_LIMITED")
        (kept,) = files
        assert (await mesh.submit(submission)).batch.state == RUNNING
        inputs = [name for name, file in files.items() if file.about["purpose"] == "batch"]
        assert inputs == [kept]
        lost = Submission("gpt", ids(5))
        mesh.plan(drop_uploads=1)
        with pytest.raises(TenthError):
            await mesh.submit(lost)
        lost.requests.append(ids(1)[0])  # The file that is there is not the one that is wanted now.
        await mesh.submit(lost)
        names = [file.about["filename"] for file in files.values() if file.about["purpose"] == "batch"]
        assert sorted(names) == sorted({f"tenth-{each.id}.jsonl" for each in (submission, lost)})


async def test_anthropics_batch_is_taken_only_when_it_is_certain(tmp_path: Path) -> None:
    async with batch_mesh(tmp_path) as mesh:
        mesh.plan(pause_after=1)
        other = Submission("claude", ids(9))
        others = (await mesh.submit(other)).batch
        mesh.plan(drop_creates=1, pause_after=2)
        submission = Submission("claude", ids(9))
        with pytest.raises(TenthError) as caught:
            await mesh.submit(submission)
        assert caught.value.reason == "PROVIDER_INCOMPLETE"
        with pytest.raises(TenthError) as caught:
            await mesh.submit(submission)
        assert (caught.value.code.name, caught.value.reason) == ("UNAVAILABLE", "PROVIDER_BATCH_UNCERTAIN")
        assert caught.value.retry_after_seconds == 60
        mine = caught.value.metadata["provider_batch_id"]
        assert mine != others.provider_batch_id, "what this process made itself is known"
        mesh.sandbox.message_batches.batches[mine].cancel()
        await mesh.sandbox.message_batches.batches[mine].task
        again = await mesh.submit(submission)
        assert again.found
        assert again.batch.provider_batch_id == mine
        assert max(mesh.ran(submission.requests)) == 1
        third = await mesh.submit(Submission("claude", ids(9)))
        assert not third.found, "all batches of the size are known to be others'"


async def test_another_process_finds_anthropics_batch_by_its_results(tmp_path: Path) -> None:
    async with batch_mesh(tmp_path) as mesh:
        first = Submission("claude", ids(9))
        made = await mesh.submit(first)
        await mesh.reached(made.batch)
        (tmp_path / "second").mkdir()
        async with batch_mesh(tmp_path / "second", url=mesh.url) as second:
            assert not (await second.submit(Submission("claude", ids(9)))).found
            again = await second.submit(first)
            assert (again.found, again.batch.provider_batch_id) == (True, made.batch.provider_batch_id)
            assert not (await second.submit(Submission("claude", ids(9), first=True))).found
        assert set(mesh.ran(first.requests)) == {1}


@BOTH
@pytest.mark.parametrize("broken", ["cut", "garbage"])
async def test_results_that_lack_something_say_so_at_the_end(tmp_path: Path, model: str, broken: str) -> None:
    async with batch_mesh(tmp_path) as mesh:
        mesh.plan(**({"truncate_bytes": 200} if broken == "cut" else {"garbage_lines": 2}))
        batch = await mesh.reached((await mesh.submit(Submission(model, ids(10)))).batch)
        got: list[str] = []

        async def read() -> None:
            async for result in mesh.results(batch):
                got.append(result.request_id)  # noqa: PERF401  # what came before the error counts

        with pytest.raises(TenthError) as caught:
            await read()
        reason = "PROVIDER_INCOMPLETE" if broken == "cut" else "PROVIDER_GARBAGE"
        assert (caught.value.code.name, caught.value.reason) == ("UNAVAILABLE", reason)
        assert 7 < len(got) < 10


async def test_a_whole_line_that_is_missing_at_the_end_is_missed(tmp_path: Path) -> None:
    async with batch_mesh(tmp_path) as mesh:
        batch = await mesh.reached((await mesh.submit(Submission("gpt", ids(10)))).batch)
        files = mesh.sandbox.openai_batches.files
        await mesh.outcomes(batch)
        name, stored = next((name, file) for name, file in files.items() if file.about["purpose"] == "batch_output")
        lines = stored.content.splitlines(keepends=True)
        files[name] = type(stored)(b"".join(lines[:-1]), stored.about)
        with pytest.raises(TenthError) as caught:
            await mesh.outcomes(batch)
        assert caught.value.reason == "PROVIDER_INCOMPLETE"
        del files[name]
        with pytest.raises(TenthError) as caught:
            await mesh.outcomes(batch)
        assert (caught.value.code.name, caught.value.reason) == ("NOT_FOUND", "PROVIDER_BATCH_NOT_FOUND")


async def test_a_batch_that_the_provider_refuses(tmp_path: Path) -> None:
    async with batch_mesh(tmp_path) as mesh:
        mesh.plan(fail_validation=True)
        batch = (await mesh.submit(Submission("gpt", ids(3)))).batch
        assert (batch.state, batch.item_count) == (FAILED, 0)
        assert batch.error_message == "line 1: The provided model is not supported by the Batch API."
        assert await mesh.outcomes(batch) == {}
        assert not batch.retryable
        with pytest.raises(TenthError) as caught:
            await mesh.submit(Submission("claude", ids(3)))
        assert (caught.value.code.name, caught.value.reason) == ("INVALID_ARGUMENT", "PROVIDER_REJECTED")


async def test_a_batch_that_finds_no_room_is_made_again_under_its_name(tmp_path: Path) -> None:
    async with batch_mesh(tmp_path) as mesh:
        mesh.plan(full_creates=1)
        submission = Submission("gpt", ids(3))
        refused = (await mesh.submit(submission)).batch
        assert (refused.state, refused.retryable) == (FAILED, True)
        again = await mesh.submit(submission)
        assert not again.found
        assert again.batch.item_count == 3
        files = mesh.sandbox.openai_batches.files.values()
        assert len([file for file in files if file.about["purpose"] == "batch"]) == 1
        assert len(await mesh.outcomes(await mesh.reached(again.batch))) == 3


USAGE = {"prompt_tokens": 9, "completion_tokens": 2}
CHAT = {"choices": [{"message": {"content": "Hello."}, "finish_reason": "stop"}], "usage": USAGE}
MESSAGE = {
    "content": [{"type": "text", "text": "Hello."}],
    "stop_reason": "end_turn",
    "usage": {"input_tokens": 9, "output_tokens": 2},
}
HALF = [{"message": {"content": "Hello."}, "finish_reason": None}]


def _chat_error(said: str, code: str = "") -> dict[str, Any]:
    return {"error": {"message": said, "code": code}}


def _error(kind: str, said: str = "no") -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": said}}


ANSWERS: list[tuple[str, int, dict[str, Any], str, bool, tuple[int, int, bool] | None]] = [
    ("gpt", 200, CHAT, "", False, (9, 2, False)),
    ("gpt", 200, {**CHAT, "usage": None}, "", False, (40, 2, True)),
    ("gpt", 200, {**CHAT, "choices": HALF}, "PROVIDER_INCOMPLETE", True, (9, 2, False)),
    ("gpt", 200, {"usage": USAGE}, "PROVIDER_GARBAGE", True, (9, 2, False)),
    ("gpt", 400, _chat_error("no"), "PROVIDER_REJECTED", False, None),
    ("gpt", 400, _chat_error("no", "context_length_exceeded"), "PROMPT_TOO_LONG", False, None),
    ("gpt", 401, _chat_error("no"), "PROVIDER_UNAUTHENTICATED", False, None),
    ("gpt", 403, _chat_error("no"), "PROVIDER_FORBIDDEN", False, None),
    ("gpt", 429, _chat_error("no"), "PROVIDER_RATE_LIMITED", True, None),
    ("gpt", 500, {}, "PROVIDER_FAILED", True, None),
    ("claude", 200, MESSAGE, "", False, (9, 2, False)),
    ("claude", 200, {**MESSAGE, "usage": None}, "", False, (40, 2, True)),
    ("claude", 200, {**MESSAGE, "stop_reason": None}, "PROVIDER_INCOMPLETE", True, (9, 2, False)),
    ("claude", 400, _error("invalid_request_error"), "PROVIDER_REJECTED", False, None),
    ("claude", 400, _error("invalid_request_error", "prompt is too long: 9 > 8"), "PROMPT_TOO_LONG", False, None),
    ("claude", 401, _error("authentication_error"), "PROVIDER_UNAUTHENTICATED", False, None),
    ("claude", 403, _error("permission_error"), "PROVIDER_FORBIDDEN", False, None),
    ("claude", 429, _error("rate_limit_error"), "PROVIDER_RATE_LIMITED", True, None),
    ("claude", 529, _error("overloaded_error"), "PROVIDER_FAILED", True, None),
    ("claude", 500, _error("api_error"), "PROVIDER_FAILED", True, None),
]


@pytest.mark.parametrize(("model", "status", "body", "reason", "retryable", "usage"), ANSWERS)
async def test_what_an_item_ends_with(
    tmp_path: Path,
    model: str,
    status: int,
    body: dict[str, Any],
    reason: str,
    retryable: bool,
    usage: tuple[int, int, bool] | None,
) -> None:
    asked: list[dict[str, Any]] = []

    async def responder(request: dict[str, Any], _: str) -> tuple[int, dict[str, Any]]:
        asked.append(request)
        return status, body

    sandbox = Provider(InstantWriter(0, 6), 48, chat_responder=responder, message_responder=responder)
    async with batch_mesh(tmp_path, sandbox=sandbox) as mesh:
        batch = await mesh.reached((await mesh.submit(Submission(model, ids(1)))).batch)
        (result,) = (await mesh.outcomes(batch)).values()
        used = result.error.usage if reason else result.answer.completion.usage
        if reason:
            assert (result.error.reason, result.error.retryable) == (reason, retryable)
            assert result.error.HasField("usage") == (usage is not None)
        if usage is not None:
            assert (used.input_token_count, used.output_token_count, used.estimated) == usage
    # What was sent is an online request's body, less `stream`.
    if model == "gpt":
        plain = {"role": "user", "content": "Question 0"}
        assert asked == [{"model": "gpt-x", "messages": [plain], "max_tokens": 30, "temperature": 0.0}]
    else:
        question = {"role": "user", "content": [{"type": "text", "text": "Question 0"}]}
        assert asked == [{"model": "claude-x", "max_tokens": 30, "messages": [question]}]


async def test_a_submission_runs_once_at_a_time(tmp_path: Path) -> None:
    async with batch_mesh(tmp_path) as mesh:
        submission, go = Submission("gpt", ids(2)), asyncio.Event()

        async def slowly() -> AsyncIterator[inference_pb2.SubmitProviderBatchRequest]:
            async for message in submission.messages():
                yield message
            await go.wait()

        first = asyncio.ensure_future(mesh.stub.SubmitProviderBatch(slowly(), timeout=30))
        async with asyncio.timeout(10):
            while True:
                try:
                    await mesh.submit(Submission("gpt", [], id=submission.id))
                except TenthError as error:
                    if error.reason == "ATTEMPT_RUNNING":
                        break
        go.set()
        assert (await first).batch.item_count == 2
        assert (await mesh.submit(submission)).found


@BOTH
async def test_an_unknown_batch(tmp_path: Path, model: str) -> None:
    async with batch_mesh(tmp_path) as mesh:
        unknown = inference_pb2.ProviderBatch(model=model, provider_batch_id="../files")
        for call in (mesh.get(unknown), mesh.cancel(unknown), mesh.outcomes(unknown)):
            with pytest.raises(TenthError) as caught:
                await call
            assert (caught.value.code.name, caught.value.reason) == ("NOT_FOUND", "PROVIDER_BATCH_NOT_FOUND")


async def test_limits_and_models_without_batches(tmp_path: Path) -> None:
    async with batch_mesh(tmp_path) as mesh:
        limits = {
            model: await mesh.stub.GetProviderBatchLimits(
                inference_pb2.GetProviderBatchLimitsRequest(model=model), timeout=5
            )
            for model in ("gpt", "claude", "other", "small")
        }
        assert [limits[model].supported for model in limits] == [True, True, False, False]
        assert (limits["gpt"].max_item_count, limits["gpt"].max_byte_count) == (50_000, 200_000_000)
        assert (limits["claude"].max_item_count, limits["claude"].max_byte_count) == (100_000, 256_000_000)
        assert limits["gpt"].expiry.seconds == 86_400
        for model, code in (("other", "UNIMPLEMENTED"), ("small", "UNIMPLEMENTED"), ("none", "NOT_FOUND")):
            with pytest.raises(TenthError) as caught:
                await mesh.submit(Submission(model, ids(1)))
            assert (caught.value.code.name, caught.value.field) == (code, "head.model")


def _with_tools(request: inference_pb2.GenerateTextRequest) -> None:
    request.tools.add(name="f")


def _unlike(request: inference_pb2.GenerateTextRequest) -> None:
    request.model = "claude"


def _nameless(request: inference_pb2.GenerateTextRequest) -> None:
    request.request_id = "r/1"


def _same(request: inference_pb2.GenerateTextRequest) -> None:
    request.request_id = "r1"


@pytest.mark.parametrize(
    ("change", "reason", "field"),
    [
        (_with_tools, "UNSUPPORTED", "generations[0].tools"),
        (_unlike, "INVALID_FIELD", "generations[0].model"),
        (_nameless, "INVALID_FIELD", "generations[0].request_id"),
        (_same, "INVALID_FIELD", "generations[1].request_id"),
    ],
)
async def test_a_generation_that_is_wrong_is_named(tmp_path: Path, change: object, reason: str, field: str) -> None:
    async with batch_mesh(tmp_path) as mesh:
        with pytest.raises(TenthError) as caught:
            await mesh.submit(Submission("gpt", ids(3), change=change))  # type: ignore[arg-type]  # one of the above
        assert (caught.value.reason, caught.value.field) == (reason, field)
        assert caught.value.metadata["request_id"]
        assert mesh.sandbox.openai_batches.files == {}, "nothing was sent"


@pytest.mark.parametrize(
    ("handler", "code", "reason"),
    [
        (reply(401, {"error": {"message": "key sk-1"}}), "FAILED_PRECONDITION", "PROVIDER_UNAUTHENTICATED"),
        (reply(403, {"error": {"message": "no"}}), "FAILED_PRECONDITION", "PROVIDER_FORBIDDEN"),
        (reply(429, {"error": {"message": "no"}}), "RESOURCE_EXHAUSTED", "PROVIDER_RATE_LIMITED"),
        (reply(500, {"error": {"message": "no"}}), "UNAVAILABLE", "PROVIDER_FAILED"),
        (reply(200, "<html>"), "UNAVAILABLE", "PROVIDER_GARBAGE"),
        (reply(200, {}), "UNAVAILABLE", "PROVIDER_GARBAGE"),
        (drop, "UNAVAILABLE", "PROVIDER_UNREACHABLE"),
    ],
)
@BOTH
async def test_what_a_provider_says_is_typed(
    tmp_path: Path, model: str, handler: Handler, code: str, reason: str
) -> None:
    async with scripted(handler) as url, batch_mesh(tmp_path, url=url) as mesh:
        batch = inference_pb2.ProviderBatch(model=model, provider_batch_id="b1")
        for _ in range(2):
            with pytest.raises(TenthError) as caught:
                await mesh.get(batch)
            assert (caught.value.code.name, caught.value.reason) == (code, reason)
            assert "sk-1" not in caught.value.message
        opens = reason in ("PROVIDER_UNAUTHENTICATED", "PROVIDER_FORBIDDEN", "PROVIDER_FAILED", "PROVIDER_UNREACHABLE")
        with pytest.raises(TenthError) as caught:
            await mesh.get(batch)
        assert caught.value.reason == ("PROVIDER_UNHEALTHY" if opens else reason)


async def test_a_head_that_is_wrong(tmp_path: Path) -> None:
    async with batch_mesh(tmp_path) as mesh:
        for submission, field in (
            (Submission("gpt", [], id="x"), "head.submission_id"),
            (Submission("gpt", []), "generation"),
            (Submission("", []), "head.model"),
        ):
            with pytest.raises(TenthError) as caught:
                await mesh.submit(submission)
            assert caught.value.field == field


async def test_a_connection_that_breaks_within_the_results(tmp_path: Path) -> None:
    counts = {"processing": 0, "succeeded": 2, "errored": 0, "canceled": 0, "expired": 0}
    ended = reply(200, {"id": "b1", "processing_status": "ended", "request_counts": counts})
    name = BatchItem("r1", 1, 40, tag_of("s")).custom_id
    line = json.dumps({"custom_id": name, "result": {"type": "expired"}}) + "\n"
    asked = 0

    async def handler(body: dict[str, Any], headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            await ended(body, headers, writer)
        else:
            writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {2 * len(line)}\r\n\r\n{line}".encode())
            await writer.drain()
            writer.close()

    got: list[str] = []

    async def read(mesh: BatchMesh) -> None:
        async for result in mesh.results(inference_pb2.ProviderBatch(model="claude", provider_batch_id="b1")):
            got.append(result.error.reason)  # noqa: PERF401  # what came before the error counts

    async with scripted(handler) as url, batch_mesh(tmp_path, url=url) as mesh:
        with pytest.raises(TenthError) as caught:
            await read(mesh)
        assert (caught.value.code.name, caught.value.reason) == ("UNAVAILABLE", "PROVIDER_INCOMPLETE")
        assert got == ["PROVIDER_BATCH_EXPIRED"]


async def test_an_overloaded_provider_is_asked_again_only_where_that_is_safe(tmp_path: Path) -> None:
    asked = 0
    busy = reply(503, {"error": {"message": "busy"}})

    async def handler(body: dict[str, Any], headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        asked += 1
        await busy(body, headers, writer)

    async with scripted(handler) as url, batch_mesh(tmp_path, url=url) as mesh:
        with pytest.raises(TenthError):
            await mesh.get(inference_pb2.ProviderBatch(model="claude", provider_batch_id="b1"))
        assert asked == 2, "TENTH_INFERENCE_RETRIES more"
        with pytest.raises(TenthError) as caught:
            await mesh.submit(Submission("claude", ids(1), first=True))
        assert caught.value.reason == "PROVIDER_FAILED"
        assert asked == 3, "a creation that failed may have made a batch"
