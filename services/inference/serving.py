"""From the catalogue to what serves it: one backend per model, the local engine started, keys read."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path

from mesh.catalog import CatalogError, read_file
from mesh.errors import TenthError
from mesh.server import Ping
from services.inference.adapters import AdaptedBackend, Adapter, read_adapter
from services.inference.backend import Backend
from services.inference.batch_items import KnownBatches
from services.inference.circuits import SharedCircuit
from services.inference.clients import Clients, backend_of, open_batches
from services.inference.errors import Reason
from services.inference.hardware import detect
from services.inference.hedging import HedgedBackend, HedgeDelay
from services.inference.local_engine import engine_options
from services.inference.models import Model, local_model, parse_catalog, tool_format_of
from services.inference.policy import Circuit
from services.inference.served import Served, ServedBatches
from services.inference.settings import InferenceSettings
from services.inference.unavailable import UnavailableBackend
from services.inference.vllm import VllmBackend
from services.inference.vllm_engine import Signals

log = logging.getLogger("tenth.inference")


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
    signals: Signals | None = None,
    upload_dir: Path | None = None,
) -> tuple[dict[str, Served], dict[str, Ping]]:
    """A backend for every model, owned by the stack; and the pings that readiness waits for.

    What goes into providers' batches is put together in ``upload_dir``; None: where temporary files are.
    """
    clients = Clients(settings, stack)
    engine: VllmBackend | None = None
    pings: dict[str, Ping] = {}
    adapters, unusable = _adapters(catalog, local, settings.models_dir)
    if local is not None:
        hardware = await asyncio.to_thread(detect)
        options = engine_options(local, settings, hardware, otlp_endpoint, adapters)
        options = replace(options, tool_format=tool_format_of(catalog, local))
        engine = VllmBackend(local.name, local.provider.name, local.provider_model, options, signals)
        stack.push_async_callback(engine.close)
        engine.start()
        pings["vllm"] = engine.ping
    served: dict[str, Served] = {}
    circuits: dict[str, Circuit] = {}
    batch_circuits: dict[str, Circuit] = {}
    known: dict[str, KnownBatches] = {}
    for model in catalog.values():
        backend: Backend
        if model.provider.backend != "vllm":
            backend = _remote(model, clients)
        elif model.name in unusable:
            backend = UnavailableBackend(model, "vllm", unusable[model.name], Reason.ADAPTER_UNAVAILABLE)
        elif engine is not None and local is not None and model.provider_model == local.provider_model:
            backend = AdaptedBackend(engine, model.adapter) if model.adapter else engine
        else:
            backend = UnavailableBackend(model, "vllm", "another replica's engine serves this model, not this one's")
        own = _circuit(settings)
        circuit: Circuit | SharedCircuit = own
        if model.provider.backend != "vllm":
            circuit = SharedCircuit(own, circuits.setdefault(model.provider.name, _circuit(settings)))
        served[model.name] = Served(model, backend, circuit)
        batches = open_batches(model, clients, known.setdefault(model.provider.name, KnownBatches()), upload_dir)
        if batches is not None:
            own = batch_circuits.setdefault(model.provider.name, _circuit(settings))
            served[model.name].batches = ServedBatches(batches, SharedCircuit(own, circuits[model.provider.name]))
    return served, pings


def _circuit(settings: InferenceSettings) -> Circuit:
    return Circuit(settings.circuit_failures, settings.circuit_open_seconds)


def _adapters(
    catalog: Mapping[str, Model], local: Model | None, models_dir: Path
) -> tuple[tuple[Adapter, ...], dict[str, str]]:
    """The adapters of the models that the local engine serves, and by model why one cannot be used."""
    adapters: dict[str, Adapter] = {}
    unusable: dict[str, str] = {}
    for model in catalog.values():
        mine = local is not None and model.provider.backend == "vllm" and model.provider_model == local.provider_model
        if not mine or not model.adapter or model.adapter in adapters:
            continue
        try:
            found = read_adapter(model.adapter, models_dir / model.adapter, len(adapters) + 1)
        except TenthError as error:
            unusable[model.name] = error.message
            log.error("%s is not served: %s", model.name, error)
        else:
            adapters[model.adapter] = found
    return tuple(adapters.values()), unusable


def local_engine(served: Iterable[Served]) -> VllmBackend | None:
    """The backend of this replica's own engine, if it has one."""
    backends = (each.backend.inner if isinstance(each.backend, AdaptedBackend) else each.backend for each in served)
    return next((each for each in backends if isinstance(each, VllmBackend)), None)


def drain_local(served: Iterable[Served], notice_seconds: float) -> None:
    """The process is about to end: have the local engine hand back its work. The providers' answers just go on."""
    engine = local_engine(served)
    if engine is not None:
        engine.drain(notice_seconds)


def drain_seconds(settings: InferenceSettings, mesh_drain_seconds: float) -> float:
    """The notice of running generations: as set, but over before the server cancels what still runs."""
    return max(min(settings.notice_seconds, mesh_drain_seconds - 0.5), 0.0)


def _remote(model: Model, clients: Clients) -> Backend:
    provider = model.provider
    client = clients.of(provider, provider.backend)
    if client is None:
        wanted = " or ".join(str(name) for name in (provider.key_env, provider.key_file) if name)
        return UnavailableBackend(model, provider.backend, f"no key: set {wanted}, or TENTH_INFERENCE_SANDBOX_URL")
    backend = backend_of(client, model, model.rules)
    after = model.rules.hedge_after_seconds
    return HedgedBackend(backend, HedgeDelay(after), time.monotonic) if after else backend
