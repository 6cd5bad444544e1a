"""The whole mesh as processes on loopback, without a local model: paid models are played by the instant sandbox."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tenth_client import Client
from tenth_client.up import Mesh, MeshOptions

MODELS_DIR = Path(os.environ.get("TENTH_MODELS_DIR", ".models"))

PATIENT = {
    # Slow shared machines: a late hop is tested where it is meant, not by chance.
    "TENTH_ORCHESTRATOR_LOOKUP_CAP_SECONDS": "5",
    "TENTH_ORCHESTRATOR_SELECT_CAP_SECONDS": "5",
    "TENTH_ORCHESTRATOR_COMPRESS_CAP_SECONDS": "5",
    "TENTH_ORCHESTRATOR_RESERVE_CAP_SECONDS": "5",
}
DECIDED = {
    # A test that asks for a model must not be the one request of a hundred that explores.
    "TENTH_ROUTER_EXPLORE_SHARE": "0",
    "TENTH_ROUTER_AUDIT_SHARE": "0",
}
LENIENT = {
    # The path of a semantic hit is tested, not where the threshold of the newest weights lies.
    "TENTH_CACHE_MAX_WRONG_HITS_PER_THOUSAND": "100",
}
QUICK_RECONCILIATION = {
    "orchestrator": {**PATIENT, "TENTH_ORCHESTRATOR_RESERVATION_TTL_SECONDS": "4"},
    "ledger": {"TENTH_LEDGER_SWEEP_INTERVAL_SECONDS": "0.5"},
}


@asynccontextmanager
async def started(folder: Path, **options: Any) -> AsyncIterator[Mesh]:
    """A mesh of its own in a folder."""
    env = dict(options.pop("env", {"orchestrator": PATIENT, "cache": LENIENT}))
    env["router"] = {**DECIDED, **env.get("router", {})}
    made = MeshOptions(
        data_dir=folder / "mesh",
        models_dir=MODELS_DIR,
        local_model=options.pop("local_model", False),
        sandbox=options.pop("sandbox", "instant"),
        free_ports=True,
        batch=options.pop("batch", False),
        env=env,
        **options,
    )
    async with Mesh(made) as mesh:
        yield mesh


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """One mesh for all tests that do not break it."""
    async with started(tmp_path_factory.mktemp("e2e")) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def client(mesh: Mesh) -> AsyncIterator[Client]:
    """A client of the shared mesh."""
    async with Client(mesh.address("orchestrator"), mesh.api_key) as connected:
        yield connected
