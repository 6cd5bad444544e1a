"""The shadow check through the whole mesh: the answer is the caller's own, the money is on the books, the verdict in
the report; and with a dead judge nothing is lost."""

from __future__ import annotations

import asyncio
import io
import re
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import books
import httpx
import pytest
import spending
from conftest import PATIENT, QUICK_RECONCILIATION, started
from rich.console import Console
from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import chat_pb2, receipt_pb2

from tenth_client import Client, cli
from tenth_client.reporting.stream import receipts as receipts_of
from tenth_client.reporting.sums import READ
from tenth_client.rpc import Rpc
from tenth_client.up import Mesh

MODEL, JUDGE = "gpt-4o-mini", "gpt-4o"
TOPICS = ("printers", "badges", "laptops", "parking", "lunch", "holidays", "phones", "chairs")
NOTE = "The note on {topic} number {number} says that everyone keeps to the usual order of things and writes it down. "
SHADOWED = {
    **PATIENT,
    "TENTH_ORCHESTRATOR_SHADOW_SHARE": "1",
    "TENTH_ORCHESTRATOR_SHADOW_JUDGE_MODEL": JUDGE,
    "TENTH_ORCHESTRATOR_SHADOW_SPEND_SHARE": "1000",
    "TENTH_ORCHESTRATOR_SHADOW_CAP_SECONDS": "10",  # Inference goes on for as long, whoever asked.
    "TENTH_ORCHESTRATOR_RESERVATION_TTL_SECONDS": "4",
}


@pytest.fixture
async def mesh(tmp_path: Path) -> AsyncIterator[Mesh]:
    env = {"orchestrator": SHADOWED, "ledger": QUICK_RECONCILIATION["ledger"]}
    async with started(tmp_path, env=env) as running:
        yield running


def conversation(topic: str) -> chat_pb2.CompletionRequest:
    """A conversation too long for the aggressive mode, which asks for one model and no cache."""
    request = chat_pb2.CompletionRequest(
        request_id=str(uuid.uuid4()),
        policy=chat_pb2.RequestPolicy(
            model=MODEL,
            compression_mode=chat_pb2.COMPRESSION_MODE_AGGRESSIVE,
            cache_mode=chat_pb2.CACHE_MODE_OFF,
        ),
    )
    for number in range(40):
        text = "".join(NOTE.format(topic=f"{topic} {each}", number=number) for each in TOPICS)
        role = chat_pb2.ROLE_ASSISTANT if number % 2 else chat_pb2.ROLE_USER
        request.messages.add(role=role).parts.add(text=text)
    request.messages.add(role=chat_pb2.ROLE_USER).parts.add(text=f"What does the {topic} note 7 say?")
    return request


async def say(mesh: Mesh, *texts: str) -> None:
    """What the judge shall write next."""
    async with httpx.AsyncClient() as http:
        body = {"model": JUDGE, "texts": texts}
        (await http.post(f"http://{mesh.address('sandbox')}/sandbox/say", json=body, timeout=10)).raise_for_status()


async def report(mesh: Mesh) -> str:
    """What ``tenth report`` prints."""
    arguments = cli.parser().parse_args(["report", "--by", "cache", "--data-dir", str(mesh.data_dir)])
    file = io.StringIO()
    assert await arguments.run(arguments, Console(file=file, width=250, highlight=False)) == 0
    return file.getvalue()


def line(said: str) -> list[str]:
    """The report's row of checks."""
    (found,) = [each for each in said.splitlines() if each.startswith(f"aggressive │ {MODEL}")]
    return re.split(r"\s*│\s*", found.strip())


async def checked(mesh: Mesh, count: int) -> spending.Books:
    """The books once there are so many checks and all is at rest."""
    request = ledger_pb2.GetSpendReportRequest()
    async with asyncio.timeout(60), Rpc(mesh.connection) as rpc:
        while True:
            said = await rpc.call("ledger", READ, "GetSpendReport", request)
            if said.rows[0].shadow_count >= count:
                break
            await asyncio.sleep(0.25)
    found = await spending.rest(mesh)
    assert found.total.shadow_count == count
    return found


async def test_answers_are_compared_and_nobody_notices(mesh: Mesh) -> None:
    async with Client(mesh.address("orchestrator"), mesh.api_key) as client:
        before = await spending.read(mesh)
        expected = []
        for topic, letters in (("alpha", "BA"), ("beta", "CC"), ("gamma", "BA"), ("delta", "AA")):
            await say(mesh, *letters)
            request = conversation(topic)
            answer = await client.complete(request)
            expected.append(answer.receipt)
            facts = answer.receipt.facts
            assert facts.original_input_token_count > facts.usage.input_token_count, "nothing was cut"
            assert books.holds(answer.receipt)
            # One after the other, so that each has its own judge's words.
            after = await checked(mesh, len(expected))
        own = await books.final_receipts(client, [each.facts.request_id for each in expected])
        assert [each.actual_nano_usd for each in own] == [each.actual_nano_usd for each in expected]

        # Every token that the provider served is paid for, once.
        total = after.total
        assert (total.request_count, total.failed_count) == (4, 0)
        receipts = [*own, *await all_checks(mesh)]
        assert sum(each.actual_nano_usd for each in receipts) == total.actual_nano_usd
        assert spending.receipt_tokens(receipts) == spending.provider_tokens(before.provider, after.provider)
        assert all(map(books.holds, receipts))
        kinds = [item.kind for each in receipts[4:] for item in each.facts.overheads if item.kind != "compute"]
        assert kinds == ["shadow", "judge", "judge"] * 4

        cells = line(await report(mesh))
        assert cells[:7] == ["aggressive", MODEL, "3", "1", "2", "0", "1"]
        assert cells[7] == "66.7% (20.8% to 93.9%)"
        assert "4 requests (0 failed" in await report(mesh)


async def test_a_dead_judge_loses_nothing(mesh: Mesh) -> None:
    await spending.fail(mesh, "500", 1000, JUDGE)
    async with Client(mesh.address("orchestrator"), mesh.api_key) as client:
        before = await spending.read(mesh)
        answer = await client.complete(conversation("alpha"))
        assert answer.text
        after = await checked(mesh, 1)
        (own,) = await books.final_receipts(client, [answer.receipt.facts.request_id])
        assert own.actual_nano_usd == answer.receipt.actual_nano_usd
        receipts = [own, *await all_checks(mesh)]
        assert spending.receipt_tokens(receipts) == spending.provider_tokens(before.provider, after.provider)
        assert sum(each.actual_nano_usd for each in receipts) == after.total.actual_nano_usd
    assert line(await report(mesh))[:8] == ["aggressive", MODEL, "0", "0", "0", "0", "1", "-"]


async def test_a_killed_orchestrator_loses_no_spend(mesh: Mesh) -> None:
    await spending.fail(mesh, "hang", 1000, JUDGE)
    async with Client(mesh.address("orchestrator"), mesh.api_key) as client:
        before = await spending.read(mesh)
        answer = await client.complete(conversation("alpha"))
        (own,) = await books.final_receipts(client, [answer.receipt.facts.request_id])
    async with asyncio.timeout(30):
        while True:  # The second answer is given, and the judge is being asked.
            served = (await spending.provider_stats(mesh))["models"]
            if served[MODEL]["requests"] == 2:
                break
            await asyncio.sleep(0.1)
    mesh.kill("orchestrator")
    after = await checked(mesh, 1)
    assert (after.total.request_count, after.total.failed_count) == (1, 0)
    (lost,) = await all_checks(mesh)
    assert lost.facts.tags["tenth.reconciled"] == "true"
    first, *others = sorted(lost.facts.overheads, key=lambda item: item.attempt)
    assert (first.kind, first.model) == ("shadow", MODEL)
    assert {item.kind for item in others} <= {"judge"}
    assert spending.receipt_tokens([own, lost]) == spending.provider_tokens(before.provider, after.provider)
    assert own.actual_nano_usd + lost.actual_nano_usd == after.total.actual_nano_usd
    assert line(await report(mesh))[:8] == ["aggressive", MODEL, "0", "0", "0", "0", "1", "-"]


async def all_checks(mesh: Mesh) -> list[receipt_pb2.Receipt]:
    """The receipts of every check, as the ledger has them, oldest first."""
    async with Rpc(mesh.connection) as rpc:
        found = [each async for each in receipts_of(rpc, ledger_pb2.ReceiptFilter(tag_key="tenth.shadow"))]
    assert [each.state for each in found] == [receipt_pb2.RECEIPT_STATE_FINAL] * len(found)
    return found
