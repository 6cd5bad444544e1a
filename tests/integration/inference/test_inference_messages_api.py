"""The Messages API over real sockets: against scripted servers, and against the sandbox's books."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from tenth.inference.v1 import inference_pb2
from tenth.type.v1 import chat_pb2

from mesh.errors import TenthError
from sandbox.provider import Provider
from sandbox.writers import InstantWriter
from services.inference.anthropic import AnthropicBackend, AnthropicClient
from services.inference.backend import Backend
from services.inference.call import CallRules
from services.inference.providers import Chances, Endpoint, ProviderClient
from services.inference.usage import Family
from tests.integration.inference.test_inference_providers import Handler, Mesh, _until, events, hang, mesh_over, reply

RULES = CallRules({"temperature": "drop", "logprobs": "refuse"})
USAGE = {"input_tokens": 5, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 20, "output_tokens": 1}
ANSWER = {
    "type": "message",
    "content": [{"type": "text", "text": "Hello."}],
    "stop_reason": "end_turn",
    "usage": USAGE | {"output_tokens": 2, "output_tokens_details": {"thinking_tokens": 1}},
}
START = {"type": "message_start", "message": {"id": "m", "content": [], "usage": USAGE}}
BEGIN = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
TEXT = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hello."}}
STOP = {"type": "content_block_stop", "index": 0}
END = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 2}}
LAST = {"type": "message_stop"}


def anthropic_backend(endpoint: Endpoint, chances: Chances) -> tuple[ProviderClient, Backend]:
    client = AnthropicClient(endpoint, lambda: "sk-ant", chances)
    return client, AnthropicBackend(client, "claude-x", 500, RULES)


@asynccontextmanager
async def mesh_on(tmp_path: Path, *handlers: Handler, **changes: Any) -> AsyncIterator[Mesh]:
    async def nothing(_: float) -> None: ...

    chances = Chances(sleep=nothing)
    changes = {"family": Family.ANTHROPIC, "make": anthropic_backend, "chances": chances, **changes}
    async with mesh_over(tmp_path, *handlers, **changes) as mesh:
        yield mesh


async def test_a_whole_answer_with_what_was_cached(tmp_path: Path) -> None:
    async with mesh_on(tmp_path, reply(200, ANSWER)) as mesh:
        request = mesh.request(stable_prefix_message_count=1)
        request.sampling.temperature = 0
        response = await mesh.stub.GenerateText(request, timeout=5)
        assert response.completion.message.parts[0].text == "Hello."
        usage = response.completion.usage
        assert (usage.input_token_count, usage.cached_input_token_count, usage.cache_write_5m_token_count) == (
            125,
            100,
            20,
        )
        assert usage.reasoning_output_token_count == 1
        (body,), (headers,) = mesh.provider.bodies, mesh.provider.headers
        assert mesh.provider.paths == ["/v1/messages"]
        assert headers["authorization"] == "bearer sk-ant"
        assert headers["anthropic-version"]
        assert headers["x-request-id"] == "r1/1"
        assert body["messages"][0]["content"][0]["cache_control"] == {"type": "ephemeral"}
        assert "temperature" not in body
        assert mesh.ending() == ("FINISHED", 125, 2, False)


async def test_a_stream_with_thought_and_a_tool_call(tmp_path: Path) -> None:
    call = {"type": "tool_use", "id": "c1", "name": "f", "input": {}}
    script = events(
        START,
        {"type": "ping"},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "x"}},
        STOP,
        {"type": "content_block_start", "index": 1, "content_block": call},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"a"'}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": ": 1}"}},
        {"type": "content_block_stop", "index": 1},
        {**END, "delta": {"stop_reason": "tool_use"}},
        LAST,
    )
    async with mesh_on(tmp_path, script) as mesh:
        got = await mesh.stream()
        assert got[1].delta.reasoning == "hm"
        assert got[2].delta.tool_calls[0].name == "f"
        assert "".join(call.arguments_json for event in got for call in event.delta.tool_calls) == '{"a": 1}'
        assert got[-1].finished.finish_reason == chat_pb2.FINISH_REASON_TOOL_CALLS
        assert mesh.ending() == ("FINISHED", 125, 2, False)


def error(kind: str, message: str = "said so") -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}}


FAILURES: list[tuple[str, Handler, bool, str, str, tuple[str, int, int, bool]]] = [
    ("400", reply(400, error("invalid_request_error")), False, "INVALID_ARGUMENT", "PROVIDER_REJECTED",
     ("FAILED", 0, 0, False)),
    ("too long", reply(400, error("invalid_request_error", "prompt is too long: 9 tokens > 8 maximum")), False,
     "INVALID_ARGUMENT", "PROMPT_TOO_LONG", ("FAILED", 0, 0, False)),
    ("401", reply(401, error("authentication_error")), True, "FAILED_PRECONDITION", "PROVIDER_UNAUTHENTICATED",
     ("FAILED", 0, 0, False)),
    ("429", reply(429, error("rate_limit_error"), retry_after="7"), True, "RESOURCE_EXHAUSTED", "PROVIDER_RATE_LIMITED",
     ("FAILED", 0, 0, False)),
    ("529", reply(529, error("overloaded_error")), False, "UNAVAILABLE", "PROVIDER_FAILED", ("FAILED", 0, 0, False)),
    ("overloaded in the stream", events(START, BEGIN, TEXT, error("overloaded_error")), True, "UNAVAILABLE",
     "PROVIDER_FAILED", ("FAILED", 125, 2, True)),
    ("cut", events(START, BEGIN, TEXT, cut=True), True, "UNAVAILABLE", "PROVIDER_INCOMPLETE", ("FAILED", 125, 2, True)),
    ("half", events(START, BEGIN, TEXT), True, "UNAVAILABLE", "PROVIDER_INCOMPLETE", ("FAILED", 125, 2, True)),
    ("html", reply(200, "<html>", "text/html"), True, "UNAVAILABLE", "PROVIDER_GARBAGE", ("FAILED", 40, 0, True)),
    ("no content", reply(200, {"stop_reason": "end_turn"}), False, "UNAVAILABLE", "PROVIDER_GARBAGE",
     ("FAILED", 40, 0, True)),
    ("wrong form", events(START, {**BEGIN, "index": "x"}), True, "UNAVAILABLE", "PROVIDER_GARBAGE",
     ("FAILED", 125, 1, True)),
    ("unfinished", reply(200, {**ANSWER, "stop_reason": None}), False, "UNAVAILABLE", "PROVIDER_INCOMPLETE",
     ("FAILED", 125, 2, False)),
    ("hang", hang, False, "DEADLINE_EXCEEDED", "PROVIDER_TIMEOUT", ("FAILED", 40, 0, True)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("handler", "streamed", "code", "reason", "ending"),
    [pytest.param(*row[1:], id=row[0]) for row in FAILURES],
)
async def test_a_failure_is_typed_and_charges_what_was_spent(
    tmp_path: Path, handler: Handler, streamed: bool, code: str, reason: str, ending: tuple[str, int, int, bool]
) -> None:
    async with mesh_on(tmp_path, handler) as mesh:
        with pytest.raises(TenthError) as caught:
            await mesh.ask(0.5 if reason == "PROVIDER_TIMEOUT" else 5, streamed=streamed)
        assert caught.value.code.name == code
        assert caught.value.reason in (reason, "DEADLINE_EXPIRED" if reason == "PROVIDER_TIMEOUT" else reason)
        if reason == "PROVIDER_RATE_LIMITED":
            assert caught.value.retry_after_seconds == 7
        await _until(lambda: len(mesh.records()) == 2)
        assert mesh.ending() == ending


async def test_events_that_come_twice_are_neither_read_nor_billed_twice(tmp_path: Path) -> None:
    async with mesh_on(
        tmp_path, events(START, START, BEGIN, BEGIN, TEXT, STOP, TEXT, STOP, END, TEXT, END, LAST)
    ) as mesh:
        got = await mesh.stream()
        assert "".join(event.delta.text for event in got) == "Hello."
        assert mesh.ending() == ("FINISHED", 125, 2, False)


async def test_log_probabilities_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    async with mesh_on(tmp_path, reply(200, ANSWER)) as mesh:
        request = mesh.request()
        request.sampling.top_logprobs_count = 2
        with pytest.raises(TenthError) as caught:
            await mesh.stub.GenerateText(request, timeout=5)
        assert (caught.value.code.name, caught.value.field) == (
            "UNIMPLEMENTED",
            "generation.sampling.top_logprobs_count",
        )
        assert mesh.provider.bodies == []


@asynccontextmanager
async def sandbox() -> AsyncIterator[tuple[Provider, str]]:
    provider = Provider(InstantWriter(0, 12), 48)
    config = uvicorn.Config(provider.app, host="127.0.0.1", port=0, log_config=None, access_log=False, lifespan="off")
    server = uvicorn.Server(config)
    # Signals are the test runner's.
    serving = asyncio.ensure_future(server._serve())
    await _until(lambda: server.started)
    try:
        yield provider, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/v1"
    finally:
        server.should_exit = True
        await serving


async def test_the_sandbox_speaks_the_messages_api_and_its_books_agree(tmp_path: Path) -> None:
    async with sandbox() as (provider, url), mesh_on(tmp_path, hang, url=url, sandbox=True) as mesh:
        instructions = "Answer in one word. " * 400
        usages = []
        for number in (1, 2):
            request = mesh.request(request_id=f"r{number}", stable_prefix_message_count=1)
            request.messages.insert(
                0,
                chat_pb2.ChatMessage(role=chat_pb2.ROLE_SYSTEM, parts=[chat_pb2.ContentPart(text=instructions)]),
            )
            streamed = inference_pb2.StreamGenerateTextRequest(generation=request)
            got = [event async for event in mesh.stub.StreamGenerateText(streamed, timeout=10)]
            usages.append(got[-1].finished.usage)
        first, second = usages
        assert first.cache_write_5m_token_count > 1024
        assert first.cached_input_token_count == 0
        assert second.cached_input_token_count > 1024
        assert first.input_token_count == second.input_token_count
        whole = await mesh.stub.GenerateText(mesh.request(request_id="r3"), timeout=10)
        assert whole.completion.usage.cached_input_token_count == 0, "without a breakpoint nothing is cached"
        books = provider.books.to_json()["models"]["claude-x"]
        ended = [record.usage for record in mesh.records() if record.kind == 2]
        assert books["requests"] == len(ended) == 3
        assert books["input_tokens"] == sum(usage.input_token_count for usage in ended)
        assert books["output_tokens"] == sum(usage.output_token_count for usage in ended)
        assert books["cached_input_tokens"] == sum(usage.cached_input_token_count for usage in ended)
        assert provider.books.request_ids == ["r1/1", "r2/1", "r3/1"]


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("429", "PROVIDER_RATE_LIMITED"),
        ("500", "PROVIDER_FAILED"),
        ("garbage", "PROVIDER_GARBAGE"),
        ("half_stream", "PROVIDER_INCOMPLETE"),
    ],
)
async def test_the_sandbox_fails_on_demand_here_too(tmp_path: Path, mode: str, reason: str) -> None:
    async with sandbox() as (provider, url), mesh_on(tmp_path, hang, url=url, sandbox=True) as mesh:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(url.split(":")[2].split("/")[0]))
        raw = json.dumps({"mode": mode, "count": 1}).encode()
        head = f"POST /sandbox/fail HTTP/1.1\r\nhost: x\r\ncontent-length: {len(raw)}\r\nconnection: close\r\n\r\n"
        writer.write(head.encode() + raw)
        assert b"200 OK" in await reader.read()
        writer.close()
        await writer.wait_closed()
        with pytest.raises(TenthError) as caught:
            await mesh.stream()
        assert caught.value.reason == reason
        assert (await mesh.stream(request_id="r2"))[-1].HasField("finished")
        assert provider.books.failures["claude-x"] == 1
