"""From the catalogue to what serves it: one backend per model, the local engine started, keys read."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

from mesh.catalog import CatalogError, read_file
from mesh.server import Ping
from services.inference.backend import Backend
from services.inference.hardware import detect
from services.inference.local_engine import engine_options
from services.inference.models import Model, Provider, local_model, parse_catalog
from services.inference.openai import Endpoint, OpenAiBackend, OpenAiClient
from services.inference.policy import Circuit
from services.inference.servicer import Served
from services.inference.settings import InferenceSettings
from services.inference.unavailable import UnavailableBackend
from services.inference.usage import Family
from services.inference.vllm import VllmBackend

log = logging.getLogger("tenth.inference")

_KEY_SECONDS = 2.0


def read_catalog(settings: InferenceSettings) -> tuple[dict[str, Model], Model | None]:
    """The models, and the one that the local engine serves; ends the process naming the setting that is wrong."""
    try:
        catalog = read_file(settings.catalog_file, parse_catalog)
    except (CatalogError, OSError) as error:
        raise SystemExit(f"setting TENTH_INFERENCE_CATALOG_FILE: {error}") from None
    try:
        return catalog, local_model(catalog, settings.local_model)
    except ValueError as error:
        raise SystemExit(f"setting TENTH_INFERENCE_LOCAL_MODEL: {error}") from None


async def open_models(
    catalog: Mapping[str, Model],
    local: Model | None,
    settings: InferenceSettings,
    otlp_endpoint: str,
    stack: AsyncExitStack,
) -> tuple[dict[str, Served], dict[str, Ping]]:
    """A backend for every model, owned by the stack; and the pings that readiness waits for."""
    clients: dict[str, OpenAiClient] = {}
    engine: VllmBackend | None = None
    pings: dict[str, Ping] = {}
    if local is not None:
        hardware = await asyncio.to_thread(detect)
        options = engine_options(local, settings, hardware, otlp_endpoint)
        engine = VllmBackend(local.name, local.provider.name, local.provider_model, options)
        stack.push_async_callback(engine.close)
        engine.start()
        pings["vllm"] = engine.ping
    served: dict[str, Served] = {}
    for model in catalog.values():
        backend: Backend
        if model.provider.backend == "openai":
            backend = _remote(model, settings, clients, stack)
        elif engine is not None and local is not None and model.provider_model == local.provider_model:
            backend = engine
        else:
            backend = UnavailableBackend(model, "vllm", "another replica's engine serves this model, not this one's")
        served[model.name] = Served(model, backend, Circuit(settings.circuit_failures, settings.circuit_open_seconds))
    return served, pings


def _remote(
    model: Model, settings: InferenceSettings, clients: dict[str, OpenAiClient], stack: AsyncExitStack
) -> Backend:
    provider = model.provider
    client = clients.get(provider.name)
    if client is None:
        key = key_reader(provider, os.environ, time.monotonic)
        sandbox = provider.wants_key and not key()
        if sandbox and not settings.sandbox_url:
            wanted = " or ".join(str(name) for name in (provider.key_env, provider.key_file) if name)
            return UnavailableBackend(model, "openai", f"no key: set {wanted}, or TENTH_INFERENCE_SANDBOX_URL")
        if sandbox:
            log.warning("SANDBOX: %s has no key; %s plays it", provider.name, settings.sandbox_url)
        endpoint = Endpoint(
            provider=provider.name,
            base_url=settings.sandbox_url if sandbox else provider.base_url,
            connect_seconds=settings.connect_timeout_seconds,
            max_connections=settings.max_connections,
            retries=settings.retries,
            max_retry_wait_seconds=settings.max_retry_wait_seconds,
            sandbox=sandbox,
            family=Family.OPENAI if sandbox else provider.family,  # The sandbox speaks OpenAI's format.
        )
        client = clients[provider.name] = OpenAiClient(endpoint, key)
        stack.push_async_callback(client.close)
    return OpenAiBackend(client, model.provider_model)


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
