"""kill -9 of any one service while requests run: nothing is lost silently, the books come out even."""

from __future__ import annotations

import asyncio
import uuid
from pathlib import Path

import books
import pytest
from conftest import QUICK_RECONCILIATION, started
from tenth.type.v1 import receipt_pb2

from tenth_client import Answer, Client, TenthClientError
from tenth_client.up import Mesh

REQUESTS = 60
CONCURRENCY = 6
TYPED = {"UNREACHABLE", "BUDGET_UNAVAILABLE", "NO_MODEL_AVAILABLE", "DRAINING", "STREAM_BROKEN", "DEADLINE_EXPIRED"}
"""What a caller may be told while a part is away."""


@pytest.mark.parametrize("victim", ["cache", "router", "compressor", "inference", "ledger", "orchestrator"])
async def test_kill_during_a_replay(victim: str, tmp_path: Path) -> None:
    async with (
        started(tmp_path, env=QUICK_RECONCILIATION) as mesh,
        Client(mesh.address("orchestrator"), mesh.api_key, retry_seconds=60) as client,
    ):
        outcomes = await replay_with_kill(mesh, client, victim)
        await mesh.wait_ready(victim)
        assert len(outcomes) == REQUESTS, "every request has an answer or a typed error"
        errors = [outcome for outcome in outcomes.values() if isinstance(outcome, TenthClientError)]
        assert {error.reason for error in errors} <= TYPED
        answers = {key: outcome for key, outcome in outcomes.items() if isinstance(outcome, Answer)}
        if victim in ("cache", "router", "compressor"):
            assert not errors, "the request degrades, it does not fail"
            assert degraded(answers.values(), victim), "the kill was noticed"

        await books.quiet(mesh)
        receipts = await books.final_receipts(client, list(answers))
        assert all(books.holds(receipt) for receipt in receipts)
        if victim != "orchestrator":
            # A killed orchestrator may have answered a retry anew on its way up; the ledger's word counts then.
            for receipt in receipts:
                assert receipt.facts.cache_hit == answers[receipt.facts.request_id].receipt.facts.cache_hit

        asked = await books.provider_requests(mesh)
        assert len(asked) == len(set(asked)), "no attempt reaches the provider twice"
        failed = await books.final_receipts(client, [key for key in outcomes if key not in answers])
        booked = books.attempts_on([*receipts, *failed])
        assert set(asked) <= booked, "what the provider was asked is on a receipt"
        total = await books.report(mesh)
        everything = [*receipts, *failed]
        assert total.request_count == len(everything)
        assert total.actual_nano_usd == sum(receipt.actual_nano_usd for receipt in everything)
        status = await books.status(mesh)
        assert status.open_reservation_count == 0
        assert status.identity_violation_count == 0


async def replay_with_kill(mesh: Mesh, client: Client, victim: str) -> dict[str, Answer | TenthClientError]:
    """Play requests, kill the victim in the middle; the supervisor starts it again."""
    outcomes: dict[str, Answer | TenthClientError] = {}
    numbers = iter(range(REQUESTS))
    dead = asyncio.Event()

    async def worker() -> None:
        for number in numbers:
            if number == REQUESTS // 3:
                mesh.kill(victim)
                dead.set()
            request_id = str(uuid.uuid4())
            # Every fourth repeats an earlier question, so that hits are in flight as well.
            topic = number - 2 if number % 4 == 3 else number
            try:
                outcomes[request_id] = await client.complete(
                    f"Give one fact about exhibit {topic} of the museum.", request_id=request_id, timeout=90
                )
            except TenthClientError as error:
                outcomes[request_id] = error

    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))
    assert dead.is_set()
    return outcomes


def degraded(answers: object, victim: str) -> bool:
    """True when some receipt says that the victim's hop was degraded."""
    assert hasattr(answers, "__iter__")
    return any(
        hop.name == victim and hop.outcome == receipt_pb2.HOP_OUTCOME_DEGRADED
        for answer in answers
        for hop in answer.receipt.facts.hops
    )
