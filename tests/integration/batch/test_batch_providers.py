"""Providers' batches that fail in parts, expire, are refused, or do not end before the deadline."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from pathlib import Path

import pytest
from tenth.inference.v1 import inference_pb2
from tenth.type.v1 import usage_pb2

from mesh.errors import Code, TenthError
from services.batch.refs import CANCEL_SIGNAL, State
from tests.integration.batch.batch_engine_rig import ask, engine, request_id, until
from tests.integration.batch.batch_layers import (
    PAID_MODEL,
    Layers,
    PlayedBatch,
    answer_all,
    end_as_it_is,
    never,
    result,
)

ENDED = inference_pb2.PROVIDER_BATCH_STATE_ENDED


async def test_a_batch_that_fails_in_parts_and_expires(tmp_path: Path, temporal_address: str) -> None:
    layers = Layers()

    def first_in_parts(batch: PlayedBatch) -> None:
        if len(layers.batches) > 1:
            return answer_all(batch)
        wrong = result(batch.generations[1], "CONTENT_FILTERED")
        wrong.error.usage.CopyFrom(usage_pb2.Usage(input_token_count=9))
        batch.results = [
            result(batch.generations[0]),
            wrong,
            result(batch.generations[2], "PROVIDER_BATCH_EXPIRED", retryable=True),
        ]  # Of the rest it says nothing.
        batch.state = ENDED
        return None

    layers.on_submit = first_in_parts
    async with engine(tmp_path, temporal_address, layers=layers) as made:
        ref = await made.take_in([ask(f"q{n}", model=PAID_MODEL) for n in range(6)])
        progress = await made.run(ref)
        assert (progress.state, progress.done, progress.failed) == (State.DONE, 5, 1)
        assert progress.lanes == {"openai": 5}
        assert [len(batch.generations) for batch in layers.batches.values()] == [6, 4]
        results = await made.results(ref)
        first, *rest = layers.batches.values()
        order = [one.request_id for one in first.generations]
        ids = {request_id(ref, index): index for index in range(6)}
        assert results[ids[order[1]]].result.error_reason == "CONTENT_FILTERED"
        assert layers.kinds(order[0]) == [(1, "FINISHED"), (1, "STARTED")]
        assert layers.kinds(order[1]) == [(1, "FAILED"), (1, "STARTED")]
        for request in order[2:]:
            assert layers.kinds(request) == [(1, "FAILED"), (1, "STARTED"), (2, "FINISHED"), (2, "STARTED")]
        event = layers.attempts[order[0], 1, 2]
        assert (event.usage.output_token_count, event.reservation_id) == (5, f"r-{order[0]}")
        assert len(set(layers.submissions)) == 2
        assert not layers.reserved
        assert rest


async def test_what_the_provider_refuses_runs_online(tmp_path: Path, temporal_address: str) -> None:
    layers = Layers()

    def refuse(batch: PlayedBatch) -> None:
        batch.state = inference_pb2.PROVIDER_BATCH_STATE_FAILED

    layers.on_submit = refuse
    async with engine(tmp_path, temporal_address, layers=layers) as made:
        ref = await made.take_in([ask(f"q{n}", model=PAID_MODEL) for n in range(3)])
        progress = await made.run(ref)
        assert (progress.done, progress.lanes) == (3, {"online": 3})
        assert layers.lanes == {"online full": 3}
        tried = layers.tried[request_id(ref, 0)]
        assert len(tried) == 1
        assert tried[0][1] > 1, "its attempt at the provider has the first number"
        assert layers.kinds(request_id(ref, 0)) == [(1, "FAILED"), (1, "STARTED")]


async def test_a_submission_that_is_refused_runs_online(tmp_path: Path, temporal_address: str) -> None:
    layers = Layers()

    def refuse(_: PlayedBatch) -> None:
        raise TenthError(Code.INVALID_ARGUMENT, "INVALID_FIELD", "generations[1] is wrong", "generations[1]")

    layers.on_submit = refuse
    async with engine(tmp_path, temporal_address, layers=layers) as made:
        ref = await made.take_in([ask(f"q{n}", model=PAID_MODEL) for n in range(3)])
        progress = await made.run(ref)
        assert (progress.done, progress.lanes) == (3, {"online": 3})
        ref = await made.take_in([ask(f"r{n}", model=PAID_MODEL) for n in range(3)], lanes=["openai"])
        progress = await made.run(ref)
        assert (progress.done, progress.failed) == (0, 3)
        reasons = {one.result.error_reason for one in (await made.results(ref)).values()}
        assert reasons == {"LANE_NOT_ALLOWED"}
        assert not layers.reserved


async def test_one_generation_that_is_refused_does_not_send_the_others_online(
    tmp_path: Path, temporal_address: str
) -> None:
    layers = Layers()

    def refuse_one(batch: PlayedBatch) -> None:
        for one in batch.generations:
            if one.messages[-1].parts[0].text == "q1":
                layers.batches.clear()
                metadata = {"request_id": one.request_id}
                raise TenthError(Code.INVALID_ARGUMENT, "INVALID_FIELD", "wrong", "generations[1]", metadata=metadata)
        answer_all(batch)

    layers.on_submit = refuse_one
    async with engine(tmp_path, temporal_address, layers=layers) as made:
        ref = await made.take_in([ask(f"q{n}", model=PAID_MODEL) for n in range(4)])
        progress = await made.run(ref)
        assert (progress.done, progress.lanes) == (4, {"openai": 3, "online": 1})
        ends = [kind for _, kind in layers.kinds(request_id(ref, 1))]
        assert ends.count("STARTED") == ends.count("FAILED"), "what was never handed in is on the books as that"
        assert not layers.reserved


@pytest.mark.parametrize("stops", [True, False], ids=["the provider stops", "the provider does not stop"])
async def test_the_deadline_moves_work_online(tmp_path: Path, temporal_address: str, stops: bool) -> None:
    layers = Layers()
    layers.on_submit = half_and_no_more
    layers.on_cancel = end_as_it_is if stops else never
    async with engine(
        tmp_path, temporal_address, layers=layers, online_items_per_second=20, reserve_seconds=0.5
    ) as made:
        ref = await made.take_in([ask(f"q{n}", model=PAID_MODEL) for n in range(20)], seconds=5)
        handle = await made.start(ref)
        progress = await asyncio.wait_for(handle.result(), 20)
        assert (progress.state, progress.done, progress.failed) == (State.DONE, 20, 0)
        assert progress.lanes == ({"openai": 10, "online": 10} if stops else {"online": 20})
        assert layers.calls["cancel"] == 1
        described = await handle.describe()
        assert described.close_time is not None
        took = (described.close_time - described.start_time).total_seconds()
        assert 2 < took < 5.5, "as late as that is safe, and in time"


async def test_own_hardware_that_is_too_slow_gives_work_away(tmp_path: Path, temporal_address: str) -> None:
    layers = Layers()
    async with engine(
        tmp_path, temporal_address, layers=layers, online_items_per_second=50, local_models="another"
    ) as made:
        ref = await made.take_in([ask(f"q{n}") for n in range(100)], seconds=6)
        progress = await made.run(ref)
        assert (progress.state, progress.done) == (State.DONE, 100)
        assert progress.lanes == {"online": 100}, "no worker serves the model's queue"
        models = Counter(model for tries in layers.tried.values() for model, _ in tries)
        assert models == {PAID_MODEL: 100}


async def test_what_is_not_answered_at_the_deadline_fails_typed(tmp_path: Path, temporal_address: str) -> None:
    layers = Layers()
    layers.gate, layers.free = asyncio.Event(), 3
    async with engine(tmp_path, temporal_address, layers=layers, check_least_seconds=0.1) as made:
        ref = await made.take_in([ask(f"q{n}") for n in range(10)], seconds=3, lanes=["local"])
        handle = await made.start(ref)
        await until(lambda: layers.started == 10)
        progress = await asyncio.wait_for(handle.result(), 20)
        assert (progress.state, progress.done, progress.failed) == (State.DONE, 3, 7)
        reasons = Counter(one.result.error_reason for one in (await made.results(ref)).values())
        assert reasons == {"": 3, "BATCH_EXPIRED": 7}
        assert not layers.reserved


def half_and_no_more(batch: PlayedBatch) -> None:
    batch.results = [result(one) for one in batch.generations[: len(batch.generations) // 2]]


async def test_a_provider_without_room_is_asked_again(tmp_path: Path, temporal_address: str) -> None:
    layers = Layers()

    def no_room_at_first(batch: PlayedBatch) -> None:
        if len(layers.batches) > 4:
            return answer_all(batch)
        batch.state, batch.retryable = inference_pb2.PROVIDER_BATCH_STATE_FAILED, True
        return None

    layers.on_submit = no_room_at_first
    async with engine(tmp_path, temporal_address, layers=layers, provider_tries=1) as made:
        ref = await made.take_in([ask(f"q{n}", model=PAID_MODEL) for n in range(3)])
        progress = await made.run(ref)
        assert (progress.done, progress.lanes) == (3, {"openai": 3})
        assert len(set(layers.submissions)) == 5
        assert not layers.reserved


async def test_what_is_at_a_provider_is_collected_when_a_cancel_meets_a_renewal(
    tmp_path: Path, temporal_address: str
) -> None:
    layers = Layers()
    layers.gate, layers.free = asyncio.Event(), 0
    layers.on_submit = half_and_no_more
    seen = (0, 0.0)

    def nobody_asks_any_more() -> bool:
        nonlocal seen
        if seen[0] != layers.calls["poll"]:
            seen = (layers.calls["poll"], time.monotonic())
        return seen[0] > 5 and time.monotonic() - seen[1] > 1

    async with engine(tmp_path, temporal_address, layers=layers, history_events=100) as made:
        ref = await made.take_in([ask(f"q{n}", model=PAID_MODEL if n < 4 else "") for n in range(6)])
        handle = await made.start(ref)
        # Its history is long: it waits for the chunk that is out, to continue as a new one.
        await until(nobody_asks_any_more)
        await handle.signal(CANCEL_SIGNAL)
        progress = await asyncio.wait_for(handle.result(), 20)
        assert (progress.state, progress.done, progress.failed) == (State.CANCELLED, 2, 4)
        assert layers.calls["cancel"] == 1
        assert not layers.reserved


@pytest.mark.parametrize("taken", [True, False], ids=["the provider has it", "the provider never had it"])
async def test_a_submission_that_is_given_up_is_looked_for(tmp_path: Path, temporal_address: str, taken: bool) -> None:
    layers = Layers()
    layers.on_submit = half_and_no_more if taken else lambda batch: layers.batches.clear()
    layers.on_call = lambda name, number: down(name) if name == "submit" or (name == "find" and number < 3) else None
    async with engine(tmp_path, temporal_address, layers=layers) as made:
        ref = await made.take_in([ask(f"q{n}", model=PAID_MODEL) for n in range(4)])
        handle = await made.start(ref)
        await until(lambda: layers.calls["submit"] >= 2)
        await handle.signal(CANCEL_SIGNAL)
        progress = await asyncio.wait_for(handle.result(), 20)
        assert (progress.state, progress.done, progress.failed) == (State.CANCELLED, 2 * taken, 4 - 2 * taken)
        assert layers.calls["cancel"] == taken
        kinds = Counter(kind for index in range(4) for _, kind in layers.kinds(request_id(ref, index)))
        assert kinds["STARTED"] == kinds["FINISHED"] + kinds["FAILED"] == 4, "nothing stays at its worst case"
        assert kinds["FINISHED"] == 2 * taken
        assert not layers.reserved


async def test_a_submission_nobody_knows_of_keeps_no_batch_from_its_end(tmp_path: Path, temporal_address: str) -> None:
    layers = Layers()
    layers.on_call = lambda name, _: down(name) if name in ("submit", "find") else None
    async with engine(
        tmp_path, temporal_address, layers=layers, provider_find_seconds=1.0, online_items_per_second=20
    ) as made:
        ref = await made.take_in([ask(f"q{n}", model=PAID_MODEL) for n in range(40)], seconds=8)
        progress = await made.run(ref)
        assert (progress.state, progress.done, progress.lanes) == (State.DONE, 40, {"online": 40})
        assert layers.calls["find"] >= 1


def down(name: str) -> None:
    raise TenthError(Code.UNAVAILABLE, "PROVIDER_UNREACHABLE", f"{name}: away", retry_after_seconds=0.1)
