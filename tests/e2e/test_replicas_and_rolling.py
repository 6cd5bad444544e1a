"""Several replicas, and every service restarted in turn under load."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import books
from conftest import QUICK_RECONCILIATION, started
from tenth.cache.v1 import cache_pb2, cache_pb2_grpc

from tenth_client import Client
from tenth_client.rpc import Rpc


async def test_two_orchestrators_two_cache_shards_and_a_rolling_restart(tmp_path: Path) -> None:
    replicas = {"orchestrator": 2, "cache": 2}
    async with (
        started(tmp_path, env=QUICK_RECONCILIATION, replicas=replicas) as mesh,
        Client(mesh.address("orchestrator"), mesh.api_key, retry_seconds=90) as client,
    ):
        # Two namespaces that rendezvous hashing puts on different shards, answered through both orchestrators.
        spaces = [f"space-{number}" for number in range(8)]
        for space in spaces:
            for _ in range(3):
                await client.complete("How do I archive a project?", namespace=space)
                await asyncio.sleep(0.1)
        async with Rpc(mesh.connection) as rpc:
            stats = await rpc.call_each(
                "cache", cache_pb2_grpc.CacheServiceStub, "GetStats", cache_pb2.GetStatsRequest()
            )
        entries = [shard.entry_count for shard in stats]
        assert sum(entries) == len(spaces), "an answer lives on one shard, whichever orchestrator asks"
        assert all(entries), "both shards are used"

        answered: list[str] = []
        stop = asyncio.Event()

        async def load(worker: int) -> None:
            number = 0
            while not stop.is_set():
                number += 1
                request_id = str(uuid.uuid4())
                question = f"Give one fact about exhibit {number % 40} of hall {worker}."
                answer = await client.complete(question, request_id=request_id, timeout=120)
                assert books.holds(answer.receipt)
                answered.append(request_id)
                await asyncio.sleep(0.02)

        workers = [asyncio.create_task(load(worker)) for worker in range(3)]
        await mesh.rolling_restart(["ledger", "inference", "cache", "router", "compressor", "orchestrator"])
        stop.set()
        await asyncio.gather(*workers)  # Any failed request raises here: nothing may be lost.

        await books.quiet(mesh)
        receipts = await books.final_receipts(client, answered, seconds=60)
        assert len(receipts) == len(answered)
        assert (await books.status(mesh)).identity_violation_count == 0
