"""The OpenAI backend against a real socket that answers well, badly, late, by halves, and not at all."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from tenth.inference.v1 import inference_pb2, inference_pb2_grpc
from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2

from mesh.errors import TenthError
from mesh.status import detail
from mesh.testing import TEST_IDENTITY, dial, memory_metrics, metric_points, running
from services.inference.attempts import AttemptLog
from services.inference.backend import Backend
from services.inference.call import CallRules
from services.inference.models import Model, Provider
from services.inference.openai import OpenAiBackend, OpenAiClient
from services.inference.policy import Ability, Circuit
from services.inference.providers import Chances, Endpoint, ProviderClient
from services.inference.served import Served
from services.inference.servicer import InferenceServicer
from services.inference.tokens import count_tokens
from services.inference.usage import Family

Handler = Callable[[dict[str, Any], dict[str, str], asyncio.StreamWriter], Awaitable[None]]

ANSWER = {
    "choices": [{"message": {"role": "assistant", "content": "Hello."}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 2, "prompt_tokens_details": {"cached_tokens": 4}},
}


class ScriptedProvider:
    """A bare HTTP server, one handler per request in order; the last one stays."""

    def __init__(self, *handlers: Handler) -> None:
        self.handlers = list(handlers)
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.left = asyncio.Event()
        self.url = ""

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
                body = json.loads(await reader.readexactly(int(headers["content-length"])))
                self.bodies.append(body)
                self.headers.append(headers)
                self.paths.append(lines[0].split(" ")[1])
                handler = self.handlers.pop(0) if len(self.handlers) > 1 else self.handlers[0]
                await handler(body, headers, writer)
                await writer.drain()
                if writer.is_closing():
                    return
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self.left.set()
            writer.close()


def reply(status: int, body: object, kind: str = "application/json", **headers: str) -> Handler:
    async def handler(_: dict[str, Any], __: dict[str, str], writer: asyncio.StreamWriter) -> None:
        raw = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        extra = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 {status} X\r\ncontent-type: {kind}\r\ncontent-length: {len(raw)}\r\n{extra}\r\n"
        writer.write(head.encode() + raw)

    return handler


def events(*items: object, cut: bool = False, hang: bool = False) -> Handler:
    async def handler(_: dict[str, Any], __: dict[str, str], writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
        for item in items:
            raw = f"data: {item if isinstance(item, str) else json.dumps(item)}\n\n".encode()
            writer.write(f"{len(raw):x}\r\n".encode() + raw + b"\r\n")
        await writer.drain()
        while hang:  # A comment now and then shows whether anybody is still there.
            await asyncio.sleep(0.05)
            writer.write(b"5\r\n: x\n\n\r\n")
            await writer.drain()
        if cut:
            writer.close()
        else:
            writer.write(b"0\r\n\r\n")

    return handler


async def hang(_: dict[str, Any], __: dict[str, str], ___: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def drop(_: dict[str, Any], __: dict[str, str], writer: asyncio.StreamWriter) -> None:
    writer.close()


def piece(text: str, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": reason}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}}


class Mesh:
    """The inference service over a scripted provider, with what it wrote down."""

    def __init__(
        self,
        stub: inference_pb2_grpc.InferenceServiceAsyncStub,
        log: AttemptLog,
        provider: ScriptedProvider,
        metrics: InMemoryMetricReader,
    ) -> None:
        self.stub = stub
        self.metrics = metrics
        self.log = log
        self.provider = provider

    def request(self, **changes: Any) -> inference_pb2.GenerateTextRequest:
        base = inference_pb2.GenerateTextRequest(
            request_id="r1",
            attempt=1,
            model="gpt",
            messages=[chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text="Hi")])],
            estimated_input_token_count=40,
            reservation_id="res",
            price_book_version=7,
        )
        base.sampling.max_output_tokens = 30
        base.MergeFrom(inference_pb2.GenerateTextRequest(**changes))
        return base

    async def stream(self, seconds: float = 5, **changes: Any) -> list[inference_pb2.StreamGenerateTextResponse]:
        request = inference_pb2.StreamGenerateTextRequest(generation=self.request(**changes))
        return [event async for event in self.stub.StreamGenerateText(request, timeout=seconds)]

    async def ask(self, seconds: float, *, streamed: bool, **changes: Any) -> None:
        if streamed:
            await self.stream(seconds, **changes)
        else:
            await self.stub.GenerateText(self.request(**changes), timeout=seconds)

    def records(self) -> list[ledger_pb2.AttemptEvent]:
        return [ledger_pb2.AttemptEvent.FromString(blob) for _, blob in self.log.pending()]

    def ending(self) -> tuple[str, int, int, bool]:
        """Kind, input, output and estimated of the last record."""
        last = self.records()[-1]
        kind = ledger_pb2.AttemptKind.Name(last.kind)[13:]
        return kind, last.usage.input_token_count, last.usage.output_token_count, last.usage.estimated


Make = Callable[[Endpoint, Chances], tuple[ProviderClient, Backend]]


def openai_backend(
    endpoint: Endpoint, chances: Chances, rules: CallRules | None = None
) -> tuple[ProviderClient, Backend]:
    client = OpenAiClient(endpoint, lambda: "sk-test", chances)
    return client, OpenAiBackend(client, "gpt-x", rules)


@asynccontextmanager
async def mesh_over(
    tmp_path: Path,
    *handlers: Handler,
    url: str = "",
    circuit_failures: int = 100,
    make: Make = openai_backend,
    chances: Chances | None = None,
    **endpoint_changes: Any,
) -> AsyncIterator[Mesh]:
    provider = ScriptedProvider(*handlers)
    async with AsyncExitStack() as stack:
        server = await asyncio.start_server(provider.handle, "127.0.0.1", 0)
        stack.callback(server.close)
        base = url or f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        endpoint = replace(Endpoint("openai", base, 1.0, 8, 2, 1.0), **endpoint_changes)
        client, backend = make(endpoint, chances or Chances())
        stack.push_async_callback(client.close)
        ability = Ability(tools=True, json_schema=True)
        model = Model("gpt", Provider("openai", "openai", base), "gpt-x", 1000, 500, ability)
        log = AttemptLog(tmp_path / "attempts.db", time.time)
        stack.callback(log.close)
        served = {"gpt": Served(model, backend, Circuit(circuit_failures, 0.3))}
        telemetry, metrics = memory_metrics()
        stack.callback(telemetry.close)
        servicer = InferenceServicer(served, log, telemetry, count_tokens, time.time)
        stack.push_async_callback(servicer.close)
        address = await stack.enter_async_context(
            running(
                inference_pb2_grpc.add_InferenceServiceServicer_to_server,
                servicer,
                "tenth.inference.v1.InferenceService",
                tmp_path,
            )
        )
        channel = await stack.enter_async_context(dial(address))
        yield Mesh(inference_pb2_grpc.InferenceServiceStub(channel), log, provider, metrics)


async def test_a_whole_answer_its_usage_and_its_records(tmp_path: Path) -> None:
    async with mesh_over(tmp_path, reply(200, ANSWER)) as mesh:
        response = await mesh.stub.GenerateText(mesh.request(), timeout=5)
        assert response.completion.message.parts[0].text == "Hello."
        assert response.completion.finish_reason == chat_pb2.FINISH_REASON_STOP
        assert response.completion.usage.cached_input_token_count == 4
        assert response.provider_model == "gpt-x"
        assert mesh.provider.headers[0]["x-request-id"] == "r1/1"
        assert mesh.provider.headers[0]["authorization"] == "bearer sk-test"
        assert "traceparent" not in mesh.provider.headers[0]
        started, finished = mesh.records()
        assert (started.kind, started.usage.input_token_count, started.usage.output_token_count) == (1, 40, 30)
        assert (finished.kind, finished.usage.input_token_count, finished.usage.output_token_count) == (2, 9, 2)
        assert finished.tenant_id == TEST_IDENTITY.tenant_id
        assert (finished.reservation_id, finished.price_book_version, finished.purpose) == ("res", 7, "answer")
        assert len(finished.trace_id) == 32


async def test_a_vllm_server_of_ones_own_joins_the_trace(tmp_path: Path) -> None:
    async with mesh_over(tmp_path, reply(200, ANSWER), family=Family.VLLM) as mesh:
        await mesh.stub.GenerateText(mesh.request(), timeout=5)
        trace_id = mesh.records()[-1].trace_id
        assert mesh.provider.headers[0]["traceparent"].split("-")[1] == trace_id


async def test_a_stream_its_tool_calls_and_its_usage(tmp_path: Path) -> None:
    call = {"index": 0, "id": "c1", "function": {"name": "f", "arguments": '{"a"'}}
    rest = {"index": 0, "function": {"arguments": ": 1}"}}
    script = events(
        {"choices": [{"delta": {"role": "assistant", "content": ""}}]},
        {"choices": [{"delta": {"reasoning_content": "hm"}}]},
        {"choices": [{"delta": {"tool_calls": [call]}}]},
        {"choices": [{"delta": {"tool_calls": [rest]}, "finish_reason": "tool_calls"}]},
        USAGE,
        "[DONE]",
    )
    async with mesh_over(tmp_path, script) as mesh:
        got = await mesh.stream()
        assert [event.WhichOneof("event") for event in got] == ["started", "delta", "delta", "delta", "finished"]
        assert got[1].delta.reasoning == "hm"
        assert got[2].delta.tool_calls[0].name == "f"
        assert got[2].delta.tool_calls[0].arguments_json + got[3].delta.tool_calls[0].arguments_json == '{"a": 1}'
        assert got[-1].finished.finish_reason == chat_pb2.FINISH_REASON_TOOL_CALLS
        assert got[-1].finished.usage.output_token_count == 2
        assert mesh.provider.bodies[0]["stream_options"] == {"include_usage": True}
        assert mesh.ending() == ("FINISHED", 9, 2, False)


async def test_usage_that_nobody_reported_is_counted_and_marked(tmp_path: Path) -> None:
    answer = {"choices": ANSWER["choices"]}
    async with mesh_over(tmp_path, events(piece("Hello."), piece("", "stop")), reply(200, answer)) as mesh:
        finished = (await mesh.stream())[-1].finished
        assert finished.usage.estimated
        assert mesh.ending() == ("FINISHED", 40, 2, True)
        await mesh.stub.GenerateText(mesh.request(attempt=1, request_id="r2"), timeout=5)
        assert mesh.ending() == ("FINISHED", 40, 2, True)


ERROR = {"error": {"message": "said so", "code": "c"}}
# handler, streamed, code, reason, ending (kind, input, output, estimated)
FAILURES: list[tuple[str, Handler, bool, str, str, tuple[str, int, int, bool]]] = [
    ("400", reply(400, ERROR), False, "INVALID_ARGUMENT", "PROVIDER_REJECTED", ("FAILED", 0, 0, False)),
    (
        "too long",
        reply(400, {"error": {"message": "m", "code": "context_length_exceeded"}}),
        False,
        "INVALID_ARGUMENT",
        "PROMPT_TOO_LONG",
        ("FAILED", 0, 0, False),
    ),
    ("401", reply(401, ERROR), True, "FAILED_PRECONDITION", "PROVIDER_UNAUTHENTICATED", ("FAILED", 0, 0, False)),
    ("403", reply(403, ERROR), False, "FAILED_PRECONDITION", "PROVIDER_FORBIDDEN", ("FAILED", 0, 0, False)),
    ("404", reply(404, "no"), False, "FAILED_PRECONDITION", "PROVIDER_MODEL_NOT_FOUND", ("FAILED", 0, 0, False)),
    (
        "429",
        reply(429, ERROR, retry_after="7"),
        True,
        "RESOURCE_EXHAUSTED",
        "PROVIDER_RATE_LIMITED",
        ("FAILED", 0, 0, False),
    ),
    ("500", reply(500, ERROR), False, "UNAVAILABLE", "PROVIDER_FAILED", ("FAILED", 0, 0, False)),
    ("503 again and again", reply(503, ERROR), True, "UNAVAILABLE", "PROVIDER_FAILED", ("FAILED", 0, 0, False)),
    (
        "302",
        reply(302, "", location="http://127.0.0.1:1"),
        False,
        "UNAVAILABLE",
        "PROVIDER_FAILED",
        ("FAILED", 0, 0, False),
    ),
    ("html", reply(200, "<html>", "text/html"), False, "UNAVAILABLE", "PROVIDER_GARBAGE", ("FAILED", 40, 0, True)),
    (
        "html streamed",
        reply(200, "<html>", "text/html"),
        True,
        "UNAVAILABLE",
        "PROVIDER_GARBAGE",
        ("FAILED", 40, 0, True),
    ),
    ("a list", reply(200, []), False, "UNAVAILABLE", "PROVIDER_GARBAGE", ("FAILED", 40, 0, True)),
    ("no choice", reply(200, {"choices": []}), False, "UNAVAILABLE", "PROVIDER_GARBAGE", ("FAILED", 40, 0, True)),
    ("no message", reply(200, {"choices": [{}]}), False, "UNAVAILABLE", "PROVIDER_GARBAGE", ("FAILED", 40, 0, True)),
    (
        "event garbage",
        events(piece("Hello."), "{nope"),
        True,
        "UNAVAILABLE",
        "PROVIDER_GARBAGE",
        ("FAILED", 40, 2, True),
    ),
    ("error event", events(piece("Hello."), ERROR), True, "UNAVAILABLE", "PROVIDER_FAILED", ("FAILED", 40, 2, True)),
    (
        "unfinished",
        reply(200, {**ANSWER, "choices": [{"message": {"content": "He"}, "finish_reason": None}]}),
        False,
        "UNAVAILABLE",
        "PROVIDER_INCOMPLETE",
        ("FAILED", 9, 2, False),
    ),
    ("half a stream", events(piece("Hello.")), True, "UNAVAILABLE", "PROVIDER_INCOMPLETE", ("FAILED", 40, 2, True)),
    (
        "cut after usage on the way",
        events({**piece("Hello."), "usage": {"prompt_tokens": 9, "completion_tokens": 1}}, cut=True),
        True,
        "UNAVAILABLE",
        "PROVIDER_INCOMPLETE",
        ("FAILED", 9, 2, True),
    ),
    (
        "cut stream",
        events(piece("Hello."), cut=True),
        True,
        "UNAVAILABLE",
        "PROVIDER_INCOMPLETE",
        ("FAILED", 40, 2, True),
    ),
    ("dropped", drop, False, "UNAVAILABLE", "PROVIDER_UNREACHABLE", ("FAILED", 40, 0, True)),
    ("hang", hang, False, "DEADLINE_EXCEEDED", "PROVIDER_TIMEOUT", ("FAILED", 40, 0, True)),
    (
        "hang in the stream",
        events(piece("Hello."), hang=True),
        True,
        "DEADLINE_EXCEEDED",
        "PROVIDER_TIMEOUT",
        ("FAILED", 40, 2, True),
    ),
]


@pytest.mark.parametrize(
    ("handler", "streamed", "code", "reason", "ending"),
    [pytest.param(*row[1:], id=row[0]) for row in FAILURES],
)
async def test_a_failing_provider_is_a_typed_error_and_charges_what_was_spent(
    tmp_path: Path, handler: Handler, streamed: bool, code: str, reason: str, ending: tuple[str, int, int, bool]
) -> None:
    async with mesh_over(tmp_path, handler) as mesh:
        seconds = 0.5 if reason == "PROVIDER_TIMEOUT" else 5
        with pytest.raises(TenthError) as caught:
            await mesh.ask(seconds, streamed=streamed)
        error = caught.value
        assert error.code.name == code
        if error.reason != "DEADLINE_EXPIRED":  # The caller's own clock may be the first to say so.
            assert error.reason == reason
            spent = detail(error, receipt_pb2.SpentDetail)
            assert (spent is not None) == (ending[1] > 0)
            if isinstance(spent, receipt_pb2.SpentDetail):
                assert (spent.attempts[0].attempt, spent.attempts[0].usage.output_token_count) == (1, ending[2])
        if reason == "PROVIDER_RATE_LIMITED":
            assert error.retry_after_seconds == 7
        await _until(lambda: len(mesh.records()) == 2)
        kind, *rest = mesh.ending()
        assert (kind if reason != "PROVIDER_TIMEOUT" else "FAILED", *rest) == ending


async def _until(condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("it did not come to pass")


async def test_a_dead_address_is_tried_again_and_then_typed(tmp_path: Path) -> None:
    async with mesh_over(tmp_path, hang, url="http://127.0.0.1:1/v1") as mesh:
        with pytest.raises(TenthError) as caught:
            await mesh.stub.GenerateText(mesh.request(), timeout=5)
        assert caught.value.reason == "PROVIDER_UNREACHABLE"
        assert mesh.ending() == ("FAILED", 0, 0, False)


async def test_what_the_provider_refused_for_a_moment_is_tried_again(tmp_path: Path) -> None:
    script = (reply(503, ERROR), reply(429, ERROR, retry_after_ms="20"), events(piece("Hello.", "stop"), USAGE))
    async with mesh_over(tmp_path, *script) as mesh:
        assert (await mesh.stream())[-1].finished.usage.input_token_count == 9
        assert len(mesh.provider.bodies) == 3
        assert [record.kind for record in mesh.records()] == [1, 2]


@pytest.mark.parametrize(
    ("last", "ending"),
    [
        ([USAGE], ("FINISHED", 9, 2, False)),
        ([], ("FINISHED", 40, 2, True)),
        ([{"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": None}}], ("FINISHED", 9, 2, True)),
        ([{"choices": [], "usage": {"prompt_tokens": 0, "completion_tokens": 0}}], ("FINISHED", 40, 2, True)),
    ],
    ids=["told", "not told", "half told", "zeros"],
)
async def test_a_stream_whose_usage_is_missing_is_counted_here(
    tmp_path: Path, last: list[Any], ending: tuple[str, int, int, bool]
) -> None:
    async with mesh_over(tmp_path, events(piece("Hello.", "stop"), *last, "[DONE]")) as mesh:
        finished = (await mesh.stream())[-1].finished
        assert mesh.ending() == ending
        assert (finished.usage.output_token_count, finished.usage.estimated) == ending[2:]


async def test_reasoning_reaches_the_answer_and_the_record(tmp_path: Path) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 62, "completion_tokens_details": {"reasoning_tokens": 60}}
    async with mesh_over(tmp_path, reply(200, {**ANSWER, "usage": usage})) as mesh:
        response = await mesh.stub.GenerateText(mesh.request(), timeout=5)
        assert response.completion.usage.reasoning_output_token_count == 60
        assert mesh.records()[-1].usage.reasoning_output_token_count == 60


async def test_every_attempt_is_in_the_metrics_once(tmp_path: Path) -> None:
    async with mesh_over(tmp_path, reply(200, ANSWER), events(piece("Hello."), cut=True)) as mesh:
        await mesh.stub.GenerateText(mesh.request(), timeout=5)
        with pytest.raises(TenthError):
            await mesh.stream(attempt=1)
        seconds = metric_points(mesh.metrics, "gen_ai.client.operation.duration").values()
        assert {point.attributes.get("error.type", ""): point.count for point in seconds} == {
            "": 1,
            "PROVIDER_INCOMPLETE": 1,
        }
        tokens = metric_points(mesh.metrics, "gen_ai.client.token.usage").values()
        counted = {
            (point.attributes["gen_ai.token.type"], point.attributes["tenth.usage_estimated"]): point.sum
            for point in tokens
        }
        assert counted == {("input", False): 9, ("output", False): 2, ("input", True): 40, ("output", True): 2}


async def test_a_caller_who_leaves_a_stream_pays_for_what_was_emitted(tmp_path: Path) -> None:
    async with mesh_over(tmp_path, events(piece("Hello."), hang=True)) as mesh:
        request = inference_pb2.StreamGenerateTextRequest(generation=mesh.request())
        call = mesh.stub.StreamGenerateText(request, timeout=5)
        async for event in call:
            if event.HasField("delta"):
                break
        await call.aclose()  # type: ignore[attr-defined]  # the mesh channel's streams are async generators
        await _until(lambda: len(mesh.records()) == 2)
        assert mesh.ending() == ("CANCELLED", 40, 2, True)
        await asyncio.wait_for(mesh.provider.left.wait(), 5)


async def test_a_caller_who_leaves_a_whole_answer_pays_the_bill_that_comes(tmp_path: Path) -> None:
    async def late(body: dict[str, Any], headers: dict[str, str], writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.4)
        await reply(200, ANSWER)(body, headers, writer)

    async with mesh_over(tmp_path, late) as mesh:
        call = asyncio.ensure_future(mesh.stub.GenerateText(mesh.request(), timeout=5))
        await _until(lambda: len(mesh.provider.bodies) == 1)
        call.cancel()
        await _until(lambda: len(mesh.records()) == 2)
        assert mesh.ending() == ("FINISHED", 9, 2, False)


async def test_a_model_that_keeps_failing_is_left_alone_then_probed(tmp_path: Path) -> None:
    script = (reply(500, ERROR), reply(500, ERROR), reply(200, ANSWER))
    async with mesh_over(tmp_path, *script, circuit_failures=2) as mesh:
        for number in (1, 2, 3):
            with pytest.raises(TenthError) as caught:
                await mesh.stub.GenerateText(mesh.request(request_id=f"r{number}"), timeout=5)
        assert caught.value.reason == "PROVIDER_UNHEALTHY"
        assert caught.value.retry_after_seconds
        assert len(mesh.provider.bodies) == 2
        assert len(mesh.records()) == 4  # The third never reached anybody: no attempt.
        listed = (await mesh.stub.ListServedModels(inference_pb2.ListServedModelsRequest(), timeout=5)).models[0]
        assert (listed.model, listed.provider, listed.backend, listed.healthy) == ("gpt", "openai", "openai", False)
        assert "HTTP 500" in listed.reason
        await asyncio.sleep(0.35)
        await mesh.stub.GenerateText(mesh.request(request_id="r4"), timeout=5)
        assert (await mesh.stub.ListServedModels(inference_pb2.ListServedModelsRequest(), timeout=5)).models[0].healthy


@pytest.mark.parametrize(
    ("changes", "code", "reason", "field"),
    [
        ({"model": "gpt-none"}, "NOT_FOUND", "MODEL_UNKNOWN", "generation.model"),
        ({"purpose": inference_pb2.PURPOSE_SANDBOX}, "PERMISSION_DENIED", "PURPOSE_FORBIDDEN", "generation.purpose"),
        (
            {
                "messages": [
                    chat_pb2.ChatMessage(
                        role=chat_pb2.ROLE_USER,
                        parts=[chat_pb2.ContentPart(image=chat_pb2.ImageContent(url="https://x"))],
                    )
                ]
            },
            "UNIMPLEMENTED",
            "UNSUPPORTED",
            "generation.messages",
        ),
    ],
)
async def test_a_request_that_cannot_be_served_reaches_nobody(
    tmp_path: Path, changes: dict[str, Any], code: str, reason: str, field: str
) -> None:
    async with mesh_over(tmp_path, reply(200, ANSWER)) as mesh:
        with pytest.raises(TenthError) as caught:
            await mesh.stub.GenerateText(mesh.request(**changes), timeout=5)
        assert (caught.value.code.name, caught.value.reason, caught.value.field) == (code, reason, field)
        assert mesh.provider.bodies == []
        assert mesh.records() == []


async def test_the_same_attempt_does_not_run_twice_at_once(tmp_path: Path) -> None:
    async with mesh_over(tmp_path, hang) as mesh:
        first = asyncio.ensure_future(mesh.stub.GenerateText(mesh.request(), timeout=1))
        await _until(lambda: len(mesh.provider.bodies) == 1)
        with pytest.raises(TenthError) as caught:
            await mesh.stub.GenerateText(mesh.request(), timeout=1)
        assert (caught.value.code.name, caught.value.reason) == ("ALREADY_EXISTS", "ATTEMPT_RUNNING")
        with pytest.raises(TenthError):
            await first
        assert len(mesh.provider.bodies) == 1
