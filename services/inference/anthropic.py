"""Anthropic's own Messages API, through the ``anthropic`` SDK's client.

Its OpenAI-compatible endpoint ignores ``cache_control`` and schemas and tells nothing of cached tokens; this one has
them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

import anthropic
from anthropic._constants import RAW_RESPONSE_HEADER

from services.inference import sse
from services.inference.backend import Answer
from services.inference.call import CallRules, fitted
from services.inference.messages_wire import BlockReader, delta_of, request_body, stop_reason_of
from services.inference.policy import Delta, Event, Finished, Generation, Meter
from services.inference.providers import Chances, Endpoint, ProviderBackend, ProviderClient, Sdk
from services.inference.usage import UsageReader

_PATH = "/messages"
_WRONG_FORM = (AttributeError, KeyError, TypeError, ValueError)


class AnthropicClient(ProviderClient):
    """The connections to one provider that speaks the Messages API, shared by its models."""

    def __init__(self, endpoint: Endpoint, key: Callable[[], str], chances: Chances | None = None) -> None:
        """``key`` is asked before each call, so that a replaced secret is taken up."""
        client = anthropic.AsyncAnthropic(
            base_url=endpoint.base_url,
            api_key="read for each call",
            max_retries=0,
            open_telemetry=False,
            http_client=anthropic.DefaultAioHttpClient(**endpoint.http_options()),
        )
        sdk = Sdk(client, anthropic.APIStatusError, anthropic.APIConnectionError, RAW_RESPONSE_HEADER)
        super().__init__(endpoint, key, sdk, chances or Chances())


class AnthropicBackend(ProviderBackend):
    """A Backend on one model of a provider that speaks the Messages API."""

    kind = "anthropic"

    def __init__(
        self, client: AnthropicClient, provider_model: str, max_output: int, rules: CallRules | None = None
    ) -> None:
        """``max_output`` tokens are the limit of a request that names none."""
        self._client = client
        self._max_output = max_output
        self._rules = rules or CallRules()
        self.provider = client.endpoint.shown
        self.provider_model = provider_model

    async def generate(self, generation: Generation, meter: Meter) -> Answer:
        """The whole answer in one HTTP response."""
        async with self._client.answer(generation, meter, *self._call(generation, stream=False)) as (response, until):
            body = await sse.whole(response, until)
        return self.read(body, meter)

    def read(self, body: dict[str, Any], meter: Meter) -> Answer:
        """A whole message's object. Raises PROVIDER_GARBAGE, or PROVIDER_INCOMPLETE where it has no end."""
        meter.reported = UsageReader(self._client.endpoint.family).read(body)
        try:
            delta = delta_of(body["content"])
        except _WRONG_FORM:
            raise sse.garbage("the answer has no content, or a block of a wrong form") from None
        meter.emit(delta)
        reason = stop_reason_of(body.get("stop_reason"))
        if not reason:
            raise sse.incomplete()
        return Answer(delta, Finished(reason, meter.usage()))

    async def stream(self, generation: Generation, meter: Meter) -> AsyncGenerator[Event]:
        """Pieces as the provider sends them."""
        reason = ""
        endpoint = self._client.endpoint
        usage, blocks = UsageReader(endpoint.family), BlockReader()
        meter.final = False
        async with self._client.answer(generation, meter, *self._call(generation, stream=True)) as (response, until):
            async for _, body in sse.events(response, until, endpoint.silence_seconds):
                said = usage.read(body)
                meter.reported = said or meter.reported
                kind = body.get("type")
                if kind == "message_stop":
                    break
                if kind == "message_delta":
                    reason = stop_reason_of(_object(body.get("delta")).get("stop_reason")) or reason
                    # The counts of the end are of the whole answer.
                    meter.final = bool(reason and said) or meter.final
                delta = None if reason else _read(blocks, body)
                if delta is not None:
                    meter.emit(delta)
                    yield delta
        if not reason:
            raise sse.incomplete()
        yield Finished(reason, meter.usage())

    def body(self, generation: Generation, *, stream: bool = False) -> dict[str, Any]:
        """The request's body. Raises UNSUPPORTED for a parameter that is refused."""
        generation = fitted(generation, self._rules)
        hints = self._rules.prompt_cache_hint
        return request_body(generation, self.provider_model, self._max_output, stream=stream, hints=hints)

    def _call(self, generation: Generation, *, stream: bool) -> tuple[str, dict[str, Any], dict[str, str]]:
        """Path, body and headers of the request. Raises UNSUPPORTED for a parameter that is refused."""
        return _PATH, self.body(generation, stream=stream), self._client.bearer()


def _read(blocks: BlockReader, body: dict[str, Any]) -> Delta | None:
    try:
        return blocks.read(body)
    except _WRONG_FORM:
        raise sse.garbage("an event of the stream has a wrong form") from None


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
