"""The connections to providers over HTTP, and what is built on them: backends, batch interfaces, keys."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from services.inference.backend import Backend
from services.inference.batch_items import KnownBatches, ProviderBatches
from services.inference.call import CallRules
from services.inference.models import Model, Provider
from services.inference.openai import OpenAiBackend, OpenAiClient
from services.inference.openai_batches import OpenAiBatches
from services.inference.providers import Endpoint, ProviderClient
from services.inference.settings import InferenceSettings
from services.inference.tokens import count_tokens
from services.inference.usage import Family

log = logging.getLogger("tenth.inference")

_KEY_SECONDS = 2.0


class Clients:
    """The connections to the providers, each opened when it is first asked for and closed with the stack."""

    def __init__(self, settings: InferenceSettings, stack: AsyncExitStack) -> None:
        self._settings = settings
        self._stack = stack
        self._clients: dict[tuple[str, str], ProviderClient] = {}

    def of(self, provider: Provider, backend: str) -> ProviderClient | None:
        """The client by which a provider is spoken to in a backend's format; None: no key, and no sandbox plays it."""
        client = self._clients.get((provider.name, backend))
        if client is not None:
            return client
        settings = self._settings
        key = key_reader(provider, os.environ, time.monotonic)
        sandbox = provider.wants_key and not key()
        if sandbox and not settings.sandbox_url:
            return None
        if sandbox:
            log.warning("SANDBOX: %s has no key; %s plays it", provider.name, settings.sandbox_url)
        own = backend == provider.backend
        endpoint = Endpoint(
            provider=provider.name,
            base_url=settings.sandbox_url if sandbox else provider.base_url,
            connect_seconds=settings.connect_timeout_seconds,
            max_connections=settings.max_connections,
            retries=settings.retries,
            max_retry_wait_seconds=settings.max_retry_wait_seconds,
            sandbox=sandbox,
            family=sandbox_family(backend) if sandbox or not own else provider.family,
            silence_seconds=settings.stream_silence_seconds,
            max_concurrent=provider.max_concurrent_requests,
            api_version=provider.api_version,
        )
        client = self._clients[provider.name, backend] = client_of(backend, endpoint, key)
        self._stack.push_async_callback(client.close)
        return client


def open_batches(
    model: Model, clients: Clients, known: KnownBatches, upload_dir: Path | None
) -> ProviderBatches | None:
    """The batch interface of a model's provider; None: it has none, or no key. ``known`` is shared by its models."""
    kind = model.provider.batches
    client = clients.of(model.provider, kind) if kind != "none" else None
    if client is None:
        return None
    backend = backend_of(client, model, model.batch_rules)
    if isinstance(client, OpenAiClient):
        assert isinstance(backend, OpenAiBackend)
        return OpenAiBatches(client, backend, count_tokens, upload_dir)
    from services.inference.anthropic import AnthropicBackend, AnthropicClient
    from services.inference.anthropic_batches import AnthropicBatches

    assert isinstance(client, AnthropicClient)
    assert isinstance(backend, AnthropicBackend)
    return AnthropicBatches(client, backend, count_tokens, known, upload_dir)


def client_of(backend: str, endpoint: Endpoint, key: Callable[[], str]) -> ProviderClient:
    """A client that speaks a backend's format."""
    if backend != "anthropic":
        return OpenAiClient(endpoint, key)
    # 38 MiB and a second that only those pay for who have such a provider.
    from services.inference.anthropic import AnthropicClient

    return AnthropicClient(endpoint, key)


def backend_of(client: ProviderClient, model: Model, rules: CallRules) -> Backend:
    """A model's backend on a client."""
    if isinstance(client, OpenAiClient):
        return OpenAiBackend(client, model.provider_model, rules)
    from services.inference.anthropic import AnthropicBackend, AnthropicClient

    assert isinstance(client, AnthropicClient)
    return AnthropicBackend(client, model.provider_model, model.max_output, rules)


def sandbox_family(backend: str) -> Family:
    """How the sandbox counts when it plays a provider of this backend: it speaks OpenAI's format and the Messages
    API's."""
    return Family.ANTHROPIC if backend == "anthropic" else Family.OPENAI


def key_reader(provider: Provider, environment: Mapping[str, str], clock: Callable[[], float]) -> Callable[[], str]:
    """What gives the provider's key: its file, read again when it may have changed, else its variable; or nothing."""
    path = provider.key_file
    if path is None:
        value = environment.get(provider.key_env, "").strip() if provider.key_env else ""
        return lambda: value
    kept, read_at = "", -_KEY_SECONDS

    def read() -> str:
        nonlocal kept, read_at
        now = clock()
        if now - read_at >= _KEY_SECONDS:
            kept, read_at = _read(path) or kept, now
        return kept

    return read


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return ""  # Being replaced right now, or not there: the key read last stays.
