"""Is a price map billed as it is written? LiteLLM's map, imported whole, against a second computation in Decimal.

The map goes through the real ImportPrices of a fresh ledger process on SQLite. For every chat model whose price comes
in confirmed, random usages (plain, cached and written input, reasoning, long requests, batch and flex) are priced
twice: by ``mesh.receipt`` from the book's price, and here from the map's own numbers, in Decimal, rounded once at the
end. A cost that differs by one nano-dollar is a mismatch.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import re
import secrets
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import ROUND_HALF_EVEN, Decimal, localcontext
from pathlib import Path
from typing import Any

import yaml
from google.protobuf.timestamp_pb2 import Timestamp
from tenth.ledger.v1 import ledger_pb2, ledger_pb2_grpc
from tenth.type.v1 import receipt_pb2

from bench.result import Result
from mesh.receipt import Usage, actual_cost
from mesh.wire import price_from_proto
from tenth_client.connection import Connection
from tenth_client.errors import TenthClientError
from tenth_client.local import with_local_caller
from tenth_client.rpc import Rpc

ROOT = Path(__file__).parents[1]
USAGES = 1000
"""Random usages for each model."""
_QUICK_USAGES = 20
_IN, _OUT = "input_cost_per_token", "output_cost_per_token"
_CACHED, _WRITE = "cache_read_input_token_cost", "cache_creation_input_token_cost"
_WRITE_1H, _REASONING = f"{_WRITE}_above_1hr", "output_cost_per_reasoning_token"
_NANO = 10**9
_START_SECONDS = 60.0


def measure(data: Path, result: Result, seed: int) -> None:
    """Add the figures of the price map in ``data/prices`` to a result; what is absent is listed as skipped."""
    files = sorted((data / "prices").glob("litellm*.json.gz"))
    if not files:
        result.skipped.append("pricemap: no litellm map under prices/")
        return
    content = files[-1].read_bytes()
    rows, prices, seconds = asyncio.run(_imported(content))
    outcomes = Counter(row.outcome for row in rows)
    entries = json.loads(gzip.decompress(content), parse_float=Decimal, parse_int=Decimal)
    not_kept = {row.model: set(re.findall(r"(\S+) is not kept", row.reason)) for row in rows}
    usages = _QUICK_USAGES if result.quick else USAGES
    mismatches = models = own_mismatches = 0
    partly = set[str]()
    for price in prices:
        entry = entries[price.model]
        if entry.get("mode") != "chat" or not price.confirmed:
            continue
        models += 1
        left_out = not_kept[price.model] & set(entry)
        if left_out - {"off_peak_pricing"}:
            partly.add(price.model)
            strict = random.Random(f"{seed} {price.model}")  # noqa: S311  (which usages; no secret)
            own_mismatches += _mismatches(price, Map(entry, set()), strict, usages)
        chance = random.Random(f"{seed} {price.model}")  # noqa: S311  (which usages; no secret)
        mismatches += _mismatches(price, Map(entry, left_out), chance, usages)
    chat = [entry for entry in entries.values() if entry.get("mode") == "chat"]
    result.assumptions["pricemap"] = (
        f"{files[-1].name}, {len(entries)} rows of which {len(chat)} chat; {usages} usages a model. The book scales "
        f"all input alike for batch and flex: for {len(partly)} models whose own such prices of cached or written "
        "tokens say otherwise, mismatches compares by the share, by_share_mismatches by the map's own. Unconfirmed "
        "rows carry a zero or a figure finer than 1e-15 USD a token"
    )
    add = result.add
    add("pricemap/ours/mismatches", mismatches, "count", models * usages)
    add("pricemap/ours/models", models, "count", len(chat))
    add("pricemap/ours/unconfirmed", outcomes[ledger_pb2.IMPORT_OUTCOME_UNCONFIRMED], "count", len(rows))
    add("pricemap/ours/skipped", outcomes[ledger_pb2.IMPORT_OUTCOME_SKIPPED], "count", len(rows))
    add("pricemap/ours/by_share", len(partly), "count", models)
    add("pricemap/ours/by_share_mismatches", own_mismatches, "count", len(partly) * usages)
    add("pricemap/ours/import_seconds", seconds, "s", len(rows))


class Map:
    """One entry of the map, read on its own: what a token of each kind costs a request of a length, USD."""

    def __init__(self, entry: Mapping[str, Any], not_kept: set[str]) -> None:
        self._entry = {key: value for key, value in entry.items() if key not in not_kept}
        self.tiers = tuple(
            name for name in ("batches", "flex") if f"{_IN}_{name}" in entry or f"{_OUT}_{name}" in entry
        )
        marks = {int(mark) for key in entry for mark in re.findall(r"_above_([0-9]+)k_tokens$", key)}
        ranges = [int(bound) for each in entry.get("tiered_pricing", []) for bound in each["range"]]
        self.marks = sorted({mark * 1000 for mark in marks} | set(ranges) - {0})

    def cost(self, usage: Usage, service: str) -> int:
        """What a usage costs in a service tier ("" for the plain one), nano-USD."""
        length = usage.input
        plain = usage.input - usage.cached - usage.write_5m - usage.write_1h
        shares = {
            side: (self._entry.get(f"{key}_{service}"), self._top(key)) for side, key in (("in", _IN), ("out", _OUT))
        }
        counts = ((plain, _IN), (usage.cached, _CACHED), (usage.write_5m, _WRITE), (usage.write_1h, _WRITE_1H))
        in_sum, in_over = self._sum(counts, length, service, *shares["in"], instead=_IN)
        thought = self._plain(_REASONING, length)
        spoken = usage.output - usage.reasoning
        counts_out = ((spoken, _OUT), (usage.reasoning, _OUT if thought is None else _REASONING))
        out_sum, out_over = self._sum(counts_out, length, service, *shares["out"], instead=_OUT)
        fee = self._entry.get("input_cost_per_request") or Decimal(0)
        exact = (in_sum * out_over + out_sum * in_over) * _NANO / (in_over * out_over) + fee * _NANO
        return int(exact.quantize(Decimal(1), ROUND_HALF_EVEN))

    def _sum(
        self,
        counts: tuple[tuple[int, str], ...],
        length: int,
        service: str,
        part: Decimal | None,
        whole: Decimal,
        *,
        instead: str,
    ) -> tuple[Decimal, Decimal]:
        """Tokens times prices over one denominator, so that the one division comes last."""
        scaled = bool(service) and part is not None and whole != 0
        total = Decimal(0)
        for count, key in counts:
            own = self._own(key, length, service) if scaled else None
            if own is not None:
                total += count * own * whole
                continue
            price = self._plain(key, length)
            if price is None:
                price = self._plain(instead, length)
            assert price is not None
            total += count * price * (part if scaled and part is not None else 1)
        return total, whole if scaled else Decimal(1)

    def _own(self, key: str, length: int, service: str) -> Decimal | None:
        """A price that the map itself gives for a service tier, at the mark that the plain price is taken from."""
        mark = self._mark(key, length)
        name = f"{key}_above_{mark // 1000}k_tokens_{service}" if mark else f"{key}_{service}"
        value: Decimal | None = self._entry.get(name)
        return value

    def _plain(self, key: str, length: int) -> Decimal | None:
        tiers = self._entry.get("tiered_pricing")
        if tiers:
            tier = next((each for each in tiers if length <= each["range"][1]), tiers[-1])
            found: Decimal | None = tier.get(key)
            return found
        mark = self._mark(key, length)
        value: Decimal | None = self._entry.get(f"{key}_above_{mark // 1000}k_tokens" if mark else key)
        return value

    def _mark(self, key: str, length: int) -> int:
        return max((mark for mark in self.marks if mark < length and self._has(key, mark)), default=0)

    def _has(self, key: str, mark: int) -> bool:
        return f"{key}_above_{mark // 1000}k_tokens" in self._entry

    def _top(self, key: str) -> Decimal:
        return Decimal(self._entry[key] if key in self._entry else self._entry["tiered_pricing"][0][key])


def _mismatches(message: receipt_pb2.Price, entry: Map, chance: random.Random, usages: int) -> int:
    price = price_from_proto(message)
    found = 0
    with localcontext() as context:
        context.prec = 200
        for _ in range(usages):
            usage, service = _usage(chance, entry)
            ours = actual_cost(price, usage, batch=service == "batches", flex=service == "flex")
            found += ours != entry.cost(usage, service)
    return found


def _usage(chance: random.Random, entry: Map) -> tuple[Usage, str]:
    """A random usage: lengths over all magnitudes, some of them just at a mark of the model."""
    length = int(10 ** chance.uniform(0, 6.2))
    if entry.marks and chance.random() < 0.3:
        length = max(1, chance.choice(entry.marks) + chance.choice((-1, 0, 1, 7)))
    cuts = sorted(chance.randint(0, length) for _ in range(3))
    parts = (cuts[0], cuts[1] - cuts[0], cuts[2] - cuts[1]) if chance.random() < 0.7 else (0, 0, 0)
    output = int(10 ** chance.uniform(0, 5.1))
    reasoning = chance.randint(0, output) if chance.random() < 0.5 else 0
    return Usage(length, output, *parts, reasoning), chance.choice(("", *entry.tiers))


async def _imported(content: bytes) -> tuple[list[ledger_pb2.ImportRow], list[receipt_pb2.Price], float]:
    """The import's rows, the book after it, and the seconds that the call took."""
    with tempfile.TemporaryDirectory() as folder, _ledger(Path(folder)) as connection:
        async with Rpc(connection) as rpc:
            await _answers(rpc)
            request = ledger_pb2.ImportPricesRequest(
                content=content,
                format=ledger_pb2.PRICE_FORMAT_LITELLM,
                source="bench",
                valid_from_time=Timestamp(seconds=1_700_000_000),
            )
            started = time.perf_counter()
            done = await rpc.call("ledger", ledger_pb2_grpc.LedgerServiceStub, "ImportPrices", request, seconds=120)
            seconds = time.perf_counter() - started
            reads = ledger_pb2_grpc.LedgerReadServiceStub
            book = await rpc.call("ledger", reads, "ListPrices", ledger_pb2.ListPricesRequest(), seconds=120)
    return list(done.rows), list(book.prices), seconds


async def _answers(rpc: Rpc) -> None:
    """Wait until the ledger answers."""
    until = time.monotonic() + _START_SECONDS
    while True:
        try:
            await rpc.call(
                "ledger", ledger_pb2_grpc.LedgerReadServiceStub, "ListPrices", ledger_pb2.ListPricesRequest(), seconds=2
            )
            return
        except TenthClientError:
            if time.monotonic() > until:
                raise
            await asyncio.sleep(0.2)


@contextmanager
def _ledger(folder: Path) -> Iterator[Connection]:
    """A ledger process with an empty book in a file of its own."""
    key = secrets.token_urlsafe(24)
    (folder / "callers.yaml").write_text(yaml.safe_dump(with_local_caller({"tenants": []}, key)))
    (folder / "key").write_text(secrets.token_hex(32))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    environ = {
        **os.environ,
        "TENTH_LISTEN": address,
        "TENTH_DATA_DIR": str(folder),
        "TENTH_CALLERS_FILE": str(folder / "callers.yaml"),
        "TENTH_IDENTITY_KEY_FILE": str(folder / "key"),
        "TENTH_UNREADY_SECONDS": "0",
        "TENTH_LEDGER_DATABASE_URL": f"sqlite+aiosqlite:///{folder / 'ledger.db'}",
        "TENTH_LEDGER_CATALOG_FILE": "",
        "TENTH_LOG_LEVEL": "WARNING",
    }
    process = subprocess.Popen([sys.executable, "-m", "services.ledger"], cwd=ROOT, env=environ)
    try:
        yield Connection({"ledger": address}, key, None, origin="bench")
    finally:
        process.terminate()
        process.wait(20)
