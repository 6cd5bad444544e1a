"""Thirty minutes of more load than the local engine can bear, with everything going wrong that may.

``python -m bench.inference_soak [--minutes N] [--concurrency N] [--json F] [--plots DIR] [--seed N]``: the real service
in a process of its own, with the embedded model and more callers than it has places for. Callers leave at random, ask
malformed things and set deadlines that cannot be met. In the first part of the time the process is killed (kill -9) or
told to stop (SIGTERM) at random and started again; throughout, a step of its engine fails now and then. What was
recorded at the ledger is then compared with what the callers read, request by request.

Memory is judged over the last part, in which the process is not killed: its slope, and the last minute over the first.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress
from tenth.inference.v1 import inference_pb2
from tenth.ledger.v1 import ledger_pb2
from tenth.type.v1 import chat_pb2

from bench.pictures import HEIGHT, WIDTH, draw
from bench.result import Result, arguments, percentile
from bench.soak_service import MODEL, Soaked, soaked
from mesh.errors import Reason, TenthError

KILLS_SHARE = 0.4
"""The part of the time in which the process is killed."""
_LOG_CHARS = 200_000
"""Of the service's log, shown when there was an error that nobody foresaw."""
GRACE_SECONDS = 2.0
"""A request may be open so long after its deadline, no longer."""
SETTINGS = {
    "TENTH_INFERENCE_MAX_RUNNING": "16",
    "TENTH_INFERENCE_MAX_WAITING": "16",
    "TENTH_INFERENCE_KV_CACHE_BYTES": str(256 * 2**20),
    "TENTH_INFERENCE_ENGINE_RESTARTS": "1000",
    "TENTH_DRAIN_SECONDS": "8",
    "TENTH_INFERENCE_NOTICE_SECONDS": "5",
}
_WORDS = ("order", "parcel", "refund", "invoice", "museum", "river", "engine", "garden", "letter", "winter")
_MALFORMED = ("no id", "attempt 0", "no messages", "unknown model", "oversize", "bad schema", "bad sampling", "role")


@dataclass(slots=True)
class Asked:
    """One request as its caller saw it."""

    kind: str
    deadline: float
    read: int = 0
    """Pieces of a stream, each of one token or more; of a whole answer its tokens."""
    billed: int | None = None
    """Output tokens as the answer's own usage has them; None: it has not finished."""
    outcome: str = ""
    retry_seconds: float = 0.0
    """What a refusal told the caller to wait."""
    late_seconds: float = 0.0


@dataclass(slots=True)
class Soak:
    """Everything that happened."""

    random: random.Random
    until: float
    asked: dict[str, Asked] = field(default_factory=dict)
    samples: list[dict[str, float]] = field(default_factory=list)
    events: list[tuple[float, str]] = field(default_factory=list)
    recovery_seconds: list[float] = field(default_factory=list)
    down: list[tuple[float, float]] = field(default_factory=list)
    """Seconds from a kill or fault to readiness."""
    steady_from: float = 0.0
    """Second in which the process that ran to the end was ready."""
    open: int = 0
    numbers: itertools.count[int] = field(default_factory=itertools.count)


def generation(soak: Soak, kind: str) -> inference_pb2.GenerateTextRequest:
    """A request: plain, or malformed in the way that ``kind`` names."""
    draw = soak.random
    words = " ".join(draw.choices(_WORDS, k=draw.choice((8, 40, 200))))
    text = "word " * 100_000 if kind == "oversize" else f"Write about {words}."
    role = chat_pb2.ROLE_UNSPECIFIED if kind == "role" else chat_pb2.ROLE_USER
    request = inference_pb2.GenerateTextRequest(
        request_id="" if kind == "no id" else f"s{next(soak.numbers)}",
        attempt=0 if kind == "attempt 0" else 1,
        model="none" if kind == "unknown model" else MODEL,
        estimated_input_token_count=300,
        priority=inference_pb2.PRIORITY_BATCH if draw.random() < 0.2 else inference_pb2.PRIORITY_INTERACTIVE,
    )
    if kind != "no messages":
        request.messages.add(role=role, parts=[chat_pb2.ContentPart(text=text)])
    request.sampling.max_output_tokens = draw.choice((1, 16, 64, 200))
    request.sampling.temperature = 9.0 if kind == "bad sampling" else draw.choice((0.0, 0.8))
    if kind == "bad schema":
        request.response_format.kind = chat_pb2.RESPONSE_FORMAT_KIND_JSON_SCHEMA
        request.response_format.json_schema = draw.choice(("{", '{"type": "no such type"}', "[]"))
    return request


async def ask(soak: Soak, target: Soaked) -> Asked:
    """One request, read to its end or left, and what became of it."""
    draw = soak.random
    kind = draw.choices(("stream", "whole", "malformed"), (65, 25, 10))[0]
    if kind == "malformed":
        kind = draw.choice(_MALFORMED)
    request = generation(soak, kind)
    seconds = draw.choices((30.0, 3.0, 0.4), (80, 12, 8))[0]
    asked = Asked(kind, seconds)
    soak.asked[request.request_id or f"none{next(soak.numbers)}"] = asked
    leaves = draw.random() < 0.15
    began = time.monotonic()
    soak.open += 1
    try:
        async with asyncio.timeout(draw.uniform(0.0, 3.0) if leaves else None):
            await _read(target, request, asked, seconds, whole=kind == "whole")
        asked.outcome = "finished"
    except TimeoutError:
        asked.outcome = "left"
    except TenthError as error:
        asked.outcome, asked.retry_seconds = error.reason, error.retry_after_seconds or 0.0
    finally:
        soak.open -= 1
        asked.late_seconds = max(0.0, time.monotonic() - began - seconds)
    return asked


async def _read(
    target: Soaked, request: inference_pb2.GenerateTextRequest, asked: Asked, seconds: float, *, whole: bool
) -> None:
    if whole:
        answer = await target.stub.GenerateText(request, timeout=seconds)
        asked.read = asked.billed = answer.completion.usage.output_token_count
        return
    stream: Any = target.stub.StreamGenerateText(
        inference_pb2.StreamGenerateTextRequest(generation=request), timeout=seconds
    )
    async with aclosing(stream) as events:
        async for event in events:
            if event.HasField("delta"):
                asked.read += 1
            elif event.HasField("finished"):
                asked.billed = event.finished.usage.output_token_count


async def caller(soak: Soak, target: Soaked) -> None:
    """Asks one thing after the other; a refused one waits as it is told, but impatiently."""
    while time.monotonic() < soak.until:
        asked = await ask(soak, target)
        if asked.outcome not in ("finished", "left"):
            await asyncio.sleep(soak.random.uniform(0.5, 1.0) * min(asked.retry_seconds or 0.4, 2.0))


async def trouble(soak: Soak, target: Soaked, began: float, minutes: float) -> None:
    """Kills and faults at random, one at a time, each followed by the wait for readiness."""
    kills_until = began + minutes * 60 * KILLS_SHARE
    pause = min(45.0, minutes * 60 / 12)
    troubles = itertools.cycle(("kill -9", "fault", "SIGTERM"))
    while True:
        await asyncio.sleep(soak.random.uniform(0.5, 1.5) * pause)
        now = time.monotonic()
        if now > soak.until - 30:
            return
        what = next(troubles) if now < kills_until else "fault"
        soak.events.append((now - began, what))
        if what == "fault":
            target.service.fault.touch()
            with suppress(TimeoutError):
                async with asyncio.timeout(10):
                    while await target.ready():  # noqa: ASYNC110  (another process)
                        await asyncio.sleep(0.05)
        else:
            exits = len(target.service.exits)
            target.service.signal(signal.SIGKILL if what == "kill -9" else signal.SIGTERM)
            while len(target.service.exits) == exits:  # noqa: ASYNC110  (another process)
                await asyncio.sleep(0.05)
        soak.recovery_seconds.append(await target.until_ready())
        soak.down.append((now - began, time.monotonic() - began))
        if what != "fault":
            soak.steady_from = time.monotonic() - began


async def sample(soak: Soak, target: Soaked, began: float) -> None:
    """Once a second: memory, what callers have open, pieces read so far."""
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("soaking", total=soak.until - began)
        while True:
            second, read = time.monotonic() - began, sum(asked.read for asked in soak.asked.values())
            row = {"second": second, "rss_mb": target.service.rss_mb(), "open": soak.open, "read": read}
            soak.samples.append(row)
            bar.update(task, completed=second)
            await asyncio.sleep(1.0)


async def run(minutes: float, concurrency: int, seed: int, models: Path) -> tuple[Soak, dict[str, float]]:
    """The soak, and what the books say against it."""
    with tempfile.TemporaryDirectory() as folder:
        async with soaked(Path(folder), models, SETTINGS) as target:
            began = time.monotonic()
            soak = Soak(random.Random(seed), began + minutes * 60)  # noqa: S311  (a load, no secret)
            watchers = [asyncio.create_task(sample(soak, target, began))]
            watchers.append(asyncio.create_task(trouble(soak, target, began, minutes)))
            await asyncio.gather(*(caller(soak, target) for _ in range(concurrency)))
            for watcher in watchers:
                if watcher.done() and not watcher.cancelled() and (error := watcher.exception()) is not None:
                    raise error
                watcher.cancel()
            await target.until_ready()
            await asyncio.sleep(GRACE_SECONDS)
            listed = await target.stub.ListServedModels(inference_pb2.ListServedModelsRequest(), timeout=10)
            stuck = sum(model.running_count for model in listed.models)
        # The service has delivered its records and ended; the ledger was closed after it.
        if any(asked.outcome == Reason.INTERNAL for asked in soak.asked.values()):
            print((Path(folder) / "log").read_text("utf-8", errors="replace")[-_LOG_CHARS:], file=sys.stderr)
        return soak, {"open_at_end": float(stuck), **compare(soak, target)}


def compare(soak: Soak, target: Soaked) -> dict[str, float]:
    """What callers read against what was recorded, request by request."""
    unbilled = lost = different = twice = estimated = 0
    for request_id, asked in soak.asked.items():
        ends = target.ledger.ends.get((request_id, 1), [])
        twice += len(ends) > 1
        recorded = sum(event.usage.output_token_count for event in ends)
        unbilled += max(0, asked.read - recorded)
        lost += asked.read > 0 and not ends
        estimated += any(event.usage.estimated for event in ends)
        if asked.billed is not None:
            finished = [event for event in ends if event.kind == ledger_pb2.ATTEMPT_KIND_FINISHED]
            different += [event.usage.output_token_count for event in finished] != [asked.billed]
    never_ended = sum(key not in target.ledger.ends for key in target.ledger.started)
    return {
        "unbilled_tokens": unbilled,
        "read_without_record": lost,
        "finished_recorded_differently": different,
        "ended_twice": twice,
        "started_never_ended": never_ended,
        "closed_at_worst_case": estimated,
    }


def steady(soak: Soak) -> tuple[list[dict[str, float]], float]:
    """The samples since the last start of the process, and their slope in MB per hour (least squares).

    Its first minute, or sixth, is left out, and so is every restart of the engine with the 15 s after it, in which the
    memory goes down and comes back.
    """
    first, end = soak.steady_from, soak.samples[-1]["second"]
    first += min(60.0, (end - first) / 6)
    rows = [row for row in soak.samples if row["second"] > first and row["rss_mb"] > 0]
    rows = [row for row in rows if not any(down <= row["second"] <= up + 15 for down, up in soak.down)]
    if len(rows) < 2:
        return rows, 0.0
    middle = sum(row["second"] for row in rows) / len(rows)
    mean = sum(row["rss_mb"] for row in rows) / len(rows)
    spread = sum((row["second"] - middle) ** 2 for row in rows)
    return rows, sum((row["second"] - middle) * (row["rss_mb"] - mean) for row in rows) / spread * 3600


def report(result: Result, soak: Soak, books: dict[str, float]) -> None:
    """Every figure."""
    asked = list(soak.asked.values())
    outcomes = Counter(each.outcome for each in asked)
    n = len(asked)
    result.add("soak/ours/requests", n, "count", n)
    for outcome, count in outcomes.most_common():
        result.add(f"soak/ours/outcome_{outcome or 'none'}", count, "count", n)
    stuck = sum(each.late_seconds > GRACE_SECONDS for each in asked)
    result.add("soak/ours/stuck", stuck + books.pop("open_at_end"), "count", n)
    for name, value in books.items():
        result.add(f"soak/ours/{name}", value, "count", n)
    malformed = [each for each in asked if each.kind in _MALFORMED]
    answered = sum(each.outcome == "finished" for each in malformed)
    result.add("soak/ours/malformed_answered", answered, "count", len(malformed))
    happened = Counter(what for _, what in soak.events)
    for what in ("kill -9", "SIGTERM", "fault"):
        result.add(f"soak/ours/{what.replace(' -', '_').lower()}s", happened[what], "count", len(soak.events))
    if soak.recovery_seconds:
        result.add("soak/ours/recovery_p50_s", percentile(soak.recovery_seconds, 0.5), "s", len(soak.recovery_seconds))
    seconds = soak.samples[-1]["second"]
    result.add("soak/ours/read_per_s", soak.samples[-1]["read"] / seconds, "tokens/s", n)
    rows, slope = steady(soak)
    if rows:
        width = max(1, len(rows) // 10)
        first = sum(row["rss_mb"] for row in rows[:width]) / width
        last = sum(row["rss_mb"] for row in rows[-width:]) / width
        result.add("memory/ours/rss_mb_first", first, "MB", width)
        result.add("memory/ours/rss_mb_last", last, "MB", width)
        result.add("memory/ours/rss_mb_most", max(row["rss_mb"] for row in soak.samples), "MB", len(soak.samples))
        result.add("memory/ours/slope_mb_per_hour", slope, "MB/h", len(rows))


def picture(soak: Soak) -> dict[str, Any]:
    """Memory and open requests over time, with every kill and fault."""
    x = {"field": "minute", "type": "quantitative", "title": "minutes"}
    rows = [{"minute": row["second"] / 60, "rss": row["rss_mb"], "open": row["open"]} for row in soak.samples]
    events = [{"minute": second / 60, "what": what} for second, what in soak.events]
    colour = {"field": "what", "type": "nominal", "title": None, "scale": {"range": ["#999999", "#d62728", "#9467bd"]}}
    marks = {
        "data": {"values": events},
        "mark": {"type": "rule", "opacity": 0.5},
        "encoding": {"x": x, "color": colour},
    }

    def panel(name: str, title: str, height: int) -> dict[str, Any]:
        line = {
            "data": {"values": rows},
            "mark": {"type": "line", "strokeWidth": 1.2},
            "encoding": {"x": x, "y": {"field": name, "type": "quantitative", "title": title}},
        }
        return {"width": WIDTH, "height": height, "layer": [marks, line]}

    return {
        "title": "The inference service under a saturating soak: resident memory, and requests that are open",
        "vconcat": [panel("rss", "resident MB", HEIGHT * 2 // 3), panel("open", "open requests", HEIGHT // 3)],
    }


def main() -> None:
    """Measure, print, write."""
    parser = arguments("inference_soak", "A soak of the inference service with kills, faults, cancels and nonsense.")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long, 30; with --quick 2")
    parser.add_argument("--concurrency", type=int, default=48, help="callers at once, 48; the service takes 32")
    parser.add_argument("--models", type=Path, default=Path(".models"), help="folder of the local models")
    options = parser.parse_args()
    minutes = min(options.minutes, 2.0) if options.quick else options.minutes
    result = Result("inference_soak", quick=options.quick or minutes < 30)
    result.assumptions = {"minutes": minutes, "concurrency": options.concurrency, "seed": options.seed, **SETTINGS}
    soak, books = asyncio.run(run(minutes, options.concurrency, options.seed, options.models))
    report(result, soak, books)
    if options.plots is not None:
        why = draw(options.plots / "inference_soak_memory.png", picture(soak))
        result.skipped += [why] if why else []
    result.write(options.json)


if __name__ == "__main__":
    main()
