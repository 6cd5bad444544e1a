"""The typed async client that a backend service installs.

    async with Client("127.0.0.1:7100", api_key) as client:
        answer = await client.complete("How do I reset my password?")
        print(answer.text, answer.receipt.actual_nano_usd)

Every request carries a request_id (the caller's or a fresh UUID), so that trying again after UNAVAILABLE gives the
same answer and never pays twice.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import grpc
from tenth.orchestrator.v1 import orchestrator_pb2, orchestrator_pb2_grpc
from tenth.type.v1 import chat_pb2, receipt_pb2

from formats.openai import messages_from_openai, text_message
from tenth_client.batches import Batches
from tenth_client.connection import Tls, dial
from tenth_client.errors import TenthClientError, decode
from tenth_client.retries import Retry

T = TypeVar("T")

Messages = str | Sequence[chat_pb2.ChatMessage | Mapping[str, Any]]
"""A user's question, or messages: ChatMessage or OpenAI-format dicts, mixed as you like."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer and what it cost. ``operation`` is set instead when the request went to the batch service."""

    text: str
    completion: chat_pb2.Completion
    receipt: receipt_pb2.Receipt
    request_id: str
    operation: str = ""

    @property
    def saved_nano_usd(self) -> int:
        """Baseline less actual cost, nano-USD; negative when the request cost more than the baseline."""
        return self.receipt.baseline_nano_usd - self.receipt.actual_nano_usd


@dataclass(frozen=True, slots=True)
class StreamEvent:
    """One event of a stream: text as it comes; the last event has the receipt.

    ``started`` is set on the first event alone, ``finished`` on the last alone.
    """

    text: str = ""
    delta: chat_pb2.CompletionDelta | None = None
    started: orchestrator_pb2.CompletionStarted | None = None
    finished: orchestrator_pb2.CompletionFinished | None = None

    @property
    def receipt(self) -> receipt_pb2.Receipt | None:
        """The receipt, on the last event."""
        return self.finished.receipt if self.finished is not None else None


class Client:
    """A connection to the orchestrator. An async context manager; safe to share between tasks.

    ``address`` may name several replicas (``ipv4:a:1,b:2`` or ``a:1,b:2``), balanced round robin, or a DNS name
    (``dns:///orchestrator:7100``). ``retry_seconds`` bounds how long UNAVAILABLE is retried (0: never).
    """

    def __init__(
        self,
        address: str,
        api_key: str = "",
        *,
        tls: Tls | None = None,
        timeout: float = 120.0,
        retry_seconds: float = 15.0,
        channel: grpc.aio.Channel | None = None,
    ) -> None:
        self._channel = channel if channel is not None else dial(address, tls)
        self._stub: Any = orchestrator_pb2_grpc.OrchestratorServiceStub(self._channel)
        self._api_key = api_key
        self._tls = tls
        self._metadata = (("authorization", f"Bearer {api_key}"),) if api_key else ()
        self._timeout = timeout
        self._retry_seconds = retry_seconds

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connection; running calls are cancelled."""
        await self._channel.close()

    def batches(self, address: str) -> Batches:
        """A connection to the batch service at ``address``, with this client's key; to be closed like this one."""
        return Batches(address, self._api_key, tls=self._tls, retry_seconds=self._retry_seconds)

    async def complete(
        self,
        messages: Messages | chat_pb2.CompletionRequest,
        *,
        tools: Iterable[chat_pb2.Tool] = (),
        response_format: chat_pb2.ResponseFormat | None = None,
        sampling: chat_pb2.SamplingParameters | None = None,
        retrieved_chunks: Iterable[chat_pb2.RetrievedChunk | str] = (),
        policy: chat_pb2.RequestPolicy | None = None,
        user_id: str = "",
        project_id: str = "",
        tags: Mapping[str, str] | None = None,
        namespace: str = "",
        request_id: str = "",
        timeout: float | None = None,  # noqa: ASYNC109  (becomes the RPC's deadline, which the mesh passes on)
        traceparent: str = "",
    ) -> Answer:
        """Ask and wait for the whole answer. Raises TenthClientError; ValueError for messages that make no sense.

        Instead of messages a whole CompletionRequest may be given (see ``formats.openai.completion_request``).
        ``timeout`` is seconds over all attempts; ``traceparent`` joins the request to the caller's own trace.
        """
        request = self._request(
            messages,
            tools,
            response_format,
            sampling,
            retrieved_chunks,
            policy,
            user_id,
            project_id,
            tags,
            namespace,
            request_id,
        )
        call = orchestrator_pb2.GenerateCompletionRequest(request=request)
        response: orchestrator_pb2.GenerateCompletionResponse = await self._call(
            self._stub.GenerateCompletion, call, timeout, traceparent
        )
        return Answer(
            text=text_of(response.completion.message),
            completion=response.completion,
            receipt=response.receipt,
            request_id=response.request_id or request.request_id,
            operation=response.operation,
        )

    async def stream(
        self,
        messages: Messages | chat_pb2.CompletionRequest,
        *,
        tools: Iterable[chat_pb2.Tool] = (),
        response_format: chat_pb2.ResponseFormat | None = None,
        sampling: chat_pb2.SamplingParameters | None = None,
        retrieved_chunks: Iterable[chat_pb2.RetrievedChunk | str] = (),
        policy: chat_pb2.RequestPolicy | None = None,
        user_id: str = "",
        project_id: str = "",
        tags: Mapping[str, str] | None = None,
        namespace: str = "",
        request_id: str = "",
        timeout: float | None = None,  # noqa: ASYNC109  (becomes the RPC's deadline, which the mesh passes on)
        traceparent: str = "",
    ) -> AsyncIterator[StreamEvent]:
        """Ask and get the answer as it is made; the last event has the receipt.

        Tried again only while nothing has come yet. A stream that ends without ``finished`` raises UNAVAILABLE
        INCOMPLETE_STREAM: ``receipt(request_id)`` tells later what it cost. Closing the iterator early cancels the
        request; what was emitted is billed.
        """
        request = self._request(
            messages,
            tools,
            response_format,
            sampling,
            retrieved_chunks,
            policy,
            user_id,
            project_id,
            tags,
            namespace,
            request_id,
        )
        call = orchestrator_pb2.StreamGenerateCompletionRequest(request=request)
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        retry = Retry(min(self._retry_seconds, deadline - time.monotonic()))
        while True:
            emitted = False
            stream = self._stub.StreamGenerateCompletion(
                call, timeout=max(0.0, deadline - time.monotonic()), metadata=self._headers(traceparent)
            )
            try:
                async for response in stream:
                    emitted = True
                    yield _event(response)
                    if response.WhichOneof("event") == "finished":
                        return
                raise TenthClientError(
                    grpc.StatusCode.UNAVAILABLE,
                    "INCOMPLETE_STREAM",
                    f"the stream of request {request.request_id} ended without its last event",
                )
            except grpc.aio.AioRpcError as raw:
                error = decode(raw)
                if emitted or not await retry.wait(error):
                    raise error from None
            finally:
                if not stream.done():
                    stream.cancel()

    async def explain(
        self,
        request: chat_pb2.CompletionRequest | Messages,
        *,
        timeout: float | None = None,  # noqa: ASYNC109  (RPC deadline)
    ) -> orchestrator_pb2.ExplainRequestResponse:
        """What each layer would do with a request, and at what price. Spends nothing."""
        if not isinstance(request, chat_pb2.CompletionRequest):
            request = chat_pb2.CompletionRequest(messages=to_messages(request))
        call = orchestrator_pb2.ExplainRequestRequest(request=request)
        response: orchestrator_pb2.ExplainRequestResponse = await self._call(self._stub.ExplainRequest, call, timeout)
        return response

    async def receipt(self, request_id: str) -> receipt_pb2.Receipt:
        """The receipt of a request: PENDING until the ledger has it, then FINAL."""
        call = orchestrator_pb2.GetReceiptRequest(request_id=request_id)
        response: orchestrator_pb2.GetReceiptResponse = await self._call(self._stub.GetReceipt, call)
        return response.receipt

    async def completion(self, operation: str) -> orchestrator_pb2.GetCompletionResponse:
        """The state, and when done the result, of an operation ("operations/REQUEST_ID")."""
        call = orchestrator_pb2.GetCompletionRequest(operation=operation)
        response: orchestrator_pb2.GetCompletionResponse = await self._call(self._stub.GetCompletion, call)
        return response

    async def report_outcome(self, request_id: str, score: float, comment: str = "") -> bool:
        """Tell how good an answer was, 0..1. True when a cached answer was retired because of it."""
        call = orchestrator_pb2.ReportOutcomeRequest(request_id=request_id, score=score, comment=comment)
        response: orchestrator_pb2.ReportOutcomeResponse = await self._call(self._stub.ReportOutcome, call)
        return response.cache_entry_retired

    async def delete_user_data(self, user_id: str) -> orchestrator_pb2.DeleteUserDataResponse:
        """Delete one end user's data everywhere in the tenant's part of the mesh."""
        call = orchestrator_pb2.DeleteUserDataRequest(user_id=user_id)
        response: orchestrator_pb2.DeleteUserDataResponse = await self._call(self._stub.DeleteUserData, call)
        return response

    def _request(
        self,
        messages: Messages | chat_pb2.CompletionRequest,
        tools: Iterable[chat_pb2.Tool],
        response_format: chat_pb2.ResponseFormat | None,
        sampling: chat_pb2.SamplingParameters | None,
        retrieved_chunks: Iterable[chat_pb2.RetrievedChunk | str],
        policy: chat_pb2.RequestPolicy | None,
        user_id: str,
        project_id: str,
        tags: Mapping[str, str] | None,
        namespace: str,
        request_id: str,
    ) -> chat_pb2.CompletionRequest:
        request = chat_pb2.CompletionRequest()
        if isinstance(messages, chat_pb2.CompletionRequest):
            request.CopyFrom(messages)
        else:
            request.messages.extend(to_messages(messages))
        request.tools.extend(tools)
        request.retrieved_chunks.extend(
            chat_pb2.RetrievedChunk(text=chunk) if isinstance(chunk, str) else chunk for chunk in retrieved_chunks
        )
        if response_format is not None:
            request.response_format.CopyFrom(response_format)
        if sampling is not None:
            request.sampling.CopyFrom(sampling)
        if policy is not None:
            request.policy.CopyFrom(policy)
        request.user_id = user_id or request.user_id
        request.project_id = project_id or request.project_id
        request.tags.update(tags or {})
        request.namespace = namespace or request.namespace
        request.request_id = request_id or request.request_id or str(uuid.uuid4())
        return request

    def _headers(self, traceparent: str) -> tuple[tuple[str, str], ...]:
        return (*self._metadata, ("traceparent", traceparent)) if traceparent else self._metadata

    async def _call(
        self,
        method: Callable[..., Awaitable[T]],
        request: object,
        timeout: float | None = None,  # noqa: ASYNC109  (becomes the RPC's deadline)
        traceparent: str = "",
    ) -> T:
        deadline = time.monotonic() + (self._timeout if timeout is None else timeout)
        retry = Retry(min(self._retry_seconds, deadline - time.monotonic()))
        while True:
            try:
                left = max(0.0, deadline - time.monotonic())
                return await method(request, timeout=left, metadata=self._headers(traceparent))
            except grpc.aio.AioRpcError as raw:
                error = decode(raw)
            if not await retry.wait(error):
                raise error


def to_messages(messages: Messages) -> list[chat_pb2.ChatMessage]:
    """Messages as the mesh takes them. Raises FormatError (a ValueError) naming what is wrong."""
    if isinstance(messages, str):
        return [text_message(chat_pb2.ROLE_USER, messages)]
    result: list[chat_pb2.ChatMessage] = []
    for index, message in enumerate(messages):
        if isinstance(message, chat_pb2.ChatMessage):
            result.append(message)
        else:
            result.extend(messages_from_openai([message], first=index))
    return result


def text_of(message: chat_pb2.ChatMessage) -> str:
    """The text parts of a message, joined."""
    return "".join(part.text for part in message.parts)


def _event(response: orchestrator_pb2.StreamGenerateCompletionResponse) -> StreamEvent:
    kind = response.WhichOneof("event")
    if kind == "started":
        return StreamEvent(started=response.started)
    if kind == "finished":
        return StreamEvent(finished=response.finished)
    return StreamEvent(text=response.delta.text, delta=response.delta)
