"""Workers and Temporal that die: nothing is lost, nothing is answered twice differently, little is done again."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from services.batch.refs import State
from tests.integration.batch.batch_engine_rig import ask, engine, request_id, until
from tests.integration.batch.batch_layers import PAID_MODEL, Layers
from tests.integration.batch.temporal_dev import TemporalServer


@pytest.mark.parametrize(
    ("call", "number"),
    [("prepare", 2), ("submit", 1), ("finish", 3)],
    ids=["preparing", "handing in", "finishing"],
)
async def test_a_worker_that_dies_loses_nothing(tmp_path: Path, temporal_address: str, call: str, number: int) -> None:
    layers = Layers()
    async with engine(tmp_path, temporal_address, layers=layers, worker=False, chunk_items=20) as made:
        dead = asyncio.Event()

        def die(name: str, count: int) -> None:
            if (name, count) == (call, number) and not dead.is_set():
                made.kill(made.processes[0])
                dead.set()

        layers.on_call = die
        made.spawn()
        ref = await made.take_in([ask(f"q{n}", model=PAID_MODEL if n < 30 else "") for n in range(130)])
        handle = await made.start(ref)
        await asyncio.wait_for(dead.wait(), 30)
        made.spawn()
        progress = await asyncio.wait_for(handle.result(), 40)
        assert (progress.state, progress.done, progress.failed) == (State.DONE, 130, 0), made.log()
        assert sorted(await made.results(ref)) == list(range(130))
        # Finished once each, although a call's answer was lost; the provider has one batch, whatever was sent twice.
        assert set(layers.ends.values()) == {1}
        assert len(layers.batches) == 1
        assert len(set(layers.submissions)) == 1
        again = sum(len(attempts) - 1 for attempts in layers.generated.values())
        assert again <= 2 * 20, "at most the chunks in its hands are repeated"
        assert all(len(set(attempts)) == len(attempts) for attempts in layers.generated.values())
        assert not layers.reserved


async def test_workers_that_are_told_to_go_hand_back(tmp_path: Path, temporal_address: str) -> None:
    layers = Layers()
    layers.gate, layers.free = asyncio.Event(), 7
    notice, rules = tmp_path / "preempted", tmp_path / "preemption.yaml"
    rules.write_text(f"notices: [{{name: test, file: {notice}, every_seconds: 0.05}}]")
    async with engine(
        tmp_path, temporal_address, layers=layers, worker=False, local_concurrency=10, chunk_items=20
    ) as made:
        first = made.spawn(preemption_file=rules)
        ref = await made.take_in([ask(f"q{n}") for n in range(20)])
        handle = await made.start(ref)
        await until(lambda: layers.started == 17)
        notice.touch()
        assert await asyncio.to_thread(first.wait, 20) == 0, made.log()
        assert len(layers.ends) == 7, "what was answered is written down, the rest is not begun"
        layers.started, layers.free = 0, 5
        second = made.spawn()
        await until(lambda: layers.started >= 13)
        second.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(second.wait, 20) == 0, made.log()
        assert len(layers.ends) == 12
        layers.gate.set()
        made.spawn()
        progress = await asyncio.wait_for(handle.result(), 30)
        assert (progress.state, progress.done) == (State.DONE, 20)
        assert sorted(await made.results(ref)) == list(range(20))
        answered = [layers.generated[request_id(ref, index)] for index in range(20)]
        assert all(len(attempts) == 1 for attempts in answered), "what was answered is not asked again"


async def test_temporal_that_dies_goes_on_where_it_was(tmp_path: Path) -> None:
    layers = Layers()
    layers.gate, layers.free = asyncio.Event(), 30
    server = TemporalServer(tmp_path)
    server.start()
    try:
        async with engine(tmp_path, server.address, layers=layers, chunk_items=10, local_concurrency=10) as made:
            ref = await made.take_in([ask(f"q{n}") for n in range(100)])
            handle = await made.start(ref)
            await until(lambda: layers.started == 40)
            server.kill()
            layers.gate.set()
            await until(lambda: len(layers.ends) >= 40)
            await server.restart()
            progress = await asyncio.wait_for(handle.result(), 50)
            assert (progress.state, progress.done, progress.failed) == (State.DONE, 100, 0)
            assert sorted(await made.results(ref)) == list(range(100))
            assert set(layers.ends.values()) == {1}
    finally:
        server.kill()
