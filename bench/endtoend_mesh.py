"""The mesh of one catalogue as processes, and runs through it."""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc

from bench import endtoend_deploy as deploy
from bench.endtoend_arms import RunPlan
from bench.endtoend_bulk import Operations, Submitted
from bench.endtoend_play import MAX_OUTPUT_TOKENS, Bulk, Outcome, Player
from bench.endtoend_workload import Arrival
from bench.mesh import cpu_seconds
from bench.router_heads import WEIGHTS
from tenth_client import Client
from tenth_client.rpc import Rpc
from tenth_client.up import Mesh, MeshOptions

CONCURRENCY = 4
"""Of the runs that are not paced."""
MOST_AT_ONCE = 64
"""Of the paced ones."""
_SNAPSHOT_SECONDS = 2.5
"""Within which orchestrators have seen a switch: they look every second."""
_SETTLE_SECONDS = 30.0
_CAPS = {f"TENTH_ORCHESTRATOR_{hop}_CAP_SECONDS": "30" for hop in ("LOOKUP", "SELECT", "COMPRESS", "RESERVE")}
"""The bench measures cost and quality, not the caps: a busy machine must not turn a hit into a miss."""


_PROVIDER_TIMES = {"TENTH_BATCH_POLL_FIRST_SECONDS": "0.5", "TENTH_BATCH_POLL_LONGEST_SECONDS": "2"}
"""The sandbox's batches are done in seconds, not in hours."""


class Station:
    """How to start the mesh of one catalogue."""

    def __init__(self, catalog: str, folder: Path, models_dir: Path, *, held_out_heads: bool) -> None:
        self._catalog = catalog
        self._folder = folder / catalog
        self._record = folder / "recorded.jsonl"
        self._models_dir = models_dir
        self._heads = {"TENTH_ROUTER_HEADS_FILE": str(WEIGHTS / "held_out.npz")} if held_out_heads else {}

    @asynccontextmanager
    async def running(
        self, tenants: Mapping[str, Sequence[str]], codes: Mapping[str, str], *, batch: bool
    ) -> AsyncIterator[Running]:
        """The started mesh; ``tenants`` are the layers that are off, by tenant; ``batch``: with the batch layer."""
        keys = deploy.write(self._folder / "deploy", self._catalog, list(tenants))
        options = MeshOptions(
            data_dir=self._folder / "mesh",
            models_dir=self._models_dir,
            deploy_dir=self._folder / "deploy",
            local_model=False,
            sandbox="instant",
            free_ports=True,
            batch=batch,
            env={"orchestrator": _CAPS, "router": self._heads, "batch-worker": _PROVIDER_TIMES},
            arguments={
                "sandbox": (
                    *("--recorded", str(self._record), "--recorded-prompts", str(self._folder / "prompts.jsonl")),
                    *("--max-tokens", str(MAX_OUTPUT_TOKENS)),
                )
            },
        )
        # Every provider is played, whatever keys the environment has.
        async with Mesh(options, environ=deploy.without_keys(self._catalog)) as mesh:
            running = Running(mesh, keys, codes, batch=batch)
            await running.switch_off(tenants)
            yield running

    def prompts(self) -> dict[str, str]:
        """What the sandbox kept of prompts, by digest."""
        file = self._folder / "prompts.jsonl"
        if not file.is_file():
            return {}
        with file.open(encoding="utf-8") as lines:
            return {each["digest"]: each["text"] for each in map(json.loads, lines)}


class Running:
    """A started mesh."""

    def __init__(self, mesh: Mesh, keys: Mapping[str, str], codes: Mapping[str, str], *, batch: bool) -> None:
        self.mesh = mesh
        self._keys = keys
        self._codes = codes
        self._batch = batch
        self._by_tenant: dict[str, list[Outcome]] = defaultdict(list)

    async def switch_off(self, tenants: Mapping[str, Sequence[str]]) -> None:
        """Turn layers off by tenant, as an operator does."""
        async with Rpc(self.mesh.connection) as rpc:
            for tenant, layers in tenants.items():
                for layer in layers:
                    request = ledger_pb2.SetLayerSwitchRequest(tenant_id=tenant, layer=layer, disabled=True)
                    await rpc.call("ledger", ledger_pb2_grpc.LedgerServiceStub, "SetLayerSwitch", request)
        await asyncio.sleep(_SNAPSHOT_SECONDS)

    async def run(self, plan: RunPlan, part: Sequence[Arrival], per_second: float) -> tuple[list[Outcome], float]:
        """The outcomes of a part of a plan's stream, and the CPU seconds of the mesh's processes for it."""
        await self.forget()
        pids = [pid for name, pid in self.mesh.pids.items() if name not in ("collector", "sandbox")]
        before = cpu_seconds(pids)
        async with Client(self.mesh.address("orchestrator"), self._keys[plan.arm.tenant]) as client:
            player = Player(client, self._codes, self._bulk(self._keys[plan.arm.tenant]))
            if plan.paced:
                found = await player.play(part, plan.arm, MOST_AT_ONCE, per_second)
            else:
                found = await player.play(part, plan.arm, CONCURRENCY)
        self._by_tenant[plan.arm.tenant] += found
        return found, cpu_seconds(pids) - before

    def _bulk(self, api_key: str) -> Bulk:
        return Submitted(self.mesh.address("batch"), api_key) if self._batch else Operations()

    async def forget(self) -> None:
        """Empty the sandbox's prompt caches, so that every run begins cold."""
        async with httpx.AsyncClient() as http:
            (await http.post(f"http://{self.mesh.address('sandbox')}/sandbox/forget")).raise_for_status()

    async def ledger_differences(self) -> int:
        """By how much the ledger's report differs from the receipts that callers got, nano-USD, over all tenants."""
        async with Rpc(self.mesh.connection) as rpc:
            return sum([await self._difference(rpc, tenant, mine) for tenant, mine in self._by_tenant.items()])

    async def _difference(self, rpc: Rpc, tenant: str, mine: Sequence[Outcome]) -> int:
        request = ledger_pb2.GetSpendReportRequest()
        request.filter.tenant_id = tenant
        until = asyncio.get_running_loop().time() + _SETTLE_SECONDS
        while True:
            report = await rpc.call("ledger", ledger_pb2_grpc.LedgerReadServiceStub, "GetSpendReport", request)
            row = report.rows[0] if report.rows else ledger_pb2.SpendRow()
            if row.request_count >= len(mine) or asyncio.get_running_loop().time() > until:
                actual = abs(int(row.actual_nano_usd) - sum(each.actual for each in mine))
                return actual + abs(int(row.baseline_nano_usd) - sum(each.baseline for each in mine))
            await asyncio.sleep(0.2)
