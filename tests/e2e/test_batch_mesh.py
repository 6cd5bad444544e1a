"""Batches through the whole mesh: submitted as a file, run over Temporal, killed in the middle, in the books."""

from __future__ import annotations

import asyncio
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import books
import pytest
from conftest import QUICK_RECONCILIATION, started
from rich.console import Console
from tenth.batch.v1 import batch_pb2

from tenth_client import Batches, Client, cli
from tenth_client.batch_layer import missing_batch_layer
from tenth_client.up import Mesh

pytestmark = pytest.mark.skipif(bool(missing_batch_layer()), reason=missing_batch_layer())
QUESTIONS = (
    "How do volcanoes form?",
    "Which gear helps a cyclist up a steep hill?",
    "Summarize the plot of Hamlet.",
    "What does a lighthouse keeper do at night?",
    "Convert 30 degrees Celsius to Fahrenheit.",
    "Why is bread dough left to rise?",
    "Name the parts of a violin.",
    "Who was the first person on the Moon?",
    "Write a SQL query that counts the orders of each customer.",
    "Is it safe to feed honey to infants?",
    "What is the capital of Mongolia?",
    "Explain compound interest to a child.",
)
"""Of different meaning: what is nearly the same would wait for its like."""
ITEMS = 20
SECONDS = 120.0


def written(folder: Path) -> str:
    """A batch in OpenAI's format; its last items repeat the first ones' questions."""
    path = folder / "batch.jsonl"
    lines = [
        {
            "custom_id": f"item-{number}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {
                "model": "gpt-4o",
                "max_tokens": 24,
                "messages": [{"role": "user", "content": QUESTIONS[number % len(QUESTIONS)]}],
            },
        }
        for number in range(ITEMS)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return str(path)


async def tenth(mesh: Mesh, *arguments: str) -> tuple[int, str]:
    """Run ``tenth batch``; its status and what it printed."""
    parsed = cli.parser().parse_args(["batch", *arguments, "--data-dir", str(mesh.data_dir)])
    file = io.StringIO()
    status: int = await parsed.run(parsed, Console(file=file, width=200, highlight=False))
    return status, file.getvalue()


async def until(batches: Batches, batch_id: str, reached: Callable[[batch_pb2.Batch], bool]) -> batch_pb2.Batch:
    end = time.monotonic() + SECONDS
    async for batch in batches.watch(batch_id, interval_seconds=0.2):
        assert time.monotonic() < end, f"the batch does not get on: {batch}"
        if reached(batch):
            return batch
    return batch


async def came_back(mesh: Mesh, victim: str, pid: int) -> None:
    """Wait until a killed process runs again and is healthy."""
    end = time.monotonic() + SECONDS
    while mesh.pids[victim] in (0, pid):
        assert time.monotonic() < end, f"{victim} is not started again"
        await asyncio.sleep(0.05)
    await mesh.wait_ready(victim)


async def check_books(mesh: Mesh, client: Client, lines: list[dict[str, Any]], batch: batch_pb2.Batch) -> None:
    """Every item has one receipt, and the ledger's sums are the batch's."""
    await books.quiet(mesh)
    receipts = await books.final_receipts(client, [line["tenth"]["request_id"] for line in lines])
    assert len({receipt.facts.request_id for receipt in receipts}) == ITEMS
    assert all(books.holds(receipt) for receipt in receipts)
    total = await books.report(mesh, ITEMS)
    assert total.request_count == ITEMS
    assert total.actual_nano_usd == sum(receipt.actual_nano_usd for receipt in receipts) == batch.actual_nano_usd
    assert total.baseline_nano_usd == batch.baseline_nano_usd
    status = await books.status(mesh)
    assert (status.open_reservation_count, status.identity_violation_count) == (0, 0)


@pytest.mark.parametrize("victim", ["", "batch-worker", "temporal", "batch"])
async def test_a_file_becomes_answers_and_receipts(victim: str, tmp_path: Path) -> None:
    async with (
        started(tmp_path, batch=True, env=QUICK_RECONCILIATION) as mesh,
        Client(mesh.address("orchestrator"), mesh.api_key) as client,
        Batches(mesh.address("batch"), mesh.api_key, retry_seconds=60) as batches,
    ):
        path = written(tmp_path)
        # Too short for a provider's batch: it runs at once.
        status, said = await tenth(mesh, "submit", path, "--deadline", "10m", "--json")
        assert status == 0, said
        batch_id = json.loads(said)["batch_id"]
        if victim:
            await until(batches, batch_id, lambda batch: batch.done_count > 0)
            pid = mesh.pids[victim]
            mesh.kill(victim)
            await came_back(mesh, victim, pid)
        batch = await until(batches, batch_id, lambda batch: False)
        assert batch.state == batch_pb2.BATCH_STATE_DONE, batch
        assert (batch.done_count, batch.failed_count) == (ITEMS, 0)
        assert batch.shared_count + batch.cache_hit_count == ITEMS - len(QUESTIONS)

        status, said = await tenth(mesh, "results", batch_id, "--in-order")
        assert status == 0, said
        lines = [json.loads(line) for line in said.splitlines()]
        assert [line["custom_id"] for line in lines] == [f"item-{number}" for number in range(ITEMS)]
        assert all(line["response"]["body"]["choices"][0]["message"]["content"] for line in lines)
        await check_books(mesh, client, lines, batch)
        # The same file again is the same batch, and costs nothing.
        status, said = await tenth(mesh, "submit", path, "--deadline", "10m", "--json")
        assert json.loads(said)["batch_id"] == batch_id
