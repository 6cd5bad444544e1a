"""Streams of requests through the real mesh: one request as the mesh takes it, and what came of it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tenth.type.v1 import chat_pb2, receipt_pb2

from bench.endtoend_deploy import JOBS, SUPPORT
from bench.endtoend_rows import Ask
from bench.endtoend_workload import Arrival
from formats.openai import completion_request
from formats.openai_answers import LAYERS
from tenth_client.client import Client
from tenth_client.errors import TenthClientError

HEAD = re.compile(r"\[([0-9a-f]{6})(?: ([0-9a-f]+))?\]")
"""How the sandbox's answers begin: the answer's code, and the digest of a prompt that was kept."""
_DAY_SECONDS = 24 * 3600
MAX_OUTPUT_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one request cost and which answer came. Money in nano-USD."""

    index: int
    error: str = ""
    model: str = ""
    hit: str = ""
    """"exact", "semantic", "follow", or empty for a miss."""
    code: str = ""
    """Of the answer that came."""
    prompt: str = ""
    """Digest of the prompt that the answer was made from, where prompts are kept."""
    baseline: int = 0
    baseline_prompt_cached: int = 0
    overhead: int = 0
    actual: int = 0
    savings: Mapping[str, int] = field(default_factory=dict)
    baseline_input_tokens: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    batch: bool = False
    why: str = ""
    """What the router said."""
    looked: str = ""
    """What the cache said."""
    hops: Mapping[str, float] = field(default_factory=dict)
    """Milliseconds that the request waited for each."""
    milliseconds: float = 0.0
    """From the call to the answer; 0 for what went into a batch."""

    @property
    def identity_holds(self) -> bool:
        """baseline - sum(savings) + overhead == actual."""
        return self.baseline - sum(self.savings.values()) + self.overhead == self.actual


@dataclass(frozen=True, slots=True)
class Arm:
    """How the requests of a run are asked."""

    tenant: str
    quality_target: float
    """Of requests whose outcomes were recorded."""
    batch: bool = True
    """Whether what can wait is sent with a far window."""
    unrecorded_to_strong: bool = False
    """Requests of which no model's quality was recorded stay with the strongest tier."""


def request_of(arrival: Arrival, arm: Arm, namespace: str = "") -> chat_pb2.CompletionRequest:
    """The request as the mesh takes it."""
    ask = arrival.ask
    policy: dict[str, object] = {}
    if ask.workload in ("rag", "chat"):
        policy["compression_mode"] = "balanced"
    if ask.correct:
        # A model whose outcomes on these questions nobody recorded may not answer them.
        policy |= {"quality_target": arm.quality_target, "tier_floor": "medium"}
    elif arm.unrecorded_to_strong:
        policy["tier_floor"] = "complex"
    if ask.workload == "bulk" and arm.batch:
        policy["completion_window"] = _DAY_SECONDS
    own = {
        "policy": policy,
        "tags": {"application": ask.workload},
        "namespace": namespace or {"support": SUPPORT, "bulk": JOBS}.get(ask.workload, ask.workload),
        "retrieved_chunks": [{"text": text} for text in ask.chunks],
        "user_id": arrival.user,
    }
    body = {"messages": list(ask.messages), "temperature": 0, "max_tokens": MAX_OUTPUT_TOKENS, "tenth": own}
    return completion_request(body)


class Bulk(Protocol):
    """How what can wait is sent; ``endtoend_bulk`` has the ways."""

    async def answer(
        self,
        client: Client,
        arrivals: Sequence[Arrival],
        arm: Arm,
        outcome: Callable[[Arrival, str, receipt_pb2.Receipt, float, str], Outcome],
        done: Callable[[], None],
    ) -> list[Outcome]:
        """The outcomes of requests that can wait, in any order."""
        ...


class Player:
    """Plays streams with one client. ``codes`` finds the code of an answer that was recorded as text."""

    def __init__(self, client: Client, codes: Mapping[str, str], bulk: Bulk) -> None:
        self._client = client
        self._codes = codes
        self._bulk = bulk

    async def play(
        self,
        stream: Sequence[Arrival],
        arm: Arm,
        concurrency: int,
        per_second: float = 0.0,
        done: Callable[[], None] = lambda: None,
    ) -> list[Outcome]:
        """Every request's outcome, in order. ``per_second`` above 0 keeps the trace's gaps at that mean rate.

        What can wait is handed in beside the others.
        """
        later = [each for each in stream if arm.batch and each.ask.workload == "bulk"]
        now = [each for each in stream if not (arm.batch and each.ask.workload == "bulk")]
        scale = len(stream) / (stream[-1].seconds or 1.0) / per_second if per_second and stream else 0.0
        begun = time.monotonic()
        waiting = iter(now)
        found: list[Outcome] = []

        async def worker() -> None:
            for arrival in waiting:
                if scale:
                    await asyncio.sleep(max(0.0, begun + arrival.seconds * scale - time.monotonic()))
                found.append(await self._one(arrival, arm))
                done()

        async def late() -> None:
            found.extend(await self._bulk.answer(self._client, later, arm, self.outcome, done))

        await asyncio.gather(late(), *(worker() for _ in range(concurrency)))
        return sorted(found, key=lambda each: each.index)

    async def _one(self, arrival: Arrival, arm: Arm) -> Outcome:
        request = request_of(arrival, arm)
        started = time.perf_counter()
        try:
            answer = await self._client.complete(request)
        except TenthClientError as error:
            return await self._failed(arrival, request.request_id, error)
        return self.outcome(arrival, answer.text, answer.receipt, (time.perf_counter() - started) * 1000)

    async def _failed(self, arrival: Arrival, request_id: str, error: TenthClientError) -> Outcome:
        """What a failure cost stands on its receipt, where there is one."""
        why = f"{error.code.name} {error.reason}"
        try:
            receipt = await self._client.receipt(request_id)
        except TenthClientError:
            return Outcome(arrival.index, error=why)
        return self.outcome(arrival, "", receipt, 0.0, why)

    def outcome(
        self, arrival: Arrival, text: str, receipt: receipt_pb2.Receipt, milliseconds: float, error: str = ""
    ) -> Outcome:
        """What an answer and its receipt say."""
        facts = receipt.facts
        head = HEAD.match(text)
        return Outcome(
            index=arrival.index,
            error=error,
            model=facts.model,
            hit=(facts.cache_hit_kind or "hit") if facts.cache_hit else "",
            code=head[1] if head else self._codes.get(text, ""),
            prompt=(head[2] or "") if head else "",
            baseline=receipt.baseline_nano_usd,
            baseline_prompt_cached=receipt.baseline_prompt_cached_nano_usd,
            overhead=receipt.overhead_nano_usd,
            actual=receipt.actual_nano_usd,
            savings={LAYERS.get(item.layer, str(item.layer)): item.saving_nano_usd for item in receipt.savings},
            baseline_input_tokens=facts.baseline_input_token_count,
            input_tokens=facts.usage.input_token_count,
            cached_tokens=facts.usage.cached_input_token_count,
            output_tokens=facts.usage.output_token_count,
            batch=facts.batch,
            why=next((hop.reason for hop in facts.hops if hop.name == "router"), ""),
            hops={hop.name: hop.duration.ToNanoseconds() / 1e6 for hop in facts.hops},
            looked=next((hop.reason for hop in facts.hops if hop.name == "cache"), ""),
            milliseconds=milliseconds,
        )


def codes_of(asks: Sequence[Ask]) -> dict[str, str]:
    """The code of each answer whose text was recorded."""
    return {text: ask.code for ask in asks for text in ask.texts.values()}
