"""The client against real gRPC servers on loopback ports: answers, streams, typed errors, retries, TLS."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from tenth.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from tenth.type.v1 import chat_pb2, receipt_pb2

from tenth_client import Client, TenthClientError, Tls
from tenth_client.replay import play

GenerateRequest = orchestrator_pb2.GenerateCompletionRequest
Response = orchestrator_pb2.StreamGenerateCompletionResponse


class FakeOrchestrator(orchestrator_pb2_grpc.OrchestratorServiceServicer):
    """Answers with the question; fails first as often as it is told to."""

    def __init__(self, name: str = "one") -> None:
        self.name = name
        self.failures: list[Callable[[Any], Any]] = []
        self.cut_stream = False
        self.requests: list[chat_pb2.CompletionRequest] = []
        self.metadata: list[dict[str, Any]] = []
        self.cancelled = asyncio.Event()

    async def GenerateCompletion(
        self, request: GenerateRequest, context: Any
    ) -> orchestrator_pb2.GenerateCompletionResponse:
        await self._begin(request.request, context)
        return orchestrator_pb2.GenerateCompletionResponse(
            request_id=request.request.request_id,
            completion=chat_pb2.Completion(message=answer_to(request.request), model=self.name),
            receipt=receipt(request.request.request_id),
        )

    async def StreamGenerateCompletion(
        self, request: orchestrator_pb2.StreamGenerateCompletionRequest, context: Any
    ) -> AsyncIterator[Response]:
        await self._begin(request.request, context)
        request_id = request.request.request_id
        yield Response(started=orchestrator_pb2.CompletionStarted(request_id=request_id, model=self.name))
        try:
            for part in answer_to(request.request).parts:
                for word in part.text.split():
                    yield Response(delta=chat_pb2.CompletionDelta(text=word + " "))
                    await asyncio.sleep(0)
            if request.request.tags.get("slow"):
                await asyncio.sleep(30)
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise
        if not self.cut_stream:
            yield Response(finished=orchestrator_pb2.CompletionFinished(receipt=receipt(request_id), model=self.name))

    async def GetReceipt(
        self, request: orchestrator_pb2.GetReceiptRequest, context: Any
    ) -> orchestrator_pb2.GetReceiptResponse:
        return orchestrator_pb2.GetReceiptResponse(receipt=receipt(request.request_id))

    async def ReportOutcome(
        self, request: orchestrator_pb2.ReportOutcomeRequest, context: Any
    ) -> orchestrator_pb2.ReportOutcomeResponse:
        return orchestrator_pb2.ReportOutcomeResponse(cache_entry_retired=request.score < 0.5)

    async def DeleteUserData(
        self, request: orchestrator_pb2.DeleteUserDataRequest, context: Any
    ) -> orchestrator_pb2.DeleteUserDataResponse:
        return orchestrator_pb2.DeleteUserDataResponse(cache_entry_count=3)

    async def ExplainRequest(
        self, request: orchestrator_pb2.ExplainRequestRequest, context: Any
    ) -> orchestrator_pb2.ExplainRequestResponse:
        return orchestrator_pb2.ExplainRequestResponse(worst_case_nano_usd=len(request.request.messages))

    async def GetCompletion(
        self, request: orchestrator_pb2.GetCompletionRequest, context: Any
    ) -> orchestrator_pb2.GetCompletionResponse:
        return orchestrator_pb2.GetCompletionResponse(state=orchestrator_pb2.OPERATION_STATE_DONE)

    async def _begin(self, request: chat_pb2.CompletionRequest, context: Any) -> None:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        if self.failures:
            await self.failures.pop(0)(context)


def answer_to(request: chat_pb2.CompletionRequest) -> chat_pb2.ChatMessage:
    text = "you said " + request.messages[-1].parts[0].text
    return chat_pb2.ChatMessage(role=chat_pb2.ROLE_ASSISTANT, parts=[chat_pb2.ContentPart(text=text)])


def receipt(request_id: str) -> receipt_pb2.Receipt:
    facts = receipt_pb2.ReceiptFacts(request_id=request_id, baseline_model="opus")
    return receipt_pb2.Receipt(facts=facts, baseline_nano_usd=100, actual_nano_usd=40)


def failing(code: grpc.StatusCode, *details: Message) -> Callable[[Any], Any]:
    async def fail(context: Any) -> None:
        status = status_pb2.Status(code=code.value[0], message="the message")
        for detail in details:
            status.details.add().Pack(detail)
        metadata = (("grpc-status-details-bin", status.SerializeToString()),) if details else ()
        await context.abort(code, "the message", metadata)

    return fail


def info(reason: str, **metadata: str) -> error_details_pb2.ErrorInfo:
    return error_details_pb2.ErrorInfo(reason=reason, domain="tenth", metadata=metadata)


@asynccontextmanager
async def serving(
    fake: FakeOrchestrator, credentials: grpc.ServerCredentials | None = None, port: int = 0
) -> AsyncIterator[int]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    orchestrator_pb2_grpc.add_OrchestratorServiceServicer_to_server(fake, server)
    address = f"127.0.0.1:{port}"
    bound = server.add_insecure_port(address) if credentials is None else server.add_secure_port(address, credentials)
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(None)


@pytest.fixture
async def fake() -> FakeOrchestrator:
    return FakeOrchestrator()


@pytest.fixture
async def client(fake: FakeOrchestrator) -> AsyncIterator[Client]:
    async with serving(fake) as port, Client(f"127.0.0.1:{port}", "secret", timeout=10) as made:
        yield made


async def test_answer_with_receipt(client: Client, fake: FakeOrchestrator) -> None:
    answer = await client.complete(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hi"}],
        sampling=chat_pb2.SamplingParameters(max_output_tokens=5),
        retrieved_chunks=["a passage"],
        policy=chat_pb2.RequestPolicy(model="m"),
        user_id="u",
        project_id="p",
        tags={"k": "v"},
        traceparent="00-11111111111111111111111111111111-2222222222222222-01",
    )
    assert answer.text == "you said hi"
    assert answer.saved_nano_usd == 60
    (sent,) = fake.requests
    assert answer.request_id == sent.request_id
    assert len(sent.request_id) == 36, "a UUID of the client's own"
    assert (sent.user_id, sent.project_id, dict(sent.tags)) == ("u", "p", {"k": "v"})
    assert sent.retrieved_chunks[0].text == "a passage"
    assert fake.metadata[0]["authorization"] == "Bearer secret"
    assert fake.metadata[0]["traceparent"].startswith("00-1111")


async def test_the_caller_s_request_is_left_alone(client: Client) -> None:
    request = chat_pb2.CompletionRequest(
        messages=[chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text="hi")])]
    )
    answer = await client.complete(request, request_id="mine")
    assert answer.request_id == "mine"
    assert request.request_id == ""


async def test_stream(client: Client) -> None:
    events = [event async for event in client.stream("good morning")]
    assert events[0].started is not None
    assert "".join(event.text for event in events) == "you said good morning "
    assert events[-1].receipt is not None
    assert events[-1].receipt.actual_nano_usd == 40
    assert [event.receipt is not None for event in events].count(True) == 1


async def test_stream_without_its_end_fails(client: Client, fake: FakeOrchestrator) -> None:
    fake.cut_stream = True
    with pytest.raises(TenthClientError) as caught:
        async for _ in client.stream("hi"):
            pass
    assert caught.value.reason == "INCOMPLETE_STREAM"
    assert len(fake.requests) == 1


async def test_leaving_a_stream_cancels_it(client: Client, fake: FakeOrchestrator) -> None:
    stream = client.stream("hi", tags={"slow": "1"})
    async for event in stream:
        if event.text:
            break
    await stream.aclose()  # type: ignore[attr-defined]  # an async generator
    await asyncio.wait_for(fake.cancelled.wait(), 5)


async def test_other_calls(client: Client) -> None:
    assert (await client.receipt("r1")).facts.request_id == "r1"
    assert await client.report_outcome("r1", 0.1, "wrong")
    assert (await client.delete_user_data("u")).cache_entry_count == 3
    assert (await client.completion("operations/r1")).state == orchestrator_pb2.OPERATION_STATE_DONE
    assert (await client.explain("hi")).worst_case_nano_usd == 1


@pytest.mark.parametrize(
    ("code", "details", "reason", "field", "spent", "retry_after"),
    [
        (
            grpc.StatusCode.INVALID_ARGUMENT,
            [info("INVALID_FIELD", field="request.x")],
            "INVALID_FIELD",
            "request.x",
            0,
            None,
        ),
        (
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            [info("RATE_LIMITED"), error_details_pb2.RetryInfo(retry_delay={"seconds": 2})],
            "RATE_LIMITED",
            "",
            0,
            2.0,
        ),
        (
            grpc.StatusCode.FAILED_PRECONDITION,
            [info("PROVIDER_FAILED"), receipt_pb2.SpentDetail(request_id="r", spent_nano_usd=9)],
            "PROVIDER_FAILED",
            "",
            9,
            None,
        ),
        (
            grpc.StatusCode.INVALID_ARGUMENT,
            [error_details_pb2.BadRequest(field_violations=[{"field": "request.y"}])],
            "INVALID_ARGUMENT",
            "request.y",
            0,
            None,
        ),
        (grpc.StatusCode.DEADLINE_EXCEEDED, [], "DEADLINE_EXPIRED", "", 0, None),
        (grpc.StatusCode.INTERNAL, [], "INTERNAL", "", 0, None),
        (grpc.StatusCode.NOT_FOUND, [chat_pb2.Tool(name="unknown detail")], "NOT_FOUND", "", 0, None),
    ],
)
async def test_errors_are_typed(
    client: Client,
    fake: FakeOrchestrator,
    code: grpc.StatusCode,
    details: list[Message],
    reason: str,
    field: str,
    spent: int,
    retry_after: float | None,
) -> None:
    fake.failures = [failing(code, *details)]
    with pytest.raises(TenthClientError) as caught:
        await client.complete("hi")
    error = caught.value
    assert (error.code, error.reason, error.field) == (code, reason, field)
    assert error.spent_nano_usd == spent
    assert error.retry_after == retry_after
    assert error.message == "the message"
    assert len(fake.requests) == 1, "none of these may be sent again"


async def test_damaged_details_are_passed_over(client: Client, fake: FakeOrchestrator) -> None:
    async def fail(context: Any) -> None:
        await context.abort(grpc.StatusCode.ABORTED, "odd", (("grpc-status-details-bin", b"\xff\xff"),))

    fake.failures = [fail]
    with pytest.raises(TenthClientError) as caught:
        await client.complete("hi")
    assert (caught.value.reason, caught.value.message) == ("ABORTED", "odd")


async def test_unavailable_is_tried_again_under_the_same_id(client: Client, fake: FakeOrchestrator) -> None:
    fake.failures = [failing(grpc.StatusCode.UNAVAILABLE), failing(grpc.StatusCode.UNAVAILABLE, info("DRAINING"))]
    answer = await client.complete("hi")
    assert len({request.request_id for request in fake.requests}) == 1
    assert len(fake.requests) == 3
    assert answer.request_id == fake.requests[0].request_id


@pytest.mark.parametrize("spent", [0, 9])
async def test_a_failure_that_spent_something_is_tried_again_with_the_same_id(
    client: Client, fake: FakeOrchestrator, spent: int
) -> None:
    detail = receipt_pb2.SpentDetail(request_id="r", spent_nano_usd=spent)
    fake.failures = [failing(grpc.StatusCode.UNAVAILABLE, info("BUDGET_UNAVAILABLE"), detail)]
    await client.complete("hi")
    assert len(fake.requests) == 2
    assert len({request.request_id for request in fake.requests}) == 1, "the ledger keeps what the first try spent"


async def test_a_stream_is_tried_again_before_its_first_event(client: Client, fake: FakeOrchestrator) -> None:
    fake.failures = [failing(grpc.StatusCode.UNAVAILABLE, info("DRAINING"))]
    events = [event async for event in client.stream("hi")]
    assert events[-1].finished is not None
    assert [request.request_id for request in fake.requests] == [fake.requests[0].request_id] * 2


async def test_retries_end(fake: FakeOrchestrator) -> None:
    async with serving(fake) as port, Client(f"127.0.0.1:{port}", retry_seconds=0.3) as client:
        fake.failures = [failing(grpc.StatusCode.UNAVAILABLE)] * 50
        with pytest.raises(TenthClientError) as caught:
            await client.complete("hi")
    assert caught.value.reason == "UNREACHABLE"
    assert 2 <= len(fake.requests) <= 4


async def test_nobody_there() -> None:
    async with Client("127.0.0.1:1", retry_seconds=0.2) as client:
        with pytest.raises(TenthClientError) as caught:
            await client.complete("hi", timeout=2)
    assert caught.value.code is grpc.StatusCode.UNAVAILABLE


async def test_replicas_share_and_survive_each_other() -> None:
    first, second = FakeOrchestrator("first"), FakeOrchestrator("second")
    async with serving(second) as port_2:
        async with serving(first) as port_1:
            client = Client(f"127.0.0.1:{port_1},127.0.0.1:{port_2}")
            while not (first.requests and second.requests):
                await client.complete("hi")
        for _ in range(4):
            assert (await client.complete("hi")).completion.model == "second"
        await client.close()


async def test_a_restarted_server_is_found_again(fake: FakeOrchestrator) -> None:
    async with serving(fake) as port:
        client = Client(f"127.0.0.1:{port}")
        await client.complete("one")
    waiting = asyncio.create_task(client.complete("two"))
    await asyncio.sleep(0.3)
    async with serving(fake, port=port):
        assert (await waiting).text == "you said two"
    await client.close()


async def test_mutual_tls(fake: FakeOrchestrator, tmp_path: Path) -> None:
    authority = trustme.CA()
    server_cert, client_cert = authority.issue_cert("127.0.0.1"), authority.issue_cert("client.test")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    client_cert.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    client_cert.private_key_pem.write_to_path(tmp_path / "key.pem")
    pair = (server_cert.private_key_pem.bytes(), server_cert.cert_chain_pems[0].bytes())
    credentials = grpc.ssl_server_credentials([pair], authority.cert_pem.bytes(), require_client_auth=True)
    async with serving(fake, credentials) as port:
        tls = Tls(tmp_path / "ca.pem", tmp_path / "cert.pem", tmp_path / "key.pem")
        async with Client(f"127.0.0.1:{port}", tls=tls) as client:
            assert (await client.complete("hi")).text == "you said hi"
        async with Client(f"127.0.0.1:{port}", tls=Tls(tmp_path / "ca.pem"), retry_seconds=0) as client:
            with pytest.raises(TenthClientError):
                await client.complete("hi", timeout=3)


async def test_replay_reports_failures_and_goes_on(client: Client, fake: FakeOrchestrator) -> None:
    fake.failures = [failing(grpc.StatusCode.INVALID_ARGUMENT, info("INVALID_FIELD", field="request.x"))]
    text = chat_pb2.ChatMessage(role=chat_pb2.ROLE_USER, parts=[chat_pb2.ContentPart(text="hi")])
    requests = [chat_pb2.CompletionRequest(messages=[text]) for _ in range(7)]
    seen: list[int] = []
    results = await play(client, requests, concurrency=3, on_done=lambda played: seen.append(played.index))
    assert [played.index for played in results] == list(range(7))
    assert sorted(seen) == list(range(7))
    (failed,) = [played for played in results if played.error is not None]
    assert failed.receipt is not None, "a failed request's receipt is asked for: what it spent must be in the sums"
    assert failed.receipt.facts.request_id == failed.request_id
    assert all(request.request_id == "" for request in requests)
