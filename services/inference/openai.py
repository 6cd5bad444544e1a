"""Any OpenAI-compatible provider, through the ``openai`` SDK's client.

The SDK owns connections, authentication and the mapping of HTTP failures; its typed models are left out, because
bodies are passed on faithfully (fields it does not know included) and its parsing costs more than the call.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx2
import openai
from openai._constants import RAW_RESPONSE_HEADER

from mesh import deadlines
from mesh.errors import Code, TenthError
from services.inference.backend import Answer
from services.inference.errors import Reason
from services.inference.policy import Delta, Event, Finished, Generation, Meter
from services.inference.usage import Family, UsageReader
from services.inference.wire import delta_of, finish_reason_of, request_body

log = logging.getLogger("tenth.inference.openai")

_PATH = "/chat/completions"
_LONGEST_EVENT_BYTES = 16 * 1024 * 1024
_STATUS: dict[int, tuple[Code, Reason]] = {
    400: (Code.INVALID_ARGUMENT, Reason.PROVIDER_REJECTED),
    401: (Code.FAILED_PRECONDITION, Reason.PROVIDER_UNAUTHENTICATED),
    402: (Code.FAILED_PRECONDITION, Reason.PROVIDER_FORBIDDEN),
    403: (Code.FAILED_PRECONDITION, Reason.PROVIDER_FORBIDDEN),
    404: (Code.FAILED_PRECONDITION, Reason.PROVIDER_MODEL_NOT_FOUND),
    408: (Code.UNAVAILABLE, Reason.PROVIDER_TIMEOUT),
    413: (Code.INVALID_ARGUMENT, Reason.PROVIDER_REJECTED),
    422: (Code.INVALID_ARGUMENT, Reason.PROVIDER_REJECTED),
    429: (Code.RESOURCE_EXHAUSTED, Reason.PROVIDER_RATE_LIMITED),
}
_OUR_ACCOUNT = frozenset({401, 402, 403})
"""Statuses about our key and credit, which are no caller's business (401 quotes a part of the key)."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a provider is and how it is called. Times in seconds."""

    provider: str
    base_url: str
    connect_seconds: float
    max_connections: int
    retries: int
    max_retry_wait_seconds: float
    sandbox: bool = False
    family: Family = Family.UNKNOWN


class OpenAiClient:
    """The connections to one provider, shared by its models."""

    def __init__(self, endpoint: Endpoint, key: Callable[[], str]) -> None:
        """``key`` is asked before each call, so that a replaced secret is taken up."""
        self.endpoint = endpoint
        self.key = key
        # One line per call at INFO is a tenth of the call's cost; failures are logged and typed here.
        logging.getLogger("httpx2").setLevel(logging.WARNING)
        self.sdk = openai.AsyncOpenAI(
            base_url=endpoint.base_url,
            api_key="read for each call",
            max_retries=0,
            # aiohttp's parser is C: 0.95 ms of CPU per call against 1.4 ms.
            http_client=openai.DefaultAioHttpClient(
                timeout=httpx2.Timeout(None, connect=endpoint.connect_seconds),
                limits=httpx2.Limits(max_connections=endpoint.max_connections, keepalive_expiry=15),
                follow_redirects=False,
            ),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self.sdk.close()


class OpenAiBackend:
    """A Backend on one model of an OpenAI-compatible provider."""

    kind = "openai"
    quantized = False
    bills_abandoned = True

    def __init__(
        self,
        client: OpenAiClient,
        provider_model: str,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._client = client
        self._sleep = sleep
        self.provider = client.endpoint.provider + (" (sandbox)" if client.endpoint.sandbox else "")
        self.provider_model = provider_model

    def unavailable_reason(self) -> str:
        """Empty: an endpoint is believed to work until calls fail."""
        return ""

    def unavailable_error(self) -> TenthError | None:
        """None, likewise."""
        return None

    async def generate(self, generation: Generation, meter: Meter) -> Answer:
        """The whole answer in one HTTP response."""
        until = _until()
        with self._failures():
            async with asyncio.timeout_at(until):
                response = await self._send(generation, meter, stream=False)
                try:
                    raw = await response.aread()
                finally:
                    await response.aclose()
        body = _json_object(raw, response)
        meter.reported = UsageReader(self._client.endpoint.family).read(body)
        choice = _choice(body)
        message = choice.get("message")
        if not isinstance(message, dict):
            raise _garbage("the answer has no message")
        delta = _delta(message, choice)
        meter.emit(delta)
        reason = finish_reason_of(choice.get("finish_reason"))
        if not reason:
            raise _incomplete()
        return Answer(delta, Finished(reason, meter.usage()))

    async def stream(self, generation: Generation, meter: Meter) -> AsyncGenerator[Event]:
        """Pieces as the provider sends them."""
        until = _until()
        reason = ""
        usage = UsageReader(self._client.endpoint.family)
        meter.final = False
        with self._failures():
            async with asyncio.timeout_at(until):
                response = await self._send(generation, meter, stream=True)
            try:
                async for body in _events(response, until):
                    said = usage.read(body)
                    meter.reported = said or meter.reported
                    if not body.get("choices"):
                        # The last event of a stream: usage alone.
                        meter.final = bool(reason and said) or meter.final
                        continue
                    choice = _choice(body)
                    delta = _delta(choice.get("delta") or {}, choice)
                    reason = finish_reason_of(choice.get("finish_reason")) or reason
                    meter.final = bool(reason and said) or meter.final
                    if delta != _NOTHING:
                        meter.emit(delta)
                        yield delta
            finally:
                await response.aclose()
        if not reason:
            raise _incomplete()
        yield Finished(reason, meter.usage())

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Types every failure on the way; a TenthError passes."""
        try:
            yield
        except TimeoutError as error:
            raise TenthError(
                Code.DEADLINE_EXCEEDED,
                Reason.PROVIDER_TIMEOUT,
                f"{self.provider} did not answer within the deadline",
                metadata={"provider": self._client.endpoint.provider},
            ) from error
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL) as error:
            raise TenthError(
                Code.UNAVAILABLE,
                Reason.PROVIDER_INCOMPLETE,
                f"{self.provider}: the connection broke within the answer: {str(error) or type(error).__name__}",
                metadata={"provider": self._client.endpoint.provider},
            ) from error

    async def _send(self, generation: Generation, meter: Meter, *, stream: bool) -> httpx2.Response:
        body = request_body(generation, self.provider_model, self._client.endpoint.base_url, stream=stream)
        headers = {
            "authorization": f"Bearer {self._client.key() or 'none'}",
            "x-request-id": f"{generation.request_id}/{generation.attempt}",
        }
        if self._client.endpoint.sandbox and generation.traceparent:
            headers["traceparent"] = generation.traceparent
        waits = 0
        while True:
            meter.reached = True
            try:
                return await self._post(body, headers)
            except openai.APIStatusError as error:
                meter.reached = False  # Refused: providers charge nothing for an error status.
                failure = self._refused(error)
                wait = failure.retry_after_seconds
                again = error.status_code == 503 or (error.status_code == 429 and wait is not None)
                wait = 0.1 * 2**waits if wait is None else wait
            except openai.APIConnectionError as error:  # Timeouts of the connection included.
                meter.reached = not _never_connected(error)
                failure, again, wait = self._unreachable(error), not meter.reached, 0.05 * 2**waits
            if not again or waits >= self._client.endpoint.retries:
                raise failure
            if wait > self._client.endpoint.max_retry_wait_seconds:
                raise failure
            left = deadlines.remaining()
            if left is not None and wait >= left:
                raise failure
            waits += 1
            await self._sleep(wait)

    async def _post(self, body: dict[str, Any], headers: dict[str, str]) -> httpx2.Response:
        # The header is the SDK's own way to ask for a response whose body is still unread.
        return await self._client.sdk.post(
            _PATH, cast_to=httpx2.Response, body=body, options={"headers": {**headers, RAW_RESPONSE_HEADER: "stream"}}
        )

    def _refused(self, error: openai.APIStatusError) -> TenthError:
        status = error.status_code
        said = _said(error)
        if status == 400 and "context_length" in said + str(error.code):
            return TenthError(
                Code.INVALID_ARGUMENT, Reason.PROMPT_TOO_LONG, f"{self.provider}: {said}", "generation.messages"
            )
        code, reason = _STATUS.get(status, (Code.UNAVAILABLE, Reason.PROVIDER_FAILED))
        if status in _OUR_ACCOUNT:
            log.error("%s: HTTP %d: %s", self.provider, status, said)
            said = "the service's log has the provider's words"
        return TenthError(
            code,
            reason,
            f"{self.provider}: HTTP {status}: {said}",
            metadata={"provider": self._client.endpoint.provider, "http_status": str(status)},
            retry_after_seconds=_retry_after(error.response),
        )

    def _unreachable(self, error: Exception) -> TenthError:
        cause = error.__cause__ or error
        return TenthError(
            Code.UNAVAILABLE,
            Reason.PROVIDER_UNREACHABLE,
            f"{self.provider} cannot be reached: {str(cause) or type(cause).__name__}",
            metadata={"provider": self._client.endpoint.provider},
        )


_NOTHING = Delta()


async def _events(response: httpx2.Response, until: float | None) -> AsyncIterator[dict[str, Any]]:
    """The objects of a server-sent event stream, until ``[DONE]`` or its end."""
    kind = response.headers.get("content-type", "")
    if not kind.startswith("text/event-stream"):
        raise _garbage(f"a stream was asked for, the answer is {kind or 'of no type'}")
    chunks = response.aiter_bytes()
    rest = b""
    while True:
        async with asyncio.timeout_at(until):
            chunk = await anext(chunks, b"")
        *lines, rest = (rest + (chunk or b"\n")).split(b"\n")
        for line in lines:
            if not line.startswith(b"data:"):
                continue  # Comments, event names and blank lines say nothing here.
            data = line[5:].strip()
            if data == b"[DONE]":
                return
            yield _event(data)
        if not chunk:
            return
        if len(rest) > _LONGEST_EVENT_BYTES:
            raise _garbage("an event of the stream has no end")


def _event(data: bytes) -> dict[str, Any]:
    try:
        body = json.loads(data)
    except ValueError:
        raise _garbage("an event of the stream is not JSON") from None
    if not isinstance(body, dict):
        raise _garbage("an event of the stream is no object")
    if body.get("error"):
        error = body["error"]
        said = error.get("message") if isinstance(error, dict) else error
        raise TenthError(Code.UNAVAILABLE, Reason.PROVIDER_FAILED, f"error in the stream: {str(said)[:300]}")
    return body


def _until() -> float | None:
    """The event loop's time at which the budget of this request ends."""
    seconds = deadlines.budget(None)
    return None if seconds is None else asyncio.get_running_loop().time() + seconds


def _json_object(raw: bytes, response: httpx2.Response) -> dict[str, Any]:
    try:
        body = json.loads(raw)
    except ValueError:
        kind = response.headers.get("content-type", "of no type")
        raise _garbage(f"the answer is not JSON ({kind})") from None
    if not isinstance(body, dict):
        raise _garbage("the answer is no object")
    return body


def _delta(message: Any, choice: dict[str, Any]) -> Delta:
    try:
        return delta_of(message, choice)
    except (AttributeError, TypeError, ValueError):
        raise _garbage("a field of the answer has a wrong type") from None


def _choice(body: dict[str, Any]) -> dict[str, Any]:
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise _garbage("the answer has no choice")
    return choices[0]


def _garbage(said: str) -> TenthError:
    return TenthError(Code.UNAVAILABLE, Reason.PROVIDER_GARBAGE, said)


def _incomplete() -> TenthError:
    return TenthError(Code.UNAVAILABLE, Reason.PROVIDER_INCOMPLETE, "the answer ended without a finish reason")


def _never_connected(error: BaseException | None) -> bool:
    """True when the request certainly did not reach the provider."""
    while error is not None:
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            return True
        error = error.__cause__
    return False


def _said(error: openai.APIStatusError) -> str:
    """The provider's own words, short enough for a status message."""
    body = error.body
    if isinstance(body, dict):
        inner = body.get("error", body)
        if isinstance(inner, dict) and isinstance(inner.get("message"), str):
            return str(inner["message"])[:300]
    return error.response.reason_phrase or "no reason given"


def _retry_after(response: httpx2.Response) -> float | None:
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(response.headers[name]) * scale
        except (KeyError, ValueError):  # Absent, or a date: rare, and the caller's backoff serves as well.
            continue
        if 0 <= seconds < 86_400:
            return seconds
    return None
