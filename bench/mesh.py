"""What the mesh adds to a request: latency and CPU over calling the model directly, beside LiteLLM's proxy.

The model is the sandbox provider in its instant mode (canned text, no model), so that everything measured is the
mesh. Three kinds of request: ``exact_hit`` (the same question again), ``semantic_hit`` (in other words) and
``miss`` (a new question). Systems take turns in short rounds within one run, because these machines are noisy.
CPU is user plus system time of every server process, less what the direct call costs the sandbox itself.
``as_intended`` is the share of requests that were answered in the way that the load asks for: 1 in a sound run.
LiteLLM runs with its in-memory cache on for hits; its misses neither read nor write that cache, which favours it.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import itertools
import json
import os
import random
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
from rich.console import Console
from tenth.type.v1 import chat_pb2

from bench.peers import KEY, Proxy, litellm_version, start_litellm
from bench.result import Result, arguments, percentile
from tenth_client import Client, cache_commands
from tenth_client.rpc import Rpc
from tenth_client.up import Mesh, MeshOptions

MODEL = "gpt-4o-mini"
KINDS = ("exact_hit", "semantic_hit", "miss")
CACHE_KEY_HEADER = "x-litellm-cache-key"
"""LiteLLM's proxy sends it with an answer from its cache."""

Ask = Callable[[str], Awaitable[str]]
"""Asks one question; returns how it was answered ("exact", "semantic", "", ...)."""


@dataclass(slots=True)
class Load:
    """One system under one kind of request at one concurrency."""

    latencies: list[float] = field(default_factory=list)
    cpu_seconds: float = 0.0
    outcomes: dict[str, int] = field(default_factory=dict)


def main() -> int:
    """Run the benchmark; exit code 1 when it could not measure."""
    parser = arguments("mesh", __doc__ or "")
    parser.add_argument("--requests", type=int, default=600, help="requests per system, kind and concurrency")
    parser.add_argument("--models-dir", type=Path, default=Path(".models"))
    parser.add_argument("--litellm", type=Path, default=Path(".venv-litellm"), help="environment with litellm[proxy]")
    options = parser.parse_args()
    result = Result("mesh", options.quick)
    count = 60 if options.quick else options.requests
    asyncio.run(measure(result, count, options.models_dir, options.litellm, options.seed))
    result.write(options.json)
    return 0


async def measure(result: Result, count: int, models_dir: Path, litellm: Path, seed: int) -> None:
    """All loads against one running mesh."""
    with tempfile.TemporaryDirectory(prefix="tenth-bench-") as folder:
        options = MeshOptions(
            data_dir=Path(folder) / "mesh",
            models_dir=models_dir,
            local_model=False,
            sandbox="instant",
            free_ports=True,
            # The bench measures cost, not the caps: a slow machine must not turn a hit into a miss.
            env={"orchestrator": {"TENTH_ORCHESTRATOR_LOOKUP_CAP_SECONDS": "5"}},
        )
        async with Mesh(options) as mesh:
            result.add("idle/ours/rss_mb", resident_mb(mesh, without=("sandbox", "collector", "inference")), "MB", 1)
            result.add("idle/ours/rss_with_inference_mb", resident_mb(mesh, without=("sandbox", "collector")), "MB", 1)
            sandbox_url = f"http://{mesh.address('sandbox')}/v1"
            proxy = await start_litellm(litellm, sandbox_url, 18_311, Path(folder))
            if proxy is None:
                result.skipped.append(f"litellm: not installed in {litellm}")
            else:
                result.assumptions["litellm"] = litellm_version(litellm)
            try:
                client = Client(mesh.address("orchestrator"), mesh.api_key)
                # The cheapest HTTP client there is in Python: latencies are to be the servers'.
                # Connections are dropped before the servers do it (after 5 s): a POST is not sent again.
                connector = aiohttp.TCPConnector(limit=64, keepalive_timeout=2)
                async with client, aiohttp.ClientSession(connector=connector) as http:
                    await _rounds(result, count, mesh, client, http, sandbox_url, proxy, seed)
            finally:
                if proxy is not None:
                    proxy.stop()


async def _rounds(
    result: Result,
    count: int,
    mesh: Mesh,
    client: Client,
    http: aiohttp.ClientSession,
    sandbox_url: str,
    proxy: Proxy | None,
    seed: int,
) -> None:
    embed = {kind: [0.0, 0.0] for kind in KINDS}
    pids = {name: pid for name, pid in mesh.pids.items() if name != "collector"}
    sandbox = [mesh.pids["sandbox"]]

    await _import_wordings(mesh)

    def ours(kind: str) -> Ask:
        policy = chat_pb2.RequestPolicy(model=MODEL)
        namespace = CURATED if kind == "semantic_hit" else ""

        async def ask(question: str) -> str:
            answer = await client.complete(question, policy=policy, namespace=namespace)
            facts = answer.receipt.facts
            micros = sum(item.compute_micros for item in facts.overheads)
            embed[kind][0] += micros / 1000
            embed[kind][1] += 1
            return facts.cache_hit_kind or "miss"

        return ask

    def over_http(url: str, key: str, *, cached: bool) -> Ask:
        headers = {"authorization": f"Bearer {key}"}

        async def ask(question: str) -> str:
            body: dict[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": question}]}
            if not cached:
                body["cache"] = {"no-cache": True, "no-store": True}
            async with http.post(f"{url}/chat/completions", json=body, headers=headers) as reply:
                reply.raise_for_status()
                await reply.json()
                return "exact" if CACHE_KEY_HEADER in reply.headers else "miss"

        return ask

    systems: dict[str, tuple[Callable[[str], Ask], Sequence[int]]] = {
        "direct": (lambda kind: over_http(sandbox_url, "bench", cached=True), sandbox),
        "ours": (ours, list(pids.values())),
    }
    if proxy is not None:
        systems["litellm"] = (
            lambda kind: over_http(f"{proxy.url}/v1", KEY, cached=kind == "exact_hit"),
            [proxy.pid, *sandbox],
        )
    loads: dict[tuple[str, str, int], Load] = {}
    questions = {kind: _questions(kind, seed) for kind in KINDS}
    for make, _ in systems.values():
        for kind in ("exact_hit", "miss"):
            for question in itertools.islice(questions[kind], 30):
                await make(kind)(question)
    await asyncio.sleep(1.0)  # The stores of the warm-up happen in the background.
    rounds = 6
    for _, concurrency, kind in itertools.product(range(rounds), (1, 32), KINDS):
        # The same questions for every system, and no variant or new question twice.
        asked = list(itertools.islice(questions[kind], max(concurrency, count // rounds)))
        for system, (make, processes) in systems.items():
            if system == "litellm" and kind == "semantic_hit":
                continue
            load = loads.setdefault((kind, system, concurrency), Load())
            await _run(load, make(kind), asked, concurrency, processes)
    if proxy is not None:
        result.skipped.append("semantic_hit/litellm: its semantic cache needs a Redis or Qdrant server")
    _report(result, loads, embed)


async def _import_wordings(mesh: Mesh) -> None:
    """Put some wordings of each base into the cache with one answer, as an operator would."""
    path = mesh.data_dir / "wordings.jsonl"
    with path.open("w", encoding="utf-8") as file:
        for number, base in enumerate(BASES):
            for wording in (base, *(f"{first}{base[0].lower()}{base[1:]}" for first in _IMPORTED_BEGINNINGS)):
                messages = [{"role": "user", "content": wording}]
                request = {"messages": messages, "tenth": {"policy": {"model": MODEL}}}
                line = {"request": request, "answer": f"Answer number {number}.", "model": MODEL, "output_tokens": 4}
                file.write(json.dumps(line) + "\n")
    wanted = argparse.Namespace(file=str(path), namespace=CURATED, renew=False, encoding="utf-8", dry_run=False)
    said = io.StringIO()
    async with Rpc(mesh.connection) as rpc:
        status = await cache_commands.import_file(rpc, wanted, Console(file=said))
    stored = f"{len(BASES) * (1 + len(_IMPORTED_BEGINNINGS))} stored"
    if status != 0 or stored not in said.getvalue():
        raise RuntimeError(f"the wordings were not taken in: {said.getvalue()}")


async def _run(load: Load, ask: Ask, questions: Sequence[str], concurrency: int, pids: Sequence[int]) -> None:
    waiting = iter(questions)

    async def worker() -> None:
        for question in waiting:
            started = time.perf_counter()
            outcome = await ask(question)
            load.latencies.append((time.perf_counter() - started) * 1000)
            load.outcomes[outcome] = load.outcomes.get(outcome, 0) + 1

    before = cpu_seconds(pids)
    await asyncio.gather(*(worker() for _ in range(concurrency)))
    await asyncio.sleep(0.3)  # Settling and storing are part of the price.
    load.cpu_seconds += cpu_seconds(pids) - before


def _report(result: Result, loads: dict[tuple[str, str, int], Load], embed: dict[str, list[float]]) -> None:
    for (kind, system, concurrency), load in loads.items():
        suffix = "" if concurrency == 1 else f"_c{concurrency}"
        n = len(load.latencies)
        name = f"{kind}/{system}/"
        for share, label in ((0.5, "p50"), (0.95, "p95"), (0.99, "p99")):
            result.add(f"{name}{label}_ms{suffix}", percentile(load.latencies, share), "ms", n)
        direct = loads[(kind, "direct", concurrency)]
        base = direct.cpu_seconds / len(direct.latencies)
        # A hit never reaches the model, so there is nothing of the model's to take off.
        reached = system == "direct" or kind == "miss"
        cpu = load.cpu_seconds / n - (base if reached and system != "direct" else 0.0)
        result.add(f"{name}cpu_ms_per_request{suffix}", cpu * 1000, "ms", n)
        if system != "direct":
            wanted = {"exact_hit": "exact", "semantic_hit": "semantic", "miss": "miss"}[kind]
            result.add(f"{name}as_intended{suffix}", load.outcomes.get(wanted, 0) / n, "ratio", n)
    for kind, (milliseconds, asked) in embed.items():
        if asked:
            result.add(f"{kind}/ours/embed_cpu_ms", milliseconds / asked, "ms", int(asked))


def cpu_seconds(pids: Sequence[int]) -> float:
    """User plus system time of some processes and of their children that run, to the nanosecond."""
    # The clock of another process (clock_getcpuclockid(3)); /proc counts in hundredths of a second.
    return sum(time.clock_gettime((~each << 3) | 2) for pid in pids for each in _family(pid))


def _family(pid: int) -> list[int]:
    children = [child for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]
    return [pid, *(each for child in children for each in _family(int(child)))]


def resident_mb(mesh: Mesh, without: Sequence[str]) -> float:
    """Resident memory of the mesh's processes, MB."""
    total = 0.0
    for name, pid in mesh.pids.items():
        if name not in without and pid:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total / 1e6


WARM = "How do I reset the password of my online account after I have lost my phone?"
BASES = (
    WARM,
    "What is the best way to clean a cast iron pan without damaging its surface?",
    "How can I export all the contacts of my address book into a spreadsheet file?",
    "Which documents do I need to bring when I open a savings account for my daughter?",
    "How do I connect my wireless headphones to the television in the living room?",
    "Why does the washing machine make a loud noise while it spins the laundry?",
    "What should I write in the subject of a complaint about a broken coffee machine?",
    "How do I remove a coffee stain from a white cotton shirt without bleaching it?",
    "Can you explain the difference between a router and a switch in a home network?",
    "How do I write a function in Python that removes duplicates from a sorted list?",
    "Which exercises help against back pain after sitting at a desk for many hours?",
    "How do I change the delivery address of a parcel after the order was placed?",
)
"""What is asked for: the first again and again, the others and it in other words by the semantic hits."""
CURATED = "curated"
"""The namespace of the imported wordings."""
_IMPORTED_BEGINNINGS = ("I would like to know: ", "One question: ", "Good morning, ", "Could you help me? ")
_BEGINNINGS = (
    "Hi, ", "Hello, ", "Hey, ", "Hi there, ", "Hello there, ", "Excuse me, ", "Please tell me, ", "Dear team, ",
    "Quick question: ", "Sorry, ", "So, ", "Well, ", "Okay, ", "Dear support, ", "Hi all, ", "Hello everyone, ",
)  # fmt: skip
_ENDS = ("?", "??", " ?", "...?", " please?", ", please?", "?!", "? thanks", "? thank you", "? cheers")
_VERBS = ("Describe", "Compare", "Summarise", "Classify", "Explain", "Outline", "Criticise", "Translate", "Praise")
_SUBJECTS = (
    "invoice", "garden", "railway", "violin", "harbour", "novel", "satellite", "bakery", "glacier", "court",
    "vaccine", "bicycle", "volcano", "orchestra", "spreadsheet", "castle", "beehive", "turbine", "passport", "desert",
)  # fmt: skip
_MANNERS = (
    "an old", "a cheap", "a famous", "an unfinished", "a Korean", "a medieval", "a portable", "a public", "a broken",
    "a wooden", "a digital", "a forgotten", "a noisy", "a profitable",
)  # fmt: skip
_PLACES = ("a visitor", "an engineer", "a judge", "a child", "an investor", "a nurse", "a farmer", "a historian")


def _questions(kind: str, seed: int) -> Iterator[str]:
    chosen = random.Random(seed)  # noqa: S311  (wording, no secret)
    if kind == "exact_hit":
        yield from itertools.repeat(WARM)
    elif kind == "semantic_hit":
        variants = [
            f"{beginning}{base[0].lower()}{base[1:-1]}{end}"
            for base, beginning, end in itertools.product(BASES, _BEGINNINGS, _ENDS)
        ]
        chosen.shuffle(variants)
        yield from itertools.cycle(variants)
    else:
        # Two subjects each, so that no two questions are near enough to share an answer.
        pairs = list(itertools.permutations(_SUBJECTS, 2))
        asked = list(itertools.product(_VERBS, pairs, _MANNERS, _PLACES))
        chosen.shuffle(asked)
        for verb, (one, other), manner, place in asked:
            yield f"{verb} {manner} {one} beside the {other} for {place}."


if __name__ == "__main__":
    sys.exit(main())
