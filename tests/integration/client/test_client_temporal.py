"""The mesh's Temporal: the real development server under the supervisor, killed and started again on its file."""

from __future__ import annotations

import asyncio
import time
import uuid
from pathlib import Path

import pytest
import yaml

from tenth_client.batch_layer import missing_batch_layer
from tenth_client.processes import health_of, healthy
from tenth_client.up import Mesh, MeshOptions

temporalio = pytest.importorskip("temporalio.client")
pytestmark = pytest.mark.skipif(bool(missing_batch_layer()), reason=missing_batch_layer())


async def test_what_it_knows_outlives_a_kill(tmp_path: Path) -> None:
    (tmp_path / "catalog.yaml").write_text(yaml.safe_dump({"providers": {}, "models": {}}))
    (tmp_path / "callers.yaml").write_text(yaml.safe_dump({"callers": [], "services": {}}))
    options = MeshOptions(
        data_dir=tmp_path / "data", deploy_dir=tmp_path, free_ports=True, batch=True, stages=(("temporal",),)
    )
    async with Mesh(options) as mesh:
        address, pid = mesh.address("temporal"), mesh.pids["temporal"]
        assert await health_of(address) == "SERVING"
        client = await temporalio.Client.connect(address)
        workflow = f"batch/{uuid.uuid4()}"
        await client.start_workflow("BatchWorkflow", id=workflow, task_queue="nobody")
        mesh.kill("temporal")
        until = time.monotonic() + 30
        while mesh.pids["temporal"] in (0, pid) or not await healthy(address):
            assert time.monotonic() < until, mesh.log_file("temporal").read_text()
            await asyncio.sleep(0.05)
        again = await temporalio.Client.connect(address)
        found = await again.get_workflow_handle(workflow).describe()
        assert found.workflow_type == "BatchWorkflow"
        assert mesh.restarts("temporal") == 1
    assert (tmp_path / "data" / "temporal" / "temporal.db").is_file()
    assert not await healthy(address)
