"""A cancel and the deadline end a run whatever it waits for: preparing, planning, the orchestrator at its very end."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from mesh.errors import Code, TenthError
from services.batch.refs import CANCEL_SIGNAL, State
from tests.integration.batch.batch_engine_rig import ask, engine, request_id, until
from tests.integration.batch.batch_layers import PAID_MODEL, Layers, finished


def away(*calls: str) -> Callable[[str, int], None]:
    """What the layers do when these calls fail."""

    def called(name: str, _: int) -> None:
        if name in calls:
            raise TenthError(Code.UNAVAILABLE, "AWAY", "away", retry_after_seconds=0.05)

    return called


@pytest.mark.parametrize("call", ["prepare", "limits"])
@pytest.mark.parametrize("why", ["cancel", "deadline"])
async def test_what_waits_for_a_layer_is_interrupted(
    tmp_path: Path, temporal_address: str, call: str, why: str
) -> None:
    layers = Layers()
    layers.on_call = away(call)
    async with engine(tmp_path, temporal_address, layers=layers) as made:
        ref = await made.take_in(
            [ask(f"q{n}", model=PAID_MODEL) for n in range(120)], seconds=3600 if why == "cancel" else 3
        )
        handle = await made.start(ref)
        await until(lambda: layers.calls[call] > 2)
        if why == "cancel":
            await handle.signal(CANCEL_SIGNAL)
        progress = await asyncio.wait_for(handle.result(), 20)
        assert progress.state == (State.CANCELLED if why == "cancel" else State.DONE)
        assert (progress.done, progress.failed) == (0, 120)
        reasons = Counter(one.result.error_reason for one in (await made.results(ref)).values())
        assert reasons == {"BATCH_CANCELLED" if why == "cancel" else "BATCH_EXPIRED": 120}
        assert not layers.reserved, "also what was reserved in calls whose answers were lost"


async def test_what_was_prepared_in_part_reserves_nothing_when_preparing_fails_for_good(
    tmp_path: Path, temporal_address: str
) -> None:
    layers = Layers()

    def refused(name: str, number: int) -> None:
        if name == "prepare" and number > 1:
            raise TenthError(Code.PERMISSION_DENIED, "PERMISSION_DENIED", "refused", retry_after_seconds=0.05)

    layers.on_call = refused
    async with engine(tmp_path, temporal_address, layers=layers, prepare_parallel=1) as made:
        ref = await made.take_in([ask(f"q{n}") for n in range(250)])
        progress = await made.run(ref)
        assert (progress.state, progress.error_reason, progress.failed) == (State.FAILED, "PERMISSION_DENIED", 250)
        assert not layers.reserved
        assert len(layers.kept) == 200, "of what nobody began to prepare no receipt is made"


async def test_a_run_ends_without_the_orchestrator_in_the_end(tmp_path: Path, temporal_address: str) -> None:
    layers = Layers()
    layers.on_call = away("limits", "finish")
    async with engine(tmp_path, temporal_address, layers=layers, close_seconds=1.0) as made:
        ref = await made.take_in([ask(f"q{n}", model=PAID_MODEL) for n in range(3)])
        handle = await made.start(ref)
        await until(lambda: layers.calls["limits"] > 2)
        await handle.signal(CANCEL_SIGNAL)
        progress = await asyncio.wait_for(handle.result(), 20)
        assert (progress.state, progress.failed) == (State.CANCELLED, 3)
        assert {one.result.error_reason for one in (await made.results(ref)).values()} == {"BATCH_CANCELLED"}


async def test_what_a_lost_worker_has_finished_counts_at_the_end(tmp_path: Path, temporal_address: str) -> None:
    layers = Layers()
    layers.on_call = away("limits")
    async with engine(tmp_path, temporal_address, layers=layers) as made:
        ref = await made.take_in([ask(f"q{n}", model=PAID_MODEL) for n in range(3)])
        handle = await made.start(ref)
        await until(lambda: layers.calls["limits"] > 2)
        layers.kept[request_id(ref, 1)] = finished(ask("q1"), "an answer", PAID_MODEL)
        await handle.signal(CANCEL_SIGNAL)
        progress = await asyncio.wait_for(handle.result(), 20)
        assert (progress.state, progress.done, progress.failed) == (State.CANCELLED, 1, 2)
        assert (await made.results(ref))[1].result.completion.message.parts[0].text == "an answer"
