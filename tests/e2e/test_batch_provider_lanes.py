"""A batch at the providers' own batch interfaces, played by the sandbox over their real formats: half the price."""

from __future__ import annotations

import io
import json
import time
from pathlib import Path

import books
import pytest
from conftest import QUICK_RECONCILIATION, started
from rich.console import Console
from tenth.batch.v1 import batch_pb2
from tenth.type.v1 import receipt_pb2

from tenth_client import Batches, cli
from tenth_client.batch_layer import missing_batch_layer

pytestmark = pytest.mark.skipif(bool(missing_batch_layer()), reason=missing_batch_layer())
ITEMS = 30
SECONDS = 120.0
QUICK = {"TENTH_BATCH_POLL_FIRST_SECONDS": "0.2", "TENTH_BATCH_POLL_LONGEST_SECONDS": "1", "TENTH_BATCH_NEAR_SAME": "0"}


async def test_both_providers_answer_at_batch_prices(tmp_path: Path) -> None:
    models = ("gpt-4o", "claude-opus-4-7")
    lines = [
        {
            "custom_id": f"item-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": models[number % 2],
                "tenth": {"policy": {"model": models[number % 2]}},
                "max_tokens": 24,
                "messages": [{"role": "user", "content": f"What is {number} times {number + 7}, roughly?"}],
            },
        }
        for number in range(ITEMS)
    ]
    path = tmp_path / "batch.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    env = {**QUICK_RECONCILIATION, "batch-worker": QUICK}
    async with (
        started(tmp_path, batch=True, env=env) as mesh,
        Batches(mesh.address("batch"), mesh.api_key, retry_seconds=60) as batches,
    ):
        parsed = cli.parser().parse_args(
            ["batch", "submit", str(path), "--deadline", "6h", "--json", "--data-dir", str(mesh.data_dir)]
        )
        file = io.StringIO()
        assert await parsed.run(parsed, Console(file=file, width=200, highlight=False)) == 0, file.getvalue()
        batch_id = json.loads(file.getvalue())["batch_id"]
        end = time.monotonic() + SECONDS
        async for batch in batches.watch(batch_id, interval_seconds=0.2):
            assert time.monotonic() < end, f"the batch does not get on: {batch}"
        assert batch.state == batch_pb2.BATCH_STATE_DONE, batch
        assert (batch.done_count, batch.failed_count) == (ITEMS, 0), batch
        lanes = {lane.lane: lane.item_count for lane in batch.lanes}
        assert lanes == {"openai": ITEMS // 2, "anthropic": ITEMS // 2}, batch
        await books.quiet(mesh)
        total = await books.report(mesh, ITEMS)
        assert (total.request_count, total.actual_nano_usd) == (ITEMS, batch.actual_nano_usd)
        # Half of the online price is saved, on the books as in the batch.
        batch_saving = next(one.saving_nano_usd for one in batch.savings if one.layer == receipt_pb2.LAYER_BATCH)
        assert batch_saving == batch.actual_nano_usd - batch.overhead_nano_usd > 0
        status = await books.status(mesh)
        assert (status.open_reservation_count, status.identity_violation_count) == (0, 0), status
