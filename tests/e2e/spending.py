"""What a mesh has spent, in its own books and in the provider's, read together; for tests that prove what changed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import books
import httpx
from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import receipt_pb2

from tenth_client.up import Mesh

_STILL_SECONDS = 0.7
"""Longer than records are collected on their way to the ledger, and than its sweeps in a quick mesh."""


@dataclass(frozen=True)
class Books:
    """The ledger's total, its health, and the provider's own books, at one moment."""

    total: ledger_pb2.SpendRow
    status: ledger_pb2.GetBooksStatusResponse
    provider: dict[str, Any]


async def read(mesh: Mesh) -> Books:
    """The books as they are now."""
    return Books(await books.report(mesh), await books.status(mesh), await provider_stats(mesh))


async def rest(mesh: Mesh, seconds: float = 40.0) -> Books:
    """Wait until nothing is open and the books have not changed for a while."""
    until = time.monotonic() + seconds
    kept, since = await read(mesh), time.monotonic()
    while True:
        await asyncio.sleep(0.2)
        found = await read(mesh)
        if found != kept or found.status.open_reservation_count or found.status.unreceipted_request_count:
            kept, since = found, time.monotonic()
        elif time.monotonic() - since >= _STILL_SECONDS:
            assert not found.status.identity_violation_count
            return found
        assert time.monotonic() < until, f"the books do not come to rest: {found}"


async def provider_stats(mesh: Mesh) -> dict[str, Any]:
    """The sandbox provider's own books."""
    async with httpx.AsyncClient() as http:
        stats: dict[str, Any] = (await http.get(f"http://{mesh.address('sandbox')}/sandbox/stats", timeout=10)).json()
    return stats


async def fail(mesh: Mesh, mode: str, count: int, model: str = "") -> None:
    """Let the provider's next requests fail; count 0 ends that."""
    async with httpx.AsyncClient() as http:
        body = {"mode": mode, "model": model, "count": count}
        reply = await http.post(f"http://{mesh.address('sandbox')}/sandbox/fail", json=body, timeout=10)
        reply.raise_for_status()


def provider_tokens(before: dict[str, Any], after: dict[str, Any]) -> Counter[str]:
    """What the provider says it served between two looks: "model in" and "model out" tokens, by model."""
    tokens: Counter[str] = Counter()
    for name, row in after["models"].items():
        earlier = before["models"].get(name, {})
        tokens[f"{name} in"] += row["input_tokens"] - earlier.get("input_tokens", 0)
        tokens[f"{name} out"] += row["output_tokens"] - earlier.get("output_tokens", 0)
    return +tokens


def receipt_tokens(receipts: Sequence[receipt_pb2.Receipt]) -> Counter[str]:
    """What receipts say the provider reported: the same sums, estimated usage left out."""
    tokens: Counter[str] = Counter()
    for receipt in receipts:
        facts = receipt.facts
        used = [(item.model, item.usage) for item in facts.overheads if item.model]
        if not facts.failed and not facts.cache_hit:
            used.append((facts.model, facts.usage))
        for model, usage in used:
            if not usage.estimated:
                tokens[f"{model} in"] += usage.input_token_count
                tokens[f"{model} out"] += usage.output_token_count
    return +tokens
