"""Large files through the whole mesh: a thousand items in two languages over a kill, ten thousand with one bad line."""

from __future__ import annotations

import asyncio
import io
import json
import time
from pathlib import Path

import books
import pytest
import spending
from conftest import QUICK_RECONCILIATION, started
from rich.console import Console
from tenth.batch.v1 import batch_pb2
from tenth.type.v1 import receipt_pb2

from tenth_client import Batches, Client, cli
from tenth_client.batch_layer import missing_batch_layer
from tenth_client.up import Mesh

pytestmark = [
    pytest.mark.skipif(bool(missing_batch_layer()), reason=missing_batch_layer()),
    pytest.mark.timeout(400),
]
ITEMS, REPEATED = 1000, 300
SECONDS = 300.0
CHUNK = 64
ANIMALS = ["otter", "heron", "badger", "lynx", "beaver", "falcon", "salmon", "spider", "tortoise", "camel"]
ACTS = ["hunt", "sleep", "drink", "build", "hide", "swim", "travel", "sing", "fight", "learn"]
KOREAN_ANIMALS = ["수달", "왜가리", "오소리", "스라소니", "비버", "매", "연어", "거미", "거북", "낙타"]
KOREAN_ACTS = ["뛰는지", "자는지", "마시는지", "짓는지", "숨는지", "크는지", "걷는지", "우는지", "싸우는지", "배우는지"]


def question(number: int) -> str:
    """Of 700 different ones, every second in Korean."""
    half, korean = divmod(number, 2)
    who, does, year = half % 10, half // 10 % 10, 1900 + half // 100
    if korean:
        return f"{year}년에 발견된 {KOREAN_ANIMALS[who]}는 어떻게 {KOREAN_ACTS[does]} 설명해 줘."
    return f"Explain how the {ANIMALS[who]} described in {year} would {ACTS[does]}."


def line(number: int, content: object) -> str:
    """One line of OpenAI's batch format."""
    body = {"model": "gpt-4o", "max_tokens": 24, "messages": [{"role": "user", "content": content}]}
    head = {"custom_id": f"item-{number}", "method": "POST", "url": "/v1/chat/completions"}
    return json.dumps({**head, "body": body}, ensure_ascii=False) + "\n"


async def tenth(mesh: Mesh, *arguments: str) -> tuple[int, str]:
    """Run ``tenth batch``; its status and what it printed."""
    parsed = cli.parser().parse_args(["batch", *arguments, "--data-dir", str(mesh.data_dir)])
    file = io.StringIO()
    status: int = await parsed.run(parsed, Console(file=file, width=200, highlight=False))
    return status, file.getvalue()


async def until_done(batches: Batches, batch_id: str, share: float) -> batch_pb2.Batch:
    """Wait until a share of the items is done, or the batch has ended."""
    end = time.monotonic() + SECONDS
    async for batch in batches.watch(batch_id, interval_seconds=0.1):
        assert time.monotonic() < end, f"the batch does not get on: {batch}"
        if batch.done_count >= share * ITEMS and share < 1:
            break
    return batch


async def test_a_thousand_items_in_two_languages_survive_a_kill(tmp_path: Path) -> None:
    unique = ITEMS - REPEATED
    path = tmp_path / "thousand.jsonl"
    path.write_text("".join(line(number, question(number % unique)) for number in range(ITEMS)), "utf-8")
    assert len({question(number) for number in range(unique)}) == unique
    async with (
        started(tmp_path, batch=True, env=QUICK_RECONCILIATION) as mesh,
        Client(mesh.address("orchestrator"), mesh.api_key) as client,
        Batches(mesh.address("batch"), mesh.api_key, retry_seconds=60) as batches,
    ):
        status, said = await tenth(mesh, "submit", str(path), "--deadline", "14m", "--json")
        assert status == 0, said
        batch_id = json.loads(said)["batch_id"]
        before = await until_done(batches, batch_id, 0.1)
        assert before.done_count < ITEMS, "nothing is left to be killed"
        pid = mesh.pids["batch-worker"]
        mesh.kill("batch-worker")
        async with asyncio.timeout(SECONDS):
            while True:
                if mesh.pids["batch-worker"] not in (0, pid):
                    break
                await asyncio.sleep(0.05)
        batch = await until_done(batches, batch_id, 1)
        assert (batch.state, batch.done_count, batch.failed_count) == (batch_pb2.BATCH_STATE_DONE, ITEMS, 0)
        # Whoever asked the same is told the same and pays once; what means nearly the same may be served as well.
        assert batch.shared_count + batch.cache_hit_count >= REPEATED

        results = [one async for one in batches.results(batch_id, in_input_order=True)]
        assert [one.custom_id for one in results] == [f"item-{number}" for number in range(ITEMS)]
        assert all(one.completion.message.parts[0].text for one in results)
        await books.quiet(mesh)
        told = [one.receipt for one in results]
        check(batch, told)
        total = await books.report(mesh, ITEMS)
        assert (total.request_count, total.baseline_nano_usd) == (ITEMS, batch.baseline_nano_usd)
        # A generation that the killed worker had in hand comes to its receipt after the answer: the ledger has it, and
        # nothing else beside the report.
        final = await books.final_receipts(client, [receipt.facts.request_id for receipt in told])
        late = sum(map(late_nano_usd, told, final))
        assert (
            total.actual_nano_usd == sum(receipt.actual_nano_usd for receipt in final) == batch.actual_nano_usd + late
        )
        repeated = sum(len(books.attempts_on([receipt])) > 1 for receipt in final)
        assert repeated <= 2 * CHUNK, "at most the chunks in the dead worker's hands"
        assert len(set(await books.provider_requests(mesh)) - books.attempts_on(final)) == 0, (
            "everything asked is booked"
        )
        assert (await books.status(mesh)).identity_violation_count == 0


def late_nano_usd(told: receipt_pb2.Receipt, final: receipt_pb2.Receipt) -> int:
    """What attempts cost that came to the books after the item had ended."""
    known = {item.attempt for item in told.facts.overheads if item.model}
    return sum(item.cost_nano_usd for item in final.facts.overheads if item.model and item.attempt not in known)


def check(batch: batch_pb2.Batch, receipts: list[receipt_pb2.Receipt]) -> None:
    """The receipts that came with the answers are the batch's report."""
    assert len({receipt.facts.request_id for receipt in receipts}) == ITEMS
    assert all(books.holds(receipt) for receipt in receipts)
    assert sum(receipt.actual_nano_usd for receipt in receipts) == batch.actual_nano_usd > 0
    assert sum(receipt.baseline_nano_usd for receipt in receipts) == batch.baseline_nano_usd
    assert sum(receipt.overhead_nano_usd for receipt in receipts) == batch.overhead_nano_usd


async def test_one_bad_line_in_ten_thousand_is_named_and_nothing_is_spent(tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    lines = [line(number, question(number)) for number in range(1, 10_001)]
    lines[6_666] = line(6_667, 17)
    path.write_text("".join(lines), "utf-8")
    async with (
        started(tmp_path, batch=True) as mesh,
        Batches(mesh.address("batch"), mesh.api_key) as batches,
    ):
        before = await spending.read(mesh)
        status, said = await tenth(mesh, "submit", str(path), "--deadline", "2h")
        assert status != 0
        assert "6667" in said.replace(",", ""), said
        assert "item-6667" in said, said
        assert await batches.newest() == []
        assert await spending.read(mesh) == before
        assert not before.total.request_count
        # Mended, the same file is taken.
        lines[6_666] = line(6_667, question(6_667))
        path.write_text("".join(lines[6_660:6_670]), "utf-8")
        status, said = await tenth(mesh, "submit", str(path), "--deadline", "2h", "--json")
        assert status == 0, said
        assert [one.batch_id for one in await batches.newest()] == [json.loads(said)["batch_id"]]
