"""What providers over HTTP have in common: one pool of connections each, turns, tries, and every failure typed.

The SDKs own connections, authentication headers and the mapping of HTTP failures to exceptions; their typed models are
left out, because bodies are passed on faithfully (fields they do not know included) and their parsing costs more than
the call. Both SDKs here are made by the same generator and differ in nothing that is used.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import aiohttp
import httpx2

from mesh import deadlines
from mesh.errors import Code, TenthError
from services.inference import sse
from services.inference.errors import PROVIDER_STATUS, TOO_LONG, Reason
from services.inference.policy import Generation, Meter
from services.inference.retries import backoff_seconds, retry_after_seconds, spread_seconds
from services.inference.slots import Slots
from services.inference.usage import Family

log = logging.getLogger("tenth.inference.providers")

_OUR_ACCOUNT = frozenset({401, 402, 403})
"""Statuses about our key and credit, which are no caller's business (401 quotes a part of the key)."""
_OVERLOADED = frozenset({503, 529})
"""The provider did nothing and says to come back; 529 is Anthropic's."""
_RETRY_SECONDS = 0.1
_RECONNECT_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a provider is and how it is called. Times in seconds; 0 of ``max_concurrent`` and ``silence_seconds``: no
    limit. ``api_version`` makes it an Azure endpoint."""

    provider: str
    base_url: str
    connect_seconds: float
    max_connections: int
    retries: int
    max_retry_wait_seconds: float
    sandbox: bool = False
    family: Family = Family.UNKNOWN
    silence_seconds: float = 0.0
    max_concurrent: int = 0
    api_version: str = ""

    @property
    def shown(self) -> str:
        """The provider as shown to people."""
        return self.provider + (" (sandbox)" if self.sandbox else "")

    def http_options(self) -> dict[str, Any]:
        """How both SDKs set their HTTP client up."""
        return {
            "timeout": httpx2.Timeout(None, connect=self.connect_seconds),
            "limits": httpx2.Limits(max_connections=self.max_connections, keepalive_expiry=15),
            "follow_redirects": False,
        }


@dataclass(frozen=True, slots=True)
class Sdk:
    """An SDK's client, the exceptions it raises, and the header by which it gives a response whose body is unread."""

    client: Any
    status_error: type[Exception]
    connection_error: type[Exception]
    raw_header: str


@dataclass(frozen=True, slots=True)
class Chances:
    """What calls take from outside: waiting, chance (0 to 1), wall time and a clock that never goes back (seconds)."""

    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    random: Callable[[], float] = random.random
    now: Callable[[], float] = time.time
    clock: Callable[[], float] = time.monotonic


class ProviderBackend:
    """What Backends on a provider over HTTP have in common."""

    quantized = False
    bills_abandoned = True

    def unavailable_reason(self) -> str:
        """Empty: an endpoint is believed to work until calls fail."""
        return ""

    def unavailable_error(self) -> TenthError | None:
        """None, likewise."""
        return None


class ProviderClient:
    """The connections to one provider, shared by its models."""

    def __init__(self, endpoint: Endpoint, key: Callable[[], str], sdk: Sdk, chances: Chances) -> None:
        """``key`` is asked before each call, so that a replaced secret is taken up."""
        self.endpoint = endpoint
        self.key = key
        self._sdk = sdk
        self._chances = chances
        self._slots = Slots(endpoint.provider, endpoint.max_concurrent, chances.clock)
        # One line per call at INFO is a tenth of the call's cost; failures are logged and typed here.
        logging.getLogger("httpx2").setLevel(logging.WARNING)

    async def close(self) -> None:
        """Close the connections."""
        await self._sdk.client.close()

    def bearer(self) -> dict[str, str]:
        """The headers that carry the key where a provider takes it as a bearer's."""
        return {"authorization": f"Bearer {self.key() or 'none'}"}

    @asynccontextmanager
    async def answer(
        self,
        generation: Generation,
        meter: Meter,
        path: str,
        body: Mapping[str, Any],
        headers: Mapping[str, Any],
        query: Mapping[str, str] | None = None,
    ) -> AsyncIterator[tuple[httpx2.Response, float | None]]:
        """The response to a POST, its body unread, and the event loop's time at which to give up.

        Waits for the provider's turn, tries again where that is safe, and types every failure of the way and of what is
        done with the response.
        """
        budget = deadlines.budget(None)
        until = None if budget is None else asyncio.get_running_loop().time() + budget
        named = {**headers, "x-request-id": f"{generation.request_id}/{generation.attempt}"}
        # One's own servers join the request's trace; to a stranger its id is nobody's business.
        ours = self.endpoint.sandbox or self.endpoint.family is Family.VLLM
        if ours and generation.traceparent:
            named["traceparent"] = generation.traceparent
        options = self._options(named, query)

        def post() -> Awaitable[Any]:
            return self._sdk.client.post(path, cast_to=httpx2.Response, body=body, options=options)  # type: ignore[no-any-return]  # the SDK's client has no type here

        arrived = asyncio.get_running_loop().time()
        async with self._slots.hold(budget):
            meter.queued_seconds = asyncio.get_running_loop().time() - arrived
            with self._failures():
                async with asyncio.timeout_at(until):
                    response = await self._send(meter, post)
                try:
                    yield response, until
                finally:
                    await response.aclose()

    @asynccontextmanager
    async def call(
        self,
        method: str,
        path: str,
        headers: Mapping[str, Any],
        query: Mapping[str, str] | None = None,
        content: Callable[[], Mapping[str, Any]] | None = None,
        *,
        careful: bool = False,
    ) -> AsyncIterator[tuple[httpx2.Response, float | None]]:
        """As ``answer``, of any other endpoint, with "get", "post" or "delete".

        ``content`` makes what is sent, anew for each try, as the SDK's arguments: body, content or files. A "get" is
        made again also where the connection broke, or the provider failed, before an answer began; a ``careful`` call
        only where it was never connected, or refused for its rate.
        """
        budget = deadlines.budget(None)
        until = None if budget is None else asyncio.get_running_loop().time() + budget
        send = getattr(self._sdk.client, method)
        options = self._options(headers, query)

        def ask() -> Awaitable[Any]:
            sent = content() if content is not None else {}
            return send(path, cast_to=httpx2.Response, options=options, **sent)  # type: ignore[no-any-return]  # as above

        async with self._slots.hold(budget):
            with self._failures():
                async with asyncio.timeout_at(until):
                    response = await self._send(Meter(0, len), ask, harmless=method == "get", careful=careful)
                try:
                    yield response, until
                finally:
                    await response.aclose()

    async def fetch(
        self,
        method: str,
        path: str,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, Any] | None = None,
        content: Callable[[], Mapping[str, Any]] | None = None,
        *,
        careful: bool = False,
    ) -> dict[str, Any]:
        """The JSON object that a ``call`` with the bearer's key is answered with."""
        named = {**self.bearer(), **(headers or {})}
        async with self.call(method, path, named, query, content, careful=careful) as (response, until):
            return await sse.whole(response, until)

    def _options(self, headers: Mapping[str, Any], query: Mapping[str, str] | None) -> dict[str, Any]:
        return {"headers": {**headers, self._sdk.raw_header: "stream"}, "params": dict(query or {})}

    @contextmanager
    def _failures(self) -> Iterator[None]:
        """Types every failure on the way; a TenthError passes."""
        metadata = {"provider": self.endpoint.provider}
        name = self.endpoint.shown
        try:
            yield
        except TimeoutError as error:
            said = f"{name} did not answer within the deadline"
            raise TenthError(Code.DEADLINE_EXCEEDED, Reason.PROVIDER_TIMEOUT, said, metadata=metadata) from error
        except (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL) as error:
            said = f"{name}: the connection broke within the answer: {str(error) or type(error).__name__}"
            raise TenthError(Code.UNAVAILABLE, Reason.PROVIDER_INCOMPLETE, said, metadata=metadata) from error

    async def _send(
        self, meter: Meter, send: Callable[[], Awaitable[Any]], *, harmless: bool = False, careful: bool = False
    ) -> httpx2.Response:
        """``harmless``: the request changes nothing, however often it is made; ``careful``: a failed one may have."""
        waits = 0
        while True:
            meter.reached = True
            try:
                response: httpx2.Response = await send()
                return response
            except self._sdk.status_error as error:
                meter.reached = False  # Refused: providers charge nothing for an error status.
                failure = self._refused(error)
                status, asked = int(failure.metadata["http_status"]), failure.retry_after_seconds
                again = (status in _OVERLOADED and not careful) or (status == 429 and asked is not None)
                again = again or (harmless and status >= 500)
                wait = (
                    backoff_seconds(_RETRY_SECONDS, waits, self._chances.random)
                    if asked is None
                    else spread_seconds(asked, self._chances.random)
                )
            except self._sdk.connection_error as error:  # Timeouts of the connection included.
                meter.reached = not _never_connected(error)
                failure, again = self._unreachable(error), harmless or not meter.reached
                asked, wait = None, backoff_seconds(_RECONNECT_SECONDS, waits, self._chances.random)
            if not again or waits >= self.endpoint.retries:
                raise failure
            if (wait if asked is None else asked) > self.endpoint.max_retry_wait_seconds:
                raise failure
            left = deadlines.remaining()
            if left is not None and wait >= left:
                raise failure
            waits += 1
            await self._chances.sleep(wait)

    def _refused(self, error: Any) -> TenthError:
        """``error`` is an SDK's status error: it has the status, the parsed body and the response."""
        status: int = error.status_code
        name = self.endpoint.shown
        said = _said(error)
        if status == 400 and any(word in f"{said} {_code(error)}" for word in TOO_LONG):
            return TenthError(
                Code.INVALID_ARGUMENT,
                Reason.PROMPT_TOO_LONG,
                f"{name}: {said}",
                "generation.messages",
                metadata={"http_status": str(status)},
            )
        code, reason = PROVIDER_STATUS.get(status, (Code.UNAVAILABLE, Reason.PROVIDER_FAILED))
        if status in _OUR_ACCOUNT:
            log.error("%s: HTTP %d: %s", name, status, said)
            said = "the service's log has the provider's words"
        return TenthError(
            code,
            reason,
            f"{name}: HTTP {status}: {said}",
            metadata={"provider": self.endpoint.provider, "http_status": str(status)},
            retry_after_seconds=retry_after_seconds(error.response.headers, self._chances.now()),
        )

    def _unreachable(self, error: Exception) -> TenthError:
        cause = error.__cause__ or error
        return TenthError(
            Code.UNAVAILABLE,
            Reason.PROVIDER_UNREACHABLE,
            f"{self.endpoint.shown} cannot be reached: {str(cause) or type(cause).__name__}",
            metadata={"provider": self.endpoint.provider},
        )


def _never_connected(error: BaseException | None) -> bool:
    """True when the request certainly did not reach the provider."""
    while error is not None:
        if isinstance(error, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            return True
        error = error.__cause__
    return False


def _inner(error: Any) -> dict[str, Any]:
    body = error.body
    inner = body.get("error", body) if isinstance(body, dict) else None
    return inner if isinstance(inner, dict) else {}


def _code(error: Any) -> str:
    return str(_inner(error).get("code") or "")


def _said(error: Any) -> str:
    """The provider's own words, short enough for a status message."""
    message = _inner(error).get("message")
    if isinstance(message, str):
        return message[:300]
    return str(error.response.reason_phrase or "no reason given")
