"""A long talk through the whole mesh: old turns as a summary, its cost on the receipt; without one, truncation."""

from __future__ import annotations

import uuid
from pathlib import Path

import books
import spending
from conftest import QUICK_RECONCILIATION, started
from tenth.type.v1 import chat_pb2, receipt_pb2

from tenth_client import Answer, Client

SUMMARISER, ANSWERER = "gpt-4o-mini", "gpt-4o"
ENV = {
    **QUICK_RECONCILIATION,
    "compressor": {
        "TENTH_COMPRESSOR_SUMMARY": "true",
        "TENTH_COMPRESSOR_SUMMARY_MODEL": SUMMARISER,
        "TENTH_COMPRESSOR_BALANCED_HISTORY_TOKENS": "1500",
    },
}
LINE = "The harbour master wrote down every ship, its captain, its load and the hour of the tide. " * 5


def talk(name: str, turns: int) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": "You keep the log of the harbour."}]
    for turn in range(turns):
        messages.append({"role": "user", "content": f"{name}, day {turn}: {LINE}"})
        messages.append({"role": "assistant", "content": f"Noted for day {turn} of {name}: {LINE}"})
    return [*messages, {"role": "user", "content": f"Which ship came last to {name}?"}]


async def ask(client: Client, name: str, turns: int) -> Answer:
    policy = chat_pb2.RequestPolicy(
        compression_mode=chat_pb2.COMPRESSION_MODE_BALANCED, cache_mode=chat_pb2.CACHE_MODE_OFF, model=ANSWERER
    )
    return await client.complete(talk(name, turns), policy=policy, request_id=str(uuid.uuid4()), timeout=30)


def summaries(receipt: receipt_pb2.Receipt) -> list[receipt_pb2.OverheadItem]:
    return [item for item in receipt.facts.overheads if item.kind == "summary"]


def compression(receipt: receipt_pb2.Receipt) -> str:
    return next(hop.reason for hop in receipt.facts.hops if hop.name == "compressor")


async def test_a_long_talk_is_answered_with_a_summary_and_without_one_when_its_model_fails(tmp_path: Path) -> None:
    async with (
        started(tmp_path, env=ENV) as mesh,
        Client(mesh.address("orchestrator"), mesh.api_key) as client,
    ):
        before = await spending.rest(mesh)
        first = await ask(client, "Busan", 12)
        (item,) = summaries(first.receipt)
        assert (item.model, item.usage.output_token_count > 0) == (SUMMARISER, True)
        assert item.cost_nano_usd > 0
        assert books.holds(first.receipt)
        assert "(summary" in compression(first.receipt)
        # The next turn stands on the same summary, which is paid for.
        second = await ask(client, "Busan", 13)
        assert not summaries(second.receipt)
        assert "(summary" in compression(second.receipt)

        await spending.fail(mesh, "500", 10, SUMMARISER)
        third = await ask(client, "Incheon", 12)
        assert third.text
        assert third.receipt.facts.model == ANSWERER
        assert "summary" not in compression(third.receipt)
        assert not [hop for hop in third.receipt.facts.hops if hop.outcome == receipt_pb2.HOP_OUTCOME_DEGRADED]
        await spending.fail(mesh, "500", 0)

        after = await spending.rest(mesh)
        answers = (first, second, third)
        receipts = await books.final_receipts(client, [each.receipt.facts.request_id for each in answers])
        assert all(books.holds(receipt) for receipt in receipts)
        assert [len(summaries(receipt)) for receipt in receipts[:2]] == [1, 0]
        assert summaries(receipts[0])[0].cost_nano_usd == item.cost_nano_usd
        total = sum(receipt.actual_nano_usd for receipt in receipts)
        assert after.total.actual_nano_usd - before.total.actual_nano_usd == total
        # Every token that the provider served is on exactly one receipt.
        assert spending.provider_tokens(before.provider, after.provider) == spending.receipt_tokens(receipts)


async def test_a_late_summary_serves_the_next_turn_and_is_billed_to_the_request_that_asked(tmp_path: Path) -> None:
    env = {**ENV, "compressor": {**ENV["compressor"], "TENTH_COMPRESSOR_SUMMARY_WAIT_SECONDS": "0"}}
    async with (
        started(tmp_path, env=env) as mesh,
        Client(mesh.address("orchestrator"), mesh.api_key) as client,
    ):
        before = await spending.rest(mesh)
        first = await ask(client, "Busan", 12)
        assert "(summary" not in compression(first.receipt)
        assert not summaries(first.receipt)
        await spending.rest(mesh)
        second = await ask(client, "Busan", 13)
        assert "(summary" in compression(second.receipt)
        assert not summaries(second.receipt)
        after = await spending.rest(mesh)
        ids = [each.receipt.facts.request_id for each in (first, second)]
        receipts = await books.final_receipts(client, ids)
        (item,) = summaries(receipts[0])
        assert item.model == SUMMARISER
        assert receipts[0].actual_nano_usd == first.receipt.actual_nano_usd + item.cost_nano_usd
        assert all(books.holds(receipt) for receipt in receipts)
        assert spending.provider_tokens(before.provider, after.provider) == spending.receipt_tokens(receipts)
