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
    [("prepare", 2), ("limits", 1), ("submit", 1), ("finish", 1), ("finish", 3)],
    ids=["preparing", "planning", "handing in", "finishing the first", "finishing a later one"],
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


async def test_a_worker_that_is_told_to_go_hands_back(tmp_path: Path, temporal_address: str) -> None:
    layers = Layers()
    layers.gate, layers.free = asyncio.Event(), 7
    notice = tmp_path / "preempted"
    rules = tmp_path / "preemption.yaml"
    rules.write_text(f"notices: [{{name: test, file: {notice}, every_seconds: 0.05}}]")
    async with engine(
        tmp_path, temporal_address, layers=layers, worker=False, local_concurrency=10, chunk_items=20
    ) as made:
        for way in ("SIGTERM", "a spot machine's notice"):
            layers.started, before = 0, dict(layers.generated)
            layers.gate.clear()
            first = made.spawn(preemption_file=rules)
            ref = await made.take_in([ask(f"{way} {n}") for n in range(20)])
            handle = await made.start(ref)
            await until(lambda: layers.started == 17)
            if way == "SIGTERM":
                first.send_signal(signal.SIGTERM)
            else:
                notice.touch()
            assert await asyncio.to_thread(first.wait, 20) == 0, made.log()
            notice.unlink(missing_ok=True)
            answered = {request for request in layers.generated if request not in before}
            assert len(answered) == 7
            layers.gate.set()
            second = made.spawn()
            progress = await asyncio.wait_for(handle.result(), 30)
            assert (progress.state, progress.done) == (State.DONE, 20)
            results = await made.results(ref)
            assert sorted(results) == list(range(20))
            mine = [layers.generated[request_id(ref, index)] for index in range(20)]
            assert all(len(attempts) == 1 for attempts in mine), "what was answered is not asked again"
            second.send_signal(signal.SIGTERM)
            await asyncio.to_thread(second.wait, 20)


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
