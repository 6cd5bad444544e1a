"""What the mesh adds to a request: latency and CPU over calling the model directly, beside LiteLLM's proxy.

The model is the sandbox provider in its instant mode (canned text, no model), so that everything measured is the
mesh. Three kinds of request: ``exact_hit`` (the same question again), ``semantic_hit`` (in other words) and
``miss`` (a new question). Systems take turns in short rounds within one run, because these machines are noisy.
CPU is user plus system time of every server process, less what the direct call costs the sandbox itself.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from tenth.type.v1 import chat_pb2

from bench.peers import KEY, Proxy, start_litellm
from bench.result import Result, arguments, percentile
from tenth_client import Client
from tenth_client.up import Mesh, MeshOptions

MODEL = "gpt-4o-mini"
KINDS = ("exact_hit", "semantic_hit", "miss")
_TICKS = os.sysconf("SC_CLK_TCK")

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
            try:
                async with Client(mesh.address("orchestrator"), mesh.api_key) as client, httpx.AsyncClient() as http:
                    await _rounds(result, count, mesh, client, http, sandbox_url, proxy, seed)
            finally:
                if proxy is not None:
                    proxy.stop()


async def _rounds(
    result: Result,
    count: int,
    mesh: Mesh,
    client: Client,
    http: httpx.AsyncClient,
    sandbox_url: str,
    proxy: Proxy | None,
    seed: int,
) -> None:
    embed = {kind: [0.0, 0.0] for kind in KINDS}
    pids = {name: pid for name, pid in mesh.pids.items() if name != "collector"}
    sandbox = [mesh.pids["sandbox"]]

    def ours(kind: str) -> Ask:
        policy = chat_pb2.RequestPolicy(model=MODEL)

        async def ask(question: str) -> str:
            answer = await client.complete(question, policy=policy)
            facts = answer.receipt.facts
            micros = sum(item.compute_micros for item in facts.overheads)
            embed[kind][0] += micros / 1000
            embed[kind][1] += 1
            return facts.cache_hit_kind or "miss"

        return ask

    def over_http(url: str, key: str, *, cached: bool) -> Ask:
        async def ask(question: str) -> str:
            body: dict[str, object] = {"model": MODEL, "messages": [{"role": "user", "content": question}]}
            if not cached and key == KEY:
                body["cache"] = {"no-cache": True}
            headers = {"authorization": f"Bearer {key}"}
            reply = await http.post(f"{url}/chat/completions", json=body, headers=headers, timeout=30)
            reply.raise_for_status()
            reply.json()
            return "ok"

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
    for kind in KINDS:
        for make, _ in systems.values():
            warm = list(itertools.islice(questions[kind], 5)) if kind == "miss" else [WARM, WARM]
            for question in warm:
                await make(kind)(question)
    await asyncio.sleep(1.0)  # The stores of the warm-up happen in the background.
    rounds = 6
    for _, concurrency, kind in itertools.product(range(rounds), (1, 32), KINDS):
        for system, (make, processes) in systems.items():
            if system == "litellm" and kind == "semantic_hit":
                continue
            load = loads.setdefault((kind, system, concurrency), Load())
            asked = list(itertools.islice(questions[kind], max(concurrency, count // rounds)))
            await _run(load, make(kind), asked, concurrency, processes)
    if proxy is not None:
        result.skipped.append("semantic_hit/litellm: its semantic cache needs a Redis or Qdrant server")
    _report(result, loads, embed)


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
        if system == "ours":
            wanted = {"exact_hit": "exact", "semantic_hit": "semantic", "miss": "miss"}[kind]
            result.add(f"{name}as_intended{suffix}", load.outcomes.get(wanted, 0) / n, "ratio", n)
    for kind, (milliseconds, asked) in embed.items():
        if asked:
            result.add(f"{kind}/ours/embed_cpu_ms", milliseconds / asked, "ms", int(asked))


def cpu_seconds(pids: Sequence[int]) -> float:
    """User plus system time of some processes, their reaped children included."""
    total = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += sum(int(fields[index]) for index in (11, 12, 13, 14))
    return total / _TICKS


def resident_mb(mesh: Mesh, without: Sequence[str]) -> float:
    """Resident memory of the mesh's processes, MB."""
    total = 0.0
    for name, pid in mesh.pids.items():
        if name not in without and pid:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return total / 1e6


WARM = "How do I reset the password of my account?"
_GREETINGS = ("", "Hi, ", "Hello, ", "Hey, ", "Good morning, ", "Hi there, ", "Hello there, ", "Excuse me, ")
_BODIES = (
    "how do I reset the password of my account",
    "how can I reset the password of my account",
    "how do I reset my account password",
    "how can I reset my account's password",
    "how do I reset the password for my account",
    "how can I reset the password for my account",
)
_ENDS = ("?", " ?", "??", "? Thanks", "? Thank you", ", please?", " please?", "? Thanks!")


def _questions(kind: str, seed: int) -> Iterator[str]:
    if kind == "exact_hit":
        yield from itertools.repeat(WARM)
    elif kind == "semantic_hit":
        yield from itertools.cycle(f"{a}{b}{c}" for b in _BODIES for a in _GREETINGS for c in _ENDS)
    else:
        subjects = ("invoice", "garden", "railway", "violin", "harbour", "novel", "satellite", "bakery", "glacier")
        verbs = ("Describe", "Compare", "Summarise", "Classify", "Explain", "Outline")
        for number in itertools.count(seed * 1_000_000):
            verb, subject = verbs[number % len(verbs)], subjects[number // 7 % len(subjects)]
            yield f"{verb} {subject} case {number} for a visitor."


if __name__ == "__main__":
    sys.exit(main())
