"""The engine's busy time: a clock in the test's hand, and a real engine thread's steps over a made-up engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.inference.settings import InferenceSettings
from services.inference.utilization import Node, node_of
from services.inference.vllm import VllmBackend
from services.inference.vllm_load import EngineOptions
from services.inference.vllm_thread import EngineThread
from services.inference.work import Work, WorkMeter


class Clock:
    def __init__(self) -> None:
        self.now = 1_000

    def __call__(self) -> int:
        return self.now


def test_a_share_by_hand() -> None:
    clock = Clock()
    meter = WorkMeter(clock)
    assert meter.take() == Work(0.0, 0)  # No time has passed: nothing is divided by it.
    clock.now += 30
    meter.working(True)
    clock.now += 10
    meter.made(3)
    assert meter.take() == Work(0.25, 3)
    # Still at work: a look in the middle of it loses nothing and counts nothing twice.
    clock.now += 10
    meter.working(True)
    clock.now += 10
    meter.working(False)
    clock.now += 20
    assert meter.take() == Work(0.5, 0)
    clock.now += 7
    assert meter.take() == Work(0.0, 0)


@given(st.lists(st.tuples(st.integers(1, 10**10), st.booleans(), st.booleans(), st.integers(0, 50)), min_size=1))
def test_looks_sum_to_what_was_done(steps: list[tuple[int, bool, bool, int]]) -> None:
    clock = Clock()
    meter = WorkMeter(clock)
    busy, tokens, seen_busy, seen_tokens, looked, state = 0, 0, 0.0, 0, clock.now, False
    for duration, then, look, made in steps:
        clock.now += duration
        busy += duration if state else 0
        meter.working(then)
        state = then
        meter.made(made)
        tokens += made
        if look:
            work = meter.take()
            assert 0 <= work.busy_share <= 1
            seen_busy += work.busy_share * (clock.now - looked)
            seen_tokens += work.output_tokens
            looked = clock.now
    work = meter.take()
    seen_busy += work.busy_share * (clock.now - looked)
    assert seen_tokens + work.output_tokens == tokens
    assert seen_busy == pytest.approx(busy, rel=1e-9, abs=1)


class Part:
    def __init__(self, count: int) -> None:
        self.token_ids = [0] * count


class Output:
    request_id = "gone"

    def __init__(self, *counts: int) -> None:
        self.outputs = [Part(count) for count in counts]


class Engine:
    """Has work for as many steps as it was given; a step takes ten ticks and makes the tokens that it was told."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.steps: list[list[Output]] = []

    def has_unfinished_requests(self) -> bool:
        return bool(self.steps)

    def step(self) -> list[Output]:
        self.clock.now += 10
        return self.steps.pop()


def test_the_engines_thread_counts_its_steps() -> None:
    clock = Clock()
    backend = VllmBackend("m", "local", "f", EngineOptions(Path("none"), 100, 1, 1, 1))
    thread = backend.engine
    assert isinstance(thread, EngineThread)
    thread.work = WorkMeter(clock)
    engine = Engine(clock)

    def give(*steps: list[Output]) -> Any:
        def command(_: Any) -> None:
            clock.now += 20  # The thread waited for this command.
            engine.steps = list(steps)

        return command

    thread._commands.put(give([Output(1), Output(1)], [Output(3)]))
    assert thread._step(engine)
    assert thread._step(engine)
    assert not backend.runs()
    assert backend.work.take() == Work(0.5, 5)
    thread._commands.put(give())
    assert thread._step(engine)
    assert backend.work.take() == Work(0.0, 0)
    thread._commands.put(None)
    assert not thread._step(engine)


@pytest.mark.parametrize(
    ("settings", "node"),
    [
        ({"node": "n", "threads": 6}, Node("n", "cpu", 6, "m")),
        ({"node": "n", "hardware": "gpu:a100-80gb"}, Node("n", "gpu:a100-80gb", 1, "m")),
        ({"node": "n", "hardware": "gpu:h100", "unit_count": 8}, Node("n", "gpu:h100", 8, "m")),
    ],
)
def test_the_node_by_its_settings(settings: dict[str, Any], node: Node) -> None:
    assert node_of(InferenceSettings(**settings), "m") == node
    assert node_of(InferenceSettings(**{**settings, "node": ""}), "m").name


@pytest.mark.parametrize("hardware", ["tpu", "gpu:", "gpu:a b", "cpu\n"])
def test_hardware_that_the_ledger_would_refuse_is_refused_at_start(hardware: str) -> None:
    with pytest.raises(ValueError, match="hardware"):
        InferenceSettings(hardware=hardware)
