"""Any OpenAI-compatible provider, through the ``openai`` SDK's client: OpenAI, Azure, Gemini, vLLM, Ollama, others."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, Callable
from typing import Any
from urllib.parse import quote, urlsplit

import httpx2
import openai
from openai._constants import RAW_RESPONSE_HEADER

from mesh.errors import TenthError
from services.inference import sse
from services.inference.backend import Answer
from services.inference.call import CallRules, fitted
from services.inference.policy import Delta, Event, Finished, Generation, Meter
from services.inference.providers import Chances, Endpoint, ProviderBackend, ProviderClient, Sdk
from services.inference.usage import UsageReader
from services.inference.wire import delta_of, finish_reason_of, request_body

_PATH = "/chat/completions"
_NOTHING = Delta()
_OPENAI = "api.openai.com"


class OpenAiClient(ProviderClient):
    """The connections to one OpenAI-compatible provider, shared by its models."""

    def __init__(self, endpoint: Endpoint, key: Callable[[], str], chances: Chances | None = None) -> None:
        """``key`` is asked before each call, so that a replaced secret is taken up."""
        client = openai.AsyncOpenAI(
            base_url=endpoint.base_url,
            api_key="read for each call",
            max_retries=0,
            # aiohttp's parser is C: 0.95 ms of CPU per call against 1.4 ms.
            http_client=openai.DefaultAioHttpClient(**endpoint.http_options()),
        )
        sdk = Sdk(client, openai.APIStatusError, openai.APIConnectionError, RAW_RESPONSE_HEADER)
        super().__init__(endpoint, key, sdk, chances or Chances())


class OpenAiBackend(ProviderBackend):
    """A Backend on one model of an OpenAI-compatible provider."""

    def __init__(self, client: OpenAiClient, provider_model: str, rules: CallRules | None = None) -> None:
        self._client = client
        self._rules = rules or CallRules()
        self.kind = "azure" if client.endpoint.api_version else "openai"
        self.provider = client.endpoint.shown
        self.provider_model = provider_model
        host = urlsplit(client.endpoint.base_url).hostname
        # OpenAI's reasoning models refuse the older name; other servers often know only that one.
        self._limit = self._rules.limit_name or ("max_completion_tokens" if host == _OPENAI else "max_tokens")
        # Others refuse a field that they do not know.
        self._hints = self._rules.prompt_cache_hint and (host == _OPENAI or client.endpoint.sandbox)

    async def generate(self, generation: Generation, meter: Meter) -> Answer:
        """The whole answer in one HTTP response."""
        async with self._client.answer(generation, meter, *self._call(generation, stream=False)) as (response, until):
            body = await sse.whole(response, until)
        return self.read(body, meter)

    def read(self, body: dict[str, Any], meter: Meter) -> Answer:
        """A whole answer's object. Raises PROVIDER_GARBAGE, or PROVIDER_INCOMPLETE where it has no end."""
        meter.reported = UsageReader(self._client.endpoint.family).read(body)
        choice = _choice(body)
        message = choice.get("message")
        if not isinstance(message, dict):
            raise sse.garbage("the answer has no message")
        delta = _delta(message, choice)
        meter.emit(delta)
        reason = finish_reason_of(choice.get("finish_reason"))
        if not reason:
            raise sse.incomplete()
        return Answer(delta, Finished(reason, meter.usage()))

    async def stream(self, generation: Generation, meter: Meter) -> AsyncGenerator[Event]:
        """Pieces as the provider sends them."""
        reason, ending = "", b""
        endpoint = self._client.endpoint
        usage = UsageReader(endpoint.family)
        meter.final = False
        async with self._client.answer(generation, meter, *self._call(generation, stream=True)) as (response, until):
            try:
                async for data, body in sse.events(response, until, endpoint.silence_seconds):
                    if data == ending:
                        continue  # A repeat, byte for byte, of what ended the answer.
                    said = usage.read(body)
                    meter.reported = said or meter.reported
                    if not body.get("choices"):
                        # The last event of a stream: usage alone.
                        meter.final = bool(reason and said) or meter.final
                        continue
                    choice = _choice(body)
                    delta = _delta(choice.get("delta") or {}, choice)
                    if finished := finish_reason_of(choice.get("finish_reason")):
                        reason, ending = finished, data
                    meter.final = bool(reason and said) or meter.final
                    if delta != _NOTHING:
                        meter.emit(delta)
                        yield delta
            except (TenthError, httpx2.HTTPError, httpx2.StreamError):
                if not (reason and meter.final):
                    raise  # Else all of it came, and what it cost: only the connection did not end well.
        if not reason:
            raise sse.incomplete()
        yield Finished(reason, meter.usage())

    def body(self, generation: Generation, *, stream: bool = False) -> dict[str, Any]:
        """The request's body. Raises UNSUPPORTED for a parameter that is refused."""
        generation = fitted(generation, self._rules)
        body = request_body(generation, self.provider_model, self._limit, stream=stream)
        if self._hints and (key := prompt_cache_key(generation)):
            body["prompt_cache_key"] = key
        return body

    def _call(
        self, generation: Generation, *, stream: bool
    ) -> tuple[str, dict[str, Any], dict[str, Any], dict[str, str]]:
        """Path, body, headers and query of the request. Raises UNSUPPORTED for a parameter that is refused."""
        body = self.body(generation, stream=stream)
        endpoint, key = self._client.endpoint, self._client.key() or "none"
        if not endpoint.api_version or endpoint.sandbox:
            return _PATH, body, {"authorization": f"Bearer {key}"}, {}
        path = f"/openai/deployments/{quote(self.provider_model, safe='')}{_PATH}"
        return path, body, {"api-key": key, "authorization": openai.omit}, {"api-version": endpoint.api_version}


def prompt_cache_key(generation: Generation) -> str:
    """OpenAI's ``prompt_cache_key``: requests with the same key go to the same cache; empty without a stable prefix.

    One for a tenant, a model, the compressor's rules and the instructions at the front, which stay the same from turn
    to turn while the rest of the stable prefix grows. Source: OpenAI's prompt caching guide.
    """
    if not generation.stable_messages:
        return ""
    digest = hashlib.sha256()
    front = [message.text for message in generation.messages[: generation.stable_messages] if message.role == "system"]
    for part in (generation.tenant_id, generation.model, generation.prefix_version, *front):
        digest.update(len(part).to_bytes(8, "big") + part.encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]


def _delta(message: Any, choice: dict[str, Any]) -> Delta:
    try:
        return delta_of(message, choice)
    except (AttributeError, TypeError, ValueError):
        raise sse.garbage("a field of the answer has a wrong type") from None


def _choice(body: dict[str, Any]) -> dict[str, Any]:
    choices = body.get("choices")
    if not isinstance(choices, list) or not choices or not isinstance(choices[0], dict):
        raise sse.garbage("the answer has no choice")
    return choices[0]
