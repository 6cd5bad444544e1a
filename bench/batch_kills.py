"""Batches whose parts are killed while they run: what is lost, billed twice, done again, and the books."""

from __future__ import annotations

import asyncio
import random
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import httpx
from tenth.batch.v1 import batch_pb2
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from tenth.type.v1 import chat_pb2

from bench.batch_books import Compared, compare
from bench.batch_items import as_items, questions, request
from bench.batch_mesh import WINDOW_SECONDS, batch_mesh
from bench.progress import blocks
from bench.result import Result
from services.batch.settings import WorkerSettings
from tenth_client import Batches, Client, TenthClientError
from tenth_client.batches import ENDED
from tenth_client.rpc import Rpc
from tenth_client.up import Mesh

KILLS = "kills"
VICTIMS = ("batch-worker", "inference", "batch", "temporal")
_MODELS = {"gpt-4o": 80, "claude-haiku-4-5-20251001": 60, "gemini-2.5-flash": 60}
"""Items of a batch by model: OpenAI's batches, Anthropic's, and the online lane, for gemini has no batches here."""
_TWINS = 20
"""Of these, the last ones ask what the first ones ask."""
_ROUND_SECONDS = 240.0
_STILL_SECONDS = 1.0
_LATENCY_MS = 300
_ENV = {
    "orchestrator": {"TENTH_ORCHESTRATOR_RESERVATION_TTL_SECONDS": "4"},
    "ledger": {"TENTH_LEDGER_SWEEP_INTERVAL_SECONDS": "0.5"},
    "batch-worker": {"TENTH_BATCH_POLL_FIRST_SECONDS": "0.5", "TENTH_BATCH_POLL_LONGEST_SECONDS": "2"},
}


@dataclass(frozen=True, slots=True)
class Round:
    """One batch and what was killed beside it."""

    victim: str
    moment: float
    """Seconds from the upload's begin to the kill."""
    items: int
    lost: int
    """Items without a result."""
    failed: int
    """Items with a typed failure in place of an answer."""
    books: Compared
    sums_differ: bool
    """True unless the batch's sum, its receipts' and the ledger's are the same."""
    seconds: float


@dataclass(slots=True)
class _Load:
    """What a round speaks to."""

    mesh: Mesh
    client: Client
    batches: Batches
    rpc: Rpc


async def measure(result: Result, models_dir: Path, folder: Path, seed: int) -> None:
    """Rounds on one mesh; the first batch runs in peace and says how long one takes."""
    count = 2 if result.quick else 20
    chunk = WorkerSettings().chunk_items
    result.assumptions[KILLS] = {
        "items": sum(_MODELS.values()), "models": _MODELS, "twins": _TWINS, "victims": VICTIMS, "chunk_items": chunk,
        "sandbox": f"{_LATENCY_MS} ms an answer, also in providers' batches, eight of them at once there",
        "moment": "evenly over the time that an undisturbed batch takes",
    }  # fmt: skip
    chance = random.Random(seed)  # noqa: S311  (a plan of kills, no secret)
    rounds: list[Round] = []
    async with AsyncExitStack() as stack:
        mesh = await stack.enter_async_context(
            batch_mesh(
                folder,
                models_dir,
                local_model=False,
                sandbox="instant",
                arguments={"sandbox": ("--latency-ms", str(_LATENCY_MS))},
                env=_ENV,
            )
        )
        client = await stack.enter_async_context(Client(mesh.address("orchestrator"), mesh.api_key))
        batches = await stack.enter_async_context(Batches(mesh.address("batch"), mesh.api_key, retry_seconds=90))
        load = _Load(mesh, client, batches, await stack.enter_async_context(Rpc(mesh.connection)))
        peace = await _round(load, "", 0.0, seed)
        for (number,) in blocks(range(count), 1, KILLS):
            moment = chance.uniform(0.0, peace.seconds)
            rounds.append(await _round(load, chance.choice(VICTIMS), moment, seed + 1 + number))
        await _check_whole_books(result, load)
    _add(result, rounds, peace, chunk)


def chunks_again(repeated_items: int, chunk_items: int) -> int:
    """How many chunks' worth of work was done again."""
    return -(-repeated_items // chunk_items)


def _add(result: Result, rounds: Sequence[Round], peace: Round, chunk: int) -> None:
    items = sum(one.items for one in rounds)
    sums = {
        "lost": sum(one.lost for one in rounds),
        "failed": sum(one.failed for one in rounds),
        "provider_requests": sum(one.books.provider_requests for one in rounds),
        "billed_twice": sum(one.books.billed_twice for one in rounds),
        "identity_violations": sum(one.books.identity_violations for one in rounds),
        "booked_unasked": sum(one.books.booked_unasked for one in rounds),
    }
    result.add("kills/ours/rounds", len(rounds), "count", len(rounds))
    for name, value in sums.items():
        result.add(f"kills/ours/{name}", value, "count", items)
    result.add("kills/ours/sums_differ", sum(one.sums_differ for one in rounds), "count", len(rounds))
    most = max(one.books.repeated_items for one in rounds)
    result.add("kills/ours/repeated_items_max", most, "count", len(rounds))
    result.add("kills/ours/repeated_chunks_max", chunks_again(most, chunk), "count", len(rounds))
    for victim, number in Counter(one.victim for one in rounds).items():
        mine = [one for one in rounds if one.victim == victim]
        result.add(f"kills/{victim}/rounds", number, "count", number)
        result.add(f"kills/{victim}/repeated_items_max", max(one.books.repeated_items for one in mine), "count", number)
        result.add(f"kills/{victim}/seconds_max", max(one.seconds for one in mine), "s", number)
    result.add("kills/nobody/seconds", peace.seconds, "s", 1)
    result.add("kills/nobody/repeated_items_max", peace.books.repeated_items, "count", 1)
    result.assumptions[KILLS]["rounds"] = [
        f"{one.victim} at {one.moment:.1f} s: done after {one.seconds:.1f} s, {one.books.repeated_items} items again, "
        f"lost {one.lost}, failed {one.failed}, billed twice {one.books.billed_twice}, "
        f"{'sums differ' if one.sums_differ else 'sums agree'}"
        for one in (peace, *rounds)
    ]


async def _round(load: _Load, victim: str, moment: float, seed: int) -> Round:
    asked_before = len(await _asked(load.mesh))
    total_before = await _total(load)
    requests = _requests(seed)
    items = list(as_items(requests))
    began = time.perf_counter()
    running = asyncio.create_task(_run(load, items))
    if victim:
        await asyncio.sleep(moment)
        await _kill(load.mesh, victim)
    batch = await running
    seconds = time.perf_counter() - began
    results = [one async for one in load.batches.results(batch.batch_id)]
    await _rest(load)
    receipts = [await load.client.receipt(one.receipt.facts.request_id) for one in results if one.HasField("receipt")]
    batch = await load.batches.get(batch.batch_id)
    total = await _total(load)
    paid = {
        sum(receipt.actual_nano_usd for receipt in receipts),
        batch.actual_nano_usd,
        total.actual_nano_usd - total_before.actual_nano_usd,
    }
    answered = {one.custom_id for one in results}
    return Round(
        victim=victim or "nobody",
        moment=moment,
        items=len(items),
        lost=len(items) - len(answered),
        failed=sum(not one.HasField("completion") for one in results),
        books=compare(
            (await _asked(load.mesh))[asked_before:], receipts, total.request_count - total_before.request_count
        ),
        sums_differ=len(paid) > 1,
        seconds=seconds,
    )


def _requests(seed: int) -> list[chat_pb2.CompletionRequest]:
    models = [model for model, number in _MODELS.items() for _ in range(number)]
    random.Random(seed).shuffle(models)  # noqa: S311  (an order, no secret)
    made = [
        request(text, model, 24, cached=True) for text, model in zip(questions(len(models), seed), models, strict=True)
    ]
    for place in range(_TWINS):
        made[-1 - place].CopyFrom(made[place])
    return made


async def _run(load: _Load, items: Sequence[batch_pb2.BatchItem]) -> batch_pb2.Batch:
    created = await load.batches.create(items, completion_window_seconds=WINDOW_SECONDS, request_id=str(uuid.uuid4()))
    batch = created.batch
    async with asyncio.timeout(_ROUND_SECONDS):
        while batch.state not in ENDED:
            await asyncio.sleep(0.2)
            batch = await load.batches.get(batch.batch_id)
    return batch


async def _kill(mesh: Mesh, victim: str) -> None:
    pid = mesh.pids[victim]
    mesh.kill(victim)
    async with asyncio.timeout(_ROUND_SECONDS):
        while True:
            if mesh.pids[victim] not in (0, pid):
                break
            await asyncio.sleep(0.05)
    await mesh.wait_ready(victim)


async def _asked(mesh: Mesh) -> list[str]:
    """What the played provider answered, by its names, in order."""
    async with httpx.AsyncClient() as http:
        stats = (await http.get(f"http://{mesh.address('sandbox')}/sandbox/stats", timeout=30)).json()
    return [str(name) for name in stats["request_ids"]]


async def _total(load: _Load) -> ledger_pb2.SpendRow:
    reply = await load.rpc.call(
        "ledger", ledger_pb2_grpc.LedgerReadServiceStub, "GetSpendReport", ledger_pb2.GetSpendReportRequest()
    )
    return reply.rows[0] if reply.rows else ledger_pb2.SpendRow()


async def _status(load: _Load) -> ledger_pb2.GetBooksStatusResponse:
    answer: ledger_pb2.GetBooksStatusResponse = await load.rpc.call(
        "ledger", ledger_pb2_grpc.LedgerReadServiceStub, "GetBooksStatus", ledger_pb2.GetBooksStatusRequest()
    )
    return answer


async def _rest(load: _Load) -> None:
    """Wait until no reservation is open, every attempt is in a receipt and the sums do not change any more."""
    kept, since = None, time.monotonic()
    async with asyncio.timeout(_ROUND_SECONDS):
        while True:
            try:
                status, total = await _status(load), await _total(load)
            except TenthClientError:
                status, total = None, None
            quiet = status is not None and not status.open_reservation_count and not status.unreceipted_request_count
            found = total.SerializeToString(deterministic=True) if quiet and total is not None else None
            if found is None or found != kept:
                kept, since = found, time.monotonic()
            elif time.monotonic() - since >= _STILL_SECONDS:
                return
            await asyncio.sleep(0.2)


async def _check_whole_books(result: Result, load: _Load) -> None:
    status = await _status(load)
    result.add("kills/ours/open_reservations", status.open_reservation_count, "count", 1)
