"""What one routing decision costs in the process that takes it, the question's vector given."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from bench.progress import blocks
from bench.result import Result, median, percentile
from bench.router_heads import Vectors
from services.router import policy
from services.router.catalog import Catalog
from services.router.decide import Knowledge, Routed, routed
from services.router.decision import Demand, Embedding, Needs, Strategy
from services.router.features import Features, Prompt, extract, is_korean

QUESTIONS = 2000
_WARM_UP = 50
_BLOCK = 100

Step = Callable[[int], object]
"""Does its work on the question of this place."""


@dataclass(frozen=True, slots=True)
class Timed:
    """Microseconds per question."""

    each: Sequence[float]
    cpu: float
    """Mean of user plus system time."""


def measure(
    result: Result, questions: Sequence[str], vectors: Vectors, knowledge: Knowledge | None, catalog: Catalog
) -> None:  # fmt: skip
    """Time features alone, heads alone, and the whole decision; without heads only the features."""
    found = [extract(Prompt(question=question)) for question in questions]
    steps: dict[str, Step] = {"features": lambda place: extract(Prompt(question=questions[place]))}
    if knowledge is not None and (heads := knowledge.heads) is not None:
        steps["heads"] = lambda place: heads.predict(vectors[place], found[place])
        whole = decider(knowledge, catalog)
        steps["ours"] = lambda place: whole(questions[place], vectors[place])
    for name, step in steps.items():
        timed = timings(step, len(questions), f"timing {name}")
        n = len(timed.each)
        result.add(f"decision/{name}/p50_us", median(timed.each), "us", n)
        result.add(f"decision/{name}/p95_us", percentile(timed.each, 0.95), "us", n)
        result.add(f"decision/{name}/cpu_us", timed.cpu, "us", n)


def decider(knowledge: Knowledge, catalog: Catalog) -> Callable[[str, Vectors], Routed]:
    """One whole decision of the trained strategy on a question and its vector, as the servicer has it taken."""
    version = knowledge.heads.embedder_version if knowledge.heads is not None else ""

    def decide(question: str, vector: Vectors) -> Routed:
        prompt = Prompt(question=question)
        found = extract(prompt)
        embedding = Embedding(vector, version)
        return routed(Strategy.TRAINED, catalog, demand(prompt, found), found, embedding, knowledge, {})

    return decide


def demand(
    prompt: Prompt, found: Features, *, target: float | None = None, excluded_models: frozenset[str] = frozenset()
) -> Demand:  # fmt: skip
    """What a request with nothing but this question asks of routing."""
    korean = is_korean(prompt, found)
    chars = len(prompt.question)
    tokens = policy.estimate_tokens(chars, chars * 3 // 4 if korean else 0, 1, 0)
    return Demand(Needs(korean=korean), tokens, quality_target=target, excluded_models=excluded_models)


def timings(step: Step, count: int, what: str) -> Timed:
    """Each question once, after a few to warm up."""
    for place in range(min(_WARM_UP, count)):
        step(place)
    each: list[float] = []
    cpu_nanos = 0
    for block in blocks(range(count), _BLOCK, what):
        cpu_before = time.process_time_ns()
        for place in block:
            before = time.perf_counter_ns()
            step(place)
            each.append((time.perf_counter_ns() - before) / 1000)
        cpu_nanos += time.process_time_ns() - cpu_before
    return Timed(each, cpu_nanos / 1000 / count)


def sample(texts: Sequence[str], count: int, seed: int) -> list[str]:
    """Different questions, at most ``count``, drawn at random."""
    different = sorted(set(texts))
    order = np.random.default_rng(seed).permutation(len(different))
    return [different[place] for place in order[:count]]
